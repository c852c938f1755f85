"""The group network's own sample complexity: accuracy on unseen pairs against the fraction seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.common.study_files import Progress, silent
from analyses.studies.complexity import statistics as st
from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup

CURVES = ("free weights", "free weights, mirrored pairs", "tied weights")
FRACTIONS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LEVELS = (0.5, 0.9)


@dataclass(frozen=True)
class NetworkCurveOptions:
    """How the networks are trained: many at once, full batch, Adam with L2 decay.

    Attributes
    ----------
    group : FiniteAbelianGroup
    width : int
        q neurons.
    steps : int
    seeds : int
        Networks per fraction, each with its own pairs and initial weights.
    learning_rate, weight_decay, init_scale : float
        Of the raw weights, ``o = sum_j c_j (a_j[x] + b_j[y])^2``, loss ``mean |P (o/(2n) - e)|^2`` over the
        training pairs.
    """

    group: FiniteAbelianGroup
    width: int = 48
    steps: int = 1500
    seeds: int = 12
    learning_rate: float = 0.02
    weight_decay: float = 2e-4
    init_scale: float = 0.3


def training_masks(order: int, fractions: np.ndarray, *, mirrored: bool, rng: np.random.Generator) -> Tensor:
    """Which pairs each network sees, bool (networks, n, n), by network; mirrored adds (y, x) to (x, y).

    Parameters
    ----------
    order : int
        n.
    fractions : ndarray, shape (networks,)
        Share of the n^2 pairs drawn (before mirroring).
    mirrored : bool
    rng : numpy.random.Generator

    Returns
    -------
    Tensor of bool, shape (networks, n, n)
    """
    ranks = rng.random((len(fractions), order * order)).argsort(axis=1).argsort(axis=1)
    masks = torch.from_numpy(ranks < np.rint(fractions * order**2)[:, None]).reshape(-1, order, order)
    return masks | masks.transpose(1, 2) if mirrored else masks


def train_batch(
    options: NetworkCurveOptions,
    masks: Tensor,
    *,
    tied: bool,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> Tensor:
    """Train one network per mask; returns which pairs each predicts correctly, bool (networks, n, n).

    Parameters
    ----------
    options : NetworkCurveOptions
    masks : Tensor of bool, shape (networks, n, n)
    tied : bool
        b = a.
    seed : int
    device : str
        Initial weights are drawn on the CPU, so that they are the same everywhere.
    progress : Progress

    Returns
    -------
    Tensor
    """
    n, count = options.group.order, len(masks)
    generator = torch.Generator().manual_seed(seed)
    shape = (count, n, options.width)
    weights = [
        (options.init_scale * torch.randn(shape, generator=generator)).to(device).requires_grad_()
        for _ in range(2 if tied else 3)
    ]
    masks = masks.to(device)
    sums = torch.from_numpy(options.group.sums).to(device)
    target = torch.nn.functional.one_hot(sums, n).float() - 1 / n
    share = masks.float() / masks.sum(dim=(1, 2), keepdim=True)
    optimizer = torch.optim.Adam(weights, lr=options.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, options.steps, options.learning_rate / 100
    )

    def outputs() -> Tensor:
        hidden = (weights[0][:, :, None] + weights[0 if tied else 1][:, None]).square()
        return torch.einsum("bxyq,bkq->bxyk", hidden, weights[-1])

    for step in range(options.steps):
        o = outputs() / (2 * n)
        residual = o - o.mean(dim=-1, keepdim=True) - target
        # Networks do not interact: the sum over them gives each its own gradient.
        loss = (share[..., None] * residual.square()).sum()
        decay = sum(w.square().sum() for w in weights) * options.weight_decay / 2
        optimizer.zero_grad()
        (loss + decay).backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress(step, options.steps, "networks")
    with torch.no_grad():
        return (outputs().argmax(dim=-1) == sums).cpu()


def network_curve(
    group: str,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
    fractions: tuple[float, ...] = FRACTIONS,
    **options: Any,
) -> dict[str, Any]:
    """Accuracy on unseen pairs against the fraction seen, without and with the swap symmetry.

    The swap (x, y) -> (y, x) is the symmetry that data or weights can carry here: mirrored pairs put
    it in the data, tied weights in the network. Its group has two elements.

    Parameters
    ----------
    group : str
        Such as ``Z11``.
    seed : int
    device : str
    progress : Progress
    fractions : tuple of float
        Shares of the n^2 pairs drawn for training, in (0, 1).
    **options
        Fields of `NetworkCurveOptions`.

    Returns
    -------
    dict
        ``curves`` with accuracy and 95 % interval per fraction; ``gain``: ratio of the fractions that
        reach an accuracy, free over symmetric, with interval over seeds.

    Raises
    ------
    InputError
        If a fraction is not in (0, 1).
    """
    if not fractions or not all(0 < f < 1 for f in fractions):
        raise InputError(f"fractions: expected numbers in (0, 1), got {fractions}")
    settings = NetworkCurveOptions(FiniteAbelianGroup.parse(group), **options)
    every = np.repeat(fractions, settings.seeds)
    tables, curves = {}, []
    for number, name in enumerate(CURVES):
        # The same pairs for all curves: differences are those of the symmetry.
        masks = training_masks(
            settings.group.order, every, mirrored="mirrored" in name, rng=np.random.default_rng(seed)
        )
        drawn = training_masks(settings.group.order, every, mirrored=False, rng=np.random.default_rng(seed))

        def report(done: float, total: float, text: str, number: int = number, name: str = name) -> None:
            progress(number * total + done, len(CURVES) * total, f"{text}: {name}")

        correct = train_batch(
            settings, masks, tied="tied" in name, seed=seed + 1, device=device, progress=report
        )
        unseen = ~drawn
        accuracy = (correct & unseen).sum(dim=(1, 2)) / unseen.sum(dim=(1, 2))
        tables[name] = accuracy.numpy().reshape(len(fractions), settings.seeds)
        curves.append({"name": name, "points": _points(fractions, tables[name], seed)})
    return {
        "group": settings.group.name,
        "seeds": settings.seeds,
        "width": settings.width,
        "steps": settings.steps,
        "curves": curves,
        "gain": _gains(np.array(fractions), tables, seed),
    }


def _points(fractions: tuple[float, ...], table: np.ndarray, seed: int) -> list[dict[str, float]]:
    estimates = st.bootstrap(lambda t: table[:, t].mean(axis=1), table.shape[1], seed=seed)
    return [
        {"fraction": f, "accuracy": e.value, "low": e.low, "high": e.high}
        for f, e in zip(fractions, estimates, strict=True)
    ]


def _gains(fractions: np.ndarray, tables: dict[str, np.ndarray], seed: int) -> list[dict[str, Any]]:
    """Fraction needed without symmetry over fraction needed with it, at fixed accuracies."""

    def ratios(t: np.ndarray) -> np.ndarray:
        free, *others = (fraction_at(fractions, table[:, t].mean(axis=1)) for table in tables.values())
        return np.concatenate([free / other for other in others])

    flat = st.bootstrap(ratios, next(iter(tables.values())).shape[1], seed=seed)
    keys = [(name, level) for name in CURVES[1:] for level in LEVELS]
    return [
        {"symmetry": name, "accuracy": level, "ratio": e.value, "ci": e.ci}
        for (name, level), e in zip(keys, flat, strict=True)
    ]


def fraction_at(fractions: np.ndarray, accuracies: np.ndarray) -> np.ndarray:
    """Fractions at which a monotone piecewise linear accuracy reaches `LEVELS`; NaN if it never does."""
    rising = np.maximum.accumulate(accuracies)
    reached = [
        np.interp(level, rising, fractions) if rising[0] < level <= rising[-1] else np.nan for level in LEVELS
    ]
    return np.array(reached)
