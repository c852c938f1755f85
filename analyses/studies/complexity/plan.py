"""What a sample-complexity study will do: groups, sizes, ridge schedule and truncations, all checked."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import minimize_scalar

from analyses.studies.complexity.forecast import Forecast, Target
from manifold.errors import InputError
from manifold.groups.actions import GroupAction
from manifold.groups.named import named_action
from manifold.invariants.kernel_ridge import check_sobolev
from manifold.invariants.weyl import invariant_spectrum, weyl_main
from manifold.spaces.homogeneous import SpectralSpace

MULTIPLIERS = np.geomspace(1 / 32, 32, 31)
MOST_SAMPLES = 10**12  # times the order of a group it is still a number that tables hold
SCHEDULE = len(MULTIPLIERS) // 2  # index of the multiplier 1, the theorem's own schedule


@dataclass(frozen=True)
class CurvePlan:
    """One set of learning curves: the groups of a chain learning the same target.

    Attributes
    ----------
    actions : tuple of GroupAction
        The chain; the target is invariant under the last.
    s, theta, noise : float
        Sobolev exponent, source exponent of the schedule, standard deviation sigma of the noise.
    samples : ndarray of int, shape (groups, sizes)
    target : Target
    constant : float
        C in the ridge schedule ``eta = C (sigma^2 vol(M/G) / n)^{s/(theta s + d'/2)}``, one for all.
    trials, draws : int
        Independent designs, and noise vectors per design.
    seed : int
    forecasts : tuple of Forecast
    cutoffs : ndarray, shape (groups, sizes)
        Kernel truncation: largest Laplace eigenvalue used.
    truncation_error : ndarray, shape (groups, sizes)
        Relative change of the predicted risk caused by it.
    """

    actions: tuple[GroupAction, ...]
    s: float
    theta: float
    noise: float
    samples: np.ndarray
    target: Target
    constant: float
    trials: int
    draws: int
    seed: int
    forecasts: tuple[Forecast, ...] = field(repr=False)
    cutoffs: np.ndarray = None
    truncation_error: np.ndarray = None

    def ridge(self, group: int, samples: int) -> float:
        """The theorem's ridge for one group and sample size (sigma = 1 stands in when noiseless)."""
        return self.constant * ridge_schedule(self.actions[group], self.s, self.theta, self.noise, samples)

    def exponent(self, group: int) -> float:
        """The theorem's exponent of the risk in n: ``-theta s / (theta s + d'/2)``."""
        return -self.theta * self.s / (self.theta * self.s + self.actions[group].quotient_dim / 2)

    def functions(self, group: int, size: int) -> int:
        """Number of eigenfunctions used at one point."""
        return self.forecasts[group].count(self.cutoffs[group, size])

    def digest(self) -> str:
        """A key of everything that fixes the results."""
        parts = {
            "groups": [(a.space.name, a.name, a.order, a.quotient_volume) for a in self.actions],
            "numbers": [self.s, self.theta, self.noise, self.constant, self.trials, self.draws, self.seed],
            "samples": self.samples.tolist(),
            "cutoffs": self.cutoffs.tolist(),
            "target": [self.target.smoothness, self.target.cutoff, self.target.band],
        }
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def ridge_schedule(action: GroupAction, s: float, theta: float, noise: float, samples: int) -> float:
    """``(sigma^2 vol(M/G) / n)^{s/(theta s + d'/2)}``, the ridge that balances bias and variance."""
    power = s / (theta * s + action.quotient_dim / 2)
    return ((noise**2 or 1.0) * action.quotient_volume / samples) ** power


def make_plan(
    space: SpectralSpace,
    groups: list[str | GroupAction],
    *,
    samples: list[int],
    s: float | None = None,
    kappa: float | None = None,
    theta: float = 1.0,
    noise: float = 1.0,
    trials: int = 100,
    draws: int = 50,
    seed: int = 0,
    accuracy: float = 2e-3,
    max_functions: int = 3000,
    cutoff: float | None = None,
    band: float | None = None,
    smoothness: float | None = None,
    saturated: bool = False,
    same_samples: bool = False,
    diagnostic: bool = False,
) -> CurvePlan:
    """Check the arguments, choose schedule constant and truncations, and predict every point.

    Parameters
    ----------
    space : SpectralSpace
    groups : list of str or GroupAction
        A chain of subgroups, smallest first.
    samples : list of int
        Sample sizes of the last group. Other finite groups get ``n |G| / |H|`` (equal n |H|), infinite
        chains the same sizes.
    s, kappa : float, optional
        One of them; ``s = (1 + kappa) d'/2`` with d' of the last group. Default kappa = 1, but never
        below 1.5 times the least s for which every kernel of the chain exists.
    theta, noise : float
        Source exponent in (0, 1]; sigma >= 0.
    trials, draws, seed : int
    accuracy : float
        Largest relative change of the predicted risk that the kernel truncation may cause.
    max_functions : int
        Largest number of eigenfunctions.
    cutoff : float, optional
        Kernel truncation by hand.
    band : float, optional
        Band-limited target instead of a power law.
    smoothness : float, optional
        Energy decay of the target if not theta s.
    saturated : bool
        The schedule of saturated ridge regression (theta = 2), for smoother targets.
    same_samples : bool
        The same sizes for every group.
    diagnostic : bool
        Allow s <= d'/2, where the kernel exists only truncated, and any truncation.

    Returns
    -------
    CurvePlan

    Raises
    ------
    InputError
        If an argument makes no sense, or the truncation cannot reach the accuracy.
    """
    actions = tuple(g if isinstance(g, GroupAction) else named_action(space, g) for g in groups)
    if not actions:
        raise InputError("chain: expected at least one group")
    _check_numbers(theta, noise, samples, trials, draws)
    s = _sobolev_exponent(actions, s, kappa, diagnostic)
    schedule_theta = 2.0 if saturated else theta
    finite = all(a.order for a in actions) and not same_samples
    ratios = [_index(a, actions[-1]) if finite else 1 for a in actions]
    table = np.outer(ratios, samples).astype(int)
    target, constant = _target_and_constant(
        actions, s, smoothness or theta * s, band, noise=noise, theta=schedule_theta, table=table
    )
    forecasts = tuple(Forecast(a, target, s, noise) for a in actions)
    plan = CurvePlan(
        actions, s, schedule_theta, noise, table, target, constant, trials, draws, seed, forecasts
    )
    if cutoff is None:
        return _with_cutoffs(plan, accuracy, max_functions)
    plan = replace(plan, cutoffs=np.full(table.shape, float(cutoff)))
    return _checked(plan, math.inf if diagnostic else accuracy, max_functions)


def _check_numbers(theta: float, noise: float, samples: list[int], trials: int, draws: int) -> None:
    if not 0 < theta <= 1:
        raise InputError(f"theta: expected a number in (0, 1], got {theta:g}")
    if not (math.isfinite(noise) and noise >= 0):
        raise InputError(f"noise: expected sigma >= 0, got {noise}")
    if not len(samples) or min(samples) < 1 or max(samples) > MOST_SAMPLES:
        raise InputError(
            f"n-grid: expected sample sizes from 1 to {MOST_SAMPLES:,}, for example 64,128,256; "
            f"got {str(list(samples))[:60]}"
        )
    if sorted(set(samples)) != list(samples):
        raise InputError(f"n-grid: expected increasing sample sizes, got {samples}")
    if trials < 2 or draws < 1:
        raise InputError(f"expected trials >= 2 and draws >= 1, got {trials} and {draws}")


def _index(small: GroupAction, large: GroupAction) -> int:
    if large.order % small.order:
        raise InputError(
            f"chain: {small.name} (order {small.order}) is not a subgroup of {large.name} (order "
            f"{large.order}); list subgroups of the last group, smallest first"
        )
    return large.order // small.order


def _sobolev_exponent(actions, s: float | None, kappa: float | None, diagnostic: bool) -> float:
    if s is not None and kappa is not None:
        raise InputError("s, kappa: give one of them; s = (1 + kappa) d'/2")
    if s is None:
        s = (1 + (1.0 if kappa is None else kappa)) * actions[-1].quotient_dim / 2
        if kappa is None:
            s = max(s, 1.5 * max(a.quotient_dim for a in actions) / 2)
    if not (math.isfinite(s) and s > 0):
        raise InputError(f"s: expected a positive number, got {s}")
    if not diagnostic:
        for action in actions:
            check_sobolev(action, s)
    return float(s)


def _target_and_constant(
    actions, s: float, smoothness: float, band: float | None, *, noise: float, theta: float, table: np.ndarray
) -> tuple[Target, float]:
    """The target, with a cutoff far above what the largest sample resolves, and the schedule's constant."""
    largest, samples = actions[-1], int(table[-1].max())
    least = max(16 * _first_eigenvalue(largest), 1.5 * (band or 0.0))
    reach = {1: 200.0, 2: 10.0}.get(largest.quotient_dim, 4.0)
    cutoff = max(least, 64.0)
    # The resolution depends on the constant and the constant on the target: three rounds settle both.
    for _ in range(3):
        target = Target(largest, smoothness, cutoff, band)
        constant = _best_constant(Forecast(largest, target, s, noise), theta, samples)
        resolved = max(
            Forecast(a, target, s, noise).resolved(
                int(n.max()), constant * ridge_schedule(a, s, theta, noise, int(n.max()))
            )
            for a, n in zip(actions, table, strict=True)
        )
        cutoff = reach**2 * resolved
        while weyl_main(largest, cutoff) > 6000:
            cutoff /= 1.1
        cutoff = float(max(cutoff, least)) if band is None else least
    target = Target(largest, smoothness, cutoff, band)
    return target, _best_constant(Forecast(largest, target, s, noise), theta, samples)


def _first_eigenvalue(action: GroupAction) -> float:
    """Smallest non-zero eigenvalue of an invariant eigenfunction."""
    cutoff = 4.0
    while (spectrum := invariant_spectrum(action, cutoff=cutoff)).max() == 0:
        cutoff *= 2
    return float(spectrum[spectrum > 0][0])


def _best_constant(forecast: Forecast, theta: float, samples: int) -> float:
    """C that minimises the predicted risk of the last group at its largest sample."""
    base = ridge_schedule(forecast.action, forecast.s, theta, forecast.noise, samples)
    if forecast.noise == 0:
        # Noiseless learning wants no ridge; this one only keeps the linear algebra regular.
        return 1e-12 / base
    found = minimize_scalar(
        lambda log_c: forecast.predict(samples, base * math.exp(log_c)).risk,
        bounds=(-12, 6),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return math.exp(found.x)


def _with_cutoffs(plan: CurvePlan, accuracy: float, max_functions: int) -> CurvePlan:
    """The smallest cutoffs, multiples of what each point resolves, that meet the accuracy."""
    cutoffs = np.zeros(plan.samples.shape)
    for (h, i), n in np.ndenumerate(plan.samples):
        forecast, ridge = plan.forecasts[h], plan.ridge(h, n)
        base = max(forecast.resolved(n, ridge), 4 * plan.target.first)
        # At four times the resolved eigenvalue the kernel is never the limit; climb from there.
        for factor in 1.2 ** np.arange(2, 40):
            cutoffs[h, i] = min(base * factor**2, forecast.finest)
            # The error may cross zero by chance: ask the next steps too.
            steps = [cutoffs[h, i] * more for more in (1.0, 1.2, 1.5)]
            good = all(forecast.truncation_error(n, ridge, step) <= accuracy for step in steps)
            if good or cutoffs[h, i] == forecast.finest:
                break
    return _checked(replace(plan, cutoffs=cutoffs), accuracy, max_functions)


def _checked(plan: CurvePlan, accuracy: float, max_functions: int) -> CurvePlan:
    errors = np.zeros(plan.samples.shape)
    for (h, i), n in np.ndenumerate(plan.samples):
        errors[h, i] = plan.forecasts[h].truncation_error(n, plan.ridge(h, n), plan.cutoffs[h, i])
    h, i = np.unravel_index(errors.argmax(), errors.shape)
    if errors[h, i] > accuracy:
        n, forecast, enough = plan.samples[h, i], plan.forecasts[h], plan.cutoffs[h, i]
        while forecast.truncation_error(n, plan.ridge(h, n), enough) > accuracy and enough < forecast.finest:
            enough *= 1.2
        raise InputError(
            f"truncation: cutoff {plan.cutoffs[h, i]:.4g} changes the risk of {plan.actions[h].name} at "
            f"n = {n} by {errors[h, i]:.2g}, more than the accuracy {accuracy:g}; "
            f"a cutoff of {enough:.4g} is enough"
        )
    for h, i in np.ndindex(*plan.samples.shape):
        if (count := plan.functions(h, i)) > max_functions and plan.samples[h, i] > max_functions:
            raise InputError(
                f"truncation: {plan.actions[h].name} at n = {plan.samples[h, i]} needs {count} functions for "
                f"a relative accuracy of {accuracy:g}, more than {max_functions}; give --max-functions "
                f"{count}, a coarser --accuracy, or smaller samples"
            )
    return replace(plan, truncation_error=errors)
