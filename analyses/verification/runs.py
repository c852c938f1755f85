"""The claims of ``rhoscope crossings``: counts and eigenvalues of every step, from its own checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from analyses.common.study_files import Progress, silent
from analyses.verification.checks import Check, unchecked
from analyses.verification.exact.problem import RawProblem
from analyses.verification.exact.products import PlainProducts
from analyses.verification.exact.reference import DenseReference, dense_references, flat_reference
from analyses.verification.network import DENSE_DIMENSION, loss_checks
from analyses.verification.spectrum import SpectrumClaim, gravity, spectrum_checks

MOST_STEPS = 24  # evenly spread; each costs a dense reference
SIGNS = ("negative", "marginal", "positive", "undetermined")


def run_checks(
    document: dict[str, Any], problem_at: Callable[[int], RawProblem], *, steps: int = MOST_STEPS,
    progress: Progress = silent,
) -> list[Check]:  # fmt: skip
    """Judge a crossing study; of claims made at every step the worst one is reported.

    Parameters
    ----------
    document : dict
        Of ``rhoscope crossings``.
    problem_at : callable
        The problem of a saved step.
    steps : int
        Most steps that are checked, evenly spread.
    progress : Progress

    Returns
    -------
    list of Check
    """
    saved = [i for i, step in enumerate(document["steps"]) if float(step).is_integer()]
    chosen = [saved[i] for i in np.unique(np.linspace(0, len(saved) - 1, min(steps, len(saved))).astype(int))]
    if document.get("potentials", "all") != "all":
        return [unchecked("steps", document["potentials"], "a subset of the potentials spans the space")]
    by_claim: dict[str, list[Check]] = {}
    true_negative: dict[int, tuple[int, int]] = {}
    for done, i in enumerate(chosen):
        progress(done, len(chosen), f"step {document['steps'][i]:g}")
        step = int(document["steps"][i])
        for check in _step_checks(document, i, problem_at(step), true_negative):
            name = check.claim.partition("[")[0]
            told = dataclasses.replace(check, claim=f"{check.claim} at step {step}")
            by_claim.setdefault(name, []).append(told)
    checks = [max(same, key=gravity) for same in by_claim.values()]
    checks += _change_checks(document, true_negative)
    if len(chosen) < len(document["steps"]):
        left = len(document["steps"]) - len(chosen)
        checks.append(unchecked("steps", left, f"{left} steps were left out (not saved, or beyond {steps})"))
    for name, why in _UNCHECKED.items():
        if document.get(name):
            checks.append(unchecked(name, None, why))
    return checks


_UNCHECKED = {
    "fixed_points": "the weights there are not in the study",
    "linearisation": "the true flow is not integrated again",
    "controls": "networks of null controls are not saved with the study",
}


def _step_checks(
    document: dict[str, Any], i: int, problem: RawProblem, true_negative: dict[int, tuple[int, int]]
) -> list[Check]:
    facts = {name: document[name][i] for name in ("loss", "objective", "accuracy")}
    checks = loss_checks(facts, problem, PlainProducts(problem))
    if problem.dimension > DENSE_DIMENSION:
        return [*checks, unchecked("spectrum", None, f"{problem.dimension:,} dimensions do not fit")]
    references = _references(document, problem)
    claim = _claim(document, i, problem)
    checks += [c for c in spectrum_checks(claim, references) if c.passed is not None]
    checks.append(_branches(document, i, references))
    if len(references) == 1:
        values, error = references[0].eigenvalues.values, references[0].eigenvalues.error
        true_negative[i] = (int((values < -error).sum()), int((values < error).sum()))
    for counted in document.get("certified_counts") or ():
        if counted.get("step") == document["steps"][i] and "negative" in counted:
            checks += _certified(counted, problem, references)
    return checks


def _references(document: dict[str, Any], problem: RawProblem) -> list[DenseReference]:
    if document["operator"] == "flat":
        return flat_reference(problem)
    return dense_references(problem, space=document["subspace"])


def _claim(document: dict[str, Any], i: int, problem: RawProblem) -> SpectrumClaim:
    rank = document["rank"][i]
    span = document["operator"] != "flat" and document["subspace"] != "full"
    dimension = rank if span else problem.q if document["operator"] == "flat" else problem.dimension
    ends = {}
    for name in ("smallest", "largest"):
        end = document[name][i]
        ends[name] = np.array([end[0]] if end else [])
        ends[f"{name}_error"] = np.array([end[1]] if end else [], dtype=np.float64)
    return SpectrumClaim(
        **ends, dimension=dimension, rank=rank if span else None,
        counts={name: document[name][i] for name in SIGNS},
        bounds={name: document["count_bounds"][name][i] for name in ("negative", "marginal", "positive")},
        certified=document["count_certified"][i], enclosure=document["smallest_enclosure"][i],
        converged=document["converged"][i],
    )  # fmt: skip


def _branches(document: dict[str, Any], i: int, references: list[DenseReference]) -> Check:
    """Every eigenvalue of a branch lies within its bound of an eigenvalue of the step, at every kink."""
    pairs = [
        (branch["eigenvalues"][i], branch["errors"][i], branch["id"])
        for branch in document["branches"]
        if branch["eigenvalues"][i] is not None
    ]
    if not pairs:
        return unchecked("branches", None, "no branch is there")
    values, errors = (np.array(column, dtype=np.float64) for column in list(zip(*pairs, strict=True))[:2])
    worst = None
    for reference in references:
        true = reference.eigenvalues
        place = np.abs(true.values[None, :] - values[:, None]).argmin(1)
        bound = errors + true.error
        off = np.abs(values - true.values[place]).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(off > 0, off / bound, 0.0)
        j = int(excess.argmax())
        check = Check(
            f"branches[{pairs[j][2]}]", float(values[j]), float(bound[j]), float(true.values[place[j]]),
            true.method, bool(excess[j] <= 1), float(excess[j]),
        )  # fmt: skip
        worst = check if worst is None else max(worst, check, key=gravity)
    return worst


def _certified(counted: dict[str, Any], problem: RawProblem, references: list[DenseReference]) -> list[Check]:
    if counted["dimension"] == problem.dimension:
        references = dense_references(problem, space="full")
    else:
        references = dense_references(problem, space="complement")
    if counted["dimension"] != references[0].rank:
        return [unchecked("certified_counts", counted["dimension"], "counted on another space")]
    checks = []
    for name, sign in (("negative", -1), ("positive", 1)):
        for reference in references:
            values, error = sign * reference.eigenvalues.values, reference.eigenvalues.error
            true = [int((values > error).sum()), int((values > -error).sum())]
            low, high = counted[name]
            passed = low <= true[1] and high >= true[0]
            checks.append(
                Check(f"certified_counts.{name}", [low, high], 0, true, reference.eigenvalues.method, passed,
                      0.0 if passed else float("inf"))
            )  # fmt: skip
    return checks


def _change_checks(document: dict[str, Any], true_negative: dict[int, tuple[int, int]]) -> list[Check]:
    """Changes of the number of unstable directions from step to step."""
    place = {step: i for i, step in enumerate(document["steps"])}
    checks = []
    for row in document.get("net_changes") or ():
        low, high = place.get(row["step_low"]), place.get(row["step_high"])
        if low in true_negative and high in true_negative and _determined(document, low, high):
            before, after = true_negative[low], true_negative[high]
            true = [after[0] - before[1], after[1] - before[0]]
            passed = true[0] <= row["change_of_negative"] <= true[1]
            claim = f"net_changes at step {row['step_low']:g} to {row['step_high']:g}"
            checks.append(
                Check(claim, row["change_of_negative"], 0, true, "dense references of both steps", passed,
                      0.0 if passed else float("inf"))
            )  # fmt: skip
    return [max(checks, key=gravity)] if checks else []


def _determined(document: dict[str, Any], *steps: int) -> bool:
    return all(document["count_certified"][i] for i in steps)
