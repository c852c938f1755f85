"""The spectrum of one step of a run: computed once, kept in a cache, the unit of parallel work."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_limits

from analyses.layouts import Layout
from analyses.runs import Run
from analyses.studies import Progress, atomic_path, plain, silent
from analyses.subjects import Subject, subject_of
from manifold.errors import InputError, RhoscopeError
from spectra.crossings import SpectralStep
from spectra.flow import measured_point
from spectra.functionals import Functional
from spectra.monotone import third_derivative_range
from spectra.plan import SpectrumPlan, compute_spectrum, plan_spectrum
from spectra.potentials import GroupPotentials
from spectra.variation import SecondVariation

CACHE_VERSION = 2
CONTROLS = ("none", "random")
ARRAYS = ("eigenvalues", "errors", "local", "vectors", "targets")


@dataclass(frozen=True)
class SpectralQuestion:
    """What is asked of every step.

    Parameters
    ----------
    operator : str
        ``wasserstein`` or ``flat``. The chart operator L'' is constant for squared losses.
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

    Raises
    ------
    InputError
        For the chart operator or an unknown control.
    """

    operator: str = "wasserstein"
    subspace: str = "span"
    count: int | None = 10
    centred: bool | None = None
    seed: int = 0
    device: str = "cpu"
    control: str = "none"

    def __post_init__(self) -> None:
        if self.operator == "chart":
            raise InputError(
                "--operator chart: L'' does not move for squared losses, so nothing crosses zero; "
                "expected wasserstein or flat"
            )

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

    def plan(self, subject: Subject) -> SpectrumPlan:
        """Side, method and memory for a subject."""
        return plan_spectrum(
            subject.objective, subject.measure, operator=self.operator, subspace=self.subspace,
            count=self.count,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class StepRecord:
    """The spectrum of one step and what a crossing study shows beside it.

    Parameters
    ----------
    eigenvalues, errors : ndarray, shape (k,)
        Hessian sign, absolute bounds.
    local : ndarray, shape (k,)
        Share ``<v, Hess V v>`` of each eigenvalue; the rest is interaction. Zero for the flat operator.
    vectors : ndarray of float32, shape (N, k)
        Half-densities along the particles (for the flat operator along neurons).
    targets : ndarray of complex, shape (n - 1,)
        ``rho_kkk``.
    facts : dict
        step, loss, objective, rank, counts, leak, gradient, kind of fixed point, condition, notes.
    """

    eigenvalues: np.ndarray
    errors: np.ndarray
    local: np.ndarray
    vectors: np.ndarray
    targets: np.ndarray
    facts: dict[str, Any]

    @property
    def spectral(self) -> SpectralStep:
        """For branch tracking."""
        return SpectralStep(self.eigenvalues, self.errors, self.vectors, self.facts["complete"])

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
    objective = subject.objective if objective is None else objective
    result = compute_spectrum(question.plan(subject), objective, subject.measure, seed=question.seed)
    found, counts = result.spectrum, result.spectrum.counts
    point = measured_point(objective, subject.measure)
    facts = {
        "step": step,
        "loss": subject.task.value(subject.measure),
        "objective": objective.value(subject.measure),
        "rank": result.rank if result.rank is not None else found.dimension - result.symmetry_null,
        **{name: getattr(counts, name) for name in ("negative", "marginal", "positive", "undetermined")},
        "complete": found.complete,
        "certified": counts.certified,
        "converged": found.converged,
        "leak": result.leak,
        "gradient_norm": point.gradient_norm,
        "kind": point.kind.value,
        "condition_D3L": condition(subject),
        "activation": subject.network.activation.name,
        "path": subject.path,
        "sha256": subject.sha256,
        "plan": result.plan.sentence,
        "notes": list(subject.notes),
    }
    lifted, local = result.lift(found.vectors), np.zeros(len(found.eigenvalues))
    if question.operator == "wasserstein":
        part = SecondVariation(objective.linearise(subject.measure), parts=("local",))
        local = (lifted * part.apply(lifted)).sum(0).cpu().numpy()
    return StepRecord(
        found.eigenvalues, found.errors, local,
        lifted.to(torch.float32).cpu().numpy(),  # seven digits suffice for overlaps
        GroupPotentials.of(subject.network).targets.cpu().numpy(), facts,
    )  # fmt: skip


def condition(subject: Subject) -> tuple[float, float]:
    """Lowest and highest eigenvalue of ``sum_k [D^3 L]_k d_k L``; zero for squared errors."""
    if subject.loss != "cross_entropy":
        return 0.0, 0.0
    net = subject.network
    n = net.group.order
    outputs = torch.cat([net.outputs(slice(x, x + 1))[0] for x in range(n)])
    targets = torch.as_tensor(np.ascontiguousarray(net.group.sums).reshape(-1), device=outputs.device)
    if subject.pairs is not None:
        chosen = torch.as_tensor(subject.pairs @ [n, 1], device=outputs.device)
        outputs, targets = outputs[chosen], targets[chosen]
    return third_derivative_range(outputs, targets)


def cache_name(subject: Subject, question: SpectralQuestion, step: float) -> str:
    """File name of a record; another checkpoint, layout or question gives another name."""
    told = {
        "version": CACHE_VERSION,
        "sha256": subject.sha256,
        "question": dataclasses.asdict(question),
        "loss": subject.loss,
        "activation": subject.network.activation.name,
        "scale": subject.network.output_scale,
        "group": subject.network.group.name,
        "centred": subject.centred,
        "decay": subject.weight_decay,
        "pairs": None if subject.pairs is None else subject.pairs.tolist(),
        # The layout may take other tensors from the same file.
        "weights": hashlib.sha256(subject.measure.points.cpu().numpy().tobytes()).hexdigest(),
    }
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    return f"step_{step:g}_{key}.npz"


def cached_record(subject: Subject, question: SpectralQuestion, *, step: float, cache: Path) -> StepRecord:
    """The record of a subject from the cache, or computed and put there."""
    file = cache / cache_name(subject, question, step)
    record = StepRecord.load(file)
    if record is None:
        record = compute_record(subject, question, step=step)
        record.save(file)
    return record


def record_of_step(
    run: Run, step: int, layout: Layout, question: SpectralQuestion, cache: Path, threads: int | None = None
) -> StepRecord | str:
    """Read one checkpoint and return its record, or the reason why there is none."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            subject = subject_of(
                run.read(step), layout, run, centred=question.centred, device=question.device
            )
            return cached_record(question.subject(subject), question, step=step, cache=cache)
    except RhoscopeError as error:
        return str(error)


