"""All eigenvalues of a symmetric matrix to more digits than a double, each with a bound of its error."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import mpmath
import numpy as np

from analyses.verification.exact.numbers import EXTENDED, Fixed, Numbers, extended_product

CLUSTER = 1e-8  # of the norm: gaps beyond it leave couplings of 1e-15 no effect above 1e-22
FEW = 24  # eigenvalues that mpmath finds in a fraction of a second


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """Ascending eigenvalues with one error bound for all.

    Parameters
    ----------
    values : ndarray of longdouble
    error : float
        Absolute.
    method : str
        How they were found.
    """

    values: np.ndarray
    error: float
    method: str


def eigenvalues_of(matrix: np.ndarray, numbers: Numbers) -> Eigenvalues:
    """Eigenvalues of a symmetric matrix in a kind of numbers.

    Small matrices of fixed-point numbers go to mpmath with 50 digits, all others to `refined`.

    Parameters
    ----------
    matrix : ndarray, shape (N, N)
    numbers : Numbers

    Returns
    -------
    Eigenvalues
    """
    matrix = (matrix + matrix.T) // 2 if isinstance(numbers, Fixed) else (matrix + matrix.T) / 2
    size = len(matrix)
    if isinstance(numbers, Fixed) and 0 < size <= FEW:
        with mpmath.workdps(50):
            table = mpmath.matrix([[mpmath.ldexp(mpmath.mpf(int(v)), -240) for v in row] for row in matrix])
            found = mpmath.mp.eigsy(table, eigvals_only=True)
            norm = max(abs(value) for value in found)
            values = np.array(sorted(_rounded(value) for value in found), dtype=np.longdouble)
            return Eigenvalues(values, float(norm * size) * 1e-45 + size * numbers.eps, "mpmath, 50 digits")
    found = refined(numbers.extended(matrix))
    return Eigenvalues(found.values, found.error, f"{numbers.name}, {found.method}")


def _rounded(value: mpmath.mpf) -> np.longdouble:
    high = float(value)
    return np.longdouble(high) + np.longdouble(float(value - high))


def refined(matrix: np.ndarray) -> Eigenvalues:
    """Eigenvalues in extended precision: a double eigenbasis, and perturbation theory for what it misses.

    In the basis V found in doubles, ``V^T A V`` and ``V^T V`` are diagonal but for about 1e-15, and are
    computed in extended precision. ``T = K - (G K + K G)/2`` with ``G = V^T V - 1`` has the eigenvalues of A
    to second order. Clusters closer than `CLUSTER` are diagonalised once more, relative to their centre; what
    couples clusters moves an eigenvalue by no more than its square over their gap.

    Parameters
    ----------
    matrix : ndarray of longdouble, shape (N, N)
        Symmetric.

    Returns
    -------
    Eigenvalues
    """
    size = len(matrix)
    scale = float(np.abs(matrix).max(initial=0))
    if scale == 0:
        return Eigenvalues(np.zeros(size, dtype=np.longdouble), 0.0, "zero matrix")
    shift = int(np.frexp(np.longdouble(scale))[1])
    matrix = np.ldexp(matrix, -shift)
    _, vectors = np.linalg.eigh(matrix.astype(np.float64))
    basis = vectors.astype(np.longdouble)
    inside = extended_product(basis.T, extended_product(matrix, basis))
    overlap = extended_product(basis.T, basis) - np.eye(size, dtype=np.longdouble)
    diagonal = inside.diagonal().copy()
    table = inside - overlap * (diagonal[:, None] + diagonal[None, :]) / 2
    table = (table + table.T) / 2
    order = np.argsort(table.diagonal(), kind="stable")
    table = table[np.ix_(order, order)]
    values = table.diagonal().copy()
    norm = float(np.abs(values).max())
    starts = [0, *(np.flatnonzero(np.diff(values) > CLUSTER * norm) + 1), size]
    coupling = 0.0
    for low, high in itertools.pairwise(starts):
        outside = np.concatenate([table[low:high, :low], table[low:high, high:]], axis=1).astype(np.float64)
        coupling = max(coupling, float(np.sqrt((outside**2).sum(1)).max(initial=0)) * (high - low) ** 0.5)
        if high - low > 1:
            centre = values[low:high].mean()
            block = table[low:high, low:high] - centre * np.eye(high - low, dtype=np.longdouble)
            values[low:high] = centre + np.linalg.eigvalsh(block.astype(np.float64))
    defect = float(np.abs(overlap).max()) * size
    error = coupling**2 / (CLUSTER * norm) + 4 * norm * defect**2 + 8 * EXTENDED.eps * size**0.5 * norm
    return Eigenvalues(
        np.ldexp(np.sort(values), shift), float(np.ldexp(error, shift)),
        f"double eigenbasis refined in {EXTENDED.name}",
    )  # fmt: skip
