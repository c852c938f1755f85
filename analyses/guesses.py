"""Guess the layout of someone's network from the shapes and names of its tensors, and try it on all pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analyses.activations import ACTIVATIONS, activate
from analyses.candidates import Candidate, candidates
from analyses.expressions import parse_expression
from analyses.layouts import TENSORS, Layout, Weights
from manifold.errors import LayoutError
from manifold.groups import FiniteAbelianGroup

if TYPE_CHECKING:
    from torch import Tensor

    from analyses.checkpoints import Checkpoint

MAX_CANDIDATES = 200
SAMPLE_PAIRS = 512
SEARCH_FLOPS = 4 * 10**10
SETTLE_FLOPS = 2 * 10**10
VERIFIED = 0.99
NEAR_ONE_HOT = 0.1  # squared distance to one-hot targets, as a share of the constant predictor's


@dataclass(frozen=True)
class Guess:
    """A guessed layout with its evidence.

    Parameters
    ----------
    layout : Layout
    confidence : str
        ``verified`` (at least 99 % of the pairs right), ``likely`` (far above chance, or the names of
        our own layout), ``weak`` (shapes fit, nothing else speaks for it).
    accuracy : float
        Share of the n^2 pairs whose largest output is at x + y (of groups with thousands of elements:
        of evenly spaced rows of pairs; the reason says how many).
    reason : str
        Why, in one sentence.
    """

    layout: Layout
    confidence: str
    accuracy: float
    reason: str


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
    found = sorted(candidates(checkpoint, order), key=lambda candidate: -candidate.prior)[:MAX_CANDIDATES]
    tried: list[tuple[float, float, Layout, Candidate]] = []
    spent = 0
    for candidate in found:
        for layout in _layouts(candidate, group, activation) if spent < SEARCH_FLOPS else ():
            score = _score(layout, checkpoint)
            spent += 2 * SAMPLE_PAIRS * candidate.order * candidate.width
            if score is not None:
                tried.append((*score, layout, candidate))
    if not tried:
        return None
    layout, candidate, rivals = _best(tried)
    return _judged(_evidence(layout, checkpoint), candidate, rivals, checkpoint)


def _best(
    tried: list[tuple[float, float, Layout, Candidate]],
) -> tuple[Layout, Candidate, list[str]]:
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
    near.sort(key=lambda item: (_complexity(item[2].activation), -item[3].prior))
    _, _, layout, candidate = near[0]
    rivals = {item[2].activation for item in near} - {layout.activation}
    return layout, candidate, sorted(rivals)


def _complexity(activation: str) -> int:
    return ACTIVATIONS.index(activation) if activation in ACTIVATIONS else len(ACTIVATIONS)


def _judged(evidence: _Evidence, candidate: Candidate, rivals: list[str], checkpoint: Checkpoint) -> Guess:
    layout = evidence.layout
    own_names = (candidate.first, candidate.out) == ("w_a", "w_c")
    if evidence.accuracy >= VERIFIED:
        confidence = "verified"
    elif evidence.accuracy > max(0.3, 10 / candidate.order) or own_names:
        confidence = "likely"
    else:
        confidence = "weak"
    used = {key for name in TENSORS for key in _keys(getattr(layout, name))}
    left = len(set(checkpoint.tensors) - used)
    which = "all " if evidence.pairs == candidate.order**2 else ""
    parts = [
        candidate.structure,
        f"{100 * evidence.accuracy:.1f} % of {which}{evidence.pairs} pairs right with {layout.activation}",
        evidence.outputs,
    ]
    if rivals:
        parts.append(f"{' and '.join(rivals)} would fit as well (--activation decides)")
    if left:
        parts.append(f"{left} tensors not used")
    return Guess(layout, confidence, evidence.accuracy, ", ".join(parts))


def _keys(text: str | None) -> tuple[str, ...]:
    return parse_expression(text).keys if text is not None else ()


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


def _layouts(candidate: Candidate, group: str | None, activation: str | None) -> Iterator[Layout]:
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


def _sums(group: FiniteAbelianGroup, x: Tensor, y: Tensor) -> Tensor:
    """Numbers of x + y, without the table of all sums (groups may be large here)."""
    import torch

    elements = torch.as_tensor(group.elements)
    return torch.as_tensor(group.index((elements[x] + elements[y]).numpy()))


def _score(layout: Layout, checkpoint: Checkpoint) -> tuple[float, float] | None:
    """Accuracy on some pairs, and a loss that compares activations; None if the shapes do not fit."""
    import torch

    try:
        weights = layout.weights(checkpoint)
    except LayoutError:
        return None
    group = FiniteAbelianGroup.parse(layout.group)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(group.order, (2, SAMPLE_PAIRS), generator=generator)
    target = _sums(group, x, y)
    outputs = _outputs(weights, layout, x, y)
    accuracy = float((outputs.argmax(1) == target).double().mean())
    mean_square = float((outputs - torch.nn.functional.one_hot(target, group.order)).square().sum(1).mean())
    entropy = float(torch.nn.functional.cross_entropy(outputs, target)) / math.log(group.order)
    return accuracy, min(mean_square, entropy)


@dataclass(frozen=True)
class _Evidence:
    """What the outputs on all pairs (or, of large groups, on evenly spaced rows of pairs) say."""

    layout: Layout  # with the loss and output scale that the outputs speak for
    accuracy: float
    pairs: int
    outputs: str


def _evidence(layout: Layout, checkpoint: Checkpoint) -> _Evidence:
    import torch

    weights = layout.weights(checkpoint)
    group = FiniteAbelianGroup.parse(layout.group)
    n, q = weights.a.shape
    rows = torch.linspace(0, n - 1, max(1, min(n, SETTLE_FLOPS // (2 * n * n * q)))).long()
    right, count = 0, len(rows) * n
    scales = {1.0: "", 1 / (2 * n): "o/(2n)", 1 / q: "o/q", 1 / (2 * n * q): "o/(2nq)"}
    errors = {(scale, projected): 0.0 for scale in scales for projected in (False, True)}
    y = torch.arange(n)
    for x in rows:
        target = _sums(group, x.expand(n), y)
        outputs = _outputs(weights, layout, x.expand(n), y)
        right += int((outputs.argmax(1) == target).sum())
        goal = torch.nn.functional.one_hot(target, n).double()
        for scale, projected in errors:
            gap = scale * outputs - goal
            gap = gap - gap.mean(1, keepdim=True) if projected else gap
            errors[scale, projected] += float(gap.square().sum()) / count
    told = "outputs far from one-hot vectors (taken as logits)"
    for projected, loss in ((False, "mse"), (True, "projected_mse")):
        scale = min(scales, key=lambda s: errors[s, projected])
        if errors[scale, projected] < NEAR_ONE_HOT * (1 - 1 / n):
            told = f"outputs near one-hot vectors ({loss}{' of ' + scales[scale] if scales[scale] else ''})"
            layout = replace(layout, loss=loss, output_scale=scale * layout.output_scale)
            break
    return _Evidence(layout, right / count, count, told)
