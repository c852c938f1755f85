"""Guess the layout of someone's network from the shapes and names of its tensors, and try it on all pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analyses.layouts.activation_names import ACTIVATIONS
from analyses.layouts.candidates import Candidate, candidates
from analyses.layouts.evidence import apply, sums_of
from analyses.layouts.layout import Layout
from analyses.layouts.leftovers import unused_tensors
from analyses.layouts.origins import Confidence
from analyses.layouts.rivals import SAME_ACCURACY, Verdict, judge, luck
from manifold.errors import LayoutError
from manifold.groups.abelian import FiniteAbelianGroup

if TYPE_CHECKING:
    from torch import Tensor

    from analyses.checkpoints.reader import Checkpoint

MAX_CANDIDATES = 200
SAMPLE_PAIRS = 256
SEARCH_FLOPS = 2 * 10**10
VERIFIED = 0.99
LEAST_ORDER = 4  # nine pairs are right by luck once in 20,000 readings, and hundreds are tried
SAME_STRUCTURE = 0.02  # five pairs' luck of 256: readings so near in accuracy are told apart by what they use


@dataclass(frozen=True)
class Guess:
    """A guessed layout with its evidence.

    Parameters
    ----------
    layout : Layout
    confidence : Confidence
        ``verified``: at least 99 % of the pairs right, every tensor used, and no other reading fits as well,
        among all activations of layouts and `analyses.layouts.evidence.OTHERS`. ``ambiguous``: 99 % right,
        but something is open. ``weak``: the network does not do the task as it is read.
    accuracy : float
        Share of the n^2 pairs whose largest output is at x + y (of groups with thousands of elements:
        of evenly spaced rows of pairs; the reason says how many).
    reason : str
        Why, in one sentence.
    rivals : tuple of str
        Activations that the numbers do not rule out.
    unused : tuple of str
        Floating tensors that the layout does not use.
    doubts, remarks : tuple of str
        What else is open, and what is certain and must be known; one sentence each.
    usable : bool
        Whether accuracy or the names of our own layout speak for the tensors at all.
    """

    layout: Layout
    confidence: Confidence
    accuracy: float
    reason: str
    rivals: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    usable: bool = True


@dataclass(frozen=True)
class _Trial:
    """A candidate on a group, and how it did on some pairs with the activation that does best."""

    candidate: Candidate
    layout: Layout
    accuracy: float
    unused: int


def guess_layout(
    checkpoint: Checkpoint, group: str | None = None, *, activation: str | None = None,
    loss: str | None = None,
) -> Guess | None:  # fmt: skip
    """Guess where the weights of a group network are, and check the guess by its accuracy.

    Tried: separate, tied and concatenated first layers; an embedding (one or two) followed by a linear
    map of the sum or the concatenation; tokens beyond the group; biases; both storage orders; every
    Abelian group of the order that the shapes allow; the activations of `analyses.layouts.layout`.

    Parameters
    ----------
    checkpoint : Checkpoint
    group, activation, loss : str, optional
        What is known narrows the guess.

    Returns
    -------
    Guess or None
        None when no combination of tensors has fitting shapes.
    """
    order = FiniteAbelianGroup.parse(group).order if group is not None else None
    found = sorted(candidates(checkpoint, order), key=lambda candidate: -candidate.prior)[:MAX_CANDIDATES]
    trials: list[_Trial] = []
    spent = 0
    names = ACTIVATIONS if activation is None else (activation,)
    for candidate in found:
        if spent < SEARCH_FLOPS:
            trials += _trials(candidate, group, names, checkpoint)
            spent += 2 * SAMPLE_PAIRS * candidate.order * candidate.width * len(names)
    if not trials:
        return None
    chosen = _best(trials)
    layout = chosen.layout if activation is None else replace(chosen.layout, activation=activation)
    verdict = judge(layout, checkpoint, activation=activation, loss=loss)
    return guess_of(verdict, checkpoint, structure=chosen.candidate.structure, others=_others(chosen, trials))


def _best(trials: list[_Trial]) -> _Trial:
    """The reading to believe: accuracy far above chance decides, then what it leaves unused, then names."""
    own = [trial for trial in trials if _own_names(trial.layout) and trial.layout.w_b is not None]
    informative = [trial for trial in own or trials if trial.accuracy > luck(trial.candidate.order)]
    if not informative:
        return min(own or trials, key=_order)
    accuracy = max(trial.accuracy for trial in informative)
    return min((one for one in informative if one.accuracy >= accuracy - SAME_STRUCTURE), key=_order)


def _order(trial: _Trial) -> tuple[int, float]:
    return trial.unused, -trial.candidate.prior


def _others(chosen: _Trial, trials: list[_Trial]) -> list[str]:
    """Other readings of at least as many tensors that do as well; x and y exchanged is the same reading."""

    def parts(trial: _Trial) -> tuple:
        layout = trial.layout
        return frozenset({layout.w_a, layout.w_b}), layout.w_c, layout.group

    same = parts(chosen)
    return [
        f"{trial.candidate.structure} of {', '.join(_keys(trial.layout))} on {trial.layout.group}"
        for trial in trials
        if trial.unused <= chosen.unused
        and trial.accuracy > luck(trial.candidate.order)
        and trial.accuracy >= chosen.accuracy - SAME_ACCURACY
        and parts(trial) != same
    ]


def _keys(layout: Layout) -> list[str]:
    return list(dict.fromkeys(key for one in layout.expressions.values() for key in one.keys))


def _own_names(layout: Layout) -> bool:
    return (layout.w_a, layout.w_c) == ("w_a", "w_c") and layout.w_b in (None, "w_b")


def guess_of(
    verdict: Verdict, checkpoint: Checkpoint, *, structure: str = "tensors given",
    others: list[str] | None = None,
) -> Guess:  # fmt: skip
    """What a verdict about a layout is worth.

    Parameters
    ----------
    verdict : Verdict
    checkpoint : Checkpoint
    structure : str
        What the reading is called.
    others : list of str, optional
        Other readings of the tensors that do as well.

    Returns
    -------
    Guess
    """
    layout, order = verdict.layout, FiniteAbelianGroup.parse(verdict.layout.group).order
    unused = unused_tensors(layout, checkpoint)
    doubts = list(verdict.doubts)
    if others:
        doubts.append(f"another reading does the task as well: {others[0]}")
    if unused:
        doubts.append(f"{_listed(unused)} not used")
    if order < LEAST_ORDER:
        doubts.append("so few pairs may all be right by luck")
    if verdict.accuracy < VERIFIED:
        confidence = Confidence.WEAK
    else:
        confidence = Confidence.AMBIGUOUS if verdict.rivals or doubts else Confidence.VERIFIED
    which = "all " if verdict.pairs == order**2 else ""
    reason = (
        f"{structure}, {100 * verdict.accuracy:.1f} % of {which}{verdict.pairs} pairs right with "
        f"{layout.activation} ({verdict.evidence}), loss {layout.loss}"
    )
    reason += f" of {layout.output_scale:.3g} o" if layout.output_scale != 1 else ""
    usable = verdict.accuracy > max(0.3, min(10 / order, 0.9)) or _own_names(layout)
    return Guess(
        layout,
        confidence,
        verdict.accuracy,
        reason,
        verdict.rivals,
        unused,
        tuple(doubts),
        verdict.remarks,
        usable,
    )


def _listed(keys: tuple[str, ...]) -> str:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(keys[:5]) + more + (" is" if len(keys) == 1 else " are")


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


def _trials(
    candidate: Candidate, group: str | None, names: tuple[str, ...], checkpoint: Checkpoint
) -> Iterator[_Trial]:
    """A candidate on every group of its order, with the activation that does best on some pairs."""
    groups = [group] if group is not None else [one.name for one in abelian_groups(candidate.order)[:8]]
    layouts = [
        Layout(
            group=name,
            w_a=candidate.first,
            w_b=candidate.second,
            w_c=candidate.out,
            bias=" + ".join(candidate.bias) or None,
            output_bias=candidate.output_bias,
            loss="cross_entropy",
        )
        for name in groups
    ]
    try:
        answers = list(_answers(layouts[0], names, checkpoint))
    except LayoutError:
        return
    unused = len(unused_tensors(layouts[0], checkpoint))
    for layout in layouts:
        target = sums_of(FiniteAbelianGroup.parse(layout.group), *_pairs(candidate.order))
        accuracy = max(float((answer == target).double().mean()) for answer in answers)
        yield _Trial(candidate, layout, accuracy, unused)


def _pairs(order: int) -> tuple[Tensor, Tensor]:
    """All pairs of a small group, some of a larger one."""
    import torch

    if order**2 <= SAMPLE_PAIRS:
        return torch.arange(order).repeat_interleave(order), torch.arange(order).repeat(order)
    x, y = torch.randint(order, (2, SAMPLE_PAIRS), generator=torch.Generator().manual_seed(0))
    return x, y


def _answers(layout: Layout, names: tuple[str, ...], checkpoint: Checkpoint) -> Iterator[Tensor]:
    """The elements that a network answers on some pairs, with each activation."""
    parts = layout.parts(checkpoint)
    x, y = _pairs(len(parts.a))
    inner = (parts.a[x] + (parts.a if parts.b is None else parts.b)[y]).float()  # the largest output is all
    last = parts.c.mT.float()
    for name in names:
        outputs = apply(inner, name) @ last
        yield (outputs if parts.constant is None else outputs + parts.constant).argmax(1)
