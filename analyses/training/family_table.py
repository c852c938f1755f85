"""Shares of the polynomial families over trained networks, beside the published ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from analyses.checkpoints.reader import read_checkpoint
from analyses.common.study_files import atomic_path
from analyses.layouts.layout import stored_layout
from analyses.training.published import (
    DECAY,
    FRACTION,
    GROUPS,
    RATE,
    SEEDS,
    STEPS,
    WIDTH,
    PublishedPlan,
    note_of,
)
from manifold.errors import InputError
from spectra.networks.families import (
    FIT_TOLERANCE,
    FOUR,
    NAMES,
    OTHER,
    SIX,
    SIX_PHASES,
    FrequencyFactor,
    factor,
)
from spectra.networks.group_network import GroupNetwork

# Per cent of the frequencies of order 4 or 6 whose neurons factor; q = 512, L2 decay 5e-5 (arXiv 2410.01779).
PUBLISHED = {
    "Z23": {FOUR: 47.1, SIX: 39.8, SIX_PHASES: 11.3, OTHER: 1.8},
    "Z71": {FOUR: 72.6, SIX: 21.1, SIX_PHASES: 4.0, OTHER: 2.3},
    "Z127": {FOUR: 83.0, SIX: 14.1, SIX_PHASES: 2.3, OTHER: 0.7},
}
STRONG = 0.05
"""Largest Fourier coefficient of a (raw weights) below which a neuron is not counted, as published."""

PROTOCOL = (
    f"o = sum_j c_j (a_j[x] + b_j[y])^2, q = {WIDTH}; projected squared error, mean over a random "
    f"{100 * FRACTION:.0f} % of the pairs; Adam, lr {RATE}, L2 decay {DECAY}, {STEPS:,} full-batch steps; "
    "weights uniform in +-1/sqrt(fan-in) at first; float64; neurons counted whose a has a Fourier "
    f"coefficient above {STRONG}"
)
STORED = Path(__file__).with_name("published_table.json")


def factor_strong(network: GroupNetwork) -> tuple[FrequencyFactor, ...]:
    """Factor a network by its strong neurons: a Fourier coefficient of a above 0.05 in modulus.

    Parameters
    ----------
    network : GroupNetwork

    Returns
    -------
    tuple of FrequencyFactor
        One per frequency that has strong neurons.
    """
    size = np.abs(network.group.fourier(network.a.numpy())).max(0)
    strong = torch.as_tensor(size > STRONG)
    kept = [None if w is None else w[:, strong] for w in (network.a, network.b, network.c)]
    return factor(GroupNetwork(network.group, *kept, network.output_scale)) if strong.any() else ()


@dataclass(frozen=True)
class FamilyRow:
    """One family in one group.

    Parameters
    ----------
    group, family : str
    count, of : int
        Frequencies in the family, and frequencies of order 4 or 6 that factor, over all seeds.
    share, low, high : float
        Per cent, with the 95 % Wilson interval (frequencies as independent draws).
    published : float or None
        Per cent.
    """

    group: str
    family: str
    count: int
    of: int
    share: float
    low: float
    high: float
    published: float | None

    @property
    def inside(self) -> bool | None:
        """Whether the published share lies in the interval."""
        return None if self.published is None else self.low <= self.published <= self.high


def family_rows(group: str, factors: Iterable[FrequencyFactor]) -> list[FamilyRow]:
    """Shares of the families among the frequencies of order 4 or 6 that factor.

    Parameters
    ----------
    group : str
    factors : iterable of FrequencyFactor
        Of all seeds together.

    Returns
    -------
    list of FamilyRow
        One per family, ``other`` (factors, but into none of the three) last.
    """
    counts = Counter(one.name for one in factors if one.product_residual <= FIT_TOLERANCE)
    total = sum(counts.values())
    rows = []
    for name in NAMES:
        interval = binomtest(counts[name], max(total, 1)).proportion_ci(method="wilson")
        low, high = 100 * float(interval.low), 100 * float(interval.high)
        published = PUBLISHED.get(group, {}).get(name)
        share = 100 * counts[name] / max(total, 1)
        rows.append(FamilyRow(group, name, counts[name], total, share, low, high, published))
    return rows


def gather(folder: Path) -> dict[str, Any]:
    """The table of all finished networks in a folder, as one small document.

    Parameters
    ----------
    folder : Path
        Of `analyses.training.published.train_table`.

    Returns
    -------
    dict
        ``protocol`` in words; ``networks``: per network its facts and ``factors``, rows ``frequency,
        order, neurons, family, residual, product_residual``.

    Raises
    ------
    InputError
        If no network is finished.
    """
    networks = []
    for group in GROUPS:
        for seed in SEEDS:
            note = note_of(folder, PublishedPlan(group, seed))
            if not note.exists():
                continue
            facts = json.loads(note.read_text())
            checkpoint = read_checkpoint(note.with_suffix(".safetensors"))
            found = factor_strong(stored_layout(checkpoint).network(checkpoint))
            facts["neurons_left"] = facts["neurons_left"][-1][1]
            facts["factors"] = [
                [one.frequency, one.order, one.neurons, one.name, round(one.residual, 6),
                 round(one.product_residual, 6)]
                for one in found
            ]  # fmt: skip
            networks.append(facts)
    if not networks:
        raise InputError(f"--published-table: {folder} holds no finished network yet")
    return {"protocol": PROTOCOL, "networks": networks}


def factors_of(document: dict[str, Any], group: str) -> list[FrequencyFactor]:
    """All factors of one group in a document of `gather`."""
    return [
        FrequencyFactor(row[0], row[1], row[2], {row[3]: _number(row[4])}, row[3], _number(row[5]))
        for one in document["networks"]
        if one["group"] == group
        for row in one["factors"]
    ]


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def write_table(document: dict[str, Any], path: Path) -> Path:
    """Write a document of `gather` as JSON, one line per network; an old one is replaced."""
    rows = ",\n".join("  " + json.dumps(one) for one in document["networks"])
    text = f'{{"protocol": {json.dumps(document["protocol"])},\n "networks": [\n{rows}\n]}}\n'
    with atomic_path(path, force=True) as temporary:
        temporary.write_text(text)
    return path


def stored_table() -> dict[str, Any]:
    """The table that comes with the package."""
    return json.loads(STORED.read_text())


def orders(factors: Iterable[FrequencyFactor]) -> dict[str, int]:
    """How many frequencies have order 4, 6, another one; how many of order 4 and 6 do not factor."""
    factors = list(factors)
    found = {"4": 0, "6": 0, "another": 0, "not factorable": 0}
    for one in factors:
        found[str(one.order) if one.order in {4, 6} else "another"] += 1
        found["not factorable"] += one.product_residual > FIT_TOLERANCE
    return found


def table_lines(document: dict[str, Any]) -> list[str]:
    """The table for reading: shares with intervals beside the published ones, inside or outside."""
    lines = [f"{'group':<6} {'family':<24} {'count':>9} {'share':>7}  {'95 % interval':<15} {'published':>9}"]
    for group in GROUPS:
        factors = factors_of(document, group)
        if not factors:
            continue
        for row in family_rows(group, factors):
            lines.append(
                f"{row.group:<6} {row.family:<24} {f'{row.count}/{row.of}':>9} {row.share:>6.1f}% "
                f" {f'{row.low:.1f} .. {row.high:.1f}':<15} {row.published:>8}%  "
                f"{'inside' if row.inside else 'OUTSIDE'}"
            )
        seeds = sum(one["group"] == group for one in document["networks"])
        counts = ", ".join(f"{value} {key}" for key, value in orders(factors).items())
        lines.append(
            f"       {seeds} seeds, {len(factors)} frequencies with strong neurons, by order: {counts}"
        )
    return lines
