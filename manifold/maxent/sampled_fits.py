"""Maximum-entropy fits where only sampling reaches: natural gradient with persistent tempered chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from manifold.errors import InfeasibleMomentsError, InputError, NotConvergedError
from manifold.maxent.moment_body import certify
from manifold.monomials import Monomials
from manifold.sampling.tempered_hmc import RHAT_LIMIT, Samples, TemperedSampler
from manifold.spaces.embedded import Space

UNTEMPERED = 4  # chains at beta = 1 per column of the ladder
FAR = 0.15  # standard deviations of the moments at which the approach ends
REACH = 0.5  # standard deviations over which one run's samples may be reweighted
SHARE = 0.5  # of the samples that must count after reweighting
STUCK = 1.5  # a split R-hat that longer runs of the same chains will not mend


@dataclass(frozen=True, eq=False)
class SampledFit:
    """A maximum-entropy fit by sampling.

    Attributes
    ----------
    lam : ndarray, shape (m,)
    moments : ndarray, shape (m,)
    samples : Samples
        Of the last run, reweighted to ``lam``, with the log-partition there by the tempered ladder.
    lambda_error : ndarray, shape (m,)
        Monte-Carlo standard error of lambda, from the spread of independent columns.
    moment_error : float
        Largest ``|E r - rho|`` that three Monte-Carlo standard errors leave possible, in standard deviations
        of r under the fitted measure.
    shift_error : float
        Standard error of ``lambda . rho``.
    """

    lam: np.ndarray
    moments: np.ndarray
    samples: Samples
    lambda_error: np.ndarray
    moment_error: float
    shift_error: float

    @property
    def entropy(self) -> float:
        """``log Z - lambda . rho``, nats, against the uniform probability measure.

        The dual is smallest at the solution: the error of lambda enters in second order only.
        """
        return self.samples.log_partition - float(self.lam @ self.moments)

    @property
    def entropy_error(self) -> float:
        """Standard error of the entropy: that of the ladder at the fitted lambda."""
        return self.samples.log_partition_error

    @property
    def log_partition_error(self) -> float:
        """Standard error of ``log Z`` of the measure that has the moments: ladder and lambda."""
        return float(np.hypot(self.samples.log_partition_error, self.shift_error))


def fit_by_sampling(
    space: Space, monomials: Monomials, moments: np.ndarray, *, columns: int = 64, seed: int = 0,
    rounds: int = 24, sweeps: int = 12, doublings: int = 8, tol: float = 0.02, device: str = "cpu",
    report: Callable | None = None,
) -> SampledFit:  # fmt: skip
    """Natural gradient with tempered chains, then averaged iterates with persistent ones.

    The averaging runs chains at ``beta = 1`` alone where these mix on their own and a tempered run agrees
    with them, otherwise tempered columns.

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
    InfeasibleMomentsError
        If the direction of lambda separates the moments from those of all measures.
    NotConvergedError
        If chains do not mix (R-hat of some monomial above `RHAT_LIMIT`) or the aimed error is missed; carries
        the fit as ``partial``.
    """
    moments = np.asarray(moments, float)
    if moments.shape != (len(monomials),) or not np.isfinite(moments).all():
        raise InputError(f"moments: expected {len(monomials)} finite numbers, got {moments.tolist()}")
    sampler = TemperedSampler(space, monomials, columns=columns, seed=seed, device=device)
    _check_independent(sampler, monomials)
    steps = rounds + 2 * doublings

    def tell(step: int, message: str) -> None:
        if report is not None:
            report(step, steps, message)

    try:
        lam = _approach(sampler, moments, rounds, sweeps, tell)
    except np.linalg.LinAlgError as error:
        raise NotConvergedError(
            "sampler: all chains sit where a monomial is constant: these moments are on the boundary or too "
            "near to it"
        ) from error
    _refuse_infeasible(space, monomials, moments, lam)
    sampler.prepare(lam, particles=UNTEMPERED * columns)
    average = _Averaging(moments, tol, doublings, tell)
    fit = average.run(sampler.untempered(UNTEMPERED * columns), lam, 6 * sweeps, rounds, patience=3)
    ladder = sampler.run(fit.lam, sweeps=8 * sweeps, warmup=4 * sweeps)
    if not (fit.samples.converged and _agree(fit, ladder)):
        fit = average.run(sampler, lam, 4 * sweeps, rounds + doublings, patience=doublings)
        ladder = sampler.run(fit.lam, sweeps=8 * sweeps)
    fit = replace(fit, samples=_joined(fit.samples, ladder))
    samples = fit.samples
    if not samples.converged:
        worst = int(samples.rhat.argmax())
        raise NotConvergedError(
            f"sampler: chains do not mix, split R-hat of {monomials.names[worst]} is "
            f"{samples.rhat[worst]:.3f} (limit {RHAT_LIMIT}); modes compete: raise the sweeps", fit
        )  # fmt: skip
    if fit.moment_error < tol:
        return fit
    raise NotConvergedError(
        f"sampler: moments known to {fit.moment_error:.3f} standard deviations only (aim {tol})", fit
    )


@dataclass(frozen=True)
class _Averaging:
    """Persistent chains at the averaged lambda, until every monomial mixes and the aimed error is met."""

    moments: np.ndarray
    tol: float
    doublings: int
    tell: Callable

    def run(
        self, sampler: TemperedSampler, lam: np.ndarray, length: int, done: int, *, patience: int
    ) -> SampledFit:
        """At most ``doublings`` runs, each up to twice as long; ``patience`` of them without mixing."""
        pool = _Pool(self.moments)
        for attempt in range(self.doublings):
            samples = sampler.run(lam, sweeps=length, warmup=0 if attempt else length)
            pool.add(lam, samples)
            fit = pool.fit(lam, samples)
            self.tell(
                done + 1 + attempt,
                f"moments within {fit.moment_error:.3f} standard deviations, R-hat {samples.rhat.max():.3f}",
            )
            met = samples.converged and fit.moment_error < self.tol
            stuck = attempt + 1 >= patience or samples.rhat.max() > STUCK
            if met or (patience < self.doublings and stuck and not samples.converged):
                break
            lam = pool.lam
            if not pool.weight:  # too far away to learn more than where to go
                continue
            missing = pool.weight * (1.15 * (fit.moment_error / self.tol) ** 2 - 1)  # errors fall as roots
            length = int(np.clip(missing, length, 2 * length)) if samples.converged else 2 * length
        return fit


def _agree(fit: SampledFit, ladder: Samples) -> bool:
    """Whether tempered chains, which travel between modes, find the moments that the others match."""
    deviation = np.sqrt(np.diag(fit.samples.covariance))
    error = np.hypot(ladder.standard_error, fit.moment_error / 3 * deviation)
    return bool((np.abs(ladder.mean - fit.moments) < 4.5 * error).all())


def _joined(samples: Samples, ladder: Samples) -> Samples:
    """Moments of chains without ladder, log-partition of the ladder at the same lambda."""
    return replace(
        samples, log_partition=ladder.log_partition, log_partition_error=ladder.log_partition_error,
        betas=ladder.betas, swap_rate=ladder.swap_rate,
    )  # fmt: skip


def _refuse_infeasible(space: Space, monomials: Monomials, moments: np.ndarray, lam: np.ndarray) -> None:
    """Moments that no measure has drive lambda in a direction that separates them.

    Raises
    ------
    InfeasibleMomentsError
        With that direction.
    """
    if not np.abs(lam).max() > 0:
        return
    certificate = certify(space, monomials, lam, moments)
    if certificate is not None:
        raise InfeasibleMomentsError(certificate.sentence(monomials.names), certificate)


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
    """Damped natural-gradient steps with fresh chains, longer ones as their noise hides the residual.

    The dual is convex, so along a step its slope, the residual in that direction, can only fall: a step
    on which it turns round by more than half is shortened. Moments jump where modes compete; that keeps
    lambda on the side where all of them are seen.

    Raises
    ------
    InfeasibleMomentsError
        If lambda runs away in a direction that separates the moments.
    NotConvergedError
        If it runs to densities too concentrated for the sampler.
    """
    uniform = sampler.form.values(
        sampler.space.uniform(20000, generator=sampler.generator).to(sampler.device)
    )
    uniform = uniform.cpu().numpy()
    mean, covariance, effective = uniform.mean(0), np.atleast_2d(np.cov(uniform.T)), len(uniform)
    lam, gain, length = np.zeros(len(moments)), np.inf, sweeps
    for step in range(rounds):
        residual = moments - mean
        move = np.linalg.solve(covariance + 1e-9 * np.diag(np.diag(covariance)), residual)
        slope = float(residual @ move)
        size = float(np.sqrt(max(slope, 0)))
        tell(step + 1, f"natural gradient, residual {size:.2g} standard deviations")
        gain = min(1.0, 1.5 / max(size, 1e-300), 2 * gain)
        noise = np.sqrt(len(moments) / effective)
        if (size < 0.4 and noise < FAR) or gain < 1e-3:
            lam = lam + gain * move
            break
        if size < 4 * noise:
            length = min(2 * length, 32 * sweeps)
        while True:
            try:
                sampler.prepare(lam + gain * move)
            except NotConvergedError:  # too concentrated, which no measure with these moments may be
                _refuse_infeasible(sampler.space, sampler.monomials, moments, lam + gain * move)
                raise
            found = sampler.run(lam + gain * move, sweeps=length, warmup=sweeps)
            slack = 3 * float(np.linalg.norm(move * found.standard_error))
            if (moments - found.mean) @ move > -0.5 * slope - slack or gain < 1e-3:
                break
            gain /= 2
        lam = lam + gain * move
        mean, covariance, effective = found.mean, found.covariance, found.effective.min()
    sampler.prepare(lam)
    return lam


class _Pool:
    """Solutions of ``E r = rho`` by several runs, each reweighted on its own, averaged by their length.

    A run at ``lambda`` knows the moments at ``lambda + d`` by the weights ``exp(d . r)`` (not linear in d:
    a linear step is biased where the moments are skew). Every column carries its own influence on the
    solution through all runs, so that their spread is an honest error even if runs are correlated. Runs
    that start too far away (`REACH` standard deviations) only tell where to go.
    """

    def __init__(self, moments: np.ndarray):
        self.moments = moments
        self.weight, self.lam = 0.0, np.zeros(len(moments))
        self.influence = np.zeros((0, len(moments)))  # of each column on lambda
        self.pull = np.zeros((0, len(moments)))  # of each column on the moments

    def add(self, lam: np.ndarray, samples: Samples) -> None:
        residual = self.moments - samples.mean
        move = np.linalg.solve(samples.covariance, residual)
        size = float(np.sqrt(max(residual @ move, 0)))
        found = None
        if size**2 <= REACH**2 + 4 * len(lam) / samples.effective.min():
            found = _reweighted(samples.records, self.moments, move)
        if found is None:
            self.weight, self.lam = 0.0, lam + move * min(1.0, REACH / max(size, 1e-300))
            self.influence = np.full(samples.records.shape[1:], np.inf)
            self.pull = self.influence
            return
        new, total = float(samples.sweeps), self.weight + samples.sweeps
        if not self.weight:
            self.influence = self.pull = np.zeros(samples.records.shape[1:])
        self.lam = (self.weight * self.lam + new * (lam + found.shift)) / total
        self.influence = (self.weight * self.influence + new * found.influence) / total
        self.pull = (self.weight * self.pull + new * found.pull) / total
        self.weight = total

    def fit(self, lam: np.ndarray, samples: Samples) -> SampledFit:
        """The pooled lambda, with the last samples reweighted to it."""
        values = samples.records.reshape(-1, len(lam))
        weights = _weights(values, self.lam - lam)
        mean = weights @ values
        centred = values - mean
        covariance = (centred * weights[:, None]).T @ centred
        columns = len(self.pull)
        moved = replace(samples, mean=mean, covariance=covariance, records=samples.records[:0])
        if not self.weight:
            return SampledFit(self.lam, self.moments, moved, np.full(len(lam), np.inf), np.inf, np.inf)
        error = self.pull.std(0, ddof=1) / np.sqrt(columns) / np.sqrt(np.diag(covariance))
        return SampledFit(
            self.lam.copy(), self.moments, moved, self.influence.std(0, ddof=1) / np.sqrt(columns),
            3 * float(error.max()), float((self.influence @ self.moments).std(ddof=1) / np.sqrt(columns)),
        )  # fmt: skip


@dataclass(frozen=True)
class _Solution:
    """``shift`` with ``E r = rho`` after reweighting; influences of the columns, shape (columns, m)."""

    shift: np.ndarray
    influence: np.ndarray
    pull: np.ndarray


def _weights(values: np.ndarray, shift: np.ndarray) -> np.ndarray:
    exponents = values @ shift
    weights = np.exp(exponents - exponents.max())
    return weights / weights.sum()


def _reweighted(records: np.ndarray, moments: np.ndarray, shift: np.ndarray) -> _Solution | None:
    """The shift of lambda at which weighted samples have the moments, by Newton; None if out of reach."""
    sweeps, columns, m = records.shape
    values = records.reshape(-1, m)
    for _ in range(50):
        weights = _weights(values, shift)
        if 1 / (len(values) * (weights**2).sum()) < SHARE:
            return None
        mean = weights @ values
        covariance = ((values - mean) * weights[:, None]).T @ (values - mean)
        step = np.linalg.solve(covariance, moments - mean)
        size = float(np.sqrt(max((moments - mean) @ step, 0.0)))
        if not np.isfinite(size):
            return None
        shift = shift + step * min(1.0, REACH / max(size, 1e-300))
        if size < 1e-9:
            break
    weights = _weights(values, shift)
    if size > 1e-6:
        return None
    pull = columns * (weights[:, None] * (values - moments)).reshape(sweeps, columns, m).sum(0)
    return _Solution(shift, -np.linalg.solve(covariance, pull.T).T, pull)
