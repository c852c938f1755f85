"""Branches: eigenvalues followed from step to step by the overlap of their eigenvectors."""

from __future__ import annotations

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
