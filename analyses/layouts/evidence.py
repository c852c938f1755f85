"""Evidence for an activation and a loss: a network as read, tried with each of them on all pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from analyses.layouts.activation_names import ACTIVATIONS, activate
from analyses.layouts.layout import Layout
from analyses.layouts.tensor_expressions import Expression
from analyses.layouts.weights import Weights
from manifold.errors import LayoutError
from manifold.groups.abelian import FiniteAbelianGroup

if TYPE_CHECKING:
    from torch import Tensor

    from analyses.checkpoints.reader import Checkpoint

# Activations that no layout can name but trained networks have: one of them that fits as well is a rival.
OTHERS = ("silu", "elu", "softplus", "sigmoid", "sin", "x^3")
CHUNK = 1 << 20  # hidden activities at a time, 8 MiB: few steps, so that threads hardly wait
FITTED = 1e-3  # of the variance of the targets; a mean that is not trained leaves 1/n of it
LEAST_RESIDUAL = 1e-15  # what is left of three terms near 1 is rounding below it
MAX_FLOPS = 2 * 10**10  # of one activation: a few seconds; larger groups are tried on evenly spaced rows


@dataclass(frozen=True)
class SquaredFit:
    """How near the outputs are to one-hot vectors.

    Parameters
    ----------
    scale : float
        Factor before the outputs.
    projected : bool
        Whether the mean over the outputs was taken out.
    residual : float
        Mean squared distance as a share of the best constant predictor's, (n - 1)/n.
    """

    scale: float
    projected: bool
    residual: float


@dataclass(frozen=True)
class EntropyFit:
    """How stationary cross-entropy is at the network.

    Parameters
    ----------
    value : float
        Mean over pairs, nats.
    across : float or None
        Share of the gradient that is not along the weights, 0 to 1. Cross-entropy goes on falling along the
        weights, or decay balances it there; across them it is small for the activation and the loss of the
        training. None where only some pairs were tried.
    """

    value: float
    across: float | None


@dataclass(frozen=True)
class Fit:
    """How one activation explains a network.

    Parameters
    ----------
    activation : str
    accuracy : float
        Share of the pairs whose largest output is right.
    pairs, outputs : int
        So many pairs were tried, each with n outputs.
    squared : tuple of SquaredFit
        Each scale, plain and projected.
    entropy : EntropyFit
        Softmax over the group elements.
    vocabulary : EntropyFit or None
        Softmax over all stored rows of the last layer, where it has more than the group has elements.
    """

    activation: str
    accuracy: float
    pairs: int
    outputs: int
    squared: tuple[SquaredFit, ...]
    entropy: EntropyFit
    vocabulary: EntropyFit | None = None

    @property
    def nearest(self) -> SquaredFit:
        """The best squared fit; plain outputs unless projection or a scale is ten times better.

        Where plain outputs fit, what is left of them is the tail of training and says nothing.
        """
        best = min(self.squared, key=lambda one: one.residual)
        simple = sorted(self.squared, key=lambda one: (one.scale != self.squared[0].scale, one.projected))
        return next(one for one in simple if one.residual <= max(10 * best.residual, FITTED))


@dataclass
class _Sums:
    """Running sums over rows of pairs of one activation."""

    right: int = 0
    entropy: float = 0.0
    vocabulary: float = 0.0
    # Of the outputs o and the one at the right element, o_t: sums of |o|^2, o_t, and without their means.
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])
    right_outputs: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def add_outputs(self, outputs: Tensor, target: Tensor) -> None:
        """Count the outputs of some pairs, shape (pairs, n)."""
        self.right += int((outputs.argmax(1) == target).sum())
        for projected in (False, True):
            left = outputs - outputs.mean(1, keepdim=True) if projected else outputs
            self.squares[projected] += float(left.square().sum())
            self.right_outputs[projected] += float(left.gather(1, target[:, None]).sum())

    def squared(self, scale: float, *, projected: bool, pairs: int, n: int) -> SquaredFit:
        """Mean of ``|scale o - e|^2`` over pairs, from its three terms, as a share of (n - 1)/n."""
        own = 1 - 1 / n if projected else 1.0
        cross = 2 * scale * self.right_outputs[projected] / pairs
        total = scale**2 * self.squares[projected] / pairs - cross + own
        return SquaredFit(scale, projected, max(total, LEAST_RESIDUAL) / (1 - 1 / n))


def fits_of(
    layout: Layout, checkpoint: Checkpoint, activations: Sequence[str], *, scales: Sequence[float],
    pairs: int | None = None, gradient: bool = True,
) -> list[Fit]:  # fmt: skip
    """Try activations on all pairs (of groups with thousands of elements: on evenly spaced rows of pairs).

    Parameters
    ----------
    layout : Layout
        Its activation and loss do not matter.
    checkpoint : Checkpoint
    activations : sequence of str
        Names as in layouts, or of `OTHERS`.
    scales : sequence of float
        Factors tried before the outputs.
    pairs : int, optional
        At most about so many, at least one row of pairs; default: as many as `MAX_FLOPS` allow.
    gradient : bool
        Whether `EntropyFit.across` is wanted (it needs all pairs).

    Returns
    -------
    list of Fit
        Without those whose outputs overflow.

    Raises
    ------
    LayoutError
        If the tensors do not fit the layout.
    """
    tried = (_fit(layout, checkpoint, name, scales, pairs, gradient) for name in activations)
    return [fit for fit in tried if fit is not None]


def all_activations(given: str | None) -> tuple[str, ...]:
    """The activations to compare: the one given, or all known ones and `OTHERS`."""
    return (*ACTIVATIONS, *OTHERS) if given is None else (given,)


def apply(values: Tensor, name: str) -> Tensor:
    """An activation of layouts or of `OTHERS`, element by element."""
    import torch

    if name in ("silu", "elu", "softplus"):
        return getattr(torch.nn.functional, name)(values)
    if name in ("sigmoid", "sin"):
        return getattr(torch, name)(values)
    return activate(values, name)


def sums_of(group: FiniteAbelianGroup, x: Tensor, y: Tensor) -> Tensor:
    """Numbers of x + y, without the table of all sums (groups may be large here)."""
    import torch

    elements = torch.as_tensor(group.elements)
    return torch.as_tensor(group.index((elements[x] + elements[y]).numpy()))


def spare_rows(layout: Layout, checkpoint: Checkpoint, width: int) -> Tensor | None:
    """Rows of the last layer that a slice in ``w_c`` leaves out: the logits of further tokens.

    Parameters
    ----------
    layout : Layout
    checkpoint : Checkpoint
    width : int
        Number of neurons q.

    Returns
    -------
    Tensor or None
        (rows, q); None where nothing is left out or another expression uses it.
    """
    expressions = layout.expressions
    others = {key for name, one in expressions.items() if name != "w_c" for key in one.keys}
    if others & set(expressions["w_c"].keys):
        return None
    for rest in expressions["w_c"].remainders():
        rows = _rows(rest, checkpoint, width)
        if rows is not None:
            return rows
    return None


def _rows(expression: Expression, checkpoint: Checkpoint, width: int) -> Tensor | None:
    try:
        value = expression.evaluate(checkpoint.tensors)
    except LayoutError:
        return None
    if value.ndim != 2 or not value.numel() or width not in value.shape:
        return None
    return value if value.shape[1] == width else value.mT


# -- one activation ------------------------------------------------------------------------------------


def _fit(
    layout: Layout, checkpoint: Checkpoint, name: str, scales: Sequence[float], pairs: int | None,
    gradient: bool,
) -> Fit | None:  # fmt: skip
    import torch

    keys = {key for expression in layout.expressions.values() for key in expression.keys}
    leaves = {key: checkpoint.tensors[key].double().clone() for key in keys if key in checkpoint.tensors}
    for tensor in leaves.values():
        tensor.requires_grad_()
    traced = replace(checkpoint, tensors={**checkpoint.tensors, **leaves})
    parts = layout.parts(traced)
    n, q = parts.a.shape
    spare = spare_rows(layout, traced, q)
    count = MAX_FLOPS // (2 * n * n * q) if pairs is None else pairs // n
    count = max(1, min(n, count))
    gradient = gradient and count == n
    rows = torch.linspace(0, n - 1, count).long()
    network = _Network(parts, spare, _spare_bias(layout, traced, spare), layout.output_scale)
    with torch.set_grad_enabled(gradient):
        sums, gradients = _over_rows(network, FiniteAbelianGroup.parse(layout.group), rows, name)
    tried = count * n
    if not all(map(math.isfinite, (sums.entropy, sums.vocabulary, *sums.squares))):
        return None
    across = [None, None]
    if gradient:
        across = [_across(network.effective, one, list(leaves.values())) for one in gradients]
    return Fit(
        name,
        sums.right / tried,
        tried,
        n,
        tuple(
            sums.squared(scale, projected=projected, pairs=tried, n=n)
            for scale in scales
            for projected in (False, True)
        ),
        EntropyFit(sums.entropy / tried, across[0]),
        None if spare is None else EntropyFit(sums.vocabulary / tried, across[1]),
    )


@dataclass(frozen=True)
class _Network:
    """Effective weights with the rows of further tokens."""

    parts: Weights
    spare: Tensor | None
    spare_bias: Tensor | None
    scale: float

    @property
    def effective(self) -> list[Tensor]:
        """What outputs depend on; all of it depends on the stored tensors."""
        parts = self.parts
        return [
            one
            for one in (parts.a, parts.b, parts.c, parts.constant, self.spare, self.spare_bias)
            if one is not None
        ]

    def detached(self) -> _Network:
        """The same numbers as leaves of a graph of their own."""

        def leaf(one: Tensor | None) -> Tensor | None:
            return None if one is None else one.detach().requires_grad_()

        parts = self.parts
        moved = replace(
            parts, a=leaf(parts.a), b=leaf(parts.b), c=leaf(parts.c), constant=leaf(parts.constant)
        )
        return _Network(moved, leaf(self.spare), leaf(self.spare_bias), self.scale)

    def outputs(self, x: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
        """Outputs of the elements, and of further tokens, for all pairs of some x with every y."""
        parts = self.parts
        b = parts.a if parts.b is None else parts.b
        hidden = apply(parts.a[x][:, None] + b, name).flatten(0, 1)
        outputs = self.scale * hidden @ parts.c.mT
        outputs = outputs if parts.constant is None else outputs + parts.constant
        if self.spare is None:
            return outputs, None
        further = self.scale * hidden @ self.spare.mT
        return outputs, further if self.spare_bias is None else further + self.spare_bias


def _over_rows(
    network: _Network, group: FiniteAbelianGroup, rows: Tensor, name: str
) -> tuple[_Sums, list[list[Tensor | None]]]:
    """Sums over the rows, and the gradients of both cross-entropies in the effective weights."""
    import torch
    from torch.nn.functional import cross_entropy

    n = group.order
    traced = network.detached()
    sums, gradients = _Sums(), [[None] * len(traced.effective) for _ in range(2)]
    y = torch.arange(n)
    for x in rows.split(max(1, CHUNK // (n * traced.parts.a.shape[1]))):
        target = sums_of(group, x.repeat_interleave(n), y.repeat(len(x)))
        outputs, further = traced.outputs(x, name)
        entropy = cross_entropy(outputs, target, reduction="sum")
        losses = [entropy]
        if further is not None:
            losses.append(cross_entropy(torch.cat([outputs, further], 1), target, reduction="sum"))
            sums.vocabulary += float(losses[1].detach())
        sums.entropy += float(entropy.detach())
        if torch.is_grad_enabled():
            for total, loss in zip(gradients, losses, strict=False):
                _accumulate(total, loss, traced.effective)
        sums.add_outputs(outputs.detach(), target)
    return sums, gradients


def _accumulate(total: list[Tensor | None], loss: Tensor, inputs: list[Tensor]) -> None:
    import torch

    for i, one in enumerate(torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)):
        if one is not None:
            total[i] = one if total[i] is None else total[i] + one


def _across(effective: list[Tensor], gradients: list[Tensor | None], stored: list[Tensor]) -> float | None:
    """Share of the gradient in the stored tensors that is not a shrinking of them."""
    import torch

    pairs = [(one, slope) for one, slope in zip(effective, gradients, strict=True) if slope is not None]
    if not pairs:
        return None
    found = torch.autograd.grad(
        [one for one, _ in pairs], stored, [slope for _, slope in pairs], retain_graph=True, allow_unused=True
    )
    known = [
        (slope, weight.detach()) for slope, weight in zip(found, stored, strict=True) if slope is not None
    ]
    steep = sum(float(slope.square().sum()) for slope, _ in known)
    # Entries without any gradient (unused rows, dead neurons) are no part of what was trained.
    size = sum(float(weight[slope != 0].square().sum()) for slope, weight in known)
    along = -sum(float((slope * weight).sum()) for slope, weight in known)
    if not steep or not size or not math.isfinite(steep * size):
        return None
    cosine = max(along, 0.0) / math.sqrt(steep * size)
    return math.sqrt(max(0.0, 1 - cosine**2))


def _spare_bias(layout: Layout, checkpoint: Checkpoint, spare: Tensor | None) -> Tensor | None:
    if spare is None or "output_bias" not in layout.expressions:
        return None
    for value in _values(layout.expressions["output_bias"].remainders(), checkpoint):
        if value.numel() == len(spare):
            return value.reshape(-1)
    return None


def _values(expressions: Iterator[Expression], checkpoint: Checkpoint) -> Iterator[Tensor]:
    for expression in expressions:
        try:
            yield expression.evaluate(checkpoint.tensors)
        except LayoutError:
            continue
