"""The loss of a two-layer network with any activation, through its outputs: generalised potentials."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.functionals.base import Functional
from spectra.networks.activations import Activation
from spectra.networks.group_network import GroupNetwork
from spectra.rounding import EPS
from spectra.tasks.gram_terms import Term
from spectra.tasks.group_task import GroupLinearisation, GroupTask
from spectra.tasks.pair_terms import CrossEntropy, PairTerm, SquaredError
from spectra.tasks.shaken import shaken_pair

KINK_UNITS = 8  # units in the last place that a sum of coordinates is known to


class OutputTask(Functional):
    """Learning ``(x, y) -> e_{x+y}`` with ``f = gain sum_j w_j c_j sigma(a_j[x] + b_j[y])``.

    The potentials are the n^2 x n outputs themselves, ``r_{xy,k}(z) = gain c_k sigma(a[x] + b[y])``: every
    loss of the outputs is a functional of them, whatever sigma is. Losses and coordinates are those of
    `spectra.tasks.group_task.GroupTask` (uncentred), so is the interface.

    Parameters
    ----------
    group : FiniteAbelianGroup
        The group, of order n.
    activation : Activation
        sigma. Atoms of its second derivative at kinks are not part of the second variation.
        Sums that rounding does not tell from a kink are taken to be on it.
    gain : float
        See `spectra.networks.group_network.GroupNetwork.gain`.
    loss : str
        ``projected_mse``, ``mse`` or ``cross_entropy``.
    tied : bool
        b = a.
    pairs : array_like of int, shape (N, 2), optional
        The training pairs; default: all.
    device : str
        torch device of the points.

    Raises
    ------
    InputError
        For an unknown loss or pairs outside the group.
    """

    centred = False

    def __init__(
        self, group: FiniteAbelianGroup, activation: Activation, *, gain: float = 1.0,
        loss: str = "projected_mse", tied: bool = False, pairs: np.ndarray | None = None,
        device: str | torch.device = "cpu",
    ):  # fmt: skip
        frame = GroupTask(group, loss=loss, tied=tied, pairs=pairs, device=device)  # coordinates and pairs
        self.group, self.activation, self.gain, self.loss = group, activation, gain, loss
        self.tied, self.pairs, self.projected, self.basis = tied, frame.pairs, frame.projected, frame.basis
        self.dimension, self.embed, self.restrict = frame.dimension, frame.embed, frame.restrict
        self._output_loss = CrossEntropy() if loss == "cross_entropy" else SquaredError(self.projected)

    @property
    def potential_count(self) -> int:
        """Number m of independent outputs as functions of a neuron.

        ``n^2`` pairs (``n(n+1)/2`` tied) times n outputs, n - 1 for the projected loss; a linear sigma has
        only ``2n - 1`` (n) independent sums.
        """
        n = self.group.order
        if self.activation.degree == 1 and not self.activation.kinked:
            sums = n if self.tied else 2 * n - 1
        else:
            sums = n * (n + 1) // 2 if self.tied else n * n
        return sums * (n - int(self.projected))

    @property
    @override
    def convex(self) -> bool:
        return True  # the losses are convex in the outputs, which are linear in mu

    def terms(self, measure: ParticleMeasure, *, gram: bool = False) -> list[tuple[float, Term]]:
        """The one summand of the loss; there is no Gram form."""
        pairs = self.pairs
        if pairs is None:
            pairs = np.stack(np.divmod(np.arange(self.group.order**2), self.group.order), axis=1)
        table = np.column_stack([pairs, self.group.sums[tuple(pairs.T)]])
        term = PairTerm(
            measure.weights, self.embed(measure.points), self.basis.to(measure.weights.dtype),
            torch.as_tensor(table, device=self.basis.device), self._output_loss, 1 / len(table),
            activation=self.activation, gain=self.gain, width=self.kink_width(measure),
        )  # fmt: skip
        return [(1.0, term)]

    def kink_width(self, measure: ParticleMeasure) -> Tensor | None:
        """What sums ``a_j[x] + b_j[y]`` are known to, shape (q,); None without a kink.

        Weights that cancel exactly do so only up to rounding once they have been through Fourier coordinates.
        """
        if not self.activation.kinked:
            return None
        scale = measure.points.abs() if measure.scale is None else measure.scale
        blocks = scale.chunk(2 if self.tied else 3, dim=1)
        size = sum(block.norm(dim=1) for block in (blocks[0], blocks[0 if self.tied else 1]))
        return KINK_UNITS * EPS * self.group.order**0.5 * size

    @override
    def choices(self) -> list[Functional]:
        return [self._with(other) for other in self.activation.choices()]

    def _with(self, activation: Activation) -> OutputTask:
        return OutputTask(
            self.group, activation, gain=self.gain, loss=self.loss, tied=self.tied, pairs=self.pairs,
            device=self.basis.device,
        )  # fmt: skip

    @override
    def shaken(self, seed: int) -> OutputTask:
        other = copy.copy(self)
        other.activation, other._output_loss = shaken_pair(self.activation, self._output_loss, seed)
        return other

    @override
    def metric(self) -> OutputTask:
        """A squared error over all pairs, quadratic and definite in the outputs that span R."""
        return OutputTask(
            self.group, self.activation, gain=self.gain, loss="projected_mse" if self.projected else "mse",
            tied=self.tied, device=self.basis.device,
        )  # fmt: skip

    def linearise(self, measure: ParticleMeasure) -> GroupLinearisation:
        """Value, first and second variation at a measure of points of shape (q, D)."""
        return GroupLinearisation(self, measure, gram=False)

    def outputs(self, point: Tensor, sample: Tensor) -> Tensor:
        """Some potentials ``r_{xy,k}`` of one neuron, differentiable.

        Parameters
        ----------
        point : Tensor, shape (D,)
        sample : Tensor of int, shape (m, 3)
            Rows x, y, k.

        Returns
        -------
        Tensor, shape (m,)
        """
        x, y, k = sample.unbind(1)
        a, b, c = (self.basis @ part * self.group.order**0.5 for part in self.embed(point))
        return self.gain * c[k] * self.activation.value(a[x] + b[y])


def kink_distances(network: GroupNetwork) -> tuple[int, int, int, float]:
    """How near the pre-activations of a kinked activation come to its kink at 0.

    Parameters
    ----------
    network : GroupNetwork

    Returns
    -------
    double, single : int
        Pre-activations ``a_j[x] + b_j[y]`` within rounding of 0, ``4 eps (|a_j[x]| + |b_j[y]|)``, for the eps
        of double precision (in which everything is computed) and of single precision (in which networks
        are usually trained and stored).
    total : int
        All ``q n^2`` of them.
    nearest : float
        Smallest ``|a_j[x] + b_j[y]| / (|a_j[x]| + |b_j[y]|)`` beyond double rounding; 1 if there is none.
    """
    a = network.a
    b = a if network.tied else network.b
    counts, nearest = [0, 0], 1.0
    for row in a:
        sizes = row.abs() + b.abs()
        distance = (row + b).abs()
        for i, kind in enumerate((torch.float64, torch.float32)):
            counts[i] += int((distance <= 4 * torch.finfo(kind).eps * sizes).sum())
        beyond = distance > 4 * torch.finfo(torch.float64).eps * sizes
        if beyond.any():
            nearest = min(nearest, float((distance[beyond] / sizes[beyond]).min()))
    return *counts, a.shape[0] * b.numel(), nearest
