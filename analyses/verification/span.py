"""T_R, the gradients of span(R), by pivoted orthogonalisation, and the Hessian on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyses.verification.numbers import Fixed, Numbers, extended_product

FIXED_CUT = 1e-45  # of the largest gradient: 72 places leave dependent ones at 1e-60
EXTENDED_CUT = 2e3  # rounding units times the largest dimension
CLEAR, DUST = 1e-9, 1e-13  # singular values over the largest: certainly there, certainly rounding
POLAR_STEPS = 3  # 1e-7 at worst to 1e-14 to 1e-28


@dataclass(frozen=True, eq=False)
class Span:
    """An orthonormal basis of the row space of a matrix.

    Parameters
    ----------
    basis : ndarray, shape (rank, N)
        Orthonormal rows.
    least : float
        Smallest pivot kept over the largest.
    dropped : float
        Largest remainder dropped over the largest pivot.
    """

    basis: np.ndarray
    least: float
    dropped: float

    @property
    def rank(self) -> int:
        """Dimension."""
        return len(self.basis)


def row_space(matrix: np.ndarray, numbers: Numbers) -> Span:
    """Row space of a matrix with its rank: exact elimination for fixed-point numbers, otherwise the fast way.

    Parameters
    ----------
    matrix : ndarray, shape (m, N)
    numbers : Numbers

    Returns
    -------
    Span
    """
    fast = None if isinstance(numbers, Fixed) else _corrected(matrix)
    return eliminated(matrix, numbers) if fast is None else fast


def _corrected(matrix: np.ndarray) -> Span | None:
    """The right singular vectors found in doubles, taken back into the row space in extended precision.

    ``X = A^T C`` with the coefficients C of the double vectors lies in the row space to extended precision and
    is orthonormal to about ``eps sigma_1/sigma_r``; one step of the polar iteration mends that. None where the
    singular values leave the rank in doubt.
    """
    left, sizes, _ = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    if not len(sizes) or sizes[0] == 0:
        return Span(matrix[:0], 0.0, 0.0)
    rank = int((sizes > CLEAR * sizes[0]).sum())
    dropped = float(sizes[rank] / sizes[0]) if rank < len(sizes) else 0.0
    if dropped > DUST:
        return None
    coefficients = (left[:, :rank] / sizes[:rank]).astype(np.longdouble)
    basis = extended_product(coefficients.T.copy(), matrix)
    for _ in range(POLAR_STEPS):
        overlap = extended_product(basis, basis.T.copy()) - np.eye(rank, dtype=np.longdouble)
        basis = basis - extended_product(overlap, basis) / 2
    return Span(basis, float(sizes[rank - 1] / sizes[0]), 0.0)


def eliminated(matrix: np.ndarray, numbers: Numbers) -> Span:
    """Row space by Gram-Schmidt, the largest remainder first, each row made orthogonal twice.

    Parameters
    ----------
    matrix : ndarray, shape (m, N)
    numbers : Numbers

    Returns
    -------
    Span
    """
    rest = matrix.copy()
    cut = FIXED_CUT if isinstance(numbers, Fixed) else EXTENDED_CUT * numbers.eps * max(matrix.shape)
    basis: list[np.ndarray] = []
    top = least = dropped = 0.0
    while len(basis) < min(matrix.shape):
        sizes = _sizes(rest, numbers)
        pivot = int(sizes.argmax())
        size = float(sizes[pivot])
        top = top or size
        if size <= cut * top:
            dropped = size / top if top else 0.0
            break
        least = size / top
        row = numbers.unit(rest[pivot])
        if basis:
            known = np.array(basis)
            row = numbers.unit(row - numbers.dot(numbers.dot(known, row), known))
        basis.append(row)
        rest = rest - numbers.mul(numbers.dot(rest, row)[:, None], row[None, :])
    found = np.array(basis) if basis else numbers.zeros(0, matrix.shape[1])
    return Span(found, least, dropped)


def _sizes(rows: np.ndarray, numbers: Numbers) -> np.ndarray:
    values = numbers.extended((rows * rows).sum(1))
    if isinstance(numbers, Fixed):
        values = np.ldexp(values, -240)
    return np.sqrt(values)


def compressed(matrix: np.ndarray, space: Span, numbers: Numbers) -> np.ndarray:
    """``Q^T A Q`` on a space, shape (rank, rank)."""
    return numbers.dot(space.basis, numbers.dot(matrix, space.basis.T.copy()))
