"""Bridge sampling: ratios of partition functions from chains at neighbouring temperatures."""

from __future__ import annotations

import numpy as np
from scipy.special import expit


def ladder_ratio(energies: np.ndarray, steps: np.ndarray) -> tuple[float, np.ndarray]:
    """``log Z(1) - log Z(0)`` along a ladder of inverse temperatures, and each column's influence on it.

    Bennett's ratio F solves ``sum expit(step E_low - F) = sum expit(F - step E_high)``; differentiating it
    gives by how much the sample of one column moves it.

    Parameters
    ----------
    energies : ndarray, shape (sweeps, temperatures, columns)
        ``lambda . r`` of the chain at each temperature.
    steps : ndarray, shape (temperatures - 1,)
        Differences of the inverse temperatures.

    Returns
    -------
    float, ndarray of shape (columns,)
    """
    total, influence = 0.0, np.zeros(energies.shape[2])
    for rung, step in enumerate(steps):
        low, high = step * energies[:, rung], step * energies[:, rung + 1]
        ratio = _bridge(low, high)
        up, down = expit(low - ratio), expit(ratio - high)
        slope = (up * (1 - up)).sum() / up.sum() + (down * (1 - down)).sum() / down.sum()
        influence += (up.sum(0) / up.sum() - down.sum(0) / down.sum()) / slope
        total += ratio
    return float(total), influence


def _bridge(low: np.ndarray, high: np.ndarray) -> float:
    """``log Z(high) - log Z(low)`` (in beta) from log density ratios (Bennett's method)."""
    ratio = 0.0
    for _ in range(60):
        up = np.logaddexp.reduce(-np.logaddexp(0, ratio - low), axis=None)
        down = np.logaddexp.reduce(-np.logaddexp(0, high - ratio), axis=None)
        change = up - down
        ratio += change
        if abs(change) < 1e-12:
            break
    return float(ratio)
