"""Branches of eigenpairs through the steps of a run, and where they cross zero."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from manifold.errors import InputError

CLUSTER_GAP = 1e-8  # of the norm: closer eigenvalues are one cluster, whose basis is arbitrary
GOOD_OVERLAP = 0.5  # a squared overlap above one half can be reached by one partner only


@dataclass(frozen=True, eq=False)
class SpectralStep:
    """Eigenpairs of a symmetric operator at one step.

    Parameters
    ----------
    eigenvalues : ndarray, shape (k,)
        In any order; Hessian sign (positive = contracting).
    errors : ndarray, shape (k,)
        Absolute error bound of each.
    vectors : ndarray, shape (N, k)
        Orthonormal eigenvectors in coordinates shared by all steps. Half-densities along the particles
        ``sqrt(w_j) v(z_j)`` make their inner product that of L2(mu), carried along by the particles.
    complete : bool
        Whether all eigenvalues of the space are there, so that numbers of signs are exact.

    Raises
    ------
    InputError
        If shapes disagree, something is not finite, or an error is negative.
    """

    eigenvalues: np.ndarray
    errors: np.ndarray
    vectors: np.ndarray
    complete: bool = True

    def __post_init__(self) -> None:
        values, errors = np.asarray(self.eigenvalues, float), np.asarray(self.errors, float)
        if values.ndim != 1 or errors.shape != values.shape or self.vectors.shape[1:] != values.shape:
            raise InputError(
                f"step: expected k eigenvalues, k errors and vectors of shape (N, k), got {values.shape}, "
                f"{errors.shape}, {self.vectors.shape}"
            )
        if not all(np.isfinite(part).all() for part in (values, errors, self.vectors)) or (errors < 0).any():
            raise InputError("step: expected finite eigenpairs and non-negative errors")
        order = np.argsort(values, kind="stable")
        object.__setattr__(self, "eigenvalues", values[order])
        object.__setattr__(self, "errors", errors[order])
        object.__setattr__(self, "vectors", np.asarray(self.vectors)[:, order])

    @property
    def norm(self) -> float:
        """Largest absolute eigenvalue."""
        return float(np.abs(self.eigenvalues).max(initial=0.0))

    @property
    def signs(self) -> np.ndarray:
        """Sign of each eigenvalue where it exceeds the error bound, else 0; shape (k,)."""
        return np.where(np.abs(self.eigenvalues) > self.errors, np.sign(self.eigenvalues), 0).astype(int)

    @property
    def clusters(self) -> np.ndarray:
        """Number of the cluster of each eigenvalue; neighbours not separated beyond errors share one."""
        reach = self.errors[1:] + self.errors[:-1] + CLUSTER_GAP * self.norm
        return np.concatenate([[0], np.cumsum(np.diff(self.eigenvalues) > reach)])[: len(self.eigenvalues)]


@dataclass(frozen=True, eq=False)
class Branches:
    """Eigenpairs followed through T steps; B branches, ordered by first step and eigenvalue there.

    Parameters
    ----------
    index : ndarray of int, shape (T, B)
        Number of the eigenvalue (ascending) at each step; -1 where the branch does not exist.
    eigenvalues, errors : ndarray, shape (T, B)
        NaN where the branch does not exist.
    overlaps : ndarray, shape (T - 1, B)
        Squared norm of the carried eigenvector's projection on its next cluster, in [0, 1]; NaN where
        there is no link. Above one half the link is the only possible one.
    """

    index: np.ndarray
    eigenvalues: np.ndarray
    errors: np.ndarray
    overlaps: np.ndarray

    @property
    def signs(self) -> np.ndarray:
        """+1, -1, or 0 where the sign is not certain or the branch does not exist; shape (T, B)."""
        certain = np.abs(self.eigenvalues) > self.errors
        return np.where(certain, np.sign(np.nan_to_num(self.eigenvalues)), 0).astype(int)


def track(steps: Sequence[SpectralStep]) -> Branches:
    """Follow eigenpairs from step to step by the overlap of their vectors, cluster by cluster.

    The vectors of all branches are carried along. At each step the assignment with the largest total
    squared overlap is chosen, where a cluster of equal eigenvalues counts as one subspace: inside it a
    branch goes on with its own projection (the nearest orthonormal frame), not with the arbitrary basis
    that a solver returns, so that branches leave a cluster as they came.

    Parameters
    ----------
    steps : sequence of SpectralStep
        In the order of time, in coordinates of one dimension N.

    Returns
    -------
    Branches

    Raises
    ------
    InputError
        If there is no step, or the steps have vectors of different dimension.
    """
    if not steps:
        raise InputError("steps: expected at least one")
    sizes = sorted({len(step.vectors) for step in steps})
    if len(sizes) > 1:
        raise InputError(f"steps: expected vectors of one dimension, got {sizes}")
    first = len(steps[0].eigenvalues)
    carried, live = steps[0].vectors, np.arange(first)
    rows, links, total = [dict(enumerate(range(first)))], [], first
    for step in steps[1:]:
        places, scores, carried, fresh = _advance(step, carried)
        kept = np.flatnonzero(places >= 0)
        links.append(dict(zip(live[kept].tolist(), scores[kept].tolist(), strict=True)))
        born = np.arange(total, total + len(fresh))
        live = np.concatenate([live[kept], born])
        rows.append(dict(zip(live.tolist(), [*places[kept].tolist(), *fresh], strict=True)))
        total += len(born)
    index = np.array([[row.get(b, -1) for b in range(total)] for row in rows], dtype=int)
    index = index.reshape(len(steps), total)  # also where no step has vectors
    overlaps = np.array([[link.get(b, np.nan) for b in range(total)] for link in links], dtype=float)
    return Branches(
        index, _pick(steps, index, "eigenvalues"), _pick(steps, index, "errors"),
        overlaps.reshape(len(steps) - 1, total),
    )  # fmt: skip


def _pick(steps: Sequence[SpectralStep], index: np.ndarray, name: str) -> np.ndarray:
    padded = [np.append(getattr(step, name), np.nan) for step in steps]  # -1 picks the NaN
    return np.stack([values[row] for values, row in zip(padded, index, strict=True)])


def _advance(step: SpectralStep, carried: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """One link: place and score of each carried vector, the vectors to carry on, eigenvalues left over."""
    inner = step.vectors.T @ carried
    labels = step.clusters
    starts = np.unique(labels, return_index=True)[1]
    scores = np.add.reduceat(np.square(inner), starts, axis=0)[labels] if len(labels) else inner
    # Inside a cluster every place scores the same; the plain overlap only settles the order there.
    chosen = linear_sum_assignment(scores + 1e-9 * np.square(inner), maximize=True)
    places = np.full(inner.shape[1], -1)
    places[chosen[1]] = chosen[0]
    kept = np.flatnonzero(places >= 0)
    frames = step.vectors[:, places[kept]]  # a branch alone in its cluster goes on with the eigenvector
    rest = {}
    taken = np.bincount(labels[places[kept]], minlength=len(starts))
    for label in np.flatnonzero((taken != 1) | (np.bincount(labels, minlength=len(starts)) != 1)):
        members = np.flatnonzero(labels == label)
        here = np.flatnonzero(labels[places[kept]] == label)
        left, _, right = np.linalg.svd(inner[np.ix_(members, kept[here])])
        frames[:, here] = step.vectors[:, members] @ left[:, : len(here)] @ right
        spare = np.setdiff1d(members, places[kept[here]]).tolist()
        spare_vectors = step.vectors[:, members] @ left[:, len(here) :]
        rest |= dict(zip(spare, spare_vectors.T, strict=True))
    fresh = sorted(rest)
    reached = scores[np.maximum(places, 0), np.arange(len(places))].clip(max=1.0)
    return places, reached, np.column_stack([frames, *(rest[j] for j in fresh)]), fresh


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
