"""The runs that the claims are measured on, each made once and shared."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analyses.studies.crossings.document import document_of_study
from analyses.studies.crossings.records import SpectralQuestion
from analyses.studies.crossings.study import CrossingStudy, StudyPlan, follow_crossings
from analyses.training.trainer import TrainingPlan, train
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.flow.gradient_flow import gradient_flow
from spectra.functionals.base import Functional
from spectra.methods.compute import SpectrumResult, compute_spectrum
from spectra.methods.plan import plan_spectrum
from spectra.networks.group_network import GroupNetwork
from spectra.tasks.group_task import GroupTask


@dataclass(frozen=True, eq=False)
class FlowRun:
    """A trajectory of the Wasserstein gradient flow of a centred group task (projected MSE).

    Parameters
    ----------
    task : GroupTask
    times : ndarray, shape (t,)
        Flow times.
    measures : tuple of ParticleMeasure
        One per time, equal weights.
    seed : int
    init_scale : float
        Standard deviation of the canonical weights at time 0.
    """

    task: GroupTask
    times: np.ndarray
    measures: tuple[ParticleMeasure, ...]
    seed: int
    init_scale: float

    @property
    def facts(self) -> dict[str, object]:
        """Size and seed, for the evidence."""
        return {
            "group": self.task.group.name,
            "neurons": len(self.measures[0]),
            "init_scale": self.init_scale,
            "seed": self.seed,
            "flow_time": float(self.times[-1]),
        }

    @cached_property
    def losses(self) -> np.ndarray:
        """H at every time."""
        return np.array([self.task.value(measure) for measure in self.measures])


def random_network(
    name: str, width: int, rng: np.random.Generator, *, scale: float = 1.0, centred: bool = False
) -> GroupNetwork:
    """A network with Gaussian canonical weights of standard deviation ``scale``.

    Parameters
    ----------
    name : str
        Of the group.
    width : int
        Number q of neurons.
    rng : Generator
    scale : float
    centred : bool
        Take the means of a, b and c off.

    Returns
    -------
    GroupNetwork
    """
    group = FiniteAbelianGroup.parse(name)
    a, b, c = torch.as_tensor(scale * rng.normal(size=(3, group.order, width)))
    if centred:
        a, b, c = (w - w.mean(0) for w in (a, b, c))
    return GroupNetwork(group, a, b, c, 1 / (2 * group.order * width))


def flow_run(name: str, width: int, times: np.ndarray, *, init_scale: float = 0.6, seed: int = 0) -> FlowRun:
    """Follow the flow from a Gaussian start.

    Parameters
    ----------
    name : str
        Of the group.
    width : int
    times : ndarray
        Ascending flow times.
    init_scale : float
    seed : int

    Returns
    -------
    FlowRun
    """
    start = random_network(name, width, np.random.default_rng(seed), scale=init_scale, centred=True)
    task = GroupTask(start.group, centred=True)
    measures = tuple(gradient_flow(task, start.measure(centred=True), times, rtol=1e-5, atol=1e-7))
    return FlowRun(task, times, measures, seed, init_scale)


def spectrum(functional: Functional, measure: ParticleMeasure, **question: object) -> SpectrumResult:
    """The complete spectrum of the second variation (default: Wasserstein, on T_R)."""
    plan = plan_spectrum(functional, measure, count=None, **question)
    return compute_spectrum(plan, functional, measure)


@dataclass(frozen=True, eq=False)
class Laboratory:
    """Shared runs.

    Parameters
    ----------
    quick : bool
        Small sizes: minutes for the whole ledger.
    seed : int
        First of the seeds.
    """

    quick: bool = True
    seed: int = 0

    @cached_property
    def _followed(self) -> tuple[FlowRun, CrossingStudy]:
        """A run of the flow written to disk, and the crossing study of it, as the commands make them."""
        plan = TrainingPlan(
            "Z5", width=96 if self.quick else 512, optimizer="flow", lr=0.5, steps=120, seed=self.seed
        )
        with tempfile.TemporaryDirectory() as folder:
            run = train(plan, Path(folder) / "run")
            layout = run.layout
            modes = 0 if self.quick else 20
            study = follow_crossings(
                run, layout, SpectralQuestion(seed=self.seed), StudyPlan(check_modes=modes)
            )
            networks = [layout.network(run.read(step)) for step in run.steps]
        measures = tuple(network.measure(centred=True) for network in networks)
        return FlowRun(plan.task(), study.times, measures, self.seed, plan.init_scale), study

    @property
    def learning(self) -> FlowRun:
        """Z5 from N(0, 0.6^2) through the transition to the solution."""
        return self._followed[0]

    @property
    def study(self) -> CrossingStudy:
        """The spectrum of the second variation on T_R along `learning`: branches and crossings."""
        return self._followed[1]

    @cached_property
    def study_document(self) -> dict[str, Any]:
        """What `study` found, as ``rhoscope crossings --json`` tells it."""
        return document_of_study(self.study)
