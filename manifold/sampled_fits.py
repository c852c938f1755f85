"""Maximum-entropy fits where only sampling reaches: natural gradient with persistent tempered chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from manifold.errors import InputError, NotConvergedError
from manifold.monomials import Monomials
from manifold.sampling import RHAT_LIMIT, Samples, TemperedSampler
from manifold.spaces import Space


@dataclass(frozen=True, eq=False)
class SampledFit:
    """A maximum-entropy fit by sampling.

    Attributes
    ----------
    lam : ndarray, shape (m,)
    moments : ndarray, shape (m,)
    samples : Samples
        At ``lam``.
    lambda_error : ndarray, shape (m,)
        Monte-Carlo standard error of lambda.
    moment_error : float
        Largest ``|E r - rho|`` in standard deviations of r under the fitted measure.
    """

    lam: np.ndarray
    moments: np.ndarray
    samples: Samples
    lambda_error: np.ndarray
    moment_error: float

    @property
    def entropy(self) -> float:
        """``log Z - lambda . E r``, nats, against the uniform probability measure."""
        return self.samples.log_partition - float(self.lam @ self.samples.mean)


def fit_by_sampling(
    space: Space, monomials: Monomials, moments: np.ndarray, *, columns: int = 48, seed: int = 0,
    rounds: int = 24, sweeps: int = 12, tol: float = 0.02, device: str = "cpu",
    report: Callable | None = None,
) -> SampledFit:  # fmt: skip
    """Natural gradient with persistent tempered chains and averaged iterates.

    Parameters
    ----------
    space : Space
    monomials : Monomials
        Affinely independent on the space.
    moments : array_like, shape (m,)
    columns, seed, device
        Of the sampler.
    rounds, sweeps : int
        Natural-gradient rounds, and sweeps in each.
    tol : float
        Aimed moment error in standard deviations.
    report : callable, optional

    Returns
    -------
    SampledFit

    Raises
    ------
    InputError
        If the number of moments is wrong or one is not finite.
    NotConvergedError
        If chains do not mix (R-hat of some monomial above `RHAT_LIMIT`) or moments are missed; carries the
        fit as ``partial``.
    """
    moments = np.asarray(moments, float)
    if moments.shape != (len(monomials),) or not np.isfinite(moments).all():
        raise InputError(f"moments: expected {len(monomials)} finite numbers, got {moments.tolist()}")
    sampler = TemperedSampler(space, monomials, columns=columns, seed=seed, device=device)
    uniform = monomials.values(space.uniform(20000, generator=sampler.generator)).numpy()
    mean, covariance = uniform.mean(0), np.atleast_2d(np.cov(uniform.T))
    lam = np.zeros(len(moments))
    history: list[np.ndarray] = []
    settled = 0
    for step in range(rounds):
        residual = moments - mean
        move = np.linalg.solve(covariance + 1e-9 * np.diag(np.diag(covariance)), residual)
        size = float(np.sqrt(max(residual @ move, 0)))
        settled += size < 0.6
        gain = min(1.0, 1.5 / size) if settled < 3 else 1 / (settled - 1)
        lam = lam + gain * move
        if settled >= 3:
            history.append(lam.copy())
        if size > 0.6 or step == 0:  # far from the last lambda: a ladder of its own, chains from scratch
            sampler.prepare(lam)
            found = sampler.run(lam, sweeps=sweeps, warmup=12)
        else:
            found = sampler.run(lam, sweeps=sweeps * 2)
        mean, covariance = found.mean, found.covariance
        if report is not None:
            report(step + 1, rounds + 6, f"natural gradient, residual {size:.2g} standard deviations")
    if history:
        lam = np.mean(history[len(history) // 2 :], axis=0)
    length = 10 * sweeps
    for attempt in range(4):  # longer runs until they mix, each with one more natural-gradient correction
        samples = sampler.run(lam, sweeps=length, warmup=2 * sweeps)
        deviation = np.sqrt(np.diag(samples.covariance))
        error = float(np.max(np.abs(samples.mean - moments) / deviation))
        if report is not None:
            report(rounds + 1 + attempt, rounds + 6, f"moments within {error:.3f} standard deviations")
        if (samples.converged and error < tol) or attempt == 3:
            break
        if samples.converged:
            lam = lam + np.linalg.solve(samples.covariance, moments - samples.mean)
        length *= 2
    noise = np.linalg.solve(samples.covariance, np.diag(samples.standard_error))
    fit = SampledFit(lam, moments, samples, np.linalg.norm(noise, axis=1), error)
    if not samples.converged:
        worst = int(samples.rhat.argmax())
        raise NotConvergedError(
            f"sampler: chains do not mix, split R-hat of {monomials.names[worst]} is "
            f"{samples.rhat[worst]:.3f} (limit {RHAT_LIMIT}); modes compete: raise the sweeps", fit
        )  # fmt: skip
    if fit.moment_error > max(tol, 5 * float((samples.standard_error / deviation).max())):
        raise NotConvergedError(f"sampler: moments missed by {fit.moment_error:.3f} standard deviations", fit)
    return fit
