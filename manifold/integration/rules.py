"""Positive quadrature rules along one polar coordinate, and product rules on whole spaces."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.special import betaln, roots_jacobi

from manifold.errors import InputError
from manifold.integration.polar_terms import Axis
from manifold.spaces.embedded import Space, Sphere

Panels = tuple[tuple[float, float], ...]


@lru_cache(maxsize=512)
def global_rule(axis: Axis, nodes: int, half: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A spectral rule on the whole axis: trapezoid (phase), Gauss-Gegenbauer (single), Gauss-Jacobi (pair).

    Parameters
    ----------
    axis : Axis
    nodes : int
        Even; of the full axis.
    half : bool
        Keep only the upper half, weights doubled (for densities with the matching symmetry).

    Returns
    -------
    angles, weights : ndarray
        Weights are positive and sum to one.
    """
    if not axis.block:
        count = nodes // 2 if half else nodes
        return 2 * np.pi * (np.arange(count) + 0.5) / nodes, np.full(count, 1 / count)
    alpha = axis.rest / 2 - 1
    if axis.block == 1:
        t, weights = gauss_jacobi(nodes, alpha, alpha)
        angles = np.arcsin(t).astype(float)
        if half:
            angles, weights = angles[nodes // 2 :], weights[nodes // 2 :]
    else:
        t, weights = gauss_jacobi(nodes, alpha, 0.0)
        angles = np.arcsin(np.sqrt((1 + t) / 2)).astype(float)
    return angles, (weights / weights.sum()).astype(float)


@lru_cache(maxsize=64)
def gauss_legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [-1, 1]."""
    t, weights = gauss_jacobi(nodes, 0.0, 0.0)
    return t.astype(float), (2 * weights / weights.sum()).astype(float)


def gauss_jacobi(nodes: int, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Jacobi nodes, and weights up to a factor, for ``(1 - t)^alpha (1 + t)^beta``, in long doubles.

    The weights next to the ends of the interval lose about ``nodes^2`` roundings where the nodes are only
    known in double precision; Newton's method on the three-term recurrence gives these digits back.

    Parameters
    ----------
    nodes : int
    alpha, beta : float

    Returns
    -------
    t, weights : ndarray of longdouble, shape (nodes,)
    """
    t = roots_jacobi(nodes, alpha, beta)[0].astype(np.longdouble)
    a, b = np.longdouble(alpha), np.longdouble(beta)
    for _ in range(3):
        last, p = np.ones_like(t), (a + 1) + (a + b + 2) * (t - 1) / 2
        for k in range(2, nodes + 1):
            c = 2 * k + a + b
            last, p = (
                p,
                ((c - 1) * (c * (c - 2) * t + a * a - b * b) * p - 2 * (k + a - 1) * (k + b - 1) * c * last)
                / (2 * k * (k + a + b) * (c - 2)),
            )
        c = 2 * nodes + a + b
        slope = (nodes * (a - b - c * t) * p + 2 * (nodes + a) * (nodes + b) * last) / (c * (1 - t * t))
        t = t - p / slope
    return t, 1 / ((1 - t * t) * slope**2)


def panel_rule(
    axis: Axis, panels: Panels, nodes: tuple[int, ...], half: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on a few intervals of an axis: for densities that live on a small part of it.

    Parameters
    ----------
    axis : Axis
    panels : tuple of (low, high)
        Disjoint intervals of the angle inside `domain`.
    nodes : tuple of int
        Nodes per panel.
    half : bool
        As in `global_rule`.

    Returns
    -------
    angles, weights : ndarray
        Weights against the normalised density of the axis.
    """
    angles, weights = [], []
    for (low, high), count in zip(panels, nodes, strict=True):
        x, w = gauss_legendre(count)
        angles.append((low + high) / 2 + (high - low) / 2 * x)
        weights.append((high - low) / 2 * w)
    angles, weights = np.concatenate(angles), np.concatenate(weights)
    return angles, weights * axis_density(axis, angles) * (2 if half and axis.block != 2 else 1)


def axis_density(axis: Axis, angles: np.ndarray) -> np.ndarray:
    """Normalised density of an angle under the uniform measure (per radian of the full axis)."""
    if not axis.block:
        return np.full(angles.shape, 1 / (2 * np.pi))
    scale = 1.0 if axis.block == 1 else 2.0
    norm = np.exp(betaln(axis.block / 2, axis.rest / 2))
    with np.errstate(divide="ignore"):
        sine, cosine = np.abs(np.sin(angles)), np.abs(np.cos(angles))
    return scale * sine ** (axis.block - 1) * cosine ** (axis.rest - 1) / norm


def domain(axis: Axis, half: bool) -> tuple[float, float]:
    """Smallest and largest angle."""
    if not axis.block:
        return 0.0, np.pi if half else 2 * np.pi
    return (0.0, np.pi / 2) if half or axis.block == 2 else (-np.pi / 2, np.pi / 2)


def product_rule(space: Space, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """A whole product rule in hyperspherical coordinates, as points: simple and slow, for small spaces.

    Parameters
    ----------
    space : Space
        A sphere or a product of spheres.
    nodes : int
        Nodes per axis (even); exact for polynomials of degree below ``nodes``.

    Returns
    -------
    points : ndarray, shape (N, ambient)
    weights : ndarray, shape (N,)
        Positive, summing to one (uniform probability measure).

    Raises
    ------
    InputError
        If the space is not made of spheres.
    """
    points, weights = np.zeros((1, 0)), np.ones(1)
    for factor in space.factors:
        if not isinstance(factor, Sphere):
            raise InputError(f"quadrature: expected spheres and their products, got {factor.name}")
        angle, w = global_rule(Axis(0, 0, 0), nodes)
        x = np.stack([np.cos(angle), np.sin(angle)], 1)
        for rest in range(2, factor.ambient):
            chi, v = global_rule(Axis(1, rest, 0), nodes)
            x = np.concatenate(
                [
                    (np.cos(chi)[:, None, None] * x).reshape(-1, rest),
                    np.repeat(np.sin(chi), len(x))[:, None],
                ],
                1,
            )
            w = np.outer(v, w).ravel()
        points = np.concatenate([np.repeat(points, len(x), 0), np.tile(x, (len(points), 1))], 1)
        weights = np.outer(weights, w).ravel()
    return points, weights


def merged(panels: Panels) -> list[tuple[float, float]]:
    """Touching panels joined to intervals.

    Parameters
    ----------
    panels : tuple of (float, float)
        Ascending.

    Returns
    -------
    list of (float, float)
    """
    joined: list[tuple[float, float]] = []
    for p, q in panels:
        if joined and p <= joined[-1][1] + 1e-12:
            joined[-1] = (joined[-1][0], q)
        else:
            joined.append((p, q))
    return joined
