"""Invariant Laplace eigenfunctions of a space, and Weyl's law for their number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from manifold.errors import InputError
from manifold.groups.actions import BlockRotation, CircleAction, FiniteAction, GroupAction
from manifold.invariants.sphere_basis import SphereBasis, degree_below
from manifold.invariants.torus_basis import TorusBasis, burnside_spectrum
from manifold.spaces.homogeneous import ball_volume

InvariantBasis = TorusBasis | SphereBasis


def invariant_basis(action: GroupAction, *, cutoff: float) -> InvariantBasis:
    """Orthonormal invariant eigenfunctions with Laplace eigenvalue <= cutoff.

    Parameters
    ----------
    action : GroupAction
    cutoff : float
        In units of the Laplacian of the torus of side 2 pi, or of the unit sphere.

    Returns
    -------
    TorusBasis or SphereBasis
        Both offer ``eigenvalues``, ``values``, ``evaluate``, ``moments``, ``transfer`` and ``head``.

    Raises
    ------
    InputError
        If the cutoff is negative or not finite.
    """
    if not (math.isfinite(cutoff) and cutoff >= 0):
        raise InputError(f"cutoff: expected a finite eigenvalue >= 0, got {cutoff}")
    return (TorusBasis if action.space.kind == "torus" else SphereBasis).build(action, float(cutoff))


def invariant_spectrum(action: GroupAction, *, cutoff: float) -> np.ndarray:
    """Laplace eigenvalues <= cutoff of the invariant eigenfunctions, without building the functions.

    Parameters
    ----------
    action : GroupAction
    cutoff : float

    Returns
    -------
    ndarray, shape (P,)
        Increasing, with multiplicity.
    """
    if action.space.kind == "torus":
        return burnside_spectrum(action, cutoff)
    dim = action.space.dim
    degrees = np.arange(degree_below(dim, cutoff) + 1)
    return np.repeat(degrees * (degrees + dim - 1.0), action.invariant_dimensions(int(degrees[-1])))


def cutoff_for(action: GroupAction, count: int) -> float:
    """Eigenvalue up to which Weyl's law promises about ``count`` invariant eigenfunctions."""
    return (count / weyl_main(action, 1.0)) ** (2 / action.quotient_dim)


def weyl_main(action: GroupAction, eigenvalue: float | np.ndarray) -> float | np.ndarray:
    """Weyl's main term ``omega_d' vol(M/G) lambda^(d'/2) / (2 pi)^d'`` at an eigenvalue lambda."""
    dim = action.quotient_dim
    constant = ball_volume(dim) * action.quotient_volume / (2 * math.pi) ** dim
    return constant * np.asarray(eigenvalue, dtype=float) ** (dim / 2)


@dataclass(frozen=True)
class WeylCount:
    """Number of invariant eigenfunctions up to an eigenvalue, against Weyl's law.

    Attributes
    ----------
    group : str
    eigenvalue : float
    count : int
        Counted in the basis.
    main : float
        Weyl's main term.
    bound : float or None
        A proven bound of |count - main|, of order lambda^((d'-1)/2); None where none is known here.
    """

    group: str
    eigenvalue: float
    count: int
    main: float
    bound: float | None

    @property
    def remainder(self) -> float:
        """Count - main."""
        return self.count - self.main

    @property
    def within(self) -> bool | None:
        """Whether the remainder obeys its bound (None without a bound)."""
        return None if self.bound is None else abs(self.remainder) <= self.bound + 1e-9


def weyl_counts(basis: InvariantBasis, eigenvalues: np.ndarray) -> list[WeylCount]:
    """Counts, main terms and remainder bounds at several eigenvalues below the basis' cutoff.

    Raises
    ------
    InputError
        If an eigenvalue lies above the cutoff of the basis.
    """
    eigenvalues = np.atleast_1d(np.asarray(eigenvalues, dtype=float))
    if eigenvalues.max() > basis.cutoff:
        raise InputError(f"eigenvalues: the basis ends at {basis.cutoff:g}, got {eigenvalues.max():g}")
    action = basis.action
    return [
        WeylCount(
            action.name,
            float(value),
            int(np.searchsorted(basis.eigenvalues, value, side="right")),
            float(weyl_main(action, value)),
            remainder_bound(action, float(value)),
        )
        for value in eigenvalues
    ]


