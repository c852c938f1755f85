"""Plain values beside the tensors of a file: names of activations, losses and optimisers that were stored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from analyses.checkpoints.reading.allowlist import Record
from analyses.checkpoints.reading.trees import attributes_of

WORDS_KEY = "rhoscope.words"  # where a worker hands them over, as JSON
MAX_WORDS = 500
MAX_WORD_LENGTH = 200
MAX_ITEMS = 50_000
MAX_DEPTH = 6


def words_beside(tree: Any, *left_out: str) -> dict[str, str | float]:
    """Short texts and numbers in nested dictionaries and objects (of a list the last), by their last key.

    Parameters
    ----------
    tree : Any
        What a file holds.
    left_out : str
        Keys that are not words.

    Returns
    -------
    dict
        At most 500.
    """
    found: dict[str, str | float] = {}
    for name, item in itertools.islice(_walk(tree), MAX_ITEMS):
        key = name[:MAX_WORD_LENGTH]
        last = item[-1] if isinstance(item, (list, tuple)) and item else item
        plain = type(last) in (str, int, float) and len(found) < MAX_WORDS
        if plain and (not isinstance(last, str) or len(last) <= MAX_WORD_LENGTH) and key not in left_out:
            found.setdefault(key, last if isinstance(last, str) else float(min(max(last, -1e300), 1e300)))
    return found


def _walk(tree: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, item in attributes_of(tree).items():
        yield key if isinstance(key, str) else f"<{type(key).__name__}>", item
        if isinstance(item, (dict, Record)) and depth < MAX_DEPTH:
            yield from _walk(item, depth + 1)
