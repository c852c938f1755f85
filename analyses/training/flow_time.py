"""Flow time of the steps of a run, and networks between two checkpoints by running training again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analyses.runs.recipes import is_own
from analyses.runs.run import Run
from analyses.subjects.subject import Subject
from analyses.training.trainer import RawGradient, TrainingPlan, learning_rates
from manifold.errors import InputError
from spectra.flow.gradient_flow import gradient_flow
from spectra.networks.group_network import GroupNetwork


def training_plan(run: Run) -> TrainingPlan | None:
    """The plan of a run of the reference trainer; None for runs of other trainers."""
    names = {field.name for field in dataclasses.fields(TrainingPlan)}
    if not is_own(run.config) or names - set(run.config) - {"labels"}:  # old runs have true labels
        return None
    try:
        return TrainingPlan(**{name: run.config[name] for name in names & set(run.config)})
    except (InputError, TypeError, ValueError, OverflowError):  # not what rhoscope train wrote
        return None


def flow_times(run: Run, steps: Sequence[float]) -> np.ndarray | None:
    """Time of the Wasserstein gradient flow at each step.

    Parameters
    ----------
    run : Run
    steps : sequence of float

    Returns
    -------
    ndarray or None
        For ``flow`` runs ``lr`` per step; for plain gradient descent with rate eta on raw weights
        ``eta tau^2 / (q n)`` per step, ``tau^3 = 2 n q s``. None where there is none: momentum and Adam do
        not follow the flow, and for other trainers it is not known.
    """
    plan = training_plan(run)
    if plan is None or plan.optimizer not in {"flow", "sgd"}:
        return None
    if plan.optimizer == "flow":
        return plan.lr * np.asarray(steps, float)
    net = plan.initial()
    rates = learning_rates(plan) * net.tau**2 / (net.width * net.group.order)
    grid = np.concatenate([[0.0], np.cumsum(rates)])
    return np.interp(steps, np.arange(len(grid)), grid)


def advance(run: Run, subject: Subject, low: float, high: float) -> Subject:
    """The network at step ``high`` by training again from the network of step ``low``.

    Parameters
    ----------
    run : Run
        Of the flow or of plain gradient descent.
    subject : Subject
        At step ``low``.
    low, high : float
        For gradient descent whole numbers.

    Returns
    -------
    Subject

    Raises
    ------
    InputError
        If the run has another optimiser, whose state is not in the checkpoints.
    """
    plan = training_plan(run)
    if plan is None or plan.optimizer not in {"flow", "sgd"}:
        raise InputError(
            "--refine-time: expected a run of rhoscope train with --optimizer flow or sgd; the state of "
            "others is not in the checkpoints, save more often instead (--save-every)"
        )
    if plan.optimizer == "flow":
        (measure,) = gradient_flow(subject.objective, subject.measure, np.array([plan.lr * (high - low)]))
        network = subject.network.with_points(measure.points, centred=subject.centred)
    else:
        network = _descend(plan, subject.network, int(low), int(high))
    return replace(subject, network=network, step=None, sha256=f"{subject.sha256}+{high - low:.12g}")


def _descend(plan: TrainingPlan, network: GroupNetwork, low: int, high: int) -> GroupNetwork:
    weights = [w.clone() for w in (network.a, network.b, network.c) if w is not None]
    gradient, rates = RawGradient(plan.task(), network), learning_rates(plan)
    for step in range(low, high):
        _, slopes = gradient(weights)
        for w, slope in zip(weights, slopes, strict=True):
            w -= rates[step] * (slope + plan.weight_decay * w)
            if plan.centred:
                w -= w.mean(0)
    b = None if network.tied else weights[1]
    return GroupNetwork(network.group, weights[0], b, weights[-1], network.output_scale)
