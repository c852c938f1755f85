"""The study of maximum-entropy measures: given moments, or the neurons of a trained network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from analyses.studies import Progress, silent
from manifold.entropy import intrinsic_dimension, kozachenko_leonenko
from manifold.errors import InputError, NotConvergedError, RhoscopeError
from manifold.expressions import parse_monomials
from manifold.faces import Face, FaceFit, exposed_face, fit_anywhere, fit_on_face
from manifold.fisher_rao import MaxEntFit
from manifold.groups import FiniteAbelianGroup
from manifold.maxent import MaxEntFamily
from manifold.moment_body import support_function
from manifold.monomials import Monomials
from manifold.sampling import SampledFit, draw, fit_by_sampling
from manifold.spaces import Space, parse_space

BASES = ("frequency-sphere", "sphere", "torus")
SYMBOLS = ("target", "all")
NEAR_FACE = 0.97


@dataclass(frozen=True)
class Lift:
    """Neurons of one frequency as weighted points of a compact space.

    Attributes
    ----------
    k : tuple of int
        The frequency (empty for the global sphere).
    space : Space
    monomials : Monomials
    points : ndarray, shape (q, ambient)
    weights : ndarray, shape (q,)
        Normalised to one.
    mass : float
        Sum of the weights before: ``sum_j w_j |z_j|^3`` (sphere) or ``sum_j w_j |z_a z_b z_c|`` (torus).
    """

    k: tuple[int, ...]
    space: Space
    monomials: Monomials
    points: np.ndarray
    weights: np.ndarray
    mass: float


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
    """
    place = parse_space(space)
    functions = parse_monomials(monomials, place)
    if len(moments) != len(functions):
        raise InputError(
            f"moments: expected {len(functions)} numbers, one per monomial ({'; '.join(functions.names)}), "
            f"got {len(moments)}"
        )
    return describe(_fit(place, functions, np.array(moments, float), method, seed, progress), place, functions)


def _fit(space: Space, monomials: Monomials, moments: np.ndarray, method: str, seed: int, progress: Progress):
    if method == "sampling":
        return fit_by_sampling(space, monomials, moments, seed=seed, report=progress)
    family = MaxEntFamily(space, monomials, seed=seed)
    return fit_anywhere(family, moments, method=method, progress=progress)


def describe(fit: MaxEntFit | FaceFit | SampledFit, space: Space, monomials: Monomials) -> dict[str, Any]:
    """A fit in the keys of the contract; singular entropies are minus infinity (null in JSON)."""
    log_volume = math.log(space.volume)
    base = {"space": space.name, "monomials": list(monomials.names), "moments": fit.moments, "reference": "uniform"}
    if isinstance(fit, MaxEntFit):
        return base | {
            "lambda": fit.lam, "log_partition": fit.log_partition, "entropy": fit.entropy,
            "entropy_riemannian": fit.entropy + log_volume, "fisher_rank": fit.fisher_rank,
            "dimension": fit.dimension, "face": None, "moment_error": fit.moment_error,
            "condition": fit.condition, "converged": fit.converged, "reason": fit.reason.value,
            "method": fit.method, "diagnostics": fit.diagnostics,
        }  # fmt: skip
    if isinstance(fit, SampledFit):
        values = np.linalg.eigvalsh(np.corrcoef(fit.samples.covariance) if len(fit.lam) > 1 else np.ones((1, 1)))
        return base | {
            "lambda": fit.lam, "lambda_error": fit.lambda_error, "log_partition": fit.samples.log_partition,
            "entropy": fit.entropy, "entropy_riemannian": fit.entropy + log_volume, "fisher_rank": len(fit.lam),
            "dimension": len(fit.lam), "face": None, "moment_error": fit.moment_error,
            "condition": float(values[-1] / max(values[0], 1e-300)), "converged": True,
            "reason": "the moments are matched to Monte-Carlo error", "method": "sampling",
            "diagnostics": fit.samples.diagnostics(),
        }  # fmt: skip
    face, inner = fit.face, fit.fit
    return base | {
        "lambda": [None] * len(monomials), "log_partition": None, "entropy": -math.inf,
        "entropy_riemannian": -math.inf, "fisher_rank": inner.fisher_rank if inner else 0,
        "dimension": inner.dimension if inner else 0, "face": face_document(face, monomials, fit),
        "moment_error": fit.moment_error, "condition": inner.condition if inner else 1.0, "converged": True,
        "reason": "the moments lie on the boundary of the moment body: every measure that has them lives on "
        "the face, so entropy against the whole space is minus infinity and lambda is infinite along the direction",
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
        }  # fmt: skip
    return document


