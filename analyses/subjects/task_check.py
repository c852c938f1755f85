"""A warning for networks that do not do the task they are read as."""

from __future__ import annotations

DOES_THE_TASK = 0.9  # accuracy; a wrong group, order of elements or tensor gives far less, most near chance


def task_warning(
    accuracy: float, *, group: str, order: int, training_accuracy: float | None = None
) -> str | None:
    """One sentence if a network fails on all pairs, and on those of its training where they are known.

    Parameters
    ----------
    accuracy : float
        Share of all pairs that it gets right.
    group : str
        Name of the group it is read on.
    order : int
        Its order n.
    training_accuracy : float, optional
        Share of the training pairs.

    Returns
    -------
    str or None
    """
    if max(accuracy, training_accuracy or 0.0) >= DOES_THE_TASK:
        return None
    right = f"{100 * accuracy:.1f} % of all pairs of {group}"
    if training_accuracy is not None:
        right += f" and {100 * training_accuracy:.1f} % of its training pairs"
    return (
        f"the network does not do the task it is read as: {right} right, chance {100 / order:.1f} %; unless "
        "it is still learning, the group, the order of its elements, the tensors or the activation are others"
    )
