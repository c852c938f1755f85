"""A-posteriori bounds of stationary measures: how far the exact one is from what Newton's iteration left.

The self-consistency ``lambda + grad L(rho(lambda)) / T = 0`` is written in whitened statistics: with
``G = Cov(r) = R R^T`` at the measure found, a change ``R^+T u`` of lambda changes the log density by a
function of length |u| in L2(mu), and the Jacobian is ``1 + K / T`` with ``K = R^T L'' R``, the second
variation over T. By the theorem of Newton and Kantorovich an exact solution lies within ``2 eta / (1 + sqrt(1
- 2 h))``, where ``eta = beta |residual|``, ``beta`` is the inverse of the smallest singular value of the
Jacobian, and ``h = beta l eta <= 1/2`` with a Lipschitz constant l of the Jacobian. Near a transition beta is
large: that factor is in every bound here, and where h is too large nothing is bounded.

Rotations that leave the loss unchanged move a measure along an orbit of solutions; the Jacobian vanishes
along it. The equation is then taken across the orbit: as the free energy does not change along the orbit, its
gradient has no part there, so that a solution of the bordered system is one of the equation itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spectra.temperature.free_energy import FreeEnergy

EPS = np.finfo(float).eps
RANK = 1e-12  # of the largest variance: below it a combination of statistics is constant
ORBIT = 1e-9  # in L2(mu): a rotation that moves the log density less is none
SLIDING = 1e-6  # of T plus the largest eigenvalue: a rotation's second variation that is more was no symmetry
SMALL_MOVE = 0.05  # of the log density, everywhere: inside it third cumulants grow by less than a fifth
MARGIN = 1.2  # exp(2 SMALL_MOVE), and what lies between the points at which the maximum was taken
SYMMETRY = (
    1e-9  # of the sizes that add up over all measures: below it the loss does not change under a rotation
)
PROBES = 40  # random measures at which a symmetry of the loss is looked for
ROUNDINGS = 16  # ulp of the terms that add up in a residual


@dataclass(frozen=True, eq=False)
class Whitened:
    """The second variation of a measure in whitened statistics.

    Parameters
    ----------
    mean, covariance : ndarray, shape (m,), (m, m)
        Of the statistics.
    root : ndarray, shape (m, rank)
        R of ``G = R R^T``.
    curvature : ndarray, shape (m, m)
        L''.
    values : ndarray, shape (rank,)
        ``T + eig(R^T L'' R)``, ascending.
    modes : ndarray, shape (rank, rank)
        Their eigenvectors.
    orbit : ndarray, shape (rank, k)
        Orthonormal directions along which rotations move the measure: exact zeros at a solution.
    across : ndarray, shape (rank - k,)
        Eigenvalues in the complement of the orbit, ascending.
    leak : float
        Frobenius norm of the second variation along the orbit: zero at a solution.
    """

    mean: np.ndarray
    covariance: np.ndarray
    root: np.ndarray
    curvature: np.ndarray
    values: np.ndarray
    modes: np.ndarray
    orbit: np.ndarray
    across: np.ndarray
    leak: float

    @property
    def dual(self) -> np.ndarray:
        """``R^+T``: coefficients of the whitened statistics, shape (m, rank)."""
        return self.root / np.square(self.root).sum(0)


@dataclass(frozen=True)
class StateBound:
    """Absolute bounds of a stationary measure; infinite where no exact one is proved to be near.

    Parameters
    ----------
    radius : float
        Length in L2(mu) of the change of the log density to the exact solution.
    rho, second_variation : float
        Of every potential, and of every eigenvalue.
    density : float
        Relative change of the density anywhere.
    curvature : float
        Of the change of ``R^T L'' R``, which is that of the loss.
    condition : float
        beta, the factor from the residual to the radius (1 far from a transition).
    """

    radius: float
    rho: float
    second_variation: float
    density: float
    curvature: float
    condition: float


def loss_symmetries(energy: FreeEnergy, *, seed: int = 0) -> np.ndarray:
    """Infinitesimal rotations of the space that leave the loss of every measure unchanged.

    Parameters
    ----------
    energy : FreeEnergy
    seed : int
        Of the random measures at which the derivative of the loss along all rotations is taken.

    Returns
    -------
    ndarray, shape (g, rotations)
        Orthonormal combinations of the elementary rotations.
    """
    rng = np.random.default_rng(seed)
    lie = energy.lie_gradients
    rows, sizes = [], []
    for _ in range(PROBES):
        places = rng.choice(len(energy.points), 4)
        weights = rng.dirichlet(np.ones(4))
        slope = energy.slope(weights @ energy.values[places])
        moved = np.einsum("n,anm->am", weights, lie[:, places])
        if np.isfinite(slope).all():
            rows.append(moved @ slope)
            sizes.append(np.abs(moved) @ np.abs(slope))
    if not rows:
        return np.empty((0, len(lie)))
    table = np.array(rows)
    _, found, right = np.linalg.svd(table, full_matrices=True)
    found = np.pad(found, (0, len(right) - len(found)))
    return right[found <= SYMMETRY * np.linalg.norm(sizes)]


def uniform_by_symmetry(energy: FreeEnergy) -> bool:
    """Whether symmetries alone make the uniform measure stationary, at every temperature.

    The derivative of the free energy there is a function of span(R) that no symmetry changes: it is constant
    if span(R) holds no other such function.

    Parameters
    ----------
    energy : FreeEnergy

    Returns
    -------
    bool
    """
    if not len(energy.symmetries):
        return False
    found = whitened(energy, 1.0, np.zeros(energy.values.shape[1]))
    lie = np.tensordot(energy.symmetries, energy.lie_gradients @ found.dual, axes=1)  # (g, N, rank)
    moved = (np.sqrt(energy.uniform_weights)[:, None] * lie).reshape(-1, lie.shape[2])
    return bool(np.linalg.svd(moved, compute_uv=False).min(initial=np.inf) > SLIDING)


def whitened(energy: FreeEnergy, temperature: float, natural: np.ndarray) -> Whitened:
    """The second variation of a measure, with the directions along which rotations move it taken apart.

    Parameters
    ----------
    energy : FreeEnergy
    temperature : float
    natural : ndarray, shape (m,)

    Returns
    -------
    Whitened
    """
    weights = energy.weights(natural)
    mean = weights @ energy.values
    centred = energy.values - mean
    covariance = centred.T @ (weights[:, None] * centred)
    sizes, vectors = np.linalg.eigh(covariance)
    kept = sizes > RANK * sizes[-1]
    root = vectors[:, kept] * np.sqrt(sizes[kept])
    curvature = energy.curvature(mean)
    second = temperature * np.eye(root.shape[1]) + root.T @ curvature @ root
    values, modes = np.linalg.eigh(second)
    orbit = _orbit(energy, natural, weights, centred @ (root / sizes[kept]))
    allowed = SLIDING * (temperature + np.abs(values).max(initial=0.0))
    leak = float(np.linalg.norm(second @ orbit))
    if leak > allowed:
        orbit, leak = orbit[:, :0], 0.0
    rest = np.linalg.svd(orbit, full_matrices=True)[0][:, orbit.shape[1] :]
    across = np.linalg.eigvalsh(rest.T @ second @ rest)
    return Whitened(mean, covariance, root, curvature, values, modes, orbit, across, leak)


def _orbit(
    energy: FreeEnergy, natural: np.ndarray, weights: np.ndarray, statistics: np.ndarray
) -> np.ndarray:
    """Orthonormal basis, in whitened statistics (N, rank), of the density's derivatives along rotations."""
    if not len(energy.symmetries):
        return np.empty((statistics.shape[1], 0))
    moved = energy.symmetries @ (energy.lie_gradients @ natural)  # (g, N)
    left, sizes, _ = np.linalg.svd(statistics.T @ (weights[:, None] * moved.T), full_matrices=False)
    return left[:, sizes > ORBIT]


