"""Leftovers: what a layout leaves unused of the tensors of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyses.layouts.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from analyses.checkpoints.reader import Checkpoint


def unused_tensors(layout: Layout, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Tensors of a checkpoint that no expression uses; copies of used ones are not counted.

    Parameters
    ----------
    layout : Layout
    checkpoint : Checkpoint

    Returns
    -------
    tuple of str
        Keys in the order of the checkpoint.
    """
    used = {key for expression in layout.expressions.values() for key in expression.keys}
    known = [checkpoint.tensors[key] for key in used if key in checkpoint.tensors]
    return tuple(
        key
        for key, tensor in checkpoint.tensors.items()
        if key not in used and not any(_same(tensor, other) for other in known)
    )


def unused_numbers(layout: Layout, checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Tensors that the slices of a layout use in part: how many of their numbers are left out, of how many.

    Parameters
    ----------
    layout : Layout
    checkpoint : Checkpoint

    Returns
    -------
    dict of str to (int, int)
        Empty where every used tensor is used whole.
    """
    masks: dict[str, Tensor] = {}
    for expression in layout.expressions.values():
        checkpoint.require(expression.keys)
        for key, mask in expression.entries(checkpoint.tensors).items():
            masks[key] = mask if key not in masks else masks[key] | mask
    return {key: (int((~mask).sum()), mask.numel()) for key, mask in masks.items() if not mask.all()}


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers: a tied weight is stored under two keys."""
    return one.shape == other.shape and one.numel() > 1 and bool((one == other).all())
