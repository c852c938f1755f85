"""Free energy at a temperature: stationary maximum-entropy measures, their stability, phase transitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError, NotConvergedError
from manifold.maxent import MaxEntFamily
from manifold.monomials import Monomials
from manifold.spaces import Space
from spectra.noisy_flow import DEGREES, NODES, NoisyFlow, rule

RESIDUAL = 1e-12
ZERO = 1e-8  # eigenvalues below this, relative to T plus the largest one, are zero
SAME = 1e-6
UNCERTAIN = 1e-12  # eigenvalues below this times T have no certain sign


@dataclass(frozen=True, eq=False)
class ThermalState:
    """A stationary measure of the noisy flow at temperature T.

    Parameters
    ----------
    temperature : float
        T.
    natural : ndarray, shape (m,)
        ``lambda = -grad L(rho) / T`` of the density ``exp(lambda . r) / Z`` against the uniform measure.
    rho : ndarray, shape (m,)
        Its potentials ``E r``.
    free_energy : float
        ``L(rho) + T E log density``.
    second_variation : ndarray, shape (rank,)
        ``T + eig(G^(1/2) L'' G^(1/2))``, ``G = Cov(r)``, ascending; flat metric, not rates;
        negative = unstable.
    rates : ndarray
        Lowest rates of the noisy flow, per unit of flow time: positive = decaying. Not second variations.
    rate_errors : ndarray
        Their change when the polynomial degree is lowered by two.
    symmetry_zeros : int
        Zeros of the second variation explained by rotations of the space.
    error : float
        Absolute bound of rho and of the second variation: residual of the self-consistency plus the change
        against the adaptive integration of the maximum-entropy family.
    """

    temperature: float
    natural: np.ndarray
    rho: np.ndarray
    free_energy: float
    second_variation: np.ndarray
    rates: np.ndarray
    rate_errors: np.ndarray
    symmetry_zeros: int
    error: float

    @property
    def uniform(self) -> bool:
        """Whether the density is constant."""
        return bool(np.abs(self.natural).max() < SAME)


@dataclass(frozen=True)
class Transition:
    """A temperature at which a state changes its stability.

    Parameters
    ----------
    low, high : float
        Bracket in T; the smallest non-symmetry eigenvalue has certain, different signs at its ends.
    direction : str
        ``up``: unstable below and stable above; ``down``: the other way round.
    """

    low: float
    high: float
    direction: str


class FreeEnergy:
    """``F_T[mu] = L(E r) + T integral mu log mu`` on a compact space.

    Parameters
    ----------
    space : Space
        A sphere or product of spheres of dimension at most 4.
    monomials : Monomials
        The statistics r.
    loss : callable
        Maps potentials (m,) to L, differentiable twice by torch.

    Raises
    ------
    InputError
        If the space is too large for the rates.
    """

    def __init__(self, space: Space, monomials: Monomials, loss: Callable[[Tensor], Tensor]):
        if space.dimension not in NODES:
            raise InputError(f"{space.name}: expected a space of dimension 1 to {max(NODES)}")
        self.space, self.monomials, self.loss = space, monomials, loss
        self.family = MaxEntFamily(space, monomials)
        self.points, self.uniform_weights = rule(space)
        self.values = monomials.values(torch.as_tensor(self.points)).numpy()

    @cached_property
    def _lie_gradients(self) -> np.ndarray:
        """Derivatives of the statistics along infinitesimal rotations, shape (rotations, N, m)."""
        jacobian = self.monomials.jacobian(torch.as_tensor(self.points)).numpy()
        found, offset = [], 0
        for factor in self.space.factors:
            for i in range(offset, offset + factor.ambient):
                for j in range(i + 1, offset + factor.ambient):
                    found.append(
                        self.points[:, i, None] * jacobian[:, :, j]
                        - self.points[:, j, None] * jacobian[:, :, i]
                    )
            offset += factor.ambient
        return np.stack(found)

    @cached_property
    def _flows(self) -> tuple[NoisyFlow, NoisyFlow]:
        """The generator at full degree and two degrees lower, to see how far rates are converged."""
        degree = DEGREES[self.space.dimension]
        return tuple(NoisyFlow(self.space, self.points, degree=d) for d in (degree, degree - 2))

    def slope(self, rho: np.ndarray) -> np.ndarray:
        """``grad L``, shape (m,)."""
        return self._slope(torch.tensor(rho, requires_grad=True), graph=False).numpy()

    def _slope(self, rho: Tensor, *, graph: bool) -> Tensor:
        (slope,) = torch.autograd.grad(self.loss(rho), rho, create_graph=graph)
        return slope

    def curvature(self, rho: np.ndarray) -> np.ndarray:
        """``L''``, shape (m, m)."""
        at = torch.tensor(rho, requires_grad=True)
        slope = self._slope(at, graph=True)
        if not slope.requires_grad:  # a linear loss
            return np.zeros((len(rho), len(rho)))
        rows = [torch.autograd.grad(one, at, retain_graph=True)[0] for one in slope]
        return torch.stack(rows).numpy()

    def weights(self, natural: np.ndarray) -> np.ndarray:
        """Weights of the density at the quadrature points, shape (N,)."""
        exponents = self.values @ natural
        weights = self.uniform_weights * np.exp(exponents - exponents.max())
        return weights / weights.sum()

    def _moments(self, natural: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights = self.weights(natural)
        mean = weights @ self.values
        centred = self.values - mean
        return mean, centred.T @ (weights[:, None] * centred)

    def solve(self, temperature: float, start: np.ndarray, *, iterations: int = 60) -> np.ndarray:
        """Newton iteration for ``lambda = -grad L(E_lambda r) / T``.

        Parameters
        ----------
        temperature : float
            T > 0.
        start : ndarray, shape (m,)
            First lambda.
        iterations : int
            At most.

        Returns
        -------
        ndarray, shape (m,)

        Raises
        ------
        NotConvergedError
            If the residual does not fall below rounding level.
        """

        def residual(natural: np.ndarray) -> np.ndarray:
            return natural + self.slope(self._moments(natural)[0]) / temperature

        natural = np.array(start, float)
        now = residual(natural)
        for _ in range(iterations):
            size = np.abs(now).max()
            if size < RESIDUAL * (1 + np.abs(natural).max()):
                return natural
            mean, covariance = self._moments(natural)
            matrix = np.eye(len(natural)) + self.curvature(mean) @ covariance / temperature
            step = np.linalg.lstsq(matrix, -now, rcond=1e-9)[0]  # rotations cost nothing
            for _ in range(30):
                there = residual(natural + step)
                if np.isfinite(there).all() and np.abs(there).max() < size:
                    break
                step = step / 2
            else:
                break
            natural, now = natural + step, there
        if np.abs(now).max() < 1e3 * RESIDUAL * (1 + np.abs(natural).max()):
            return natural
        raise NotConvergedError(
            f"temperature {temperature:g}: the self-consistency has a residual of {np.abs(now).max():.1e}; "
            "start nearer, on a finer grid of temperatures", partial=natural,
        )  # fmt: skip

    def _stability(self, temperature: float, natural: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Second variation (rank,) and its eigenfunctions as coefficients of r (m, rank)."""
        mean, covariance = self._moments(natural)
        sizes, vectors = np.linalg.eigh(covariance)
        kept = sizes > 1e-12 * max(sizes[-1], 1e-300)
        root = vectors[:, kept] * np.sqrt(sizes[kept])
        values, modes = np.linalg.eigh(root.T @ self.curvature(mean) @ root)
        return temperature + values, (vectors[:, kept] / np.sqrt(sizes[kept])) @ modes

    def second_variation(self, temperature: float, natural: np.ndarray) -> np.ndarray:
        """``T + eig(G^(1/2) L'' G^(1/2))`` on centred span(R), ascending."""
        return self._stability(temperature, natural)[0]

    def symmetry_zeros(self, temperature: float, natural: np.ndarray) -> int:
        """Zero eigenvalues whose eigenfunctions are infinitesimal rotations of the density."""
        values, modes = self._stability(temperature, natural)
        zero = np.abs(values) < ZERO * (temperature + np.abs(values).max())
        rotations = self._lie_gradients @ natural  # (rotations, N)
        weights = self.weights(natural)
        rotations = np.sqrt(weights) * (rotations - (rotations @ weights)[:, None])
        _, sizes, basis = np.linalg.svd(rotations, full_matrices=False)
        basis = basis[sizes > 1e-9 * max(1.0, sizes.max(initial=0.0))]
        functions = np.sqrt(weights)[:, None] * ((self.values - weights @ self.values) @ modes[:, zero])
        inside = np.linalg.svd(basis @ functions, compute_uv=False) if zero.any() and len(basis) else []
        return int((np.array(inside) > 1 - 1e-6).sum())

    def state(self, temperature: float, natural: np.ndarray, *, rates: int = 8) -> ThermalState:
        """Everything about a stationary measure found by `solve`."""
        weights, mean = self.weights(natural), self._moments(natural)[0]
        exact = self.family.evaluate(natural, order=2)
        covariance = self._moments(natural)[1]
        curvature = self.curvature(mean)
        error = float(
            np.abs(natural + self.slope(mean) / temperature).max() * temperature
            + np.abs(exact.mean - mean).max()
            + np.linalg.norm(curvature, 2) * np.linalg.norm(exact.covariance - covariance, 2)
            + 1e-14
        )
        density = weights / self.uniform_weights
        entropy = float(weights @ np.log(density.clip(min=1e-300)))
        fine, coarse = (
            flow.rates(weights, self.values, curvature, temperature)[:rates] for flow in self._flows
        )
        padded = np.pad(coarse, (0, len(fine) - len(coarse)), constant_values=np.nan)
        return ThermalState(
            temperature, natural, mean, float(self.loss(torch.as_tensor(mean))) + temperature * entropy,
            self.second_variation(temperature, natural), fine, np.abs(fine - padded),
            self.symmetry_zeros(temperature, natural), error,
        )  # fmt: skip

    def starts(self, temperature: float, *, count: int = 6, seed: int = 0) -> list[np.ndarray]:
        """First guesses: the uniform measure, and measures that point to random places of the space."""
        chosen = np.random.default_rng(seed).choice(len(self.points), min(count, len(self.points)), False)
        ends = [-self.slope(self.values[i]) / temperature for i in chosen]
        return [np.zeros(self.values.shape[1]), *ends]


