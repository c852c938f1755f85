"""Rivals: which activation and loss a network as read was trained with, and what the numbers leave open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analyses.layouts.activation_names import ACTIVATIONS
from analyses.layouts.evidence import Fit, SquaredFit, all_activations, fits_of
from analyses.layouts.hints import Hints, Word, hints_of
from analyses.layouts.layout import Layout
from manifold.groups.abelian import FiniteAbelianGroup

if TYPE_CHECKING:
    from analyses.checkpoints.reader import Checkpoint

SAMPLE_PAIRS = 2048  # tried first, so that activations far from the task cost little
SAMPLE_SLACK = 0.2  # well beyond `SAME_ACCURACY` and the error of an accuracy over so many
SAME_ACCURACY = 0.1  # networks with held-out pairs do up to 0.06 better with a wrong activation
# Of 73 networks of all kinds trained by cross-entropy the smallest gradient across the weights named the
# activation of 70 (the smallest loss of 38), and was within 1.15 of the true one's in the rest. That is
# evidence, no proof: a rival is excluded only if its loss is worse as well, each by these factors.
CLEAR_LOSS = 10.0
CLEAR_ACROSS = 1.5
TIE = 1.1  # gradients across the weights so near to each other say nothing; the more common activation wins
COMMON = ("relu", "square", "gelu", "tanh", "abs")
# Squared distance to one-hot vectors, as a share of the constant predictor's. Trained by squared errors it is
# below 0.65 wherever the task is learned, by cross-entropy above 0.65 (logits grow beyond 1).
NEAR_ONE_HOT = 0.1
LIKELY_ONE_HOT = 0.5
PERHAPS_ONE_HOT = 1.5
# Long training by cross-entropy makes logits nearly proportional to one-hot vectors: a share of 0.12 was seen
# at a scale of o/(2n) by chance.
SCALED_ONE_HOT = 0.03
CLEAR_SCALED = 0.003
CLEAR_RESIDUAL = 10.0
MET, FAR = 1.25, 3.0  # a stored training loss is met within a quarter (it is from before the last step)
SAME_LOSS = 1e-6  # softmaxes with and without further tokens that differ by less are one loss


@dataclass(frozen=True)
class Verdict:
    """What the numbers and the words say about a network as read.

    Parameters
    ----------
    layout : Layout
        With the activation, loss and output scale that they speak for.
    accuracy : float
        Share of the tried pairs that it gets right.
    pairs : int
        How many were tried.
    rivals : tuple of str
        Activations that fit as well.
    evidence : str
        What decided, in a few words.
    doubts : tuple of str
        What is not certain beside the activation, one sentence each.
    remarks : tuple of str
        What is certain and must be known.
    """

    layout: Layout
    accuracy: float
    pairs: int
    rivals: tuple[str, ...]
    evidence: str
    doubts: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _LossVerdict:
    loss: str
    scale: float
    doubt: str = ""


def luck(order: int) -> float:
    """The accuracy that a network without the task may have by luck or by a bias to some outputs.

    Parameters
    ----------
    order : int
        Of the group.

    Returns
    -------
    float
        Five times chance, between 0.2 and 0.6 (of 25 pairs 15 are right by luck once in 100,000).
    """
    return max(0.2, min(5 / order, 0.6))


def judge(
    layout: Layout, checkpoint: Checkpoint, *, activation: str | None = None, loss: str | None = None,
    fixed_scale: bool = False,
) -> Verdict:  # fmt: skip
    """Tell activation and loss of a network whose tensors are known.

    Parameters
    ----------
    layout : Layout
        Its activation counts only where nothing else does.
    checkpoint : Checkpoint
    activation, loss : str, optional
        Given by the user: then they are not in question.
    fixed_scale : bool
        Keep the layout's output scale.

    Returns
    -------
    Verdict

    Raises
    ------
    LayoutError
        If the tensors do not fit the layout.
    """
    hints = hints_of(checkpoint)
    n, q = FiniteAbelianGroup.parse(layout.group).order, layout.parts(checkpoint).a.shape[1]
    scales = (1.0,) if fixed_scale else tuple(dict.fromkeys((1.0, 1 / (2 * n), 1 / q, 1 / (2 * n * q))))
    chance = luck(n)
    fits = _fits(layout, checkpoint, all_activations(activation), scales, chance)
    if not fits:  # overflow with every activation
        return Verdict(layout, 0.0, 0, _others(layout.activation), "the outputs overflow")
    best = max(fit.accuracy for fit in fits)
    if activation is None and best <= chance:
        return _uninformed(layout, fits, hints, loss)
    near = [fit for fit in fits if fit.accuracy >= best - SAME_ACCURACY]
    known = [fit for fit in near if activation is not None or fit.activation in ACTIVATIONS]
    doubts: list[str] = []
    if activation is not None:
        chosen, rivals, evidence = known[0], [], "activation given"
    elif not known:
        return _uninformed(layout, fits, hints, loss, rivals=[fit.activation for fit in near])
    else:
        chosen, rivals, evidence = _chosen(known, near, hints, loss, doubts)
    told = _loss(chosen, hints.loss(), loss or _stored([chosen], hints))
    doubts += [told.doubt] if told.doubt else []
    remarks: list[str] = []
    if chosen.vocabulary is not None:
        sentence, certain = _vocabulary(chosen, told.loss, hints)
        (remarks if certain else doubts).append(sentence)
    settled = replace(
        layout, activation=chosen.activation, loss=told.loss, output_scale=told.scale * layout.output_scale
    )
    return Verdict(
        settled, chosen.accuracy, chosen.pairs, tuple(fit.activation for fit in rivals), evidence,
        tuple(doubts), tuple(remarks),
    )  # fmt: skip


def _fits(
    layout: Layout, checkpoint: Checkpoint, names: Sequence[str], scales: Sequence[float], chance: float
) -> list[Fit]:
    """Fits on all pairs of the activations that do well on some; on some where none does."""
    sampled = fits_of(layout, checkpoint, names, scales=scales, pairs=SAMPLE_PAIRS, gradient=False)
    best = max((fit.accuracy for fit in sampled), default=0.0)
    if len(names) > 1 and best <= chance:
        return sampled
    good = [fit for fit in sampled if fit.accuracy >= best - SAMPLE_SLACK]
    logits = not any(_one_hot(fit) for fit in good)
    return fits_of(layout, checkpoint, [fit.activation for fit in good], scales=scales, gradient=logits)


def _others(activation: str) -> tuple[str, ...]:
    return tuple(name for name in ACTIVATIONS if name != activation)


def _uninformed(
    layout: Layout, fits: list[Fit], hints: Hints, loss: str | None, rivals: Sequence[str] | None = None
) -> Verdict:
    """Nothing but words can tell the activation of a network that does not do the task with any we know."""
    word = hints.activation()
    named = word.name if word is not None and word.name is not None else None
    name = named or layout.activation
    fit = next((fit for fit in fits if fit.activation == name), max(fits, key=lambda one: one.accuracy))
    told = _loss(fit, hints.loss(), loss)
    evidence = _quoted(word) if named else "no activation does the task"
    left = () if named else _others(name) if rivals is None else tuple(rivals)
    settled = replace(layout, activation=name, loss=told.loss, output_scale=told.scale * layout.output_scale)
    return Verdict(settled, fit.accuracy, fit.pairs, left, evidence)


# -- the activation ------------------------------------------------------------------------------------


def _chosen(
    known: list[Fit], near: list[Fit], hints: Hints, loss: str | None, doubts: list[str]
) -> tuple[Fit, list[Fit], str]:
    """The activation to believe, its rivals, and what decided."""
    word = hints.activation()
    if hints.activations and (word is None or word.name is None):
        places = ", ".join(_quoted(one) for one in hints.activations[:3])
        doubts.append(f"what is written about the activation names none of ours or several ({places})")
    elif word is not None:
        fitting = [fit for fit in known if fit.activation == word.name]
        if fitting:
            return fitting[0], [], _quoted(word)
        doubts.append(f"{_quoted(word)} does not do the task as well")
    asked = loss or (hints.loss().name if hints.loss() else None) or _stored(known, hints)
    squared = asked is not None or any(
        _one_hot(fit) or _plain_residual(fit) < LIKELY_ONE_HOT for fit in known
    )
    if asked != "cross_entropy" and squared:
        chosen = min(known, key=lambda fit: fit.nearest.residual)
        limit = CLEAR_RESIDUAL * chosen.nearest.residual
        rivals = [fit for fit in near if fit is not chosen and fit.nearest.residual <= limit]
        share = f"{100 * chosen.nearest.residual:.2g} %"
        return chosen, rivals, f"squared distance to one-hot vectors {share} of the constant predictor's"
    return _by_stationarity(known, near, hints)


def _by_stationarity(known: list[Fit], near: list[Fit], hints: Hints) -> tuple[Fit, list[Fit], str]:
    met = [fit for fit in known if _met(fit.entropy.value, hints.values)]
    pool = met or known
    least = min((_across(fit) for fit in pool), default=1.0)
    tied = [fit for fit in pool if _across(fit) <= TIE * least]
    chosen = min(tied, key=lambda fit: COMMON.index(fit.activation))
    rivals = [fit for fit in near if fit is not chosen and not _excluded(fit, chosen, hints)]
    evidence = f"gradient across the weights {_across(chosen):.2f}"
    if met:
        evidence = f"the stored training loss {_met(chosen.entropy.value, hints.values):.3g} is met"
    elif len(near) == 1:
        evidence = "no other activation does the task"
    return chosen, rivals, evidence


def _across(fit: Fit) -> float:
    return 1.0 if fit.entropy.across is None else fit.entropy.across


def _stored(known: list[Fit], hints: Hints) -> str | None:
    """The loss with which a stored training loss is met, if it is one of the two."""
    entropy = any(_met(fit.entropy.value, hints.values) for fit in known)
    squared = any(_met(value, hints.values) for fit in known for value in _squared_losses(fit))
    return None if entropy == squared else "cross_entropy" if entropy else "mse"


def _squared_losses(fit: Fit) -> tuple[float, float]:
    """Squared errors of the plain outputs, summed and averaged over the outputs."""
    n = fit.outputs
    total = next(one.residual for one in fit.squared if _plain(one) and not one.projected) * (1 - 1 / n)
    return total, total / n


def _excluded(rival: Fit, chosen: Fit, hints: Hints) -> bool:
    """Whether the numbers rule out a rival of a cross-entropy network."""
    stored = hints.values
    if _met(chosen.entropy.value, stored) and all(_apart(rival.entropy.value, one) > FAR for one in stored):
        return True
    worse = rival.entropy.value >= CLEAR_LOSS * chosen.entropy.value
    return worse and _across(rival) >= CLEAR_ACROSS * _across(chosen)


def _met(value: float, stored: Sequence[float]) -> float | None:
    """The stored loss that a value agrees with, if any."""
    return next((one for one in stored if _apart(value, one) <= MET), None)


def _apart(value: float, other: float) -> float:
    return math.inf if value <= 0 or other <= 0 else math.exp(abs(math.log(value) - math.log(other)))


def _quoted(word: Word | None) -> str:
    return "" if word is None else f"{word.place} says {word.text}"


# -- the loss --------------------------------------------------------------------------------------------


def _one_hot(fit: Fit) -> bool:
    return fit.nearest.residual < (NEAR_ONE_HOT if _plain(fit.nearest) else SCALED_ONE_HOT)


def _plain_residual(fit: Fit) -> float:
    return min(one.residual for one in fit.squared if _plain(one))


def _plain(fit: SquaredFit) -> bool:
    return fit.scale == 1.0


def _loss(fit: Fit, word: Word | None, given: str | None) -> _LossVerdict:
    """Loss and output scale of a fit."""
    asked = given or (word.name if word is not None else None)
    if asked is not None:
        if asked == "cross_entropy":
            return _LossVerdict(asked, 1.0)
        choices = [one for one in fit.squared if one.projected == (asked == "projected_mse")]
        plain, best = choices[0], min(choices, key=lambda one: one.residual)
        return _LossVerdict(asked, best.scale if best.residual < NEAR_ONE_HOT else plain.scale)
    nearest = fit.nearest
    if _one_hot(fit):
        unsure = not _plain(nearest) and nearest.residual > CLEAR_SCALED
        return _LossVerdict(
            "projected_mse" if nearest.projected else "mse",
            nearest.scale,
            "the loss may be cross-entropy: the outputs are only proportional to one-hot vectors"
            if unsure
            else "",
        )
    plain, doubt = _plain_residual(fit), ""
    if plain < LIKELY_ONE_HOT:
        return _LossVerdict(
            "mse", 1.0, "the loss may be cross-entropy: the outputs are not near one-hot vectors"
        )
    if plain < PERHAPS_ONE_HOT:
        doubt = "the loss may be squared errors: the outputs are small for logits"
    return _LossVerdict("cross_entropy", 1.0, doubt)


def _vocabulary(fit: Fit, loss: str, hints: Hints) -> tuple[str, bool]:
    """What further rows of the last layer mean for the loss, and whether that is certain."""
    alone, whole = fit.entropy, fit.vocabulary
    if loss != "cross_entropy":
        return (
            "rows of further tokens in the last layer are left out; the training loss may have had them",
            False,
        )
    both = f"cross-entropy {alone.value:.4g} over the elements, {whole.value:.4g} with them in the softmax"
    if abs(whole.value - alone.value) <= SAME_LOSS * whole.value:
        little = f"which changes the loss by less than {SAME_LOSS:.0e} of it"
        return f"logits of further tokens are left out, {little}: {both}", True
    met = [_met(one.value, hints.values) for one in (alone, whole)]
    if (met[0] is None) != (met[1] is None):
        had, why = met[0] is None, "the stored training loss says so"
    elif (
        alone.across is not None
        and whole.across is not None
        and (max(alone.across, whole.across) >= CLEAR_ACROSS * min(alone.across, whole.across))
    ):
        had = whole.across < alone.across
        why = f"gradient across the weights {alone.across:.2f} without, {whole.across:.2f} with them"
    else:
        return (
            f"whether the softmax of the training had the logits of further tokens is not certain: {both}; "
            "they are left out here"
        ), False
    if had:
        return (
            f"the softmax of the training had the logits of further tokens ({why}), which are left out here: "
            f"{both}; loss and spectrum are those over the elements alone"
        ), False
    return f"logits of further tokens were not in the softmax of the training ({why}): {both}", True
