"""Statistics on products of spheres as sums of terms that factorise over polar coordinates.

A factor ``S^d`` is cut into blocks: complex pairs ``z = |z| e^{i theta}`` and single real coordinates. The
first block is a pair; the share of each further block is an angle ``chi``: with blocks 1..K,
``|block_k| = sin(chi_k) prod_{l>k} cos(chi_l)``. A monomial becomes a sum of terms

``Re( c  prod_k sin(chi_k)^{p_k} cos(chi_k)^{q_k}  e^{i m . psi} )``,  ``p_k = e_k, q_k = e_1 + .. + e_{k-1}``

with e_k the degree in block k and psi integer combinations of the phases: only as many as the rank of
the integer phase matrix, because uniform phases stay uniform under a unimodular change of basis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from manifold.monomials import Monomials
from manifold.spaces.embedded import Space


@dataclass(frozen=True)
class Axis:
    """One polar coordinate: a phase in [0, 2 pi), or the angle chi that says how large a block is.

    Parameters
    ----------
    block : int
        Real dimension of the block (1: single coordinate, chi in [-pi/2, pi/2]; 2: pair, chi in
        [0, pi/2]); 0 for a phase.
    rest : int
        Real dimension of the inner blocks; the density of chi is ``sin^{block-1} cos^{rest-1}``.
    column : int
        First column of the axis in the keys of the terms (two columns p, q, or one column m).
    """

    block: int
    rest: int
    column: int

    @property
    def width(self) -> int:
        """Number of key columns."""
        return 2 if self.block else 1

    def functions(self, keys: np.ndarray, angles: np.ndarray) -> np.ndarray:
        """``sin^p cos^q`` (real) or ``e^{i m psi}`` (complex), shape (len(keys), len(angles))."""
        if not self.block:
            return np.exp(1j * keys[:, :1] * angles)
        sine = np.sin(angles) ** np.arange(keys[:, 0].max(initial=0) + 1)[:, None]
        cosine = np.cos(angles) ** np.arange(keys[:, 1].max(initial=0) + 1)[:, None]
        return sine[keys[:, 0]] * cosine[keys[:, 1]]


@dataclass(frozen=True, eq=False)
class Terms:
    """``f_i = sum over t with owner[t] = i of Re(coefficients[t] * term(keys[t]))``.

    Parameters
    ----------
    axes : tuple of Axis
    keys : ndarray of int, shape (T, columns)
    coefficients : ndarray of complex, shape (T,)
    owner : ndarray of int, shape (T,)
    count : int
        Number of functions.
    """

    axes: tuple[Axis, ...]
    keys: np.ndarray
    coefficients: np.ndarray
    owner: np.ndarray
    count: int

    @cached_property
    def phase_columns(self) -> np.ndarray:
        """Key columns that hold phase numbers m."""
        return np.array([a.column for a in self.axes if not a.block], dtype=int)

    def canonical(self) -> Terms:
        """Equal terms merged, phase vectors led by a positive entry (Re z = Re conj z), zeros dropped."""
        keys, coefficients = self.keys.copy(), self.coefficients.copy()
        phases = keys[:, self.phase_columns]
        if phases.size:
            leading = np.take_along_axis(phases, (phases != 0).argmax(1)[:, None], 1)[:, 0]
            flip = leading < 0
            keys[np.ix_(flip, self.phase_columns)] *= -1
            coefficients[flip] = coefficients[flip].conj()
        constant = ~phases.any(1) if phases.size else np.ones(len(keys), bool)
        coefficients[constant] = coefficients[constant].real
        columns = np.column_stack([self.owner, keys])
        unique, inverse = np.unique(columns, axis=0, return_inverse=True)
        inverse = inverse.ravel()
        total = np.bincount(inverse, coefficients.real, len(unique)) + 1j * np.bincount(
            inverse, coefficients.imag, len(unique)
        )
        largest = np.zeros(self.count)
        np.maximum.at(largest, self.owner, np.abs(coefficients))
        keep = np.abs(total) > 1e-14 * largest[unique[:, 0]]
        return Terms(self.axes, unique[keep, 1:], total[keep], unique[keep, 0], self.count)

    def with_constant(self) -> Terms:
        """The same functions behind the constant function 1 as number 0."""
        keys = np.vstack([np.zeros((1, self.keys.shape[1]), int), self.keys])
        owner = np.concatenate([[0], self.owner + 1])
        return Terms(self.axes, keys, np.concatenate([[1.0], self.coefficients]), owner, self.count + 1)

    def products(self) -> Terms:
        """All products ``f_i f_k`` with i <= k, in the order of ``numpy.triu_indices``.

        ``Re(a) Re(b) = Re(a b)/2 + Re(a conj(b))/2`` keeps them sums of terms.
        """
        left, right = np.nonzero(self.owner[:, None] <= self.owner[None, :])
        sign = np.ones(self.keys.shape[1], int)
        sign[self.phase_columns] = -1
        keys = np.vstack([self.keys[left] + self.keys[right], self.keys[left] + sign * self.keys[right]])
        c, d = self.coefficients[left], self.coefficients[right]
        i, k = self.owner[left], self.owner[right]
        position = i * self.count - i * (i - 1) // 2 + (k - i)
        # Terms of one function: (t, s) and (s, t) are both listed, once each, which is what the square needs.
        return Terms(
            self.axes,
            keys,
            np.concatenate([c * d, c * d.conj()]) / 2,
            np.concatenate([position, position]),
            self.count * (self.count + 1) // 2,
        ).canonical()


def terms_of(monomials: Monomials, space: Space, *, polyspherical: bool) -> Terms:
    """Write monomials as terms in polar coordinates of a product of spheres.

    Parameters
    ----------
    monomials : Monomials
        Functions of the ambient coordinates of ``space``.
    space : Space
        A sphere or product of spheres.
    polyspherical : bool
        True: as many complex pairs as possible in every factor (best for complex monomials); False:
        one pair and single coordinates (hyperspherical coordinates, best for real monomials).

    Returns
    -------
    Terms
        Canonical; axes are the radial angles of the factors, then the reduced phases.
    """
    pairs, singles, factors, offset = [], [], [], 0
    for factor in space.factors:
        count = factor.ambient // 2 if polyspherical else 1
        blocks = [("pair", len(pairs) + i) for i in range(count)]
        pairs += [(offset + 2 * i, offset + 2 * i + 1) for i in range(count)]
        rest = range(offset + 2 * count, offset + factor.ambient)
        blocks += [("single", len(singles) + i) for i in range(len(rest))]
        singles += list(rest)
        factors.append(blocks)
        offset += factor.ambient
    powers, coefficients, owner = expand(monomials, pairs, singles)
    z, conj_z, single = (
        powers[:, : len(pairs)],
        powers[:, len(pairs) : 2 * len(pairs)],
        powers[:, 2 * len(pairs) :],
    )
    axes, columns = [], []
    for blocks in factors:
        inner_degree, inner_dimension = 0, 0
        for kind, index in blocks:
            degree = z[:, index] + conj_z[:, index] if kind == "pair" else single[:, index]
            size = 2 if kind == "pair" else 1
            if inner_dimension:
                axes.append(Axis(size, inner_dimension, len(columns)))
                columns += [degree, inner_degree]
            inner_degree, inner_dimension = inner_degree + degree, inner_dimension + size
    phases = reduce_phases(z - conj_z)
    for column in phases.T:
        axes.append(Axis(0, 0, len(columns)))
        columns.append(column)
    keys = np.array(columns, dtype=np.int64).reshape(len(columns), len(powers)).T
    return Terms(tuple(axes), keys, coefficients, owner, len(monomials)).canonical()


def expand(monomials: Monomials, pairs: list, singles: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Monomials as polynomials in z (first), conj z, singles: powers (T, V), coefficients, owners."""
    matrix = np.eye(monomials.dimension) if monomials.coordinates is None else monomials.coordinates
    real, imag = matrix[:, [p[0] for p in pairs]], matrix[:, [p[1] for p in pairs]]
    # x = (z + conj z)/2 and y = (z - conj z)/(2i), so that u x + v y = (u - i v)/2 z + (u + i v)/2 conj z.
    linear = np.hstack([(real - 1j * imag) / 2, (real + 1j * imag) / 2, matrix[:, singles]])
    rows, values, owners = [], [], []
    for i, exponents in enumerate(monomials.exponents):
        polynomial = {(0,) * linear.shape[1]: -1j if monomials.imaginary[i] else 1.0 + 0j}
        for p, power in enumerate(exponents):
            for _ in range(power):
                polynomial = _times_linear(polynomial, linear[p])
        rows += list(polynomial)
        values += list(polynomial.values())
        owners += [i] * len(polynomial)
    return np.array(rows, dtype=np.int64), np.array(values, dtype=complex), np.array(owners, dtype=np.int64)


