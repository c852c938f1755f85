"""Activations of two-layer networks, with the derivatives that the second variation needs."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from manifold.errors import InputError

HIGHEST_DEGREE = 16
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_TERM = re.compile(rf"([+-]?)(?:({_NUMBER})(?:\*(?=x))?)?(x(?:(?:\^|\*\*)(\d{{1,2}}))?)?")


class Activation(ABC):
    """A function of one variable, applied element by element.

    Attributes
    ----------
    name : str
        What layouts call it; `parse_activation` reads it back.
    degree : int or None
        Degree of positive homogeneity, ``sigma(t x) = t^degree sigma(x)`` for t > 0; None: not homogeneous.
    kinked : bool
        Whether the slope jumps at 0. The second derivative is then a measure with an atom at 0, of which
        `curvature` gives the part with a density.
    """

    name: str
    degree: int | None = None
    kinked: bool = False

    def choices(self) -> list[Activation]:
        """The same function with other slopes at its kink: one-sided ones and their mean; default none."""
        return []

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """``sigma(x)``."""

    @abstractmethod
    def slope(self, x: Tensor) -> Tensor:
        """``sigma'(x)``; at a kink what automatic differentiation by torch takes, 0."""

    @abstractmethod
    def curvature(self, x: Tensor) -> Tensor | float:
        """``sigma''(x)``, atoms at kinks left out; a number where it is constant."""


def _formula(coefficients: tuple[float, ...]) -> str:
    terms = []
    for k, value in enumerate(coefficients):
        if value:
            size = "" if abs(value) == 1 and k else f"{abs(value):.17g}" + ("*" if k else "")
            power = "" if k == 0 else "x" if k == 1 else f"x^{k}"
            terms.append(("- " if value < 0 else "+ ") + size + power)
    return " ".join(terms).removeprefix("+ ")


