"""Stationary points of any kind, saddles too: Levenberg-Marquardt on the gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from manifold.errors import NotConvergedError
from manifold.measures import ParticleMeasure
from spectra.flow.gradient_flow import FixedPoint, classify, gradient_norm
from spectra.functionals.base import Decayed, Functional, Linearisation
from spectra.operators.tangent import tangent_space
from spectra.operators.variation import SecondVariation

GROWTH, SHRINKAGE = 4.0, 0.25
LARGEST_DAMPING = 1e6
SLOW, STALLS = 0.99, 10  # steps in T_R end after ten in a row that leave more of the gradient than this
SMALL_SPAN = 1500  # potentials up to which steps are computed in T_R by a dense decomposition


def nearest_stationary_point(
    functional: Functional, measure: ParticleMeasure, *, tol: float = 1e-9, max_iterations: int = 200,
    inside_only: bool = False, progress: Callable[[float, float, str], None] | None = None,
) -> FixedPoint:  # fmt: skip
    """Move the particles to a nearby point where grad V vanishes on them, whatever its stability.

    Minimises ``|g|^2 / 2`` with g the gradient in half-density coordinates, whose Jacobian is the second
    variation L: each step minimises ``|g + L p|^2 + mu |p|^2``. Where span(R) is small the steps stay in
    ``T_R``, the space of its gradients, as those of the flow do, and are exact; elsewhere they are found
    without matrices. The objective may rise, so this ends at saddles too; it may stop at a point where
    ``L g = 0`` (in T_R) with g not zero.

    Parameters
    ----------
    functional : Functional
        The objective.
    measure : ParticleMeasure
        Start.
    tol : float
        Wanted ``max_j |grad V(z_j)|``.
    max_iterations : int
        Steps.
    inside_only : bool
        Stop where steps in T_R bring nothing more: those without matrices cost far more.
    progress : callable, optional
        Called with (step, steps, message).

    Returns
    -------
    FixedPoint

    Raises
    ------
    NotConvergedError
        If the tolerance is not met; ``partial`` holds the `FixedPoint` reached.
    """
    root = measure.weights.sqrt()[:, None]
    before, damping, now, taken = gradient_norm(functional, measure), 1e-2, measure, 0
    at, stepper, stalls = functional.linearise(now), None, 0
    inside = functional.potential_count <= SMALL_SPAN and not isinstance(functional, Decayed)
    while taken < max_iterations and float(at.gradient.norm(dim=1).max()) > tol:
        if progress is not None:
            progress(taken, max_iterations, "Levenberg-Marquardt towards a stationary point")
        taken += 1
        slope = (root * at.gradient).reshape(-1)
        if stepper is None:  # a refused step changes the damping alone
            stepper = _stepper(at, slope, inside)
        # Less damping near the goal keeps convergence quadratic.
        step = stepper(damping * float(slope.norm())).reshape(now.points.shape)
        tried = ParticleMeasure(now.points + step / root, now.weights)
        there = functional.linearise(tried)
        share = float((root * there.gradient).norm()) / float(slope.norm())
        if share < 1:
            now, at, stepper, damping = tried, there, None, max(SHRINKAGE * damping, 1e-12)
            stalls = stalls + 1 if share > SLOW else 0
        else:
            damping *= GROWTH
        if inside and (stalls >= STALLS or damping > LARGEST_DAMPING):
            if inside_only:
                break
            inside, stepper, damping = False, None, 1e-2  # what is left is not to be reached within T_R
        elif damping > LARGEST_DAMPING:
            break
    after = gradient_norm(functional, now)
    distance = measure.expectation((now.points - measure.points).square().sum(1)) / measure.mass
    kind = classify(functional, now, tol=tol)
    found = FixedPoint(now, before, after, float(np.sqrt(float(distance))), kind, True, taken)
    if after > tol:
        raise NotConvergedError(
            f"stationary point: max_j |grad V(z_j)| = {after:.2e} after {taken} steps, wanted {tol:.1e}; "
            "start nearer to one, or ask for a larger tolerance",
            partial=found,
        )
    return found


def _stepper(at: Linearisation, slope: Tensor, inside: bool) -> Callable[[float], Tensor]:
    """The minimiser p of ``|g + L p|^2 + mu |p|^2`` as a function of mu, among all p or those in T_R."""
    full = SecondVariation(at)
    if not inside:
        return lambda mu: _krylov_step(full, slope, mu)
    basis = tangent_space(full.weighted_gradients()).basis
    left, sizes, right = torch.linalg.svd(full.apply(basis), full_matrices=False)
    inner = left.T @ slope
    return lambda mu: -basis @ (right.T @ (sizes / (sizes.square() + mu) * inner))


def _krylov_step(full: SecondVariation, slope: Tensor, mu: float) -> Tensor:
    product = full.linear_operator().matvec
    operator = LinearOperator((len(slope),) * 2, matvec=product, rmatvec=product, dtype=np.float64)
    found = lsmr(operator, -slope.cpu().numpy(), damp=mu**0.5, atol=1e-10, btol=1e-10, maxiter=500)
    return torch.as_tensor(found[0], device=slope.device)
