"""The density of a spectrum by stochastic Lanczos quadrature, without blocks, in float64.

For a random start v of signs, ``<v, f(L) v>`` has the mean ``tr f(L)``. k Lanczos steps from v give the Gauss
quadrature of its spectral measure: nodes (Ritz values) and weights, exact for polynomials up to degree
2k - 1. The step functions that count eigenvalues are no polynomials, but their error is bounded: with F the
distribution of the spectral measure, nodes t_i ascending and weights w_i (Chebyshev, Markov, Stieltjes),

    sum_{i < k} w_i <= F(t_k - 0) <= F(t_k) <= sum_{i <= k} w_i.

So every count has two errors, both reported: the standard error over the starts, and the interval that the
number of steps leaves open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal

from manifold.errors import InputError
from spectra.operators.variation import SymmetricOperator

PROBES = 8
STEPS = 100
DECADES = 6  # of the operator norm that a symmetric-logarithmic axis resolves
PER_DECADE = 5


@dataclass(frozen=True, eq=False)
class Cumulative:
    """Numbers of eigenvalues up to given values, with their errors.

    Parameters
    ----------
    thresholds : ndarray, shape (t,)
        Where the eigenvalues were counted: ``lambda <= threshold``.
    count : ndarray, shape (t,)
        Estimate, the mean over the starts; eigenvalues, so between 0 and N, not an integer.
    standard_error : ndarray, shape (t,)
        Over the starts, the largest of those of the count and of the two ends of the interval below.
    low, high : ndarray, shape (t,)
        What the Lanczos steps leave open: the mean over the starts lies between for certain.
    """

    thresholds: np.ndarray
    count: np.ndarray
    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """Quadratures of the spectral measures of random starts.

    Parameters
    ----------
    nodes : ndarray, shape (probes, steps)
        Ritz values of every start, ascending; Hessian sign, positive = contracting.
    weights : ndarray, shape (probes, steps)
        Their weights; each row adds up to one. Zero beyond an invariant space.
    dimension : int
        Dimension N of the space.
    matvecs : int
        Operator products spent.
    """

    nodes: np.ndarray
    weights: np.ndarray
    dimension: int
    matvecs: int

    @property
    def norm(self) -> float:
        """Largest absolute Ritz value: a lower bound of the operator norm."""
        return float(np.abs(self.nodes).max(initial=0.0))

    def cumulative(self, thresholds: np.ndarray) -> Cumulative:
        """Count the eigenvalues up to given values.

        Parameters
        ----------
        thresholds : array_like, shape (t,)

        Returns
        -------
        Cumulative
        """
        thresholds = np.asarray(thresholds, dtype=float)
        counts = np.stack([
            self._bracket(nodes, weights, thresholds)
            for nodes, weights in zip(self.nodes, self.weights, strict=True)
        ])  # fmt: skip
        low, count, high = self.dimension * counts.mean(0)
        spread = self.dimension * counts.std(0, ddof=1) / len(counts) ** 0.5
        return Cumulative(thresholds, count, spread.max(0), low, high)

    @staticmethod
    def _bracket(nodes: np.ndarray, weights: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """Lower bound, estimate and upper bound of F at the thresholds, shape (3, t)."""
        sums = np.concatenate([[0.0], np.cumsum(weights)])
        passed = np.searchsorted(nodes, thresholds, side="right")
        last = len(nodes)
        return np.stack([sums[np.maximum(passed - 1, 0)], sums[passed], sums[np.minimum(passed + 1, last)]])

    def moment(self, power: int) -> tuple[float, float]:
        """Estimate of ``tr L^power`` and its standard error; free of quadrature error up to 2 steps - 1.

        Parameters
        ----------
        power : int

        Returns
        -------
        estimate, standard_error : float
        """
        values = self.dimension * (self.weights * self.nodes**power).sum(1)
        return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)

    def edges(self) -> np.ndarray:
        """Bin edges that fit a symmetric-logarithmic axis: `PER_DECADE` to a decade, one bin around zero."""
        top = 1.0001 * self.norm if self.norm else 1.0  # the largest node lies inside
        positive = top * 10.0 ** (-np.arange(DECADES * PER_DECADE + 1)[::-1] / PER_DECADE)
        return np.concatenate([-positive[::-1], positive])


def spectral_density(
    operator: SymmetricOperator, *, probes: int = PROBES, steps: int = STEPS, seed: int = 0,
    progress: Callable[[float, float, str], None] | None = None,
) -> SpectralDensity:  # fmt: skip
    """Estimate the density of the spectrum from products alone.

    Parameters
    ----------
    operator : SymmetricOperator
    probes : int
        Random starts, at least two; the standard error falls like their root.
    steps : int
        Lanczos steps of each, with full reorthogonalisation; ``8 N steps`` bytes.
    seed : int
        Of the starts.
    progress : callable, optional
        Told starts done, starts in all, and the stage.

    Returns
    -------
    SpectralDensity

    Raises
    ------
    InputError
        For fewer than two probes or one step, an empty space, or if the operator gives NaN.
    """
    if probes < 2 or steps < 1 or operator.dimension < 1:
        raise InputError(
            f"density: expected at least 2 probes, 1 step and 1 dimension, got {probes}, {steps}, "
            f"{operator.dimension}"
        )
    rng = np.random.default_rng(seed)
    steps = min(steps, operator.dimension)
    nodes, weights = np.empty((probes, steps)), np.empty((probes, steps))
    for i in range(probes):
        start = rng.choice([-1.0, 1.0], size=operator.dimension)
        found, mass = _quadrature(operator, start, steps)
        nodes[i], weights[i] = found[-1], 0.0  # beyond an invariant space: no weight at the last node
        nodes[i, : len(found)], weights[i, : len(found)] = found, mass
        if progress is not None:
            progress(i + 1, probes, "spectral density")
    return SpectralDensity(nodes, weights, operator.dimension, operator.matvecs)


def _quadrature(operator: SymmetricOperator, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss nodes and weights of the spectral measure of a start vector, by Lanczos.

    Raises
    ------
    InputError
        If a product is not finite.
    """
    device = operator.device
    basis = torch.empty(steps, operator.dimension, dtype=torch.float64, device=device)  # rows: contiguous
    v = torch.as_tensor(start, device=device)
    basis[0] = v / v.norm()
    diagonal, off, largest = [], [], 0.0
    for k in range(steps):
        image = operator.apply(basis[k, :, None])[:, 0]
        diagonal.append(float(basis[k] @ image))
        size = float(image.norm())
        if not np.isfinite(size):
            raise InputError("operator: expected finite products, got NaN or infinity")
        largest = max(largest, size)
        for _ in range(2):  # twice is enough (Kahan)
            image = image - basis[: k + 1].T @ (basis[: k + 1] @ image)
        length = float(image.norm())
        if k + 1 == steps or length <= 1e-13 * largest:
            break
        off.append(length)
        basis[k + 1] = image / length
    nodes, vectors = eigh_tridiagonal(diagonal, off)
    return nodes, vectors[0] ** 2
