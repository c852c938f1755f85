"""Files that say which pairs (x, y) a network was trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from analyses.checkpoints.reading.text import path_text, shown
from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup

MAX_BYTES = 256 << 20  # pairs of a group of several thousand elements


def read_pairs(path: str | Path) -> np.ndarray:
    """Read a file of pairs.

    Parameters
    ----------
    path : str or Path
        Text with two numbers a line, separated by spaces, tabs, commas or semicolons (empty lines, lines
        that begin with ``#`` and one line of column names are passed over); a JSON list of pairs
        (``.json``); or an integer array of numpy, N x 2 (``.npy``). Numbers count the rows of the stored
        tensors, from 0.

    Returns
    -------
    ndarray of int, shape (N, 2)

    Raises
    ------
    InputError
        If the file cannot be read, has no pair, or something in it is none; a line is named by its number.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path_text(path)}: larger than {MAX_BYTES} bytes, no list of pairs")
        if path.suffix == ".npy":
            pairs = _checked(np.load(path, allow_pickle=False), path)
        else:
            text = path.read_text("utf-8-sig")
            pairs = _from_json(text, path) if path.suffix == ".json" else _from_text(text, path)
    except InputError:  # says it all; as a ValueError it would be wrapped and cut below
        raise
    except OSError as error:
        raise InputError(f"{path_text(path)}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError, RecursionError) as error:
        raise InputError(f"{path_text(path)}: no list of pairs ({shown(error)})") from error
    if not len(pairs):
        raise InputError(f"{path_text(path)}: no pair in it; expected two numbers a line")
    return pairs


def _from_text(text: str, path: Path) -> np.ndarray:
    rows: list[list[int]] = []
    titled = False
    for number, line in enumerate(text.splitlines(), start=1):
        words = [word for word in re.split(r"[\s,;]+", line) if word]
        if not words or words[0].startswith("#"):
            continue
        if len(words) == 2 and all(re.fullmatch(r"\+?[0-9]{1,9}", word) for word in words):
            rows.append([int(word) for word in words])
        elif not rows and not titled and all(re.fullmatch(r"[A-Za-z_]\w*", word) for word in words):
            titled = True
        else:
            raise InputError(
                f"{path_text(path)}: line {number}: expected two numbers x y, got {shown(line, limit=40)}"
            )
    return np.array(rows, dtype=int).reshape(-1, 2)


def _from_json(text: str, path: Path) -> np.ndarray:
    document = json.loads(text)
    if not isinstance(document, list):
        raise InputError(f"{path_text(path)}: expected a list of pairs [x, y]")
    for place, pair in enumerate(document):
        if not isinstance(pair, list) or len(pair) != 2 or any(type(item) is not int for item in pair):
            raise InputError(f"{path_text(path)}: entry {place}: expected a pair [x, y], got {shown(pair)}")
    return np.array(document, dtype=int).reshape(-1, 2)


def _checked(array: Any, path: Path) -> np.ndarray:
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise InputError(
            f"{path_text(path)}: expected an integer array N x 2, got {array.dtype} {array.shape}"
        )
    return array.astype(int)


def group_pairs(pairs: np.ndarray, order: int, elements: tuple[int, ...] | None = None) -> np.ndarray:
    """Pairs of stored rows as pairs of group elements.

    Parameters
    ----------
    pairs : ndarray of int, shape (N, 2)
    order : int
        n, elements of the group.
    elements : tuple of int, optional
        The element that each stored row stands for; default: the row's own number.

    Returns
    -------
    ndarray of int, shape (N, 2)
        In the order of ``x n + y``.

    Raises
    ------
    InputError
        If a number is no row, or a pair is there twice.
    """
    outside = pairs[((pairs < 0) | (pairs >= order)).any(1)]
    if len(outside):
        x, y = outside[0]
        raise InputError(
            f"training pairs: ({x}, {y}) is outside 0 to {order - 1}, the rows of {order} elements"
        )
    if elements is not None:
        pairs = np.asarray(elements)[pairs]
    numbers, counts = np.unique(pairs @ [order, 1], return_counts=True)
    if (counts > 1).any():
        x, y = divmod(int(numbers[counts > 1][0]), order)
        raise InputError(f"training pairs: ({x}, {y}) is there twice; a pair has one weight in the loss")
    return np.stack(np.divmod(numbers, order), axis=1)


def training_pairs(group: FiniteAbelianGroup, held_out: np.ndarray) -> np.ndarray:
    """The pairs (x, y) whose number ``x n + y`` is not held out, shape (N, 2)."""
    n = group.order
    kept = np.setdiff1d(np.arange(n * n), held_out)
    return np.stack(np.divmod(kept, n), axis=1)
