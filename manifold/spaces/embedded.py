"""Where particles live: spheres, circles, tori, their products, Euclidean space, Stiefel manifolds, SO(d)."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError

GRAMMAR = (
    "S<d> (unit sphere of dimension d in R^(d+1)), T<d> (torus of d circles), R<d> (Euclidean), "
    "SO<d> (rotations, d x d matrices row by row), V<n>,<p> (orthonormal p-frames, n x p row by row), "
    "and products such as S2xS1"
)


class Space(ABC):
    """A Riemannian manifold embedded in ``R^ambient`` with the metric it inherits from there.

    Measures on compact spaces are referred to the *uniform probability measure* (Riemannian volume
    divided by `volume`); on Euclidean space to Lebesgue measure.
    """

    name: str
    dimension: int
    ambient: int

    @property
    @abstractmethod
    def volume(self) -> float:
        """Riemannian volume (surface measure), infinite for Euclidean space."""

    @abstractmethod
    def uniform(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Independent uniform points, shape (count, ambient), float64."""

    @abstractmethod
    def project(self, points: Tensor) -> Tensor:
        """Nearest points of the space, shape (q, ambient)."""

    @abstractmethod
    def tangent(self, points: Tensor, vectors: Tensor) -> Tensor:
        """Orthogonal projection of ambient vectors on the tangent spaces, shape (q, ambient)."""

    @abstractmethod
    def geodesic(self, points: Tensor, velocities: Tensor, time: float = 1.0) -> tuple[Tensor, Tensor]:
        """Follow geodesics: end points and end velocities (the parallel-transported velocities)."""

    @abstractmethod
    def to_pymanopt(self):
        """The same manifold as a pymanopt ``Manifold``."""

    @property
    def factors(self) -> tuple[Space, ...]:
        """The irreducible factors of a product (the space itself when it is none)."""
        return (self,)

    @property
    def compact(self) -> bool:
        """Whether every continuous density has a finite integral."""
        return True


def sphere_volume(dimension: int) -> float:
    """Surface measure of the unit sphere ``S^d``: ``2 pi^{(d+1)/2} / Gamma((d+1)/2)``."""
    half = (dimension + 1) / 2
    return math.exp(math.log(2) + half * math.log(math.pi) - math.lgamma(half))


