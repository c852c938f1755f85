"""Invariant spherical harmonics from averaged zonal kernels: any sphere, any action, no explicit formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from manifold.errors import InputError, TooLargeError
from manifold.groups.actions import GroupAction

_CHUNK = 4_000_000


def zonal_polynomials(t: np.ndarray, ambient: int, degree: int) -> Iterator[np.ndarray]:
    """Gegenbauer polynomials normalised to 1 at t = 1, degrees 0, 1, .., degree, one after the other.

    ``(l + N - 2) R_{l+1} = (2 l + N - 2) t R_l - l R_{l-1}`` with N = ``ambient``.

    Parameters
    ----------
    t : ndarray
        Inner products in [-1, 1].
    ambient : int
        N, the sphere being S^(N-1).
    degree : int

    Yields
    ------
    ndarray, shape of t
    """
    past, now = np.ones_like(t), t
    yield past
    if degree:
        yield now
    for deg in range(1, degree):
        past, now = now, ((2 * deg + ambient - 2) * t * now - deg * past) / (deg + ambient - 2)
        yield now


def harmonic_dimension(ambient: int, degree: int) -> int:
    """Number of independent spherical harmonics of one degree on S^(ambient-1)."""
    lower = math.comb(degree + ambient - 3, ambient - 1) if degree >= 2 else 0
    return math.comb(degree + ambient - 1, ambient - 1) - lower


@dataclass(frozen=True)
class SphereBasis:
    """Orthonormal real invariant spherical harmonics up to a degree, by increasing degree.

    Orthonormal for the uniform probability measure. Degree l is spanned by the averaged zonal
    functions ``mean_g Z_l(<g x, y_j>)`` at fixed points y_j; their Gram matrix has rank equal to the
    Molien count, which is checked.

    Attributes
    ----------
    action : GroupAction
    cutoff : float
        Largest eigenvalue.
    eigenvalues : ndarray, shape (P,)
    pivots : ndarray, shape (m, ambient)
        The points y_j.
    weights : tuple of ndarray, shapes (m, invariants of degree l)
    """

    action: GroupAction
    cutoff: float
    eigenvalues: np.ndarray
    pivots: np.ndarray = field(repr=False)
    weights: tuple[np.ndarray, ...] = field(repr=False)

    @classmethod
    def build(cls, action: GroupAction, cutoff: float) -> SphereBasis:
        """All invariant harmonics with eigenvalue l (l + d - 1) <= cutoff.

        Parameters
        ----------
        action : GroupAction
            On a sphere S^d.
        cutoff : float

        Returns
        -------
        SphereBasis

        Raises
        ------
        InputError
            If the rank of an averaged Gram matrix is not the Molien count.
        TooLargeError
            If a single degree has more than 4000 invariants.
        """
        space = action.space
        degree = degree_below(space.dim, cutoff)
        counts = action.invariant_dimensions(degree)
        if counts.max() > 4000:
            raise TooLargeError(f"cutoff {cutoff:g} on {space.name}: {counts.max()} functions in one degree")
        pivots = action.pivots(int(counts.max()), np.random.default_rng(20240607))
        weights = [
            _orthonormal(gram, int(count), deg, action.name)
            for deg, (gram, count) in enumerate(
                zip(_averaged_kernels(action, pivots, pivots, degree), counts, strict=True)
            )
        ]
        levels = np.array([deg * (deg + space.dim - 1) for deg in range(degree + 1)], dtype=float)
        return cls(action, cutoff, np.repeat(levels, counts), pivots, tuple(weights))

    def __len__(self) -> int:
        return len(self.eigenvalues)

    @property
    def degree(self) -> int:
        """Largest degree."""
        return len(self.weights) - 1

    def head(self, cutoff: float) -> SphereBasis:
        """The same basis up to a smaller cutoff."""
        degree = degree_below(self.action.space.dim, cutoff)
        count = int(np.searchsorted(self.eigenvalues, cutoff, side="right"))
        return SphereBasis(
            self.action, cutoff, self.eigenvalues[:count], self.pivots, self.weights[: degree + 1]
        )

    def _degrees(self, points: np.ndarray) -> Iterator[np.ndarray]:
        kernels = _averaged_kernels(self.action, points, self.pivots, self.degree)
        for kernel, weights in zip(kernels, self.weights, strict=True):
            yield kernel @ weights

    def values(self, points: np.ndarray) -> np.ndarray:
        """Values of the functions, shape (n, P), at unit vectors of shape (n, ambient)."""
        terms = sum(1 for _ in self.action.inner_products(self.pivots[:1], self.pivots[:1], self.degree))
        size = max(1, _CHUNK // (len(self.pivots) * terms))
        chunks = [points[i : i + size] for i in range(0, len(points), size)]
        return np.concatenate([np.concatenate(list(self._degrees(c)), axis=1) for c in chunks])

    def evaluate(self, points: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """Values of ``sum_i coefficients_i psi_i``, shape (n,)."""
        edges = np.cumsum([0, *(w.shape[1] for w in self.weights)])
        loads = [w @ coefficients[a:b] for w, a, b in zip(self.weights, edges, edges[1:], strict=False)]
        size = max(1, _CHUNK // (8 * len(self.pivots)))
        result = np.zeros(len(points))
        for i in range(0, len(points), size):
            kernels = _averaged_kernels(self.action, points[i : i + size], self.pivots, self.degree)
            for kernel, load in zip(kernels, loads, strict=True):
                result[i : i + size] += kernel @ load
        return result

    def moments(self, points: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample second moments (P, P) of the functions and correlation (P,) with targets, in chunks."""
        size = max(1, _CHUNK // max(len(self), 1))
        gram, correlation = np.zeros((len(self), len(self))), np.zeros(len(self))
        for i in range(0, len(points), size):
            values = self.values(points[i : i + size])
            gram += values.T @ values
            correlation += values.T @ targets[i : i + size]
        return gram / len(points), correlation / len(points)

    def transfer(self, other: SphereBasis, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients here of a function given in another basis (higher degrees are dropped).

        Degree by degree ``<psi_i, f> = sum_j weights_ji f_l(y_j)`` at the pivots of this basis.
        """
        edges = np.cumsum([0, *(w.shape[1] for w in other.weights)])
        result = []
        for deg, part in enumerate(other._degrees(self.pivots)):
            if deg > self.degree:
                break
            result.append(self.weights[deg].T @ (part @ coefficients[edges[deg] : edges[deg + 1]]))
        full = np.zeros(len(self))
        full[: sum(map(len, result))] = np.concatenate(result)
        return full


def degree_below(dim: int, cutoff: float) -> int:
    """Largest l with l (l + dim - 1) <= cutoff."""
    shift = (dim - 1) / 2
    return math.floor(math.sqrt(cutoff + shift**2) - shift + 1e-9)


def _averaged_kernels(
    action: GroupAction, points: np.ndarray, others: np.ndarray, degree: int
) -> Iterator[np.ndarray]:
    """Reproducing kernels of the invariant harmonics of degree 0, 1, .., degree, shape (n, m) each."""
    ambient = action.space.ambient
    terms = [
        (weight, zonal_polynomials(t, ambient, degree))
        for weight, t in action.inner_products(points, others, degree)
    ]
    for deg in range(degree + 1):
        total = 0
        for weight, polynomials in terms:
            total = total + weight * next(polynomials)
        yield harmonic_dimension(ambient, deg) * total


def _orthonormal(gram: np.ndarray, count: int, degree: int, name: str) -> np.ndarray:
    if count == 0:
        return np.zeros((len(gram), 0))
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    floor = 1e-9 * values[-1]
    if values[-count] < floor or (count < len(values) and values[-count - 1] > floor):
        raise InputError(
            f"group {name}: {int((values > floor).sum())} invariant harmonics of degree {degree} where the "
            f"Molien series counts {count}; are the maps a group?"
        )
    return vectors[:, -count:] / np.sqrt(values[-count:])