# --- the neurons of a network ---------------------------------------------------------------------


def lift_frequencies(
    group: FiniteAbelianGroup, a: np.ndarray, b: np.ndarray, c: np.ndarray, *, base: str, symbols: str = "target",
    weights: np.ndarray | None = None,
) -> list[Lift]:  # fmt: skip
    """Project a network's measure to a compact space per conjugate pair of frequencies.

    The potentials are homogeneous of degree three, so ``rho_r = integral r(z/|z|) |z|^3 dmu``: a neuron
    counts with ``|z|^3`` (on the torus of phases with ``|z_a z_b z_c|``). Dead neurons carry no mass and drop out.

    Parameters
    ----------
    group : FiniteAbelianGroup
    a, b, c : ndarray, complex, shape (q, n)
        Fourier coefficients z_ak, z_bk, z_ck of the canonical weights.
    base : {"frequency-sphere", "torus", "sphere"}
    symbols : {"target", "all"}
        ``target``: Re and Im of ``z_ak z_bk z_ck``; ``all``: every cubic monomial of the loss that lives on this
        frequency alone.
    weights : ndarray, shape (q,), optional

    Returns
    -------
    list of Lift
        Heaviest frequency first; one entry for the global sphere.
    """
    weights = np.full(len(a), 1 / len(a)) if weights is None else weights
    if base == "sphere":
        return [_global_lift(group, a, b, c, weights)]
    lifts = []
    for k in group.conjugate_pairs:
        z = np.stack([a[:, k], b[:, k], c[:, k]], axis=1)
        real = group.negatives[k] == k
        if base == "torus":
            if real:
                continue
            mass = weights * np.abs(z).prod(1)
            alive = mass > 1e-12 * mass.max(initial=0)
            unit = z[alive] / np.abs(z[alive])
            space = parse_space("T3")
        else:
            size = np.sqrt((np.abs(z) ** 2).sum(1))
            mass = weights * size**3
            alive = mass > 1e-12 * mass.max(initial=0)
            unit = z[alive] / size[alive, None]
            space = parse_space("S2" if real else "S5")
        if not alive.any():
            continue
        points = unit.real if real else np.stack([unit.real, unit.imag], 2).reshape(len(unit), -1)
        expressions = "x1*x2*x3" if real else _symbols(symbols)
        frequency = tuple(int(v) for v in group.elements[k])
        total = float(mass.sum())
        lifts.append(
            Lift(frequency, space, parse_monomials(expressions, space), points, mass[alive] / total, total)
        )
    return sorted(lifts, key=lambda lift: -lift.mass)


def _symbols(symbols: str) -> str:
    target = ["z1*z2*z3"]
    others = ["z1*z2*conj(z3)", "z1*conj(z2)*z3", "conj(z1)*z2*z3"]
    for p in ("z1", "z2"):
        others += [f"{p}*conj({p})*z3", f"{p}^2*z3", f"{p}^2*conj(z3)"]
    chosen = target if symbols == "target" else target + others
    return ";".join(f"Re({e});Im({e})" for e in chosen)


def _global_lift(group: FiniteAbelianGroup, a: np.ndarray, b: np.ndarray, c: np.ndarray, weights: np.ndarray) -> Lift:
    """All frequencies together on one sphere, with the targets ``Re z_ak z_bk z_ck``."""
    blocks, expressions, pair, coordinate = [], [], 0, 0
    pairs = [k for k in group.conjugate_pairs if group.negatives[k] != k]
    for k in pairs:
        z = np.stack([a[:, k], b[:, k], c[:, k]], axis=1) * math.sqrt(2)
        blocks.append(np.stack([z.real, z.imag], 2).reshape(len(z), -1))
        expressions.append(f"Re(z{pair + 1}*z{pair + 2}*z{pair + 3})")
        pair, coordinate = pair + 3, coordinate + 6
    for k in group.conjugate_pairs:
        if group.negatives[k] == k:
            blocks.append(np.stack([a[:, k].real, b[:, k].real, c[:, k].real], 1))
            expressions.append("*".join(f"x{coordinate + i}" for i in (1, 2, 3)))
            coordinate += 3
    points = np.concatenate(blocks, 1)
    size = np.linalg.norm(points, axis=1)
    mass = weights * size**3
    alive = mass > 1e-12 * mass.max()
    space = parse_space(f"S{coordinate - 1}")
    total = float(mass.sum())
    monomials = parse_monomials(";".join(expressions), space)
    return Lift((), space, monomials, points[alive] / size[alive, None], mass[alive] / total, total)


