"""Train networks as a published table of polynomial families did, one file per network.

The protocol (arXiv 2410.01779): ``o = sum_j c_j (a_j[x] + b_j[y])^2`` with q = 512 neurons and s = 1,
projected squared error averaged over a random 90 % of the pairs, uncentred weights that start uniform in
``+-1/sqrt(fan-in)`` (n for a and b, q for c), 10,000 full-batch steps of Adam with the constant rate 0.01
and L2 decay 5e-5. In double precision.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

from analyses.common.study_files import Progress, atomic_path, provenance, silent
from analyses.runs.exports import write_network
from analyses.training.trainer import RawGradient, TrainingPlan
from manifold.errors import InputError
from spectra.networks.group_network import GroupNetwork

GROUPS = ("Z23", "Z71", "Z127")
SEEDS = range(1, 6)
WIDTH, STEPS, RATE, DECAY, FRACTION = 512, 10_000, 0.01, 5e-5, 0.9
FADED = 1e-3
CHECK_EVERY = 100
MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class PublishedPlan:
    """One network of the table.

    Parameters
    ----------
    group : str
        Such as ``Z23``.
    seed : int
        Of the split and of the initial weights.
    width, steps : int
        Neurons and full-batch steps of Adam.
    prune : bool
        Take neurons out once all their weights are below 1e-3: each then adds less than 1e-8 to an output,
        and decay holds it there. Saves most of the time. The trembling that Adam keeps up in dead neurons
        is missing from the final loss; families stay the same (a slow test compares them).
    """

    group: str
    seed: int
    width: int = WIDTH
    steps: int = STEPS
    prune: bool = True

    @property
    def training(self) -> TrainingPlan:
        """The plan of the reference trainer with this loss, split and decay."""
        return TrainingPlan(
            self.group, width=self.width, optimizer="adam", lr=RATE, schedule="constant", steps=self.steps,
            weight_decay=DECAY, train_fraction=FRACTION, output_scale=1.0, centred=False, seed=self.seed,
        )  # fmt: skip

    def initial(self) -> GroupNetwork:
        """Uniform weights in ``+-1/sqrt(n)`` (a and b) and ``+-1/sqrt(q)`` (c), as linear layers start."""
        group = self.training.task().group
        rng = np.random.default_rng(self.seed)
        n, q = group.order, self.width
        a, b, c = (torch.as_tensor(rng.uniform(-1, 1, size=(n, q))) for _ in range(3))
        return GroupNetwork(group, a / n**0.5, b / n**0.5, c / q**0.5)


def train_as_published(
    plan: PublishedPlan, *, progress: Progress = silent
) -> tuple[GroupNetwork, dict[str, Any]]:
    """Train one network.

    Parameters
    ----------
    plan : PublishedPlan
    progress : Progress
        Told the step.

    Returns
    -------
    network : GroupNetwork
        The neurons that are left.
    facts : dict
        Loss on the training pairs and on all pairs, accuracy, seconds, and neurons left by step.
    """
    begin, training = time.perf_counter(), plan.training
    task, network = training.task(), plan.initial()
    weights = [network.a, network.b, network.c]
    gradient = RawGradient(task, network)
    optimizer = torch.optim.Adam(weights, lr=RATE, weight_decay=DECAY, foreach=True)
    left = [(0, plan.width)]
    for step in range(plan.steps):
        if plan.prune and step % CHECK_EVERY == 0:
            keep = torch.stack(weights).abs().amax((0, 1)) > FADED
            if not keep.all():
                _keep(optimizer, weights, keep)
                left.append((step, int(keep.sum())))
                gradient = RawGradient(task, GroupNetwork(task.group, *weights))
        if step % CHECK_EVERY == 0:
            progress(step, plan.steps, f"{plan.group} seed {plan.seed}: {weights[0].shape[1]} neurons left")
        _, slopes = gradient(weights)
        for w, slope in zip(weights, slopes, strict=True):
            w.grad = slope
        optimizer.step()
    end = GroupNetwork(task.group, *(w.detach() for w in weights))
    facts = {
        "training_loss": float(task.value(end.measure())),
        "loss": float(TrainingPlan(plan.group, centred=False).task().value(end.measure())),
        "accuracy": end.accuracy(),
        "neurons_left": left,
        "seconds": time.perf_counter() - begin,
    }
    return end, facts


def _keep(optimizer: torch.optim.Adam, weights: list[Tensor], keep: Tensor) -> None:
    """Drop columns of the weights and of the moments that Adam keeps for them."""
    for w in weights:
        w.grad = None
        w.data = w.data[:, keep].contiguous()
        state = optimizer.state.get(w, {})
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name] = state[name][:, keep].contiguous()


def train_table(
    folder: Path, *, groups: tuple[str, ...] = GROUPS, seeds: range = SEEDS, workers: int = 1,
    progress: Progress = silent,
) -> None:  # fmt: skip
    """Train every network of the table that the folder does not hold yet, small groups first.

    Each finished network is written at once (``Z23_1.safetensors``, then ``Z23_1.json``), so a run that was
    interrupted goes on where it stopped.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    groups : tuple of str
    seeds : range
    workers : int
        Networks trained at the same time, one thread each; 1 trains them one by one on all threads.
    progress : Progress
        Told the networks done, with one worker the share of steps too.

    Raises
    ------
    InputError
        If the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--published-table: expected a folder, {folder} is a file")
    plans = [PublishedPlan(group, seed) for group in groups for seed in seeds]
    missing = [plan for plan in plans if not note_of(folder, plan).exists()]
    # Every worker says the command that the user typed, not its own.
    origin = {plan: provenance(seed=plan.seed) for plan in missing}
    if workers == 1:
        for i, plan in enumerate(missing):
            _train_and_write(folder, plan, origin[plan], _part(progress, i, len(missing)))
        return
    threads = max(1, torch.get_num_threads() // workers)  # more would wait for each other
    jobs = (delayed(_train_and_write)(folder, plan, origin[plan], threads=threads) for plan in missing)
    for i, name in enumerate(Parallel(workers, return_as="generator_unordered")(jobs)):
        progress(i + 1, len(missing), f"{name} done")


def _part(progress: Progress, index: int, count: int) -> Progress:
    """The progress of one network as a part of the whole."""
    return lambda done, total, message="": progress(index + done / total, count, message)


def note_of(folder: Path, plan: PublishedPlan) -> Path:
    """The file with the facts of one finished network."""
    return folder / f"{plan.group}_{plan.seed}.json"


def _train_and_write(
    folder: Path, plan: PublishedPlan, origin: dict[str, Any], progress: Progress = silent,
    threads: int | None = None,
) -> str:  # fmt: skip
    note = note_of(folder, plan)
    if note.exists():  # another process was faster
        return note.stem
    if threads is not None:
        torch.set_num_threads(threads)
    _keep_freed_memory()
    network, facts = train_as_published(plan, progress=progress)
    facts |= {"group": plan.group, "seed": plan.seed, "provenance": origin}
    write_network(note.with_suffix(".safetensors"), network, provenance=origin, force=True)
    with atomic_path(note, force=True) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n")
    return note.stem


def _keep_freed_memory() -> None:
    """Let the C library keep freed blocks: giving pages back each step costs as much as the arithmetic."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc: nothing to tune
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MALLOPT_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(MALLOPT_MMAP_MAX, 0)
