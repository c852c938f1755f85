"""Fits of maximum-entropy families: the dual problem by Newton or by Riemannian trust regions."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import pymanopt
from pymanopt.optimizers import TrustRegions

from manifold.errors import InfeasibleMomentsError, InputError, NotConvergedError, TooLargeError
from manifold.fisher_rao import FisherRaoManifold, solve_scaled
from manifold.maxent import COARSE, FINE, MaxEntFamily
from manifold.moment_body import Certificate, separate, support_function

RUNAWAY = 1e7


class Reason(Enum):
    """Why a fit stopped; the value is the sentence for the user."""

    CONVERGED = "the moments are matched to rounding error"
    ITERATIONS = "stopped at the iteration limit before the moments were matched"
    STALLED = "no step lowers the dual any more, yet the moments are not matched; try another method"


@dataclass(frozen=True, eq=False)
class MaxEntFit:
    """The maximum-entropy measure with given moments.

    Attributes
    ----------
    family : MaxEntFamily
    moments : ndarray, shape (m,)
        What was asked for.
    lam : ndarray, shape (m,)
        Zero at dependent monomials.
    log_partition : float
        ``log integral exp(lambda . r) d(uniform)``.
    entropy : float
        Against the uniform probability measure, nats.
    moment_error : float
        Largest ``|E r - rho|`` in units of the uniform standard deviation of r, on a quadrature rule with
        more nodes than the one that produced lambda: it contains the quadrature error.
    fisher_rank : int
    condition : float
        Condition number of the Fisher information, monomials scaled to unit variance.
    fisher_information : ndarray, shape (m, m)
    converged : bool
    reason : Reason
    method : str
    diagnostics : dict
    """

    family: MaxEntFamily
    moments: np.ndarray
    lam: np.ndarray
    log_partition: float
    entropy: float
    moment_error: float
    fisher_rank: int
    condition: float
    fisher_information: np.ndarray
    converged: bool
    reason: Reason
    method: str
    diagnostics: dict = field(default_factory=dict)

    @property
    def entropy_riemannian(self) -> float:
        """Entropy against Riemannian volume, nats."""
        return self.entropy + float(np.log(self.family.space.volume))

    @property
    def dimension(self) -> int:
        """Dimension of the family as a manifold: the Fisher rank."""
        return self.fisher_rank


def fit(
    family: MaxEntFamily,
    moments: np.ndarray,
    *,
    method: str = "newton",
    initial: np.ndarray | None = None,
    max_iterations: int = 120,
    progress=None,
) -> MaxEntFit:
    """The member of a family with ``E r = moments``: minimise the dual ``A(lambda) - lambda . rho``.

    Parameters
    ----------
    family : MaxEntFamily
    moments : array_like, shape (m,)
    method : {"newton", "trust-regions"}
        Damped Newton, or pymanopt's Riemannian trust regions on the Fisher-Rao manifold.
    initial : array_like, shape (m,), optional
        Warm start for lambda; default 0.
    max_iterations : int
    progress : callable, optional
        Called as ``progress(done, total, message)``.

    Returns
    -------
    MaxEntFit

    Raises
    ------
    InputError
        For a wrong number of moments, NaN, or an unknown method.
    InfeasibleMomentsError
        If no probability measure has these moments: carries a `Certificate` (direction u with
        ``u . rho > h(u) = max u . r``).
    NotConvergedError
        If the iteration limit came first; ``partial`` is the unfinished fit.
    TooLargeError
        If a density on the way needs too many quadrature nodes.
    """
    moments = np.atleast_1d(np.asarray(moments, dtype=float))
    if moments.shape != (len(family),):
        raise InputError(f"moments: expected {len(family)} (one per monomial), got {moments.size}")
    if not np.isfinite(moments).all():
        raise InputError("moments: expected finite numbers, got NaN or infinity")
    if method not in {"newton", "trust-regions"}:
        raise InputError(f"method: expected newton or trust-regions, got {method!r}")
    _check_dependent(family, moments)
    problem = _Dual(family, moments)
    start = np.zeros(family.rank)
    if initial is not None:
        start = np.asarray(initial, float)[family.independent]
    report = progress or (lambda done, total, message="": None)
    try:
        if method == "newton":
            point, steps = problem.newton(start, max_iterations, report)
        else:
            point, steps = problem.trust_regions(start, max_iterations)
        result = problem.polish(point, steps, method, limit=max_iterations)
        if not result.converged:
            raise NotConvergedError(f"maximum-entropy fit: {result.reason.value}", result)
    except (TooLargeError, NotConvergedError) as error:
        problem.refuse_if_infeasible()
        error.direction = np.zeros(len(family))
        error.direction[family.independent] = problem.last
        raise
    return result


def _check_dependent(family: MaxEntFamily, moments: np.ndarray) -> None:
    """Dependent monomials must have the moments that the others dictate.

    Raises
    ------
    InfeasibleMomentsError
        If they have not, with an exact certificate.
    """
    for dependency in family.dependencies:
        gap = moments[dependency.index] - dependency.constant - dependency.coefficients @ moments
        unit = family.scale[dependency.index] + np.abs(dependency.coefficients) @ np.abs(moments)
        if abs(gap) > 1e-8 * (unit + abs(dependency.constant)):
            direction = -dependency.coefficients * np.sign(gap)
            direction[dependency.index] = np.sign(gap)
            size = np.linalg.norm(direction)
            support = np.sign(gap) * dependency.constant / size
            certificate = Certificate(
                direction / size, float(direction @ moments / size), support, None, 0, True
            )
            raise InfeasibleMomentsError(
                f"moments: {dependency.sentence} everywhere on {family.space.name}, but the moments miss "
                f"this by {gap:.3g}; {certificate.sentence(family.monomials.names)}",
                certificate,
            )


class _Dual:
    """The dual problem in independent coordinates."""

    def __init__(self, family: MaxEntFamily, moments: np.ndarray):
        self.family, self.moments = family, moments
        self.target = moments[family.independent]
        self.unit = family.scale[family.independent]
        self.checked = False
        self.touching: bool | None = None
        self.last = np.zeros(family.rank)

    def cumulants(self, point: np.ndarray, order: int, tol: float, growth: float = 1.0, extra: int = 0):
        self.last = point
        lam = np.zeros(len(self.family))
        lam[self.family.independent] = point
        found = self.family.evaluate(lam, order=order, tol=tol, growth=growth, extra=extra)
        keep = self.family.independent
        covariance = None if found.covariance is None else found.covariance[np.ix_(keep, keep)]
        return found.log_partition, found.mean[keep], covariance, found.marginals

    def refuse_if_infeasible(self) -> None:
        """Raise with a verified separating direction if there is one.

        Raises
        ------
        InfeasibleMomentsError
            If there is one.
        """
        if self.checked:
            return
        self.checked = True
        certificate = separate(self.family, self.moments)
        if certificate is not None:
            raise InfeasibleMomentsError(certificate.sentence(self.family.monomials.names), certificate)

    def touches(self, point: np.ndarray) -> bool:
        """Whether the moments lie on the boundary in the direction of lambda (asked once)."""
        if self.touching is None:
            scaled = np.abs(point * self.unit)
            direction = np.zeros(len(self.family))
            direction[self.family.independent] = np.where(scaled > 0.1 * scaled.max(), point, 0.0)
            support, _ = support_function(self.family.space, self.family.monomials, direction)
            unit = float(np.abs(direction) @ self.family.scale)
            self.touching = support - float(direction @ self.moments) < 1e-9 * unit
        return self.touching

    def newton(self, point: np.ndarray, limit: int, report) -> tuple[np.ndarray, int]:
        """Damped Newton on coarse rules until the decrement is small.

        Raises
        ------
        NotConvergedError
            If lambda grows without bound.
        """
        value, mean, covariance, _ = self.cumulants(point, 2, COARSE)
        cost = value - point @ self.target
        for step in range(1, limit + 1):
            gradient = mean - self.target
            direction = -solve_scaled(covariance, gradient)
            decrement = float(np.sqrt(max(-gradient @ direction, 0.0)))
            report(min(step, limit), limit, f"Newton step {step}, decrement {decrement:.1e}")
            if decrement < 1e-5:
                return point, step
            size = np.abs(point * self.unit).max()
            if size > 12 or step == 25:
                self.refuse_if_infeasible()
            if size > RUNAWAY or (size > 1e3 and self.touches(point)):
                raise NotConvergedError(
                    "maximum-entropy fit: lambda grows without bound, so the moments lie on the boundary of "
                    "the moment body (a measure on a face has them)"
                )
            length = min(1.0, 2.0 / decrement)
            while True:
                trial = point + length * direction
                value, mean, covariance, _ = self.cumulants(trial, 2, COARSE)
                trial_cost = value - trial @ self.target
                slack = 1e-5 + 1e-13 * abs(value)
                if trial_cost <= cost - 1e-4 * length * decrement**2 + slack or length < 1e-6:
                    break
                length /= 2 if length > 0.05 else 5
            point, cost = trial, trial_cost
        return point, limit

    def trust_regions(self, point: np.ndarray, limit: int) -> tuple[np.ndarray, int]:
        """Riemannian trust regions on the Fisher-Rao manifold."""
        manifold = FisherRaoManifold(self.family, tol=FINE)
        scale = self.target

        @pymanopt.function.numpy(manifold)
        def cost(x):
            found = self.family.evaluate(manifold.embed(x), order=2, tol=FINE)
            return found.log_partition - float(x @ scale)

        @pymanopt.function.numpy(manifold)
        def gradient(x):
            return manifold.mean(x) - scale

        @pymanopt.function.numpy(manifold)
        def hessian(x, v):
            return manifold.metric(x) @ v

        problem = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient, euclidean_hessian=hessian)
        optimizer = TrustRegions(
            max_iterations=limit, min_gradient_norm=1e-7, max_time=600, verbosity=0, kappa=0.01, theta=1.0
        )
        outcome = optimizer.run(problem, initial_point=point, Delta0=min(4.0, manifold.typical_dist))
        return outcome.point, int(outcome.iterations)

    def polish(self, point: np.ndarray, steps: int, method: str, *, limit: int) -> MaxEntFit:
        """Chord steps on fine rules; the last residual is measured with more nodes than made the point."""
        covariance = self.cumulants(point, 2, COARSE)[2]
        errors: list[float] = []
        best, growth = None, 1.0
        for attempt in range(14):
            value, mean, _, sizes = self.cumulants(point, 1, FINE, growth, extra=2 * (attempt % 2))
            gradient = mean - self.target
            direction = -solve_scaled(covariance, gradient)
            decrement = float(np.sqrt(max(-gradient @ direction, 0.0)))
            errors.append(decrement)
            if best is None or decrement < best[0]:
                best = (decrement, point, value, mean, sizes)
            floor = self._floor(point, covariance)
            if attempt and decrement <= floor:
                break
            if attempt and decrement > 0.3 * min(errors[:-1]):
                if growth > 3 or best[0] < max(1e-8, 50 * floor):
                    break
                growth *= 1.4  # the slices that chose the rule missed a narrow or rare mode
                covariance = self.cumulants(point, 2, COARSE, growth)[2]
                direction = -solve_scaled(covariance, gradient)
            point = point + direction
        decrement, point, value, mean, sizes = best
        lam = np.zeros(len(self.family))
        lam[self.family.independent] = point
        moment_error = float(np.max(np.abs(mean - self.target) / self.unit))
        nodes = float(np.prod([np.prod(s, dtype=float) for s in sizes]))
        tol = FINE if nodes < 3e5 else COARSE
        information = self.family.evaluate(lam, order=2, tol=tol, growth=growth).covariance
        keep = self.family.independent
        scale = np.sqrt(np.diag(information)[keep].clip(min=np.finfo(float).tiny))
        values = np.linalg.eigvalsh(information[np.ix_(keep, keep)] / np.outer(scale, scale))
        converged = decrement < max(1e-6, 50 * self._floor(point, covariance)) and moment_error < 1e-7
        reason = Reason.CONVERGED if converged else (Reason.ITERATIONS if steps >= limit else Reason.STALLED)
        return MaxEntFit(
            family=self.family, moments=self.moments, lam=lam, log_partition=value,
            entropy=value - float(point @ mean), moment_error=moment_error, fisher_rank=self.family.rank,
            condition=float(values[-1] / max(values[0], 1e-300)), fisher_information=information,
            converged=converged, reason=reason, method=method,
            diagnostics={
                "newton_decrement": decrement, "steps": steps, "nodes": [list(map(int, s)) for s in sizes],
                "dependent": [d.sentence for d in self.family.dependencies],
                "lambda_error": float(np.abs(solve_scaled(covariance, mean - self.target)).max()),
            },
        )  # fmt: skip

    def _floor(self, point: np.ndarray, covariance: np.ndarray) -> float:
        """What rounding leaves of the decrement."""
        noise = 4 * np.finfo(float).eps * (np.abs(self.target) + np.abs(point) @ np.sqrt(np.diag(covariance))
                                            * self.unit + self.unit)  # fmt: skip
        return float(np.sqrt(noise @ solve_scaled(covariance, noise)))
