"""Null controls of a crossing study: the same weights shuffled, the same training on shuffled labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from analyses.common.study_files import Progress, silent
from analyses.runs.run import Run
from analyses.training.flow_time import training_plan
from analyses.training.trainer import save_steps, train
from manifold.errors import InputError

CONTROLS = ("random", "labels")
CONTROL_WORDS = {
    "random": "weights shuffled at every step",
    "labels": "trained on shuffled labels",
}


def relabelled_run(run: Run, folder: Path, *, device: str = "cpu", progress: Progress = silent) -> Run:
    """The same network trained in the same way on shuffled labels; kept in a folder and taken up again.

    Parameters
    ----------
    run : Run
        Of the reference trainer.
    folder : Path
        Where the control run is, or will be.
    device : str
        torch device.
    progress : Progress
        Told the training step.

    Returns
    -------
    Run

    Raises
    ------
    InputError
        If the run was not written by ``rhoscope train``, or has shuffled labels itself.
    """
    plan = training_plan(run)
    if plan is None:
        raise InputError(
            "--control labels: expected a run of rhoscope train; train a control of your own on shuffled "
            "labels and give its folder to rhoscope crossings"
        )
    if plan.labels is not None:
        raise InputError("--control labels: this run has shuffled labels already")
    control = dataclasses.replace(plan, labels=plan.seed)
    every = run.config.get("save_every")
    if folder.is_dir():
        there = Run.open(folder) if any((folder / "checkpoints").glob("step_*")) else None
        known = None if there is None else training_plan(there)
        if known == control and set(there.steps) == save_steps(control.steps, every):
            return there
    return train(
        control, folder, save_every=every, resume=(folder / "run.json").exists(), device=device,
        progress=progress,
    )  # fmt: skip
