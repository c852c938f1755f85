"""The crossing study of a run: branches of eigenvalues, zero crossings, degrees of freedom."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from analyses.flow_time import advance, flow_times
from analyses.layouts import Layout
from analyses.runs import Run
from analyses.spectral_steps import SpectralQuestion, StepRecord, cached_record, records_of_run
from analyses.studies import Progress, plain, provenance, silent
from analyses.subjects import subject_of
from manifold.errors import CheckpointError, InputError, NotConvergedError
from manifold.measures import ParticleMeasure
from spectra.crossings import GOOD_OVERLAP, Branches, Crossing, CrossingKind, find_crossings, track
from spectra.flow import refine
from spectra.linearisation import check_linearisation, choose_modes
from spectra.monotone import Causes, Monotony, explain_moves, monotony
from spectra.plan import compute_spectrum

COUNTS = {
    "negative": "certainly negative: unstable directions",
    "marginal": "zero within rounding",
    "positive": "certainly positive: contracting directions",
    "undetermined": "not computed, or the error bound is too wide to tell the sign",
}
UNIT = "1 (loss per squared unit of z)"
REFINED_SPECTRA = 12


@dataclass(frozen=True, eq=False)
class CrossingStudy:
    """Everything `follow_crossings` finds out; `dataset` and `document` are views of it.

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
    """

    run: Run
    question: SpectralQuestion
    records: tuple[StepRecord, ...]
    times: np.ndarray | None
    branches: Branches
    crossings: tuple[Crossing, ...]
    skipped: dict[int, str]
    linearisation: dict[str, Any] | None

    @property
    def steps(self) -> np.ndarray:
        """Step of each record; a fraction between checkpoints."""
        return np.array([record.facts["step"] for record in self.records], float)

    @property
    def complete(self) -> bool:
        """Whether every spectrum is complete."""
        return all(record.facts["complete"] for record in self.records)

    @property
    def motion(self) -> Monotony:
        """Directions of moves: of sorted eigenvalues where spectra are complete, else of branches."""
        ranks = {len(record.eigenvalues) for record in self.records}
        if self.complete and len(ranks) == 1:
            values = np.array([record.spectral.eigenvalues for record in self.records])
            return monotony(values, np.array([record.spectral.errors for record in self.records]))
        return monotony(self.branches.eigenvalues, self.branches.errors)

    @property
    def causes(self) -> Causes:
        """Which part of the second variation moved the branches."""
        padded = [np.append(record.local, np.nan) for record in self.records]  # -1 picks the NaN
        local = np.stack([row[index] for row, index in zip(padded, self.branches.index, strict=True)])
        return explain_moves(self.branches.eigenvalues, self.branches.errors, local)

    def fact(self, name: str) -> list[Any]:
        """One fact of every record."""
        return [record.facts[name] for record in self.records]

    @property
    def document(self) -> dict[str, Any]:
        """The JSON of ``rhoscope crossings``."""
        return _document(self)

    @property
    def dataset(self) -> xr.Dataset:
        """The study for netCDF; the whole document is its ``summary`` attribute."""
        return _dataset(self)


def follow_crossings(
    run: Run, layout: Layout, question: SpectralQuestion, *, cache: Path | None = None, workers: int = 1,
    dask: str | None = None, skip_bad: bool = False, refine_time: bool = False, check_modes: int = 0,
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
    cache : Path, optional
        Folder of finished steps; default ``crossings_cache`` in the run directory.
    workers : int
        Processes.
    dask : str, optional
        Address of a Dask scheduler.
    skip_bad : bool
        Leave out steps that cannot be used; otherwise the first one is an error.
    refine_time : bool
        Bisect brackets of crossings, and links of poor overlap, by training again from the checkpoint
        before (flow and gradient descent only), at most `REFINED_SPECTRA` new spectra.
    check_modes : int
        How many modes to compare with the true flow, at the refined last step; 0: none.
    progress : Progress
        Told the stage.

    Returns
    -------
    CrossingStudy

    Raises
    ------
    InputError
        If fewer than two steps can be used, or a null control is to be trained further.
    CheckpointError
        If a step cannot be used and ``skip_bad`` is false.
    """
    if len(run.steps) < 2:
        raise InputError(
            f"{run.path}: has one checkpoint; crossings need at least two (rhoscope analyze reads one)"
        )
    if question.control != "none" and (refine_time or check_modes):
        raise InputError("--control: a null control has no flow; leave out --refine-time and --check-modes")
    cache = run.path / "crossings_cache" if cache is None else cache
    found = records_of_run(run, layout, question, cache=cache, workers=workers, dask=dask, progress=progress)
    records, skipped = _usable(run, found, skip_bad)
    if refine_time:
        records = _bisect(run, layout, question, records, cache, progress)
    branches, crossings = _follow(records)
    checked = _linearisation(run, layout, question, records[-1], check_modes, progress)
    times = flow_times(run, [record.facts["step"] for record in records])
    return CrossingStudy(
        run, question, tuple(records), times, branches, tuple(crossings), skipped, checked
    )  # fmt: skip


