"""How the benches time a piece of work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def median_seconds(work: Callable[[], Any], times: int) -> float:
    """Median wall seconds of some work over ``times`` runs, after one that is not counted."""
    return interleaved_seconds(work, times=times)[0]


def interleaved_seconds(*works: Callable[[], Any], times: int) -> list[float]:
    """Median wall seconds of several works in turn, so that a busy machine slows all of them alike."""
    spans: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(times):
        for work, own in zip(works, spans, strict=True):
            begin = time.perf_counter()
            work()
            own.append(time.perf_counter() - begin)
    return [sorted(own)[times // 2] for own in spans]