def follow_branches(
    energy: FreeEnergy, temperatures: Sequence[float], *, seed: int = 0,
    progress: Callable[[float, float, str], None] | None = None,
) -> list[list[np.ndarray | None]]:  # fmt: skip
    """Branches of stationary measures through ascending temperatures, by continuation.

    At every temperature the branches of the one before are continued and new ones looked for; states that
    a rotation maps to each other (equal free energy and equal second variation) are one branch.

    Parameters
    ----------
    energy : FreeEnergy
    temperatures : sequence of float
        Ascending, positive.
    seed : int
        Of the first guesses.
    progress : callable, optional
        Called with (temperatures done, temperatures, message).

    Returns
    -------
    list of list
        Per branch: lambda at each temperature, None where the branch does not exist.

    Raises
    ------
    InputError
        If the temperatures are not ascending and positive.
    """
    grid = np.asarray(temperatures, float)
    if not len(grid) or grid[0] <= 0 or (np.diff(grid) <= 0).any() or not np.isfinite(grid).all():
        raise InputError("temperatures: expected ascending positive numbers")
    branches: list[list[np.ndarray | None]] = []
    for i, temperature in enumerate(grid):
        if progress is not None:
            progress(i, len(grid), f"branches at T = {temperature:.4g}")
        marks: list[np.ndarray] = []
        guesses = [(branch, branch[-1]) for branch in branches if branch[-1] is not None]
        guesses += [(None, start) for start in energy.starts(temperature, seed=seed)]
        for branch in branches:
            branch.append(None)
        for branch, start in guesses:
            try:
                natural = energy.solve(temperature, start)
            except NotConvergedError:
                continue
            mark = _fingerprint(energy, temperature, natural)
            if any(np.allclose(mark, other, atol=SAME, rtol=0) for other in marks):
                continue
            marks.append(mark)
            if branch is None:
                branches.append([None] * i + [natural])
            else:
                branch[-1] = natural
    return branches


