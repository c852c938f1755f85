"""Rates of the noisy gradient flow around a stationary measure, by Galerkin projection on polynomials."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from manifold.integration.rules import product_rule
from manifold.spaces.embedded import Space

NODES = {1: 128, 2: 48, 3: 24, 4: 12}  # per axis of a space of that dimension
DEGREES = {1: 24, 2: 10, 3: 6, 4: 4}
RANK_TOLERANCE = 1e-11


def rule(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Product rule of a space of dimension at most 4: points (N, ambient), uniform weights (N,)."""
    return product_rule(space, NODES[space.dimension])


def polynomial_basis(space: Space, points: np.ndarray, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Polynomials up to a total degree and their tangential gradients.

    Products of Chebyshev polynomials in the ambient coordinates; in every spherical factor the last
    coordinate enters at most linearly, since its square is a polynomial of the others.

    Parameters
    ----------
    space : Space
        A sphere or product of spheres.
    points : ndarray, shape (N, ambient)
    degree : int

    Returns
    -------
    values : ndarray, shape (N, P)
    gradients : ndarray, shape (N, P, ambient)
    """
    last = np.cumsum([factor.ambient for factor in space.factors]) - 1
    limits = [min(degree, 1) if i in last else degree for i in range(space.ambient)]
    powers = [p for p in itertools.product(*(range(top + 1) for top in limits)) if 0 < sum(p) <= degree]
    one = np.polynomial.chebyshev.chebvander(points, degree)  # (N, ambient, degree + 1)
    slopes = np.stack(
        [
            np.polynomial.chebyshev.chebval(points, np.polynomial.chebyshev.chebder(row))
            for row in np.eye(degree + 1)
        ],
        axis=-1,
    )
    index = np.array(powers).T  # (ambient, P)
    factors = [one[:, i, index[i]] for i in range(space.ambient)]
    gradients = np.empty((len(points), len(powers), space.ambient))
    for i in range(space.ambient):
        others = [f for j, f in enumerate(factors) if j != i]
        gradients[:, :, i] = slopes[:, i, index[i]] * np.prod(others, axis=0)
    base = torch.as_tensor(points)
    for k in range(len(powers)):
        gradients[:, k] = space.tangent(base, torch.as_tensor(gradients[:, k])).numpy()
    return np.prod(factors, axis=0), gradients


@dataclass(frozen=True, eq=False)
class Rates:
    """Rates of the noisy flow in a space of polynomials.

    Parameters
    ----------
    values : ndarray, shape (P,)
        Ascending, per unit of flow time; high ones are not converged in the degree.
    masses : ndarray, shape (P,)
        Largest ``Var_mu(f) / <f, Gen^-1 f>`` over the span of the eigenfunctions up to each: a relative
        change of the density moves a rate by at most as much of ``|rate| + T mass``.
    """

    values: np.ndarray
    masses: np.ndarray


class NoisyFlow:
    """The generator of the noisy flow on the polynomials of a space.

    Parameters
    ----------
    space : Space
    points : ndarray, shape (N, ambient)
        Quadrature points.
    degree : int, optional
        Of the polynomials; default by dimension.
    """

    def __init__(self, space: Space, points: np.ndarray, *, degree: int | None = None):
        self.degree = DEGREES[space.dimension] if degree is None else degree
        self._values, gradients = polynomial_basis(space, points, self.degree)
        self._gradients = [np.ascontiguousarray(gradients[:, :, i]) for i in range(space.ambient)]

    def rates(
        self, weights: np.ndarray, statistics: np.ndarray, curvature: np.ndarray, temperature: float, *,
        count: int = 8,
    ) -> Rates:  # fmt: skip
        """Rates of ``d_t f = -Gen( T f + sum L''_ij E[f r_j] (r_i - E r_i) )``.

        ``Gen = -mu^-1 div(mu grad)``. In an orthonormal basis of centred polynomials Gen is the Dirichlet
        form K and the bracket a symmetric S; the rates are the eigenvalues of ``K^(1/2) S K^(1/2)``: real,
        positive = decaying.

        Parameters
        ----------
        weights : ndarray, shape (N,)
            Of the stationary measure mu at the points, summing to one.
        statistics : ndarray, shape (N, m)
            Values r_i at the points.
        curvature : ndarray, shape (m, m)
            L''.
        temperature : float
            T > 0.
        count : int
            How many.

        Returns
        -------
        Rates
        """
        values = self._values - weights @ self._values
        sizes, basis = scipy.linalg.eigh(values.T @ (weights[:, None] * values))
        kept = sizes > RANK_TOLERANCE * sizes[-1]
        whiten = basis[:, kept] / np.sqrt(sizes[kept])
        dirichlet = sum(part.T @ (weights[:, None] * part) for part in self._gradients)
        centred = statistics - weights @ statistics
        coefficients = whiten.T @ (values.T @ (weights[:, None] * centred))
        bracket = temperature * np.eye(kept.sum()) + coefficients @ curvature @ coefficients.T
        lengths, modes = scipy.linalg.eigh(whiten.T @ dirichlet @ whiten)
        root = modes * np.sqrt(lengths.clip(min=0))
        last = min(count, len(lengths)) - 1
        values, vectors = scipy.linalg.eigh(root.T @ bracket @ root, subset_by_index=[0, last])
        form = (vectors.T * lengths.clip(min=0)) @ vectors
        masses = [np.linalg.eigvalsh(form[: k + 1, : k + 1])[-1] for k in range(len(form))]
        return Rates(values, np.array(masses))
