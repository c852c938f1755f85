"""Claims about what is learned: the families that gradient descent finds, and sample complexity."""

from __future__ import annotations

import importlib.util
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from analyses.ledger.entries import Claim, Hypothesis, Verdict, examines
from analyses.ledger.laboratory import Laboratory
from analyses.training import TrainingPlan, train
from spectra.families import FOUR, NAMES, OTHER, SIX, SIX_PHASES, FrequencyFactor, factor

# Published shares of the families, in per cent of the frequencies, q = 512, decay 5e-5 (arXiv 2410.01779).
PUBLISHED = {
    "Z23": {FOUR: 47.1, SIX: 39.8, SIX_PHASES: 11.3, OTHER: 1.8},
    "Z71": {FOUR: 72.6, SIX: 21.1, SIX_PHASES: 4.0, OTHER: 2.3},
    "Z127": {FOUR: 83.0, SIX: 14.1, SIX_PHASES: 2.3, OTHER: 0.7},
}


def trained_families(
    group: str, *, width: int, steps: int, seeds: range, device: str = "cpu"
) -> list[tuple[FrequencyFactor, ...]]:
    """Train as published (Adam, lr 0.01, constant, L2 decay 5e-5, 90 % of the pairs, s = 1) and factor.

    Parameters
    ----------
    group : str
    width, steps : int
    seeds : range
    device : str

    Returns
    -------
    list of tuple of FrequencyFactor
        One per seed.
    """
    found = []
    for seed in seeds:
        plan = TrainingPlan(
            group, width=width, steps=steps, seed=seed, lr=0.01, schedule="constant", weight_decay=5e-5,
            train_fraction=0.9, output_scale=1.0,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            run = train(plan, Path(folder) / "run", save_every=steps, device=device)
            found.append(factor(run.layout.network(run.read(steps))))
    return found


def share_table(factors: list[tuple[FrequencyFactor, ...]]) -> list[dict[str, Any]]:
    """Shares of the families over all frequencies and seeds, with 95 % Wilson intervals, in per cent."""
    counts = Counter(one.name for run in factors for one in run)
    total = max(sum(counts.values()), 1)
    rows = []
    for name in NAMES:
        interval = binomtest(counts[name], total).proportion_ci(method="wilson")
        rows.append({"family": name, "count": counts[name], "of": total, "share": 100 * counts[name] / total,
                     "interval": [100 * interval.low, 100 * interval.high]})  # fmt: skip
    return rows


@examines("factorable-solutions")
def factorable_solutions(lab: Laboratory) -> Claim:
    """Families of trained networks; the published sizes only in the full ledger."""
    group, width, steps, seeds = ("Z11", 96, 2500, 2) if lab.quick else ("Z23", 512, 10_000, 5)
    factors = trained_families(group, width=width, steps=steps, seeds=range(lab.seed, lab.seed + seeds))
    rows = share_table(factors)
    orders = Counter(one.order for run in factors for one in run)
    factorable = rows[-1]["of"] - rows[-1]["count"]
    enough = rows[-1]["of"] > 0 and factorable / rows[-1]["of"] > 0.8
    published = PUBLISHED.get(group)
    if published is None:
        outcome = "at this small size; the published shares (n = 23, 71, 127) are compared by the full ledger"
    else:
        for row in rows:
            row["published"] = published[row["family"]]
            row["inside"] = row["interval"][0] <= row["published"] <= row["interval"][1]
        outcome = f"{sum(row['inside'] for row in rows)} of {len(rows)} published shares inside the intervals"
    residuals = [one.residual for run in factors for one in run if one.name != OTHER]
    return Claim(
        "factorable-solutions",
        "Gradient descent with decay finds factorable solutions of order 4 and 6, in the published shares.",
        (Verdict.HOLDS if enough and all(row.get("inside", False) for row in rows)
         else Verdict.CORRECTED if enough and published else Verdict.UNDECIDED),
        {"group": group, "neurons": width, "steps": steps, "seeds": seeds, "table": rows,
         "orders": {str(key): value for key, value in sorted(orders.items())},
         "median_residual": float(np.median(residuals)) if residuals else None},
        f"{factorable} of {rows[-1]['of']} frequencies are in one of the three families; {outcome}.",
        (Hypothesis("Adam, lr 0.01, decay 5e-5, 90 % of the pairs, s = 1", f"{group}, {steps} steps", True),),
    )  # fmt: skip


@examines("sample-complexity")
def sample_complexity(lab: Laboratory) -> Claim:
    """The gain |G| on the circle, by the complexity study."""
    statement = (
        "n = Theta(max{vol(M/G)/eps^(1 + 1/(theta(kappa+1))), log(1/delta)/eps^2}); finite G gains |G|."
    )
    if importlib.util.find_spec("analyses.complexity") is None:
        return Claim(
            "sample-complexity", statement, Verdict.UNDECIDED, {},
            "The study of learning curves is not part of this installation.",
        )  # fmt: skip
    from analyses.complexity.study import ComplexityOptions, plan_study, run_study

    options = ComplexityOptions(
        symmetry="Z4", trials=8 if lab.quick else 64, draws=20,
        sizes=(256, 512, 1024) if lab.quick else (), seed=lab.seed,
    )  # fmt: skip
    _, document = run_study(plan_study(options))
    gains = [one for one in document["gain"] if one["epsilon"] is None]
    good = all(one["ci"][0] <= one["theory"] <= one["ci"][1] for one in gains)
    near = all(abs(np.log(one["ratio"] / one["theory"])) < 0.1 for one in gains)
    slopes = {one["name"]: one["slope"] for one in document["groups"]}
    return Claim(
        "sample-complexity", statement,
        Verdict.CORRECTED if gains and (good or near) else Verdict.UNDECIDED,
        {"space": "T1", "chain": "Z1 < Z2 < Z4", "trials": options.trials, "gain": gains, "slopes": slopes,
         "seed": lab.seed},
        "Gains over no symmetry: "
        + ", ".join(f"{one['group']} {one['ratio']:.2f} (theory {one['theory']:.0f})" for one in gains)
        + ". The bound's exponent needs targets on the edge of the source space; the command complexity "
        "--regimes measures it, and when the second term is slack.",
        (Hypothesis("finite G acting by isometries", "rotations of the circle", True),),
    )  # fmt: skip
