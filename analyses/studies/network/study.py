"""The study of one checkpoint: potentials, fixed point, spectrum, degrees of freedom."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from analyses.common.study_files import Progress, plain, provenance, silent
from analyses.reports.density import density_document, density_variables
from analyses.subjects.order_parameters import (
    TOLERANCE,
    OrderParameters,
    decoupling,
    has_unit_targets,
    order_parameters,
)
from analyses.subjects.potential_sets import check_potentials, check_sets_exist, chosen_monomials
from analyses.subjects.subject import Subject
from manifold.errors import NotConvergedError
from manifold.monomials import Monomials
from spectra.flow.gradient_flow import FixedPoint, FixedPointKind, measured_point, refine
from spectra.methods.compute import SpectrumResult, compute_spectrum
from spectra.methods.plan import SpectrumPlan, plan_spectrum
from spectra.networks.families import FIT_TOLERANCE, NAMES, factor, shares

METRIC = "|z|^2 = tau^2 |(a, b, c)|^2 / n per neuron, raw weights a, b, c; eigenvalues = raw_scale x raw ones"


@dataclass(frozen=True)
class Question:
    """What is asked about the spectrum of a checkpoint.

    Parameters
    ----------
    operator : str
        ``wasserstein``, ``flat`` or ``chart``.
    subspace : str
        ``span`` or ``full``.
    potentials : str
        ``all``, one of the sets R_g, R_c, R_n, R_*, or ``k=3`` (``k=1,2`` on a product of two cyclic groups):
        the symbols that decide output frequency k.
    count : int or None
        Eigenvalues listed (and, where the spectrum is not complete, computed) at each end; None: all.
    refine : bool
        Move to a fixed point first.
    tolerance : float
        Gradient tolerance of fixed points, ``max_j |grad V(z_j)|``.
    seed : int
        Of start vectors and samples.
    density : bool
        Only the density of the spectrum (count is then ignored).
    """

    operator: str = "wasserstein"
    subspace: str = "span"
    potentials: str = "all"
    count: int | None = 10
    refine: bool = False
    tolerance: float = 1e-9
    seed: int = 0
    density: bool = False

    def __post_init__(self) -> None:
        check_potentials(self.potentials)

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
            potentials=self.monomials(subject), count=self.count, density=self.density,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class CheckpointAnalysis:
    """Everything `analyze` finds out about one checkpoint; `dataset` and `document` are views of it."""

    subject: Subject
    question: Question
    parameters: OrderParameters
    fixed_point: FixedPoint
    result: SpectrumResult
    coupling: dict[str, float]
    problem: str
    seconds: float

    @property
    def document(self) -> dict[str, Any]:
        """The JSON of ``rhoscope analyze``."""
        return _document(self)

    @property
    def dataset(self) -> xr.Dataset:
        """The study for netCDF; the whole document is its ``summary`` attribute."""
        return _dataset(self)


def analyze(subject: Subject, question: Question, *, progress: Progress = silent) -> CheckpointAnalysis:
    """Analyse one network.

    Parameters
    ----------
    subject : Subject
        The network and its objective.
    question : Question
        What to compute.
    progress : Progress
        Told the stage.

    Returns
    -------
    CheckpointAnalysis
        A refinement that does not converge is kept, marked in ``problem``.
    """
    begin = time.perf_counter()
    progress(0, 4, "potentials")
    parameters = order_parameters(subject)
    progress(1, 4, "fixed point")
    problem = ""
    if question.refine:
        try:
            point = refine(subject.objective, subject.measure, tol=question.tolerance, progress=progress)
        except NotConvergedError as error:
            point, problem = error.partial, str(error)
    else:
        point = measured_point(subject.objective, subject.measure, tol=question.tolerance)
    progress(2, 4, "decoupling")
    coupling = decoupling(subject, seed=question.seed)
    progress(3, 4, "spectrum")
    result = compute_spectrum(
        question.plan(subject), subject.objective, point.measure, potentials=question.monomials(subject),
        seed=question.seed, progress=progress,
    )  # fmt: skip
    progress(4, 4, "done")
    seconds = time.perf_counter() - begin
    return CheckpointAnalysis(subject, question, parameters, point, result, coupling, problem, seconds)


def _document(found: CheckpointAnalysis) -> dict[str, Any]:
    subject, parameters = found.subject, found.parameters
    return {
        "checkpoint": {"path": subject.path, "step": subject.step, "sha256": subject.sha256},
        "task": _task(found),
        "layout": subject.origin.document,
        "loss": parameters.loss,
        "objective": parameters.objective,
        "accuracy": parameters.accuracy,
        "loss_identity_error": parameters.identity_error,
        "potentials": _potentials(found),
        "neurons": _neurons(found),
        "fixed_point": _fixed_point(found.fixed_point),
        "spectrum": _spectrum(found),
        "dof": _degrees(found),
        "decoupling": found.coupling,
        "solutions": _solutions(found),
        "entropy": None,
        "warnings": found.subject.warnings(parameters.accuracy),
        "notes": _notes(found),
        "skipped": found.subject.left_out,
        "timing": {"seconds": found.seconds},
        "provenance": provenance(seed=found.question.seed, device=str(subject.network.a.device)),
    }


def _unit_targets(found: CheckpointAnalysis) -> bool:
    return has_unit_targets(found.subject.network, found.subject.loss)


def _notes(found: CheckpointAnalysis) -> list[str]:
    subject = found.subject
    notes = [
        *subject.warnings(found.parameters.accuracy), *subject.origin.notes, *subject.notes,
        *([found.problem] if found.problem else []),
    ]  # fmt: skip
    if subject.network.quadratic and not _unit_targets(found):
        notes.append(
            "cross-entropy falls as long as the outputs grow: no value of rho_kkk is a target, so the share "
            "at 1 is not given, and zeros are told relative to the largest rho_kkk"
        )
    asked, done, rank = found.question.subspace, found.result.plan.subspace, found.result.rank
    if found.question.density:
        notes.append("the density is that of the full space")
    elif done == "complement":
        notes.append(
            "the spectrum is that of the space which the symmetries of R leave (complement): it holds "
            "span(R), and is equal to it unless gradients depend on each other, not checked at this size"
        )
    elif asked != done:
        notes.append(f"subspace {asked} does not fit at this size: the spectrum is that of the {done} space")
    if found.result.plan.moments:
        notes.append("span_leak is an upper bound, half the spread of the eigenvalues of the local part")
    if rank is not None and rank < found.result.functions:
        notes.append(
            f"span(R) has rank {rank:,} at these particles beyond rounding and at most "
            f"{found.result.functions:,}; whether the other directions are there cannot be told (largest "
            f"dropped over smallest kept singular value {found.result.rank_gap:.1e}): counts leave them open"
        )
    return notes


def _task(found: CheckpointAnalysis) -> dict[str, Any]:
    subject, net = found.subject, found.subject.network
    return {
        "group": net.group.name,
        "order": net.group.order,
        "neurons": net.width,
        "alive": int(found.parameters.alive.sum()),
        "dimension": subject.task.dimension,
        "potential_count": subject.task.potential_count,
        "loss": subject.loss,
        "loss_scale": 1.0,
        "activation": net.activation.name,
        "tied": net.tied,
        "centred": subject.centred,
        "output_scale": net.output_scale,
        "tau": net.tau,
        "raw_scale": net.raw_scale,
        "metric": METRIC,
        "weight_decay": subject.weight_decay,
        "pairs": "all" if subject.pairs is None else "train",
    }


def _frequency(found: CheckpointAnalysis, k: int) -> list[int]:
    return found.subject.network.group.elements[k].tolist()


def _potentials(found: CheckpointAnalysis) -> dict[str, Any]:
    parameters = found.parameters
    targets = [
        {"k": _frequency(found, k), "re": float(rho.real), "im": float(rho.imag)}
        for k, rho in enumerate(parameters.targets, start=1)
    ]
    return {
        "targets": targets,
        "determine_loss": found.subject.network.quadratic,
        "ones": parameters.ones,
        "zeros": parameters.zeros,
        "zeros_unit": "1" if _unit_targets(found) else "largest |rho_kkk|",
        "alignment": parameters.alignment,
        "largest": parameters.largest,
        "tol": TOLERANCE,
    }


def _neurons(found: CheckpointAnalysis) -> dict[str, Any]:
    parameters = found.parameters
    purity, frequency = parameters.purity[parameters.alive], parameters.frequency[parameters.alive]
    values, counts = np.unique(frequency, return_counts=True)
    return {
        "purity_mean": float(purity.mean()) if len(purity) else None,
        "purity_median": float(np.median(purity)) if len(purity) else None,
        "by_frequency": [
            {"k": _frequency(found, int(k)), "count": int(count)}
            for k, count in zip(values, counts, strict=True)
        ],
    }


def _solutions(found: CheckpointAnalysis) -> dict[str, Any] | None:
    """The polynomial families of the frequencies, with the median residual of each; None without any."""
    if not found.subject.network.quadratic:
        return None
    factors = factor(found.subject.network)
    share = shares(factors)
    families = []
    for name in NAMES:
        residuals = [f.residual for f in factors if f.name == name and np.isfinite(f.residual)]
        families.append({
            "name": name,
            "count": sum(f.name == name for f in factors),
            "share": share[name],
            "residual": float(np.median(residuals)) if residuals else None,
        })  # fmt: skip
    frequencies = [
        {"k": _frequency(found, f.frequency), "order": f.order, "neurons": f.neurons, "name": f.name,
         "residual": f.residual}
        for f in factors
    ]  # fmt: skip
    return {"families": families, "frequencies": frequencies, "tolerance": FIT_TOLERANCE}


def _fixed_point(point: FixedPoint) -> dict[str, Any]:
    return {
        "gradient_norm": point.gradient_norm,
        "refined": point.refined,
        "moved": point.moved,
        "gradient_norm_after": point.gradient_norm_after,
        "kind": point.kind.value,
    }


def _spectrum(found: CheckpointAnalysis) -> dict[str, Any]:
    result = found.result
    plan, spectrum = result.plan, result.spectrum
    listed = len(spectrum.eigenvalues) if found.question.count is None else found.question.count
    (largest, largest_error), (smallest, smallest_error) = spectrum.largest(listed), spectrum.smallest(listed)
    return {
        "operator": plan.operator,
        "subspace": plan.subspace,
        "side": plan.side,
        "dimension": spectrum.dimension,
        "rank": result.rank,
        "rank_gap": result.rank_gap,
        "rank_bound": None if result.rank is None else max(result.rank, result.functions),
        "null": spectrum.null,
        "gauge_null": result.symmetry_null,
        "method": spectrum.method,
        "matvecs": spectrum.matvecs,
        "sign": "Hessian: positive = contracting",
        "largest": largest,
        "smallest": smallest,
        "largest_error": largest_error,
        "smallest_error": smallest_error,
        **{
            name: getattr(spectrum.counts, name)
            for name in ("negative", "marginal", "positive", "undetermined")
        },
        "count_bounds": spectrum.counts.bounds,
        "count_certified": spectrum.counts.certified,
        "smallest_enclosure": spectrum.smallest_enclosure,
        "span_leak": result.leak,
        "converged": spectrum.converged,
        "reason": spectrum.reason.value,
        "density": None if result.density is None else density_document(result.density),
    }


def _degrees(found: CheckpointAnalysis) -> dict[str, int]:
    counts = found.result.spectrum.counts
    return {
        "unstable": counts.negative,
        "marginal": counts.marginal,
        "contracted": counts.positive,
        "undetermined": counts.undetermined,
    }


def _dataset(found: CheckpointAnalysis) -> xr.Dataset:
    parameters, spectrum = found.parameters, found.result.spectrum
    group = found.subject.network.group

    def variable(dims: tuple[str, ...], values: Any, units: str, definition: str) -> tuple:
        return dims, values, {"units": units, "definition": definition}

    labels = ["(" + ",".join(map(str, _frequency(found, k))) + ")" for k in range(1, group.order)]
    unit = "1 (loss per squared unit of z)"
    data = {
        "eigenvalue": variable(
            ("eigen",), spectrum.eigenvalues, unit, "second variation, Hessian sign: positive = contracting"
        ),
        "eigenvalue_error": variable(("eigen",), spectrum.errors, unit, "absolute error bound"),
        "residual": variable(("eigen",), spectrum.residuals, unit, "|L v - lambda v| for unit v"),
        "target_potential": variable(("frequency",), parameters.targets, "1", "rho_kkk, 1 at a solution"),
        "alignment": variable(("frequency",), parameters.alignment, "1", "|E z_a z_b z_c| / E |z_a z_b z_c|"),
        "purity": variable(("neuron",), parameters.purity, "1", "power share of the top frequency pair"),
        "neuron_frequency": variable(("neuron",), parameters.frequency, "1", "number of that frequency"),
        "alive": variable(("neuron",), parameters.alive, "1", "|z_j| > 1e-3 of the largest"),
        "loss": variable((), parameters.loss, "loss", "H over the pairs, mean over pairs"),
        "objective": variable((), parameters.objective, "loss", "H plus weight decay"),
        "accuracy": variable((), parameters.accuracy, "1", "share of all n^2 pairs"),
        "loss_identity_error": variable(
            (), parameters.identity_error, "loss", "|H by network - H by potentials|, projected MSE"
        ),
    }
    if found.result.density is not None:
        data |= density_variables(found.result.density)
    attrs = {"study": "checkpoint", "summary": json.dumps(plain(found.document)), **provenance_attrs(found)}
    return xr.Dataset(data, coords={"frequency": labels}, attrs=attrs)


def provenance_attrs(found: CheckpointAnalysis) -> dict[str, Any]:
    """Provenance of the study, flat, for netCDF attributes."""
    made = provenance(seed=found.question.seed, device=str(found.subject.network.a.device))
    return {
        **made,
        "sha256": found.subject.sha256,
        "question": json.dumps(dataclasses.asdict(found.question)),
    }


def reached(found: CheckpointAnalysis) -> bool:
    """Whether everything that was asked for converged."""
    refined = not found.question.refine or found.fixed_point.kind is not FixedPointKind.NONE
    return refined and found.result.spectrum.converged


def unfinished(found: CheckpointAnalysis) -> str | None:
    """What did not converge, in a sentence; None where everything did."""
    return None if reached(found) else f"not converged: {found.problem or found.result.spectrum.reason.value}"
