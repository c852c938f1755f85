"""Densities ``exp(lambda . r)`` on R^D: when they are integrable, and their moments in few dimensions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from manifold.errors import InputError, NotIntegrableError
from manifold.integrals import Cumulants
from manifold.moment_body import support_function
from manifold.monomials import Monomials
from manifold.quadrature import gauss_legendre, product_rule
from manifold.spaces import Sphere

MAX_DIMENSION = 3
_FALL = 46.0


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
        Per angle; radially Gauss-Legendre panels out to where the density has fallen by e^-46.

    Returns
    -------
    Cumulants

    Raises
    ------
    InputError
        In more than three dimensions.
    NotIntegrableError
        See `check_integrable`.
    """
    lam = np.asarray(lam, float)
    dimension = monomials.dimension
    if dimension > MAX_DIMENSION:
        raise InputError(
            f"R{dimension}: densities are integrated up to R{MAX_DIMENSION}; use a compact space"
        )
    check_integrable(monomials, lam)
    if dimension == 1:
        unit, weights, volume = np.array([[1.0], [-1.0]]), np.full(2, 0.5), 2.0
    else:
        unit, weights = product_rule(Sphere(dimension - 1), nodes)
        volume = Sphere(dimension - 1).volume
    values = monomials.values(torch.as_tensor(unit)).numpy()  # r(t u) = t^degree r(u)
    outer = _reach(values * lam, monomials.degrees)
    x, w = gauss_legendre(40)
    edges = np.linspace(0, outer, 9)
    radius = np.concatenate([(p + q) / 2 + (q - p) / 2 * x for p, q in pairwise(edges)])
    radial = np.tile(w * outer / 16, 8) * radius ** (dimension - 1)
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
    """Radius beyond which the exponent lies ``_FALL`` below its maximum on every ray."""
    outer = 1e-3
    for _ in range(200):
        radius = np.linspace(0, outer, 400)
        exponent = radius[:, None] ** degrees @ rays.T
        if (exponent[300:] < exponent.max() - _FALL).all():
            return outer
        outer *= 1.25
    return outer