@dataclass(frozen=True)
class Sphere(Space):
    """The unit sphere ``S^d`` in ``R^(d+1)``, ``d >= 1``; ``S^1`` is the circle.

    Raises
    ------
    InputError
        If the dimension is not a positive integer.
    """

    dimension: int

    def __post_init__(self) -> None:
        if int(self.dimension) != self.dimension or self.dimension < 1:
            raise InputError(f"sphere: expected a dimension of at least 1, got {self.dimension}")

    @property
    def name(self) -> str:
        """``S<d>``."""
        return f"S{self.dimension}"

    @property
    def ambient(self) -> int:
        """``d + 1``."""
        return self.dimension + 1

    @property
    def volume(self) -> float:
        """Surface measure."""
        return sphere_volume(self.dimension)

    def uniform(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Normalised Gaussian vectors."""
        return self.project(torch.randn(count, self.ambient, dtype=torch.float64, generator=generator))

    def project(self, points: Tensor) -> Tensor:
        """``x / |x|``."""
        return points / points.norm(dim=-1, keepdim=True)

    def tangent(self, points: Tensor, vectors: Tensor) -> Tensor:
        """``v - <x, v> x``."""
        return vectors - (points * vectors).sum(-1, keepdim=True) * points

    def geodesic(self, points: Tensor, velocities: Tensor, time: float = 1.0) -> tuple[Tensor, Tensor]:
        """Great circles; velocities must be tangent."""
        speed = velocities.norm(dim=-1, keepdim=True)
        angle = speed * time
        cos, sin = torch.cos(angle), torch.sin(angle)
        unit = velocities / speed.clamp_min(torch.finfo(points.dtype).tiny)
        return points * cos + unit * sin, (unit * cos - points * sin) * speed

    def to_pymanopt(self):
        """``pymanopt.manifolds.Sphere``."""
        from pymanopt.manifolds import Sphere as PymanoptSphere

        return PymanoptSphere(self.ambient)


@dataclass(frozen=True)
class Euclidean(Space):
    """``R^D`` with Lebesgue measure as the reference of densities and entropies.

    Raises
    ------
    InputError
        If the dimension is not a positive integer.
    """

    dimension: int

    def __post_init__(self) -> None:
        if int(self.dimension) != self.dimension or self.dimension < 1:
            raise InputError(f"Euclidean space: expected a dimension of at least 1, got {self.dimension}")

    name = property(lambda self: f"R{self.dimension}", doc="``R<D>``.")
    ambient = property(lambda self: self.dimension, doc="``D``.")
    volume = property(lambda self: math.inf, doc="Infinite.")
    compact = property(lambda self: False, doc="False.")

    def uniform(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """There is no uniform probability measure on ``R^D``.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError("R<d> has no uniform probability measure; use a compact space")

    def project(self, points: Tensor) -> Tensor:
        """The points themselves."""
        return points

    def tangent(self, points: Tensor, vectors: Tensor) -> Tensor:
        """The vectors themselves."""
        return vectors

    def geodesic(self, points: Tensor, velocities: Tensor, time: float = 1.0) -> tuple[Tensor, Tensor]:
        """Straight lines."""
        return points + time * velocities, velocities

    def to_pymanopt(self):
        """``pymanopt.manifolds.Euclidean``."""
        from pymanopt.manifolds import Euclidean as PymanoptEuclidean

        return PymanoptEuclidean(self.dimension)


@dataclass(frozen=True)
class Stiefel(Space):
    """Orthonormal p-frames in ``R^n`` as flattened (n, p) matrices, embedded metric; integrated by sampling.

    Raises
    ------
    InputError
        Unless ``1 <= p < n`` (for ``p = n`` take `SpecialOrthogonal`).
    """

    n: int
    p: int

    def __post_init__(self) -> None:
        if not 1 <= self.p < self.n:
            raise InputError(f"Stiefel: expected 1 <= p < n, got n = {self.n}, p = {self.p}")

    name = property(lambda self: f"V{self.n},{self.p}", doc="``V<n>,<p>``.")
    ambient = property(lambda self: self.n * self.p, doc="``n p``.")
    dimension = property(lambda self: self.n * self.p - self.p * (self.p + 1) // 2, doc="Dimension.")

    @property
    def volume(self) -> float:
        """Volume in the embedded metric: product of sphere volumes times ``2^{p(p-1)/4}``."""
        spheres = math.prod(sphere_volume(self.n - 1 - i) for i in range(self.p))
        return spheres * 2 ** (self.p * (self.p - 1) / 4)

    def _matrices(self, points: Tensor) -> Tensor:
        return points.reshape(*points.shape[:-1], self.n, self.p)

    def uniform(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Polar factors of Gaussian matrices."""
        return self.project(torch.randn(count, self.ambient, dtype=torch.float64, generator=generator))

    def project(self, points: Tensor) -> Tensor:
        """Polar factor (nearest frame)."""
        u, _, vh = torch.linalg.svd(self._matrices(points), full_matrices=False)
        return (u @ vh).reshape(points.shape)

    def tangent(self, points: Tensor, vectors: Tensor) -> Tensor:
        """``V - X sym(X^T V)``."""
        x, v = self._matrices(points), self._matrices(vectors)
        gram = x.mT @ v
        return (v - x @ (gram + gram.mT) / 2).reshape(points.shape)

    def geodesic(self, points: Tensor, velocities: Tensor, time: float = 1.0) -> tuple[Tensor, Tensor]:
        """Embedded-metric geodesics ``[X, V] expm(t [[A, -S], [I, A]]) [[I], [0]] expm(-t A)``."""
        x, v = self._matrices(points), self._matrices(velocities)
        a, s = x.mT @ v, v.mT @ v
        eye = torch.eye(self.p, dtype=x.dtype, device=x.device).expand_as(a)
        big = torch.cat([torch.cat([a, -s], -1), torch.cat([eye, a], -1)], -2)
        flow = torch.matrix_exp(time * big)
        back = torch.matrix_exp(-time * a)
        frame = torch.cat([x, v], -1) @ flow
        end, velocity = frame[..., : self.p] @ back, frame[..., self.p :] @ back
        return end.reshape(points.shape), velocity.reshape(points.shape)

    def to_pymanopt(self):
        """``pymanopt.manifolds.Stiefel``."""
        from pymanopt.manifolds import Stiefel as PymanoptStiefel

        return PymanoptStiefel(self.n, self.p)


@dataclass(frozen=True)
class SpecialOrthogonal(Stiefel):
    """Rotations ``SO(d)`` as flattened (d, d) matrices in the embedded metric; integrated by sampling.

    Raises
    ------
    InputError
        If ``d < 2``.
    """

    def __init__(self, d: int):
        if d < 2:
            raise InputError(f"SO(d): expected d of at least 2, got {d}")
        object.__setattr__(self, "n", d)
        object.__setattr__(self, "p", d)

    def __post_init__(self) -> None:
        """Checked on construction."""

    name = property(lambda self: f"SO{self.n}", doc="``SO<d>``.")
    dimension = property(lambda self: self.n * (self.n - 1) // 2, doc="``d(d-1)/2``.")

    @property
    def volume(self) -> float:
        """Half of the volume of O(d)."""
        return super().volume / 2

    def project(self, points: Tensor) -> Tensor:
        """Nearest rotation: the polar factor with its least singular direction flipped when needed."""
        u, _, vh = torch.linalg.svd(self._matrices(points))
        sign = torch.det(u @ vh).sign()
        u = torch.cat([u[..., :-1], u[..., -1:] * sign[..., None, None]], -1)
        return (u @ vh).reshape(points.shape)

    def to_pymanopt(self):
        """``pymanopt.manifolds.SpecialOrthogonalGroup``."""
        from pymanopt.manifolds import SpecialOrthogonalGroup

        return SpecialOrthogonalGroup(self.n)


@dataclass(frozen=True)
class Product(Space):
    """Cartesian product; ambient coordinates side by side.

    Raises
    ------
    InputError
        If there is no factor.
    """

    parts: tuple[Space, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("product: expected at least one factor")

    @property
    def name(self) -> str:
        """``T<d>`` for d circles, otherwise the factors joined by ``x``."""
        if all(factor == Sphere(1) for factor in self.factors):
            return f"T{len(self.factors)}"
        return "x".join(part.name for part in self.parts)

    @cached_property
    def factors(self) -> tuple[Space, ...]:
        """Irreducible factors from left to right."""
        return tuple(factor for part in self.parts for factor in part.factors)

    dimension = property(lambda self: sum(f.dimension for f in self.factors), doc="Sum of dimensions.")
    ambient = property(lambda self: sum(f.ambient for f in self.factors), doc="Sum of ambient dimensions.")
    volume = property(lambda self: math.prod(f.volume for f in self.factors), doc="Product of volumes.")
    compact = property(lambda self: all(f.compact for f in self.factors), doc="All factors compact.")

    def split(self, points):
        """Cut ambient coordinates into those of the factors (tensors or arrays)."""
        ends = np.cumsum([f.ambient for f in self.factors])
        return [points[..., end - f.ambient : end] for f, end in zip(self.factors, ends, strict=True)]

    def uniform(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Independent uniform points of the factors."""
        return torch.cat([f.uniform(count, generator=generator) for f in self.factors], -1)

    def project(self, points: Tensor) -> Tensor:
        """Factor by factor."""
        return torch.cat([f.project(x) for f, x in zip(self.factors, self.split(points), strict=True)], -1)

    def tangent(self, points: Tensor, vectors: Tensor) -> Tensor:
        """Factor by factor."""
        pieces = zip(self.factors, self.split(points), self.split(vectors), strict=True)
        return torch.cat([f.tangent(x, v) for f, x, v in pieces], -1)

    def geodesic(self, points: Tensor, velocities: Tensor, time: float = 1.0) -> tuple[Tensor, Tensor]:
        """Factor by factor."""
        pieces = zip(self.factors, self.split(points), self.split(velocities), strict=True)
        ends = [f.geodesic(x, v, time) for f, x, v in pieces]
        return torch.cat([x for x, _ in ends], -1), torch.cat([v for _, v in ends], -1)

    def to_pymanopt(self):
        """``pymanopt.manifolds.Product`` of the factors."""
        from pymanopt.manifolds import Product as PymanoptProduct

        return PymanoptProduct([f.to_pymanopt() for f in self.factors])


def Circle() -> Sphere:
    """The unit circle in R^2."""
    return Sphere(1)


def Torus(dimension: int) -> Space:
    """The flat torus of ``dimension`` unit circles, in ``R^(2 dimension)``: ``z_k = exp(i theta_k)``."""
    return Product(tuple(Sphere(1) for _ in range(dimension)))


def parse_space(name: str) -> Space:
    """Read the name of a space: ``S5``, ``T3``, ``R2``, ``S2xS1``, ``SO3``, ``V4,2``.

    Parameters
    ----------
    name : str
        Factors joined by ``x``; case and spaces do not matter.

    Returns
    -------
    Space

    Raises
    ------
    InputError
        If the name does not follow the grammar or the dimension is above 4096.
    """
    kinds = {"S": Sphere, "T": Torus, "R": Euclidean, "SO": SpecialOrthogonal, "V": Stiefel}
    parts = []
    for word in name.replace(" ", "").upper().split("X"):
        match = re.fullmatch(
            r"(?:(SO|[STR])([1-9][0-9]{0,3}))|(?:(V)([1-9][0-9]{0,2}),([1-9][0-9]{0,2}))", word
        )
        sizes = [] if match is None else [int(v) for v in match.groups() if v and v.isdigit()]
        if match is None or max(sizes) > 4096:
            raise InputError(f"space: expected {GRAMMAR}; got {name!r}")
        parts.append(kinds[match[1] or match[3]](*sizes))
    return parts[0] if len(parts) == 1 else Product(tuple(parts))
