"""Networks on a finite Abelian group that are built, not trained: test beds with a known structure.

Neurons are complex triples ``[z_a, z_b, z_c]`` at frequencies k, with the conjugate triple at -k, in the
normalisation ``f(x, y) = (1/2n) sum_j c_j (a_j[x] + b_j[y])^2`` where all masses are one:
``a_j = sum_k z_ak chi_k``, ``b_j`` alike, ``c_j = sum_k z_ck conj(chi_k)``. A solution of the task has
``sum_j z_ak z_bk z_ck = 1`` at every k != 0 and all other potentials of the loss zero.

The circuits are products (of measures, neuron by neuron) of three small families of triples:
``z_syn = [1,1,1] + [w,w,w] + [w^2,w^2,w^2]`` with ``w = e^{2 pi i/3}``,
``z_nu = [1,1,1] + [nu, -nu, -nu^-2]`` and ``z_xi = [1,1,1] + [xi, -i conj xi, i]``.

A group of even order has characters of order two, where z is real and these families do not exist. There two
neurons do, ``2^(-1/3) ([1,1,1] + [1,-1,-1])``: ``sum abc = 1`` and ``sum (a^2 + b^2) c = 0`` are all that the
loss asks (one neuron cannot: abc = 1 and (a^2 + b^2) c = 0 exclude each other). So F6 and F4/6 exist on every
group; see `spectra.networks.single_frequency` for the fewest neurons at each kind of frequency.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.group_network import GroupNetwork

OMEGA = np.exp(2j * np.pi / 3)


def _product(*families: np.ndarray) -> np.ndarray:
    """Element-wise products of triples, one of each family: the product of the measures, (count, 3)."""
    result = np.ones((1, 3), complex)
    for family in families:
        result = (result[:, None, :] * family[None, :, :]).reshape(-1, 3)
    return result


def _synchronised() -> np.ndarray:
    return np.array([[OMEGA**i] * 3 for i in range(3)])


def _nu(nu: complex) -> np.ndarray:
    return np.array([[1, 1, 1], [nu, -nu, -(nu**-2)]])


def _xi(xi: complex) -> np.ndarray:
    return np.array([[1, 1, 1], [xi, -1j * np.conj(xi), 1j]])


def order_six(nu: complex = 1j) -> np.ndarray:
    """The six triples of one frequency of F6, ``6^(-1/3) z_syn * z_nu``, shape (6, 3)."""
    return 6 ** (-1 / 3) * _product(_synchronised(), _nu(nu))


def order_four(xi: complex = 1.0) -> np.ndarray:
    """The four triples of one frequency of F4, ``4^(-1/3) z_{nu=i} * z_xi``, shape (4, 3)."""
    return 4 ** (-1 / 3) * _product(_nu(1j), _xi(xi))


def order_two() -> np.ndarray:
    """The two triples of a character of order two, ``2^(-1/3) ([1,1,1] + [1,-1,-1])``, shape (2, 3)."""
    return 2 ** (-1 / 3) * np.array([[1, 1, 1], [1, -1, -1]])


def network_of(group: FiniteAbelianGroup, coefficients: np.ndarray) -> GroupNetwork:
    """The network with given Fourier coefficients at mass one per neuron.

    Parameters
    ----------
    group : FiniteAbelianGroup
        Of order n.
    coefficients : ndarray, complex, shape (3, q, n)
        ``z_a, z_b, z_c`` of every neuron; rows must obey ``z_{-k} = conj z_k``.

    Returns
    -------
    GroupNetwork
        With output scale ``1/(2n)``, so that its outputs are the predictions themselves.

    Raises
    ------
    InputError
        If the coefficients are not those of real weights.
    """
    n = group.order
    size = np.abs(coefficients).max(initial=1.0)
    if np.abs(coefficients[..., group.negatives] - coefficients.conj()).max(initial=0) > 1e-12 * size:
        raise InputError("coefficients: expected z_{-k} = conj z_k, as real weights have")
    forward = group.characters.T
    a, b = (torch.as_tensor((z @ forward).real.T.copy()) for z in coefficients[:2])
    c = torch.as_tensor((coefficients[2] @ forward.conj()).real.T.copy())
    return GroupNetwork(group, a, b, c, 1 / (2 * n))


def _at_frequencies(group: FiniteAbelianGroup, triples: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Coefficients of single-frequency neurons from (k, triples of shape (count, 3)) in turn."""
    result = np.zeros((3, sum(len(family) for _, family in triples), group.order), complex)
    row = 0
    for k, family in triples:
        rows = slice(row, row + len(family))
        result[:, rows, k] = family.T
        result[:, rows, group.negatives[k]] = family.conj().T
        row = rows.stop
    return result


def _complex_pairs(group: FiniteAbelianGroup) -> list[int]:
    """One frequency of each pair {k, -k} with k != -k."""
    return [k for k in group.conjugate_pairs if group.negatives[k] != k]


def _real_blocks(group: FiniteAbelianGroup) -> list[tuple[int, np.ndarray]]:
    """Two neurons at every character of order two; none on groups of odd order."""
    return [(k, order_two()) for k in group.conjugate_pairs if group.negatives[k] == k]


