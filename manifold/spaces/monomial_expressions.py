"""Read monomials as people write them: ``Re(z1*z2*conj(z3)); x1^2*x2``."""

from __future__ import annotations

import re

import numpy as np

from manifold.errors import InputError
from manifold.monomials import Monomials
from manifold.spaces.embedded import Space

GRAMMAR = (
    "a monomial is a product of powers of real coordinates, x1^2*x2, or the real or imaginary part of a "
    "product of complex pairs, Re(z1*z2*conj(z3)) or Im(z1^2); several are separated by ';'"
)
MOST_DEGREE = 128  # of a monomial: beyond, powers of coordinates underflow and expansions grow without use
_FACTOR = re.compile(r"(?:(x|z)(\d+)|conj\(z(\d+)\)|\|z(\d+)\|)(?:(?:\^|\*\*)(\d+))?")


def complex_pairs(space: Space) -> list[tuple[int, int]]:
    """Ambient coordinates (0-based) of ``z1, z2, ..``: neighbouring coordinates inside each factor.

    A factor with an odd number of coordinates leaves its last one unpaired.
    """
    pairs, offset = [], 0
    for factor in space.factors:
        pairs += [(offset + i, offset + i + 1) for i in range(0, factor.ambient - 1, 2)]
        offset += factor.ambient
    return pairs


def parse_monomials(text: str, space: Space) -> Monomials:
    """Monomials on a space from their expressions.

    Parameters
    ----------
    text : str
        Expressions separated by ``;``. ``x<k>`` is an ambient coordinate, ``z<k>`` the complex pair of
        `complex_pairs` (on a torus ``z_k = exp(i theta_k)``), ``|z<k>|^2`` its squared modulus.
    space : Space
        Gives the number of coordinates.

    Returns
    -------
    Monomials
        Real functions on ``R^ambient``, named by their expressions.

    Raises
    ------
    InputError
        If an expression does not follow the grammar (which the message repeats), is constant, or uses a
        coordinate that the space does not have.
    """
    pairs = complex_pairs(space)
    dimension = space.ambient
    exponents, imaginary, names = [], [], []
    expressions = text.split(";")
    if not expressions[-1].strip():  # a semicolon at the end
        expressions.pop()
    if not expressions:
        raise InputError(f"monomials: expected at least one; {GRAMMAR}")
    for number, expression in enumerate(expressions, start=1):
        name = "".join(expression.split())
        if not name:
            raise InputError(f"monomials: number {number} of {len(expressions)} is empty; {GRAMMAR}")
        powers, is_imaginary = _parse_one(name, dimension, len(pairs), space.name)
        exponents.append(powers)
        imaginary.append(is_imaginary)
        names.append(name)
    exponents = np.array(exponents)
    used = np.flatnonzero(exponents.any(0))
    if used.max() < dimension:  # only real coordinates: keep the arithmetic real
        return Monomials(exponents[:, :dimension], names=tuple(names))
    rows = np.zeros((len(used), dimension), complex)
    for row, column in zip(rows, used, strict=True):
        if column < dimension:
            row[column] = 1
        else:
            pair, conjugate = divmod(int(column) - dimension, 2)
            row[list(pairs[pair])] = 1, -1j if conjugate else 1j
    return Monomials(exponents[:, used], rows, np.array(imaginary), tuple(names))


def _parse_one(name: str, dimension: int, pairs: int, space: str) -> tuple[np.ndarray, bool]:
    part = re.fullmatch(r"(Re|Im)\((.*)\)", name, re.IGNORECASE)
    body = part[2] if part else name
    powers = np.zeros(dimension + 2 * pairs, dtype=np.int64)
    for word in body.replace("**", "^").split("*"):
        match = _FACTOR.fullmatch(word)
        if match is None:
            raise InputError(f"monomials: cannot read {word!r} in {name!r}; {GRAMMAR}")
        kind, plain, conjugate, modulus, power = match.groups()
        if max(len(digits or "") for digits in (power, plain, conjugate, modulus)) > 6:
            raise InputError(f"monomials: {word!r} in {name!r}: expected numbers of at most six digits")
        power = 1 if power is None else int(power)
        index = int(plain or conjugate or modulus)
        count = dimension if kind == "x" else pairs
        if not 1 <= index <= count:
            raise InputError(
                f"monomials: {word!r} in {name!r}: {space} has coordinates x1..x{dimension} "
                f"and complex pairs z1..z{pairs}"
            )
        if modulus:
            if power % 2:
                raise InputError(f"monomials: |z|^{power} in {name!r} is no polynomial; use an even power")
            powers[dimension + 2 * index - 2 : dimension + 2 * index] += power // 2
        elif kind == "x":
            powers[index - 1] += power
        else:
            powers[dimension + 2 * (index - 1) + (conjugate is not None)] += power
    if powers.sum() > MOST_DEGREE:
        raise InputError(f"monomials: {name!r} has degree {powers.sum()}; expected at most {MOST_DEGREE}")
    z, conj_z = powers[dimension::2], powers[dimension + 1 :: 2]
    if not powers.any():
        raise InputError(f"monomials: {name!r} is a constant and carries no information; drop it")
    if part is None and (z != conj_z).any():
        raise InputError(f"monomials: {name!r} is complex; write Re({name}) and Im({name}); {GRAMMAR}")
    is_imaginary = part is not None and part[1].lower() == "im"
    if is_imaginary and (z == conj_z).all():
        raise InputError(f"monomials: {name!r} is zero everywhere; drop it")
    return powers, is_imaginary
