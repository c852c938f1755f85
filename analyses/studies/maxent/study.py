"""The study of maximum-entropy measures: given moments, or the neurons of a trained network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from analyses.checkpoints.reader import Checkpoint
from analyses.common.study_files import Progress, silent
from analyses.studies.maxent.lifts import Lift, lift_frequencies
from manifold.errors import InputError, RhoscopeError
from manifold.maxent.euclidean import check_integrable
from manifold.maxent.faces import Face, FaceFit, exposed_face, fit_anywhere, fit_on_face
from manifold.maxent.family import MaxEntFamily
from manifold.maxent.fitting import MaxEntFit
from manifold.maxent.moment_body import support_function
from manifold.maxent.nearest_neighbours import intrinsic_dimension, kozachenko_leonenko
from manifold.maxent.sampled_fits import SampledFit, fit_by_sampling
from manifold.monomials import Monomials
from manifold.sampling.tempered_hmc import draw
from manifold.spaces.embedded import Euclidean, Space, parse_space
from manifold.spaces.monomial_expressions import parse_monomials
from spectra.networks.group_network import GroupNetwork

NEAR_FACE = 0.97
SPHERE_TOLERANCE = 0.1  # of the global sphere's moments, in standard deviations


def fit_moments(
    space: str, monomials: str, moments: list[float], *, method: str = "newton", seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """The maximum-entropy measure with given moments, as the JSON document of the command.

    Parameters
    ----------
    space, monomials : str
        Names and expressions as the command line takes them.
    moments : list of float
    method : {"newton", "trust-regions", "sampling"}
    seed : int
    progress : Progress

    Returns
    -------
    dict

    Raises
    ------
    InputError
        If there is not one moment per monomial.
    """
    place, functions, values = read_problem(space, monomials, moments)
    return describe(_fit(place, functions, values, method, seed, progress), place, functions)


def read_problem(space: str, monomials: str, moments: list[float]) -> tuple[Space, Monomials, np.ndarray]:
    """Space, monomials and moments, checked before any work.

    Parameters
    ----------
    space, monomials : str
    moments : list of float

    Returns
    -------
    Space, Monomials, ndarray of shape (m,)

    Raises
    ------
    InputError
        If one cannot be read, there is not one finite moment per monomial, or the space is not compact.
    NotIntegrableError
        If the space is Euclidean and the monomials let a density grow: names a direction.
    """
    place = parse_space(space)
    functions = parse_monomials(monomials, place)
    if len(moments) != len(functions):
        raise InputError(
            f"moments: expected {len(functions)} numbers, one per monomial ({'; '.join(functions.names)}), "
            f"got {len(moments)}"
        )
    values = np.array(moments, float)
    if not np.isfinite(values).all():
        name = functions.names[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise InputError(f"moments: expected finite numbers, got NaN or infinity for {name}")
    if not place.compact:
        if isinstance(place, Euclidean):
            check_integrable(functions, -np.ones(len(functions)))
        raise InputError(
            f"{place.name}: moments are fitted on compact spaces; see manifold.maxent.euclidean for others"
        )
    return place, functions, values


def scaled_condition(covariance: np.ndarray) -> float:
    """Condition number of a covariance scaled to unit variances: indifferent to the units of the monomials.

    Parameters
    ----------
    covariance : ndarray, shape (m, m)

    Returns
    -------
    float
        Ratio of the extreme eigenvalues of the correlation matrix; infinite if it is singular.
    """
    deviation = np.sqrt(np.diag(covariance))
    values = np.linalg.eigvalsh(covariance / np.outer(deviation, deviation))
    return float(values[-1] / values[0]) if values[0] > 0 else math.inf


def _fit(space: Space, monomials: Monomials, moments: np.ndarray, method: str, seed: int, progress: Progress):
    if method == "sampling":
        return fit_by_sampling(space, monomials, moments, seed=seed, report=progress)
    family = MaxEntFamily(space, monomials, seed=seed)
    return fit_anywhere(family, moments, method=method, progress=progress)


def describe(fit: MaxEntFit | FaceFit | SampledFit, space: Space, monomials: Monomials) -> dict[str, Any]:
    """A fit in the keys of the contract; singular entropies are minus infinity (null in JSON).

    ``lambda_error``, ``log_partition_error`` and ``entropy_error`` are bounds for fits by quadrature and
    standard errors for sampled ones (``error_kind``).
    """
    log_volume = math.log(space.volume)
    base = {
        "space": space.name,
        "monomials": list(monomials.names),
        "moments": fit.moments,
        "reference": "uniform",
    }
    if isinstance(fit, MaxEntFit):
        return base | {
            "lambda": fit.lam, "log_partition": fit.log_partition, "entropy": fit.entropy,
            "lambda_error": fit.lambda_error, "log_partition_error": fit.log_partition_error,
            "entropy_error": fit.entropy_error, "error_kind": "bound",
            "entropy_riemannian": fit.entropy + log_volume, "fisher_rank": fit.fisher_rank,
            "dimension": fit.dimension, "face": None, "moment_error": fit.moment_error,
            "condition": fit.condition, "converged": fit.converged, "reason": fit.reason.value,
            "method": fit.method, "diagnostics": fit.diagnostics,
        }  # fmt: skip
    if isinstance(fit, SampledFit):
        return base | {
            "lambda": fit.lam, "log_partition": fit.samples.log_partition, "entropy": fit.entropy,
            "lambda_error": fit.lambda_error, "log_partition_error": fit.log_partition_error,
            "entropy_error": fit.entropy_error, "error_kind": "standard error",
            "entropy_riemannian": fit.entropy + log_volume,
            "fisher_rank": len(fit.lam), "dimension": len(fit.lam), "face": None,
            "moment_error": fit.moment_error,
            "condition": scaled_condition(fit.samples.covariance), "converged": True,
            "reason": "the moments are matched to Monte-Carlo error", "method": "sampling",
            "diagnostics": fit.samples.diagnostics(),
        }  # fmt: skip
    face, inner = fit.face, fit.fit
    return base | {
        "lambda": [None] * len(monomials), "log_partition": None, "entropy": -math.inf,
        "lambda_error": [None] * len(monomials), "log_partition_error": None, "entropy_error": None,
        "error_kind": "bound",
        "entropy_riemannian": -math.inf, "fisher_rank": inner.fisher_rank if inner else 0,
        "dimension": inner.dimension if inner else 0, "face": face_document(face, monomials, fit),
        "moment_error": fit.moment_error, "condition": inner.condition if inner else 1.0, "converged": True,
        "reason": "the moments lie on the boundary of the moment body: every measure that has them lives on "
        "the face: entropy against the whole space is minus infinity, lambda infinite along the direction",
        "method": "face", "diagnostics": inner.diagnostics if inner else {},
    }  # fmt: skip


def face_document(face: Face, monomials: Monomials, fit: FaceFit | None = None) -> dict[str, Any]:
    """A face, and the fit on it, for JSON."""
    document: dict[str, Any] = {
        "direction": face.direction, "support": face.support, "dimension": face.dimension, "kind": face.kind,
        "free": [monomials.names[i] for i in face.free],
    }  # fmt: skip
    if fit is not None:
        document |= {
            "entropy": fit.entropy, "lambda": fit.fit.lam if fit.fit else [], "weights": fit.weights,
            "fisher_rank": fit.fit.fisher_rank if fit.fit else 0, "moment_error": fit.moment_error,
            "lambda_error": fit.fit.lambda_error if fit.fit else [],
            "entropy_error": fit.fit.entropy_error if fit.fit else None,
        }  # fmt: skip
    return document


def document_of_network(
    network: GroupNetwork, checkpoint: Checkpoint, *, base: str = "frequency-sphere", symbols: str = "target",
    frequencies: int = 12, seed: int = 0, progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """The heaviest frequencies of one checkpoint, as the JSON document of the command."""
    a, b, c = (z.numpy() for z in network.coefficients())
    lifts = lift_frequencies(network.group, a, b, c, base=base, symbols=symbols)[:frequencies]
    fits = []
    for number, lift in enumerate(lifts):
        progress(number, len(lifts), f"frequency {lift.k}")
        fits.append(analyse_lift(lift, seed=seed))
    return {
        "checkpoint": {"path": str(checkpoint.path), "step": checkpoint.step, "sha256": checkpoint.sha256},
        "base": base, "symbols": symbols, "fits": fits,
    }  # fmt: skip


def analyse_lift(
    lift: Lift, *, seed: int = 0, replicates: int = 6, progress: Progress = silent
) -> dict[str, Any]:
    """Fit one lift and compare the neurons with the fitted measure.

    Parameters
    ----------
    lift : Lift
    seed : int
    replicates : int
        Simulated data sets for the bias of the entropy estimate; 0 leaves out the bias and the
        fit on the face.
    progress : Progress

    Returns
    -------
    dict
        The keys of `describe`, and ``k, mass, neurons, boundary_ratio, empirical_entropy, entropy_bias,
        entropy_gap, intrinsic_dimension, singular`` and, near a face, the ``near_face`` fit.
    """
    import torch

    moments = lift.weights @ lift.monomials.values(torch.as_tensor(lift.points)).numpy()
    document: dict[str, Any] = {
        "k": list(lift.k), "mass": lift.mass, "neurons": len(lift.points),
        "effective_neurons": float(1 / (lift.weights**2).sum()),
    }  # fmt: skip
    target = np.zeros(len(moments))
    lead = 1 if lift.monomials.names[0].startswith("x") else 2
    target[:lead] = moments[:lead]
    if not lift.k:
        target = np.ones(len(moments)) * np.sign(moments)
    support, _ = support_function(lift.space, lift.monomials, target)
    ratio = float(target @ moments / support)
    document["boundary_ratio"] = ratio
    try:
        if lift.k:
            initial = _initial(lift, moments, target, support)
            family = MaxEntFamily(lift.space, lift.monomials, seed=seed)
            fit = fit_anywhere(family, moments, initial=initial, progress=progress)
        else:
            fit = fit_by_sampling(
                lift.space, lift.monomials, moments, seed=seed, tol=SPHERE_TOLERANCE, report=progress
            )
        document |= describe(fit, lift.space, lift.monomials)
    except RhoscopeError as error:
        fit = None
        hint = "" if lift.k else "; --base frequency-sphere fits each frequency alone"
        document |= _unfitted(lift, moments, f"{error}{hint}")
    if lift.k:
        document |= _heavy_neurons(lift)
        document |= _entropies(lift, fit, seed, replicates)
        if replicates and ratio > NEAR_FACE:
            document["near_face"] = _near_face(lift, target)
    return document


def _heavy_neurons(lift: Lift, *, share: float = 0.99, most: int = 256) -> dict[str, Any]:
    """Phases of z_a, z_b, z_c and weights of the neurons that carry the mass, heaviest first."""
    order = np.argsort(-lift.weights)
    order = order[: min(most, int(np.searchsorted(np.cumsum(lift.weights[order]), share)) + 1)]
    if lift.space.ambient != 6:
        return {"neuron_phases": [], "neuron_weights": lift.weights[order]}
    phases = np.angle(lift.points[order, 0::2] + 1j * lift.points[order, 1::2])
    return {"neuron_phases": phases, "neuron_weights": lift.weights[order]}


def _initial(lift: Lift, moments: np.ndarray, target: np.ndarray, support: float) -> np.ndarray | None:
    """Near a face of codimension c, ``lambda = u c / (2 (h(u) - u . rho))`` with |u . r| along the target."""
    size = float(np.linalg.norm(target))
    level, top = float(target @ moments) / size, support / size
    if not 0.8 * top < level < top * (1 - 1e-9):
        return None
    codimension = {"S5": 3, "T3": 1, "S2": 2}[lift.space.name]
    return target / size * codimension / 2 / (top - level)


def _unfitted(lift: Lift, moments: np.ndarray, reason: str) -> dict[str, Any]:
    empty = dict.fromkeys(
        ("lambda", "log_partition", "entropy", "entropy_riemannian", "fisher_rank", "dimension", "face",
         "lambda_error", "log_partition_error", "entropy_error", "error_kind", "moment_error", "condition")
    )  # fmt: skip
    return empty | {
        "space": lift.space.name, "monomials": list(lift.monomials.names), "moments": moments,
        "reference": "uniform", "converged": False, "reason": reason, "method": "none", "diagnostics": {},
    }  # fmt: skip


def _entropies(lift: Lift, fit: Any, seed: int, replicates: int) -> dict[str, Any]:
    found = kozachenko_leonenko(lift.space, lift.points, lift.weights)
    dimension = intrinsic_dimension(lift.space, lift.points, lift.weights)
    document: dict[str, Any] = {
        "empirical_entropy": found.value, "entropy_neighbours": found.neighbours,
        "distinct_points": found.distinct,
        "intrinsic_dimension": dimension.value, "intrinsic_dimension_error": dimension.standard_error,
        "entropy_bias": None, "entropy_bias_error": None, "entropy_gap": None,
        "entropy_gap_error": None, "singular": None,
    }  # fmt: skip
    if math.isfinite(dimension.value) and found.effective >= 20:
        document["singular"] = dimension.value + 2 * dimension.standard_error < lift.space.dimension
    if found.distinct < 3:
        document["singular"] = True
    if not isinstance(fit, MaxEntFit) or not math.isfinite(found.value):
        return document
    if not replicates:
        document["entropy_gap"] = fit.entropy - found.value
        return document
    cloud = draw(lift.space, lift.monomials, fit.lam, len(lift.points) * replicates, seed=seed + 1)
    values = [
        kozachenko_leonenko(lift.space, points, lift.weights).value - fit.entropy
        for points in cloud.reshape(replicates, len(lift.points), -1)
    ]
    document["entropy_bias"] = float(np.mean(values))
    document["entropy_bias_error"] = float(np.std(values, ddof=1) / math.sqrt(replicates))
    document["entropy_gap"] = fit.entropy - (found.value - document["entropy_bias"])
    # How much one data set of this size scatters: under the model, or by its own terms if that is more.
    document["entropy_gap_error"] = max(float(np.std(values, ddof=1)), found.standard_error)
    return document


def _near_face(lift: Lift, target: np.ndarray) -> dict[str, Any]:
    """The same neurons moved to the exposed face: the maximum-entropy measure of what still varies there."""
    import torch

    try:
        face = exposed_face(lift.space, lift.monomials, target)
        document = face_document(face, lift.monomials)
        if face.monomials is None or not face.free.size:
            return document | {"fit": None}
        angles = np.angle(lift.points[:, 0::2] + 1j * lift.points[:, 1::2]) - face.origin[:, 1]
        phi = angles @ face.chart.T
        circle = np.stack([np.cos(phi), np.sin(phi)], 2).reshape(len(phi), -1)
        moments = np.where(np.isnan(face.constants), 0.0, face.constants)
        moments[face.free] = lift.weights @ face.monomials.values(torch.as_tensor(circle)).numpy()
        found = fit_on_face(MaxEntFamily(lift.space, lift.monomials), moments, face)
        return face_document(face, lift.monomials, found)
    except RhoscopeError as error:
        return {"fit": None, "reason": str(error)}