def _derivative(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(k * value for k, value in enumerate(coefficients))[1:] or (0.0,)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor | float:
    *rest, total = coefficients
    for value in reversed(rest):
        total = total * x + value
    return total


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / (2 * torch.pi) ** 0.5


class Polynomial(Activation):
    """``sum_k coefficients[k] x^k``.

    Parameters
    ----------
    coefficients : sequence of float
        Constant first; the last one, of degree 1 to 16, must not be 0.

    Raises
    ------
    InputError
        If the degree is out of range or a coefficient is not finite.
    """

    def __init__(self, coefficients: list[float] | tuple[float, ...]):
        self.coefficients = tuple(map(float, coefficients))
        top = len(self.coefficients) - 1
        finite = all(abs(c) < float("inf") for c in self.coefficients)
        if not 1 <= top <= HIGHEST_DEGREE or not self.coefficients[-1] or not finite:
            raise InputError(
                f"activation: expected a polynomial in x of degree 1 to {HIGHEST_DEGREE} with finite "
                f"coefficients, got {self.coefficients}"
            )
        self.degree = None if any(self.coefficients[:-1]) else top
        self.name = _formula(self.coefficients)

    @override
    def value(self, x: Tensor) -> Tensor:
        return _horner(self.coefficients, x)

    @override
    def slope(self, x: Tensor) -> Tensor:
        rise = _horner(_derivative(self.coefficients), x)
        return rise if isinstance(rise, Tensor) else torch.full_like(x, rise)

    @override
    def curvature(self, x: Tensor) -> Tensor | float:
        return _horner(_derivative(_derivative(self.coefficients)), x)


class Square(Polynomial):
    """``x^2``, the activation of quadratic networks, without the detour of a general polynomial."""

    def __init__(self) -> None:
        super().__init__((0.0, 0.0, 1.0))
        self.name = "square"

    @override
    def value(self, x: Tensor) -> Tensor:
        return x.square()

    @override
    def slope(self, x: Tensor) -> Tensor:
        return 2 * x

    @override
    def curvature(self, x: Tensor) -> float:
        return 2.0


class Kinked(Activation):
    """An activation whose slope jumps at 0, where it is a matter of choice.

    Parameters
    ----------
    at_kink : float, optional
        The slope at 0; default 0, that of automatic differentiation by torch.
    """

    degree, kinked = 1, True
    sides: tuple[float, float]  # slopes left and right of the kink

    def __init__(self, at_kink: float = 0.0):
        self.at_kink = at_kink

    @override
    def choices(self) -> list[Activation]:
        left, right = self.sides
        slopes = {left, (left + right) / 2, right} - {self.at_kink}
        return [type(self)(slope) for slope in sorted(slopes)]

    @override
    def slope(self, x: Tensor) -> Tensor:
        left, right = self.sides
        rise = torch.where(x > 0, right, left)
        return torch.where(x == 0, self.at_kink, rise).to(x)


class Relu(Kinked):
    """``max(x, 0)``; kinked."""

    name, sides = "relu", (0.0, 1.0)

    @override
    def value(self, x: Tensor) -> Tensor:
        return x.relu()

    @override
    def curvature(self, x: Tensor) -> float:
        return 0.0


class Abs(Kinked):
    """``|x|``; kinked."""

    name, sides = "abs", (-1.0, 1.0)

    @override
    def value(self, x: Tensor) -> Tensor:
        return x.abs()

    @override
    def curvature(self, x: Tensor) -> float:
        return 0.0


class Gelu(Activation):
    """``x Phi(x)`` with the exact normal distribution Phi (torch's default, not its tanh approximation)."""

    name = "gelu"

    @override
    def value(self, x: Tensor) -> Tensor:
        return x * torch.special.ndtr(x)  # torch's own is exactly zero below -8.3

    @override
    def slope(self, x: Tensor) -> Tensor:
        return torch.special.ndtr(x) + x * _normal_density(x)

    @override
    def curvature(self, x: Tensor) -> Tensor:
        return (2 - x.square()) * _normal_density(x)


class Tanh(Activation):
    """The hyperbolic tangent."""

    name = "tanh"

    @override
    def value(self, x: Tensor) -> Tensor:
        return x.tanh()

    @override
    def slope(self, x: Tensor) -> Tensor:
        return x.cosh().square().reciprocal()  # 1 - tanh^2 without the difference

    @override
    def curvature(self, x: Tensor) -> Tensor:
        return -2 * x.tanh() * self.slope(x)


SQUARE = Square()
NAMED: dict[str, Activation] = {kind.name: kind for kind in (SQUARE, Relu(), Gelu(), Tanh(), Abs())}


def parse_activation(text: str) -> Activation:
    """An activation by its name, or a polynomial in x by its formula.

    Parameters
    ----------
    text : str
        ``square``, ``relu``, ``gelu``, ``tanh``, ``abs``, or such as ``x^3 - 0.5*x + 1``.

    Returns
    -------
    Activation

    Raises
    ------
    InputError
        If it is neither.
    """
    if text in NAMED:
        return NAMED[text]
    coefficients = _coefficients("".join(text.split()).lower())
    if coefficients is None:
        raise InputError(
            f"activation: expected one of {', '.join(NAMED)} or a polynomial in x such as x^3 - 0.5*x of "
            f"degree 1 to {HIGHEST_DEGREE}, got {text[:40]!r}"
        )
    return SQUARE if coefficients == SQUARE.coefficients else Polynomial(coefficients)


def _coefficients(text: str) -> tuple[float, ...] | None:
    """Coefficients of a formula without spaces, constant first; None if it is no formula."""
    found: dict[int, float] = {}
    place = 0
    while place < len(text):
        term = _TERM.match(text, place)
        sign, number, power, exponent = term.groups()
        if (number is None and power is None) or (place and not sign):
            return None
        k = 0 if power is None else int(exponent or 1)
        value = float(number or 1)
        found[k] = found.get(k, 0.0) + (-value if sign == "-" else value)
        place = term.end()
    top = max((k for k, value in found.items() if value), default=0)
    return tuple(found.get(k, 0.0) for k in range(top + 1)) if 1 <= top <= HIGHEST_DEGREE else None
