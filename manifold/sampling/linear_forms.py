"""Values and gradients of ``u . r`` for batches of points: matrix products in, matrix products out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from manifold.monomials import Monomials


class LinearForm:
    """``u . r`` and its ambient gradient, each monomial a product of linear factors.

    Every monomial is written as a product of the same number of factors (missing ones are the constant 1), so
    that the factors of all monomials at all points are one matrix product, and the gradient another.

    Parameters
    ----------
    monomials : Monomials
    device : str
    """

    def __init__(self, monomials: Monomials, *, device: str = "cpu"):
        degree = max(int(monomials.degrees.max(initial=1)), 1)
        matrix = np.eye(monomials.dimension) if monomials.coordinates is None else monomials.coordinates
        slots = np.zeros((len(monomials), degree, monomials.dimension), matrix.dtype)
        offset = np.ones((len(monomials), degree), matrix.dtype)
        for i, exponents in enumerate(monomials.exponents):
            chosen = np.repeat(np.arange(len(exponents)), exponents)
            slots[i, : len(chosen)] = matrix[chosen]
            offset[i, : len(chosen)] = 0
        if monomials.imaginary.any():  # Im p = Re(-i p)
            turn = np.where(monomials.imaginary, -1j, 1.0)
            slots = slots.astype(complex)
            offset = offset.astype(complex)
            slots[:, 0] *= turn[:, None]
            offset[:, 0] *= turn
        self.shape = (len(monomials), degree)
        self.largest = max(degree, 1)
        self.complex = np.iscomplexobj(slots) and bool(np.abs(slots.imag).max() > 0)
        flat = slots.reshape(-1, monomials.dimension)
        self.real = torch.as_tensor(np.ascontiguousarray(flat.real), device=device)
        self.imag = torch.as_tensor(np.ascontiguousarray(flat.imag), device=device) if self.complex else None
        self.offset = torch.as_tensor(offset if self.complex else offset.real, device=device)

    def _factors(self, points: Tensor) -> Tensor:
        real = points @ self.real.T
        factors = torch.complex(real, points @ self.imag.T) if self.complex else real
        return factors.reshape(-1, *self.shape) + self.offset

    def values(self, points: Tensor) -> Tensor:
        """The monomials themselves, shape (q, m)."""
        product = self._factors(points).prod(-1)
        return product.real if self.complex else product

    def __call__(self, points: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Values (q,) and ambient gradients (q, D) of ``u . r``."""
        factors = self._factors(points)
        columns = factors.unbind(-1)
        before = [torch.ones_like(columns[0])]
        for column in columns[:-1]:
            before.append(before[-1] * column)
        after = direction.to(factors.dtype).expand_as(columns[0])
        value = (before[-1] * columns[-1] * after).sum(-1)
        partial = []
        for k in range(len(columns) - 1, -1, -1):
            partial.append(before[k] * after)
            after = after * columns[k]
        partial = torch.stack(partial[::-1], -1).reshape(len(points), -1)
        if not self.complex:
            return value, partial @ self.real
        return value.real, partial.real @ self.real - partial.imag @ self.imag