def _follow(records: Sequence[StepRecord]) -> tuple[Branches, list[Crossing]]:
    steps = [record.spectral for record in records]
    branches = track(steps)
    return branches, find_crossings(steps, branches)


def _usable(
    run: Run, found: dict[int, StepRecord | str], skip_bad: bool
) -> tuple[list[StepRecord], dict[int, str]]:
    records, skipped, length = [], {}, None
    for step, record in found.items():
        problem = record if isinstance(record, str) else None
        if problem is None and length is not None and len(record.vectors) != length:
            problem = f"{len(record.vectors)} coordinates where the steps before have {length}"
        if problem is None:
            length = len(record.vectors)
            records.append(record)
        elif skip_bad:
            skipped[step] = problem
        else:
            raise CheckpointError(f"step {step}: {problem}; --skip-bad leaves such steps out")
    if len(records) < 2:
        raise InputError(f"{run.path}: only {len(records)} usable checkpoints; crossings need two")
    return records, skipped


def _bisect(
    run: Run, layout: Layout, question: SpectralQuestion, records: list[StepRecord], cache: Path,
    progress: Progress,
) -> list[StepRecord]:  # fmt: skip
    """Insert spectra in the middle of brackets, those with the most events first."""
    whole = run.config.get("optimizer") == "sgd"
    for done in range(REFINED_SPECTRA):
        progress(done, REFINED_SPECTRA, "bisecting brackets")
        steps = [record.facts["step"] for record in records]
        branches, events = _follow(records)
        weight = 0.1 * (branches.overlaps < GOOD_OVERLAP).sum(1)  # links that may have lost their branch
        for event in events:
            weight[event.low : event.high] += 1
        weight *= np.diff(steps) > (1.5 if whole else 1e-6)
        if not weight.any():
            break
        # Events per bracket times its width on a logarithmic axis: wide crowded brackets first.
        place = int(np.argmax(weight * np.log1p(np.diff(steps) / (np.array(steps[:-1]) + 1))))
        low, high = steps[place], steps[place + 1]
        middle = (low + high) // 2 if whole else (low + high) / 2
        start = max(step for step in run.steps if step <= low)
        subject = subject_of(run.read(start), layout, run, centred=question.centred, device=question.device)
        later = advance(run, subject, start, middle)
        records.insert(place + 1, cached_record(later, question, step=middle, cache=cache))
    return records


def _linearisation(
    run: Run, layout: Layout, question: SpectralQuestion, last: StepRecord, count: int, progress: Progress
) -> dict[str, Any] | None:
    """Refine the last step to a fixed point and compare rates of the true flow with eigenvalues there."""
    if count < 1 or question.operator != "wasserstein":
        return None
    step = last.facts["step"]
    subject = subject_of(run.read(int(step)), layout, run, centred=question.centred, device=question.device)
    objective, problem = subject.objective, None
    progress(0, 1, "refining the last step")
    try:
        point = refine(objective, subject.measure, tol=1e-8, progress=progress)
    except NotConvergedError as error:
        return {"step": step, "checked_modes": 0, "max_relative_rate_error": None, "reason": str(error)}
    result = compute_spectrum(question.plan(subject), objective, point.measure, seed=question.seed)
    found = result.spectrum
    modes = choose_modes(found.eigenvalues, found.errors, count)
    vectors = result.lift(found.vectors[:, torch.as_tensor(modes)])
    values = found.eigenvalues[modes]

    def check(part: slice, **options: Any) -> np.ndarray:
        measure: ParticleMeasure = point.measure
        return check_linearisation(
            objective, measure, values[part], vectors[:, part], progress=progress, **options
        ).relative_errors

    errors = check(slice(None))
    few = slice(0, min(3, len(modes)))
    sizes = [0.02, 0.01, 0.005]
    scaling = [float(np.median(check(few, size=size, centred=False))) for size in sizes] if len(modes) else []
    return {
        "step": step,
        "checked_modes": len(modes),
        "max_relative_rate_error": float(errors.max()) if len(modes) else None,
        "reason": problem,
        "eigenvalues": values,
        "relative_rate_errors": errors,
        "perturbation": 1e-3,
        "fixed_point": {
            "moved": point.moved,
            "gradient_norm": point.gradient_norm,
            "gradient_norm_after": point.gradient_norm_after,
            "kind": point.kind.value,
            "loss_before": last.facts["loss"],
            "loss_after": subject.task.value(point.measure),
        },
        "scaling": {"size": sizes, "one_sided_error": scaling},
    }


def _event(study: CrossingStudy, event: Crossing) -> dict[str, Any]:
    low, high = study.steps[event.low], study.steps[event.high]
    times = study.times
    return {
        "branch": event.branch,
        "t_low": low if times is None else times[event.low],
        "t_high": high if times is None else times[event.high],
        "step_low": low,
        "step_high": high,
        "direction": event.direction,
        "kind": event.kind.value,
        "overlap": event.overlap,
    }


