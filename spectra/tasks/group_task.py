"""The loss of a network on a finite Abelian group as a functional of its particle measure."""

from __future__ import annotations

import copy
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.functionals.base import BOTH, Functional, Linearisation
from spectra.networks.activations import SQUARE, Activation, Polynomial
from spectra.tasks.gram_terms import SquaresTerm, TargetTerm, Term, TrilinearTerm, Triple
from spectra.tasks.pair_terms import CrossEntropy, OutputLoss, PairTerm, SquaredError
from spectra.tasks.shaken import shaken_pair

LOSSES = ("projected_mse", "mse", "cross_entropy")


class GroupTask(Functional):
    """Learning ``(x, y) -> e_{x+y}`` with ``f = (1/2n) sum_j w_j c_j (a_j[x] + b_j[y])^2``.

    Every loss is a mean over pairs. ``projected_mse`` is ``mean |P(f - e)|^2`` with P off the mean of the
    outputs, ``mse`` the same without P (a sum over the n outputs, not a mean), ``cross_entropy`` in nats.
    Points are real orthonormal Fourier coordinates, see `GroupNetwork.measure`.

    Parameters
    ----------
    group : FiniteAbelianGroup
        The group, of order n.
    loss : str
        ``projected_mse``, ``mse`` or ``cross_entropy``.
    centred : bool
        Neurons without the trivial character: D = 3(n - 1) instead of 3n.
    tied : bool
        b = a: D = 2(n - 1) or 2n, points are (a, c).
    pairs : array_like of int, shape (N, 2), optional
        The training pairs (x, y); default: all n^2.
    device : str
        torch device of the points.

    Raises
    ------
    InputError
        For an unknown loss or pairs outside the group.
    """

    activation: Activation = SQUARE

    def __init__(
        self, group: FiniteAbelianGroup, *, loss: str = "projected_mse", centred: bool = False,
        tied: bool = False, pairs: np.ndarray | None = None, device: str | torch.device = "cpu",
    ):  # fmt: skip
        if loss not in LOSSES:
            raise InputError(f"loss: expected one of {', '.join(LOSSES)}, got {loss!r}")
        self.group, self.loss, self.centred, self.tied = group, loss, centred, tied
        self.projected = loss == "projected_mse"
        self.basis = torch.as_tensor(group.real_basis, device=device)
        self.pairs = None if pairs is None else self._check_pairs(np.asarray(pairs))
        self._output_loss: OutputLoss = (
            CrossEntropy() if loss == "cross_entropy" else SquaredError(self.projected)
        )
        self._of_pairs: Activation = SQUARE

    def _check_pairs(self, pairs: np.ndarray) -> np.ndarray:
        n = self.group.order
        if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
            raise InputError(f"pairs: expected shape (N, 2) with N > 0, got {pairs.shape}")
        if pairs.min() < 0 or pairs.max() >= n or len(np.unique(pairs @ [n, 1])) != len(pairs):
            raise InputError(f"pairs: expected distinct pairs of elements 0..{n - 1}")
        return pairs.astype(np.int64)

    @property
    def dimension(self) -> int:
        """Dimension D of one neuron."""
        return (2 if self.tied else 3) * (self.group.order - int(self.centred))

    @property
    def potential_count(self) -> int:
        """Number m of independent potentials of the loss (n >= 3, all pairs): squares times outputs."""
        n = self.group.order
        squares = n * n
        if self.tied:
            squares = n * (n - 1) // 2 if self.centred else n * (n + 1) // 2
        return squares * (n - int(self.projected or self.centred))

    @property
    @override
    def convex(self) -> bool:
        return True  # squared errors and cross-entropy are convex in the outputs, which are linear in mu

    @override
    def metric(self) -> GroupTask:
        """A squared error over all pairs, quadratic and definite in the outputs that span R."""
        loss = "projected_mse" if self.projected or self.centred else "mse"
        return GroupTask(
            self.group, loss=loss, centred=self.centred, tied=self.tied, device=self.basis.device
        )

    # -- coordinates ---------------------------------------------------------------------------------

    def embed(self, points: Tensor) -> Triple:
        """Points (.., D) to the triple of full coordinate tensors (.., n); linear."""
        parts = points.chunk(2 if self.tied else 3, dim=-1)
        if self.centred:
            parts = [torch.nn.functional.pad(part, (1, 0)) for part in parts]
        a, c = parts[0], parts[-1]
        if self.projected and not self.centred:
            c = c.clone()
            c[..., 0] = 0  # the projected loss does not see the mean of c
        return (a, a, c) if self.tied else (a, parts[1], c)

    def restrict(self, triple: Triple) -> Tensor:
        """Adjoint of `embed`: gradients in the triple to gradients in the points."""
        a, b, c = triple
        if self.projected and not self.centred:
            c = c.clone()
            c[..., 0] = 0
        parts = [a + b, c] if self.tied else [a, b, c]
        return torch.cat([part[..., int(self.centred) :] for part in parts], dim=-1)

    # -- the functional ------------------------------------------------------------------------------

    def _pair_table(self, take_back: bool) -> tuple[Tensor, float]:
        """Pairs for which outputs are needed, with the coefficient of each pair's loss.

        With ``take_back`` these are the pairs left out of training, to be taken back from the Gram form
        of all pairs.
        """
        n = self.group.order
        chosen = np.zeros((n, n), bool)
        chosen[tuple(self.pairs.T) if self.pairs is not None else slice(None)] = True
        x, y = np.nonzero(~chosen if take_back else chosen)
        table = torch.as_tensor(np.stack([x, y, self.group.sums[x, y]], axis=1), device=self.basis.device)
        return table, (-1.0 if take_back else 1.0) / int(chosen.sum())

    def uses_gram_form(self, neurons: int) -> bool:
        """Whether q x q Gram products are cheaper than outputs on the pairs, for q neurons.

        Costs of one product in nanoseconds on two cores, fitted to measurements for n = 23 .. 113 and
        q = 256, 512: arithmetic, passes over tables, and the overhead of many small calls.
        """
        n, q = self.group.order, neurons
        if self.loss == "cross_entropy":
            return False
        count = n * n if self.pairs is None else len(self.pairs)
        per_pair = q * (0.24 * n + 3)
        gram = 5e5 + q * q * (0.28 * n + 8) + 0.45 * n * n * q
        return gram + (n * n - count) * per_pair < count * per_pair

    def kink_width(self, measure: ParticleMeasure) -> Tensor | None:
        """None: the square has no kink."""
        return None

    @override
    def shaken(self, seed: int) -> GroupTask:
        other = copy.copy(self)
        other._of_pairs, other._output_loss = shaken_pair(self._of_pairs, self._output_loss, seed)
        return other

    @property
    def constant(self) -> float:
        """Mean squared target over all pairs, 1 or (n - 1)/n: the value of a Gram form at mu = 0."""
        return (self.group.order - 1) / self.group.order if self.projected else 1.0

    @property
    def gram_share(self) -> float:
        """Factor of the Gram form of all pairs: n^2 over the number of training pairs."""
        return 1.0 if self.pairs is None else self.group.order**2 / len(self.pairs)

    def terms(self, measure: ParticleMeasure, *, gram: bool) -> list[tuple[float, Term]]:
        """The summands of the loss with their coefficients, in Gram form or through outputs."""
        weights, neurons = measure.weights, self.embed(measure.points)
        basis = self.basis.to(weights.dtype)
        result: list[tuple[float, Term]] = []
        if gram:
            result += [
                (self.gram_share, TrilinearTerm(weights, neurons)),
                (self.gram_share, SquaresTerm(weights, neurons, basis)),
                (self.gram_share, TargetTerm(weights, neurons, self.group, projected=self.projected)),
            ]
        table, coefficient = self._pair_table(take_back=gram)
        if len(table):
            term = PairTerm(
                weights, neurons, basis, table, self._output_loss, coefficient, activation=self._of_pairs
            )
            result.append((1.0, term))
        return result

    def linearise(self, measure: ParticleMeasure, *, gram: bool | None = None) -> GroupLinearisation:
        """Value, first and second variation at a measure.

        Parameters
        ----------
        measure : ParticleMeasure
            Points of shape (q, D).
        gram : bool, optional
            Force the Gram form or the outputs; default: whichever is cheaper (`uses_gram_form`).

        Returns
        -------
        GroupLinearisation

        Raises
        ------
        InputError
            If the points have another dimension than this task.
        """
        if measure.dimension != self.dimension:
            raise InputError(
                f"measure: expected points of dimension {self.dimension} "
                f"({self.group.name}, centred={self.centred}, tied={self.tied}), got {measure.dimension}"
            )
        return GroupLinearisation(self, measure, self.uses_gram_form(len(measure)) if gram is None else gram)


