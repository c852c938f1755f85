"""Particle measures: a network of q neurons as points with weights, and their semiring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold.errors import InputError


@dataclass(frozen=True, eq=False)
class ParticleMeasure:
    """``mu = sum_j w_j delta_{z_j}`` with non-negative weights; the total mass need not be one.

    Parameters
    ----------
    points : Tensor, shape (q, D)
        Particle positions; one row per neuron. Complex points are allowed for algebra.
    weights : Tensor, shape (q,), optional
        Default ``1/q`` each (a network of q neurons).
    scale : Tensor, shape (q, D), optional
        Sizes that the rounding of each coordinate is a unit in the last place of, where it was computed from
        larger numbers; default the sizes of the coordinates themselves. Kept by `to` only.

    Raises
    ------
    InputError
        If shapes disagree, a value is not finite or a weight is negative.
    """

    points: Tensor
    weights: Tensor | None = None
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 2:
            raise InputError(f"points: expected shape (q, D), got {tuple(self.points.shape)}")
        q = len(self.points)
        if self.weights is None:
            real = self.points.real.dtype if self.points.is_complex() else self.points.dtype
            weights = torch.full((q,), 1.0 / max(q, 1), dtype=real, device=self.points.device)
            object.__setattr__(self, "weights", weights)
        if self.weights.shape != (q,):
            raise InputError(f"weights: expected shape ({q},), got {tuple(self.weights.shape)}")
        if not (torch.isfinite(self.points).all() and torch.isfinite(self.weights).all()):
            raise InputError("points and weights: expected finite numbers, got NaN or infinity")
        if q and self.weights.min() < 0:
            raise InputError("weights: expected no negative number (absorb a sign into c)")

    @classmethod
    def one(cls, dimension: int) -> ParticleMeasure:
        """The multiplicative identity ``delta_(1, .., 1)``."""
        return cls(torch.ones(1, dimension, dtype=torch.float64))

    @classmethod
    def zero(cls, dimension: int) -> ParticleMeasure:
        """The additive identity: the measure without particles."""
        return cls(torch.zeros(0, dimension, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.points)

    @property
    def dimension(self) -> int:
        """Dimension D of the space of the particles."""
        return self.points.shape[1]

    @property
    def mass(self) -> float:
        """Total mass ``sum_j w_j``."""
        return float(self.weights.sum())

    def __add__(self, other: ParticleMeasure) -> ParticleMeasure:
        """Sum of measures: the particles side by side, masses add."""
        self._check_same_space(other)
        return ParticleMeasure(
            torch.cat([self.points, other.points]), torch.cat([self.weights, other.weights])
        )

    def __mul__(self, other: ParticleMeasure) -> ParticleMeasure:
        """Product of measures: law of the element-wise product of independent draws.

        The product is taken in the coordinates of the points, so use the coordinates whose monomials
        are meant (complex coefficients for the group task).
        """
        self._check_same_space(other)
        points = (self.points[:, None, :] * other.points[None, :, :]).reshape(-1, self.dimension)
        return ParticleMeasure(points, torch.outer(self.weights, other.weights).reshape(-1))

    def _check_same_space(self, other: ParticleMeasure) -> None:
        if self.dimension != other.dimension:
            raise InputError(
                f"measures: expected the same dimension, got {self.dimension} and {other.dimension}"
            )

    def distinct(self) -> tuple[ParticleMeasure, Tensor]:
        """The same measure with one particle for all copies of a point, their weights added.

        Returns
        -------
        measure : ParticleMeasure
        index : Tensor of int, shape (q,)
            The particle that each of these points became.
        """
        points, index = torch.unique(self.points, dim=0, return_inverse=True)
        if len(points) == len(self):
            return self, torch.arange(len(self), device=self.points.device)
        weights = torch.zeros(len(points), dtype=self.weights.dtype, device=self.weights.device)
        weights.index_add_(0, index, self.weights)
        scale = self.scale
        if scale is not None:
            scale = torch.zeros_like(points).scatter_reduce_(
                0, index[:, None].expand_as(scale), scale, "amax"
            )
        return ParticleMeasure(points, weights, scale), index

    def expectation(self, values: Tensor | Callable[[Tensor], Tensor]) -> Tensor:
        """Integrate functions against the measure: the potentials ``rho_r = sum_j w_j r(z_j)``.

        Parameters
        ----------
        values : Tensor of shape (q, ...) or callable
            Function values at the particles, or a function of the points that returns them.

        Returns
        -------
        Tensor, shape (...)
        """
        values = values(self.points) if callable(values) else values
        return torch.tensordot(self.weights.to(values.dtype), values, dims=1)

    def assigned(self, values: Tensor | Callable[[Tensor], Tensor], target: float, tol: float) -> Tensor:
        """Which potentials equal ``target`` within ``tol``: the 0-set (target 0) or 1-set (target 1).

        Parameters
        ----------
        values : Tensor of shape (q, m) or callable
            As in `expectation`.
        target : float
            Usually 0 or 1.
        tol : float
            Absolute tolerance on ``|rho_r - target|``.

        Returns
        -------
        Tensor of bool, shape (m,)
        """
        return (self.expectation(values) - target).abs() <= tol

    def to(self, device: str | torch.device) -> ParticleMeasure:
        """The same measure on another device."""
        scale = None if self.scale is None else self.scale.to(device)
        return ParticleMeasure(self.points.to(device), self.weights.to(device), scale)
