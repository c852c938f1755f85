"""Flat tori and round spheres: dimension, volume, uniform samples, Laplace eigenvalues."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from manifold.errors import InputError


def ball_volume(dim: int) -> float:
    """Volume omega_dim of the unit ball in R^dim (omega_0 = 1)."""
    return math.pi ** (dim / 2) / math.gamma(dim / 2 + 1)


def sphere_volume(dim: int) -> float:
    """Riemannian volume of the unit sphere S^dim in R^(dim+1) (S^0 has two points, volume 2)."""
    return (dim + 1) * ball_volume(dim + 1)


@dataclass(frozen=True)
class SpectralSpace:
    """The flat torus T^d = (R / 2 pi Z)^d or the unit sphere S^d in R^(d+1).

    Points of a torus are angles, shape (n, d); points of a sphere are unit vectors, shape (n, d+1).
    Laplace eigenvalues are those of the positive Laplacian: |k|^2 on the torus, l (l + d - 1) on S^d.

    Parameters
    ----------
    kind : {"torus", "sphere"}
    dim : int
        Riemannian dimension d, at least 1 for a torus and 2 for a sphere (the circle is T1).

    Raises
    ------
    InputError
        If the kind or the dimension is not one of these.
    """

    kind: str
    dim: int

    def __post_init__(self) -> None:
        least = {"torus": 1, "sphere": 2}.get(self.kind)
        if least is None:
            raise InputError(f"space: expected kind torus or sphere, got {self.kind!r}")
        if self.dim < least:
            raise InputError(f"space: expected a {self.kind} of dimension >= {least}, got {self.dim}")

    @classmethod
    def parse(cls, name: str) -> SpectralSpace:
        """Read ``T<d>`` or ``S<d>``, for example ``T1`` (the circle), ``T2``, ``S3``.

        Raises
        ------
        InputError
            If the name is neither.
        """
        match = re.fullmatch(r"([TS])([0-9]{1,2})", name.strip().upper())
        if not match:
            raise InputError(f"space: expected T1, T2, .. or S2, S3, .., got {name!r}")
        return cls({"T": "torus", "S": "sphere"}[match[1]], int(match[2]))

    @property
    def name(self) -> str:
        """The name that `parse` reads."""
        return f"{'T' if self.kind == 'torus' else 'S'}{self.dim}"

    @property
    def ambient(self) -> int:
        """Number of coordinates of a point: d on the torus, d + 1 on the sphere."""
        return self.dim + (self.kind == "sphere")

    @property
    def volume(self) -> float:
        """Riemannian volume: (2 pi)^d, or that of the unit sphere."""
        return (2 * math.pi) ** self.dim if self.kind == "torus" else sphere_volume(self.dim)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Independent uniform points, shape (count, ambient)."""
        if self.kind == "torus":
            return rng.uniform(0.0, 2 * math.pi, (count, self.dim))
        points = rng.standard_normal((count, self.ambient))
        return points / np.linalg.norm(points, axis=1, keepdims=True)
