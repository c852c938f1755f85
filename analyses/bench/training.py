"""Bench of the trainer: time and memory to a solved task, against the plain network in torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from analyses.bench.timing import median_seconds
from analyses.common.study_files import Progress, silent
from analyses.common.versions import rhoscope_version
from analyses.training.trainer import RawGradient, TrainingPlan

CASES = ("Z23", "Z113")
WIDTHS = {"Z23": 256, "Z113": 512}


def run(
    *, quick: bool = False, cases: Sequence[str] = CASES, seed: int = 0, progress: Progress = silent
) -> list[dict[str, Any]]:
    """Rows of the bench: a whole ``rhoscope train`` in a process of its own, then one step of each kind.

    Parameters
    ----------
    quick : bool
        Time the steps only.
    cases : sequence of str
        Of `CASES`.
    seed : int
        Of the initial weights.
    progress : Progress
        Told the cases done.

    Returns
    -------
    list of dict
        Rows with the keys of ``rhoscope bench``; ratio = plain torch over rhoscope, per step.
    """
    rows = []
    for i, case in enumerate(cases):
        progress(i, len(cases), f"{case}: training")
        if not quick:
            rows.append(_whole_training(case, seed))
        ours, plain = _step_times(TrainingPlan(case, width=WIDTHS[case], seed=seed))
        rows += [
            _row(case, "rhoscope", rhoscope_version(), "one full-batch step", ours, 1.0),
            _row(case, "plain torch network", torch.__version__, "one full-batch step", plain, plain / ours),
        ]
    progress(len(cases), len(cases), "done")
    return rows


def _row(
    case: str, tool: str, version: str, quantity: str, seconds: float, ratio: float | None
) -> dict[str, Any]:
    return {
        "case": f"{case} q={WIDTHS[case]}", "tool": tool, "version": version, "quantity": quantity,
        "seconds": seconds, "peak_mib": None, "error": "", "ratio": ratio,
    }  # fmt: skip


def _whole_training(case: str, seed: int) -> dict[str, Any]:
    """``rhoscope train --optimizer adam`` with its defaults; error = what it did not reach."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "analyses.cli", "train", str(Path(folder) / "run"), "--group", case,
            "--width", str(WIDTHS[case]), "--optimizer", "adam", "--seed", str(seed), "--json", "--quiet",
        ]  # fmt: skip
        begin = time.perf_counter()
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds = time.perf_counter() - begin
    document = json.loads(text)
    row = _row(case, "rhoscope", rhoscope_version(), "train to the end (2000 steps)", seconds, None)
    reached = f"projected MSE {document['loss']:.2e}, accuracy {100 * document['accuracy']:.2f} %"
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return row | {"peak_mib": peak, "error": reached}


def _step_times(plan: TrainingPlan) -> tuple[float, float]:
    """Median seconds of one loss and gradient: ours and the plain network's, chunked over x."""
    net = plan.initial()
    weights = [net.a, net.b, net.c]
    gradient = RawGradient(plan.task(), net)
    ours = median_seconds(lambda: gradient(weights), 7)
    return ours, median_seconds(lambda: _plain_step(net), 3)


def _plain_step(net: Any) -> list[torch.Tensor]:
    """The projected MSE by autograd through the n^2 x q activations, 16 rows x at a time."""
    n = net.group.order
    weights = [w.clone().requires_grad_() for w in (net.a, net.b, net.c)]
    targets = torch.as_tensor(net.group.sums)
    eye = torch.eye(n, dtype=torch.float64)
    for low in range(0, n, 16):
        a, b, c = weights
        part = a[low : low + 16, None, :] + b[None, :, :]
        residual = net.output_scale * part.square() @ c.T - eye[targets[low : low + 16]]
        residual = residual - residual.mean(-1, keepdim=True)
        (residual.square().sum() / n**2).backward()
    return [w.grad for w in weights]
