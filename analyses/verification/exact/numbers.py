"""Two kinds of numbers with more digits than a double: hardware extended precision, and 240 binary places.

Formulas of the referee are written once for both: arrays, sums and differences are NumPy's; products and
conversions come from here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import mpmath
import numpy as np
from typing_extensions import override

PLACES = 240  # binary places of fixed-point numbers: 72 decimal ones
DIGITS = 75  # of mpmath, where functions are evaluated for them
SMALL_PRODUCT = 1e6  # multiplications that NumPy's plain loop does faster than slices through BLAS
EXTENDED_BITS = -int(np.log2(np.finfo(np.longdouble).eps))  # 63 on x86; 52 where long double is double


class Numbers(ABC):
    """Arithmetic on arrays of one kind of number.

    Attributes
    ----------
    eps : float
        Relative rounding of one operation (absolute for fixed-point numbers of size one).
    name : str
        For the reader.
    """

    eps: float
    name: str

    @abstractmethod
    def of(self, values: np.ndarray | float) -> np.ndarray:
        """Doubles, taken over exactly."""

    @abstractmethod
    def ratio(self, above: int, below: int) -> object:
        """The number ``above / below``."""

    @abstractmethod
    def root(self, above: int, below: int) -> object:
        """The square root of ``above / below``."""

    @abstractmethod
    def mul(self, x: object, y: object) -> np.ndarray:
        """Elementwise product."""

    @abstractmethod
    def dot(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Matrix product."""

    @abstractmethod
    def apply(self, function: Callable[[object], object], x: np.ndarray) -> np.ndarray:
        """A function of mpmath numbers, element by element."""

    @abstractmethod
    def unit(self, values: np.ndarray) -> np.ndarray:
        """A vector scaled to length one."""

    @abstractmethod
    def extended(self, values: np.ndarray) -> np.ndarray:
        """As numpy.longdouble, rounded once."""

    def zeros(self, *shape: int) -> np.ndarray:
        """Zeros of a shape."""
        return self.of(np.zeros(shape))


