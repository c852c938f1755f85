"""Transitions of stationary measures: losses of stability, folds, crossings of free energies."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manifold.errors import NotConvergedError
from spectra.temperature.curves import End, Sheet, trace_sheets
from spectra.temperature.free_energy import FreeEnergy

WIDTH = 1e-8  # wanted width of a bracket in T, of the range of temperatures
NARROWEST = 1e-14  # of T: below it a bracket is rounding


class Cause(enum.Enum):
    """What happens at a transition."""

    STABILITY = "stability"  # an eigenvalue of the second variation crosses zero on a branch that goes on
    FOLD = "fold"  # a spinodal: the stable branch ends where it meets an unstable one
    FIRST_ORDER = "first-order"  # the free energies of two stable branches cross


@dataclass(frozen=True)
class Transition:
    """A temperature at which a state changes its stability, or the lowest free energy its branch.

    Parameters
    ----------
    low, high : float
        Bracket in T. For `Cause.STABILITY` the smallest eigenvalue that is no exact zero has certain,
        different signs at its ends; for `Cause.FIRST_ORDER` the difference of the free energies has. For
        `Cause.FOLD` the two sheets that meet have certain, different signs at the end where they exist.
    direction : str
        ``up``: unstable below and stable above; ``down``: the other way round. Of free energies: ``down``, as
        the branch that is named has the lower one below.
    cause : Cause
    sheets : tuple of int
        Numbers of the sheets: the one that changes; at a fold the stable one first; at a first-order
        transition the one that is lower below, then the one that is lower above.
    """

    low: float
    high: float
    direction: str
    cause: Cause = Cause.STABILITY
    sheets: tuple[int, ...] = ()


def follow_branches(
    energy: FreeEnergy, temperatures: Sequence[float], *, seed: int = 0
) -> list[list[np.ndarray | None]]:
    """Branches of stationary measures at ascending temperatures: the sheets that reach one of them.

    Parameters
    ----------
    energy : FreeEnergy
    temperatures : sequence of float
        Ascending, positive.
    seed : int
        Of the first guesses.

    Returns
    -------
    list of list
        Per branch: lambda at each temperature, None where the branch does not exist.
    """
    sheets = trace_sheets(energy, temperatures, seed=seed)
    rows = [[sheet.at(energy, temperature) for temperature in temperatures] for sheet in sheets]
    return [row for row in rows if any(natural is not None for natural in row)]


def find_transitions(
    energy: FreeEnergy, sheets: Sequence[Sheet], *, width: float = WIDTH
) -> list[Transition]:
    """All transitions of sheets that belong together, in the order of temperature.

    Parameters
    ----------
    energy : FreeEnergy
    sheets : sequence of Sheet
        From `spectra.temperature.curves.trace_sheets`.
    width : float
        Wanted width of a bracket.

    Returns
    -------
    list of Transition
    """
    marks = [_signs(energy, sheet) for sheet in sheets]
    found = [
        one
        for number, (sheet, signs) in enumerate(zip(sheets, marks, strict=True))
        for one in _stability(energy, sheet, signs, number, width)
    ]
    for i, j in itertools.combinations(range(len(sheets)), 2):
        found += _folds(energy, sheets, i, j, width)
        found += _crossings(energy, sheets, marks, (i, j), width)
    return sorted(found, key=lambda one: (one.low, one.cause.value))


def _signs(energy: FreeEnergy, sheet: Sheet) -> list[int]:
    signs = []
    for temperature, eta in zip(sheet.temperatures, sheet.etas, strict=True):
        try:
            natural = energy.solve(temperature, eta / temperature)
        except NotConvergedError:
            signs.append(0)
            continue
        near = np.linalg.norm(temperature * natural - eta) <= 1e-3 * sheet.scale
        signs.append(energy.sign(temperature, natural) if near else 0)
    return signs


def _stability(
    energy: FreeEnergy, sheet: Sheet, signs: list[int], number: int, width: float
) -> list[Transition]:
    certain = [i for i, sign in enumerate(signs) if sign]
    found = []
    for i, j in itertools.pairwise(certain):
        if signs[i] == signs[j]:
            continue

        def sign(temperature: float) -> int:
            natural = sheet.at(energy, temperature)
            return 0 if natural is None else energy.sign(temperature, natural)

        low, high = _bisect(sign, sheet.temperatures[i], sheet.temperatures[j], signs[i], width)
        found.append(Transition(low, high, "up" if signs[j] > 0 else "down", Cause.STABILITY, (number,)))
    return found


def _bisect(sign, low: float, high: float, below: int, width: float) -> tuple[float, float]:
    """Bracket of a change of sign; where the middle has none, from both sides up to what has one."""
    while high - low > width:
        # Off the middle: a grid laid symmetrically around the transition would hit it, without a sign.
        middle = low + 0.47 * (high - low)
        here = sign(middle)
        if not here:
            return _toward(sign, low, middle, below, width), _toward(sign, high, middle, -below, width)
        if here == below:
            low = middle
        else:
            high = middle
    return float(low), float(high)


def _toward(sign, known: float, unknown: float, wanted: int, width: float) -> float:
    """The place nearest to one without a sign that has the wanted one, to a part of the distance between."""
    while abs(unknown - known) > max(0.1 * width, NARROWEST * abs(known)):
        middle = 0.5 * (known + unknown)
        if sign(middle) == wanted:
            known = middle
        else:
            unknown = middle
    return float(known)


def _folds(energy: FreeEnergy, sheets: Sequence[Sheet], i: int, j: int, width: float) -> list[Transition]:
    """Folds between two sheets of one curve of which exactly one is stable beside it."""
    first, second = sheets[i], sheets[j]
    if first.curve != second.curve:
        return []
    found = []
    for name, index, inward in (("high", -1, -1), ("low", 0, 1)):
        fold = first.temperatures[index]
        if getattr(first, name) is not End.FOLD or getattr(second, name) is not End.FOLD:
            continue
        if fold != second.temperatures[index]:
            continue
        inside = fold + inward * 0.5 * width
        pair = [sheet.at(energy, inside) for sheet in (first, second)]
        signs = [0 if natural is None else energy.sign(inside, natural) for natural in pair]
        if sorted(signs) != [-1, 1]:
            continue
        stable = (i, j) if signs[0] > 0 else (j, i)
        low, high = sorted((inside, fold - inward * 0.5 * width))
        found.append(Transition(low, high, "down" if name == "high" else "up", Cause.FOLD, stable))
    return found


def _crossings(
    energy: FreeEnergy, sheets: Sequence[Sheet], marks: list[list[int]], pair: tuple[int, int], width: float
) -> list[Transition]:
    """Where the free energies of two sheets cross while both are stable and no other is lower."""
    first, second = (sheets[number] for number in pair)
    low = max(first.temperatures[0], second.temperatures[0])
    high = min(first.temperatures[-1], second.temperatures[-1])
    nodes = [low, high]
    for number in pair:
        grid = sheets[number].temperatures
        beside = (
            (np.convolve(np.array(marks[number]) > 0, np.ones(3), "same") > 0)
            & (low <= grid)
            & (grid <= high)
        )
        if not beside.any():
            return []  # one of them is nowhere stable there
        nodes += grid[beside].tolist()

    def lower(temperature: float) -> int:
        """1 where the first one is lower for certain, -1 where the second one is."""
        states = [sheet.at(energy, temperature) for sheet in (first, second)]
        if any(natural is None or energy.sign(temperature, natural) < 1 for natural in states):
            return 0
        (a, error), (b, other) = (energy.value(temperature, natural) for natural in states)
        return 0 if abs(a - b) <= error + other else int(np.sign(b - a))

    signs = [(temperature, lower(temperature)) for temperature in np.unique(nodes)]
    certain = [one for one in signs if one[1]]
    found = []
    for (left, before), (right, after) in itertools.pairwise(certain):
        if before == after:
            continue
        bracket = _bisect(lower, left, right, before, width)
        if _lowest(energy, sheets, pair, bracket[0]):
            order = pair if before > 0 else pair[::-1]
            found.append(Transition(*bracket, "down", Cause.FIRST_ORDER, order))
    return found


def _lowest(energy: FreeEnergy, sheets: Sequence[Sheet], pair: tuple[int, int], temperature: float) -> bool:
    """Whether no other sheet has a lower free energy."""
    values = {}
    for number, sheet in enumerate(sheets):
        natural = sheet.at(energy, temperature)
        if natural is not None:
            values[number] = energy.value(temperature, natural)
    level = max(values[number][0] + values[number][1] for number in pair)
    return all(value + error >= level for number, (value, error) in values.items() if number not in pair)