def bound(energy: FreeEnergy, temperature: float, natural: np.ndarray, found: Whitened) -> StateBound:
    """Bounds of everything at a measure that Newton's iteration has left.

    The moments are those of two independent rules; what they differ by is part of the residual and of the
    second variation. Third derivatives of the loss are taken at the measure, twice their size nearby.

    Parameters
    ----------
    energy : FreeEnergy
    temperature : float
    natural : ndarray, shape (m,)
    found : Whitened

    Returns
    -------
    StateBound
    """
    exact = energy.family.evaluate(natural, order=2)
    root, dual = found.root, found.dual
    slope = energy.slope(found.mean)
    off = np.linalg.norm(exact.mean - found.mean)
    length = float(np.sqrt(np.square(root).sum(0).max(initial=0.0)))  # the columns are orthogonal
    curved = np.linalg.norm(root.T @ found.curvature, 2) if root.size else 0.0
    spread = np.abs(energy.values).max()
    rounding = (
        ROUNDINGS
        * EPS
        * (
            length * (np.linalg.norm(natural) + np.linalg.norm(slope) / temperature)
            + curved * spread / temperature
        )
    )
    residual = (
        np.linalg.norm(root.T @ (natural + slope / temperature)) + curved * off / temperature + rounding
    )
    norm = float(np.abs(found.values - temperature).max(initial=0.0))
    skew = (
        float(np.linalg.norm(dual.T @ (exact.covariance - found.covariance) @ dual, 2)) if root.size else 0.0
    )
    third = 2 * energy.third_derivative(found.mean) * length**3
    gap = float(np.abs(found.across).min(initial=temperature)) - 2 * found.leak - norm * skew
    beta = max(1.0, temperature / gap) if gap > 0 and np.isfinite(residual) else np.inf
    reach = MARGIN * float(np.linalg.norm((energy.values - found.mean) @ dual, axis=1).max())
    lipschitz = MARGIN * (2 * reach * norm + third) / temperature
    eta = beta * residual
    h = beta * lipschitz * eta if np.isfinite(beta) else np.inf
    radius = 2 * eta / (1 + np.sqrt(1 - 2 * h)) if h <= 0.5 else np.inf
    if energy.uniform_by_symmetry:  # one solution is known without any condition
        radius = min(radius, MARGIN * float(np.linalg.norm(root.T @ natural)))
    if not reach * radius <= SMALL_MOVE:
        return StateBound(*[np.inf] * 5, condition=beta)
    widest = float(np.sqrt(np.square(root).sum(1).max(initial=0.0)))
    second = norm * (2 * MARGIN * reach * radius + skew) + MARGIN * third * radius
    return StateBound(
        radius=float(radius),
        rho=float(
            MARGIN * widest * radius + np.abs(exact.mean - found.mean).max() + ROUNDINGS * EPS * spread
        ),
        second_variation=float(second + found.leak + 2 * ROUNDINGS * EPS * (temperature + norm)),
        density=float(MARGIN * 2 * reach * radius + skew),
        curvature=float(MARGIN * third * radius),
        condition=float(beta),
    )
