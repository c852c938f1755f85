"""The second variation as a symmetric operator: full, restricted to span(R), and flat.

Coordinates are half-densities ``x_j = sqrt(w_j) v_j``, in which self-adjointness in L2(mu) becomes plain
symmetry: interaction blocks carry sqrt(w_j w_l), local blocks no factor. Eigenvalues are those of the
**Hessian**: positive = contracting. The flow's Jacobian is minus this operator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from typing_extensions import override

from manifold.errors import InputError
from spectra.functionals.base import BOTH, Linearisation
from spectra.operators.assembly import Assembly, can_assemble
from spectra.operators.complement import Complement, complement_of_symmetries
from spectra.operators.tangent import TangentSpace

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
        return image.reshape(len(fields), self.dimension).T

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


class RestrictedVariation(DenseOperator):
    """Rayleigh-Ritz compression of the second variation to T_R: ``Q^T L Q``, dense.

    Exact for the whole non-zero spectrum at MP-critical points; elsewhere `leak` measures how far
    eigenvectors are from eigenvectors of the full operator.
    """

    def __init__(self, full: SecondVariation, space: TangentSpace):
        self.full, self.space = full, space
        self._image = full.apply(space.basis)
        super().__init__(space.basis.T @ self._image)
        self._outside = self._image - space.basis @ (space.basis.T @ self._image)

    def lift(self, vectors: Tensor) -> Tensor:
        """Eigenvectors in T_R to half-densities along the particles, (rank, k) to (N, k)."""
        return self.space.basis @ vectors

    def leak(self, vectors: Tensor) -> Tensor:
        """Norm of the part of ``L v`` outside T_R, for unit vectors v in T_R; shape (k,)."""
        return (self._outside @ vectors).norm(dim=0)

    def tilt_error(self, norm: float) -> float:
        """How far eigenvalues move when T_R turns by the angle that it is uncertain by.

        A space turned by theta has ``cos Q + sin W`` as a basis, W orthonormal and orthogonal to Q, so the
        compression changes by ``2 sin cos |W^T L Q| + 2 sin^2 |L|`` at most.

        Parameters
        ----------
        norm : float
            Of the full operator.
        """
        if not np.isfinite(self.space.tilt):
            return float("inf")
        leak = float(torch.linalg.matrix_norm(self._outside, 2)) if self.dimension else 0.0
        return 2 * self.space.tilt * leak + 2 * self.space.tilt**2 * norm


class DeflatedVariation(SymmetricOperator):
    """The second variation compressed to what the symmetries leave, in coordinates of that space.

    T_R lies in it. When the particles are the smaller side (m >= q D minus the symmetries) it is all of it,
    unless gradients of R depend on each other at these particles: span(R) without any gradient.

    Parameters
    ----------
    full : SecondVariation
    space : Complement, optional
        Default: the complement of the symmetry directions of R, without particles that no gradient reaches.
    """

    def __init__(self, full: SecondVariation, space: Complement | None = None):
        self.full = full
        self.space = complement_of_symmetries(full.at) if space is None else space
        self.dimension = self.space.dimension

    @property
    def removed(self) -> int:
        """Directions taken out."""
        return self.full.dimension - self.dimension

    @property
    def device(self) -> torch.device:
        """Device of the measure."""
        return self.full.device

    def on(self, full: SecondVariation) -> DeflatedVariation:
        """The same coordinates for another operator, for instance one in single precision."""
        return DeflatedVariation(full, self.space.to(full.at.measure.points.dtype))

    def lift(self, block: Tensor) -> Tensor:
        """Coordinates to half-densities, (M, k) to (N, k)."""
        return self.space.lift(block)

    def project(self, block: Tensor) -> Tensor:
        """Half-densities to coordinates, (N, k) to (M, k); the adjoint of `lift`."""
        return self.space.project(block)

    def _apply(self, block: Tensor) -> Tensor:
        return self.project(self.full.apply(self.lift(block)))


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
