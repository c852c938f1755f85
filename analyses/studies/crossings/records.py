"""The spectrum of one step of a run: computed once, kept in a cache, the unit of parallel work."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from analyses.common.jobs import ALONE, Crew, over_steps
from analyses.common.study_files import Progress, atomic_path, plain, silent
from analyses.common.user_cache import program
from analyses.layouts.layout import Layout, stored_layout
from analyses.runs.run import Run
from analyses.subjects.potential_sets import check_potentials, check_sets_exist, chosen_monomials
from analyses.subjects.subject import Subject, subject_of
from manifold.errors import InputError, LayoutError, RhoscopeError
from manifold.monomials import Monomials
from spectra.branches.motion import curvature_response, output_curvature, third_derivative_range
from spectra.branches.tracking import SpectralStep
from spectra.flow.gradient_flow import measured_point
from spectra.functionals.base import Functional
from spectra.methods.compute import SpectrumResult, compute_spectrum, flat_spectrum
from spectra.methods.plan import MAX_SECONDS, SpectrumPlan, plan_spectrum
from spectra.networks.potentials import GroupPotentials
from spectra.operators.variation import SecondVariation

CACHE_VERSION = 7
CONTROLS = ("none", "random")
ARRAYS = (
    "eigenvalues", "errors", "kept", "local", "vectors", "targets", "flat", "chart", "outputs", "response",
)  # fmt: skip
VECTOR_BYTES = 64 * 2**20  # of one record
LEFTOVER_SECONDS = 3600  # a temporary file of this age belongs to a study that was killed


@dataclass(frozen=True)
class SpectralQuestion:
    """What is asked of every step.

    Parameters
    ----------
    operator : str
        ``wasserstein`` or ``flat``.
    subspace : str
        ``span`` or ``full``.
    count : int or None
        Eigenvalues at each end where not all are computed.
    centred : bool or None
        See `subject_of`.
    seed : int
        Of start vectors.
    device : str
        torch device.
    control : str
        ``none``, or ``random``: a null control, every step's weights shuffled among all neurons and group
        elements (each of a, b, c keeps its numbers, so its norm, but no structure).
    potentials : str
        ``all``, or the set of potentials whose gradients span the space: R_g, R_c, R_n, R_*.
    max_seconds : float
        Limit of the iteration of one step, where there is one.

    Raises
    ------
    InputError
        For the chart operator, an unknown control or an unknown set of potentials.
    """

    operator: str = "wasserstein"
    subspace: str = "span"
    count: int | None = 10
    centred: bool | None = None
    seed: int = 0
    device: str = "cpu"
    control: str = "none"
    potentials: str = "all"
    max_seconds: float = MAX_SECONDS

    def __post_init__(self) -> None:
        if self.operator == "chart":
            raise InputError(
                "--operator chart: L'' is that of a convex loss and cannot cross zero; its motion (none for "
                "squared losses) is told under monotone; expected wasserstein or flat"
            )
        check_potentials(self.potentials)
        if self.control not in CONTROLS:
            raise InputError(f"--control: expected one of {', '.join(CONTROLS)}, got {self.control!r}")

    def subject(self, subject: Subject) -> Subject:
        """The subject to study: itself, or its null control."""
        if self.control == "none":
            return subject
        net, rng = subject.network, torch.Generator().manual_seed(self.seed)

        def shuffled(w: torch.Tensor | None) -> torch.Tensor | None:
            if w is None:
                return None
            mixed = w.reshape(-1)[torch.randperm(w.numel(), generator=rng).to(w.device)].reshape(w.shape)
            return mixed - mixed.mean(0) if subject.centred else mixed

        mixed = dataclasses.replace(net, a=shuffled(net.a), b=shuffled(net.b), c=shuffled(net.c))
        return dataclasses.replace(subject, network=mixed)

    def monomials(self, subject: Subject) -> Monomials | None:
        """The chosen subset of R, or None for all of it.

        Raises
        ------
        InputError
            If a subset is chosen for a network whose R has no such sets.
        """
        check_sets_exist(subject.network, self.potentials)
        return chosen_monomials(subject.task, self.potentials)

    def plan(self, subject: Subject) -> SpectrumPlan:
        """Side, method and memory for a subject."""
        return plan_spectrum(
            subject.objective, subject.measure, operator=self.operator, subspace=self.subspace,
            potentials=self.monomials(subject), count=self.count,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class StepRecord:
    """The spectrum of one step and what a crossing study shows beside it.

    Parameters
    ----------
    eigenvalues, errors : ndarray, shape (e,)
        All that were computed, ascending, Hessian sign, absolute bounds.
    kept : ndarray of int, shape (k,)
        Those whose vectors are kept to be followed: all, or the nearest to zero and both ends.
    local : ndarray, shape (k,)
        Share ``<v, Hess V v>`` of each kept eigenvalue; the rest is interaction. Zero for the flat operator.
    vectors : ndarray of float32, shape (N, k)
        Half-densities along the particles (for the flat operator along neurons).
    targets : ndarray of complex, shape (n - 1,)
        ``rho_kkk``.
    flat : ndarray, shape (q,)
        Spectrum of the flat operator, ascending.
    chart : ndarray, shape (n^3,) or empty
        Spectrum of L'' in the outputs, for cross-entropy; empty where L'' is constant (squared errors).
    outputs, response : ndarray, shape (P, n) and (P n, k), or empty
        For cross-entropy: outputs on the pairs of the loss, and how they move along each kept vector.
    facts : dict
        step, loss, objective, rank, counts, leak, gradient, kind of fixed point, condition, notes.
    """

    eigenvalues: np.ndarray
    errors: np.ndarray
    kept: np.ndarray
    local: np.ndarray
    vectors: np.ndarray
    targets: np.ndarray
    flat: np.ndarray
    chart: np.ndarray
    outputs: np.ndarray
    response: np.ndarray
    facts: dict[str, Any]

    @property
    def spectral(self) -> SpectralStep:
        """For branch tracking."""
        whole = self.facts["complete"] and len(self.kept) == len(self.eigenvalues)
        return SpectralStep(self.eigenvalues[self.kept], self.errors[self.kept], self.vectors, whole)

    def save(self, path: Path) -> None:
        """Write as one npz file, atomically."""
        with atomic_path(path, force=True) as temporary, temporary.open("wb") as out:
            arrays = {name: getattr(self, name) for name in ARRAYS}
            np.savez(out, facts=json.dumps(plain(self.facts)), **arrays)

    @classmethod
    def load(cls, path: Path) -> StepRecord | None:
        """Read a record; None if it is not there or damaged (then it is computed again)."""
        try:
            with np.load(path, allow_pickle=False) as content:
                return cls(*(content[name] for name in ARRAYS), json.loads(str(content["facts"])))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None


def compute_record(
    subject: Subject, question: SpectralQuestion, *, step: float, objective: Functional | None = None
) -> StepRecord:
    """Compute the record of one subject.

    Parameters
    ----------
    subject : Subject
    question : SpectralQuestion
    step : float
        Its place in training; a fraction for networks between two steps.
    objective : Functional, optional
        Default: the subject's own.

    Returns
    -------
    StepRecord
    """
    begin = time.perf_counter()
    objective = subject.objective if objective is None else objective
    result = compute_spectrum(
        question.plan(subject), objective, subject.measure, potentials=question.monomials(subject),
        seed=question.seed, max_seconds=question.max_seconds,
    )  # fmt: skip
    found, counts, at = result.spectrum, result.spectrum.counts, objective.linearise(subject.measure)
    point = measured_point(objective, subject.measure)
    flat = flat_spectrum(objective, subject.measure, seed=question.seed)
    facts = {
        "step": step,
        "loss": subject.task.value(subject.measure),
        "objective": objective.value(subject.measure),
        "accuracy": subject.network.accuracy(),
        "rank": _rank(result),
        **{name: getattr(counts, name) for name in ("negative", "marginal", "positive", "undetermined")},
        "count_bounds": counts.bounds,
        "smallest_enclosure": found.smallest_enclosure,
        "complete": found.complete,
        "certified": counts.certified,
        "converged": found.converged,
        "leak": result.leak,
        "gradient_norm": point.gradient_norm,
        "kind": point.kind.value,
        "condition_D3L": condition(subject),
        "activation": subject.network.activation.name,
        "loss_name": subject.loss,
        "flat_error": float(flat.errors.max(initial=0.0)),
        "path": subject.path,
        "sha256": subject.sha256,
        "plan": result.plan.sentence,
        "max_seconds": question.max_seconds,
        "notes": list(subject.notes),
        "warnings": subject.warnings(subject.network.accuracy()),
    }
    kept = _worth_keeping(found.eigenvalues, subject.measure.points.numel() * 4)
    size = len(subject.measure) if question.operator == "flat" else subject.measure.points.numel()
    lifted = torch.zeros(size, 0, dtype=torch.float64)
    if found.vectors.shape[1]:
        lifted = result.lift(found.vectors[:, torch.as_tensor(kept)])
    kept, local = kept[: lifted.shape[1]], np.zeros(min(len(kept), lifted.shape[1]))
    if question.operator == "wasserstein" and len(kept):
        part = SecondVariation(at, parts=("local",))
        local = (lifted * part.apply(lifted)).sum(0).cpu().numpy()
    chart, outputs, response = np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0))
    if subject.loss == "cross_entropy":
        outputs = pair_outputs(subject)
        chart = output_curvature(outputs)
        response = curvature_response(subject.task, subject.measure, lifted, flat=question.operator == "flat")
    facts["seconds"] = time.perf_counter() - begin
    return StepRecord(
        found.eigenvalues, found.errors, kept, local,
        lifted.to(torch.float32).cpu().numpy(),  # seven digits suffice for overlaps
        GroupPotentials.of(subject.network).targets.cpu().numpy(), flat.eigenvalues, chart, outputs,
        np.asarray(response, np.float32), facts,
    )  # fmt: skip


def _rank(result: SpectrumResult) -> int:
    """Dimensions in which the potentials can move: known, or at most what the symmetries leave."""
    if result.rank is not None:
        return result.rank
    taken = result.symmetry_null if result.plan.subspace == "full" else 0
    return result.spectrum.dimension - taken


def _worth_keeping(values: np.ndarray, bytes_each: int) -> np.ndarray:
    """Numbers of the eigenvalues to follow: all that fit, or else the nearest to zero and the ends."""
    most = max(16, VECTOR_BYTES // bytes_each)
    if len(values) <= most:
        return np.arange(len(values))
    ends = most // 8
    near = np.argsort(np.abs(values))[: most - 2 * ends]
    return np.unique(np.concatenate([np.arange(ends), near, np.arange(len(values) - ends, len(values))]))


def pair_outputs(subject: Subject) -> np.ndarray:
    """Outputs of the network on the pairs of its loss, shape (P, n)."""
    n = subject.network.group.order
    outputs = torch.cat([subject.network.outputs(slice(x, x + 1))[0] for x in range(n)])
    return (outputs if subject.pairs is None else outputs[subject.pairs @ [n, 1]]).cpu().numpy()


def condition(subject: Subject) -> tuple[float, float]:
    """Lowest and highest eigenvalue of ``sum_k [D^3 L]_k d_k L``; zero for squared errors."""
    if subject.loss != "cross_entropy":
        return 0.0, 0.0
    return third_derivative_range(pair_outputs(subject), subject.wanted)


def cache_name(subject: Subject, question: SpectralQuestion, step: float) -> str:
    """File name of a record; another checkpoint, layout or question gives another name."""
    asked = dataclasses.asdict(question)
    del asked["max_seconds"]  # a converged record answers whatever the limit
    told = {
        "version": CACHE_VERSION,
        "program": program(),
        "sha256": subject.sha256,
        "question": asked,
        "loss": subject.loss,
        "activation": subject.network.activation.name,
        "scale": subject.network.output_scale,
        "group": subject.network.group.name,
        "centred": subject.centred,
        "decay": subject.weight_decay,
        "labels": subject.labels,
        "pairs": None if subject.pairs is None else subject.pairs.tolist(),
        # The layout may take other tensors from the same file.
        "weights": hashlib.sha256(subject.measure.points.cpu().numpy().tobytes()).hexdigest(),
    }
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    return f"step_{step:g}_{key}.npz"


def cached_record(subject: Subject, question: SpectralQuestion, *, step: float, cache: Path) -> StepRecord:
    """The record of a subject from the cache; computed if new, or if given less time it did not converge.

    A record that cannot be kept says so in its facts (``unsaved``) and is as good as any other.
    """
    file = cache / cache_name(subject, question, step)
    record = StepRecord.load(file)
    if record is None or not (
        record.facts["converged"] or question.max_seconds <= record.facts["max_seconds"]
    ):
        record = compute_record(subject, question, step=step)
        try:
            record.save(file)
        except RhoscopeError as error:
            record.facts["unsaved"] = str(error)
    # The same network may lie elsewhere, or be described in other words, than when it was computed.
    record.facts.update(path=subject.path, notes=list(subject.notes))
    return record


def record_of_step(
    step: int, run: Run, layout: Layout, question: SpectralQuestion, cache: Path
) -> StepRecord:
    """Read one checkpoint and return its record.

    Raises
    ------
    LayoutError
        If the checkpoint says itself that it is of another task than the layout.
    """
    checkpoint = run.read(step)
    stored = stored_layout(checkpoint)
    if stored is not None:
        told, asked = (f"{one.group} with {one.loss}" for one in (stored, layout))
        if told != asked:
            raise LayoutError(f"is of another task, {told} instead of {asked}")
    subject = subject_of(checkpoint, layout, run, centred=question.centred, device=question.device)
    return cached_record(question.subject(subject), question, step=step, cache=cache)


def records_of_run(
    run: Run, layout: Layout, question: SpectralQuestion, *, cache: Path, steps: Sequence[int] | None = None,
    crew: Crew = ALONE, progress: Progress = silent,
) -> dict[int, StepRecord | str]:  # fmt: skip
    """Records of steps; finished ones come from the cache, so a killed study goes on where it was.

    Parameters
    ----------
    run : Run
    layout : Layout
    question : SpectralQuestion
    cache : Path
        Folder of records.
    steps : sequence of int, optional
        Default: all of the run.
    crew : Crew
        Who works.
    progress : Progress
        Told every finished step.

    Returns
    -------
    dict of int to StepRecord or str
        Ascending steps; a string is the reason why a step has no record.
    """
    _remove_leftovers(cache)
    return over_steps(
        record_of_step, run.steps if steps is None else steps, run, layout, question, cache, crew=crew,
        what="spectrum of step", progress=progress,
    )  # fmt: skip


def _remove_leftovers(cache: Path) -> None:
    with contextlib.suppress(OSError):  # another study may be quicker, or the folder not ours to clean
        for file in cache.glob(".step_*.part"):
            if time.time() - file.stat().st_mtime > LEFTOVER_SECONDS:
                file.unlink(missing_ok=True)
