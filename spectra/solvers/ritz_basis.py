"""An orthonormal basis with its images under a symmetric operator, for Rayleigh-Ritz methods."""

from __future__ import annotations

import torch
from torch import Tensor

from manifold.errors import InputError
from spectra.operators.variation import SymmetricOperator

NEW = 1e-14  # squared length, of one, of what a unit vector must add to the basis


class RitzBasis:
    """Orthonormal vectors V, their images L V and the Rayleigh-Ritz pairs in their span.

    Vectors are kept as rows, so that each is contiguous and a block of them costs matrix products only.

    Parameters
    ----------
    operator : SymmetricOperator
    room : int
        Most vectors that will be held.
    """

    def __init__(self, operator: SymmetricOperator, room: int):
        room = min(room, operator.dimension)
        self.operator, self.size = operator, 0
        self._rows = torch.empty(room, operator.dimension, dtype=torch.float64, device=operator.device)
        self._images = torch.empty_like(self._rows)
        self._matrix = torch.zeros(room, room, dtype=torch.float64, device=operator.device)

    def extend(self, block: Tensor) -> int:
        """Add what is new in a block (N, k); returns the number of new vectors."""
        held, rows = self._rows[: self.size], block.T
        for _ in range(2):  # twice is enough (Kahan)
            rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
            rows = rows - (rows @ held.T) @ held
            sizes, turn = torch.linalg.eigh(rows @ rows.T)
            new = sizes > NEW
            rows = (turn[:, new] / sizes[new].sqrt()).T @ rows
        rows = rows[: len(self._rows) - self.size]
        first, self.size = self.size, self.size + len(rows)
        if len(rows):
            self._rows[first : self.size] = rows
            self._images[first : self.size] = self.operator.apply(rows.T).T
            inner = self._rows[: self.size] @ self._images[first : self.size].T
            self._matrix[: self.size, first : self.size] = inner
            self._matrix[first : self.size, : self.size] = inner.T
        return len(rows)

    def images(self, part: slice) -> Tensor:
        """Images of some vectors of the basis, (N, k)."""
        return self._images[: self.size][part].T

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Ritz values, ascending, and their coordinates in the basis.

        Raises
        ------
        InputError
            If the operator gave NaN or infinity.
        """
        matrix = self._matrix[: self.size, : self.size]
        if not torch.isfinite(matrix).all():
            raise InputError("operator: expected finite products, got NaN or infinity")
        return torch.linalg.eigh(0.5 * (matrix + matrix.T))

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Vectors (N, k) from their coordinates."""
        return (coordinates.T @ self._rows[: self.size]).T

    def residuals(self, values: Tensor, coordinates: Tensor) -> Tensor:
        """``L v - value v`` of vectors given by coordinates, (N, k)."""
        of_images = coordinates.T @ self._images[: self.size]
        return (of_images - values[:, None] * (coordinates.T @ self._rows[: self.size])).T

    def restart(self, coordinates: Tensor) -> None:
        """Keep the span of some Ritz vectors; costs no product."""
        kept = coordinates.shape[1]
        matrix = coordinates.T @ self._matrix[: self.size, : self.size] @ coordinates
        for table in (self._rows, self._images):
            table[:kept] = coordinates.T @ table[: self.size]
        self._matrix[:kept, :kept] = matrix
        self.size = kept
