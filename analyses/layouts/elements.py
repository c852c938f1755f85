"""The order in which a stranger stores the elements of a group: files, and permutations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.checkpoints.reading.text import shown
from manifold.errors import LayoutError
from manifold.groups.abelian import FiniteAbelianGroup


def read_elements(path: str | Path) -> list[Any]:
    """Order of the group elements in stored tensors: a JSON list, or one element per line.

    Parameters
    ----------
    path : str or Path
        Entry i is the element (a number, or its coordinates) that row i stands for.

    Returns
    -------
    list
        Numbers or lists of coordinates, unchecked.

    Raises
    ------
    LayoutError
        If the file cannot be read or holds something else.
    """
    try:
        text = Path(path).read_text("utf-8")
        if text.lstrip().startswith("["):
            return list(json.loads(text))
        rows = [[int(item) for item in line.replace(",", " ").split()] for line in text.splitlines()]
        return [row[0] if len(row) == 1 else row for row in rows if row]
    except OSError as error:
        raise LayoutError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path}: expected group elements, one per line or a JSON list") from error


def element_order(elements: Sequence[Any], group: FiniteAbelianGroup) -> tuple[int, ...]:
    """Element numbers from numbers or coordinates.

    Parameters
    ----------
    elements : sequence
        Entry i is the element that row i of the stored tensors stands for.
    group : FiniteAbelianGroup

    Returns
    -------
    tuple of int

    Raises
    ------
    LayoutError
        If that is not every element of the group once.
    """
    numbers = []
    for item in elements:
        if isinstance(item, (list, tuple)) and len(item) == len(group.orders):
            if not all(type(x) is int and 0 <= x < n for x, n in zip(item, group.orders, strict=True)):
                raise LayoutError(f"elements: {shown(item)} is no element of {group.name}")
            numbers.append(int(group.index(item)))
        elif type(item) is int:
            numbers.append(item)
        else:
            raise LayoutError(f"elements: {shown(item)} is no element of {group.name}")
    if sorted(numbers) != list(range(group.order)):
        raise LayoutError(
            f"elements: expected every element of {group.name} once (0 to {group.order - 1}), "
            f"got {len(numbers)} entries that are no such permutation"
        )
    return tuple(numbers)


def inverse(elements: Sequence[int]) -> list[int]:
    """Row of each element: the inverse of a permutation."""
    place = [0] * len(elements)
    for row, element in enumerate(elements):
        place[element] = row
    return place
