"""Checks for functionals of your own: Taylor remainders, symmetry, and what every `Functional` promises.

The first and second variation are derivatives of H along the particles: for points ``z_j + t v_j`` with
weights w_j

    H(t) = H(0) + t sum_j w_j <grad V(z_j), v_j> + (t^2/2) sum_j w_j <(Lv)_j, v_j> + O(t^3),

so what is left after one or two terms falls like t^2 and t^3. A wrong term leaves a slope of one or two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifold.errors import RhoscopeError
from manifold.measures import ParticleMeasure
from spectra.functionals.base import Functional

STEPS = tuple(10.0 ** (-0.25 * i) for i in range(2, 21))  # of the typical size of a point
ROUNDING = 100 * np.finfo(np.float64).eps  # of H
FIELDS = 3  # random directions of `check_functional`
SLACK = 0.1  # by which a slope may miss its power


class NonconformingError(RhoscopeError):
    """A functional does not keep what `Functional` promises; the message says which check failed."""

    exit_code = 1


@dataclass(frozen=True, eq=False)
class TaylorCheck:
    """Remainders of a Taylor polynomial along one field.

    Parameters
    ----------
    steps : ndarray, shape (s,)
        Displacements t, descending.
    remainders : ndarray, shape (s,)
        ``|H(t) - polynomial|``.
    rounding : ndarray, shape (s,)
        Levels below which remainders are rounding.
    expected : int
        The slope of a correct derivative, 2 or 3 (a larger one is as good: the next term may vanish).
    slope : float
        Of the remainders above rounding in logarithms; infinite where they are all rounding.
    """

    steps: np.ndarray
    remainders: np.ndarray
    rounding: np.ndarray
    expected: int
    slope: float

    @property
    def passed(self) -> bool:
        """Whether the remainders fall as fast as they must."""
        return bool(self.slope >= self.expected - SLACK)


def check_first_variation(
    functional: Functional, measure: ParticleMeasure, *, field: Tensor | None = None, seed: int = 0
) -> TaylorCheck:
    """Whether ``gradient`` is the derivative of ``value``: remainders of slope 2.

    Parameters
    ----------
    functional : Functional
        Yours.
    measure : ParticleMeasure
        Where to check; no special point.
    field : Tensor, shape (q, D), optional
        Direction v; default random.
    seed : int
        Of the direction.

    Returns
    -------
    TaylorCheck
    """
    return _taylor(functional, measure, field, seed, order=1)


def check_second_variation(
    functional: Functional, measure: ParticleMeasure, *, field: Tensor | None = None, seed: int = 0
) -> TaylorCheck:
    """Whether ``product`` is the derivative of ``gradient``: remainders of slope 3.

    Parameters
    ----------
    functional : Functional
        Yours; its first variation should have passed `check_first_variation`.
    measure : ParticleMeasure
        Where to check.
    field : Tensor, shape (q, D), optional
        Direction v; default random.
    seed : int
        Of the direction.

    Returns
    -------
    TaylorCheck
    """
    return _taylor(functional, measure, field, seed, order=2)


def _taylor(
    functional: Functional, measure: ParticleMeasure, field: Tensor | None, seed: int, *, order: int
) -> TaylorCheck:
    at = functional.linearise(measure)
    field = _random_field(measure, seed) if field is None else field
    first = _inner(measure, at.gradient, field)
    second = _inner(measure, at.product(field[None])[0], field) if order == 2 else 0.0
    steps, remainders, sizes = np.array(STEPS), [], []
    for t in STEPS:
        moved = functional.value(ParticleMeasure(measure.points + t * field, measure.weights))
        sizes.append(max(abs(at.value), abs(moved)))
        remainders.append(abs(moved - at.value - t * first - 0.5 * t * t * second))
    remainders, rounding = np.array(remainders), ROUNDING * np.array(sizes)
    seen = remainders > rounding
    slope = float("inf")
    if seen[: len(seen) // 2].any():
        seen[np.argmin(seen) :] &= seen.all()  # only the run before the first that is lost in rounding
        last = np.nonzero(seen)[0][-6:]  # the smallest steps: higher terms have died out
        if len(last) >= 3:
            slope = float(np.polyfit(np.log(steps[last]), np.log(remainders[last]), 1)[0])
    return TaylorCheck(steps, remainders, rounding, order + 1, slope)


def _random_field(measure: ParticleMeasure, seed: int) -> Tensor:
    """A random field of the typical size of the points."""
    rng = np.random.default_rng(seed)
    size = float(measure.points.square().mean()) ** 0.5 or 1.0
    values = size * rng.standard_normal(tuple(measure.points.shape))
    return torch.as_tensor(values, device=measure.points.device)


def _inner(measure: ParticleMeasure, one: Tensor, two: Tensor) -> float:
    """``sum_j w_j <one_j, two_j>``, the product in which the second variation is self-adjoint."""
    return float(measure.weights @ (one * two).sum(1))


def check_functional(functional: Functional, measure: ParticleMeasure, *, seed: int = 0) -> dict[str, float]:
    """Run every check on a functional of your own.

    Parameters
    ----------
    functional : Functional
    measure : ParticleMeasure
        A generic measure, for instance random points; a few particles are enough.
    seed : int
        Of random directions.

    Returns
    -------
    dict of str to float
        What was measured: the two slopes, then relative defects (0 = perfect) of finiteness, the split into
        interaction and local part, self-adjointness, local blocks, symmetry of the flat kernel, gradients
        lying in the span of the potentials' gradients, and symmetry fields.

    Raises
    ------
    NonconformingError
        Names the first check that failed, what was expected and what came.
    """
    report: dict[str, float] = {}
    taylor = (("first_variation", check_first_variation), ("second_variation", check_second_variation))
    report["finite"] = _finite(functional, measure)
    _demand(report, "finite", report["finite"] == 0, "finite value and gradient at the measure")
    for name, check in taylor:
        found = min((check(functional, measure, seed=seed + i) for i in range(FIELDS)), key=_slope)
        report[name] = found.slope
        _demand(report, name, found.passed, f"Taylor remainders of slope {found.expected}")
    for name, (defect, words) in _DEFECTS.items():
        report[name] = defect(functional, measure, seed)
        _demand(report, name, report[name] <= 1e-8, f"{words} to 1e-8")
    return report


def _slope(found: TaylorCheck) -> float:
    return found.slope


def _demand(report: dict[str, float], name: str, fine: bool, words: str) -> None:
    if not fine:
        raise NonconformingError(f"{name}: expected {words}, got {report[name]:.3g}")


def _finite(functional: Functional, measure: ParticleMeasure) -> float:
    at = functional.linearise(measure)
    bad = int((~torch.isfinite(at.gradient)).sum())
    return float(bad + (not np.isfinite(at.value)))


def _relative(defect: Tensor, scale: Tensor) -> float:
    return float(defect.norm() / scale.norm().clamp_min(1e-300)) if defect.numel() else 0.0


def _split(functional: Functional, measure: ParticleMeasure, seed: int) -> float:
    at, field = functional.linearise(measure), _random_field(measure, seed)[None]
    both, parts = at.product(field), [at.product(field, (part,)) for part in ("interaction", "local")]
    return _relative(both - parts[0] - parts[1], both)


def _adjoint(functional: Functional, measure: ParticleMeasure, seed: int) -> float:
    at = functional.linearise(measure)
    u, v = (_random_field(measure, seed + i) for i in range(2))
    images = at.product(torch.stack([u, v]))
    gap = _inner(measure, images[0], v) - _inner(measure, images[1], u)
    sizes = [_inner(measure, x, x) ** 0.5 for x in (u, v, *images)]
    return abs(gap) / max(sizes[2] * sizes[1], sizes[3] * sizes[0], 1e-300)


def _local(functional: Functional, measure: ParticleMeasure, seed: int) -> float:
    at, field = functional.linearise(measure), _random_field(measure, seed)
    blocks = at.local_blocks()
    product = at.product(field[None], ("local",))[0]
    return _relative(torch.einsum("jde,je->jd", blocks, field) - product, product)


def _kernel(functional: Functional, measure: ParticleMeasure, seed: int) -> float:
    kernel = functional.linearise(measure).flat_kernel()
    return _relative(kernel - kernel.T, kernel)


def _span(functional: Functional, measure: ParticleMeasure, seed: int) -> float:
    """The part of the interaction outside the span of the gradients of the potentials."""
    at, field = functional.linearise(measure), _random_field(measure, seed)[None]
    image = at.product(field, ("interaction",))[0].reshape(-1)
    gradients = at.potential_gradients().permute(0, 2, 1).reshape(len(image), -1)
    left, sizes, _ = torch.linalg.svd(gradients, full_matrices=False)
    left = left[:, sizes > 1e-12 * sizes.max().clamp_min(1e-300)]
    return _relative(image - left @ (left.T @ image), image)


def _symmetry(functional: Functional, measure: ParticleMeasure, seed: int) -> float:
    """Gradients of R along the symmetry fields."""
    at = functional.linearise(measure)
    fields, gradients = at.symmetry_fields(), at.potential_gradients()
    along = torch.einsum("jgd,jmd->jgm", fields, gradients)
    return (
        float(along.norm() / (fields.norm() * gradients.norm()).clamp_min(1e-300)) if along.numel() else 0.0
    )


_Defect = tuple[Callable[[Functional, ParticleMeasure, int], float], str]
_DEFECTS: dict[str, _Defect] = {
    "split": (_split, "interaction plus local part to give the whole product"),
    "self_adjoint": (_adjoint, "a self-adjoint second variation in L2(mu)"),
    "local_blocks": (_local, "local blocks to give the local product"),
    "flat_kernel": (_kernel, "a symmetric flat kernel"),
    "span": (_span, "the interaction in the span of the potentials' gradients"),
    "symmetry": (_symmetry, "potentials constant along the symmetry fields"),
}
