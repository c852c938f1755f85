"""Maximum-entropy fits where only sampling reaches: natural gradient with persistent tempered chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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
        At ``lam`` (mean and log-partition carried over from the last runs, ``lam`` away by less than
        their Monte-Carlo error).
    lambda_error : ndarray, shape (m,)
        Monte-Carlo standard error of lambda.
    moment_error : float
        Largest ``|E r - rho|`` that three Monte-Carlo standard errors leave possible, in standard deviations
        of r under the fitted measure.
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
    space: Space, monomials: Monomials, moments: np.ndarray, *, columns: int = 64, seed: int = 0,
    rounds: int = 24, sweeps: int = 12, doublings: int = 7, tol: float = 0.02, device: str = "cpu",
    report: Callable | None = None,
) -> SampledFit:  # fmt: skip
    """Natural gradient with tempered chains, then averaged iterates with persistent ones.

    Parameters
    ----------
    space : Space
    monomials : Monomials
        Affinely independent on the space.
    moments : array_like, shape (m,)
    columns, seed, device
        Of the sampler.
    rounds, sweeps : int
        Natural-gradient steps at most, and sweeps in each.
    doublings : int
        Runs of the averaging, each twice as long as the one before.
    tol : float
        Aimed moment error (three Monte-Carlo standard errors) in standard deviations.
    report : callable, optional

    Returns
    -------
    SampledFit

    Raises
    ------
    InputError
        If the number of moments is wrong or one is not finite.
    NotConvergedError
        If chains do not mix (R-hat of some monomial above `RHAT_LIMIT`) or the aimed error is missed; carries
        the fit as ``partial``.
    """
    moments = np.asarray(moments, float)
    if moments.shape != (len(monomials),) or not np.isfinite(moments).all():
        raise InputError(f"moments: expected {len(monomials)} finite numbers, got {moments.tolist()}")
    sampler = TemperedSampler(space, monomials, columns=columns, seed=seed, device=device)
    _check_independent(sampler, monomials)
    tell = report or (lambda done, total, message: None)
    lam = _approach(sampler, moments, rounds, sweeps, lambda step, text: tell(step, rounds + doublings, text))
    pool, length = _Pool(moments), 4 * sweeps
    for attempt in range(doublings):
        samples = sampler.run(lam, sweeps=length, warmup=0 if attempt else 4 * sweeps)
        pool.add(lam, samples)
        fit = pool.fit(lam, samples)
        tell(
            rounds + 1 + attempt, rounds + doublings,
            f"moments within {fit.moment_error:.3f} standard deviations, R-hat {samples.rhat.max():.3f}",
        )  # fmt: skip
        if samples.converged and fit.moment_error < tol:
            return fit
        lam = pool.lam
        missing = pool.weight * (1.15 * (fit.moment_error / tol) ** 2 - 1)  # errors fall with the root
        length = int(np.clip(missing, length // 4, 2 * length)) if samples.converged else 2 * length
    if not samples.converged:
        worst = int(samples.rhat.argmax())
        raise NotConvergedError(
            f"sampler: chains do not mix, split R-hat of {monomials.names[worst]} is "
            f"{samples.rhat[worst]:.3f} (limit {RHAT_LIMIT}); modes compete: raise the sweeps", fit
        )  # fmt: skip
    raise NotConvergedError(
        f"sampler: moments known to {fit.moment_error:.3f} standard deviations only (aim {tol})", fit
    )


def _check_independent(sampler: TemperedSampler, monomials: Monomials) -> None:
    """Refuse monomials that are constant on the space or affine combinations of others.

    Raises
    ------
    InputError
        Naming them.
    """
    points = sampler.space.uniform(20 * len(monomials) + 2000, generator=sampler.generator)
    values = sampler.form.values(points.to(sampler.device)).cpu().numpy()
    deviation = values.std(0)
    flat = deviation < 1e-12 * np.maximum(np.abs(values).max(0), 1e-300)
    if flat.any():
        names = ", ".join(monomials.names[i] for i in np.flatnonzero(flat))
        raise InputError(f"monomials: {names} constant on {sampler.space.name}; leave out")
    spectrum, vectors = np.linalg.eigh(np.atleast_2d(np.corrcoef(values.T)))
    if spectrum[0] < 1e-10:
        involved = np.flatnonzero(np.abs(vectors[:, 0]) > 1e-6)
        names = ", ".join(monomials.names[i] for i in involved)
        raise InputError(f"monomials: {names} are dependent on {sampler.space.name}; leave one out")


def _approach(
    sampler: TemperedSampler, moments: np.ndarray, rounds: int, sweeps: int, tell: Callable
) -> np.ndarray:
    """Damped natural-gradient steps with fresh chains until the Monte-Carlo noise hides the residual.

    A step that raises the dual ``log Z(lambda) - lambda . rho`` by more than its error is halved: moments
    can jump where modes compete.
    """
    uniform = sampler.form.values(
        sampler.space.uniform(20000, generator=sampler.generator).to(sampler.device)
    )
    uniform = uniform.cpu().numpy()
    mean, covariance, effective = uniform.mean(0), np.atleast_2d(np.cov(uniform.T)), len(uniform)
    lam, dual, gain = np.zeros(len(moments)), 0.0, np.inf
    for step in range(rounds):
        residual = moments - mean
        move = np.linalg.solve(covariance + 1e-9 * np.diag(np.diag(covariance)), residual)
        size = float(np.sqrt(max(residual @ move, 0)))
        tell(step + 1, f"natural gradient, residual {size:.2g} standard deviations")
        gain = min(1.0, 1.5 / max(size, 1e-300), 2 * gain)
        if size < max(0.4, 2 * np.sqrt(len(moments) / effective)) or gain < 1e-3:
            lam = lam + gain * move
            break
        while True:
            sampler.prepare(lam + gain * move)
            found = sampler.run(lam + gain * move, sweeps=sweeps, warmup=sweeps)
            value = found.log_partition - float((lam + gain * move) @ moments)
            if value < dual + 3 * found.log_partition_error or gain < 1e-3:
                break
            gain /= 2
        lam, dual = lam + gain * move, value
        mean, covariance, effective = found.mean, found.covariance, found.effective.min()
    sampler.prepare(lam)
    return lam


class _Pool:
    """Estimates ``lambda + Cov^{-1} (rho - E r)`` of several runs, averaged by their length.

    Runs that started too far away for the linear step (`FAR` standard deviations) are forgotten.
    """

    FAR = 0.15

    def __init__(self, moments: np.ndarray):
        self.moments = moments
        self.weight, self.lam = 0.0, np.zeros(len(moments))
        self.variance = np.zeros(len(moments))  # of the pooled moments

    def add(self, lam: np.ndarray, samples: Samples) -> None:
        residual = self.moments - samples.mean
        move = np.linalg.solve(samples.covariance, residual)
        if residual @ move > self.FAR**2 + 4 * len(lam) / samples.effective.min():
            self.weight = 0.0
        new, total = float(samples.sweeps), self.weight + samples.sweeps
        self.lam = (self.weight * self.lam + new * (lam + move)) / total
        self.variance = (self.weight**2 * self.variance + new**2 * samples.standard_error**2) / total**2
        self.weight = total

    def fit(self, lam: np.ndarray, samples: Samples) -> SampledFit:
        """The pooled lambda with the last samples carried over to it (second order in the small shift)."""
        shift = self.lam - lam
        turn = samples.covariance @ shift
        moved = replace(
            samples, mean=samples.mean + turn,
            log_partition=samples.log_partition + float(shift @ samples.mean + shift @ turn / 2),
        )  # fmt: skip
        deviation = np.sqrt(np.diag(samples.covariance))
        noise = np.linalg.solve(samples.covariance, np.diag(np.sqrt(self.variance)))
        error = 3 * float(np.max(np.sqrt(self.variance) / deviation))
        return SampledFit(self.lam.copy(), self.moments, moved, np.linalg.norm(noise, axis=1), error)