def f6(group: FiniteAbelianGroup, *, nu: complex = 1j) -> GroupNetwork:
    """The solution F6: six neurons ``6^(-1/3) z_syn * z_nu`` at every conjugate pair of frequencies.

    Parameters
    ----------
    group : FiniteAbelianGroup
        Of order n, with r characters of order two (two neurons at each; r = 0 for odd n).
    nu : complex
        Free parameter of modulus one.

    Returns
    -------
    GroupNetwork
        ``3(n - 1) - r`` neurons, projected MSE zero.
    """
    blocks = [(k, order_six(nu)) for k in _complex_pairs(group)] + _real_blocks(group)
    return network_of(group, _at_frequencies(group, blocks))


def f4(group: FiniteAbelianGroup, *, xi: complex = 1.0) -> GroupNetwork:
    """F4 alone, ``4^(-1/3) z_{nu=i} * z_xi`` at every pair: no solution, projected MSE 2(n - 1 - r)/n.

    Parameters
    ----------
    group : FiniteAbelianGroup
        Of order n, with r characters of order two (two neurons at each; r = 0 for odd n).
    xi : complex
        Free parameter of modulus one.

    Returns
    -------
    GroupNetwork
        ``2(n - 1)`` neurons.
    """
    blocks = [(k, order_four(xi)) for k in _complex_pairs(group)] + _real_blocks(group)
    return network_of(group, _at_frequencies(group, blocks))


def f4_6(group: FiniteAbelianGroup) -> GroupNetwork:
    """The solution F4/6: one frequency of order six that repairs the others, of order four.

    The six neurons of the first frequency also carry ``z_ck = -(1 + i)/(2 * 6^(1/3))`` at every other pair:
    their squares ``z_ak z_a,-k`` cancel those that order four leaves.

    Parameters
    ----------
    group : FiniteAbelianGroup
        Of order n, with r characters of order two (two neurons at each; r = 0 for odd n).

    Returns
    -------
    GroupNetwork
        2n neurons (2(n - 1) if every character has order two), projected MSE zero.
    """
    first, *others = _complex_pairs(group) or [None]
    blocks = [] if first is None else [(first, order_six())]
    blocks += [(k, order_four()) for k in others]
    coefficients = _at_frequencies(group, blocks + _real_blocks(group))
    repair = -(1 + 1j) / (2 * 6 ** (1 / 3))
    for k in others:
        coefficients[2, :6, k] = repair
        coefficients[2, :6, group.negatives[k]] = np.conj(repair)
    return network_of(group, coefficients)


def memorise(group: FiniteAbelianGroup) -> GroupNetwork:
    """The lookup table: one neuron per pair of elements (i, j), at every frequency at once.

    ``z_ak = chi_k(i)``, ``z_bk = chi_k(j)``, ``z_ck = conj chi_k(i + j)``, times ``n^(-2/3)``.

    Parameters
    ----------
    group : FiniteAbelianGroup
        Any, of order n.

    Returns
    -------
    GroupNetwork
        n^2 neurons, projected MSE zero.
    """
    n = group.order
    i, j = np.divmod(np.arange(n * n), n)
    of_a, of_b = group.characters[i], group.characters[j]
    return network_of(group, n ** (-2 / 3) * np.stack([of_a, of_b, (of_a * of_b).conj()]))


def cosine(group: FiniteAbelianGroup, *, neurons: int = 512, seed: int = 0) -> GroupNetwork:
    """The cosine circuit: neurons at one frequency each with random phases, ``phi_a + phi_b = phi_c``.

    Frequencies are dealt out evenly in random order; ``z_a = r e^{i phi_a}``, ``z_b = r e^{i phi_b}``,
    ``z_c = r e^{-i(phi_a + phi_b)}`` with ``r^3`` one over the number of neurons at the frequency. Phases
    are signs at real characters. The projected MSE falls like one over the number of neurons.

    Parameters
    ----------
    group : FiniteAbelianGroup
        Any.
    neurons : int
        Number of neurons, at least one per conjugate pair of frequencies.
    seed : int
        Of frequencies and phases.

    Returns
    -------
    GroupNetwork

    Raises
    ------
    InputError
        If there are fewer neurons than conjugate pairs.
    """
    pairs = np.array(group.conjugate_pairs)
    if neurons < len(pairs):
        raise InputError(
            f"neurons: expected at least one per pair of frequencies, {len(pairs)} for {group.name}, got "
            f"{neurons}"
        )
    rng = np.random.default_rng(seed)
    place = rng.permutation(np.arange(neurons) % len(pairs))
    k = pairs[place]
    size = np.bincount(place)[place] ** (-1 / 3)
    real = group.negatives[k] == k
    phases = np.exp(2j * np.pi * rng.random((2, neurons)))
    phases = np.where(real, np.sign(phases.real), phases)
    triples = (size * np.stack([phases[0], phases[1], (phases[0] * phases[1]).conj()])).T
    return network_of(group, _at_frequencies(group, [(k[j], triples[j : j + 1]) for j in range(neurons)]))


# By the name a user types; each takes the group, cosine also its number of neurons and seed.
CONSTRUCTIONS: dict[str, Callable[..., GroupNetwork]] = {
    "F6": f6,
    "F4_6": f4_6,
    "memorise": memorise,
    "cosine": cosine,
}
