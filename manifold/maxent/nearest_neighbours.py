"""Entropy and intrinsic dimension of a particle measure from nearest-neighbour distances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, digamma

from manifold.errors import InputError
from manifold.spaces.embedded import Space, Sphere


@dataclass(frozen=True)
class EntropyEstimate:
    """A Kozachenko-Leonenko estimate.

    Attributes
    ----------
    value : float
        Differential entropy against the uniform probability measure, nats (``<= 0`` up to error); minus
        infinity when fewer than three distinct points are left.
    neighbours : int
        k.
    distinct : int
        Points left after duplicates were merged.
    effective : float
        ``1 / sum w^2``: how many equal weights would be as informative.
    standard_error : float
        Scatter of this sample, ``sqrt(sum w_j^2 (term_j - value)^2)``; NaN without a value.
    """

    value: float
    neighbours: int
    distinct: int
    effective: float
    standard_error: float


@dataclass(frozen=True)
class DimensionEstimate:
    """Intrinsic dimension from the ratio of second to first neighbour distances.

    Attributes
    ----------
    value, standard_error : float
        NaN when fewer than ten points carry 99 % of the weight.
    """

    value: float
    standard_error: float


def ball_share(space: Space, radius: np.ndarray) -> np.ndarray:
    """Share of the space in a ball: a geodesic cap on a sphere, a cube of angles on a torus (exact both).

    Parameters
    ----------
    space : Space
        A sphere, or a torus (product of circles).
    radius : ndarray
        Geodesic radius; on a torus the largest angle difference.

    Returns
    -------
    ndarray in [0, 1]

    Raises
    ------
    InputError
        For other spaces.
    """
    radius = np.asarray(radius, float)
    if _is_torus(space):
        return (np.minimum(radius, np.pi) / np.pi) ** space.dimension
    if not isinstance(space, Sphere):
        raise InputError(f"entropy: expected a sphere or a torus, got {space.name}")
    half = betainc(space.dimension / 2, 0.5, np.sin(radius) ** 2) / 2
    return np.where(radius <= np.pi / 2, half, 1 - half)


def _is_torus(space: Space) -> bool:
    return all(f == Sphere(1) for f in space.factors)


def distances(space: Space, points: np.ndarray) -> np.ndarray:
    """Pairwise distances that `ball_share` measures, shape (q, q)."""
    if _is_torus(space):
        angles = np.arctan2(points[:, 1::2], points[:, 0::2])
        gap = np.abs(angles[:, None] - angles[None, :])
        return np.minimum(gap, 2 * np.pi - gap).max(-1)
    chord = np.sqrt(np.maximum(((points[:, None] - points[None, :]) ** 2).sum(-1), 0))
    return 2 * np.arcsin(np.minimum(chord / 2, 1))


def merge_duplicates(
    space: Space, points: np.ndarray, weights: np.ndarray, *, radius: float = 1e-9
) -> tuple[np.ndarray, np.ndarray]:
    """Coinciding points become one with their joint weight; zero weights are dropped; total weight one."""
    keep = weights > 0
    points, weights = points[keep], weights[keep]
    close = distances(space, points) < radius
    first = close.argmax(1)
    chosen, index = np.unique(first, return_inverse=True)
    return points[chosen], np.bincount(index.ravel(), weights) / weights.sum()


def kozachenko_leonenko(
    space: Space, points: np.ndarray, weights: np.ndarray | None = None, *, neighbours: int | None = None
) -> EntropyEstimate:
    """Entropy of a density from weighted samples of it.

    ``sum_j w_j ( log V(r_j) - psi(k) + log k - log(m_j / (1 - w_j)) )`` with ``V`` the share of the space
    in the smallest ball around point j that holds the weight of k effective points (``k / n_eff``, without
    point j) and ``m_j`` the weight in it; for equal weights this is the classical
    ``log V - psi(k) + log(q - 1)``. Coinciding points count once, with their joint weight.

    Parameters
    ----------
    space : Space
        A sphere or torus.
    points : ndarray, shape (q, ambient)
    weights : ndarray, shape (q,), optional
    neighbours : int, optional
        k; default 1 below 1,000 effective points, 4 above.

    Returns
    -------
    EntropyEstimate
    """
    weights = np.ones(len(points)) if weights is None else np.asarray(weights, float)
    points, weights = merge_duplicates(space, np.asarray(points, float), weights)
    effective = float(1 / (weights**2).sum())
    k = neighbours or (1 if effective < 1000 else 4)
    if effective < k + 1.5:
        return EntropyEstimate(-math.inf, k, len(points), effective, math.nan)
    table = distances(space, points)
    np.fill_diagonal(table, np.inf)
    order = np.argsort(table, axis=1)[:, :-1]
    enclosed = np.cumsum(weights[order], axis=1)
    # The ball that holds the weight of k effective points: a light neighbour alone says nothing.
    reach = np.minimum((enclosed < (1 - 1e-9) * k / effective).sum(1), enclosed.shape[1] - 1)[:, None]
    radius = np.take_along_axis(np.take_along_axis(table, order, 1), reach, 1)[:, 0]
    mass = np.take_along_axis(enclosed, reach, 1)[:, 0]
    with np.errstate(divide="ignore"):
        local = np.log(ball_share(space, radius)) - digamma(k) + math.log(k) - np.log(mass / (1 - weights))
    value = float(weights @ local)
    error = float(np.sqrt((weights**2) @ (local - value) ** 2))
    return EntropyEstimate(value, k, len(points), effective, error)


def intrinsic_dimension(
    space: Space, points: np.ndarray, weights: np.ndarray | None = None
) -> DimensionEstimate:
    """Dimension by two nearest neighbours: ``P(r2/r1 > x) = x^-d``, maximum likelihood, weighted.

    Only the heaviest points that carry 99 % of the weight are used.
    """
    weights = np.ones(len(points)) if weights is None else np.asarray(weights, float)
    points, weights = merge_duplicates(space, np.asarray(points, float), weights)
    order = np.argsort(-weights)
    heavy = order[: int(np.searchsorted(np.cumsum(weights[order]), 0.99)) + 1]
    points, weights = points[heavy], weights[heavy] / weights[heavy].sum()
    effective = 1 / (weights**2).sum()
    if len(points) < 10 or effective < 5:
        return DimensionEstimate(math.nan, math.nan)
    table = distances(space, points)
    np.fill_diagonal(table, np.inf)
    nearest, second, *_ = np.partition(table, 1, axis=1).T
    value = float((effective - 1) / effective / (weights @ np.log(second / nearest)))
    return DimensionEstimate(value, value / math.sqrt(effective - 2))
