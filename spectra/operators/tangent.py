"""The tangent space of span(R) at the particles, its rank, and how well both are known.

Gradients of neurons of very different sizes make a matrix whose singular values say more about sizes than
about rank. Rescaling the coordinates of a particle changes neither the rank nor which functions have
independent gradients, so both are read off a matrix whose rows are all of size one. Where the gradients fill
all that the symmetries leave, T_R is that space, whatever the sizes. Elsewhere its basis is made of rows in
order of size by Householder reflections, which keep small rows accurate, and the angle by which rounding of
the gradients can turn it is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from spectra.operators.complement import Complement
from spectra.rounding import EPS, SAFETY

METRIC_UNITS = 4  # units in the last place, of eigenvalues of a metric, under the root
CLEAR = 1e6  # times its noise: what a row must be to count for the rank
SMALLEST = 1e-290  # below, numbers lose digits
UNCLEAR = 0.1  # angle (radians) from which a basis says nothing about the space


@dataclass(frozen=True, eq=False)
class TangentSpace:
    """``T_R = {grad phi: phi in span(R)}`` in L2(mu), by an orthonormal basis of half-densities.

    Parameters
    ----------
    basis : Tensor, shape (N, rank)
        Orthonormal columns.
    rank_bound : int
        Largest rank T_R may have: what rounding hides is not in the basis.
    gap : float
        First dropped singular value over the last kept one, of rows of size one (0 if none was dropped).
    tilt : float
        Bound of the angle between T_R, as far as its rank is known, and the basis (radians; infinite where
        it is larger than 0.1).
    """

    basis: Tensor
    rank_bound: int
    gap: float
    tilt: float

    @property
    def rank(self) -> int:
        """Dimensions that are certainly there."""
        return self.basis.shape[1]


def tangent_space(
    gradients: Tensor, space: Complement | None = None, *, functions: int | None = None,
    noise: Tensor | None = None,
) -> TangentSpace:  # fmt: skip
    """Span of the columns of the gradient matrix.

    Parameters
    ----------
    gradients : Tensor, shape (N, m)
        As `spectra.operators.variation.SecondVariation.weighted_gradients` makes it.
    space : Complement, optional
        A space known to hold T_R.
    functions : int, optional
        Largest number of independent functions among the columns; default all of them.
    noise : Tensor, shape (N,), optional
        What the entries of a row are known to; default one unit in the last place of the row. Rows that are
        little more than noise tell nothing about the rank.

    Returns
    -------
    TangentSpace
    """
    rows = gradients.abs().amax(1)
    noise = EPS * rows if noise is None else noise
    reached = int((rows > 0).sum()) if space is None else space.dimension
    bound = min(reached, gradients.shape[1] if functions is None else functions)
    clear = rows > (CLEAR * noise).clamp_min(SMALLEST)
    empty = TangentSpace(gradients[:, :0], bound, 0.0, 0.0)
    if not bool(clear.any()):
        return empty
    level = float((noise[clear] / rows[clear]).max())
    even = torch.where(clear[:, None], gradients / torch.where(clear, rows, 1.0)[:, None], 0.0)
    left, sizes, _ = torch.linalg.svd(even, full_matrices=False)
    rank = min(int((sizes > max(gradients.shape) * level * float(sizes[0])).sum()), bound)
    if not rank:
        return empty
    gap = float(sizes[rank] / sizes[rank - 1]) if rank < len(sizes) else 0.0
    if space is not None and rank == space.dimension:
        eye = torch.eye(rank, dtype=gradients.dtype, device=gradients.device)
        return TangentSpace(space.lift(eye), rank, gap, space.tilt)
    # A left vector is known to the noise over its share of the largest singular value.
    blur = torch.where(clear, level * sizes[0] * rows, gradients.shape[1] ** 0.5 * noise) / sizes[rank - 1]
    basis, tilt = _graded_span((rows[:, None] * left[:, :rank]).cpu().numpy(), blur.cpu().numpy())
    return TangentSpace(torch.as_tensor(basis, device=gradients.device), bound, gap, tilt)


def tangent_space_of_metric(
    metric: Tensor, space: Complement, *, functions: int, moved: Tensor | None = None
) -> TangentSpace:
    """The same from a positive definite form of the gradients, whose range is T_R.

    Parameters
    ----------
    metric : Tensor, shape (N, N)
        ``Phi M Phi^T`` with the gradients Phi and any positive definite M. Singular values below the root of
        double precision drown in its rounding: the rank is certain where none is near.
    space : Complement
    functions : int
        As in `tangent_space`.
    moved : Tensor, shape (N,), optional
        What rounding of the points changes in the roots of its diagonal.

    Returns
    -------
    TangentSpace
    """
    rows = metric.diagonal().clamp_min(0).sqrt()
    sizes = torch.where(rows > 0, rows, 1.0)
    values, vectors = torch.linalg.eigh(metric / torch.outer(sizes, sizes))
    root = rows[:, None] * (vectors * values.clamp_min(0).sqrt())
    # Eigenvalues are known to N eps of the largest, which is at most N: singular values to the root of that.
    noise = METRIC_UNITS * (EPS / len(rows)) ** 0.5 * rows
    return tangent_space(root, space, functions=functions, noise=noise if moved is None else noise + moved)


def _graded_span(columns: np.ndarray, blur: np.ndarray) -> tuple[np.ndarray, float]:
    """Orthonormal basis of columns whose rows have very different sizes, and the angle it is uncertain by.

    With ``columns = Q R``, a change E of the columns turns their span by ``|(1 - Q Q^T) E R^{-1}|``; it is
    taken of one random E whose rows have the sizes ``blur``, with a safety factor.
    """
    order = np.argsort(-np.abs(columns).max(1), kind="stable")  # large first: small ones keep their digits
    q, r, pivots = scipy.linalg.qr(columns[order], mode="economic", pivoting=True)
    basis = np.empty_like(q)
    basis[order] = q
    noise = np.random.default_rng(0).standard_normal(columns.shape) / len(columns) ** 0.5
    moved = (blur[:, None] * noise)[:, pivots]
    outside = moved - basis @ (basis.T @ moved)
    if not np.diagonal(r).all():
        return basis, float("inf")
    turned = scipy.linalg.solve_triangular(r, outside.T, trans=1)
    angle = SAFETY * float(np.linalg.norm(turned))
    return basis, angle if angle < UNCLEAR else float("inf")
