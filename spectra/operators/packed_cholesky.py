"""Cholesky of a symmetric matrix of which only half is ever stored, in single precision.

LAPACK's rectangular full packed format: the lower triangle of an N x N matrix, N even, as one
(N + 1) x (N / 2) rectangle, worked on by the fast routines for full matrices. The lower triangle of the
trailing quarter lies, transposed, above the columns of the first half.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import spftrf, spftrs
from torch import Tensor

from manifold.errors import InputError


class PackedMatrix:
    """A symmetric matrix, filled by rows, then replaced by its Cholesky factor.

    Parameters
    ----------
    size : int
        N, even.

    Raises
    ------
    InputError
        If N is odd.
    """

    def __init__(self, size: int):
        if size % 2:
            raise InputError(f"size: expected an even number, got {size}")
        self.size, self._half = size, size // 2
        self._table = np.empty((size + 1, self._half), dtype=np.float32, order="F")

    def set_rows(self, first: int, rows: Tensor) -> None:
        """Write rows ``first, first + 1, ..``, at least up to the diagonal; the rest is not read."""
        last = first + len(rows)
        if first < self._half < last:
            cut = self._half - first
            self.set_rows(first, rows[:cut])
            self.set_rows(self._half, rows[cut:])
            return
        values = rows.cpu().numpy()
        left = min(first, self._half)
        self._table[first + 1 : last + 1, :left] = values[:, :left]
        below, left_of = np.tril_indices(last - first)  # the triangle on the diagonal
        triangle = values[below, first + left_of]
        if first < self._half:
            self._table[first + 1 + below, first + left_of] = triangle
            return
        first, last = first - self._half, last - self._half
        self._table[:first, first:last] = values[:, self._half : self._half + first].T
        self._table[first + left_of, first + below] = triangle

    def factor(self) -> bool:
        """Replace the matrix by its Cholesky factor; False if it is not positive definite."""
        flat = self._table.reshape(-1, order="F")  # a view: the storage is one column after the other
        _, info = spftrf(self.size, flat, uplo="L", overwrite_a=1)
        return info == 0

    def solve(self, right: np.ndarray) -> np.ndarray:
        """``A^{-1} right`` by the factor, (N, k) float32."""
        solution, _ = spftrs(self.size, self._table.reshape(-1, order="F"), right, uplo="L")
        return solution
