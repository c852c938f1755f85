"""From risks to numbers with intervals: asymptotic range, slopes, n(eps), gains, quantiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.interpolate import PchipInterpolator

from analyses.studies.complexity.plan import SCHEDULE, CurvePlan

RESAMPLES = 1000
# The asymptotic range, chosen without looking at the theorem's exponent:
MAX_LOAD = 0.0125  # degrees of freedom per sample, above which unresolved signal acts as noise
MIN_RESOLVED = 4.0  # resolved over the target's first eigenvalue (twice its first frequency)
MIN_REACH = 25.0  # the target's cutoff over the resolved eigenvalue (five times the frequency)


@dataclass(frozen=True)
class Estimate:
    """A number with a 95 % bootstrap interval (over designs).

    Attributes
    ----------
    value, low, high : float
    """

    value: float
    low: float
    high: float

    @property
    def ci(self) -> list[float]:
        """[low, high]."""
        return [self.low, self.high]

    def covers(self, number: float) -> bool:
        """Whether the interval holds a number."""
        return self.low <= number <= self.high


def scheduled_risk(study: xr.Dataset) -> np.ndarray:
    """Excess risk of each design at the theorem's ridge, mean over the noise, (groups, sizes, trials)."""
    chosen = study.isel(multiplier=SCHEDULE)
    return (chosen.squared_bias + chosen.noise_variance).values


def oracle_risk(study: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Smallest mean risk over the ridges and the multiplier that reaches it, (groups, sizes) each."""
    mean = (study.squared_bias + study.noise_variance).mean("trial")
    return mean.min("multiplier").values, study.multiplier.values[mean.argmin("multiplier").values]


def asymptotic_range(plan: CurvePlan, study: xr.Dataset) -> np.ndarray:
    """Points where the exponent means something, bool (groups, sizes).

    Three conditions, none of which uses the theorem's exponent: few degrees of freedom per sample
    (else unresolved signal acts as noise and slopes are near -1), several shells of the target
    resolved, and the target's own cutoff still far away.
    """
    resolved = study.resolved.values
    load = study.degrees_of_freedom.values / study.samples.values
    if plan.target.band is not None:
        return (load <= MAX_LOAD) & (resolved >= MIN_RESOLVED * plan.target.band)
    enough = (resolved >= MIN_RESOLVED * plan.target.first) & (resolved * MIN_REACH <= plan.target.cutoff)
    return (load <= MAX_LOAD) & enough


def comparable_range(plan: CurvePlan, study: xr.Dataset) -> np.ndarray:
    """Points where gains are compared: a wider range, for equal errors of two groups cancel in a ratio."""
    load = study.degrees_of_freedom.values / study.samples.values
    return (load <= 4 * MAX_LOAD) & (study.resolved.values >= MIN_RESOLVED / 2 * plan.target.first)


def nyquist_sizes(plan: CurvePlan) -> np.ndarray:
    """Number of H-invariant functions that span 99 % of the target's energy, (groups,)."""
    edge = plan.target.nyquist()
    return np.array([forecast.count(edge) for forecast in plan.forecasts])


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], trials: int, *, seed: int, resamples: int = RESAMPLES
) -> list[Estimate]:
    """Value and 95 % percentile interval of a vector statistic of resampled trial indices.

    Parameters
    ----------
    statistic : callable
        Maps trial indices, shape (trials,), to a vector; NaN entries are left out of the intervals.
    trials : int
    seed : int
    resamples : int

    Returns
    -------
    list of Estimate
    """
    rng = np.random.default_rng(seed)
    value = np.atleast_1d(statistic(np.arange(trials)))
    table = np.stack([np.atleast_1d(statistic(rng.integers(trials, size=trials))) for _ in range(resamples)])
    low, high = np.full((2, len(value)), np.nan)
    known = np.isfinite(table).any(axis=0)
    if known.any():
        low[known], high[known] = np.nanpercentile(table[:, known], [2.5, 97.5], axis=0)
    return [Estimate(*map(float, row)) for row in zip(value, low, high, strict=True)]


def log_slope(samples: np.ndarray, risks: np.ndarray) -> float:
    """Least-squares slope of log risk against log n."""
    return float(np.polyfit(np.log(samples), np.log(risks), 1)[0])


