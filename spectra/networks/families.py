"""Factor a trained network: which polynomial family the neurons of each frequency belong to.

Neurons are triples ``(z_a, z_b, z_c)`` at their strongest frequency. Everywhere below, phases are
``t = arg z_a`` (mod pi, as (a, b) and (-a, -b) are one neuron), ``c = arg z_c``, ``arg z_b = -(t + c)``, so
that ``z_a z_b z_c > 0``. Free common phases (a one-neuron factor with rho_kkk = 1) belong to every family:

- ``z_{nu=i} * z_xi``, order 4: two pairs of neurons, in each pair equal c and t a quarter turn apart, the c
  of the pairs a quarter turn apart;
- ``z_{nu=i} * z_syn`` with phases, order 6: three such pairs, the c a third of a turn apart, t free;
- ``z_nu * z_syn``, order 6: two triples that step by a third of a turn in t and c together, with
  ``3 c' + 2 (t' - c') = 3 c + 2 (t - c) + pi`` between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations, product

import numpy as np
import torch
from numpy.typing import NDArray

from manifold.errors import InputError
from spectra.networks.group_network import GroupNetwork

FOUR, SIX, SIX_PHASES, OTHER = "z_{nu=i}*z_xi", "z_nu*z_syn", "z_{nu=i}*z_syn, phases", "other"
NAMES = (FOUR, SIX, SIX_PHASES, OTHER)
FIT_TOLERANCE = 0.15
SAME = 0.2
ALIVE = 1e-3

Array = NDArray[np.float64]
Phases = tuple[Array, Array]


@dataclass(frozen=True, eq=False)
class FrequencyFactor:
    """The neurons of one frequency and the family that fits them best.

    Parameters
    ----------
    frequency : int
        Number of the frequency (the smaller of k, -k).
    order : int
        Distinct neurons, parallel ones counted once.
    neurons : int
        All of them.
    residuals : dict of float
        Of each family of this order: ``(sum_j |z_j - fit_j|^2 / sum_j |z_j|^2)^(1/2)``, at this frequency.
    name : str
        The family of least residual, if that is within the tolerance; else ``other``.
    product_residual : float
        Of the best product of two neurons with any others, ``z_j * (1, r)`` for all j, relative like the
        residuals: whether the solution factors at all. NaN unless the order is 4 or 6.
    """

    frequency: int
    order: int
    neurons: int
    residuals: dict[str, float]
    name: str
    product_residual: float = float("nan")

    @property
    def residual(self) -> float:
        """The least residual, NaN where no family has this order."""
        return min(self.residuals.values(), default=float("nan"))


def factor(network: GroupNetwork, *, tol: float = FIT_TOLERANCE) -> tuple[FrequencyFactor, ...]:
    """Factor a network frequency by frequency.

    Parameters
    ----------
    network : GroupNetwork
        Neurons with ``|z_j| <= 1e-3 max |z|`` are left out. Frequencies of order two have no phases and
        count as ``other``.
    tol : float
        Largest residual that counts as a fit.

    Returns
    -------
    tuple of FrequencyFactor
        One per frequency that has neurons.

    Raises
    ------
    InputError
        If the tolerance is not positive.
    """
    if not tol > 0:
        raise InputError(f"tol: expected a positive residual, got {tol}")
    frequencies, triples = dominant_triples(network)
    result = []
    for k in np.unique(frequencies):
        own = triples[frequencies == k]
        distinct = _distinct(own)
        real = network.group.negatives[k] == k
        residuals = {} if real else _residuals(distinct)
        # Rounded, so that what lies in both families of order 6 counts for the smaller one, listed first.
        best = min(residuals, key=lambda name: round(residuals[name], 9), default=OTHER)
        name = best if residuals.get(best, np.inf) <= tol else OTHER
        product = _product_residual(distinct) if residuals else float("nan")
        result.append(FrequencyFactor(int(k), len(distinct), len(own), residuals, name, product))
    return tuple(result)


def dominant_triples(network: GroupNetwork) -> tuple[NDArray[np.int64], NDArray[np.complex128]]:
    """Strongest frequency and triple at it of every living neuron, balanced by the scaling symmetry.

    Parameters
    ----------
    network : GroupNetwork

    Returns
    -------
    frequencies : ndarray of int, shape (p,)
        The smaller number of each pair {k, -k}.
    triples : ndarray, complex, shape (p, 3)
        z_a, z_b, z_c at mass one per neuron, scaled by ``(alpha, alpha, alpha^-2)`` to
        ``|z_a|^2 + |z_b|^2 = 2 |z_c|^2`` (no potential changes).
    """
    z = torch.stack(network.coefficients(), dim=2).cpu().numpy() / network.width ** (1 / 3)
    power = (np.abs(z) ** 2).sum(2)
    size = np.sqrt(power.sum(1))
    z, power = z[size > ALIVE * size.max(initial=0)], power[size > ALIVE * size.max(initial=0)]
    pairs = np.array(network.group.conjugate_pairs)
    both = power[:, pairs] + power[:, network.group.negatives[pairs]]
    frequencies = pairs[both.argmax(1)]
    triples = z[np.arange(len(z)), frequencies]
    input_power = (np.abs(triples[:, :2]) ** 2).sum(1)
    output_power = np.abs(triples[:, 2]) ** 2
    whole = (input_power > 0) & (output_power > 0)
    frequencies, triples = frequencies[whole], triples[whole]
    alpha = (2 * output_power[whole] / input_power[whole]) ** (1 / 6)
    return frequencies, triples * np.stack([alpha, alpha, alpha**-2], axis=1)


def shares(factors: tuple[FrequencyFactor, ...]) -> dict[str, float]:
    """Share of the frequencies in each family, ``other`` included; zeros if there is no frequency."""
    count = max(len(factors), 1)
    return {name: sum(f.name == name for f in factors) / count for name in NAMES}


def _invariants(triples: np.ndarray) -> np.ndarray:
    """Unit phases that do not see the sign of (a, b): of a^2, ab and c."""
    a, b, c = (z / np.maximum(np.abs(z), 1e-300) for z in triples.T)
    return np.stack([a * a, a * b, c], axis=1)


def _distinct(triples: np.ndarray) -> np.ndarray:
    """Neurons with equal phases as one (their cubes add), strongest first, (order, 3)."""
    left = triples[np.argsort(-np.abs(triples[:, 2]))]
    found = []
    while len(left):
        marks = _invariants(left)
        same = np.linalg.norm(marks - marks[0], axis=1) < SAME
        growth = (np.abs(left[same]) ** 3).sum(0) ** (1 / 3) / np.abs(left[0])
        found.append(left[0] * growth)
        left = left[~same]
    return np.array(found)


def _residuals(triples: np.ndarray) -> dict[str, float]:
    t, c = np.angle(triples[:, 0]), np.angle(triples[:, 2])
    if len(triples) == 4:
        families = {FOUR: _pair_fits(t, c, (0.0, np.pi / 2))}
    elif len(triples) == 6:
        third = 2 * np.pi / 3
        families = {SIX: _triple_fits(t, c), SIX_PHASES: _pair_fits(t, c, (0.0, third, 2 * third))}
    else:
        return {}
    return {name: min(_distance(triples, fit) for fit in fits) for name, fits in families.items()}


def _distance(triples: np.ndarray, phases: Phases) -> float:
    """Relative distance to equal-sized neurons with the fitted phases, best signs of (a, b)."""
    t, c = phases
    fit = np.abs(triples).mean() * np.exp(1j * np.stack([t, -(t + c), c], axis=1))
    flipped = fit * [-1, -1, 1]
    gaps = np.minimum(*((np.abs(triples - one) ** 2).sum(1) for one in (fit, flipped)))
    return float(np.sqrt(gaps.sum() / (np.abs(triples) ** 2).sum()))


def _pairings(items: tuple[int, ...]) -> Iterator[tuple[tuple[int, int], ...]]:
    if not items:
        yield ()
        return
    first, *rest = items
    for partner in rest:
        for others in _pairings(tuple(i for i in rest if i != partner)):
            yield ((first, partner), *others)


def _product_residual(triples: np.ndarray) -> float:
    """Least relative distance to ``{z_j} * {(1, 1, 1), r}`` over all pairings, with free signs of (a, b)."""
    signs = np.array(list(product([1, -1], repeat=len(triples) // 2)))[:, :, None] * [1, 1, 0] + [0, 0, 1]
    best = np.inf
    for pairing in _pairings(tuple(range(len(triples)))):
        for turned in product([False, True], repeat=len(pairing) - 1):
            pairs = [
                pair[::-1] if turn else pair for pair, turn in zip(pairing, (False, *turned), strict=True)
            ]
            first, second = triples[np.array(pairs)].transpose(1, 0, 2)
            moved = signs * second
            ratio = (moved * first.conj()).sum(1) / (np.abs(first) ** 2).sum(0)
            gaps = np.abs(moved - ratio[:, None, :] * first) ** 2
            best = min(best, float(gaps.sum((1, 2)).min()))
    return float(np.sqrt(best / (np.abs(triples) ** 2).sum()))


def _pair_fits(t: Array, c: Array, offsets: tuple[float, ...]) -> Iterator[Phases]:
    """Fits by pairs: t a quarter turn apart within a pair, c = gamma + the offset of the pair."""
    for pairing in _pairings(tuple(range(len(t)))):
        for order in permutations(offsets):
            shift, fit_t = np.zeros(len(t)), np.zeros(len(t))
            for (i, j), offset in zip(pairing, order, strict=True):
                shift[[i, j]] = offset
                half = np.angle(np.exp(2j * t[i]) - np.exp(2j * t[j])) / 2
                fit_t[[i, j]] = half, half + np.pi / 2
            yield fit_t, np.angle(np.exp(1j * (c - shift)).sum()) + shift


def _triple_fits(t: Array, c: Array) -> Iterator[Phases]:
    """Fits by two triples that step by thirds of a turn in t and c together."""
    for rest in combinations(range(1, 6), 2):
        first = np.array([0, *rest])
        second = np.setdiff1d(np.arange(6), first)
        for one in ((0, 1, 2), (0, 2, 1)):
            for two in ((0, 1, 2), (0, 2, 1)):
                gamma, delta = np.zeros(2), np.zeros(2)
                fit_t, fit_c = np.zeros(6), np.zeros(6)
                sides = ((first, 2 * np.pi / 3 * np.array(one)), (second, 2 * np.pi / 3 * np.array(two)))
                for i, (rows, steps) in enumerate(sides):
                    gamma[i] = np.angle(np.exp(1j * (c[rows] - steps)).sum())
                    delta[i] = np.angle(np.exp(2j * (t[rows] - c[rows])).sum())
                # The least change of phases that meets the relation between the triples moves t alone.
                excess = np.angle(-np.exp(1j * (3 * gamma[1] + delta[1] - 3 * gamma[0] - delta[0])))
                delta += excess / 2 * np.array([1, -1])
                for i, (rows, steps) in enumerate(sides):
                    fit_c[rows] = gamma[i] + steps
                    fit_t[rows] = fit_c[rows] + delta[i] / 2
                yield fit_t, fit_c