def _times_linear(polynomial: dict, coefficients: np.ndarray) -> dict:
    result: dict = {}
    for variable in np.flatnonzero(coefficients):
        for powers, value in polynomial.items():
            raised = (*powers[:variable], powers[variable] + 1, *powers[variable + 1 :])
            result[raised] = result.get(raised, 0) + value * coefficients[variable]
    return result


def reduce_phases(vectors: np.ndarray) -> np.ndarray:
    """Phase vectors in a basis of as few uniform phases as they need.

    Column Hermite reduction by unimodular operations (uniform phases stay uniform); the first non-zero
    vector comes to depend on the first phase alone. A common divisor of a column is absorbed.

    Parameters
    ----------
    vectors : ndarray of int, shape (T, number of pairs)

    Returns
    -------
    ndarray of int, shape (T, rank)
    """
    reduced = np.array(vectors, dtype=np.int64)
    rank = 0
    for row in range(len(reduced)):
        if rank == reduced.shape[1]:
            break
        while (count := np.count_nonzero(reduced[row, rank:])) > 0:
            tail = np.abs(reduced[row, rank:]).astype(float)
            tail[tail == 0] = np.inf
            pivot = rank + int(tail.argmin())
            reduced[:, [rank, pivot]] = reduced[:, [pivot, rank]]
            if count == 1:
                rank += 1
                break
            factors = reduced[row, rank + 1 :] // reduced[row, rank]
            reduced[:, rank + 1 :] -= np.outer(reduced[:, rank], factors)
    reduced = reduced[:, :rank]
    for i in range(
        rank - 2, -1, -1
    ):  # shorter vectors need fewer nodes; later columns never touch earlier rows
        for j in range(i + 1, rank):
            reduced[:, i] -= reduced[:, j] * round(
                reduced[:, i] @ reduced[:, j] / (reduced[:, j] @ reduced[:, j])
            )
    direct = _strip(np.array(vectors, dtype=np.int64))
    reduced = _strip(reduced)
    if rank == vectors.shape[1] and math.prod(_span(direct)) < math.prod(_span(reduced)):
        return direct
    return reduced


def _strip(columns: np.ndarray) -> np.ndarray:
    divisors = np.gcd.reduce(columns, axis=0) if columns.size else np.ones(columns.shape[1], int)
    return columns // np.maximum(divisors, 1)


def _span(columns: np.ndarray) -> list[int]:
    return [int(v) for v in np.abs(columns).max(axis=0, initial=0)]