def _fingerprint(energy: FreeEnergy, temperature: float, natural: np.ndarray) -> np.ndarray:
    spread = np.sqrt(max(0.0, float(natural @ energy._moments(natural)[1] @ natural)))
    return np.append(energy.second_variation(temperature, natural), spread)


def find_transitions(
    energy: FreeEnergy, temperatures: Sequence[float], branch: Sequence[np.ndarray | None], *,
    width: float = 1e-8,
) -> list[Transition]:  # fmt: skip
    """Temperatures at which a branch changes its stability, bracketed by bisection.

    Parameters
    ----------
    energy : FreeEnergy
    temperatures, branch
        From `follow_branches`.
    width : float
        Wanted width of the bracket.

    Returns
    -------
    list of Transition
    """

    def lowest(temperature: float, natural: np.ndarray) -> float:
        values = energy.second_variation(temperature, natural)
        zeros = energy.symmetry_zeros(temperature, natural)
        far = np.argsort(np.abs(values))[zeros:]
        return float(values[far].min()) if len(far) else temperature

    found = []
    for i in range(len(temperatures) - 1):
        if branch[i] is None or branch[i + 1] is None:
            continue
        low, high, start = temperatures[i], temperatures[i + 1], branch[i]
        signs = [np.sign(lowest(low, start)), np.sign(lowest(high, branch[i + 1]))]
        if signs[0] * signs[1] >= 0:
            continue
        while high - low > width:
            # Off the middle: a grid laid symmetrically around the transition would hit it, without a sign.
            middle = low + 0.47 * (high - low)
            try:
                natural = energy.solve(middle, start)
            except NotConvergedError:
                break
            value = lowest(middle, natural)
            if abs(value) < UNCERTAIN * middle:  # the bracket is as narrow as signs are certain
                break
            if np.sign(value) == signs[0]:
                low, start = middle, natural
            else:
                high = middle
        found.append(Transition(float(low), float(high), "up" if signs[1] > 0 else "down"))
    return found
