"""The same work for many steps: one after the other, in processes, or on a Dask cluster."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_limits

from analyses.common.study_files import Progress, atomic_path, plain, silent
from manifold.errors import InputError, RhoscopeError

DASK_SECONDS = "10s"  # a scheduler that is there answers in well under one


@dataclass(frozen=True)
class Crew:
    """Who does the work.

    Parameters
    ----------
    workers : int
        Processes; more than one work with one BLAS thread and one checkpoint in memory each.
    dask : str, optional
        Address of a Dask scheduler to run on instead.

    Raises
    ------
    InputError
        For fewer than one process.
    """

    workers: int = 1
    dask: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"workers: expected at least 1 process, got {self.workers}")

    @property
    def single(self) -> bool:
        """Whether everything runs in this process."""
        return self.workers == 1 and self.dask is None


ALONE = Crew()


def over_steps(
    work: Callable[..., Any], steps: Sequence[Any], *arguments: Any, crew: Crew = ALONE,
    what: str = "step", progress: Progress = silent,
) -> dict[Any, Any]:  # fmt: skip
    """Do ``work(step, *arguments)`` for every step.

    Parameters
    ----------
    work : callable
        A function of a module (it travels to other processes). A `RhoscopeError` of one step becomes its
        result, as a sentence; the others go on.
    steps : sequence
    *arguments
        The same for all steps.
    crew : Crew
    what : str
        Said with every finished step.
    progress : Progress

    Returns
    -------
    dict
        Result or reason of each step, in the order of the steps.

    Raises
    ------
    InputError
        If Dask is asked for and not installed, or nobody answers at its address.
    """
    found = {}
    threads = None if crew.single else 1
    with _backend(crew):
        pool = Parallel(return_as="generator", **({"n_jobs": 1} if crew.single else {}))
        results = pool(delayed(_one)(work, step, arguments, threads) for step in steps)
        for done, (step, result) in enumerate(zip(steps, results, strict=True), start=1):
            found[step] = result
            progress(done, len(steps), f"{what} {step}")
    return found


def kept_result(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The JSON content of a file, or what ``make`` returns, which is then kept there if that is possible."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        found = plain(make())
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
    with suppress(RhoscopeError, OSError), atomic_path(file, force=True) as temporary:
        temporary.write_text(json.dumps(found), "utf-8")
    return found


def _one(work: Callable[..., Any], step: Any, arguments: tuple, threads: int | None) -> Any:
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            return work(step, *arguments)
    except RhoscopeError as error:
        return str(error)


@contextmanager
def dask_cluster(address: str | None) -> Iterator[None]:
    """Send the work of joblib to a Dask cluster; without an address it stays here.

    Parameters
    ----------
    address : str or None
        Of the scheduler.

    Raises
    ------
    InputError
        If Dask is not installed, or nobody answers at the address.
    """
    if address is None:
        yield
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("dask: install the extra first: pip install 'rhoscope[dask]'") from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # our one line says what it would say
    try:
        client = Client(address, timeout=DASK_SECONDS, set_as_default=True)
    except Exception as error:  # a bad address, a dead one, another protocol: Dask raises many kinds
        raise InputError(
            f"dask {address!r}: no scheduler answers there ({type(error).__name__}: {error})"
        ) from error
    with client, parallel_config(backend="dask"):
        yield


@contextmanager
def _backend(crew: Crew) -> Iterator[None]:
    if crew.dask is None:
        with parallel_config(backend="loky", n_jobs=crew.workers):
            yield
        return
    with dask_cluster(crew.dask):
        yield