def net_changes(study: CrossingStudy) -> list[dict[str, Any]]:
    """Per bracket of neighbouring steps: crossings up minus down beside the change of the counts."""
    rows = []
    for i, (before, after) in enumerate(itertools.pairwise(study.records)):
        inside = [
            e for e in study.crossings if e.kind is CrossingKind.CROSSING and (e.low, e.high) == (i, i + 1)
        ]
        up, down = (sum(e.direction == d for e in inside) for d in ("up", "down"))
        change = after.facts["negative"] - before.facts["negative"]
        if up or down or change:
            rows.append({"step_low": study.steps[i], "step_high": study.steps[i + 1], "up": up, "down": down,
                         "change_of_negative": change})  # fmt: skip
    return rows


def _document(study: CrossingStudy) -> dict[str, Any]:
    motion = study.motion
    branches = [
        {"id": b, "eigenvalues": study.branches.eigenvalues[:, b], "errors": study.branches.errors[:, b]}
        for b in range(study.branches.index.shape[1])
    ]
    kinds = [event.kind.value for event in study.crossings]
    return {
        "run": str(study.run.path),
        "operator": study.question.operator,
        "subspace": study.question.subspace,
        "control": study.question.control,
        "sign": "Hessian: positive = contracting",
        "group": study.run.config.get("group"),
        "optimizer": study.run.config.get("optimizer"),
        "activation": study.records[-1].facts["activation"],
        "steps": study.steps,
        "flow_time": study.times,
        "time": "flow time" if study.times is not None else "training step",
        **{name: study.fact(name) for name in ("loss", "objective", "rank", *COUNTS, "leak", "kind")},
        "count_certified": study.fact("certified"),
        "gradient_norm": study.fact("gradient_norm"),
        "complete": study.complete,
        "branches": branches,
        "crossings": [_event(study, event) for event in study.crossings],
        "kinds": {kind.value: kinds.count(kind.value) for kind in CrossingKind},
        "net_changes": net_changes(study),
        "smallest_link_overlap": _smallest(study.branches.overlaps),
        "monotone": {
            "fraction_nonincreasing_hessian": motion.hessian,
            "fraction_nonincreasing_jacobian": motion.jacobian,
            "fraction_steps_hessian": motion.hessian_steps,
            "fraction_steps_jacobian": motion.jacobian_steps,
            "moves": motion.moves,
            "causes": dataclasses.asdict(study.causes),
            "condition_D3L": study.fact("condition_D3L"),
        },
        "linearisation": study.linearisation,
        "skipped": {str(step): reason for step, reason in study.skipped.items()},
        "notes": study.records[-1].facts["notes"],
        "provenance": provenance(seed=study.question.seed, device=study.question.device),
    }


def _smallest(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.min()) if len(known) else None


def _dataset(study: CrossingStudy) -> xr.Dataset:
    def variable(dims: tuple[str, ...], values: Any, units: str, definition: str) -> tuple:
        return dims, np.asarray(values), {"units": units, "definition": definition}

    events = [_event(study, event) for event in study.crossings]
    branches, time = study.branches, "flow time" if study.times is not None else "training step"
    counts = {
        name: variable(("step",), study.fact(name), "eigenvalues", text) for name, text in COUNTS.items()
    }
    columns = {
        "branch": ("1", "number of the branch"),
        "t_low": (time, "last certain sign before"),
        "t_high": (time, "first certain sign after"),
        "step_low": ("training step", "last certain sign before"),
        "step_high": ("training step", "first certain sign after"),
        "direction": ("1", "up: an unstable direction becomes contracting; down; none"),
        "kind": ("1", "crossing, touch or unresolved"),
        "overlap": ("1", "smallest squared overlap of the links inside the bracket"),
    }
    data = counts | {
        "loss": variable(("step",), study.fact("loss"), "loss", "H over the pairs, mean over pairs"),
        "rank": variable(("step",), study.fact("rank"), "1", "dimension of the space of the spectrum"),
        "target_potential": variable(
            ("step", "frequency"), [record.targets for record in study.records], "1", "rho_kkk"
        ),
        "branch_eigenvalue": variable(
            ("step", "branch"), branches.eigenvalues, UNIT,
            "second variation, Hessian sign: positive = contracting; NaN where the branch is not there",
        ),
        "branch_error": variable(("step", "branch"), branches.errors, UNIT, "absolute error bound"),
        "link_overlap": variable(
            ("link", "branch"), branches.overlaps, "1", "squared overlap with the next cluster"
        ),
        **{
            f"crossing_{name}": variable(("crossing",), [event[name] for event in events], *told)
            for name, told in columns.items()
        },
    }  # fmt: skip
    if study.times is not None:
        data["flow_time"] = variable(("step",), study.times, "flow time", "t of d mu/dt = div(mu grad V)")
    return xr.Dataset(
        {name: value for name, value in data.items() if value[1].size or value[1].ndim > 1},
        coords={"step": study.steps},
        attrs={
            "study": "crossings",
            "summary": json.dumps(plain(study.document)),
            **provenance(seed=study.question.seed, device=study.question.device),
        },
    )
