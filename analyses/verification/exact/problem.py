"""A trained network as the raw numbers that were stored, and what it was trained on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import numpy as np

from analyses.verification.exact.numbers import Numbers

KINKED = ("relu", "abs")
KINK_CHOICES = (0.0, 0.5, 1.0)  # of ReLU'(0); |x| has the slope 2 t - 1


@dataclass(frozen=True, eq=False)
class RawProblem:
    """The network ``o(x, y) = s sum_j c_j sigma(a_j[x] + b_j[y])`` and its objective, in raw weights.

    Parameters
    ----------
    orders : tuple of int
        Of the cyclic factors of the group; elements are numbered in C order.
    a, b, c : ndarray of float64, shape (n, q)
        As stored (16 and 32 bit numbers are doubles exactly); ``b=None``: tied.
    scale : float
        s.
    activation : str or tuple of float
        ``square``, ``relu``, ``abs``, ``gelu``, ``tanh``, or coefficients of a polynomial, constant first.
    loss : str
        ``projected_mse``, ``mse`` or ``cross_entropy``, means over pairs.
    pairs : ndarray of int, shape (P, 2), optional
        Pairs of the loss; None: all.
    decay : float
        wd of ``(wd/2) |theta|^2``.
    centred : bool
        Means of a, b and c are taken off, and directions have none.
    labels : ndarray of int, shape (n, n), optional
        Wanted outputs; None: x + y.
    """

    orders: tuple[int, ...]
    a: np.ndarray
    b: np.ndarray | None
    c: np.ndarray
    scale: float = 1.0
    activation: str | tuple[float, ...] = "square"
    loss: str = "projected_mse"
    pairs: np.ndarray | None = None
    decay: float = 0.0
    centred: bool = False
    labels: np.ndarray | None = None

    @property
    def n(self) -> int:
        """Order of the group."""
        return self.a.shape[0]

    @property
    def q(self) -> int:
        """Number of neurons."""
        return self.a.shape[1]

    @property
    def blocks(self) -> int:
        """Weight tensors: 3, or 2 of a tied network."""
        return 2 if self.b is None else 3

    @property
    def rows(self) -> int:
        """Coordinates of one weight tensor of one neuron: n, or n - 1 centred."""
        return self.n - int(self.centred)

    @property
    def dimension(self) -> int:
        """Dimension ``q D`` of the full space."""
        return self.blocks * self.rows * self.q

    @property
    def sees_mean(self) -> bool:
        """Whether the mean of the outputs is one of the potentials."""
        return self.loss != "projected_mse" and not self.centred

    @property
    def degree(self) -> int | None:
        """Degree of homogeneity of sigma, None without one."""
        if isinstance(self.activation, str):
            return {"square": 2, "relu": 1, "abs": 1}.get(self.activation)
        return None if any(self.activation[:-1]) else len(self.activation) - 1

    @property
    def raw_scale(self) -> float:
        """``q n / tau^2``: eigenvalues in canonical coordinates over those in raw weights."""
        if self.degree is None:
            return float(self.q * self.n)
        size = self.q * self.scale * (2 * self.n if self.activation == "square" else 1)
        return self.q * self.n / size ** (2 / (self.degree + 1))

    @property
    def kinks(self) -> int:
        """Pre-activations that lie exactly on a kink."""
        if self.activation not in KINKED:
            return 0
        b = self.a if self.b is None else self.b
        return sum(int((row + b == 0).sum()) for row in self.a)  # a sum of doubles is 0 only if it is exact

    def wanted(self) -> np.ndarray:
        """Labels x + y of all pairs, shape (n, n), or those given."""
        if self.labels is not None:
            return self.labels
        elements = list(itertools.product(*(range(order) for order in self.orders)))
        place = {element: i for i, element in enumerate(elements)}
        total = [
            [
                place[tuple((i + j) % order for i, j, order in zip(x, y, self.orders, strict=True))]
                for y in elements
            ]
            for x in elements
        ]
        return np.array(total)

    def pair_list(self) -> np.ndarray:
        """Pairs of the loss, shape (P, 2)."""
        if self.pairs is not None:
            return np.asarray(self.pairs)
        return np.array(list(itertools.product(range(self.n), repeat=2)))

    def weights(self, numbers: Numbers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The weights a, b, c in a kind of numbers, without means where the problem is centred."""
        found = [numbers.of(w) for w in (self.a, self.a if self.b is None else self.b, self.c)]
        if self.centred:
            found = [w - numbers.mul(w.sum(0), numbers.ratio(1, self.n))[None] for w in found]
        return tuple(found)


def activation_tables(
    problem: RawProblem, numbers: Numbers, u: np.ndarray, kink: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``sigma``, ``sigma'`` and ``sigma''`` of pre-activations.

    Parameters
    ----------
    problem : RawProblem
    numbers : Numbers
    u : ndarray
        Pre-activations.
    kink : float
        ReLU'(0); the slope of the absolute value at 0 is ``2 kink - 1``. Atoms of the second derivative are
        left out.

    Returns
    -------
    tuple of ndarray
    """
    kind = problem.activation
    if kind in KINKED:
        one, zero = numbers.of(np.ones(u.shape)), numbers.zeros(*u.shape)
        above, on = u > 0, u == 0
        step = np.where(above, one, np.where(on, numbers.of(np.full(u.shape, kink)), zero))
        slope = step if kind == "relu" else step + step - one
        return numbers.mul(slope, u), slope, zero
    if kind == "square" or not isinstance(kind, str):
        coefficients = (0.0, 0.0, 1.0) if kind == "square" else kind
        tables = []
        for _ in range(3):
            tables.append(_polynomial(numbers, coefficients, u))
            coefficients = tuple(k * value for k, value in enumerate(coefficients))[1:] or (0.0,)
        return tuple(tables)
    return tuple(numbers.apply(function, u) for function in _FUNCTIONS[kind])


def _polynomial(numbers: Numbers, coefficients: tuple[float, ...], u: np.ndarray) -> np.ndarray:
    total = numbers.zeros(*u.shape)
    for value in reversed(coefficients):
        total = numbers.mul(total, u) + numbers.of(np.array(value)).item()
    return total


def _bell(x: mpmath.mpf) -> mpmath.mpf:
    return mpmath.exp(-x * x / 2) / mpmath.sqrt(2 * mpmath.pi)


_FUNCTIONS: dict[str, tuple[Callable[[mpmath.mpf], mpmath.mpf], ...]] = {
    "tanh": (
        mpmath.tanh,
        lambda x: mpmath.sech(x) ** 2,
        lambda x: -2 * mpmath.tanh(x) * mpmath.sech(x) ** 2,
    ),
    "gelu": (
        lambda x: x * mpmath.ncdf(x),
        lambda x: mpmath.ncdf(x) + x * _bell(x),
        lambda x: (2 - x * x) * _bell(x),
    ),
}
