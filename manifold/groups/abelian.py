"""Finite Abelian groups: elements, characters, and the orthonormal real Fourier basis."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from manifold.errors import InputError

MOST_ORDER = 99_999  # 80 GB for the table of sums alone
MOST_DIGITS = 200  # of all factors together; longer names are not even turned into numbers


@dataclass(frozen=True)
class FiniteAbelianGroup:
    """A product of cyclic groups Z_{n1} x Z_{n2} x ...

    Elements and frequencies are numbered in C order of their coordinates, so element 0 is the
    identity and frequency 0 the trivial character.

    Parameters
    ----------
    orders : tuple of int
        Orders of the cyclic factors, each at least 1 (the product at least 2).

    Raises
    ------
    InputError
        If an order is not a positive integer or the group has fewer than two elements.

    Examples
    --------
    >>> FiniteAbelianGroup.parse("Z4xZ6").order
    24
    """

    orders: tuple[int, ...]

    def __post_init__(self) -> None:
        orders = tuple(int(n) for n in self.orders)
        if not orders or min(orders) < 1 or math.prod(orders) < 2:
            raise InputError(f"group: expected cyclic orders with a product of at least 2, got {self.orders}")
        object.__setattr__(self, "orders", orders)

    @classmethod
    def parse(cls, name: str) -> FiniteAbelianGroup:
        """Read a name such as ``Z23`` or ``Z4xZ6``.

        Parameters
        ----------
        name : str
            Factors ``Z<order>`` joined by ``x``; case and spaces do not matter.

        Returns
        -------
        FiniteAbelianGroup

        Raises
        ------
        InputError
            If the name does not follow that grammar, or the group is absurdly large.
        """
        factors = name.replace(" ", "").lower().split("x")
        if not all(re.fullmatch(r"z[0-9]+", factor) for factor in factors):
            raise InputError(f"group: expected a name like Z23 or Z4xZ6, got {name[:60]!r}")
        digits = sum(len(factor) - 1 for factor in factors)
        orders = tuple(int(factor[1:]) for factor in factors) if digits < MOST_DIGITS else (MOST_ORDER + 1,)
        if math.prod(orders) > MOST_ORDER:
            raise InputError(
                f"group: expected an order of at most {MOST_ORDER:,} (its table of sums has n^2 entries), "
                f"got {name[:60]!r}"
            )
        return cls(orders)

    @property
    def name(self) -> str:
        """The name that `parse` reads, for example ``Z4xZ6``."""
        return "x".join(f"Z{n}" for n in self.orders)

    @property
    def order(self) -> int:
        """Number n of elements."""
        return math.prod(self.orders)

    @cached_property
    def elements(self) -> np.ndarray:
        """Coordinates of the elements (and of the frequencies), shape (n, number of factors)."""
        return np.stack(np.unravel_index(np.arange(self.order), self.orders), axis=1)

    def index(self, coordinates: np.ndarray) -> np.ndarray:
        """Numbers of the elements with these coordinates (taken modulo the orders), shape (...,)."""
        coordinates = np.mod(np.asarray(coordinates), np.array(self.orders))
        return np.ravel_multi_index(tuple(np.moveaxis(coordinates, -1, 0)), self.orders)

    @cached_property
    def sums(self) -> np.ndarray:
        """Cayley table: ``sums[x, y]`` is the number of x + y, shape (n, n)."""
        return self.index(self.elements[:, None, :] + self.elements[None, :, :])

    @cached_property
    def negatives(self) -> np.ndarray:
        """``negatives[k]`` is the number of -k, shape (n,)."""
        return self.index(-self.elements)

    @cached_property
    def characters(self) -> np.ndarray:
        """``characters[x, k] = chi_k(x)``, unnormalised (modulus one), complex, shape (n, n)."""
        # Reduce the phase as an integer first: exp of a large argument would lose digits.
        period = math.lcm(*self.orders)
        scale = np.array([period // n for n in self.orders])
        phase = (self.elements * scale) @ self.elements.T % period
        table = np.exp(2j * np.pi * np.arange(period) / period)
        return table[phase]

    @cached_property
    def real_columns(self) -> tuple[tuple[int, str], ...]:
        """What each column of `real_basis` is: (frequency, part), part in ``real``, ``cos``, ``sin``.

        The trivial character comes first, then the other characters of order two (``real``), then each
        conjugate pair {k, -k} as two neighbouring columns, ``cos`` and ``sin``, both under the smaller
        number k of the pair. So the pairs are a strided slice and need no index arrays.
        """
        fixed = [(k, "real") for k, minus_k in enumerate(self.negatives) if k == minus_k]
        pairs = [(k, part) for k, m in enumerate(self.negatives) if k < m for part in ("cos", "sin")]
        return (*fixed, *pairs)

    @cached_property
    def real_basis(self) -> np.ndarray:
        """Orthonormal real Fourier basis, one column per entry of `real_columns`, shape (n, n).

        With ``a = sqrt(n) * real_basis @ z`` the coordinates obey ``|z|^2 = |a|^2 / n``, and for a
        conjugate pair ``z_cos = sqrt2 Re z_k``, ``z_sin = -sqrt2 Im z_k`` where ``a = sum_k z_k chi_k``.
        """
        part = {"real": np.real, "cos": lambda c: np.sqrt(2) * c.real, "sin": lambda c: np.sqrt(2) * c.imag}
        columns = [part[kind](self.characters[:, k]) for k, kind in self.real_columns]
        return np.stack(columns, axis=1) / np.sqrt(self.order)

    @cached_property
    def conjugate_pairs(self) -> tuple[int, ...]:
        """One frequency k of each pair {k, -k}, self-conjugate ones included, the trivial one not."""
        return tuple(int(k) for k in range(1, self.order) if k <= self.negatives[k])

    def fourier(self, values: np.ndarray) -> np.ndarray:
        """Coefficients z_k of functions on the group, ``values = sum_k z_k chi_k``.

        Parameters
        ----------
        values : ndarray, shape (n, ...)
            Functions along the first axis.

        Returns
        -------
        ndarray, complex, shape (n, ...)
            ``z_k = (1/n) sum_x values[x] conj(chi_k(x))``.
        """
        return np.tensordot(self.characters.conj().T, values, axes=1) / self.order

    def inverse_fourier(self, coefficients: np.ndarray) -> np.ndarray:
        """Functions from their coefficients: ``sum_k z_k chi_k``, complex, shape (n, ...)."""
        return np.tensordot(self.characters, coefficients, axes=1)
