"""The fixed point near every step of a run: how far, of which kind, with which symbols and spectrum."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from analyses.common.jobs import ALONE, Crew, kept_result, over_steps
from analyses.common.study_files import Progress, silent
from analyses.layouts.layout import Layout
from analyses.runs.run import Run
from analyses.studies.crossings.records import SpectralQuestion, cache_name
from analyses.subjects.subject import Subject, subject_of
from manifold.errors import NotConvergedError
from spectra.flow.gradient_flow import FixedPoint, FixedPointKind, refine
from spectra.flow.saddles import nearest_stationary_point
from spectra.methods.compute import compute_spectrum
from spectra.networks.potentials import GroupPotentials

BASIN = 0.5  # a potential that moves by less cannot have changed between 0 and 1
SADDLE_STEPS, DESCENT_STEPS = 40, 300
FREE_DIMENSION = 2000  # unknowns up to which the search for a saddle may leave span(R)
FIXED_POINT_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Goal:
    """When a point counts as fixed.

    Parameters
    ----------
    tolerance : float
        Of ``max_j |grad V(z_j)|``, decay included.
    """

    tolerance: float = 1e-8


CLOSE = Goal()


def fixed_points_of_run(
    run: Run, layout: Layout, question: SpectralQuestion, *, cache: Path, steps: list[int],
    goal: Goal = CLOSE, crew: Crew = ALONE, progress: Progress = silent,
) -> dict[int, dict[str, Any] | str]:  # fmt: skip
    """The fixed point near each step; finished ones come from the cache.

    Parameters
    ----------
    run : Run
    layout : Layout
    question : SpectralQuestion
        Of the spectrum at the fixed point.
    cache : Path
        Folder of finished steps.
    steps : list of int
    goal : Goal
    crew : Crew
    progress : Progress

    Returns
    -------
    dict of int to dict or str
        See `fixed_point_of`; a string is the reason why a step could not be used.
    """
    return over_steps(
        _cached, steps, run, layout, question, cache, goal, crew=crew, what="fixed point near step",
        progress=progress,
    )  # fmt: skip


def _cached(
    step: int, run: Run, layout: Layout, question: SpectralQuestion, cache: Path, goal: Goal
) -> dict[str, Any]:
    subject = subject_of(run.read(step), layout, run, centred=question.centred, device=question.device)
    told = f"{cache_name(subject, question, step)} {goal} {FIXED_POINT_VERSION}"
    file = cache / f"fixed_{step}_{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
    return kept_result(file, lambda: fixed_point_of(subject, question, step=step, goal=goal))


def fixed_point_of(
    subject: Subject, question: SpectralQuestion, *, step: float, goal: Goal = CLOSE
) -> dict[str, Any]:
    """Move a network to a fixed point of the flow and describe what is there.

    First to the nearest stationary point of any kind (Levenberg-Marquardt on the gradient), saddles too;
    where that stops short, down to a minimum (trust-region Newton).

    Parameters
    ----------
    subject : Subject
    question : SpectralQuestion
        Of the spectrum at the fixed point.
    step : float
        Where the network is from.
    goal : Goal

    Returns
    -------
    dict
        ``converged``, ``method``, ``reason`` (of a failure), gradient norms before and after, ``moved`` (root
        mean square over the particles), ``kind``, losses and the largest change of a potential in R_g and in
        the others, ``same_basin`` (no potential moved by a half), and the counts, ends, rank and leak of the
        spectrum there.
    """
    begin = time.perf_counter()
    point, method, reason = _move(subject, goal)
    reached = dataclasses.replace(
        subject, network=subject.network.with_points(point.measure.points, centred=subject.centred)
    )
    targets, others = _potential_changes(subject, reached)
    facts = {
        "step": step,
        "converged": point.kind is not FixedPointKind.NONE,
        "method": method,
        "reason": reason,
        "gradient_norm": point.gradient_norm,
        "gradient_norm_after": point.gradient_norm_after,
        "moved": point.moved,
        "kind": point.kind.value,
        "loss_before": subject.task.value(subject.measure),
        "loss_after": subject.task.value(point.measure),
        "largest_change_R_g": targets,
        "largest_change_others": others,
        "same_basin": max(targets, others) < BASIN,
        "spectrum": None,
    }
    if facts["converged"]:
        facts["spectrum"] = _spectrum(reached, question)
    return facts | {"seconds": time.perf_counter() - begin}


def _move(subject: Subject, goal: Goal) -> tuple[FixedPoint, str, str | None]:
    try:
        near = nearest_stationary_point(
            subject.objective, subject.measure, tol=goal.tolerance, max_iterations=SADDLE_STEPS,
            inside_only=subject.measure.points.numel() > FREE_DIMENSION,
        )  # fmt: skip
        return near, "levenberg-marquardt", None
    except NotConvergedError:
        pass
    try:
        down = refine(subject.objective, subject.measure, tol=goal.tolerance, max_iterations=DESCENT_STEPS)
        return down, "newton", None
    except NotConvergedError as error:
        return error.partial, "newton", str(error)


def _potential_changes(before: Subject, after: Subject) -> tuple[float, float]:
    """Largest change of a potential, in R_g and in the other sets."""
    sets = [GroupPotentials.of(subject.network).named_sets() for subject in (before, after)]
    sizes = {
        name: float((sets[1][name] - values).abs().max()) if values.numel() else 0.0
        for name, values in sets[0].items()
    }
    return sizes.pop("R_g"), max(sizes.values())


def _spectrum(subject: Subject, question: SpectralQuestion) -> dict[str, Any]:
    result = compute_spectrum(
        question.plan(subject), subject.objective, subject.measure,
        potentials=question.monomials(subject), seed=question.seed, max_seconds=question.max_seconds,
    )  # fmt: skip
    found = result.spectrum
    names = ("negative", "marginal", "positive", "undetermined")
    return {
        "rank": result.rank,
        **{name: getattr(found.counts, name) for name in names},
        "smallest": found.eigenvalues[:1],
        "largest": found.eigenvalues[-1:],
        "error": float(np.max(found.errors, initial=0.0)),
        "leak": result.leak,
        "converged": found.converged,
    }
