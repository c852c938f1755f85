"""The runs that the claims are measured on, each made once and shared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from manifold.groups import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.flow import gradient_flow
from spectra.functionals import Functional
from spectra.group_task import GroupTask
from spectra.networks import GroupNetwork
from spectra.plan import SpectrumResult, compute_spectrum, plan_spectrum


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
    def learning(self) -> FlowRun:
        """Z5 from N(0, 0.6^2) through the transition to the solution."""
        times = np.concatenate([[0.0], np.geomspace(0.5, 60.0, 24 if self.quick else 60)])
        return flow_run("Z5", 96 if self.quick else 512, times, seed=self.seed)

    @cached_property
    def spectra(self) -> tuple[SpectrumResult, ...]:
        """Second variation on T_R along `learning`, every second time when quick."""
        run = self.learning
        return tuple(spectrum(run.task, measure) for measure in run.measures[:: 2 if self.quick else 1])
