"""The reference trainer: full-batch training of group networks through the structured loss, as a run."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.common.study_files import Progress, atomic_path, provenance, silent
from analyses.layouts.layout import Layout
from analyses.runs.pair_files import training_pairs
from analyses.runs.run import Run
from manifold.errors import CheckpointError, InputError, NotConvergedError, TooLargeError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.flow.gradient_flow import gradient_flow
from spectra.machine import machine_memory
from spectra.networks.group_network import GroupNetwork
from spectra.tasks.group_task import LOSSES, GroupTask
from spectra.tasks.relabelled_task import labelled_task

OPTIMIZERS = ("sgd", "adam", "adamw", "flow")
SCHEDULES = ("constant", "cosine")
WEIGHT_COPIES = 6  # weights, gradients, two moments of Adam, points and their gradient
MOST_CHECKPOINTS = 100_000  # files in one folder


@dataclass(frozen=True)
class TrainingPlan:
    """What to train and how; every field ends up in ``run.json``.

    Parameters
    ----------
    group : str
        Such as ``Z23``.
    width : int
        Number q of neurons.
    loss : str
        ``projected_mse``, ``mse`` (sum over the n outputs) or ``cross_entropy``; means over pairs.
    optimizer : str
        ``sgd``, ``adam`` (L2 decay), ``adamw`` (decoupled decay, not a gradient flow) or ``flow`` (the
        Wasserstein gradient flow itself, integrated adaptively).
    lr : float, optional
        Learning rate on the raw weights; for ``flow`` the flow time of one step. Default 0.01 for Adam
        and AdamW, the rate whose flow time is 0.02 for SGD, 0.05 for flow.
    schedule : str, optional
        ``constant`` or ``cosine`` (down to 1 % of lr); default cosine for Adam and AdamW.
    weight_decay : float
        wd of ``(wd/2) |theta|^2`` on raw weights.
    steps : int
        Number of full-batch steps.
    init_scale : float, optional
        Standard deviation of the raw weights at step 0; default 0.1, or 0.6 for SGD and flow.
    output_scale : float, optional
        The factor s in ``o = s sum_j c_j (a_j[x] + b_j[y])^2``; default 1, or 1/(2 n q) for SGD and flow
        (then raw weights are the canonical ones).
    train_fraction : float
        Share of the n^2 pairs trained on.
    tied : bool
        b = a.
    centred : bool
        Keep the means of a, b and c at zero by projecting every step.
    seed : int
        Of the initial weights and of the split.
    labels : int, optional
        Seed that deals the labels x + y out anew to all pairs: a null control. Default: true labels.
    """

    group: str
    width: int = 256
    loss: str = "projected_mse"
    optimizer: str = "adam"
    lr: float | None = None
    schedule: str | None = None
    weight_decay: float = 0.0
    steps: int = 2000
    init_scale: float | None = None
    output_scale: float | None = None
    train_fraction: float = 1.0
    tied: bool = False
    centred: bool = True
    seed: int = 0
    labels: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("loss", LOSSES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.width < 1 or self.steps < 1:
            raise InputError(f"width and steps: expected at least 1, got {self.width} and {self.steps}")
        if not 0 < self.train_fraction <= 1:
            raise InputError(f"train_fraction: expected a share in (0, 1], got {self.train_fraction}")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay: expected a non-negative number, got {self.weight_decay}")
        self._fill_defaults(FiniteAbelianGroup.parse(self.group).order)
        for name in ("lr", "init_scale", "output_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")

    def _fill_defaults(self, n: int) -> None:
        adaptive = self.optimizer in {"adam", "adamw"}
        scale = self.output_scale or (1.0 if adaptive else 1 / (2 * n * self.width))
        tau = (2 * n * self.width * scale) ** (1 / 3)
        rates = {"adam": 0.01, "adamw": 0.01, "sgd": 0.02 * self.width * n / tau**2, "flow": 0.05}
        defaults = {
            "output_scale": scale,
            "init_scale": 0.1 if adaptive else 0.6,
            "lr": rates[self.optimizer],
            "schedule": "cosine" if adaptive else "constant",
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        object.__setattr__(self, "group", FiniteAbelianGroup.parse(self.group).name)

    def check_memory(self) -> None:
        """Refuse sizes that cannot fit, before anything of that size is made.

        Raises
        ------
        TooLargeError
            If the least that training needs is more than this machine has.
        """
        n, q = FiniteAbelianGroup.parse(self.group).order, self.width
        least = 8 * (3 * WEIGHT_COPIES * n * q + n * n)
        there = machine_memory()
        if least > there:
            raise TooLargeError(
                f"{self.group} with width {q:,} needs at least {least / 2**30:,.1f} GiB, this machine has "
                f"{there / 2**30:,.1f} GiB; take a smaller group or width"
            )

    @property
    def held_out(self) -> np.ndarray:
        """Numbers ``x n + y`` of the pairs left out of training, ascending."""
        count = FiniteAbelianGroup.parse(self.group).order ** 2
        keep = max(1, round(self.train_fraction * count))
        return np.sort(np.random.default_rng(self.seed).permutation(count)[keep:])

    @property
    def layout(self) -> Layout:
        """How to read the checkpoints."""
        tied = None if self.tied else "w_b"
        return Layout(self.group, "w_a", "w_c", tied, loss=self.loss, output_scale=self.output_scale)

    def task(self, device: str = "cpu") -> GroupTask:
        """The loss that is trained, on the training pairs."""
        group = FiniteAbelianGroup.parse(self.group)
        pairs = training_pairs(group, self.held_out) if len(self.held_out) else None
        return labelled_task(
            group, self.labels, loss=self.loss, centred=self.centred, tied=self.tied, pairs=pairs,
            device=device,
        )  # fmt: skip

    def initial(self) -> GroupNetwork:
        """The network at step 0."""
        group = FiniteAbelianGroup.parse(self.group)
        rng = torch.Generator().manual_seed(self.seed)
        shape = (2 if self.tied else 3, group.order, self.width)
        weights = self.init_scale * torch.randn(*shape, generator=rng, dtype=torch.float64)
        if self.centred:
            weights -= weights.mean(1, keepdim=True)
        a, c = weights[0], weights[-1]
        return GroupNetwork(group, a, None if self.tied else weights[1], c, self.output_scale)

    def config(self) -> dict[str, Any]:
        """Content of ``run.json``."""
        return {
            **dataclasses.asdict(self),
            "layout": self.layout.to_dict(),
            "held_out": self.held_out.tolist(),
            "versions": provenance(seed=self.seed),
        }


class RawGradient:
    """Loss and gradient of a group task in the raw weights (n, q), through the structured loss."""

    def __init__(self, task: GroupTask, network: GroupNetwork, device: str = "cpu"):
        self.task = task
        self.factor = network.tau / network.group.order**0.5
        self.basis = task.basis[:, int(task.centred) :].to(device)

    def __call__(self, weights: list[Tensor]) -> tuple[Callable[[], float], list[Tensor]]:
        """The loss (evaluated on demand) and its gradient, one tensor per weight."""
        points = torch.cat([self.factor * w.T @ self.basis for w in weights], dim=1)
        at = self.task.linearise(ParticleMeasure(points))
        # dH/dz_j = w_j grad V(z_j), and z is linear in the raw weights.
        blocks = (at.gradient * (self.factor / len(points))).chunk(len(weights), dim=1)
        return (lambda: at.value), [self.basis @ block.T for block in blocks]


def save_steps(steps: int, save_every: int | None, count: int = 40) -> set[int]:
    """Steps to save: 0, the last, and every ``save_every`` or about ``count`` log-spaced ones.

    Raises
    ------
    InputError
        If ``save_every`` is not positive, or makes too many files.
    """
    if save_every is not None:
        if save_every < 1:
            raise InputError(f"save_every: expected at least 1, got {save_every}")
        if steps // save_every > MOST_CHECKPOINTS:
            raise InputError(
                f"save_every: {steps // save_every:,} checkpoints would be written, the limit is "
                f"{MOST_CHECKPOINTS:,}; save every {steps // MOST_CHECKPOINTS + 1:,} steps or fewer"
            )
        return {0, steps, *range(0, steps, save_every)}
    return {0, steps, *np.unique(np.geomspace(1, steps, count).round().astype(int)).tolist()}


def train(
    plan: TrainingPlan, path: str | Path, *, save_every: int | None = None, force: bool = False,
    resume: bool = False, device: str = "cpu", progress: Progress = silent,
) -> Run:  # fmt: skip
    """Train a network and write its run directory; every file is written atomically.

    Parameters
    ----------
    plan : TrainingPlan
        What to train.
    path : str or Path
        The run directory.
    save_every : int, optional
        Steps between checkpoints; default: log-spaced.
    force : bool
        Replace an existing run.
    resume : bool
        Go on from the last saved state of an interrupted run with the same plan. Gradient steps go on as
        if nothing had happened; the integrator of ``flow`` starts its step control anew, so it goes on
        within its tolerance.
    device : str
        torch device.
    progress : Progress
        Told the step after each step.

    Returns
    -------
    Run

    Raises
    ------
    CheckpointError
        If the saved state of an interrupted run is damaged.
    NotConvergedError
        If training diverges; the run holds the checkpoints before.
    TooLargeError
        If it cannot fit.
    """
    wanted = save_steps(plan.steps, save_every)
    plan.check_memory()
    new = not Path(path).exists()
    run = Run.create(path, plan.config() | {"save_every": save_every}, force=force, resume=resume)
    if resume and wanted <= set(run.files):  # stopped after its last checkpoint
        (run.path / "resume.pt").unlink(missing_ok=True)
        return run
    try:
        _train_and_save(plan, run, wanted, device=device, resume=resume, progress=progress)
    finally:
        if not run.files:  # it failed before anything was learned: leave nothing that looks like a run
            _remove_empty(run.path, whole=new)
    (run.path / "resume.pt").unlink(missing_ok=True)
    return run


def _remove_empty(folder: Path, *, whole: bool) -> None:
    for file in ("run.json", "resume.pt"):
        (folder / file).unlink(missing_ok=True)
    for empty in (folder / "checkpoints", *([folder] if whole else [])):
        with contextlib.suppress(OSError):  # not there, or not empty: then it is not ours
            empty.rmdir()


def _train_and_save(
    plan: TrainingPlan, run: Run, wanted: set[int], *, device: str, resume: bool, progress: Progress
) -> None:
    """The steps of a plan, with a checkpoint and the state to go on from at each wanted one."""
    loop = _flow_steps if plan.optimizer == "flow" else _optimizer_steps
    state = _load_state(run) if resume else None
    for step, loss, weights, keep in loop(plan, state, device):
        if step in wanted and step not in run.files:
            run.save(step, dict(zip(_keys(plan), (w.cpu() for w in weights), strict=True)))
        if step in wanted:
            _save_state(run, {"step": step, **keep()})
        if step % 10 == 0 or step == plan.steps:
            progress(step, plan.steps, f"training, loss {loss():.2e}")


def _keys(plan: TrainingPlan) -> tuple[str, ...]:
    return ("w_a", "w_c") if plan.tied else ("w_a", "w_b", "w_c")


def _save_state(run: Run, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_path(run.path / "resume.pt", force=True) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _load_state(run: Run) -> dict[str, Any] | None:
    file = run.path / "resume.pt"
    if not file.exists():
        return None
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds
        raise CheckpointError(
            f"{file}: cannot be read ({type(error).__name__}); remove it to train again from step 0"
        ) from error


def _start(plan: TrainingPlan, state: dict[str, Any] | None, device: str) -> tuple[int, list[Tensor]]:
    net = plan.initial()
    initial = [net.a, net.c] if plan.tied else [net.a, net.b, net.c]
    weights = initial if state is None else state["weights"]
    return (0 if state is None else state["step"]), [w.to(device) for w in weights]


def _optimizer_steps(plan: TrainingPlan, state: dict[str, Any] | None, device: str):
    first, weights = _start(plan, state, device)
    gradient = RawGradient(plan.task(device), plan.initial(), device)
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[plan.optimizer]
    optimizer = make(weights, lr=plan.lr, weight_decay=plan.weight_decay)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])

    def keep() -> dict[str, Any]:
        return {"weights": [w.cpu() for w in weights], "optimizer": optimizer.state_dict()}

    for step in range(first, plan.steps + 1):
        _check_finite(plan, step, weights)
        loss, slopes = gradient(weights)
        yield step, loss, weights, keep
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * _rate(plan, step)
        for w, slope in zip(weights, slopes, strict=True):
            w.grad = slope
        optimizer.step()
        if plan.centred:
            for w in weights:
                w -= w.mean(0)


def _check_finite(plan: TrainingPlan, step: int, weights: list[Tensor]) -> None:
    """Stop where training has diverged.

    Raises
    ------
    NotConvergedError
        If a weight is not finite.
    """
    if not all(torch.isfinite(w).all() for w in weights):
        raise NotConvergedError(
            f"training diverged: the weights of step {step} are not finite; lower lr (it was {plan.lr:g}). "
            "The checkpoints before are whole"
        )


def _rate(plan: TrainingPlan, step: int) -> float:
    if plan.schedule == "constant":
        return 1.0
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / plan.steps))


def learning_rates(plan: TrainingPlan) -> np.ndarray:
    """Learning rate of each step of a plan, schedule included, shape (steps,)."""
    return plan.lr * np.array([_rate(plan, step) for step in range(plan.steps)])


def _flow_steps(plan: TrainingPlan, state: dict[str, Any] | None, device: str):
    from spectra.functionals.base import Decayed

    first, weights = _start(plan, state, device)
    net = plan.initial()
    net = GroupNetwork(
        net.group, weights[0], None if plan.tied else weights[1], weights[-1], net.output_scale
    )
    task = plan.task(device)
    objective = Decayed(task, net.decay_strength(plan.weight_decay)) if plan.weight_decay else task
    times = plan.lr * np.arange(plan.steps - first + 1)
    flow = gradient_flow(objective, net.measure(centred=plan.centred), times)
    for step, measure in zip(range(first, plan.steps + 1), flow, strict=True):
        now = net.with_points(measure.points, centred=plan.centred)
        kept = [now.a, now.c] if plan.tied else [now.a, now.b, now.c]
        _check_finite(plan, step, kept)
        yield step, (lambda m=measure: task.value(m)), kept, (lambda k=kept: {"weights": k})
