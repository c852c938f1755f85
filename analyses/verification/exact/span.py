"""T_R, the gradients of span(R), by pivoted orthogonalisation, and the Hessian on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyses.verification.exact.hessian import contrasts
from analyses.verification.exact.numbers import DOUBLE, Fixed, Numbers, extended_product
from analyses.verification.exact.problem import KINK_CHOICES, RawProblem, activation_tables

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

    ``X = A^T C`` with the coefficients C of the double vectors lies in the row space to extended precision
    and is orthonormal to about ``eps sigma_1/sigma_r``, which the polar iteration mends. None where the
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


def graded_rank(matrix: np.ndarray) -> int:
    """Rank when every coordinate counts alike, however small its neuron is: of columns of length one.

    Parameters
    ----------
    matrix : ndarray, shape (m, N)

    Returns
    -------
    int
        -1 where the singular values leave it in doubt.
    """
    lengths = np.sqrt((matrix * matrix).sum(0))
    columns = (matrix[:, lengths > 0] / lengths[lengths > 0]).astype(np.float64)
    sizes = np.linalg.svd(columns, compute_uv=False) if columns.size else np.zeros(0)
    rank = int((sizes > CLEAR * sizes.max(initial=0)).sum())
    doubtful = rank < len(sizes) and sizes[rank] > DUST * sizes[0]
    return -1 if doubtful else rank


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


def symmetry_complement(problem: RawProblem, numbers: Numbers) -> Span:
    """What the symmetries of R leave, on fields that agree at copies of a neuron.

    Of every distinct neuron: the coordinates in which some potential has a slope, with some slope at kinks,
    without the directions that none of them sees, ``(a, b, -d c)``, the shift between the means of a and b,
    the mean of c.

    Parameters
    ----------
    problem : RawProblem
    numbers : Numbers

    Returns
    -------
    Span
    """
    tensors = problem.weights(numbers)
    a, b, c = problem.weights(DOUBLE)  # what doubles cannot see has no slope
    sums = a[:, None, :] + b[None, :, :]
    tables = [activation_tables(problem, DOUBLE, sums, kink) for kink in KINK_CHOICES]
    level, rises = tables[0][0], np.any([slope != 0 for _, slope, _ in tables], axis=(0, 1, 2))
    heads = c if problem.sees_mean else c - c[:1]  # a constant c moves outputs only in their mean
    if problem.centred:
        turn = contrasts(numbers, problem.n).T.copy()
        tensors = tuple(numbers.dot(turn, w) for w in tensors)
    if problem.b is None:
        tensors = (tensors[0], tensors[2])
    stored = np.concatenate([problem.a, problem.a if problem.b is None else problem.b, problem.c]).T
    _, first, copies = np.unique(stored, axis=0, return_index=True, return_inverse=True)
    rows, q, blocks = problem.rows, problem.q, problem.blocks
    basis = []
    for label, j in enumerate(first):
        mates = np.flatnonzero(copies.reshape(-1) == label)
        rising = bool(rises[j]) and bool(heads[:, j].any())
        reached = np.repeat([rising] * (blocks - 1) + [bool((level[:, :, j] != 0).any())], rows)
        inside = numbers.of(np.eye(blocks * rows)[reached])
        hidden = _hidden(problem, numbers, [w[:, j] for w in tensors])[:, reached]
        known = eliminated(hidden, numbers).basis
        rest = inside[:, reached] - numbers.dot(known.T.copy(), known)
        own = eliminated(rest, numbers).basis
        lifted = numbers.zeros(len(own), blocks * rows, q)
        share = numbers.root(1, len(mates))
        for mate in mates:
            lifted[:, reached, mate] = numbers.mul(own, share)
        basis.append(lifted.reshape(len(own), blocks * rows * q))
    return Span(np.concatenate(basis), 1.0, 0.0)


def _hidden(problem: RawProblem, numbers: Numbers, neuron: list[np.ndarray]) -> np.ndarray:
    """Directions of one neuron that no potential sees, as rows."""
    rows = problem.rows
    one, zero = numbers.of(np.ones(rows)), numbers.zeros(rows)
    found = []
    if not problem.centred and problem.b is not None:
        found.append(np.concatenate([one, -one, zero]))
    if not problem.centred and not problem.sees_mean:
        found.append(np.concatenate([zero] * (problem.blocks - 1) + [one]))
    if problem.degree is not None:
        found.append(np.concatenate([*neuron[:-1], -problem.degree * neuron[-1]]))
    return np.array(found) if found else numbers.zeros(0, rows * problem.blocks)


def compressed(matrix: np.ndarray, space: Span, numbers: Numbers) -> np.ndarray:
    """``Q^T A Q`` on a space, shape (rank, rank)."""
    return numbers.dot(space.basis, numbers.dot(matrix, space.basis.T.copy()))