def remainder_bound(action: GroupAction, eigenvalue: float) -> float | None:
    """A proven bound of |count - Weyl's main term| at this eigenvalue, or None.

    Torus: invariant frequencies form a lattice with covering radius at most rho, so the identity
    deviates by less than ``omega ((r + rho)^d - r^d) / covolume``; every other element of the point group
    adds at most the number of frequencies it fixes (Burnside). Sphere: the products of binomials in the
    count of each degree lie between powers of the degree, and ``sum_{l<=L} tr g`` of another element is
    a difference quotient of complete symmetric polynomials, at most
    ``4 C(L + d, d - 1) / max |zeta_a - zeta_b|`` over its eigenvalues zeta.

    Parameters
    ----------
    action : GroupAction
    eigenvalue : float

    Returns
    -------
    float or None
        None for circles with unequal weights on spheres, whose quotient volume is only estimated.
    """
    radius = math.sqrt(eigenvalue)
    if action.space.kind == "torus":
        return _torus_bound(action, radius)
    dim = action.space.dim
    if isinstance(action, FiniteAction):
        degree = degree_below(dim, eigenvalue)
        whole = 2 / math.factorial(dim) * _power_gap(radius, dim / 2, (dim - 1) / 2, dim)
        return (whole + sum(_character_bound(A, degree) for A in action.matrices)) / action.order
    if isinstance(action, BlockRotation):
        m = action.quotient_dim
        whole = _power_gap(radius, (m + 1) / 2, (dim - 1) / 2, m) / math.factorial(m)
        # The flip has trace (-1)^l C(l + m - 1, m - 1): alternating sums stay below the last term.
        last = math.comb(degree_below(dim, eigenvalue) + m - 1, m - 1)
        return (whole + last) / 2 if action.flip else whole
    if {abs(w) for w in action.weights} == {1} and action.space.ambient == 4:
        # The quotient is the round S^2 of radius 1/2: eigenvalues 4 j (j + 1), multiplicity 2 j + 1.
        return _power_gap(radius / 2, 1.0, 0.5, 2)
    return None


def _power_gap(radius: float, up: float, down: float, power: int) -> float:
    """Larger distance of (r + up)^p and (r - down)_+^p from r^p."""
    low = max(radius - down, 0.0) ** power
    return max((radius + up) ** power - radius**power, radius**power - low)


def _torus_bound(action: GroupAction, radius: float) -> float:
    dim = action.quotient_dim
    if isinstance(action, CircleAction):
        v = np.array(action.weights)
        pivot = np.flatnonzero(v)[0]
        sides = [
            1.0 if v[i] == 0 else math.hypot(v[i], v[pivot]) / math.gcd(int(v[i]), int(v[pivot]))
            for i in range(len(v))
            if i != pivot
        ]
        return ball_volume(dim) * _power_gap(radius, sum(sides) / 2, sum(sides) / 2, dim) / np.linalg.norm(v)
    pure = TorusBasis.build(_translations(action), radius**2)
    points = pure.frequencies
    steps = [_period(action, axis) for axis in range(dim)]
    rho = math.hypot(*steps) / 2
    covolume = _translations(action).order
    bound = ball_volume(dim) * _power_gap(radius, rho, rho, dim) / covolume
    matrices = np.unique(action.matrices, axis=0)
    fixed = 0
    for matrix in matrices:
        if (matrix != np.eye(dim)).any():
            still = (points @ matrix == points).all(axis=1)
            fixed += 2 * int(still.sum()) - 1
    return (bound + fixed) / len(matrices)


def _translations(action: FiniteAction) -> FiniteAction:
    pure = (action.matrices == np.eye(action.space.dim)).all(axis=(1, 2))
    return FiniteAction.from_elements(
        action.space, action.matrices[pure], action.shifts[pure], name=f"translations of {action.name}"
    )


def _period(action: FiniteAction, axis: int) -> int:
    """Smallest m with m e_axis an invariant frequency of the translations."""
    turns = _translations(action).shifts[:, axis] / (2 * math.pi)
    for m in range(1, action.order + 1):
        if np.abs(m * turns - np.rint(m * turns)).max() < 1e-6:
            return m
    return action.order


def _character_bound(matrix: np.ndarray, degree: int) -> float:
    size = len(matrix)
    if np.abs(matrix - np.eye(size)).max() < 1e-9:
        return 0.0
    zeta = np.linalg.eigvals(matrix)
    spread = np.abs(zeta[:, None] - zeta[None]).max()
    if spread < 1e-6:
        # g = -1: (1 + t) / (1 + t)^size has coefficients +-C(l + size - 2, size - 2).
        return float(math.comb(degree + size - 2, size - 2))
    return 4 * math.comb(degree + size - 1, size - 2) / spread
