"""The Wasserstein gradient flow of particles, and refinement to a fixed point."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.integrate
import torch
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, minres

from manifold.errors import InputError, NotConvergedError
from manifold.measures import ParticleMeasure
from spectra.functionals.base import Functional

MOST_STEPS = 20_000  # between two times: stable steps are about 3/|L| long, a flow time takes tens of them


def gradient_flow(
    functional: Functional, measure: ParticleMeasure, times: np.ndarray, *, rtol: float = 1e-6,
    atol: float = 1e-8,
) -> Iterator[ParticleMeasure]:  # fmt: skip
    """Follow ``dz_j/dt = -grad V(z_j)`` (adaptive Runge-Kutta 5(4)) and yield the measure at given times.

    Parameters
    ----------
    functional : Functional
        Whose first variation is V.
    measure : ParticleMeasure
        Start, at time 0.
    times : ndarray, shape (k,)
        Ascending, non-negative flow times.
    rtol, atol : float
        Local error tolerances of the integrator, in the coordinates z.

    Yields
    ------
    ParticleMeasure
        One per time.

    Raises
    ------
    InputError
        If the times are not ascending and non-negative.
    NotConvergedError
        If the integrator's step vanishes, or 20,000 of them do not reach the next time.
    """
    times = np.asarray(times, dtype=float)
    if len(times) and (times[0] < 0 or (np.diff(times) < 0).any()):
        raise InputError("times: expected ascending non-negative flow times")
    shape, like = measure.points.shape, measure.points

    def velocity(_: float, flat: np.ndarray) -> np.ndarray:
        points = torch.as_tensor(flat.reshape(shape), device=like.device)
        return -functional.gradient(ParticleMeasure(points, measure.weights)).cpu().numpy().reshape(-1)

    start = like.cpu().numpy().reshape(-1).copy()
    solver = None
    for time in times:
        if time == 0:
            yield measure
            continue
        if solver is None:
            solver = scipy.integrate.RK45(velocity, 0.0, start, np.inf, rtol=rtol, atol=atol)
        steps = 0
        while solver.t < time:
            problem = solver.step()
            steps += 1
            if steps > MOST_STEPS:
                raise NotConvergedError(
                    f"flow: {MOST_STEPS:,} steps of the integrator reach t = {solver.t:.3g} of {time:.3g}; "
                    "ask for times that lie closer"
                )
            if solver.status == "failed":
                raise NotConvergedError(f"flow: the integrator stopped at t = {solver.t:.6g}: {problem}")
        flat = solver.dense_output()(time)
        yield ParticleMeasure(torch.as_tensor(flat.reshape(shape), device=like.device), measure.weights)


class FixedPointKind(enum.Enum):
    """What kind of fixed point of the flow a measure is."""

    MP_CRITICAL = "mp-critical"
    STATIONARY = "stationary"
    NONE = "none"


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """A measure and how stationary it is.

    Parameters
    ----------
    measure : ParticleMeasure
        The (refined) particles.
    gradient_norm : float
        ``max_j |grad V(z_j)|`` before refinement (objective, decay included).
    gradient_norm_after : float
        The same at ``measure``.
    moved : float
        Root mean square distance the particles moved, in the metric of z.
    kind : FixedPointKind
        MP-critical when the slope of L vanishes on span(R) (no decay), stationary when only
        the gradient at the particles does, none when it does not.
    refined : bool
        Whether refinement was run.
    iterations : int
        Of the optimiser.
    """

    measure: ParticleMeasure
    gradient_norm: float
    gradient_norm_after: float
    moved: float
    kind: FixedPointKind
    refined: bool
    iterations: int


def gradient_norm(functional: Functional, measure: ParticleMeasure) -> float:
    """``max_j |grad V(z_j)|``."""
    return float(functional.gradient(measure).norm(dim=1).max())


def classify(functional: Functional, measure: ParticleMeasure, *, tol: float) -> FixedPointKind:
    """Tell MP-critical from stationary points at tolerance ``tol`` on gradients."""
    if gradient_norm(functional, measure) > tol:
        return FixedPointKind.NONE
    return (
        FixedPointKind.MP_CRITICAL
        if functional.linearise(measure).slope_norm() <= 10 * tol
        else FixedPointKind.STATIONARY
    )


def refine(
    functional: Functional, measure: ParticleMeasure, *, tol: float = 1e-9, max_iterations: int = 1000,
    progress: Callable[[float, float, str], None] | None = None,
) -> FixedPoint:  # fmt: skip
    """Move the particles to a nearby stationary point: trust-region Newton with exact products.

    Minimises the objective (decay included) over the particles in half-density coordinates, where the
    Hessian is the second variation. From the basin of a minimum it converges superlinearly; it never
    converges to a saddle.

    Parameters
    ----------
    functional : Functional
        The objective.
    measure : ParticleMeasure
        Start.
    tol : float
        Wanted ``max_j |grad V(z_j)|``.
    max_iterations : int
        Newton steps.
    progress : callable, optional
        Called with (digits gained, digits wanted, message).

    Returns
    -------
    FixedPoint

    Raises
    ------
    NotConvergedError
        If the tolerance is not met; ``partial`` holds the `FixedPoint` reached.
    """
    root = measure.weights.sqrt()[:, None]
    before = gradient_norm(functional, measure)
    state: dict[str, object] = {"key": None, "steps": 0}

    def at(x: np.ndarray):
        if state["key"] is None or not np.array_equal(state["key"], x):
            points = torch.as_tensor(x.reshape(measure.points.shape), device=root.device) / root
            state["at"] = functional.linearise(ParticleMeasure(points, measure.weights))
            state["key"] = x.copy()
        return state["at"]

    def slope(x: np.ndarray) -> np.ndarray:
        return (root * at(x).gradient).cpu().numpy().reshape(-1)

    def curvature(x: np.ndarray, p: np.ndarray) -> np.ndarray:
        field = torch.as_tensor(p.reshape(measure.points.shape), device=root.device) / root
        return (root * at(x).product(field[None])[0]).cpu().numpy().reshape(-1)

    def largest(x: np.ndarray) -> float:
        return float(at(x).gradient.norm(dim=1).max())

    def watch(intermediate_result) -> None:
        reached = largest(intermediate_result.x)
        state["steps"] = int(state["steps"]) + 1
        if progress is not None and reached > 0:
            progress(max(0.0, -np.log10(reached)), -np.log10(tol), f"refining, gradient {reached:.1e}")
        if reached <= tol:
            raise StopIteration

    start = (root * measure.points).cpu().numpy().reshape(-1)
    solution = start
    if before > tol:
        solution = minimize(
            lambda x: at(x).value, start, jac=slope, hessp=curvature, method="trust-ncg", callback=watch,
            options={"gtol": 0.0, "maxiter": max_iterations, "initial_trust_radius": 0.1},
        ).x  # fmt: skip
        solution = _polish(solution, slope, curvature, largest, tol)
    return _finish(functional, measure, solution, before, tol, int(state["steps"]))


def _polish(
    x: np.ndarray, slope: Callable[[np.ndarray], np.ndarray],
    curvature: Callable[[np.ndarray, np.ndarray], np.ndarray], size: Callable[[np.ndarray], float],
    tol: float,
) -> np.ndarray:  # fmt: skip
    """Plain Newton steps judged by the gradient alone.

    Where the decrease of the objective drowns in rounding (its value is not zero), a trust region can no
    longer tell good steps from bad ones, while the gradient still has eight digits to gain. MINRES solves
    the singular but consistent Newton system.
    """
    for _ in range(8):
        now = size(x)
        if now <= tol:
            break
        right = -slope(x)
        operator = LinearOperator((len(x), len(x)), matvec=lambda p, x=x: curvature(x, p), dtype=np.float64)
        step, _ = minres(operator, right, rtol=1e-8, maxiter=2000)
        if size(x + step) >= now:
            break
        x = x + step
    return x


def _finish(
    functional: Functional, measure: ParticleMeasure, solution: np.ndarray, before: float, tol: float,
    steps: int,
) -> FixedPoint:  # fmt: skip
    root = measure.weights.sqrt()[:, None]
    points = torch.as_tensor(solution.reshape(measure.points.shape), device=root.device) / root
    found = ParticleMeasure(points, measure.weights)
    moved = float(measure.expectation((points - measure.points).square().sum(1)) / measure.mass) ** 0.5
    after = gradient_norm(functional, found)
    kind = classify(functional, found, tol=tol)
    result = FixedPoint(found, before, after, moved, kind, True, steps)
    if after > tol:
        raise NotConvergedError(
            f"refine: max_j |grad V(z_j)| = {after:.2e} after {steps} Newton steps, wanted {tol:.1e}; "
            "train longer first, or ask for a larger tolerance",
            partial=result,
        )
    return result


def measured_point(functional: Functional, measure: ParticleMeasure, *, tol: float = 1e-9) -> FixedPoint:
    """Describe a measure as it is, without refinement."""
    size = gradient_norm(functional, measure)
    return FixedPoint(measure, size, size, 0.0, classify(functional, measure, tol=tol), False, 0)
