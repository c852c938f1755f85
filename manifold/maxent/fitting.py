"""Fits of maximum-entropy families: the dual problem by Newton or by Riemannian trust regions."""

from __future__ import annotations

import numpy as np
import pymanopt
from pymanopt.optimizers import TrustRegions

from manifold.errors import InfeasibleMomentsError, InputError, NotConvergedError, TooLargeError
from manifold.integration.products import Cumulants
from manifold.maxent.family import COARSE, FINE, MaxEntFamily
from manifold.maxent.fisher_rao import FisherRaoManifold, solve_scaled
from manifold.maxent.fits import MaxEntFit, Reason
from manifold.maxent.moment_body import Certificate, certify, separate, support_function

RUNAWAY = 1e15  # lambda in units of the monomials at which rounding of the moments hides their distance
TOUCHING = 1e-13  # of the unit of u . r: nearer to the boundary the rounding of the moments decides
CERTAIN = 0.05  # standard deviations of error in the moments up to which lambda is linear in it
SECOND = (1.0, 2)  # factor and nodes more on every axis of the rule that judges a fit
BLIND = 1e-11  # eigenvalue of the scaled Fisher information that rounding of its entries hides
LARGE = 12.0  # lambda in units of the monomials from which its direction is compared with the boundary
CLOSE = 1e-2  # of the unit of u . r, within which the boundary is searched for in earnest
SOON, LATER = 3.0, 30.0  # by how much lambda grows until that is asked again, at first and far out
MANY, FEW = 80, 14  # steps on fine rules: where these are cheap, and where one takes seconds
MATCHED = 1e-10  # standard deviations of the moments: no fit needs to be better
NARROW = 0.3  # range of (error of lambda) . r within which the Fisher information cannot change much
BENT = 1.5  # change of the variances within the error of lambda above which that error bounds nothing
CHEAP = 3e5  # nodes up to which the Fisher information is computed on fine rules too


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
        result = problem.polish(point, steps, method, exhausted=steps >= max_iterations)
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
        self.searched = False
        self.asked = 0.0
        self.last = np.zeros(family.rank)

    def embed(self, point: np.ndarray) -> np.ndarray:
        """Full lambda (m,) with zeros at dependent monomials."""
        lam = np.zeros(len(self.family))
        lam[self.family.independent] = point
        return lam

    def cumulants(self, point: np.ndarray, order: int, tol: float):
        """Log-partition, mean and covariance of the independent monomials."""
        self.last = point
        found = self.family.evaluate(self.embed(point), order=order, tol=tol, verify=False)
        keep = self.family.independent
        covariance = None if found.covariance is None else found.covariance[np.ix_(keep, keep)]
        return found.log_partition, found.mean[keep], covariance

    def refuse_if_infeasible(self) -> None:
        """Raise with a verified separating direction if there is one (searched once).

        Raises
        ------
        InfeasibleMomentsError
            If there is one.
        """
        if self.searched:
            return
        self.searched = True
        certificate = separate(self.family, self.moments)
        if certificate is not None:
            raise InfeasibleMomentsError(certificate.sentence(self.family.monomials.names), certificate)

    def touches(self, point: np.ndarray, size: float) -> bool:
        """Whether the moments lie on the boundary in the direction of a large lambda (asked now and then).

        Raises
        ------
        InfeasibleMomentsError
            If they lie beyond it: lambda turns to the direction that separates them best.
        """
        if size < self.asked:
            return False
        self.asked = size * (SOON if size < 30 * LARGE else LATER)
        space, monomials = self.family.space, self.family.monomials
        scaled = np.abs(point * self.unit)
        kept = [scaled > 0.1 * scaled.max()]  # small entries of lambda may belong to a fit within the face
        if not kept[0].all():
            kept.append(np.ones_like(kept[0]))
        for entries in kept:
            direction = np.zeros(len(self.family))
            direction[self.family.independent] = np.where(entries, point, 0.0)
            value, unit = float(direction @ self.moments), float(np.abs(direction) @ self.family.scale)
            gap = support_function(space, monomials, direction, starts=24, steps=40)[0] - value
            if gap > CLOSE * unit:  # a short search finds too little: it is even further away
                continue
            gap = support_function(space, monomials, direction)[0] - value
            certificate = certify(space, monomials, direction, self.moments) if gap < 0 else None
            if certificate is not None:
                raise InfeasibleMomentsError(certificate.sentence(monomials.names), certificate)
            if gap < TOUCHING * unit:
                return True
        return False

    def newton(self, point: np.ndarray, limit: int, report) -> tuple[np.ndarray, int]:
        """Damped Newton on coarse rules until the decrement is small.

        Raises
        ------
        NotConvergedError
            If lambda grows without bound.
        """
        value, mean, covariance = self.cumulants(point, 2, COARSE)
        cost = value - point @ self.target
        for step in range(1, limit + 1):
            gradient = mean - self.target
            direction = -solve_scaled(covariance, gradient)
            decrement = float(np.sqrt(max(-gradient @ direction, 0.0)))
            report(min(step, limit), limit, f"Newton step {step}, decrement {decrement:.1e}")
            if decrement < max(1e-5, self._floor(point, covariance)):
                return point, step
            size = np.abs(point * self.unit).max()
            if size > RUNAWAY or (size > LARGE and self.touches(point, size)):
                raise NotConvergedError(
                    "maximum-entropy fit: lambda grows without bound, so the moments lie on the boundary of "
                    "the moment body (a measure on a face has them)"
                )
            length = min(1.0, 2.0 / decrement)
            while True:
                trial = point + length * direction
                value, mean, covariance = self.cumulants(trial, 2, COARSE)
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
            if not np.isfinite(x).all():  # pymanopt divides by an exactly vanishing residual: no step
                return np.inf
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
        with np.errstate(divide="ignore", invalid="ignore"):
            outcome = optimizer.run(problem, initial_point=point, Delta0=min(4.0, manifold.typical_dist))
        return outcome.point, int(outcome.iterations)

    def polish(self, point: np.ndarray, steps: int, method: str, *, exhausted: bool) -> MaxEntFit:
        """Newton on fine rules until only rounding is left, then judged by a second rule.

        Where the Fisher information is cheap it follows every step: a mode of tiny probability may rule it,
        and then only a path of small steps leaves that mode behind. Elsewhere it stays as it was found.
        """
        keep = self.family.independent
        information, cheap = self.information(point)
        best, judge, errors = None, False, []
        for _ in range(MANY if cheap else FEW):
            growth, extra = SECOND if judge else (1.0, 0)
            found = self.family.evaluate(
                self.embed(point), order=1 + cheap, tol=FINE, growth=growth, extra=extra, verify=judge
            )
            information = found.covariance if cheap else information
            covariance = information[np.ix_(keep, keep)]
            gradient = found.mean[keep] - self.target
            direction = -solve_scaled(covariance, gradient)
            decrement = float(np.sqrt(max(-gradient @ direction, 0.0)))
            stalled = len(errors) > 2 and decrement > 0.9 * min(errors[-3:])
            errors.append(decrement)
            if judge and (best is None or decrement < best[0]):
                best = (decrement, point, found, information)
            done = decrement <= self._floor(point, covariance)
            if judge and (done or stalled):
                break
            if not judge and (done or stalled):
                judge, errors = True, []
                continue
            point = point + direction * min(1.0, 1 / max(decrement, 1e-300))
        if best is None:
            found = self.family.evaluate(self.embed(point), tol=FINE, growth=SECOND[0], extra=SECOND[1])
            best = (decrement, point, found, information)
        return self.judged(*best, steps, method, exhausted=exhausted)

    def information(self, point: np.ndarray) -> tuple[np.ndarray, bool]:
        """Fisher information (m, m), and whether fine rules of it are cheap.

        It is computed on fine rules if they are, or if its inverse needs them.
        """
        lam, keep = self.embed(point), self.family.independent
        found = self.family.evaluate(lam, order=2, tol=COARSE, verify=False)
        nodes = sum(np.prod(s, dtype=float) for s in found.marginals)
        condition = np.linalg.cond(_correlation(found.covariance[np.ix_(keep, keep)])[0])
        if nodes < CHEAP or condition > 1 / COARSE:
            found = self.family.evaluate(lam, order=2, tol=FINE, verify=False)
        return found.covariance, nodes < CHEAP

    def judged(
        self, decrement: float, point: np.ndarray, found: Cumulants, information: np.ndarray, steps: int,
        method: str, *, exhausted: bool,
    ) -> MaxEntFit:  # fmt: skip
        """The fit with its errors: the moments are known to ``miss``, and everything follows from that.

        ``d lambda = Cov^-1 d rho``, ``d A = rho . d lambda``; the dual value ``A - lambda . rho`` is the
        entropy up to second order, since it is smallest at the solution.
        """
        family, keep = self.family, self.family.independent
        covariance = information[np.ix_(keep, keep)]
        correlation, deviation = _correlation(covariance)
        values, vectors = np.linalg.eigh(correlation)
        inverse = (vectors / values.clip(min=BLIND * values[-1])) @ vectors.T / np.outer(deviation, deviation)
        off = np.abs(found.mean - self.moments) + found.errors.mean(np.diag(information))
        miss = off[keep]
        away = float(np.sqrt(miss @ np.abs(inverse) @ miss))
        bend = self._bend(point, covariance, inverse, miss, found.errors.ranges[keep])
        lambda_error = np.zeros(len(family))
        lambda_error[keep] = bend * np.abs(inverse) @ miss
        rounding = 4 * np.finfo(float).eps * float(np.abs(point) @ np.abs(self.target))
        lam = self.embed(point)
        moment_error = float(np.max(off / family.scale))
        known = found.errors.mean(np.diag(information))[keep]
        noise = max(float(np.sqrt(known @ np.abs(inverse) @ known)), self._floor(point, covariance))
        converged = decrement <= max(4 * noise, MATCHED) and np.max(miss / self.unit) < 1e-7
        reason = Reason.CONVERGED
        if not converged:
            reason = Reason.ITERATIONS if exhausted else Reason.STALLED
        elif away > CERTAIN or bend > BENT or values[0] < BLIND * values[-1]:
            reason = Reason.UNDETERMINED
        log_error = found.errors.log_partition
        return MaxEntFit(
            family=family, moments=self.moments, lam=lam, log_partition=found.log_partition,
            entropy=found.log_partition - float(point @ self.target), moment_error=moment_error,
            fisher_rank=family.rank, condition=float(values[-1] / max(values[0], 1e-300)),
            fisher_information=information, converged=reason is Reason.CONVERGED, reason=reason,
            method=method, lambda_error=lambda_error,
            log_partition_error=log_error + bend * float(np.abs(self.target @ inverse) @ miss),
            entropy_error=log_error + rounding + bend * away**2 / 2,
            diagnostics={
                "newton_decrement": decrement, "steps": steps,
                "nodes": [list(map(int, s)) for s in found.marginals],
                "dependent": [d.sentence for d in family.dependencies],
                "lambda_error": float(lambda_error.max()),
            },
        )  # fmt: skip

    def _bend(self, point, covariance, inverse, miss, ranges) -> float:
        """By which factor the Fisher information may change within the error of lambda.

        Along u the third derivative of A is at most the range of ``u . r`` times the second: a bound
        if the error is small against the range of the monomials. Where it is not, the mass sits on a small
        part of that range: the variances on both sides say.
        """
        error = np.abs(inverse) @ miss
        width = 2 * float(error @ ranges)
        if width <= NARROW:
            return float(np.exp(width))
        worst = int(np.argmax(error / np.maximum(np.abs(point), 1e-300)))
        shift = inverse @ (np.sign(inverse[worst]) * miss)
        bend = 1.0
        for side in (point - shift, point + shift):
            other = np.diag(self.cumulants(side, 2, COARSE)[2])
            ratio = np.diag(covariance) / np.maximum(other, np.finfo(float).tiny)
            bend = max(bend, float(np.max(ratio)), float(np.max(1 / np.maximum(ratio, 1e-300))))
        self.last = point
        return bend

    def _floor(self, point: np.ndarray, covariance: np.ndarray) -> float:
        """What rounding leaves of the decrement."""
        noise = 4 * np.finfo(float).eps * (np.abs(self.target) + np.abs(point) @ np.sqrt(np.diag(covariance))
                                            * self.unit + self.unit)  # fmt: skip
        return float(np.sqrt(noise @ solve_scaled(covariance, noise)))


def _correlation(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A covariance scaled to unit diagonal, and the standard deviations."""
    deviation = np.sqrt(np.diag(covariance).clip(min=np.finfo(float).tiny))
    return covariance / np.outer(deviation, deviation), deviation


__all__ = ["TOUCHING", "MaxEntFit", "Reason", "fit"]
