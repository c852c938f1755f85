"""The subsets of R that a user can ask for: ``R_g``, or ``k=3`` for one output frequency."""

from __future__ import annotations

import re

import numpy as np

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.monomials import Monomials
from spectra.networks.group_network import GroupNetwork
from spectra.networks.potentials import group_monomials
from spectra.tasks.group_task import GroupTask

POTENTIAL_SETS = ("all", "R_g", "R_c", "R_n", "R_*")
FREQUENCY = re.compile(r"k=(\d+(?:,\d+)*)")


def check_potentials(text: str) -> None:
    """Refuse a name of potentials that means nothing on any group.

    Raises
    ------
    InputError
        Unless it is one of `POTENTIAL_SETS` or like ``k=3``.
    """
    if text not in POTENTIAL_SETS and not FREQUENCY.fullmatch(text):
        raise InputError(
            f"potentials: expected one of {', '.join(POTENTIAL_SETS)} or a frequency such as k=3, "
            f"got {text!r}"
        )


def check_sets_exist(network: GroupNetwork, text: str) -> None:
    """Refuse a subset of R for a network whose potentials have no such sets.

    Raises
    ------
    InputError
        Unless all are asked for, or the activation is the square.
    """
    if text != "all" and not network.quadratic:
        raise InputError(
            f"potentials {text}: these sets exist for the square activation only, "
            f"the network has {network.activation.name}; use all"
        )


def chosen_monomials(task: GroupTask, text: str) -> Monomials | None:
    """The monomials of a subset of R; None for all of R.

    Parameters
    ----------
    task : GroupTask
        Its group and coordinates.
    text : str
        One of `POTENTIAL_SETS`, or ``k=3`` (``k=1,2`` on a product of two cyclic groups): those that decide
        the output at frequency k, the potentials of l_k.

    Returns
    -------
    Monomials or None

    Raises
    ------
    InputError
        For a frequency that the group does not have.
    """
    check_potentials(text)
    if text == "all":
        return None
    asked = FREQUENCY.fullmatch(text)
    return group_monomials(
        task.group, chosen="all" if asked else text, centred=task.centred, tied=task.tied,
        output=_frequency_number(task.group, asked[1]) if asked else None,
    )  # fmt: skip


def _frequency_number(group: FiniteAbelianGroup, text: str) -> int:
    """Number of a non-trivial frequency from its coordinates ``1,2``.

    Raises
    ------
    InputError
        If there are not as many coordinates as cyclic factors, or for the trivial frequency.
    """
    coordinates = np.array([int(part) for part in text.split(",")], dtype=object)
    factors = group.elements.shape[1]
    if len(coordinates) != factors:
        raise InputError(f"potentials: expected {factors} coordinates of k on {group.name}, got k={text}")
    inside = all(k < order for k, order in zip(coordinates, group.orders, strict=True))
    number = int(group.index(coordinates.astype(int))) if inside else 0
    if number == 0:
        raise InputError(f"potentials: expected a frequency of {group.name} other than 0, got k={text}")
    return number
