"""How many neurons one frequency needs: the constraints of the loss on neurons that live at +-k alone.

With real weights a neuron at the frequency k is a triple (a, b, c) of complex numbers, its conjugate sits at
-k, and the loss leaves these sums over neurons (all others vanish by themselves):

- ``sum abc = 1``; ``sum ab conj(c) = sum a conj(b) c = sum conj(a) b c = 0``;
- ``sum (|a|^2 + |b|^2) c = 0``;
- ``sum a^2 c = sum a^2 conj(c) = 0``, the same for b, because 2k and -2k are different characters. If k has
  order four they are the same one, and only ``sum Re(a^2) c = sum Re(b^2) c = 0`` remains.
- If k has order two everything is real: ``sum abc = 1`` and ``sum (a^2 + b^2) c = 0`` remain.

Solutions at all frequencies side by side solve the task, on groups of odd and even order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from manifold.errors import InputError

Complex = NDArray[np.complex128]


def character_order(k: int, orders: tuple[int, ...]) -> int:
    """The order of a character, the least r with ``chi_k^r = 1``.

    Parameters
    ----------
    k : int
        Its number in the group (elements counted with the last coordinate fastest).
    orders : tuple of int
        Of the cyclic factors.

    Returns
    -------
    int
    """
    digits = np.unravel_index(k, orders)
    return int(np.lcm.reduce([n // np.gcd(n, int(x)) for x, n in zip(digits, orders, strict=True)]))


def constraints(triples: Complex, order: int) -> NDArray[np.float64]:
    """What is left of the constraints, as real numbers; zero at a solution.

    Parameters
    ----------
    triples : ndarray, complex, shape (q, 3)
        Total-measure normalisation; real for order two.
    order : int
        Of the character, at least 2.

    Returns
    -------
    ndarray
    """
    a, b, c = triples.T
    sums = [(a * b * c).sum() - 1, ((np.abs(a) ** 2 + np.abs(b) ** 2) * c).sum()]
    if order > 2:
        sums += [(a * b * c.conj()).sum(), (a * b.conj() * c).sum(), (a.conj() * b * c).sum()]
    if order == 4:
        sums += [((x * x).real * c).sum() for x in (a, b)]
    elif order > 2:
        sums += [(x * x * y).sum() for x in (a, b) for y in (c, c.conj())]
    values = np.array(sums)
    return np.concatenate([values.real, values.imag])


@dataclass(frozen=True, eq=False)
class Search:
    """The best of many starts.

    Parameters
    ----------
    order, neurons : int
        Of the character; number of triples.
    residual : float
        Least norm of the constraints over all starts.
    triples : ndarray, complex, shape (q, 3)
        Where it was reached.
    solved : int
        Starts that ended below 1e-10.
    starts : int
    """

    order: int
    neurons: int
    residual: float
    triples: Complex
    solved: int
    starts: int


def search(order: int, neurons: int, *, starts: int = 40, seed: int = 0) -> Search:
    """Solve the constraints by Levenberg-Marquardt from Gaussian starts.

    Parameters
    ----------
    order : int
        Of the character, at least 2.
    neurons : int
    starts : int
    seed : int

    Returns
    -------
    Search
        A large residual over many starts is evidence that no solution of that size exists, not a proof.

    Raises
    ------
    InputError
        If the order is below 2 or there is no neuron.
    """
    if order < 2 or neurons < 1:
        raise InputError(
            f"search: expected an order of at least 2 and one neuron, got order {order}, {neurons} neurons"
        )
    real = order == 2
    shape = (neurons, 3, 1 if real else 2)

    def unpack(x: np.ndarray) -> Complex:
        parts = x.reshape(shape)
        return parts[..., 0] + (0j if real else 1j * parts[..., 1])

    rng, ends = np.random.default_rng(seed), []
    for _ in range(starts):
        begin = rng.normal(size=np.prod(shape)) / neurons ** (1 / 3)
        end = least_squares(
            lambda x: constraints(unpack(x), order), begin, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=400
        )
        ends.append((float(np.linalg.norm(end.fun)), unpack(end.x)))
    residual, triples = min(ends, key=lambda one: one[0])
    solved = sum(one[0] < 1e-10 for one in ends)
    return Search(order, neurons, residual, triples, solved, starts)
