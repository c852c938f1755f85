"""Invariant Laplace eigenfunctions of flat tori, and their sample moments through empirical Fourier sums."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from manifold.errors import InputError, TooLargeError
from manifold.groups.actions import CircleAction, FiniteAction, GroupAction

MAX_FREQUENCIES = 4_000_000
_WAVES = 500  # columns beside each point in a chunk of 16,000 points


@dataclass(frozen=True)
class TorusBasis:
    """Orthonormal real invariant eigenfunctions of T^d up to a cutoff, by increasing eigenvalue.

    Orthonormal for the uniform probability measure. Each function is a combination of
    ``1, sqrt2 cos(k.x), sqrt2 sin(k.x)`` within one eigenspace ``|k|^2 = lambda``.

    Attributes
    ----------
    action : GroupAction
    cutoff : float
        All invariant eigenfunctions with eigenvalue <= cutoff are present.
    eigenvalues : ndarray, shape (P,)
    frequencies : ndarray of int, shape (F, d)
        One of each pair k, -k; the zero frequency first.
    mixing : sparse array, shape (2 F, P)
        Coordinates of the functions in the cosines (rows 0..F-1) and sines (rows F..2F-1).
    """

    action: GroupAction
    cutoff: float
    eigenvalues: np.ndarray
    frequencies: np.ndarray = field(repr=False)
    mixing: sparse.csc_array = field(repr=False)

    @classmethod
    def build(cls, action: GroupAction, cutoff: float) -> TorusBasis:
        """All invariant eigenfunctions with eigenvalue <= cutoff.

        Translations select frequencies; the remaining point group permutes them, and its averaging
        projector is diagonalised orbit by orbit.

        Parameters
        ----------
        action : GroupAction
            On a torus.
        cutoff : float

        Returns
        -------
        TorusBasis

        Raises
        ------
        TooLargeError
            If more than four million frequencies would be listed.
        """
        points, representatives = _frequencies_and_point_group(action, cutoff)
        half = points[_is_leading(points)]
        half = half[np.lexsort((*half.T[::-1], (half**2).sum(axis=1)))]
        if len(representatives) == 1:
            eigenvalues, mixing = _unmixed(half)
        else:
            eigenvalues, mixing = _orbit_mixing(half, representatives)
        return cls(action, cutoff, eigenvalues, half, mixing)

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def head(self, cutoff: float) -> TorusBasis:
        """The same basis up to a smaller cutoff."""
        count = int(np.searchsorted(self.eigenvalues, cutoff, side="right"))
        keep = np.flatnonzero((self.frequencies**2).sum(axis=1) <= cutoff)
        rows = np.concatenate([keep, keep + len(self.frequencies)])
        mixing = sparse.csc_array(sparse.csr_array(self.mixing)[rows][:, :count])
        return TorusBasis(self.action, cutoff, self.eigenvalues[:count], self.frequencies[keep], mixing)

    def values(self, points: np.ndarray) -> np.ndarray:
        """Values of the functions, shape (n, P), at angles of shape (n, d)."""
        phase = points @ self.frequencies.T.astype(float)
        waves = math.sqrt(2) * np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
        waves[:, 0] = 1.0
        return waves @ self.mixing

    def evaluate(self, points: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """Values of ``sum_i coefficients_i psi_i``, shape (n,); fast where all frequencies share one line."""
        waves = self.mixing @ coefficients
        count = len(self.frequencies)
        amplitude = math.sqrt(2) * (waves[:count] - 1j * waves[count:])
        amplitude[0] = waves[0]
        line = _common_line(self.frequencies)
        if line is not None:
            step, multiples = line
            series = np.zeros(int(multiples.max()) + 1, dtype=complex)
            series[multiples] = amplitude
            return _giant_steps(points @ step, series).real
        if self.frequencies.shape[1] == 2:
            return _plane_series(points, self.frequencies, amplitude)
        phases = (chunk @ self.frequencies.T.astype(float) for chunk in _chunks(points, count))
        return np.concatenate([np.cos(p) @ amplitude.real - np.sin(p) @ amplitude.imag for p in phases])

    def moments(self, points: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample second moments of the functions, and their sample correlation with targets.

        Products of waves are waves again, so both follow from empirical Fourier sums: the cost is
        O(n F) instead of O(n P^2).

        Parameters
        ----------
        points : ndarray, shape (n, d)
        targets : ndarray, shape (n,)

        Returns
        -------
        gram : ndarray, shape (P, P)
            ``(1/n) sum_j psi_a(x_j) psi_b(x_j)``.
        correlation : ndarray, shape (P,)
            ``(1/n) sum_j psi_a(x_j) targets_j``.
        """
        steps = _common_steps(self.frequencies)
        k = self.frequencies // steps
        reach = np.abs(k).max(axis=0)
        plain = _fourier_sums(points * steps, 2 * reach)
        weighted = _fourier_sums(points * steps, reach, targets)
        gram = self._wave_gram(plain, k, 2 * reach)
        linear = weighted[tuple((k + reach).T)]
        scale = np.full(2 * len(k), math.sqrt(2))
        scale[0] = 1.0
        correlation = scale * np.concatenate([linear.real, linear.imag])
        gram = self.mixing.T @ (self.mixing.T @ gram).T
        return gram, self.mixing.T @ correlation

    @staticmethod
    def _wave_gram(sums: np.ndarray, k: np.ndarray, reach: np.ndarray) -> np.ndarray:
        minus = sums[tuple((k[:, None] - k[None] + reach).transpose(2, 0, 1))]
        plus = sums[tuple((k[:, None] + k[None] + reach).transpose(2, 0, 1))]
        cos_sin = plus.imag - minus.imag
        gram = np.block([[plus.real + minus.real, cos_sin], [cos_sin.T, minus.real - plus.real]])
        # The constant is stored as 1, not as sqrt2 cos(0): undo the factor sqrt2 on its row and column.
        gram[0] /= math.sqrt(2)
        gram[:, 0] /= math.sqrt(2)
        return gram

    def transfer(self, other: TorusBasis, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients here of a function given in another basis (waves absent here are dropped)."""
        waves = other.mixing @ coefficients
        place = {tuple(k): i for i, k in enumerate(other.frequencies.tolist())}
        rows = np.array([place.get(tuple(k), -1) for k in self.frequencies.tolist()])
        found = rows >= 0
        mine = np.zeros(2 * len(rows))
        mine[: len(rows)][found] = waves[rows[found]]
        mine[len(rows) :][found] = waves[rows[found] + len(other.frequencies)]
        return self.mixing.T @ mine


def burnside_spectrum(action: GroupAction, cutoff: float) -> np.ndarray:
    """Eigenvalues <= cutoff of the invariant eigenfunctions by counting alone, with multiplicity.

    In one eigenspace the trace of the averaging projector is the mean over the point group of
    ``sum of exp(i k.b) over the frequencies k that A fixes``.

    Parameters
    ----------
    action : GroupAction
        On a torus.
    cutoff : float

    Returns
    -------
    ndarray, shape (P,)

    Raises
    ------
    TooLargeError
        If far too many frequencies would be listed.
    """
    points, representatives = _frequencies_and_point_group(action, cutoff)
    levels, place = np.unique((points**2).sum(axis=1), return_inverse=True)
    traces = np.zeros(len(levels))
    for matrix, shift in representatives:
        fixed = (points @ matrix == points).all(axis=1)
        traces += np.bincount(place[fixed], np.cos(points[fixed] @ shift), minlength=len(levels))
    return np.repeat(levels.astype(float), np.rint(traces / len(representatives)).astype(int))


def _frequencies_and_point_group(action: GroupAction, cutoff: float):
    dim = action.space.dim
    reach = math.isqrt(int(cutoff))
    if isinstance(action, CircleAction):
        return _orthogonal_frequencies(action.weights, reach, cutoff), [(np.eye(dim), np.zeros(dim))]
    if (2 * reach + 1) ** dim > MAX_FREQUENCIES * 4:
        raise TooLargeError(f"cutoff {cutoff:g} on {action.space.name}: too many frequencies; lower it")
    axes = [np.arange(-reach, reach + 1)] * dim
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, dim)
    grid = grid[(grid**2).sum(axis=1) <= cutoff]
    if not isinstance(action, FiniteAction):
        raise InputError(f"group {action.name}: no invariant basis on {action.space.name}")
    cosets: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    for matrix, shift in zip(action.matrices, action.shifts, strict=True):
        if (matrix == np.eye(dim)).all():
            turns = grid @ shift / (2 * math.pi)
            grid = grid[np.abs(turns - np.rint(turns)) < 1e-6]
        cosets.setdefault(matrix.astype(int).tobytes(), (matrix, shift))
    return grid, list(cosets.values())


def _orthogonal_frequencies(weights: tuple[int, ...], reach: int, cutoff: float) -> np.ndarray:
    """Integer k with k.v = 0 and |k|^2 <= cutoff: one coordinate with v_p != 0 follows from the rest.

    Raises
    ------
    TooLargeError
        If far too many frequencies would be listed.
    """
    v = np.array(weights)
    pivot = int(np.flatnonzero(v)[0])
    rest = np.delete(np.arange(len(v)), pivot)
    if (2 * reach + 1) ** len(rest) > MAX_FREQUENCIES * 4:
        raise TooLargeError(f"cutoff {cutoff:g} on T{len(v)}: too many frequencies; lower it")
    axes = [np.arange(-reach, reach + 1)] * len(rest)
    free = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(rest))
    sums = free @ v[rest]
    free, sums = free[sums % v[pivot] == 0], sums[sums % v[pivot] == 0]
    grid = np.insert(free, pivot, -sums // v[pivot], axis=1)
    return grid[(grid**2).sum(axis=1) <= cutoff]


def _is_leading(k: np.ndarray) -> np.ndarray:
    """True where the first non-zero coordinate is positive, and at k = 0."""
    first = np.take_along_axis(k, (k != 0).argmax(axis=1)[:, None], axis=1)[:, 0]
    return first >= 0


def _unmixed(half: np.ndarray):
    count = len(half)
    # cos k, sin k, cos k', sin k', ...; the constant has no sine.
    rows = np.stack([np.arange(count), np.arange(count) + count], axis=1).ravel()
    rows = np.delete(rows, 1)
    eigenvalues = np.repeat((half**2).sum(axis=1), 2)[1:].astype(float)
    ones = np.ones(len(rows))
    return eigenvalues, sparse.csc_array((ones, (rows, np.arange(len(rows)))), shape=(2 * count, len(rows)))


def _orbit_mixing(half: np.ndarray, representatives: list[tuple[np.ndarray, np.ndarray]]):
    place = {tuple(k): i for i, k in enumerate(half.tolist())}
    seen: set[int] = set()
    eigenvalues, columns = [], []
    for start, k in enumerate(half):
        if start in seen:
            continue
        images = {tuple(int(v) for v in matrix.T @ k) for matrix, _ in representatives}
        members = sorted({place[i] if i in place else place[tuple(-v for v in i)] for i in images})
        seen.update(members)
        block = _invariant_waves(half[members], representatives)
        rows = np.concatenate([np.array(members), np.array(members) + len(half)])
        for column in block.T:
            eigenvalues.append(float(k @ k))
            columns.append((rows, column))
    count = len(columns)
    data = np.concatenate([c for _, c in columns])
    index = (
        np.concatenate([r for r, _ in columns]),
        np.repeat(np.arange(count), [len(r) for r, _ in columns]),
    )
    mixing = sparse.coo_array((data, index), shape=(2 * len(half), count)).tocsc()
    mixing.data[np.abs(mixing.data) < 1e-13] = 0
    mixing.eliminate_zeros()
    return np.array(eigenvalues), mixing


def _invariant_waves(k: np.ndarray, representatives: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Orthonormal invariant vectors among cos(k.x), sin(k.x) of one orbit, shape (2 len(k), invariants)."""
    count = len(k)
    place = {tuple(v): i for i, v in enumerate(k.tolist())}
    projector = np.zeros((2 * count, 2 * count))
    for matrix, shift in representatives:
        for i, vector in enumerate(k):
            # cos(k.(A x + b)) = cos(b.k) cos(A'k.x) - sin(b.k) sin(A'k.x), and the sine alike.
            image, phase = matrix.T @ vector, float(vector @ shift)
            c, s = math.cos(phase), math.sin(phase)
            j = place.get(tuple(int(v) for v in image))
            sign = 1.0
            if j is None:
                j, sign = place[tuple(int(-v) for v in image)], -1.0
            projector[j, i] += c
            projector[j + count, i] -= sign * s
            projector[j, i + count] += s
            projector[j + count, i + count] += sign * c
    projector /= len(representatives)
    if not k[0].any():
        projector = np.diag([1.0, 0.0])
    values, vectors = np.linalg.eigh((projector + projector.T) / 2)
    return vectors[:, values > 0.5]


def _common_steps(frequencies: np.ndarray) -> np.ndarray:
    return np.maximum(np.gcd.reduce(frequencies, axis=0), 1)


def _common_line(frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Vector v and integers t >= 0 with k = t v for every (leading) frequency k; None if no such v."""
    if len(frequencies) < 2:
        return None
    direction = frequencies[1] // np.gcd.reduce(frequencies[1])
    axis = int(np.flatnonzero(direction)[0])
    multiples = frequencies[:, axis] // direction[axis]
    if not (multiples[:, None] * direction == frequencies).all():
        return None
    step = max(int(np.gcd.reduce(multiples)), 1)
    return step * direction, multiples // step


def _chunks(points: np.ndarray, width: int) -> Iterator[np.ndarray]:
    size = max(1, 8_000_000 // max(width, 1))
    return (points[i : i + size] for i in range(0, len(points), size))


def _giant_steps(angles: np.ndarray, amplitude: np.ndarray) -> np.ndarray:
    """``sum_k amplitude_k exp(i k x)`` for k >= 0 at many x, with two small tables instead of a large one."""
    small = math.isqrt(len(amplitude)) + 1
    padded = np.zeros(small * -(-len(amplitude) // small), dtype=complex)
    padded[: len(amplitude)] = amplitude
    grid = padded.reshape(-1, small)
    values = [
        ((_powers(small * x, len(grid)).T @ grid) * _powers(x, small).T).sum(axis=1)
        for x in _chunks(angles, _WAVES)
    ]
    return np.concatenate(values)


def _plane_series(points: np.ndarray, frequencies: np.ndarray, amplitude: np.ndarray) -> np.ndarray:
    """``Re sum_k amplitude_k exp(i k.x)`` on T^2 through one table per coordinate, all k_1 >= 0."""
    reach = int(np.abs(frequencies[:, 1]).max())
    grid = np.zeros((2 * reach + 1, int(frequencies[:, 0].max()) + 1), dtype=complex)
    grid[frequencies[:, 1] + reach, frequencies[:, 0]] = amplitude
    values = []
    for chunk in _chunks(points, sum(grid.shape)):
        second = _powers(chunk[:, 1], len(grid)) * np.exp(-1j * reach * chunk[:, 1])
        first = _powers(chunk[:, 0], grid.shape[1])
        values.append(((second.T @ grid) * first.T).sum(axis=1).real)
    return np.concatenate(values)


def _powers(angles: np.ndarray, count: int) -> np.ndarray:
    """``exp(i k x)`` for k = 0..count-1, shape (count, n), by repeated multiplication (error about k eps)."""
    table = np.empty((count, len(angles)), dtype=complex)
    table[0] = 1.0
    wave = np.exp(1j * angles)
    for k in range(1, count):
        np.multiply(table[k - 1], wave, out=table[k])
    return table


def _fourier_sums(points: np.ndarray, reach: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """``(1/n) sum_j w_j exp(i k.x_j)`` for all |k_a| <= reach_a, shape (2 reach_1 + 1, ...)."""
    weights = np.ones(len(points)) if weights is None else weights
    if len(reach) == 1:
        length = int(reach[0]) + 1
        small = math.isqrt(length) + 1
        large = -(-length // small)
        total = 0
        for x, w in zip(_chunks(points[:, 0], _WAVES), _chunks(weights, _WAVES), strict=True):
            total = total + _powers(small * x, large) @ (w * _powers(x, small)).T
        positive = total.ravel()[:length] / len(points)
        return np.concatenate([positive[:0:-1].conj(), positive])
    total = 0
    for chunk, w in zip(_chunks(points, 4096), _chunks(weights, 4096), strict=True):
        tables = [np.exp(1j * np.outer(chunk[:, a], np.arange(-r, r + 1))) for a, r in enumerate(reach)]
        left = w[:, None] * tables[0]
        for table in tables[1:-1]:
            left = (left[:, :, None] * table[:, None, :]).reshape(len(chunk), -1)
        total = total + left.T @ tables[-1]
    return total.reshape(2 * reach + 1) / len(points)