def slope(samples: np.ndarray, risks: np.ndarray, *, seed: int) -> Estimate:
    """Slope of the mean risk with its interval.

    Parameters
    ----------
    samples : ndarray, shape (sizes,)
    risks : ndarray, shape (sizes, trials)
    seed : int

    Returns
    -------
    Estimate
    """
    return bootstrap(lambda t: log_slope(samples, risks[:, t].mean(axis=1)), risks.shape[1], seed=seed)[0]


def corrected_slope(samples: np.ndarray, risks: np.ndarray, *, noise: float, seed: int) -> Estimate:
    """Slope against ``n sigma^2 / (sigma^2 + risk)``: signal not yet learned acts as more noise.

    The theorem's first term has sigma^2 / n; at finite n the fit meets sigma^2 + risk instead, which
    makes plain slopes too steep by a share of about risk / sigma^2. No parameter is fitted.
    """

    def fit(t: np.ndarray) -> float:
        mean = risks[:, t].mean(axis=1)
        return log_slope(samples * noise**2 / (noise**2 + mean), mean)

    return bootstrap(fit, risks.shape[1], seed=seed)[0]


def curvature(samples: np.ndarray, risks: np.ndarray, *, seed: int) -> Estimate:
    """Second derivative of log risk in log n over the same points; compatible with 0 on a power law."""
    x = np.log(samples) - np.log(samples).mean()
    return bootstrap(
        lambda t: 2 * np.polyfit(x, np.log(risks[:, t].mean(axis=1)), 2)[0], risks.shape[1], seed=seed
    )[0]


def size_at(samples: np.ndarray, risks: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """n(eps): where a monotone log-log interpolation of the risk reaches eps; NaN outside the grid.

    Parameters
    ----------
    samples, risks : ndarray, shape (sizes,)
    levels : ndarray
        eps values.

    Returns
    -------
    ndarray, shape of levels
    """
    falling = np.minimum.accumulate(risks)
    keep = np.concatenate([[True], np.diff(falling) < 0])
    x, y = -np.log(falling[keep]), np.log(samples[keep])
    if len(x) < 2:
        return np.full(np.shape(levels), np.nan)
    return np.exp(PchipInterpolator(x, y, extrapolate=False)(-np.log(levels)))


def common_levels(risks: np.ndarray, valid: np.ndarray, count: int = 6) -> np.ndarray:
    """Eps values that every group reaches within its valid points, descending; empty if none.

    Parameters
    ----------
    risks : ndarray, shape (groups, sizes)
        Mean risks.
    valid : ndarray of bool, shape (groups, sizes)
    count : int

    Returns
    -------
    ndarray
    """
    if not valid.any(axis=1).all():
        return np.empty(0)
    top = min(row[ok].max() for row, ok in zip(risks, valid, strict=True))
    bottom = max(row[ok].min() for row, ok in zip(risks, valid, strict=True))
    # A hair inside, so that resampled curves still reach the ends.
    return np.geomspace(top * 0.97, bottom * 1.03, count) if top * 0.97 > bottom * 1.03 else np.empty(0)


def gains(samples: np.ndarray, risks: np.ndarray, levels: np.ndarray, *, seed: int) -> list[list[Estimate]]:
    """n_1(eps) / n_H(eps) for every group H, and its geometric mean over the levels in the last place.

    Parameters
    ----------
    samples : ndarray, shape (groups, sizes)
    risks : ndarray, shape (groups, sizes, trials)
    levels : ndarray, shape (L,)
    seed : int

    Returns
    -------
    list of list of Estimate, shape (groups, L + 1)
    """

    def ratios(t: np.ndarray) -> np.ndarray:
        sizes = [size_at(n, r[:, t].mean(axis=1), levels) for n, r in zip(samples, risks, strict=True)]
        ratio = sizes[0] / np.array(sizes)
        return np.concatenate([ratio, np.exp(np.log(ratio).mean(axis=1, keepdims=True))], axis=1).ravel()

    flat = bootstrap(ratios, risks.shape[2], seed=seed)
    width = len(levels) + 1
    return [flat[i : i + width] for i in range(0, len(flat), width)]


def quantiles(study: xr.Dataset, delta: float) -> np.ndarray:
    """(1 - delta)-quantile of the excess risk over designs and noise, (groups, sizes)."""
    noisy = study.noisy_risk.values
    return np.quantile(noisy.reshape(*noisy.shape[:2], -1), 1 - delta, axis=-1)
