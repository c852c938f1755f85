"""The crossing study of a run: branches of eigenvalues, zero crossings, degrees of freedom."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from analyses.checkpoints.reading.text import path_text
from analyses.common.jobs import ALONE, Crew
from analyses.common.study_files import Progress, silent
from analyses.common.user_cache import cache_folder, program, why_unwritable
from analyses.layouts.layout import Layout
from analyses.runs.run import MAY_CHANGE, Run
from analyses.studies.crossings.certified_counts import certified_counts_of_run
from analyses.studies.crossings.controls import CONTROLS, relabelled_run
from analyses.studies.crossings.fixed_points import fixed_points_of_run
from analyses.studies.crossings.insertion import follow_records, insert_saved, insert_trained, spread
from analyses.studies.crossings.linear_check import linear_check
from analyses.studies.crossings.records import SpectralQuestion, StepRecord, records_of_run
from analyses.subjects.subject import subject_of
from analyses.training.flow_time import flow_times, training_plan
from analyses.training.trainer import save_steps
from manifold.errors import CheckpointError, InputError
from spectra.branches.crossings import Crossing
from spectra.branches.tracking import Branches


@dataclass(frozen=True)
class StudyPlan:
    """What a crossing study does beside following the eigenvalues.

    Parameters
    ----------
    coarse : int, optional
        Start with so many of the saved steps; others are inserted where a branch visits zero or may have been
        lost. Default: all saved steps.
    refine_time : bool
        Bisect brackets and links of poor overlap by training again from the checkpoint before.
    check_modes : int
        How many modes to compare with the true flow, at the refined last step; 0: none.
    refine : bool
        Find the fixed point near every step.
    certify : int
        At how many steps, evenly spread, all signs are counted by a factorisation of the full matrix.
    controls : tuple of str
        Null controls followed beside the run: ``random`` (weights shuffled), ``labels`` (trained on shuffled
        labels).
    skip_bad : bool
        Leave out steps that cannot be used; otherwise the first one is an error.
    cache : Path, optional
        Folder of finished steps, keyed by their content; default: in the user's cache folder.
    crew : Crew
        Who works.

    Raises
    ------
    InputError
        For an unknown control.
    """

    coarse: int | None = None
    refine_time: bool = False
    check_modes: int = 0
    refine: bool = False
    certify: int = 0
    controls: tuple[str, ...] = ()
    skip_bad: bool = False
    cache: Path | None = None
    crew: Crew = ALONE

    def __post_init__(self) -> None:
        for name in self.controls:
            if name not in CONTROLS:
                raise InputError(f"--control: expected {' or '.join(CONTROLS)}, got {name!r}")


PLAIN = StudyPlan()
MOST_SAVED = 10**6  # checkpoints that a run may be asked about


@dataclass(frozen=True, eq=False)
class CrossingStudy:
    """Everything `follow_crossings` finds out.

    Parameters
    ----------
    run : Run
    question : SpectralQuestion
    records : tuple of StepRecord
        In the order of steps, inserted ones included.
    times : ndarray or None
        Flow time of each record.
    branches : Branches
    crossings : tuple of Crossing
        Low and high are numbers of records.
    skipped : dict of int to str
        Steps left out, with the reason.
    linearisation : dict or None
        Contract of the check; None: not asked for.
    fixed_points : dict of int to (dict or str), or None
        The fixed point near every saved step; None: not asked for.
    controls : dict of str to CrossingStudy
        Null controls.
    certified : list of dict, or None
        Complete counts at some steps; None: not asked for.
    notes : tuple of str
        What a reader must know about the study itself.
    layout : Layout or None
        Where the weights are, and how that became known.
    """

    run: Run
    question: SpectralQuestion
    records: tuple[StepRecord, ...]
    times: np.ndarray | None
    branches: Branches
    crossings: tuple[Crossing, ...]
    skipped: dict[int, str]
    linearisation: dict[str, Any] | None = None
    fixed_points: dict[int, dict[str, Any] | str] | None = None
    controls: dict[str, CrossingStudy] = field(default_factory=dict)
    certified: list[dict[str, Any]] | None = None
    notes: tuple[str, ...] = ()
    layout: Layout | None = None

    @property
    def steps(self) -> np.ndarray:
        """Step of each record; a fraction between checkpoints."""
        return np.array([record.facts["step"] for record in self.records], float)

    @property
    def complete(self) -> bool:
        """Whether every spectrum is complete."""
        return all(record.facts["complete"] for record in self.records)

    def fact(self, name: str) -> list[Any]:
        """One fact of every record."""
        return [record.facts[name] for record in self.records]


def follow_crossings(
    run: Run, layout: Layout, question: SpectralQuestion, plan: StudyPlan = PLAIN, *,
    progress: Progress = silent,
) -> CrossingStudy:  # fmt: skip
    """Follow the spectrum of the second variation through the checkpoints of a run.

    Parameters
    ----------
    run : Run
        Of at least two checkpoints.
    layout : Layout
        Where the weights are.
    question : SpectralQuestion
        What is asked of every step.
    plan : StudyPlan
        What else to do.
    progress : Progress
        Told the stage.

    Returns
    -------
    CrossingStudy

    Raises
    ------
    InputError
        If fewer than two steps can be used, or a control of shuffled labels cannot be trained.
    CheckpointError
        If a step cannot be used and bad steps are not to be skipped.
    """
    if len(run.steps) < 2:
        raise InputError(
            f"{path_text(run.path)}: has one checkpoint; crossings need at least two "
            "(rhoscope analyze reads one)"
        )
    cache = cache_folder("crossings") if plan.cache is None else plan.cache
    problem = why_unwritable(cache)
    known = {"cache": cache, "crew": plan.crew, "progress": progress}
    first = None if plan.coarse is None else spread(run.steps, plan.coarse)
    records, skipped = _usable(run, records_of_run(run, layout, question, steps=first, **known), plan)
    if plan.coarse is not None:
        records = insert_saved(run, layout, question, records, bad=skipped, **known)
        records, more = _usable(run, {r.facts["step"]: r for r in records} | skipped, plan)
        skipped |= more
    if plan.refine_time:
        records = insert_trained(run, layout, question, records, cache=cache, progress=progress)
    saved = [record.facts["step"] for record in records if record.facts["step"] in run.files]
    points = None
    if plan.refine:
        points = fixed_points_of_run(run, layout, question, steps=[int(s) for s in saved], **known)
    certified = None
    if plan.certify:
        chosen = spread([int(step) for step in saved], plan.certify)
        certified = certified_counts_of_run(
            run, layout, question, cache=cache, steps=chosen, progress=progress
        )
    branches, crossings = follow_records(records)
    return CrossingStudy(
        run, question, tuple(records), flow_times(run, [record.facts["step"] for record in records]),
        branches, tuple(crossings), skipped, _checked(run, layout, question, plan, int(saved[-1]), progress),
        points, _controls(run, layout, question, replace(plan, cache=cache), progress), certified,
        _unsaved(records, cache, problem), layout,
    )  # fmt: skip


def _unsaved(records: Sequence[StepRecord], cache: Path, problem: str | None) -> tuple[str, ...]:
    """That finished steps could not be kept, said once."""
    problem = problem or next((r.facts["unsaved"] for r in records if "unsaved" in r.facts), None)
    if problem is None:
        return ()
    return (
        f"finished steps are not kept: {path_text(cache)} cannot be written ({problem}); --cache DIR names "
        "another folder",
    )


def missing_steps(run: Run) -> list[int]:
    """Steps before the last that a run of the reference trainer should have and has not."""
    plan = training_plan(run)
    if plan is None or not run.steps:
        return []
    every = run.config.get("save_every")
    if every is not None and not (type(every) is int and every > plan.steps // MOST_SAVED):
        return []  # not what rhoscope train wrote
    wanted = save_steps(plan.steps, every)
    return sorted(step for step in wanted if step < run.steps[-1] and step not in run.files)


def _checked(
    run: Run, layout: Layout, question: SpectralQuestion, plan: StudyPlan, step: int, progress: Progress
) -> dict[str, Any] | None:
    if plan.check_modes < 1 or question.operator != "wasserstein":
        return None
    subject = subject_of(run.read(step), layout, run, centred=question.centred, device=question.device)
    return linear_check(subject, question, step=step, count=plan.check_modes, progress=progress)


def _controls(
    run: Run, layout: Layout, question: SpectralQuestion, plan: StudyPlan, progress: Progress
) -> dict[str, CrossingStudy]:
    """The same study, without extras, of the null controls."""
    found = {}
    bare = replace(plan, refine_time=False, check_modes=0, refine=False, certify=0, controls=())
    for name in plan.controls:
        if name == "random":
            shuffled = replace(question, control="random")
            found[name] = follow_crossings(run, layout, shuffled, bare, progress=progress)
            continue
        with ExitStack() as stack:
            keeper = plan.cache
            if why_unwritable(keeper):
                keeper = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rhoscope-")))
            folder = keeper / f"labels_{_training_key(run)}"
            other = relabelled_run(run, folder, device=question.device, progress=progress)
            found[name] = follow_crossings(other, layout, question, bare, progress=progress)
    return found


def _training_key(run: Run) -> str:
    """Key of a training: the same for runs that differ in nothing but where and by which version."""
    told = {key: value for key, value in run.config.items() if key not in MAY_CHANGE or key == "steps"}
    told |= {"save_every": run.config.get("save_every"), "program": program()}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _usable(
    run: Run, found: dict[int, StepRecord | str], plan: StudyPlan
) -> tuple[list[StepRecord], dict[int, str]]:
    records, skipped, length = [], {}, None
    for step, record in sorted(found.items()):
        problem = record if isinstance(record, str) else None
        if problem is None and length is not None and len(record.vectors) != length:
            problem = f"{len(record.vectors)} coordinates where the steps before have {length}"
        if problem is None:
            length = len(record.vectors)
            records.append(record)
        elif plan.skip_bad:
            skipped[step] = problem
        else:
            raise CheckpointError(f"step {step}: {problem}; --skip-bad leaves such steps out")
    if len(records) < 2:
        why = "".join(f"; step {step}: {reason}" for step, reason in list(skipped.items())[:3])
        raise InputError(
            f"{path_text(run.path)}: crossings need two usable checkpoints, there is {len(records)}{why}"
        )
    return records, skipped
