"""Commands that are killed at random moments, and what must be whole on disk afterwards."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch

from analyses.checkpoints.reading.statedicts import METADATA_KEY  # noqa: F401  (loads the reader once, before forking)
from analyses.common.study_files import read_study
from analyses.runs.run import Run
from analyses.studies.crossings.records import StepRecord
from analyses.training.trainer import TrainingPlan, train

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.analyses.commands.durability", "analyses.commands.networks.train",
                                "analyses.commands.studies.crossings"])  # fmt: skip
TRAIN = [
    "--group", "Z3", "--width", "8", "--steps", "120", "--save-every", "6", "--optimizer", "adam", "--seed",
    "4", "--resume", "--quiet",
]  # fmt: skip
PLAN = TrainingPlan("Z3", width=10, optimizer="flow", steps=240, seed=2)


def run_cli(arguments: list[str], out: str, err: str, ready) -> None:
    """Target of a child process: the command, its streams in files."""
    from analyses import cli

    torch.set_num_threads(1)
    for number, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    sys.argv = ["rhoscope", *arguments]
    ready.set()
    cli.main()


class Command:
    """One command in a process of its own."""

    def __init__(self, folder: Path, *arguments: object):
        self.out, self.err = folder / "stdout", folder / "stderr"
        ready = CONTEXT.Event()
        self.process = CONTEXT.Process(
            target=run_cli, args=([str(a) for a in arguments], str(self.out), str(self.err), ready)
        )
        self.process.start()
        assert ready.wait(120)

    def signal(self, number: int, delay: float) -> bool:
        """Send a signal after a delay; whether the command was still running then."""
        self.process.join(delay)
        alive = self.process.is_alive()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        self.process.join(60)
        return alive

    def finish(self) -> int:
        """Wait; the exit code."""
        self.process.join(300)
        return self.process.exitcode


def timed(folder: Path, *arguments: object) -> float:
    """Seconds of an uninterrupted command that must succeed."""
    begin = time.monotonic()
    command = Command(folder, *arguments)
    assert command.finish() == 0, command.err.read_text()
    return time.monotonic() - begin


# -- train -------------------------------------------------------------------------------------------


def whole_run(folder: Path, reference: dict[int, dict[str, torch.Tensor]]) -> set[int]:
    """Everything a killed ``train`` left opens and equals the uninterrupted run; its steps."""
    if not (folder / "run.json").exists():
        assert not (folder / "checkpoints").exists() or not any(
            item.suffix == ".pt" for item in (folder / "checkpoints").iterdir()
        )
        return set()
    json.loads((folder / "run.json").read_text())
    if (folder / "resume.pt").exists():
        torch.load(folder / "resume.pt", weights_only=True)
    if not any((folder / "checkpoints").glob("step_*")):
        return set()
    run = Run.open(folder)
    for step in run.steps:
        tensors = run.read(step).tensors
        assert all(torch.equal(tensors[key], value) for key, value in reference[step].items()), step
    return set(run.steps)


def kill_train(folder: Path, kills: int, seed: int, number: int) -> None:
    """Kill ``rhoscope train`` again and again; nothing finished is lost, the end is the same."""
    moments = random.Random(seed)
    timed(folder, "train", folder / "whole", "--dry-run", *TRAIN)  # starts the server of processes
    seconds = timed(folder, "train", folder / "whole", *TRAIN)
    run = Run.open(folder / "whole")
    reference = {step: run.read(step).tensors for step in run.steps}
    landed = started = 0
    while landed < kills:
        target, before, first = folder / f"run{started}", set(), landed
        started += 1
        while True:
            command = Command(folder, "train", target, *TRAIN)
            if not command.signal(number, moments.uniform(0, seconds)):
                assert command.process.exitcode == 0, command.err.read_text()
                break
            landed += 1
            steps = whole_run(target, reference)
            assert before <= steps, "a finished step was lost"
            before = steps
            if landed >= kills:
                assert Command(folder, "train", target, *TRAIN).finish() == 0
                break
        assert whole_run(target, reference) == set(reference)
        assert not list(target.rglob("*.part")), "leftovers"
        assert not (target / "resume.pt").exists()
        print(f"train: run {started} finished after {landed - first} kills")


# -- crossings ---------------------------------------------------------------------------------------


def make_run(folder: Path) -> Path:
    """A small flow run to follow."""
    train(PLAN, folder / "flow", save_every=10)
    return folder / "flow"


def document_of(path: Path) -> dict:
    """The study on disk as its document, without what differs between two honest runs."""
    document = json.loads(read_study(path).attrs["summary"])
    del document["provenance"], document["seconds_per_step"]
    return document


def whole_cache(cache: Path) -> dict[str, bytes]:
    """Every finished step of a killed ``crossings`` opens; their bytes."""
    files = {file.name: file for file in cache.glob("step_*.npz")} if cache.exists() else {}
    for file in files.values():
        record = StepRecord.load(file)
        assert record is not None, file
        assert np.isfinite(record.eigenvalues).all()
    return {name: file.read_bytes() for name, file in files.items()}


def kill_crossings(folder: Path, kills: int, seed: int, number: int) -> None:
    """Kill ``rhoscope crossings`` again and again; nothing finished is lost, the study is the same."""
    moments = random.Random(seed)
    run = make_run(folder)
    options = ["--quiet", "--json"]
    timed(folder, "crossings", run, "--dry-run", *options)
    reference = folder / "whole.nc"
    seconds = timed(folder, "crossings", run, "--cache", folder / "whole", "--out", reference, *options)
    wanted, records = document_of(reference), len(whole_cache(folder / "whole"))
    landed = started = 0
    while landed < kills:
        cache, out = folder / f"cache{started}", folder / f"study{started}.nc"
        before, first = {}, landed
        started += 1
        arguments = ["crossings", run, "--cache", cache, "--out", out, *options]
        while True:
            command = Command(folder, *arguments)
            if not command.signal(number, moments.uniform(0, seconds)):
                assert command.process.exitcode == 0, command.err.read_text()
                break
            landed += 1
            now = whole_cache(cache)
            assert all(now.get(name) == data for name, data in before.items()), "a finished step was lost"
            before = now
            if out.exists():  # killed after the study was written
                break
            if landed >= kills:
                assert Command(folder, *arguments).finish() == 0
                break
        assert document_of(out) == wanted
        assert len(whole_cache(cache)) == records
        print(f"crossings: study {started} finished after {landed - first} kills")
