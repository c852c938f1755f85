"""The loss of the group task through its outputs on a list of pairs, in chunks of bounded memory.

Used where no Gram form exists (cross-entropy, activations other than the square) and for the few pairs a
train/test split leaves out.
Cost O(pairs x n x q) per gradient; the outputs of one chunk are all that is ever held.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from spectra.networks.activations import SQUARE, Activation
from spectra.tasks.gram_terms import Term, Triple

CHUNK_BYTES = 64 * 2**20
TABLE_BYTES = 192 * 2**20  # tables over all pairs that are kept between products


class OutputLoss(ABC):
    """A loss of one output vector f in R^n and its target index; batches along axis 0.

    Attributes
    ----------
    sees_mean : bool
        Whether the loss changes when a number is added to all outputs.
    """

    sees_mean: bool = True

    @abstractmethod
    def value(self, f: Tensor, target: Tensor) -> Tensor:
        """Loss per row, shape (P,)."""

    @abstractmethod
    def gradient(self, f: Tensor, target: Tensor) -> Tensor:
        """Derivative in f, shape (P, n)."""

    @abstractmethod
    def curvature(self, f: Tensor, change: Tensor) -> Tensor:
        """Second derivative at f applied to ``change``, shape (P, n)."""

    @abstractmethod
    def curvature_root(self, f: Tensor, features: Tensor) -> Tensor:
        """``B^T features`` with ``B B^T`` the second derivative; features (q, P, n)."""


class SquaredError(OutputLoss):
    """``|P(f - e)|^2`` summed over outputs, P the projection off the mean when ``projected``."""

    def __init__(self, projected: bool):
        self.projected = projected

    def _project(self, f: Tensor) -> Tensor:
        return f - f.mean(-1, keepdim=True) if self.projected else f

    def _residual(self, f: Tensor, target: Tensor) -> Tensor:
        return self._project(f - torch.nn.functional.one_hot(target, f.shape[-1]).to(f))

    @override
    def value(self, f: Tensor, target: Tensor) -> Tensor:
        return self._residual(f, target).square().sum(-1)

    @override
    def gradient(self, f: Tensor, target: Tensor) -> Tensor:
        return 2 * self._residual(f, target)

    @override
    def curvature(self, f: Tensor, change: Tensor) -> Tensor:
        return 2 * change  # nothing to project: the c of a projected loss have no mean

    @override
    def curvature_root(self, f: Tensor, features: Tensor) -> Tensor:
        return 2**0.5 * self._project(features)


class CrossEntropy(OutputLoss):
    """``-log softmax(f)[target]`` in nats.

    Of saturated outputs one probability is 1 to the last digit, and what counts is how far it is from 1: the
    sum of the others, never a difference.
    """

    sees_mean = False

    @override
    def value(self, f: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(f, target, reduction="none")

    @override
    def gradient(self, f: Tensor, target: Tensor) -> Tensor:
        p = f.softmax(-1).scatter(-1, target[:, None], 0.0)
        return p.scatter(-1, target[:, None], -p.sum(-1, keepdim=True))

    @override
    def curvature(self, f: Tensor, change: Tensor) -> Tensor:
        p = f.softmax(-1)
        return p * self._centred(p, change)

    @override
    def curvature_root(self, f: Tensor, features: Tensor) -> Tensor:
        p = f.softmax(-1)
        return p.sqrt() * self._centred(p, features)

    @staticmethod
    def _centred(p: Tensor, change: Tensor) -> Tensor:
        """``change - sum p change``, from what it is at the most likely output."""
        top = p.argmax(-1, keepdim=True).expand(*change.shape[:-1], 1)
        apart = change - change.gather(-1, top)
        return apart - (p * apart).sum(-1, keepdim=True)


class ListChunk:
    """Some pairs, in any order."""

    def __init__(self, table: Tensor):
        self.x, self.y, self.target = table.unbind(1)

    def gather(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """``a[x] + b[y]`` of every pair, written into ``out`` (P, q)."""
        return torch.index_select(a, 0, self.x, out=out).add_(b[self.y])

    def scatter(self, out_a: Tensor, out_b: Tensor, of_sums: Tensor) -> None:
        """Adjoint of `gather`, added to the outputs."""
        out_a.index_add_(0, self.x, of_sums)
        out_b.index_add_(0, self.y, of_sums)


class GridChunk:
    """All pairs of some rows x: gather and scatter are broadcasts and plain sums, several times faster."""

    def __init__(self, table: Tensor, n: int):
        self.x, self.y, self.target = table.unbind(1)
        self.rows, self.n = slice(int(self.x[0]), int(self.x[-1]) + 1), n

    def gather(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """``a[x] + b[y]`` of every pair, written into ``out`` (P, q)."""
        torch.add(a[self.rows, None, :], b, out=out.view(-1, *b.shape))
        return out

    def scatter(self, out_a: Tensor, out_b: Tensor, of_sums: Tensor) -> None:
        """Adjoint of `gather`, added to the outputs."""
        grid = of_sums.reshape(-1, self.n, of_sums.shape[-1])
        out_a[self.rows] += grid.sum(1)
        out_b += grid.sum(0)


@dataclass(frozen=True, eq=False)
class _Tables:
    """A chunk of P pairs at the linearisation point.

    With u = a[x] + b[y]: ``values`` sigma(u), ``rises`` sigma'(u) and ``bends`` sigma''(u) (slope @ c),
    (P, q); ``outputs`` f and ``slope``, the derivative of the loss in f, (P, n).
    """

    chunk: ListChunk | GridChunk
    values: Tensor
    rises: Tensor
    bends: Tensor
    outputs: Tensor
    slope: Tensor


class PairTerm(Term):
    """``coefficient * sum over pairs of loss(f(x, y), x + y)``.

    The outputs are ``f = gain sum_j w_j c_j sigma(a_j[x] + b_j[y])``.

    Parameters
    ----------
    weights : Tensor, shape (q,)
        Particle weights.
    neurons : Triple
        Embedded coordinates (q, n) in the orthonormal real basis.
    basis : Tensor, shape (n, n)
        That basis.
    pairs : Tensor of int, shape (N, 3)
        Rows x, y, x + y.
    loss : OutputLoss
        Loss of one output vector.
    coefficient : float
        Usually 1/N, or minus that to take pairs back.
    activation : Activation
        sigma.
    gain : float, optional
        Default ``1/(2n)``, that of quadratic networks.
    width : Tensor, shape (q,), optional
        Sums ``a[x] + b[y]`` no larger than this are taken for zero, where activations have their kink.
    """

    def __init__(
        self, weights: Tensor, neurons: Triple, basis: Tensor, pairs: Tensor, loss: OutputLoss,
        coefficient: float, *, activation: Activation = SQUARE, gain: float | None = None,
        width: Tensor | None = None,
    ):  # fmt: skip
        self.n, self.width = basis.shape[0], width
        self.sigma, self.gain = activation, 1 / (2 * self.n) if gain is None else gain
        self.basis = basis * self.n**0.5
        self.weights, self.loss, self.coefficient, self.pairs = weights, loss, coefficient, pairs
        a, b, c = neurons
        if not loss.sees_mean:  # a large one would round the outputs that count
            c = torch.cat([torch.zeros_like(c[..., :1]), c[..., 1:]], dim=-1)
        self.a, self.b, self.c = self._positions((a, b, c))
        self._weighted_c = self.c * weights
        self._kept: list[_Tables] | None = None
        self._buffers: Tensor | None = None

    def _positions(self, triple: Triple) -> list[Tensor]:
        """Weights at group elements, element along axis -2 and neuron along axis -1."""
        return [self.basis @ x.mT for x in triple]

    def _coordinates(self, triple: list[Tensor]) -> Triple:
        return tuple(x.mT @ self.basis for x in triple)

    def _chunks(self) -> Iterator[ListChunk | GridChunk]:
        size = max(1, CHUNK_BYTES // (8 * max(self.a.shape[1], self.n)))
        if len(self.pairs) == self.n**2:  # a complete list is in row order
            for chunk in self.pairs.split(max(1, size // self.n) * self.n):
                yield GridChunk(chunk, self.n)
        else:
            for chunk in self.pairs.split(size):
                yield ListChunk(chunk)

    def _tables(self) -> Iterable[_Tables]:
        """What every product needs of each chunk: kept where it fits, made anew where it does not."""
        if 8 * len(self.pairs) * (3 * self.a.shape[1] + 2 * self.n) > TABLE_BYTES:
            return map(self._table, self._chunks())
        if self._kept is None:
            self._kept = [self._table(chunk) for chunk in self._chunks()]
        return self._kept

    def _table(self, chunk: ListChunk | GridChunk) -> _Tables:
        sums = chunk.gather(
            self.a, self.b, self._scratch(chunk)[0]
        ).clone()  # sigma may return what it is given
        if self.width is not None:
            sums[sums.abs() <= self.width] = 0.0
        values, rises = self.sigma.value(sums), self.sigma.slope(sums)
        outputs = self.gain * values @ self._weighted_c.T
        slope = self.loss.gradient(outputs, chunk.target)
        return _Tables(chunk, values, rises, self.sigma.curvature(sums) * (slope @ self.c), outputs, slope)

    def _scratch(self, chunk: ListChunk | GridChunk) -> Tensor:
        """Three tables (P, q) that are used again: fresh ones cost more in page faults than in work."""
        count = len(chunk.target)
        if self._buffers is None or self._buffers.shape[1] < count:
            shape = (3, count, self.a.shape[1])
            self._buffers = torch.empty(shape, dtype=self.a.dtype, device=self.a.device)
        return self._buffers[:, :count]

    @property
    @override
    def value(self) -> float:
        return self.coefficient * sum(
            float(self.loss.value(table.outputs, table.chunk.target).sum()) for table in self._tables()
        )

    @override
    def gradient(self) -> Triple:
        out = [torch.zeros_like(x) for x in (self.a, self.b, self.c)]
        for table in self._tables():
            of_sums = torch.mm(table.slope, self.c, out=self._scratch(table.chunk)[0]).mul_(table.rises)
            table.chunk.scatter(out[0], out[1], of_sums)
            out[2] += table.slope.T @ table.values
        return self._pull(out)

    def _pull(self, out: list[Tensor]) -> Triple:
        """Coordinates of derivatives in the weights."""
        return self._coordinates([self.coefficient * self.gain * g for g in out])

    @override
    def product(self, fields: Triple, interaction: bool, local: bool) -> Triple:
        moves = self._positions(fields)
        out = [torch.zeros_like(d) for d in moves]
        for table in self._tables():
            for i in range(len(moves[0])):
                self._add_product(table, [move[i] for move in moves], [x[i] for x in out], interaction, local)
        return self._pull(out)

    def _add_product(
        self, table: _Tables, move: list[Tensor], out: list[Tensor], interaction: bool, local: bool
    ) -> None:
        da, db, dc = move
        dsums, changes, of_sums = self._scratch(table.chunk)
        table.chunk.gather(da, db, dsums)
        torch.mul(table.rises, dsums, out=changes)
        if interaction:
            # outputs first: n rows of P are twice as fast a product as P rows of n
            change = (dc * (self.gain * self.weights)) @ table.values.T
            change.addmm_(self._weighted_c, changes.T, alpha=self.gain)
            bent = self.loss.curvature(table.outputs, change.T)
            out[2].addmm_(bent.T, table.values)
            torch.mm(bent, self.c, out=of_sums)
        if local:
            out[2].addmm_(table.slope.T, changes)
            torch.addmm(of_sums, table.slope, dc, beta=int(interaction), out=of_sums)
        of_sums.mul_(table.rises)
        if local:
            of_sums.addcmul_(table.bends, dsums)
        table.chunk.scatter(out[0], out[1], of_sums)

    def slope_norm(self) -> float:
        """Norm of the derivative in all outputs of the pairs."""
        total = sum(float(table.slope.square().sum()) for table in self._tables())
        return abs(self.coefficient) * total**0.5

    @override
    def kernel(self) -> Tensor:
        q = len(self.weights)
        total = torch.zeros(q, q, dtype=self.a.dtype, device=self.a.device)
        for table in self._tables():
            step = max(1, CHUNK_BYTES // (8 * q * self.n))
            for low in range(0, len(table.values), step):
                part = slice(low, low + step)
                features = self.gain * table.values[part].T[:, :, None] * self.c.T[:, None, :]
                root = self.loss.curvature_root(table.outputs[part], features).reshape(q, -1)
                total += root @ root.T
        return self.coefficient * total

    @override
    def local_blocks(self) -> dict[str, Tensor]:
        n, q = self.n, len(self.weights)
        kind = {"dtype": self.a.dtype, "device": self.a.device}
        of_ab = torch.zeros(n * n, q, **kind)
        of_ac, of_bc = torch.zeros(n, n, q, **kind), torch.zeros(n, n, q, **kind)
        for table in self._tables():
            chunk = table.chunk
            of_ab.index_add_(0, chunk.x * n + chunk.y, table.bends)
            step = max(1, CHUNK_BYTES // (8 * q * n))
            for low in range(0, len(table.values), step):
                part = slice(low, low + step)
                mixed = table.slope[part, :, None] * table.rises[part, None, :]
                of_ac.index_add_(0, chunk.x[part], mixed)
                of_bc.index_add_(0, chunk.y[part], mixed)
        of_ab = of_ab.reshape(n, n, q)
        diagonal = [torch.diag_embed(of_ab.sum(axis).T).permute(1, 2, 0) for axis in (1, 0)]
        tables = {"aa": diagonal[0], "bb": diagonal[1], "ab": of_ab, "ac": of_ac, "bc": of_bc}
        scale = self.coefficient * self.gain
        turn = self.basis
        return {key: scale * (turn.T @ table.permute(2, 0, 1) @ turn) for key, table in tables.items()}