class GroupLinearisation(Linearisation):
    """A `GroupTask` at one measure; a product costs O(q^2 n) in Gram form, O(q n^3) through outputs."""

    def __init__(self, task: GroupTask, measure: ParticleMeasure, gram: bool):
        self.task, self.measure, self.gram = task, measure, gram
        self.terms = task.terms(measure, gram=gram)

    @cached_property
    @override
    def value(self) -> float:
        total = sum(coefficient * term.value for coefficient, term in self.terms)
        return total + (self.task.gram_share * self.task.constant if self.gram else 0.0)

    @cached_property
    @override
    def gradient(self) -> Tensor:
        return self._gather([(coefficient, term.gradient()) for coefficient, term in self.terms])

    def _gather(self, triples: list[tuple[float, Triple]]) -> Tensor:
        (first, total), *rest = triples
        total = [x if first == 1 else first * x for x in total]
        for coefficient, triple in rest:
            for x, y in zip(total, triple, strict=True):
                x.add_(y, alpha=coefficient)  # terms give tensors of their own
        return self.task.restrict(tuple(total))

    @override
    def product(self, fields: Tensor, parts: tuple[str, ...] = BOTH) -> Tensor:
        moves = self.task.embed(fields)
        flags = ("interaction" in parts, "local" in parts)
        return self._gather([(k, term.product(moves, *flags)) for k, term in self.terms])

    @override
    def flat_kernel(self) -> Tensor:
        kernel = sum(coefficient * term.kernel() for coefficient, term in self.terms)
        return 0.5 * (kernel + kernel.T)

    @override
    def local_blocks(self) -> Tensor:
        n, q = self.task.group.order, len(self.measure)
        full = torch.zeros(q, 3 * n, 3 * n, dtype=self.gradient.dtype, device=self.gradient.device)
        places = {"a": slice(0, n), "b": slice(n, 2 * n), "c": slice(2 * n, 3 * n)}
        for coefficient, term in self.terms:
            for (row, column), block in term.local_blocks().items():
                full[:, places[row], places[column]] += coefficient * block
                if row != column:
                    full[:, places[column], places[row]] += coefficient * block.mT
        return self._restrict_blocks(full)

    def _restrict_blocks(self, full: Tensor) -> Tensor:
        """``E^T full E`` for the embedding E, applied to rows and then to columns."""
        for _ in range(2):
            full = self.task.restrict(tuple(full.mT.chunk(3, dim=-1)))
        return full

    def _sums(self, a: Tensor, b: Tensor) -> Tensor:
        """``a_j[x] + b_j[y]`` of all pairs, (q, n, n); those on a kink exactly zero."""
        values = self.task.basis.to(a.dtype) * self.task.group.order**0.5
        sums = (a @ values.T)[:, :, None] + (b @ values.T)[:, None, :]
        width = self.task.kink_width(self.measure)
        return sums if width is None else torch.where(sums.abs() <= width[:, None, None], 0.0, sums)

    def potential_gradients(self) -> Tensor:
        """Gradients of all outputs ``c_k sigma(a[x] + b[y])`` (k a real character), which span span(R)."""
        task, q, n = self.task, len(self.measure), self.task.group.order
        a, b, c = task.embed(self.measure.points)
        values = task.basis * n**0.5
        sums = self._sums(a, b)
        levels, rise = task.activation.value(sums), task.activation.slope(sums)
        keep = slice(int(task.projected or task.centred), None)
        channels = torch.eye(n, dtype=c.dtype, device=c.device)[keep]
        pieces = []
        for channel in channels:
            head = (c @ channel)[:, None, None, None]
            of_a = head * rise[..., None] * values[:, None, :]
            of_b = head * rise[..., None] * values[None, :, :]
            of_c = levels[..., None] * channel
            pieces.append(task.restrict((of_a, of_b, of_c.expand_as(of_a))).reshape(q, n * n, -1))
        return torch.cat(pieces, dim=1)

    @override
    def slope_norm(self) -> float:
        """Norm of the derivative of the loss in the outputs of its pairs (projected if the loss is)."""
        task = self.task
        count = task.group.order**2 if task.pairs is None else len(task.pairs)
        if task.loss != "cross_entropy":
            return 2 * (max(self.value, 0.0) / count) ** 0.5
        return sum(term.slope_norm() for _, term in self.terms if isinstance(term, PairTerm))

    @override
    def symmetry_fields(self) -> Tensor:
        """``(a, b, -d c)`` of the scaling symmetry; uncentred also ``a + t, b - t`` and a mean of c.

        Every r is homogeneous of degree d (2 for the square) in (a, b) and linear in c, so it does not
        change along ``(t a, t b, c / t^d)`` (activations without a degree have no such symmetry); only the
        sum of the means of a and b matters; and the projected loss does not see the mean of c.
        """
        degree, points = self.task.activation.degree, self.measure.points
        fields = self._invisible()
        if degree is not None:
            blocks = list(points.chunk(2 if self.task.tied else 3, dim=1))
            fields.append(torch.cat([*blocks[:-1], -degree * blocks[-1]], dim=1))
        return torch.stack(fields, dim=1) if fields else super().symmetry_fields()

    def _invisible(self) -> list[Tensor]:
        """Moves that no function of R sees, however large, along an axis or two: (q, D) each."""
        task, points, fields = self.task, self.measure.points, []
        width = points.shape[1] // (2 if task.tied else 3)
        if not task.centred and not task.tied:
            shift = torch.zeros_like(points)
            shift[:, 0], shift[:, width] = 1, -1
            fields.append(shift)
        if not task.centred and task.projected:
            mean = torch.zeros_like(points)
            mean[:, -width] = 1
            fields.append(mean)
        return fields

    @override
    def reached(self) -> Tensor:
        """Without the first layer of a neuron that has no c, and without all of one that is never active.

        A pre-activation at a kink counts as active: some slope there is not zero.
        """
        task = self.task
        a, b, c = task.embed(self.measure.points)
        sums = self._sums(a, b).flatten(1)
        sigma = task.activation
        if sigma.kinked or isinstance(sigma, Polynomial):
            slopes = [one.slope(sums) for one in (sigma, *sigma.choices())]
            rising, level = torch.stack(slopes).any(0).any(1), (sigma.value(sums) != 0).any(1)
        else:  # a tail that is zero in double precision is not zero
            rising, level = torch.ones(len(a), dtype=torch.bool, device=a.device), (sums != 0).any(1)
        rising &= (c != 0).any(1)
        width = self.measure.dimension // (2 if task.tied else 3)
        last = torch.arange(self.measure.dimension, device=a.device) >= self.measure.dimension - width
        return torch.where(last, level[:, None], rising[:, None])

    @property
    @override
    def null_count(self) -> int:
        """Invisible moves of every neuron, and all moves of one at zero, where cubic potentials are flat.

        Cross-entropy does not see the mean of c either, although its potentials do.
        """
        dimension, degree = self.measure.dimension, self.task.activation.degree
        flat = degree is not None and degree >= 2 and not self.task.activation.kinked
        dead = int((self.measure.points == 0).all(1).sum()) if flat else 0
        unseen = len(self._invisible()) + int(self.task.loss == "cross_entropy" and not self.task.centred)
        return dead * dimension + (len(self.measure) - dead) * unseen