def analyse_lift(lift: Lift, *, seed: int = 0, replicates: int = 6, progress: Progress = silent) -> dict[str, Any]:
    """Fit one lift and compare the neurons with the fitted measure.

    Parameters
    ----------
    lift : Lift
    seed : int
    replicates : int
        Simulated data sets for the bias of the entropy estimate.
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
            fit = _fit(lift.space, lift.monomials, moments, "sampling", seed, progress)
        document |= describe(fit, lift.space, lift.monomials)
    except NotConvergedError as error:
        fit = None
        document |= _unfitted(lift, moments, str(error))
    except RhoscopeError as error:
        fit = None
        document |= _unfitted(lift, moments, str(error))
    if lift.k:
        document |= _entropies(lift, fit, seed, replicates)
        if ratio > NEAR_FACE:
            document["near_face"] = _near_face(lift, target)
    return document


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
         "moment_error", "condition")
    )  # fmt: skip
    return empty | {
        "space": lift.space.name, "monomials": list(lift.monomials.names), "moments": moments,
        "reference": "uniform", "converged": False, "reason": reason, "method": "none", "diagnostics": {},
    }  # fmt: skip


def _entropies(lift: Lift, fit: Any, seed: int, replicates: int) -> dict[str, Any]:
    found = kozachenko_leonenko(lift.space, lift.points, lift.weights)
    dimension = intrinsic_dimension(lift.space, lift.points, lift.weights)
    document: dict[str, Any] = {
        "empirical_entropy": found.value, "entropy_neighbours": found.neighbours, "distinct_points": found.distinct,
        "intrinsic_dimension": dimension.value, "intrinsic_dimension_error": dimension.standard_error,
        "entropy_bias": None, "entropy_bias_error": None, "entropy_gap": None, "entropy_gap_error": None, "singular": None,
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
    # One data set of this size scatters by this much around its expectation, even without any gap.
    document["entropy_gap_error"] = float(np.std(values, ddof=1))
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


def to_dataset(document: dict[str, Any]) -> xr.Dataset:
    """The study as one Dataset: per fit and monomial."""
    fits = document.get("fits", [document])
    count = max(len(f["monomials"]) for f in fits)

    def table(key: str) -> np.ndarray:
        values = np.full((len(fits), count), np.nan)
        for i, f in enumerate(fits):
            row = f.get(key)
            if row is not None:
                values[i, : len(row)] = [np.nan if v is None else v for v in row]
        return values

    study = xr.Dataset(
        {
            "moments": (("fit", "monomial"), table("moments"), {"units": "1", "definition": "E r under the measure"}),
            "lambda": (("fit", "monomial"), table("lambda"), {"units": "1", "definition": "exponent exp(lambda . r)"}),
        },
        attrs={"reference": "uniform probability measure", "monomials": "; ".join(fits[0]["monomials"])},
    )
    units = {
        "entropy": "nats, against the uniform probability measure", "log_partition": "nats",
        "moment_error": "uniform standard deviations", "condition": "1", "fisher_rank": "1", "boundary_ratio": "1",
        "empirical_entropy": "nats, Kozachenko-Leonenko, bias not removed", "entropy_bias": "nats",
        "entropy_gap": "nats, bias removed", "mass": "1", "intrinsic_dimension": "1",
    }  # fmt: skip
    for key, unit in units.items():
        if key in fits[0]:
            values = [np.nan if f.get(key) is None else float(f[key]) for f in fits]
            study[key] = ("fit", values, {"units": unit, "definition": key.replace("_", " ")})
    if "k" in fits[0]:
        study = study.assign_coords(frequency=("fit", ["x".join(map(str, f["k"])) or "all" for f in fits]))
    return study
