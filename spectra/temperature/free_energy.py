"""Free energy at a temperature: stationary maximum-entropy measures and their stability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError, NotConvergedError
from manifold.maxent.family import MaxEntFamily
from manifold.monomials import Monomials
from manifold.spaces.embedded import Space
from spectra.temperature.bounds import EPS, Whitened, bound, loss_symmetries, uniform_by_symmetry, whitened
from spectra.temperature.noisy_flow import DEGREES, NODES, NoisyFlow, rule

RESIDUAL = 1e-12  # of 1 + |lambda|: Newton's iteration has converged
REMEMBERED = 16  # measures whose second variation is kept: it is asked for again at once
POLISH = 4  # more steps at most, while they gain
UNIFORM = 1e-6  # largest |lambda| of a density that is called constant


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
        Their bound from that of the density, plus their change when the polynomial degree is lowered by two
        (an estimate of what the degree leaves out, not a bound); infinite where the density has no bound.
    symmetry_zeros : int
        Zeros of the second variation that are exact: along them rotations move the measure.
    lowest : float
        Smallest eigenvalue of the second variation that is no such zero.
    rho_error, second_variation_error : float
        Absolute bounds of every potential and of every eigenvalue; infinite where none could be proved. They
        hold the condition of the self-consistency equation (see `spectra.temperature.bounds`).
    condition : float
        That condition: the factor from the residual to the error, large near a transition.
    """

    temperature: float
    natural: np.ndarray
    rho: np.ndarray
    free_energy: float
    second_variation: np.ndarray
    rates: np.ndarray
    rate_errors: np.ndarray
    symmetry_zeros: int
    lowest: float
    rho_error: float
    second_variation_error: float
    condition: float

    @property
    def error(self) -> float:
        """Absolute bound of rho and of the second variation."""
        return max(self.rho_error, self.second_variation_error)

    @property
    def stable(self) -> bool | None:
        """Whether the second variation is positive but for exact zeros; None where its bound is too wide."""
        return None if abs(self.lowest) <= self.second_variation_error else self.lowest > 0

    @property
    def uniform(self) -> bool:
        """Whether the density is constant."""
        return bool(np.abs(self.natural).max() < UNIFORM)


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
        self._memory: dict[tuple[float, bytes], Whitened] = {}

    @cached_property
    def lie_gradients(self) -> np.ndarray:
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
    def symmetries(self) -> np.ndarray:
        """Combinations of these rotations that leave the loss unchanged, shape (g, rotations)."""
        return loss_symmetries(self)

    @cached_property
    def uniform_by_symmetry(self) -> bool:
        """Whether symmetries alone make the uniform measure stationary."""
        return uniform_by_symmetry(self)

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

    def third_derivative(self, rho: np.ndarray) -> float:
        """Frobenius norm of the third derivatives of the loss, a bound of how fast ``L''`` changes."""
        at = torch.tensor(rho, requires_grad=True)
        slope = self._slope(at, graph=True)
        total = 0.0
        for one in slope if slope.requires_grad else ():
            (row,) = torch.autograd.grad(
                one, at, create_graph=True, allow_unused=True, materialize_grads=True
            )
            for entry in row if row.requires_grad else ():
                (third,) = torch.autograd.grad(
                    entry, at, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                total += float(third.square().sum())
        return total**0.5

    def weights(self, natural: np.ndarray) -> np.ndarray:
        """Weights of the density at the quadrature points, shape (N,)."""
        exponents = self.values @ natural
        weights = self.uniform_weights * np.exp(exponents - exponents.max())
        return weights / weights.sum()

    def moments(self, natural: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (m,) and covariance (m, m) of the statistics, by the rule of this class."""
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
        natural = np.array(start, float)
        now = self._residual(temperature, natural)
        for _ in range(iterations):
            size = np.abs(now).max()
            if size < RESIDUAL * (1 + np.abs(natural).max()):
                return self._polished(temperature, natural)
            step = np.linalg.lstsq(self._jacobian(temperature, natural), -now, rcond=1e-9)[0]
            for _ in range(30):  # rotations cost nothing
                there = self._residual(temperature, natural + step)
                if np.isfinite(there).all() and np.abs(there).max() < size:
                    break
                step = step / 2
            else:
                break
            natural, now = natural + step, there
        if np.abs(now).max() < 1e3 * RESIDUAL * (1 + np.abs(natural).max()):
            return self._polished(temperature, natural)
        raise NotConvergedError(
            f"temperature {temperature:g}: the self-consistency has a residual of {np.abs(now).max():.1e}; "
            "start nearer, on a finer grid of temperatures", partial=natural,
        )  # fmt: skip

    def _residual(self, temperature: float, natural: np.ndarray) -> np.ndarray:
        return natural + self.slope(self.moments(natural)[0]) / temperature

    def _jacobian(self, temperature: float, natural: np.ndarray) -> np.ndarray:
        mean, covariance = self.moments(natural)
        return np.eye(len(natural)) + self.curvature(mean) @ covariance / temperature

    def _polished(self, temperature: float, natural: np.ndarray) -> np.ndarray:
        """Down to rounding by steps across the orbit of rotations, along which the equation says nothing."""
        if self.uniform_by_symmetry and np.abs(natural).max() < UNIFORM:
            return np.zeros_like(
                natural
            )  # what is left is rounding; so near it other branches are not told apart
        now = self._residual(temperature, natural)
        for _ in range(POLISH):
            if np.abs(now).max() <= EPS * (1 + np.abs(natural).max()):
                break
            found = self.whitened(temperature, natural)
            border = (found.dual @ found.orbit).T
            matrix = np.vstack([self._jacobian(temperature, natural), border])
            right = np.append(-now, np.zeros(len(border)))
            there = natural + np.linalg.lstsq(matrix, right, rcond=None)[0]
            left = self._residual(temperature, there)
            if not np.isfinite(left).all() or np.abs(left).max() >= np.abs(now).max():
                break
            natural, now = there, left
        return natural

    def whitened(self, temperature: float, natural: np.ndarray) -> Whitened:
        """The second variation in whitened statistics, with its exact zeros apart."""
        key = (temperature, natural.tobytes())
        if key not in self._memory:
            if len(self._memory) > REMEMBERED:
                self._memory.clear()
            self._memory[key] = whitened(self, temperature, natural)
        return self._memory[key]

    def second_variation(self, temperature: float, natural: np.ndarray) -> np.ndarray:
        """``T + eig(G^(1/2) L'' G^(1/2))`` on centred span(R), ascending."""
        return self.whitened(temperature, natural).values

    def symmetry_zeros(self, temperature: float, natural: np.ndarray) -> int:
        """Zero eigenvalues along which rotations that leave the loss unchanged move the density."""
        return self.whitened(temperature, natural).orbit.shape[1]

    def sign(self, temperature: float, natural: np.ndarray) -> int:
        """1 for a stable measure, -1 for an unstable one, 0 where the bound does not tell."""
        found = self.whitened(temperature, natural)
        lowest = found.across.min(initial=temperature)
        error = bound(self, temperature, natural, found).second_variation
        return 0 if abs(lowest) <= error else int(np.sign(lowest))

    def value(self, temperature: float, natural: np.ndarray) -> tuple[float, float]:
        """Free energy of a stationary measure, and what two rules and rounding leave open in it."""
        exact = self.family.evaluate(natural, order=2)
        weights = self.weights(natural)
        mean = weights @ self.values
        density = (weights / self.uniform_weights).clip(min=1e-300)
        entropies = np.array([
            float(weights @ np.log(density)), float(natural @ exact.mean - exact.log_partition)
        ])  # fmt: skip
        losses = np.array([float(self.loss(torch.as_tensor(rho))) for rho in (mean, exact.mean)])
        values = losses + temperature * entropies
        scale = np.abs(losses).max() + temperature * (1 + np.abs(natural) @ np.abs(mean))
        return float(values[1]), float(abs(values[1] - values[0]) + 64 * EPS * scale)

    def state(self, temperature: float, natural: np.ndarray, *, rates: int = 8) -> ThermalState:
        """Everything about a stationary measure found by `solve`."""
        weights, found = self.weights(natural), self.whitened(temperature, natural)
        limits = bound(self, temperature, natural, found)
        fine, coarse = (
            flow.rates(weights, self.values, found.curvature, temperature, count=rates)
            for flow in self._flows
        )
        missing = np.pad(coarse.values, (0, len(fine.values) - len(coarse.values)), constant_values=np.nan)
        moved = np.expm1(min(limits.density, 1.0)) if np.isfinite(limits.density) else np.inf
        moved = moved * (np.abs(fine.values) + temperature * fine.masses) + limits.curvature * fine.masses
        return ThermalState(
            temperature=temperature, natural=natural, rho=found.mean,
            free_energy=self.value(temperature, natural)[0], second_variation=found.values,
            rates=fine.values, rate_errors=np.abs(fine.values - missing) + moved,
            symmetry_zeros=found.orbit.shape[1], lowest=float(found.across.min(initial=temperature)),
            rho_error=limits.rho, second_variation_error=limits.second_variation, condition=limits.condition,
        )  # fmt: skip

    def starts(self, temperature: float, *, count: int = 6, seed: int = 0) -> list[np.ndarray]:
        """First guesses: the uniform measure, and measures that point to random places of the space."""
        chosen = np.random.default_rng(seed).choice(len(self.points), min(count, len(self.points)), False)
        ends = [-self.slope(self.values[i]) / temperature for i in chosen]
        return [np.zeros(self.values.shape[1]), *ends]
