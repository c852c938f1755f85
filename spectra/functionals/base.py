"""Functionals of measures, ``H[mu] = L(rho_1, .., rho_m)``, and their first and second variation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import override

from manifold.errors import InputError
from manifold.measures import ParticleMeasure

BOTH = ("interaction", "local")


class Linearisation(ABC):
    """A functional at one measure: value, first variation, second variation on vector fields.

    Vector fields v along the particles have shape (k, q, D) (k fields at once). The second variation is
    ``(Lv)(z) = sum_ij L''_ij E<grad r_j, v> grad r_i(z) + Hess V(z) v(z)``: *interaction* plus *local*.
    It is the Hessian (positive eigenvalue = contracting) and self-adjoint in L2(mu),
    ``<u, v> = sum_j w_j u_j . v_j``. For weights 1/q it is q times the Hessian of H in the points.
    """

    measure: ParticleMeasure

    @property
    @abstractmethod
    def value(self) -> float:
        """H[mu]."""

    @property
    @abstractmethod
    def gradient(self) -> Tensor:
        """``grad V(z_j)``, shape (q, D); the derivative of H in z_j is w_j times it."""

    @abstractmethod
    def product(self, fields: Tensor, parts: tuple[str, ...] = BOTH) -> Tensor:
        """Apply the second variation, or one of its parts, to fields of shape (k, q, D)."""

    def local_blocks(self) -> Tensor:
        """``Hess V(z_j)`` of every particle, shape (q, D, D)."""
        q, dimension = self.measure.points.shape
        columns = []
        for i in range(dimension):
            unit = torch.zeros(1, q, dimension, dtype=self.gradient.dtype, device=self.gradient.device)
            unit[..., i] = 1
            columns.append(self.product(unit, ("local",))[0])
        return torch.stack(columns, dim=2)

    @abstractmethod
    def flat_kernel(self) -> Tensor:
        """Flat (L2) second variation at the particles, ``sum_ij L''_ij r_i(z_j) r_j(z_l)``, (q, q)."""

    @abstractmethod
    def potential_gradients(self) -> Tensor:
        """Gradients at the particles of functions spanning span(R), (q, m, D); m may exceed the rank."""

    @abstractmethod
    def slope_norm(self) -> float:
        """Norm of grad L in independent potentials: zero exactly at MP-critical measures."""

    def symmetry_fields(self) -> Tensor:
        """Directions per particle orthogonal to every gradient of R, shape (q, g, D); default none."""
        q, dimension = self.measure.points.shape
        return torch.zeros(q, 0, dimension, dtype=self.gradient.dtype, device=self.gradient.device)

    def reached(self) -> Tensor:
        """Coordinates of each particle in which some function of R has a slope, bool (q, D); default all."""
        return torch.ones_like(self.measure.points, dtype=torch.bool)

    @property
    def null_count(self) -> int:
        """Dimensions of fields that the second variation maps to exactly zero; default none known."""
        return 0


class Functional(ABC):
    """A smooth functional of measures that depends on finitely many potentials."""

    @abstractmethod
    def linearise(self, measure: ParticleMeasure) -> Linearisation:
        """Value, first and second variation at a measure."""

    @property
    @abstractmethod
    def potential_count(self) -> int:
        """Number m of independent potentials."""

    @property
    def convex(self) -> bool:
        """Whether L is convex, so that the interaction part is positive semi-definite; default: unknown."""
        return False

    def metric(self) -> Functional | None:
        """A functional whose interaction part is a positive definite form of all gradients of R.

        The range of that part is T_R: it tells the rank without a matrix of gradients. Default: none known.
        """
        return None

    def choices(self) -> list[Functional]:
        """The same functional with other slopes where the potentials have kinks; default: no kinks."""
        return []

    def shaken(self, seed: int) -> Functional:
        """The same with its own intermediate results moved at random, far above rounding; default: none."""
        return self

    def value(self, measure: ParticleMeasure) -> float:
        """H[mu]."""
        return self.linearise(measure).value

    def gradient(self, measure: ParticleMeasure) -> Tensor:
        """``grad V(z_j)``, shape (q, D)."""
        return self.linearise(measure).gradient


class PotentialFunctional(Functional):
    """Any differentiable potentials and any loss of them, by automatic differentiation.

    Parameters
    ----------
    potentials : callable
        Maps points of shape (q, D) to values r_i(z_j) of shape (q, m); must treat rows independently and
        be twice differentiable by torch.func.
    loss : callable
        Maps potentials rho of shape (m,) to the scalar L(rho).
    count : int
        The number m of potentials.

    Raises
    ------
    InputError
        If ``count`` is not positive.
    """

    def __init__(
        self, potentials: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor], *, count: int
    ):
        if count < 1:
            raise InputError(f"count: expected at least one potential, got {count}")
        self.potentials, self.loss, self._count = potentials, loss, count

    @property
    def potential_count(self) -> int:
        """Number m of potentials."""
        return self._count

    def linearise(self, measure: ParticleMeasure) -> Linearisation:
        """Value, first and second variation at a measure, by automatic differentiation."""
        return _AutodiffLinearisation(self, measure)


class _AutodiffLinearisation(Linearisation):
    def __init__(self, functional: PotentialFunctional, measure: ParticleMeasure):
        self.measure, self._functional = measure, functional
        self._values = functional.potentials(measure.points)
        if self._values.shape != (len(measure), functional.potential_count):
            raise InputError(
                f"potentials: expected values of shape ({len(measure)}, {functional.potential_count}), "
                f"got {tuple(self._values.shape)}"
            )
        self._rho = measure.expectation(self._values)
        self._slope = torch.func.grad(functional.loss)(self._rho)

    @property
    @override
    def value(self) -> float:
        return float(self._functional.loss(self._rho))

    def _first_variation(self, points: Tensor) -> Tensor:
        # Summed over particles: rows are independent, so its gradient is grad V at each of them.
        return (self._functional.potentials(points) @ self._slope).sum()

    @property
    @override
    def gradient(self) -> Tensor:
        return torch.func.grad(self._first_variation)(self.measure.points)

    @override
    def product(self, fields: Tensor, parts: tuple[str, ...] = BOTH) -> Tensor:
        result = torch.zeros_like(fields)
        points, potentials = self.measure.points, self._functional.potentials
        slope = torch.func.grad(self._functional.loss)
        for i, field in enumerate(fields):
            if "interaction" in parts:
                _, change = torch.func.jvp(potentials, (points,), (field,))
                _, response = torch.func.jvp(slope, (self._rho,), (self.measure.weights @ change,))
                _, pullback = torch.func.vjp(potentials, points)
                result[i] += pullback(response.expand(len(points), -1))[0]
            if "local" in parts:
                result[i] += torch.func.jvp(torch.func.grad(self._first_variation), (points,), (field,))[1]
        return result

    @override
    def slope_norm(self) -> float:
        return float(self._slope.norm())

    @override
    def flat_kernel(self) -> Tensor:
        curvature = torch.func.hessian(self._functional.loss)(self._rho)
        return self._values @ curvature @ self._values.T

    @override
    def potential_gradients(self) -> Tensor:
        single = torch.func.jacrev(lambda point: self._functional.potentials(point[None])[0])
        return torch.func.vmap(single)(self.measure.points)


class Decayed(Functional):
    """A functional plus the potential ``kappa |z|^2 / 2`` per neuron: the objective of decayed training.

    Parameters
    ----------
    functional : Functional
        The undecayed loss.
    strength : float
        kappa; for L2 decay ``wd |theta|^2 / 2`` in raw weights it is ``GroupNetwork.decay_strength(wd)``.

    Raises
    ------
    InputError
        If the strength is negative.
    """

    def __init__(self, functional: Functional, strength: float):
        if strength < 0:
            raise InputError(f"strength: expected a non-negative decay, got {strength}")
        self.functional, self.strength = functional, strength

    @property
    def potential_count(self) -> int:
        """Potentials of the undecayed loss; |z|^2 acts as a fixed outer potential, not as a symbol."""
        return self.functional.potential_count

    @property
    @override
    def convex(self) -> bool:
        return self.functional.convex

    @override
    def metric(self) -> Functional | None:
        return self.functional.metric()

    @override
    def choices(self) -> list[Functional]:
        return [Decayed(other, self.strength) for other in self.functional.choices()]

    @override
    def shaken(self, seed: int) -> Decayed:
        return Decayed(self.functional.shaken(seed), self.strength)

    def linearise(self, measure: ParticleMeasure) -> Linearisation:
        """Value, first and second variation of the decayed objective."""
        return _DecayedLinearisation(self.functional.linearise(measure), self.strength)


class _DecayedLinearisation(Linearisation):
    def __init__(self, inner: Linearisation, strength: float):
        self.inner, self.strength, self.measure = inner, strength, inner.measure

    @property
    @override
    def value(self) -> float:
        squares = self.measure.points.square().sum(1)
        return self.inner.value + 0.5 * self.strength * float(self.measure.expectation(squares))

    @property
    @override
    def gradient(self) -> Tensor:
        return self.inner.gradient + self.strength * self.measure.points

    @override
    def product(self, fields: Tensor, parts: tuple[str, ...] = BOTH) -> Tensor:
        result = self.inner.product(fields, parts)
        return result + self.strength * fields if "local" in parts else result

    @override
    def local_blocks(self) -> Tensor:
        blocks = self.inner.local_blocks()
        return blocks + self.strength * torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)

    @override
    def flat_kernel(self) -> Tensor:
        return self.inner.flat_kernel()

    @override
    def potential_gradients(self) -> Tensor:
        return self.inner.potential_gradients()

    @override
    def slope_norm(self) -> float:
        return self.inner.slope_norm()

    @override
    def symmetry_fields(self) -> Tensor:
        return self.inner.symmetry_fields()

    @override
    def reached(self) -> Tensor:
        return self.inner.reached()

    @property
    @override
    def null_count(self) -> int:
        return 0 if self.strength else self.inner.null_count
