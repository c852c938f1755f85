"""Densities ``exp(lambda . r)`` on R^D: when they are integrable, and their moments in few dimensions."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from manifold.errors import InputError, NotConvergedError, NotIntegrableError
from manifold.integration.products import Cumulants, Errors
from manifold.integration.rules import gauss_legendre, product_rule
from manifold.maxent.moment_body import support_function
from manifold.monomials import Monomials
from manifold.spaces.embedded import Sphere

MAX_DIMENSION = 3
_FALL = 46.0
_AGREE = 1e-11  # of two rules, relative: below, rounding of long sums tells them apart


def check_integrable(monomials: Monomials, lam: np.ndarray) -> None:
    """Refuse a density on R^D whose exponent does not fall in every direction.

    The terms of highest degree decide: their form must be negative on the whole unit sphere. An odd highest
    degree never is.

    Parameters
    ----------
    monomials : Monomials
        Homogeneous real functions on R^D.
    lam : array_like, shape (m,)

    Raises
    ------
    NotIntegrableError
        With a unit vector along which the exponent does not fall.
    """
    lam = np.asarray(lam, float)
    used = np.flatnonzero(lam)
    dimension = monomials.dimension
    if not used.size:
        raise NotIntegrableError(
            "lambda = 0: the uniform density on R^D has infinite mass", np.eye(dimension)[0]
        )
    degree = int(monomials.degrees[used].max())
    top = np.where(monomials.degrees == degree, lam, 0.0)
    if dimension == 1:
        points = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        values = monomials.values(points).numpy() @ top
        value, where = float(values.max()), points[int(values.argmax())].numpy()
    else:
        value, where = support_function(Sphere(dimension - 1), monomials, top, starts=128)
    if value >= -1e-12 * np.abs(top).max():
        along = np.array2string(where, precision=4, suppress_small=True)
        raise NotIntegrableError(
            f"exp(lambda . r) is not integrable on R{dimension}: its terms of degree {degree} do not fall "
            f"along {along} (form {value:.3g}, must be negative everywhere); add a negative definite form "
            "of even degree or use a compact space",
            where,
        )


def cumulants(monomials: Monomials, lam: np.ndarray, *, nodes: int = 48) -> Cumulants:
    """Log-partition against Lebesgue measure, mean and covariance, by a rule in polar coordinates.

    Parameters
    ----------
    monomials : Monomials
        On R^D, D <= 3.
    lam : array_like, shape (m,)
    nodes : int
        Per angle, to begin with; radially Gauss-Legendre panels out to where the density has fallen by e^-46.
        A second rule with half as many more must agree, else they are raised.

    Returns
    -------
    Cumulants
        With the difference of the last two rules as its error.

    Raises
    ------
    InputError
        In more than three dimensions.
    NotIntegrableError
        See `check_integrable`.
    NotConvergedError
        If rules keep disagreeing.
    """
    lam = np.asarray(lam, float)
    dimension = monomials.dimension
    if dimension > MAX_DIMENSION:
        raise InputError(
            f"R{dimension}: densities are integrated up to R{MAX_DIMENSION}; use a compact space"
        )
    check_integrable(monomials, lam)
    found = _on_rule(monomials, lam, nodes, 8)
    for panels in (13, 19, 29):
        nodes = nodes * 3 // 2 // 2 * 2 + 2
        before, found = found, _on_rule(monomials, lam, nodes, panels)
        change = abs(found.log_partition - before.log_partition)
        moved = np.abs(found.mean - before.mean)
        size = np.sqrt(np.diag(found.covariance) + found.mean**2)
        if change <= _AGREE * (1 + abs(found.log_partition)) and (moved <= _AGREE * size).all():
            errors = Errors(change + _AGREE, moved + _AGREE * size, np.zeros(len(lam)), size)
            return replace(found, errors=errors)
    raise NotConvergedError(
        f"R{dimension}: rules of up to {nodes} nodes per angle and {panels} panels differ by {change:.1e} in "
        "log Z: the density is too concentrated for them"
    )


def _on_rule(monomials: Monomials, lam: np.ndarray, nodes: int, panels: int) -> Cumulants:
    dimension = monomials.dimension
    if dimension == 1:
        unit, weights, volume = np.array([[1.0], [-1.0]]), np.full(2, 0.5), 2.0
    else:
        unit, weights = product_rule(Sphere(dimension - 1), nodes)
        volume = Sphere(dimension - 1).volume
    values = monomials.values(torch.as_tensor(unit)).numpy()  # r(t u) = t^degree r(u)
    outer = _reach(values * lam, monomials.degrees)
    x, w = gauss_legendre(40)
    edges = np.linspace(0, outer, panels + 1)
    radius = np.concatenate([(p + q) / 2 + (q - p) / 2 * x for p, q in pairwise(edges)])
    radial = np.tile(w * outer / (2 * panels), panels) * radius ** (dimension - 1)
    powers = radius[:, None] ** monomials.degrees
    exponent = powers @ (values * lam).T
    peak = exponent.max()
    density = np.exp(exponent - peak) * np.outer(radial, weights)
    total = density.sum()
    share = density / total
    mean = np.einsum("tm,tu,um->m", powers, share, values)
    rows = (powers[:, None, :] * values[None, :, :]).reshape(-1, len(lam)) - mean
    covariance = (rows * share.reshape(-1, 1)).T @ rows
    marginals = (share.sum(1), share.sum(0))
    return Cumulants(float(peak + np.log(total) + np.log(volume)), mean, covariance, marginals)


def _reach(rays: np.ndarray, degrees: np.ndarray) -> float:
    """Radius beyond which the exponent lies ``_FALL`` below its maximum on every ray.

    The terms of highest degree D are at most ``-c t^D``: once the others add up to less than half of that,
    and half of it to more than ``_FALL``, the exponent stays below (it is 0 at the origin). A grid then
    brings the radius in.
    """
    top = int(degrees[np.any(rays != 0, axis=0)].max())
    fall = -rays[:, degrees == top].sum(1).max()
    lower = [(top - d, np.abs(rays[:, degrees == d]).sum(1).max()) for d in np.unique(degrees) if d < top]
    bound = (2 * _FALL / fall) ** (1 / top)
    outer = max([bound, *((2 * len(lower) * size / fall) ** (1 / gap) for gap, size in lower)])
    radius = np.linspace(0, outer, 4000)
    exponent = (radius[:, None] ** degrees @ rays.T).max(1)
    return float(radius[min(np.flatnonzero(exponent > exponent.max() - _FALL)[-1] + 2, len(radius) - 1)])