def records_of_run(
    run: Run, layout: Layout, question: SpectralQuestion, *, cache: Path, workers: int = 1,
    dask: str | None = None, progress: Progress = silent,
) -> dict[int, StepRecord | str]:  # fmt: skip
    """Records of all steps; finished ones come from the cache, so a killed study goes on where it was.

    Parameters
    ----------
    run : Run
    layout : Layout
    question : SpectralQuestion
    cache : Path
        Folder of records.
    workers : int
        Processes, each with one thread and one checkpoint in memory.
    dask : str, optional
        Address of a Dask scheduler to run on instead.
    progress : Progress
        Told every finished step.

    Returns
    -------
    dict of int to StepRecord or str
        Ascending steps; a string is the reason why a step has no record.
    """
    found: dict[int, StepRecord | str] = {}
    single = workers == 1 and dask is None
    with _backend(workers, dask):
        jobs = Parallel(return_as="generator", **({"n_jobs": 1} if single else {}))
        threads = None if single else 1
        results = jobs(delayed(record_of_step)(run, s, layout, question, cache, threads) for s in run.steps)
        for done, (step, record) in enumerate(zip(run.steps, results, strict=True), start=1):
            found[step] = record
            progress(done, len(run.steps), f"spectrum of step {step}")
    return found


@contextmanager
def _backend(workers: int, dask: str | None) -> Iterator[None]:
    if dask is None:
        with parallel_config(backend="loky", n_jobs=workers):
            yield
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("--dask: install the extra first: pip install rhoscope[dask]") from error
    with Client(dask), parallel_config(backend="dask"):
        yield
