"""How the benches time a piece of work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def median_seconds(work: Callable[[], Any], times: int) -> float:
    """Median wall seconds of some work over ``times`` runs, after one that is not counted."""
    return interleaved_seconds(work, times=times)[0]


def interleaved_seconds(*works: Callable[[], Any], times: int, in_a_row: int = 1) -> list[float]:
    """Median wall seconds of several works in turn, so that a busy machine slows all of them alike.

    Parameters
    ----------
    *works : callable
    times : int
        Turns of each.
    in_a_row : int
        Runs in each turn, all counted: an iteration finds in the cache what its last step left there.

    Returns
    -------
    list of float
        Seconds of one run of each.
    """
    spans: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(times):
        for work, own in zip(works, spans, strict=True):
            for _ in range(in_a_row):
                begin = time.perf_counter()
                work()
                own.append(time.perf_counter() - begin)
    return [sorted(own)[len(own) // 2] for own in spans]


def flop_rates(work: Callable[[], Any], flops: float, *, size: int = 2000, times: int = 9) -> list[float]:
    """Flops a second of some work and of this machine's float64 matrix product, medians taken in turn.

    Parameters
    ----------
    work : callable
    flops : float
        Of one run.
    size : int
        Of the square matrices.
    times : int
        Turns of each; the work runs five times in each.

    Returns
    -------
    list of float
        Of the work, of the matrix product.
    """
    square = torch.ones(size, size, dtype=torch.float64)
    out = torch.empty_like(square)

    def five() -> None:
        for _ in range(5):
            work()

    own, product = interleaved_seconds(five, lambda: torch.mm(square, square, out=out), times=times)
    return [5 * flops / own, 2 * size**3 / product]
