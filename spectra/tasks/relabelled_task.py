"""The loss of a network whose labels were changed: a null control without the law of a group."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.tasks.gram_terms import Term
from spectra.tasks.group_task import GroupLinearisation, GroupTask


def shuffled_labels(group: FiniteAbelianGroup, seed: int) -> np.ndarray:
    """The labels x + y dealt out anew to the n^2 pairs: every label as often as before, no law.

    Parameters
    ----------
    group : FiniteAbelianGroup
        Of order n.
    seed : int

    Returns
    -------
    ndarray of int, shape (n, n)
    """
    return np.random.default_rng(seed).permutation(group.sums.reshape(-1)).reshape(group.sums.shape)


class RelabelledTask(GroupTask):
    """A `GroupTask` that asks for ``labels[x, y]`` instead of x + y.

    The potentials and L'' are those of the group task; only the slope of L differs, so no Gram form exists
    (its target term knows one law only) and everything goes through the outputs.

    Parameters
    ----------
    group : FiniteAbelianGroup
    labels : ndarray of int, shape (n, n)
        The wanted element of every pair.
    **options
        Of `GroupTask`.

    Raises
    ------
    InputError
        If the labels are no n x n table of elements.
    """

    def __init__(self, group: FiniteAbelianGroup, *, labels: np.ndarray, **options: Any):
        super().__init__(group, **options)
        labels, n = np.asarray(labels), group.order
        if labels.shape != (n, n) or labels.min() < 0 or labels.max() >= n:
            raise InputError(f"labels: expected an {n} x {n} table of 0..{n - 1}, got shape {labels.shape}")
        self.labels = labels.astype(np.int64)

    @override
    def _pair_table(self, take_back: bool) -> tuple[Tensor, float]:
        table, coefficient = super()._pair_table(take_back)
        wanted = torch.as_tensor(self.labels, device=table.device)[table[:, 0], table[:, 1]]
        return torch.column_stack([table[:, :2], wanted]), coefficient

    @override
    def uses_gram_form(self, neurons: int) -> bool:
        return False

    @override
    def terms(self, measure: ParticleMeasure, *, gram: bool) -> list[tuple[float, Term]]:
        if gram:
            raise InputError("gram: a loss with changed labels has no Gram form; leave it out")
        return super().terms(measure, gram=False)

    @override
    def linearise(self, measure: ParticleMeasure, *, gram: bool | None = None) -> GroupLinearisation:
        return super().linearise(measure, gram=bool(gram))


def labelled_task(group: FiniteAbelianGroup, labels: int | None, **options: Any) -> GroupTask:
    """The task on a group with the labels x + y (None), or with labels shuffled by this seed."""
    if labels is None:
        return GroupTask(group, **options)
    return RelabelledTask(group, labels=shuffled_labels(group, labels), **options)
