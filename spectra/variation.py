"""The second variation as a symmetric operator: full, restricted to span(R), and flat.

Coordinates are half-densities ``x_j = sqrt(w_j) v_j``, in which self-adjointness in L2(mu) becomes plain
symmetry: interaction blocks carry sqrt(w_j w_l), local blocks no factor. Eigenvalues are those of the
**Hessian**: positive = contracting. The flow's Jacobian is minus this operator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from typing_extensions import override

from manifold.errors import InputError
from spectra.assembly import Assembly, can_assemble
from spectra.functionals import BOTH, Linearisation

FIELD_BYTES = 4 * 2**20  # fields at once: temporaries beyond this are paid in page faults


class SymmetricOperator(ABC):
    """A symmetric operator on R^N given by its products with blocks of vectors."""

    dimension: int
    matvecs: int = 0

    @abstractmethod
    def _apply(self, block: Tensor) -> Tensor:
        """Product with a block of shape (N, k)."""

    def apply(self, block: Tensor) -> Tensor:
        """Product with a block of column vectors; counts them.

        Parameters
        ----------
        block : Tensor, shape (N, k)

        Returns
        -------
        Tensor, shape (N, k)

        Raises
        ------
        InputError
            If the block has another number of rows.
        """
        if block.ndim != 2 or block.shape[0] != self.dimension:
            raise InputError(f"block: expected shape ({self.dimension}, k), got {tuple(block.shape)}")
        self.matvecs += block.shape[1]
        return self._apply(block) if block.shape[1] else block.clone()

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""
        return torch.device("cpu")

    def dense(self) -> Tensor:
        """The matrix, assembled from products with unit vectors in chunks, symmetrised, (N, N)."""
        eye = torch.eye(self.dimension, dtype=torch.float64, device=self.device)
        matrix = torch.cat([self.apply(chunk) for chunk in eye.split(256, dim=1)], dim=1)
        return 0.5 * (matrix + matrix.T)

    def linear_operator(self) -> LinearOperator:
        """The same operator for SciPy."""

        def matmat(block: np.ndarray) -> np.ndarray:
            return self.apply(torch.as_tensor(block, device=self.device)).cpu().numpy()

        size = (self.dimension, self.dimension)
        return LinearOperator(
            size, matvec=lambda v: matmat(v.reshape(-1, 1))[:, 0], matmat=matmat, dtype=np.float64
        )


class DenseOperator(SymmetricOperator):
    """A symmetric matrix as an operator."""

    def __init__(self, matrix: Tensor):
        self.matrix, self.dimension = 0.5 * (matrix + matrix.T), len(matrix)

    def _apply(self, block: Tensor) -> Tensor:
        return self.matrix @ block

    @property
    def device(self) -> torch.device:
        """Device of the matrix."""
        return self.matrix.device

    def dense(self) -> Tensor:
        """The matrix itself."""
        return self.matrix


class SecondVariation(SymmetricOperator):
    """The second variation on all vector fields along the particles, N = q D.

    Parameters
    ----------
    at : Linearisation
        The functional at a measure; every weight must be positive.
    parts : tuple of str
        ``("interaction", "local")`` or one of them.

    Raises
    ------
    InputError
        If a particle has weight zero (drop it: it is not part of the measure).
    """

    def __init__(self, at: Linearisation, *, parts: tuple[str, ...] = BOTH):
        if float(at.measure.weights.min()) <= 0:
            raise InputError("measure: expected positive weights, got a particle of weight zero; drop it")
        self.at, self.parts = at, parts
        self.shape = tuple(at.measure.points.shape)
        self.dimension = at.measure.points.numel()
        self._root = at.measure.weights.sqrt()[:, None]
        self._equal = bool((self._root == self._root[0]).all())  # then the factors cancel

    @property
    def full(self) -> SecondVariation:
        """Itself, as a `DeflatedVariation` has it."""
        return self

    @property
    def device(self) -> torch.device:
        """Device of the measure."""
        return self._root.device

    @override
    def dense(self) -> Tensor:
        """The matrix, assembled from sums over pairs where the structure allows it, (N, N)."""
        if self.parts == BOTH and can_assemble(self.at):
            return Assembly(self.at).matrix()
        return super().dense()

    def _apply(self, block: Tensor) -> Tensor:
        chunk = max(1, FIELD_BYTES // (8 * self.dimension))
        columns = [self._fields(part) for part in block.split(chunk, dim=1)]
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)

    def _fields(self, block: Tensor) -> Tensor:
        fields = block.T.contiguous().reshape(-1, *self.shape)
        image = self.at.product(fields, self.parts) if self._equal else self._weighted_product(fields)
        return image.reshape(len(fields), -1).T

    def _weighted_product(self, fields: Tensor) -> Tensor:
        return self._root * self.at.product(fields / self._root, self.parts)

    def weighted_gradients(self, gradients: Tensor | None = None) -> Tensor:
        """Half-density matrix Phi of the gradients, columns ``sqrt(w_j) grad r_i(z_j)``, shape (N, m).

        Parameters
        ----------
        gradients : Tensor, shape (q, m, D), optional
            Default: functions that span span(R).

        Returns
        -------
        Tensor, shape (N, m)
        """
        gradients = self.at.potential_gradients() if gradients is None else gradients
        return (self._root[:, :, None] * gradients).permute(0, 2, 1).reshape(self.dimension, -1)


def _orthonormal(columns: Tensor) -> Tensor:
    """Orthonormal columns spanning the same space; columns that add nothing become zero."""
    out = torch.zeros_like(columns)
    for i in range(columns.shape[1]):
        v = columns[:, i].clone()
        for _ in range(2):  # twice is enough (Kahan)
            v -= out @ (out.T @ v)
        size = v.norm()
        if size > 1e-12 * max(float(columns[:, i].norm()), 1e-300):
            out[:, i] = v / size
    return out


@dataclass(frozen=True, eq=False)
class TangentSpace:
    """``T_R = {grad phi: phi in span(R)}`` in L2(mu), by an orthonormal basis of half-densities.

    Parameters
    ----------
    basis : Tensor, shape (N, rank)
        Orthonormal columns.
    singular_values : Tensor, shape (k,)
        Of the gradient matrix Phi, descending; their squares are the spectrum of ``K = E grad r grad r``.
    coefficients : Tensor, shape (m, rank)
        Functions of R whose gradients are the basis: ``Phi coefficients = basis``.
    gap : float
        First dropped singular value over the last kept one (0 if none was dropped): how clear the rank is.
    """

    basis: Tensor
    singular_values: Tensor
    coefficients: Tensor
    gap: float

    @property
    def rank(self) -> int:
        """Dimension of T_R."""
        return self.basis.shape[1]


def tangent_space(gradients: Tensor, *, tol: float | None = None) -> TangentSpace:
    """Span of the columns of the gradient matrix by a rank-revealing SVD.

    Parameters
    ----------
    gradients : Tensor, shape (N, m)
        As `SecondVariation.weighted_gradients` makes it.
    tol : float, optional
        Relative cut of singular values; default ``max(N, m)`` units in the last place.

    Returns
    -------
    TangentSpace
    """
    tol = max(gradients.shape) * np.finfo(np.float64).eps if tol is None else tol
    left, sizes, right = torch.linalg.svd(gradients, full_matrices=False)
    rank = int((sizes > tol * sizes[0]).sum()) if len(sizes) and sizes[0] > 0 else 0
    gap = float(sizes[rank] / sizes[rank - 1]) if 0 < rank < len(sizes) else 0.0
    coefficients = right[:rank].T / sizes[:rank]
    return TangentSpace(left[:, :rank].contiguous(), sizes, coefficients, gap)


class RestrictedVariation(DenseOperator):
    """Rayleigh-Ritz compression of the second variation to T_R: ``Q^T L Q``, dense.

    Exact for the whole non-zero spectrum at MP-critical points; elsewhere `leak` measures how far
    eigenvectors are from eigenvectors of the full operator.
    """

    def __init__(self, full: SecondVariation, space: TangentSpace):
        self.full, self.space = full, space
        self._image = full.apply(space.basis)
        super().__init__(space.basis.T @ self._image)

    def lift(self, vectors: Tensor) -> Tensor:
        """Eigenvectors in T_R to half-densities along the particles, (rank, k) to (N, k)."""
        return self.space.basis @ vectors

    def leak(self, vectors: Tensor) -> Tensor:
        """Norm of the part of ``L v`` outside T_R, for unit vectors v in T_R; shape (k,)."""
        image = self._image @ vectors
        return (image - self.space.basis @ (self.space.basis.T @ image)).norm(dim=0)


class DeflatedVariation(SymmetricOperator):
    """The second variation compressed to the complement of the symmetry directions.

    When the particles are the smaller side (m >= q D minus the symmetries), T_R is that complement unless
    R is degenerate at these particles, so this is the restriction to span(R) without any gradient matrix.
    The directions taken out are given the eigenvalue ``shift``, so that they do not show at an end.
    """

    shift: float = 0.0

    def __init__(self, full: SecondVariation):
        self.full, self.dimension = full, full.dimension
        fields = full.at.symmetry_fields()
        self.basis = torch.stack([_orthonormal(f.T) for f in fields])  # (q, D, g)
        self.removed = int((self.basis.square().sum(1) > 0.5).sum())

    @property
    def device(self) -> torch.device:
        """Device of the measure."""
        return self.full.device

    def project(self, block: Tensor) -> Tensor:
        """Remove the symmetry directions from a block (N, k)."""
        shaped = block.reshape(*self.full.shape, -1)
        inner = torch.einsum("jdg,jdk->jgk", self.basis, shaped)
        return (shaped - torch.einsum("jdg,jgk->jdk", self.basis, inner)).reshape(block.shape)

    def _apply(self, block: Tensor) -> Tensor:
        inside = self.project(block)
        return self.project(self.full.apply(inside)) + self.shift * (block - inside)


def flat_operator(at: Linearisation) -> DenseOperator:
    """The flat (L2) second variation as a q x q matrix ``sqrt(w_j w_l) sum L'' r(z_j) r(z_l)``.

    Its non-zero spectrum is that of ``G^{1/2} L'' G^{1/2}``, ``G = E r r^T``: complete for any number of
    potentials.

    Parameters
    ----------
    at : Linearisation

    Returns
    -------
    DenseOperator
    """
    root = at.measure.weights.sqrt()
    return DenseOperator(root[:, None] * at.flat_kernel() * root[None, :])
