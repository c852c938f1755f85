"""A set R of monomials in real coordinates or in complex coefficient coordinates."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError


@dataclass(frozen=True)
class Monomials:
    """Real functions ``Re`` or ``Im`` of ``prod_p zeta_p^{e_p}`` with linear coordinates ``zeta = C z``.

    With ``coordinates=None`` the coordinates are the real ones themselves (``zeta = z``), which gives
    ordinary real monomials. Complex coefficient coordinates list a conjugate pair as two rows of C.

    Parameters
    ----------
    exponents : array_like of int, shape (m, P)
        Non-negative exponents, one row per monomial.
    coordinates : array_like, shape (P, D), optional
        Linear map from points z in R^D to the coordinates zeta; real or complex.
    imaginary : array_like of bool, shape (m,), optional
        True where the function is the imaginary part of the monomial; default: the real part everywhere.
    names : sequence of str, optional
        One name per monomial; default: built from the exponents.

    Raises
    ------
    InputError
        If shapes disagree or an exponent is negative.
    """

    exponents: np.ndarray
    coordinates: np.ndarray | None = None
    imaginary: np.ndarray | None = None
    names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        exponents = np.atleast_2d(np.asarray(self.exponents, dtype=np.int64))
        if exponents.size and exponents.min() < 0:
            raise InputError("exponents: expected non-negative integers, got a negative one")
        count, width = exponents.shape
        coordinates = None if self.coordinates is None else np.asarray(self.coordinates)
        if coordinates is not None and coordinates.shape[0] != width:
            raise InputError(
                f"coordinates: expected {width} rows (one per exponent column), got {coordinates.shape[0]}"
            )
        imaginary = np.zeros(count, bool) if self.imaginary is None else np.asarray(self.imaginary, bool)
        if imaginary.shape != (count,):
            raise InputError(f"imaginary: expected one flag per monomial ({count}), got {imaginary.shape}")
        names = tuple(self.names) or tuple(_name(row) for row in exponents)
        if len(names) != count:
            raise InputError(f"names: expected {count}, got {len(names)}")
        for key, value in [("exponents", exponents), ("coordinates", coordinates), ("imaginary", imaginary)]:
            object.__setattr__(self, key, value)
        object.__setattr__(self, "names", names)

    def __len__(self) -> int:
        return len(self.exponents)

    @property
    def dimension(self) -> int:
        """Dimension D of the points."""
        return self.exponents.shape[1] if self.coordinates is None else self.coordinates.shape[1]

    @property
    def degrees(self) -> np.ndarray:
        """Total degree of each monomial, shape (m,)."""
        return self.exponents.sum(axis=1)

    def _coordinates(self, points: Tensor) -> tuple[Tensor, Tensor]:
        if points.shape[-1] != self.dimension:
            raise InputError(f"points: expected shape (q, {self.dimension}), got {tuple(points.shape)}")
        matrix = np.eye(self.dimension) if self.coordinates is None else self.coordinates
        matrix = torch.as_tensor(matrix, device=points.device)
        matrix = matrix.to(torch.complex128 if matrix.is_complex() else points.dtype)
        return points.to(matrix.dtype) @ matrix.T, matrix

    def _real_part(self, values: Tensor) -> Tensor:
        if not values.is_complex():
            return values
        imaginary = torch.as_tensor(self.imaginary, device=values.device)
        # The monomial axis of a Jacobian is the second one, of values the last one: both are axis 1.
        imaginary = imaginary.reshape((1, -1) + (1,) * (values.ndim - 2))
        return torch.where(imaginary, values.imag, values.real)

    def values(self, points: Tensor) -> Tensor:
        """Values of the real functions at points.

        Parameters
        ----------
        points : Tensor, shape (q, D)

        Returns
        -------
        Tensor, shape (q, m)
        """
        zeta, _ = self._coordinates(points)
        return self._real_part(_products(zeta, self.exponents))

    def jacobian(self, points: Tensor) -> Tensor:
        """Gradients of the real functions with respect to the points.

        Parameters
        ----------
        points : Tensor, shape (q, D)

        Returns
        -------
        Tensor, shape (q, m, D)
        """
        zeta, matrix = self._coordinates(points)
        total = torch.zeros(len(points), len(self), self.dimension, dtype=matrix.dtype, device=points.device)
        for p in np.nonzero(self.exponents.any(axis=0))[0]:
            rows = np.nonzero(self.exponents[:, p])[0]
            lowered = self.exponents[rows]
            lowered[:, p] -= 1
            powers = torch.as_tensor(self.exponents[rows, p], device=points.device)
            partial = _products(zeta, lowered) * powers
            total[:, rows] += partial[:, :, None] * matrix[p]
        return self._real_part(total)


def _products(zeta: Tensor, exponents: np.ndarray) -> Tensor:
    """``prod_p zeta_p^{e_p}``, factor by factor: memory stays q x m, 0^0 = 1, and torch.func can follow."""
    count, width = exponents.shape
    degrees = exponents.sum(axis=1)
    rows, columns = np.nonzero(exponents)
    powers = exponents[rows, columns]
    rows, columns = np.repeat(rows, powers), np.repeat(columns, powers)
    place = np.arange(len(rows)) - (np.cumsum(degrees) - degrees)[rows]
    factors = np.full((count, max(1, degrees.max(initial=0))), width)
    factors[rows, place] = columns
    factors = torch.as_tensor(factors, device=zeta.device)
    padded = torch.cat([zeta, zeta.new_ones(len(zeta), 1)], dim=1)  # the last column: no factor
    result = padded[:, factors[:, 0]]
    for column in factors.T[1:]:
        result = result * padded[:, column]
    return result


def _name(exponents: np.ndarray) -> str:
    factors = [f"x{i + 1}" + (f"^{e}" if e > 1 else "") for i, e in enumerate(exponents) if e]
    return "*".join(factors) or "1"
