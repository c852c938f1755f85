"""The hunt: every path that applies to a nasty network, forced, and judged by the referee.

``python -m tests.analyses.verification.hunt --seeds 0:200 --out FILE.jsonl`` goes on where the file stops.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from analyses.verification.checks import Check
from analyses.verification.exact.reference import DenseReference, dense_references, flat_reference
from analyses.verification.spectrum import SpectrumClaim, spectrum_checks
from manifold.errors import RhoscopeError
from spectra.blocks.partition import check_blocks, frequency_blocks
from spectra.certificates.inertia import count_signs
from spectra.certificates.uncertainty import operator_uncertainty
from spectra.methods.compute import SpectrumResult, compute_spectrum
from spectra.methods.plan import SpectrumPlan, plan_spectrum
from spectra.operators.assembly import can_assemble
from spectra.operators.variation import SecondVariation
from spectra.solvers.spectrum import dense_spectrum
from tests.analyses.verification.nasty import Nasty, nasty

KRYLOV_COUNT = 3
Judged = list[Check]


def claim_of(result: SpectrumResult, count: int | None) -> SpectrumClaim:
    """What a result says, as a study would repeat it."""
    spectrum = result.spectrum
    listed = len(spectrum.eigenvalues) if count is None else count
    (largest, largest_error), (smallest, smallest_error) = spectrum.largest(listed), spectrum.smallest(listed)
    names = ("negative", "marginal", "positive", "undetermined")
    return SpectrumClaim(
        smallest, smallest_error, largest, largest_error, spectrum.dimension, result.rank,
        {name: getattr(spectrum.counts, name) for name in names}, spectrum.counts.bounds,
        spectrum.counts.certified, spectrum.smallest_enclosure, result.leak, result.plan.moments,
        spectrum.converged,
    )  # fmt: skip


class Trial:
    """One network: its subject and its references, made when first needed."""

    def __init__(self, found: Nasty):
        self.nasty, self.subject = found, found.subject
        self._references: dict[str, list[DenseReference]] = {}

    def references(self, space: str) -> list[DenseReference]:
        """Of the full space, of span(R) or of the complement of its symmetries."""
        if space not in self._references:
            self._references[space] = dense_references(self.nasty.problem, space=space)
        return self._references[space]

    def compute(self, plan: SpectrumPlan) -> SpectrumResult:
        """Carry out a plan."""
        return compute_spectrum(plan, self.subject.objective, self.subject.measure, seed=self.nasty.seed)

    def plan(self, subspace: str, **changes: Any) -> SpectrumPlan:
        """The plan of a complete spectrum, changed."""
        made = plan_spectrum(self.subject.objective, self.subject.measure, subspace=subspace, count=None)
        return dataclasses.replace(made, **changes)

    def judge(self, plan: SpectrumPlan, count: int | None = None) -> Judged:
        """Carry out a plan and check its claims."""
        claim = claim_of(self.compute(plan), count)
        return spectrum_checks(claim, self.references(plan.subspace))


def _full(trial: Trial) -> Judged:
    return trial.judge(trial.plan("full"))


def _span(trial: Trial) -> Judged:
    return trial.judge(trial.plan("span"))


def _default(trial: Trial) -> Judged:
    made = plan_spectrum(trial.subject.objective, trial.subject.measure)
    return trial.judge(made, made.count)


def _values_only(trial: Trial) -> Judged:
    full = SecondVariation(trial.subject.objective.linearise(trial.subject.measure))
    known = operator_uncertainty(trial.subject.objective, trial.subject.measure, seed=trial.nasty.seed)
    found = dataclasses.replace(dense_spectrum(full, vectors=False).widened(known), null=full.at.null_count)
    result = SpectrumResult(trial.plan("full"), found, None, 0.0, 0, None, lambda v: v)
    return spectrum_checks(claim_of(result, None), trial.references("full"))


def _krylov(trial: Trial) -> Judged:
    size = trial.subject.measure.points.numel()
    count = min(KRYLOV_COUNT, max(1, size // 4))
    return trial.judge(trial.plan("full", dense=False, count=count, side="particles"), count)


def _krylov_span(trial: Trial) -> Judged | None:
    size = trial.subject.measure.points.numel()
    if trial.subject.objective.potential_count <= size:
        return None
    count = min(KRYLOV_COUNT, max(1, size // 4))
    plan = trial.plan("span", dense=False, count=count, side="particles")
    plan = dataclasses.replace(plan, subspace="complement")
    return trial.judge(plan, count)


def _metric(trial: Trial) -> Judged | None:
    if trial.subject.objective.metric() is None:
        return None
    return trial.judge(trial.plan("span", metric=True, side="particles"))


def _blocks(trial: Trial) -> Judged | None:
    structure = frequency_blocks(trial.subject.objective, trial.subject.measure)
    try:
        check_blocks(structure)
    except RhoscopeError:
        return None
    return trial.judge(trial.plan("full", dense=False, blocks=True))


def _moments(trial: Trial) -> Judged | None:
    at = trial.subject.objective.linearise(trial.subject.measure)
    if not can_assemble(at) or trial.subject.objective.potential_count > 600:
        return None
    return trial.judge(trial.plan("span", dense=False, moments=True, side="potentials"))


def _flat(trial: Trial) -> Judged:
    made = plan_spectrum(trial.subject.objective, trial.subject.measure, operator="flat", count=None)
    return spectrum_checks(claim_of(trial.compute(made), None), flat_reference(trial.nasty.problem))


def _inertia(trial: Trial) -> Judged:
    full = SecondVariation(trial.subject.objective.linearise(trial.subject.measure))
    known = operator_uncertainty(trial.subject.objective, trial.subject.measure, seed=trial.nasty.seed)
    counts = count_signs(full, null=full.at.null_count, uncertainty=known, seed=trial.nasty.seed)
    bounds = {
        "negative": counts.negative, "positive": counts.positive,
        "marginal": [0, counts.dimension - counts.negative[0] - counts.positive[0]],
    }  # fmt: skip
    return _counts_only(counts.dimension, bounds, trial)


def _density(trial: Trial) -> Judged:
    made = plan_spectrum(trial.subject.objective, trial.subject.measure, density=True)
    counts = trial.compute(made).spectrum.counts
    return _counts_only(trial.subject.measure.points.numel(), counts.bounds, trial)


def _counts_only(dimension: int, bounds: dict, trial: Trial) -> Judged:
    none = np.zeros(0)
    low = {name: bounds[name][0] for name in ("negative", "marginal", "positive")}
    claim = SpectrumClaim(none, none, none, none, dimension, None, low | {"undetermined": 0}, bounds, False)
    return spectrum_checks(claim, trial.references("full"))


PATHS: dict[str, Callable[[Trial], Judged | None]] = {
    "full dense": _full,
    "full values": _values_only,
    "full krylov": _krylov,
    "full blocks": _blocks,
    "full inertia": _inertia,
    "full density": _density,
    "span dense": _span,
    "span default": _default,
    "span metric": _metric,
    "complement": _krylov_span,
    "span moments": _moments,
    "flat": _flat,
}


def hunt(seed: int, *, largest: int = 60, most: int | None = None) -> Iterator[dict[str, Any]]:
    """Every path of one network.

    Parameters
    ----------
    seed : int
    largest : int
        Most neurons.
    most : int, optional
        Dimension beyond which a network is passed over (constructed ones have the width they need).

    Yields
    ------
    dict
        ``seed, kind, line, path, outcome`` (``passed``, ``failed``, ``refused``, ``crashed``), ``failures``,
        ``claims`` (how many were checked), ``seconds``.
    """
    found = nasty(seed, largest=largest)
    if most is not None and found.problem.dimension > most:
        return
    trial = Trial(found)
    for path, run in PATHS.items():
        begin, record = (
            time.perf_counter(),
            {"seed": seed, "kind": found.kind, "line": found.line, "path": path},
        )
        failures, claims = [], 0
        try:
            checks = run(trial)
            if checks is None:
                continue
            failures = [c.document | {"excess": c.excess} for c in checks if c.passed is False]
            claims = sum(c.passed is not None for c in checks)
            outcome = "failed" if failures else "passed"
        except RhoscopeError as error:
            outcome, failures = "refused", [{"claim": type(error).__name__, "value": str(error)}]
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
            outcome, failures = "crashed", [{"claim": "traceback", "value": told}]
        seconds = round(time.perf_counter() - begin, 2)
        yield record | {"outcome": outcome, "failures": failures, "claims": claims, "seconds": seconds}


def table(records: list[dict[str, Any]]) -> str:
    """Outcomes by path."""
    outcomes = ("passed", "failed", "crashed", "refused")
    lines = [f"{'path':<14}" + "".join(f"{name:>9}" for name in (*outcomes, "claims", "seconds"))]
    for path in PATHS:
        own = [r for r in records if r["path"] == path]
        count = Counter(r["outcome"] for r in own)
        lines.append(
            f"{path:<14}" + "".join(f"{count[name]:>9}" for name in outcomes)
            + f"{sum(r['claims'] for r in own):>9}{sum(r['seconds'] for r in own):>9.0f}"
        )  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Hunt over a range of seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:30", help="LOW:HIGH")
    parser.add_argument("--out", type=Path, help="records, one a line; a second call goes on")
    parser.add_argument("--largest", type=int, default=60)
    chosen = parser.parse_args()
    low, high = map(int, chosen.seeds.split(":"))
    done: list[dict[str, Any]] = []
    if chosen.out is not None and chosen.out.exists():
        done = [json.loads(line) for line in chosen.out.read_text().splitlines()]
    seen = {record["seed"] for record in done}
    for seed in range(low, high):
        if seed in seen:
            continue
        records = list(hunt(seed, largest=chosen.largest))
        done += records
        if chosen.out is not None:
            with chosen.out.open("a") as out:
                out.writelines(json.dumps(r, default=float) + "\n" for r in records)
        for record in records:
            for failure in record["failures"] if record["outcome"] in {"failed", "crashed"} else ():
                print(f"{record['line']} | {record['path']} | {failure['claim']}: {failure['value']} "
                      f"reference {failure.get('reference')} bound {failure.get('bound')} "
                      f"excess {failure.get('excess')}", flush=True)  # fmt: skip
    chosen_records = [r for r in done if low <= r["seed"] < high]
    print(table(chosen_records))


if __name__ == "__main__":
    main()
