"""Guess the layout of someone's network from the shapes and names of its tensors, and try it on all pairs."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analyses.activations import ACTIVATIONS, activate
from analyses.layouts import Layout, Weights
from manifold.errors import LayoutError
from manifold.groups import FiniteAbelianGroup

if TYPE_CHECKING:
    from torch import Tensor

    from analyses.checkpoints import Checkpoint

MAX_MATRICES = 12
MAX_CANDIDATES = 200
SAMPLE_PAIRS = 512
SPARE_TOKENS = 3  # a vocabulary may hold this many more tokens than the group has elements
VERIFIED = 0.99
NEAR_ONE_HOT = 0.1  # squared distance to one-hot targets, as a share of the constant predictor's

_OUT = re.compile(
    r"(?:w_?c|c|out\w*|unembed\w*|lm_head|head|dec\w*|readout|w_?u|(?:fc|l|w|lin\w*|layer)_?2)\b", re.I
)
_FIRST = re.compile(r"(?:w_?a|a|left|lhs|emb\w*_?[ax1]|[xu])\b", re.I)
_SECOND = re.compile(r"(?:w_?b|b|right|rhs|emb\w*_?[by2]|[yv])\b", re.I)
_EMBEDDING = re.compile(r"emb|wte|tok", re.I)


@dataclass(frozen=True)
class Guess:
    """A guessed layout with its evidence.

    Parameters
    ----------
    layout : Layout
    confidence : str
        ``verified`` (at least 99 % of all pairs right), ``likely`` (far above chance, or the names of
        our own layout), ``weak`` (shapes fit, nothing else speaks for it).
    accuracy : float
        Share of all n^2 pairs whose largest output is at x + y.
    reason : str
        Why, in one sentence.
    """

    layout: Layout
    confidence: str
    accuracy: float
    reason: str


@dataclass(frozen=True)
class _Candidate:
    structure: str
    first: str
    second: str | None
    out: str
    bias: tuple[str, ...]
    output_bias: str | None
    order: int
    prior: float


def guess_layout(
    checkpoint: Checkpoint, group: str | None = None, *, activation: str | None = None
) -> Guess | None:
    """Guess where the weights of a group network are, and check the guess by its accuracy.

    Tried: separate, tied and concatenated first layers; an embedding (one or two) followed by a linear
    map of the sum or the concatenation; tokens beyond the group; biases; both storage orders; every
    Abelian group of the order that the shapes allow; the activations of `analyses.layouts`.

    Parameters
    ----------
    checkpoint : Checkpoint
    group : str, optional
        Narrows the guess.
    activation : str, optional
        Narrows the guess.

    Returns
    -------
    Guess or None
        None when no combination of tensors has fitting shapes.
    """
    order = FiniteAbelianGroup.parse(group).order if group is not None else None
    found = sorted(_candidates(checkpoint, order), key=lambda candidate: -candidate.prior)[:MAX_CANDIDATES]
    tried: list[tuple[float, float, Layout, _Candidate]] = []
    for candidate in found:
        for layout in _layouts(candidate, group, activation):
            score = _score(layout, checkpoint, SAMPLE_PAIRS)
            if score is not None:
                tried.append((*score, layout, candidate))
    if not tried:
        return None
    layout, candidate, rivals = _best(tried)
    layout, accuracy, how = _settle(layout, checkpoint)
    if rivals:
        how += f"; {' and '.join(rivals)} would fit as well (--activation decides)"
    return _judged(layout, accuracy, candidate, how, checkpoint)


def _best(
    tried: list[tuple[float, float, Layout, _Candidate]],
) -> tuple[Layout, _Candidate, list[str]]:
    """The layout to believe, and other activations that the numbers do not rule out.

    Accuracy decides where it is far above chance, then the loss (a factor of three says nothing: the
    simpler activation wins); names decide where accuracy says nothing.
    """
    informative = [item for item in tried if item[0] > max(0.2, 5 / item[3].order)]
    if not informative:
        return tried[0][2], tried[0][3], []
    accuracy = max(item[0] for item in informative)
    near = [item for item in informative if item[0] >= accuracy - 0.005]
    loss = min(item[1] for item in near)
    near = [item for item in near if item[1] <= 3 * loss]
    near.sort(key=lambda item: (ACTIVATIONS.index(item[2].activation), -item[3].prior))
    _, _, layout, candidate = near[0]
    rivals = {item[2].activation for item in near} - {layout.activation}
    return layout, candidate, sorted(rivals)


def _judged(
    layout: Layout, accuracy: float, candidate: _Candidate, how: str, checkpoint: Checkpoint
) -> Guess:
    own_names = (candidate.first, candidate.out) == ("w_a", "w_c")
    if accuracy >= VERIFIED:
        confidence = "verified"
    elif accuracy > max(0.3, 10 / candidate.order) or own_names:
        confidence = "likely"
    else:
        confidence = "weak"
    used = {
        key for name in ("w_a", "w_b", "w_c", "bias", "output_bias") for key in _keys(getattr(layout, name))
    }
    left = sorted(set(checkpoint.tensors) - used)
    unused = f"; {len(left)} tensors not used" if left else ""
    reason = (
        f"{candidate.structure}, {100 * accuracy:.1f} % of all {candidate.order**2} pairs right "
        f"with {layout.activation}{how}{unused}"
    )
    return Guess(layout, confidence, accuracy, reason)


def _keys(text: str | None) -> tuple[str, ...]:
    from analyses.expressions import parse_expression

    return parse_expression(text).keys if text is not None else ()


# -- candidates from shapes and names -----------------------------------------------------------------


def _quoted(key: str) -> str:
    return (
        key if re.fullmatch(r"[A-Za-z_][\w\-/]*(\.[\w\-/]+)*", key) and not key.endswith(".T") else f'"{key}"'
    )


def _candidates(checkpoint: Checkpoint, order: int | None) -> Iterator[_Candidate]:
    shapes = {key: tuple(t.shape) for key, t in checkpoint.tensors.items() if '"' not in key}
    matrices = {key: shape for key, shape in shapes.items() if len(shape) == 2 and min(shape) >= 2}
    if not 2 <= len(matrices) <= MAX_MATRICES:
        return
    for out, transposed in itertools.product(matrices, (False, True)):
        rows = matrices[out][transposed]
        sizes = [order] if order is not None else range(rows, max(rows - SPARE_TOKENS, 1), -1)
        for n in sizes:
            if n <= rows:
                yield from _with_out(shapes, matrices, out, transposed, n)


def _with_out(
    shapes: dict[str, tuple[int, ...]],
    matrices: dict[str, tuple[int, ...]],
    out: str,
    transposed: bool,
    n: int,
) -> Iterator[_Candidate]:
    rows, width = matrices[out][::-1] if transposed else matrices[out]
    text = _quoted(out) + (".T" if transposed else "")
    text += f"[0:{n}]" if n < rows else ""
    names = list(matrices)
    prior = 4.0 * bool(_OUT.search(out)) + names.index(out) / len(names) - 2.0 * (rows - n)
    prior -= 0.5 * transposed  # linear layers store (outputs, inputs)
    prior -= 1.0 * bool(_EMBEDDING.search(out) and "un" not in out.lower())
    output_bias = _vector_of(shapes, out, rows)
    rest = {key: shape for key, shape in matrices.items() if key != out}
    for structure, first, second, bias, bonus in _first_layers(rest, n, width):
        linear_bias = _vector_of(shapes, bias[0], width) if bias else None
        biases = tuple(bias[1:]) + ((_quoted(linear_bias),) if linear_bias else ())
        trimmed = None
        if output_bias is not None and output_bias != linear_bias:
            trimmed = _quoted(output_bias) + (f"[0:{n}]" if n < rows else "")
        yield _Candidate(structure, first, second, text, biases, trimmed, n, prior + bonus)


def _vector_of(shapes: dict[str, tuple[int, ...]], key: str, size: int) -> str | None:
    """The bias that belongs to a weight by its name, or the only vector of that size."""
    stem, _, last = key.rpartition(".")
    stem = f"{stem}." if stem else ""
    for name in (f"{stem}bias", f"{key}_bias", f"{key}.bias", stem + last.replace("weight", "bias")):
        if name != key and shapes.get(name) == (size,):
            return name
    return None


def _oriented(key: str, shape: tuple[int, ...], width: int) -> Iterator[tuple[str, int]]:
    """Expressions for a matrix as (rows x width), with the number of rows."""
    if shape[1] == width:
        yield _quoted(key), shape[0]
    if shape[0] == width:
        yield _quoted(key) + ".T", shape[1]


def _first_layers(
    rest: dict[str, tuple[int, ...]], n: int, width: int
) -> Iterator[tuple[str, str, str | None, list[str], float]]:
    """Structures of the first layer: (name, w_a, w_b, [key of the linear map, extra bias terms..], prior)."""
    direct = [
        (key, text, rows)
        for key, shape in rest.items()
        for text, rows in _oriented(key, shape, width)
        if n <= rows <= n + SPARE_TOKENS
    ]
    cut = {text: f"[0:{n}]" if rows > n else "" for _, text, rows in direct}
    for (key_a, a, _), (key_b, b, _) in itertools.permutations(direct, 2):
        if key_a != key_b:
            bonus = 2.0 * bool(_FIRST.search(key_a)) + 2.0 * bool(_SECOND.search(key_b)) + 0.5
            in_order = list(rest).index(key_a) < list(rest).index(key_b)
            yield "separate first layers", a + cut[a], b + cut[b], [key_a], bonus + in_order
    for key, a, _ in direct:
        yield "tied first layer", a + cut[a], None, [key], 1.0
    for key, shape in rest.items():
        for text, rows in _oriented(key, shape, width):
            yield from _concatenated(key, text, rows, n)
    for embedding, (vocabulary, d) in rest.items():
        if n <= vocabulary <= n + SPARE_TOKENS:
            others = {key: shape for key, shape in rest.items() if key != embedding}
            yield from _embedded(embedding, vocabulary, d, others, n, width)


def _concatenated(
    key: str, text: str, rows: int, n: int
) -> Iterator[tuple[str, str, str | None, list[str], float]]:
    for parts, vocabulary in ((2, rows // 2), (3, rows // 3)):
        if rows != parts * vocabulary or not n <= vocabulary <= n + SPARE_TOKENS:
            continue
        if parts == 2:
            extra = [key]
        elif vocabulary > n:  # the third input is a constant token: a bias
            extra = [key, f"{text}[{2 * vocabulary + n}:{2 * vocabulary + n + 1}]"]
        else:
            continue
        yield (
            "concatenated first layer",
            f"{text}[0:{n}]",
            f"{text}[{vocabulary}:{vocabulary + n}]",
            extra,
            2.0,
        )


def _embedded(
    embedding: str, vocabulary: int, d: int, others: dict[str, tuple[int, ...]], n: int, width: int
) -> Iterator[tuple[str, str, str | None, list[str], float]]:
    table = _quoted(embedding)
    rows = f"{table}[0:{n}]" if vocabulary > n else table
    bonus = 1.0 + 2.0 * bool(_EMBEDDING.search(embedding))
    for key, shape in others.items():
        for text, inputs in _oriented(key, shape, width):
            if inputs == d:
                yield "embedding, linear map of the sum", f"{rows} @ {text}", None, [key], bonus
                for second, (size, e) in others.items():
                    if second != key and e == d and n <= size <= n + SPARE_TOKENS:
                        other = _quoted(second) + (f"[0:{n}]" if size > n else "")
                        yield (
                            "two embeddings, linear map of the sum",
                            f"{rows} @ {text}",
                            f"{other} @ {text}",
                            [key],
                            bonus + 1.0,
                        )
            for parts in (2, 3):
                if inputs == parts * d and (parts == 2 or vocabulary > n):
                    extra = [key]
                    if parts == 3:
                        extra.append(f"{table}[{n}:{n + 1}] @ {text}[{2 * d}:{3 * d}]")
                    yield (
                        "embedding, linear map of the concatenation",
                        f"{rows} @ {text}[0:{d}]",
                        f"{rows} @ {text}[{d}:{2 * d}]",
                        extra,
                        bonus + 1.0,
                    )


# -- trying them -------------------------------------------------------------------------------------


def abelian_groups(order: int) -> list[FiniteAbelianGroup]:
    """Every Abelian group of an order, one per isomorphism class, cyclic first.

    Parameters
    ----------
    order : int

    Returns
    -------
    list of FiniteAbelianGroup
        As invariant factors that divide one another, the smallest first.
    """

    def chains(rest: int, least: int) -> Iterator[tuple[int, ...]]:
        if rest % least == 0 and rest > 1:
            yield (rest,)
        for factor in range(max(least, 2), math.isqrt(rest) + 1):
            if factor % least == 0 and rest % factor == 0 and (rest // factor) % factor == 0:
                for tail in chains(rest // factor, factor):
                    yield (factor, *tail)

    return [FiniteAbelianGroup(orders) for orders in chains(order, 1)]


def _layouts(candidate: _Candidate, group: str | None, activation: str | None) -> Iterator[Layout]:
    groups = [group] if group is not None else [g.name for g in abelian_groups(candidate.order)[:8]]
    for name in groups:
        for kind in ACTIVATIONS if activation is None else (activation,):
            yield Layout(
                group=name,
                w_a=candidate.first,
                w_b=candidate.second,
                w_c=candidate.out,
                bias=" + ".join(candidate.bias) or None,
                output_bias=candidate.output_bias,
                loss="cross_entropy",
                activation=kind,
            )


def _outputs(weights: Weights, layout: Layout, x: Tensor, y: Tensor) -> Tensor:
    b = weights.a if weights.b is None else weights.b
    return layout.output_scale * activate(weights.a[x] + b[y], layout.activation) @ weights.c.T


def _score(layout: Layout, checkpoint: Checkpoint, pairs: int) -> tuple[float, float] | None:
    """Accuracy on some pairs, and a loss that compares activations; None if the shapes do not fit."""
    import torch

    try:
        weights = layout.weights(checkpoint)
    except LayoutError:
        return None
    group = FiniteAbelianGroup.parse(layout.group)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(group.order, (2, pairs), generator=generator)
    target = torch.as_tensor(group.sums)[x, y]
    outputs = _outputs(weights, layout, x, y)
    accuracy = float((outputs.argmax(1) == target).double().mean())
    mean_square = float((outputs - torch.nn.functional.one_hot(target, group.order)).square().sum(1).mean())
    entropy = float(torch.nn.functional.cross_entropy(outputs, target)) / math.log(group.order)
    return accuracy, min(mean_square, entropy)


def _settle(layout: Layout, checkpoint: Checkpoint) -> tuple[Layout, float, str]:
    """Accuracy on all pairs, and the loss and output scale that the outputs speak for."""
    import torch

    weights = layout.weights(checkpoint)
    group = FiniteAbelianGroup.parse(layout.group)
    n, q = weights.a.shape
    right, count = 0, n * n
    scales = {1.0: "", 1 / (2 * n): "o/(2n)", 1 / q: "o/q", 1 / (2 * n * q): "o/(2nq)"}
    errors = {(scale, projected): 0.0 for scale in scales for projected in (False, True)}
    for x in range(n):
        y = torch.arange(n)
        target = torch.as_tensor(group.sums[x])
        outputs = _outputs(weights, layout, torch.full_like(y, x), y)
        right += int((outputs.argmax(1) == target).sum())
        goal = torch.nn.functional.one_hot(target, n).double()
        for scale, projected in errors:
            gap = scale * outputs - goal
            gap = gap - gap.mean(1, keepdim=True) if projected else gap
            errors[scale, projected] += float(gap.square().sum()) / count
    for projected, loss in ((False, "mse"), (True, "projected_mse")):
        scale = min(scales, key=lambda s: errors[s, projected])
        if errors[scale, projected] < NEAR_ONE_HOT * (1 - 1 / n):
            how = f", outputs near one-hot vectors ({loss}{' of ' + scales[scale] if scales[scale] else ''})"
            return replace(layout, loss=loss, output_scale=scale * layout.output_scale), right / count, how
    return layout, right / count, ", outputs far from one-hot vectors (taken as logits)"