class Extended(Numbers):
    """``numpy.longdouble``: 64 bits of mantissa on x86, for sizes that integers cannot reach."""

    eps = float(np.finfo(np.longdouble).eps)
    name = f"{EXTENDED_BITS + 1}-bit extended precision"

    @override
    def of(self, values: np.ndarray | float) -> np.ndarray:
        return np.asarray(values, dtype=np.longdouble)

    @override
    def ratio(self, above: int, below: int) -> object:
        return np.longdouble(above) / np.longdouble(below)

    @override
    def root(self, above: int, below: int) -> object:
        return np.sqrt(np.longdouble(above) / np.longdouble(below))

    @override
    def mul(self, x: object, y: object) -> np.ndarray:
        return x * y

    @override
    def dot(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return extended_product(x, y)

    @override
    def apply(self, function: Callable[[object], object], x: np.ndarray) -> np.ndarray:
        with mpmath.workdps(25):
            flat = [_longdouble(function(_mpf(value))) for value in np.asarray(x).reshape(-1)]
        return np.array(flat, dtype=np.longdouble).reshape(np.shape(x))

    @override
    def unit(self, values: np.ndarray) -> np.ndarray:
        return values / np.sqrt((values * values).sum())

    @override
    def extended(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, dtype=np.longdouble)


class Fixed(Numbers):
    """Integers in units of ``2^-240``, in NumPy arrays of objects: 72 decimal places whatever the size."""

    eps = 2.0**-PLACES
    name = "72-digit fixed point"

    @override
    def of(self, values: np.ndarray | float) -> np.ndarray:
        flat = [_fixed_of(value) for value in np.asarray(values, dtype=np.float64).reshape(-1)]
        out = np.empty(len(flat), dtype=object)
        out[:] = flat
        return out.reshape(np.shape(values))

    @override
    def ratio(self, above: int, below: int) -> object:
        return (above << PLACES) // below

    @override
    def root(self, above: int, below: int) -> object:
        return math.isqrt((above << 2 * PLACES) // below)

    @override
    def mul(self, x: object, y: object) -> np.ndarray:
        return (x * y) >> PLACES

    @override
    def dot(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y) >> PLACES

    @override
    def apply(self, function: Callable[[object], object], x: np.ndarray) -> np.ndarray:
        with mpmath.workdps(DIGITS):
            flat = [
                int(mpmath.ldexp(function(mpmath.ldexp(mpmath.mpf(value), -PLACES)), PLACES))
                for value in np.asarray(x).reshape(-1)
            ]
        out = np.empty(len(flat), dtype=object)
        out[:] = flat
        return out.reshape(np.shape(x))

    @override
    def unit(self, values: np.ndarray) -> np.ndarray:
        size = math.isqrt(int((values * values).sum()))
        return np.array([(value << PLACES) // size for value in values], dtype=object)

    @override
    def extended(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, dtype=object)
        bits = max((abs(int(v)).bit_length() for v in values.reshape(-1)), default=0)
        out = np.zeros(values.shape, dtype=np.longdouble)
        rest, shift = values, max(0, bits - 62)
        for _ in range(3):  # 62 bits at a time: far below the rounding of the sum
            part = rest >> shift
            out += np.ldexp(part.astype(np.int64).astype(np.longdouble), shift - PLACES)
            rest, shift = rest - (part << shift), max(0, shift - 62)
        return out


class Double(Numbers):
    """Doubles: what the extended assembly is compared with to see how much of it is rounding."""

    eps = float(np.finfo(np.float64).eps)
    name = "double precision"

    @override
    def of(self, values: np.ndarray | float) -> np.ndarray:
        return np.asarray(values, dtype=np.float64)

    @override
    def ratio(self, above: int, below: int) -> object:
        return above / below

    @override
    def root(self, above: int, below: int) -> object:
        return (above / below) ** 0.5

    @override
    def mul(self, x: object, y: object) -> np.ndarray:
        return x * y

    @override
    def dot(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return x @ y

    @override
    def apply(self, function: Callable[[object], object], x: np.ndarray) -> np.ndarray:
        with mpmath.workdps(18):
            flat = [float(function(mpmath.mpf(float(value)))) for value in np.asarray(x).reshape(-1)]
        return np.array(flat).reshape(np.shape(x))

    @override
    def unit(self, values: np.ndarray) -> np.ndarray:
        return values / np.linalg.norm(values)

    @override
    def extended(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, dtype=np.longdouble)


EXTENDED, FIXED, DOUBLE = Extended(), Fixed(), Double()


def _fixed_of(value: float) -> int:
    above, below = float(value).as_integer_ratio()
    return (above << PLACES) // below


def _mpf(value: np.longdouble) -> mpmath.mpf:
    high = float(value)
    return mpmath.mpf(high) + mpmath.mpf(float(value - np.longdouble(high)))


def _longdouble(value: mpmath.mpf) -> np.longdouble:
    high = float(value)
    return np.longdouble(high) + np.longdouble(float(value - high))


def extended_product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Matrix product in extended precision; large ones through exact products of slices in doubles.

    Each factor is cut into slices of so few bits that BLAS adds their products without rounding (Ozaki and
    others, Numerical Algorithms 59, 2012); the slices are added in extended precision.

    Parameters
    ----------
    x : ndarray of longdouble, shape (k, l)
    y : ndarray of longdouble, shape (l, m) or (l,)

    Returns
    -------
    ndarray of longdouble
    """
    if y.ndim == 1 or x.ndim == 1 or x.shape[0] * x.shape[1] * y.shape[1] < SMALL_PRODUCT:
        return x @ y
    bits = (53 - max(1, math.ceil(math.log2(x.shape[1])))) // 2
    count = math.ceil((EXTENDED_BITS + 3) / bits)
    left, row = _slices(x, 1, bits, count)
    right, column = _slices(y, 0, bits, count)
    total = np.zeros((x.shape[0], y.shape[1]), dtype=np.longdouble)
    for i in reversed(range(count)):
        for j in reversed(range(count - i)):
            total += np.ldexp((left[i] @ right[j]).astype(np.longdouble), -bits * (i + j + 2))
    return np.ldexp(total, row + column)


def _slices(x: np.ndarray, axis: int, bits: int, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Integers of few bits with ``x = 2^exponent sum_i slice_i 2^(-bits (i+1))``."""
    exponent = np.frexp(np.abs(x).max(axis=axis, keepdims=True))[1]
    rest, out = np.ldexp(x, -exponent), []
    for _ in range(count):
        rest = np.ldexp(rest, bits)
        part = np.rint(rest)
        out.append(part.astype(np.float64))
        rest = rest - part
    return out, exponent
