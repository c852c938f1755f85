"""Complete counts of signs by Sylvester's law: the inertia of a factorisation with its measured error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifold.errors import TooLargeError
from spectra.block_solvers import norm_bound
from spectra.eigen import EPS
from spectra.variation import SymmetricOperator

MATRIX_BYTES = 5 * 2**30  # of the matrix and of its factor
NORM_STEPS = 16


@dataclass(frozen=True)
class SignCounts:
    """Proved bounds of how many eigenvalues of an operator have which sign.

    Parameters
    ----------
    negative, positive : tuple of int
        Lower and upper bound of each number; equal where nothing lies within ``shift`` of zero.
    shift : float
        Eigenvalues of modulus above twice this are counted with their sign.
    error : float
        Norm of what was not exact (assembly, factorisation); bounded from a random start except with
        probability 1e-9, and below ``shift``.
    dimension : int
        Of the operator.
    """

    negative: tuple[int, int]
    positive: tuple[int, int]
    shift: float
    error: float
    dimension: int


class _Error(SymmetricOperator):
    """``F - (A - s)`` for a factorisation F of a shifted matrix, through solves: ``x = F^-1 (A - s) y``."""

    def __init__(self, matrix: Tensor, shift: float, factor: Tensor, pivots: Tensor):
        self.matrix, self.shift, self.factor, self.pivots = matrix, shift, factor, pivots
        self.dimension = len(matrix)

    def _shifted(self, block: Tensor) -> Tensor:
        return self.matrix @ block - self.shift * block

    def _apply(self, block: Tensor) -> Tensor:
        # F x = (A - s) y, so (F - (A - s)) x = (A - s)(y - x), and x is y up to that error.
        found = torch.linalg.ldl_solve(self.factor, self.pivots, self._shifted(block))
        return self._shifted(block - found)


def count_signs(
    operator: SymmetricOperator, *, removed: int = 0, seed: int = 0, memory_limit: int = MATRIX_BYTES
) -> SignCounts:
    """Count the signs of all eigenvalues by two factorisations ``L D L^T`` of the assembled matrix.

    The inertia of ``A + E - s`` is that of D. With ``|E| < s`` every negative eigenvalue of ``A + E + s`` is
    one of A, and every negative one of A is one of ``A + E - s``: lower and upper bound of their number.
    Costs ``2 n^3 / 3`` flops where eigenvalues cost several times more, out of cache.

    Parameters
    ----------
    operator : SymmetricOperator
        The matrix is assembled from its products.
    removed : int
        Directions taken out of the operator, to which it gives a clearly positive eigenvalue.
    seed : int
        Of the random start that bounds the error.
    memory_limit : int
        Bytes for the matrix and its factor.

    Returns
    -------
    SignCounts

    Raises
    ------
    TooLargeError
        If they do not fit.
    """
    n = operator.dimension
    if 16 * n * n > memory_limit:
        raise TooLargeError(
            f"counts: {n:,} dimensions need {16 * n * n / 2**30:.1f} GiB; the limit is "
            f"{memory_limit / 2**30:.0f} GiB, about {int((memory_limit / 16) ** 0.5):,} dimensions"
        )
    matrix = operator.dense()
    size = float(matrix.abs().sum(1).max())  # at least the norm
    rounding = 16 * EPS * n**0.5 * size
    shift = 64 * rounding
    while True:
        lower, below = _negative(matrix, -shift, seed)
        upper, above = _negative(matrix, shift, seed)
        error = max(below, above) + rounding
        if error < shift:
            break
        shift = 4 * error
    return SignCounts(
        (lower, upper), (n - removed - upper, n - removed - lower), shift, error, n - removed
    )  # fmt: skip


def _negative(matrix: Tensor, shift: float, seed: int) -> tuple[int, float]:
    """Negative eigenvalues of a factorisation of ``A - shift``, and the norm of its error."""
    shifted = matrix.clone()
    shifted.diagonal().sub_(shift)
    factor, pivots = torch.linalg.ldl_factor(shifted)
    del shifted
    error, _ = norm_bound(_Error(matrix, shift, factor, pivots), seed=seed, steps=NORM_STEPS)
    return _inertia(factor, pivots), 2 * error  # solves see (1 - E F^-1) E, at least half of E beyond 2 |E|


def _inertia(factor: Tensor, pivots: Tensor) -> int:
    """Negative eigenvalues of the block diagonal D: pivots of size two are marked by negative numbers."""
    diagonal = factor.diagonal().cpu().numpy()
    beside = factor.diagonal(-1).cpu().numpy()
    single = pivots.cpu().numpy() > 0
    first = np.flatnonzero(~single)[::2]
    product = diagonal[first] * diagonal[first + 1] - beside[first] ** 2
    trace = diagonal[first] + diagonal[first + 1]
    pairs = np.where(product < 0, 1, np.where(trace < 0, 2, 0))
    return int((diagonal[single] < 0).sum() + pairs.sum())
