"""How the benches time a piece of work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def median_seconds(work: Callable[[], Any], times: int) -> float:
    """Median wall seconds of some work over ``times`` runs, after one that is not counted."""
    work()
    spans = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        spans.append(time.perf_counter() - begin)
    return sorted(spans)[times // 2]
