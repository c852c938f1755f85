"""Where the branches of a spectrum visit zero, and whether they cross it."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from spectra.branches.tracking import CLUSTER_GAP, GOOD_OVERLAP, Branches, SpectralStep


class CrossingKind(enum.Enum):
    """What is known about a visit of a branch to zero."""

    CROSSING = "crossing"  # certain signs on both sides, and they differ
    TOUCH = "touch"  # zero within rounding, the same sign before and after
    UNRESOLVED = "unresolved"  # bounds too wide, an end at zero, or two branches that may have swapped


@dataclass(frozen=True)
class Crossing:
    """A visit of one branch to zero.

    Parameters
    ----------
    branch : int
        Which branch.
    low, high : int
        Numbers of the steps that bracket it: the last certain sign before, the first certain sign after.
    direction : str
        ``up`` (an unstable direction becomes contracting), ``down``, or ``none``.
    kind : CrossingKind
        What is known about it.
    overlap : float
        Smallest squared overlap of the links inside the bracket: above one half the branch is the same
        one on both sides; below, the count of signs is certain but not which direction it was.
    """

    branch: int
    low: int
    high: int
    direction: str
    kind: CrossingKind
    overlap: float


def find_crossings(steps: Sequence[SpectralStep], branches: Branches) -> list[Crossing]:
    """All visits of the branches to zero, in the order of time.

    A crossing needs certain signs on both sides. When one branch goes up and another one down inside the
    same bracket, the number of negative eigenvalues does not change, and the two may as well have avoided
    each other: they are crossings only if their links are good and the 2 x 2 operator interpolated between
    the two steps loses at most half of its determinant to their coupling; otherwise both are unresolved.

    Parameters
    ----------
    steps : sequence of SpectralStep
        As given to `track`.
    branches : Branches
        From `track`.

    Returns
    -------
    list of Crossing
    """
    found = [event for b in range(branches.index.shape[1]) for event in _visits(steps, branches, b)]
    doubtful = _swapped(steps, branches, found)
    settled = [
        Crossing(
            e.branch, e.low, e.high, e.direction,
            CrossingKind.UNRESOLVED if number in doubtful else e.kind, e.overlap,
        )
        for number, e in enumerate(found)
    ]  # fmt: skip
    return sorted(settled, key=lambda e: (e.low, e.high, e.branch))


def _visits(steps: Sequence[SpectralStep], branches: Branches, b: int) -> list[Crossing]:
    alive = np.flatnonzero(branches.index[:, b] >= 0)
    signs = branches.signs[:, b]
    certain = [int(t) for t in alive if signs[t]]
    events = []

    def add(low: int, high: int, direction: str, kind: CrossingKind) -> None:
        overlap = float(branches.overlaps[low:high, b].min())
        whole = all(step.complete for step in steps[low : high + 1])
        if kind is CrossingKind.CROSSING and overlap < GOOD_OVERLAP and not whole:
            kind = CrossingKind.UNRESOLVED  # without full counts only the branch itself is evidence
        events.append(Crossing(b, low, high, direction, kind, overlap))

    if not certain:
        return events
    if alive[0] < certain[0]:
        add(int(alive[0]), certain[0], "none", CrossingKind.UNRESOLVED)
    for low, high in itertools.pairwise(certain):
        if signs[low] != signs[high]:
            add(low, high, "up" if signs[high] > 0 else "down", CrossingKind.CROSSING)
        elif high > low + 1:
            tight = all(branches.errors[t, b] <= CLUSTER_GAP * steps[t].norm for t in range(low + 1, high))
            add(low, high, "none", CrossingKind.TOUCH if tight else CrossingKind.UNRESOLVED)
    if certain[-1] < alive[-1]:
        add(certain[-1], int(alive[-1]), "none", CrossingKind.UNRESOLVED)
    return events


def _swapped(steps: Sequence[SpectralStep], branches: Branches, found: list[Crossing]) -> set[int]:
    """Numbers of the crossings that may be an avoided crossing of an opposed pair."""
    ups = [i for i, e in enumerate(found) if e.direction == "up"]
    downs = [i for i, e in enumerate(found) if e.direction == "down"]
    doubt = np.zeros((len(ups), len(downs)))
    for i, up in enumerate(ups):
        for j, down in enumerate(downs):
            a, b = found[up], found[down]
            if max(a.low, b.low) < min(a.high, b.high):
                doubt[i, j] = _doubt(steps, branches, a, b)
    rows, columns = linear_sum_assignment(doubt, maximize=True)
    return {
        number
        for i, j in zip(rows, columns, strict=True)
        if doubt[i, j] > 0.5
        for number in (ups[i], downs[j])
    }


def _doubt(steps: Sequence[SpectralStep], branches: Branches, a: Crossing, b: Crossing) -> float:
    """Share of the interpolated determinant that coupling may take away; 1 where links are poor."""
    if min(a.overlap, b.overlap) < GOOD_OVERLAP:
        return 1.0
    low, high = min(a.low, b.low), max(a.high, b.high)
    pair = [a.branch, b.branch]
    if (branches.index[[low, high]][:, pair] < 0).any():
        return 1.0
    before, after = steps[low], steps[high]
    start = np.diag(branches.eigenvalues[low, pair])
    frame = after.vectors.T @ before.vectors[:, branches.index[low, pair]]
    end = frame.T @ (after.eigenvalues[:, None] * frame)
    times = np.linspace(0, 1, 201)[:, None]
    diagonal = (1 - times) * np.diag(start) + times * np.diag(end)
    product = diagonal.prod(1)
    best = int(product.argmax())
    if product[best] <= 0:
        return 1.0
    coupling = abs(end[0, 1]) + float(branches.errors[[low, high]][:, pair].max())
    return min(1.0, float((times[best, 0] * coupling) ** 2 / product[best]))
