"""A generator of nasty networks: one for every seed, of every kind that has once gone wrong somewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from analyses.subjects.subject import Subject
from analyses.verification.exact.problem import RawProblem
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks import constructions
from spectra.networks.activations import SQUARE, Polynomial, parse_activation
from spectra.networks.group_network import GroupNetwork

GROUPS = [(2,), (3,), (4,), (5,), (6,), (7,), (8,), (2, 2), (2, 3), (2, 4), (2, 2, 2)]
LOSSES = ("projected_mse", "mse", "cross_entropy")
POLYNOMIALS = [(0.0, 0.0, 0.0, 1.0), (0.5, -1.0, 0.0, 1.0), (0.0, 1.0, 0.25), (0.0, 1.0), (0.0, 0.0, 0.5)]
Weights = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Nasty:
    """A network of the hunt.

    Parameters
    ----------
    seed : int
    kind : str
        What is nasty about its weights.
    problem : RawProblem
        As the referee sees it.
    """

    seed: int
    kind: str
    problem: RawProblem

    @property
    def subject(self) -> Subject:
        """As the engine sees it."""
        p = self.problem
        network = GroupNetwork(
            FiniteAbelianGroup(p.orders), torch.tensor(p.a), None if p.b is None else torch.tensor(p.b),
            torch.tensor(p.c), p.scale, _activation(p.activation),
        )  # fmt: skip
        return Subject(network, p.loss, p.centred, p.decay, p.pairs)

    @property
    def line(self) -> str:
        """Everything about it in one line."""
        p = self.problem
        parts = [
            f"seed {self.seed}", self.kind, "x".join(map(str, p.orders)), f"q={p.q}", str(p.activation),
            p.loss,
        ]  # fmt: skip
        parts += [f"s={p.scale:g}"] if p.scale != 1 else []
        parts += ["tied"] if p.b is None else []
        parts += ["centred"] if p.centred else []
        parts += [f"decay={p.decay:g}"] if p.decay else []
        parts += [f"{len(p.pairs)} pairs"] if p.pairs is not None else []
        parts += [f"{p.kinks} kinks"] if p.kinks else []
        return ", ".join(parts)


def _activation(kind: str | tuple[float, ...]):
    return (
        SQUARE if kind == "square" else parse_activation(kind) if isinstance(kind, str) else Polynomial(kind)
    )


def nasty(seed: int, *, largest: int = 60) -> Nasty:
    """The nasty network of a seed.

    Parameters
    ----------
    seed : int
    largest : int
        Most neurons.

    Returns
    -------
    Nasty
    """
    rng = np.random.default_rng([seed, 14])
    orders = GROUPS[rng.integers(len(GROUPS))]
    n = int(np.prod(orders))
    q = min(largest, int(rng.choice([1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 10, 14, 20, 30, 45, 60], p=_WIDTHS)))
    kind = str(rng.choice(list(KINDS)))
    activation = _draw_activation(rng, kind)
    loss = str(rng.choice(LOSSES))
    scale = float(rng.choice([1.0, 1.0, 0.3, 1 / (2 * n), 10.0]))
    if kind in CONSTRUCTED:
        activation = "square"
        a, b, c, scale = _constructed(kind, orders, rng)
        tied = False
    else:
        tied = rng.random() < 0.2
        a, b, c = KINDS[kind](rng, n, q)
    if kind == "saturated":
        loss = "cross_entropy"
    centred = activation == "square" and rng.random() < 0.25
    decay = float(rng.choice([0.0, 0.0, 0.0, 1e-4, 1e-2, 1.0]))
    pairs = _draw_pairs(rng, n) if rng.random() < 0.25 else None
    kind += _round(rng, kind, weights := [a, b, c])
    a, b, c = weights
    return Nasty(
        seed, kind,
        RawProblem(orders, a, None if tied else b, c, scale, activation, loss, pairs, decay, centred),
    )  # fmt: skip


_WIDTHS = np.array([6, 6, 8, 8, 10, 10, 10, 10, 10, 8, 6, 3, 2, 1.2, 0.9, 0.9])
_WIDTHS = _WIDTHS / _WIDTHS.sum()


def _draw_activation(rng: np.random.Generator, kind: str) -> str | tuple[float, ...]:
    if kind in {"kinks", "near kinks"}:
        return str(rng.choice(["relu", "relu", "abs"]))
    names = ["square", "relu", "abs", "gelu", "tanh", "polynomial"]
    name = str(rng.choice(names, p=[0.5, 0.12, 0.08, 0.1, 0.1, 0.1]))
    return POLYNOMIALS[rng.integers(len(POLYNOMIALS))] if name == "polynomial" else name


def _draw_pairs(rng: np.random.Generator, n: int) -> np.ndarray:
    count = int(rng.integers(1, n * n + 1))
    chosen = np.sort(rng.choice(n * n, count, replace=False))
    return np.stack(np.divmod(chosen, n), axis=1)


def _round(rng: np.random.Generator, kind: str, weights: list[np.ndarray]) -> str:
    """Store some networks in 16 or 32 bits."""
    size = max(float(np.abs(w).max()) for w in weights)
    draw = rng.random()
    if draw > 0.3 or kind in CONSTRUCTED:
        return ""
    dtype = np.float16 if draw < 0.12 and size < 1e4 else np.float32
    for i, w in enumerate(weights):
        weights[i] = w.astype(dtype).astype(np.float64)
    return f", {np.dtype(dtype).name}"


# -- kinds of weights ---------------------------------------------------------------------------------------


def _plain(rng: np.random.Generator, n: int, q: int) -> Weights:
    return tuple(rng.normal(size=(n, q)) for _ in range(3))


def _any_scale(rng: np.random.Generator, n: int, q: int) -> Weights:
    size = 10.0 ** rng.uniform(-3, 2)
    return tuple(size * w for w in _plain(rng, n, q))


def _copied(rng: np.random.Generator, n: int, q: int) -> Weights:
    from_ = rng.integers(0, max(1, q // 2), q)
    return tuple(w[:, from_].copy() for w in _plain(rng, n, q))


def _nearly_copied(rng: np.random.Generator, n: int, q: int) -> Weights:
    from_, gap = rng.integers(0, max(1, q // 2), q), 10.0 ** rng.uniform(-14, -4)
    return tuple(w[:, from_] + gap * rng.normal(size=(n, q)) for w in _plain(rng, n, q))


def _some_zero(rng: np.random.Generator, n: int, q: int) -> Weights:
    keep = rng.random(q) < 0.5
    return tuple(w * keep for w in _plain(rng, n, q))


def _tensor_zero(rng: np.random.Generator, n: int, q: int) -> Weights:
    dead = rng.random((3, q)) < 0.4
    return tuple(w * ~row for w, row in zip(_plain(rng, n, q), dead, strict=True))


def _all_zero(rng: np.random.Generator, n: int, q: int) -> Weights:
    return tuple(np.zeros((n, q)) for _ in range(3))


def _mixed_sizes(rng: np.random.Generator, n: int, q: int) -> Weights:
    size = 10.0 ** -rng.choice([0, 0, 2, 4, 6, 8], q)
    return tuple(size * w for w in _plain(rng, n, q))


def _two_sizes(rng: np.random.Generator, n: int, q: int) -> Weights:
    size = np.where(np.arange(q) < (q + 1) // 2, 1.0, 10.0 ** -rng.uniform(3, 9))
    return tuple(size * w for w in _plain(rng, n, q))


def _rescaled(rng: np.random.Generator, n: int, q: int) -> Weights:
    a, b, c = _plain(rng, n, q)
    factor = 10.0 ** rng.uniform(-3, 3, q)
    return a * factor, b * factor, c / factor**2


def _all_rescaled(rng: np.random.Generator, n: int, q: int) -> Weights:
    a, b, c = _plain(rng, n, q)
    factor = 10.0 ** rng.uniform(-3, 3)
    return a * factor, b * factor, c / factor**2


def _cancelled_means(rng: np.random.Generator, n: int, q: int) -> Weights:
    a, b, c = _plain(rng, n, q)
    size = 10.0 ** rng.uniform(2, 6)
    if rng.random() < 0.5:
        return a, b, c + size
    return a + size, b - size, c


def _means(rng: np.random.Generator, n: int, q: int) -> Weights:
    size = 10.0 ** rng.uniform(1, 3)
    return tuple(w + size * rng.normal(size=(1, q)) for w in _plain(rng, n, q))


def _integers(rng: np.random.Generator, n: int, q: int) -> Weights:
    return tuple(rng.integers(-2, 3, (n, q)).astype(np.float64) for _ in range(3))


def _kinks(rng: np.random.Generator, n: int, q: int) -> Weights:
    a, b, c = _plain(rng, n, q)
    hit = rng.random((n, q)) < 0.3
    return a, np.where(hit, -a[rng.permutation(n)], b), c


def _near_kinks(rng: np.random.Generator, n: int, q: int) -> Weights:
    a, b, c = _plain(rng, n, q)
    hit = rng.random((n, q)) < 0.3
    gap = 10.0 ** rng.uniform(-17, -8, (n, q)) * rng.choice([-1, 1], (n, q))
    return a, np.where(hit, -a + gap, b), c


def _saturated(rng: np.random.Generator, n: int, q: int) -> Weights:
    a, b, c = _plain(rng, n, q)
    return a, b, c * 10.0 ** rng.uniform(1.5, 3)


def _waves(rng: np.random.Generator, n: int, q: int) -> Weights:
    x = np.arange(n)[:, None]
    k = rng.integers(0, n // 2 + 1, q)
    phase = rng.uniform(0, 2 * np.pi, (3, q))
    return tuple(np.cos(2 * np.pi * k * x / n + row) for row in phase)


def _low_rank(rng: np.random.Generator, n: int, q: int) -> Weights:
    return tuple(rng.normal(size=(n, 1)) @ rng.normal(size=(1, q)) for _ in range(3))


def _equal_first(rng: np.random.Generator, n: int, q: int) -> Weights:
    a, _, c = _plain(rng, n, q)
    return a, a.copy(), c


def _small_start(rng: np.random.Generator, n: int, q: int) -> Weights:
    size = 10.0 ** rng.uniform(-4, -1)
    return tuple(size * w for w in _plain(rng, n, q))


CONSTRUCTED = ("solution", "moved solution", "memorised")


def _constructed(kind: str, orders: tuple[int, ...], rng: np.random.Generator) -> tuple:
    group = FiniteAbelianGroup(orders)
    if kind == "memorised" and group.order <= 5:
        net = constructions.memorise(group)
    else:
        net = constructions.f6(group, nu=np.exp(1j * rng.uniform(0, 6)))
    weights = [w.numpy() for w in (net.a, net.b, net.c)]
    if kind == "moved solution":
        size = 10.0 ** rng.uniform(-12, -5)
        weights = [w + size * rng.normal(size=w.shape) for w in weights]
    return *weights, net.output_scale


KINDS: dict[str, Callable[[np.random.Generator, int, int], Weights]] = {
    "plain": _plain,
    "any scale": _any_scale,
    "copied": _copied,
    "nearly copied": _nearly_copied,
    "zero neurons": _some_zero,
    "zero tensors": _tensor_zero,
    "zero": _all_zero,
    "mixed sizes": _mixed_sizes,
    "two sizes": _two_sizes,
    "rescaled": _rescaled,
    "all rescaled": _all_rescaled,
    "cancelled means": _cancelled_means,
    "means": _means,
    "integers": _integers,
    "kinks": _kinks,
    "near kinks": _near_kinks,
    "saturated": _saturated,
    "waves": _waves,
    "low rank": _low_rank,
    "equal first": _equal_first,
    "small start": _small_start,
    **dict.fromkeys(CONSTRUCTED, _plain),
}
