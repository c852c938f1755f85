r"""Fast terms of the squared loss of the group task: Gram products instead of n^2 x q activations.

A neuron is a triple (a, b, c) of coordinates in the orthonormal real Fourier basis, n each, column 0 the
trivial character. With the prediction ``f = (1/2n) sum_j w_j c_j (a_j[x] + b_j[y])^2`` the mean squared
error over all pairs is a constant plus three terms, each with value, gradient and second variation:

- `TrilinearTerm`: ``(1/n) sum_jl w_j w_l (a_j.a_l)(b_j.b_l)(c_j.c_l)`` over the non-trivial part of a, b;
- `SquaresTerm`: ``|C^T W Q|^2``, Q the squares of the neurons, split into a part that depends on x alone,
  one on y alone and the mean;
- `TargetTerm`: ``-(2/n) sum_{k != 0} Re rho_kkk`` and its trivial channel.

Triples of tensors have shape (q, n); fields (directions of change) have shape (k, q, n). One product costs
``18 n q^2 + 32 n^2 q`` flops and passes three times over q x q tables, which live in buffers that are used
again: fresh tables of that size would cost more in page faults than in arithmetic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from manifold.groups.abelian import FiniteAbelianGroup

Triple = tuple[Tensor, Tensor, Tensor]
CACHE_LINE = 8  # doubles


class Term(ABC):
    """One summand of a functional at one measure, in embedded coordinates."""

    @property
    @abstractmethod
    def value(self) -> float:
        """Its share of H."""

    @abstractmethod
    def gradient(self) -> Triple:
        """Its share of grad V(z_j), three tensors (q, n)."""

    @abstractmethod
    def product(self, fields: Triple, interaction: bool, local: bool) -> Triple:
        """Its share of the second variation applied to fields, three tensors (k, q, n)."""

    @abstractmethod
    def kernel(self) -> Tensor | float:
        """Its share of the flat kernel ``sum L'' r r``, shape (q, q)."""

    @abstractmethod
    def local_blocks(self) -> dict[str, Tensor]:
        """Its share of Hess V(z_j): upper blocks ``aa, bb, ab, ac, bc``, each (q, n, n)."""


class TrilinearTerm(Term):
    """``(1/n) sum_jl w_j w_l (a_j.a_l)(b_j.b_l)(c_j.c_l)``, the products of three different factors."""

    def __init__(self, weights: Tensor, neurons: Triple):
        a, b, c = neurons
        # The trivial character of a and b belongs to SquaresTerm; a zero column keeps shapes uniform.
        self.neurons = (_without_trivial(a), _without_trivial(b), c)
        self.scale = 2.0 / a.shape[1]
        self.weighted = tuple(self.scale * weights[:, None] * x for x in self.neurons)
        self.weights = weights
        self.grams = self._tables(3)
        for x, gram in zip(self.neurons, self.grams, strict=True):
            torch.mm(x, x.T, out=gram)

    def _tables(self, count: int) -> Tensor:
        """Uninitialised tables (count, q, q) whose rows are not a power of two apart.

        Rows 2^k apart compete for the same cache lines: passing over columns is then 4 times slower.
        """
        q = len(self.weights)
        shape = (count, q, q + CACHE_LINE)
        return torch.empty(shape, dtype=self.weights.dtype, device=self.weights.device)[..., :q]

    @cached_property
    def _pairs(self) -> Tensor:
        """For each factor the product of the two other Gram matrices."""
        pairs = self._tables(3)
        for i in range(3):
            torch.mul(self.grams[(i + 1) % 3], self.grams[(i + 2) % 3], out=pairs[i])
        return pairs

    @cached_property
    def _weighted_pairs(self) -> Tensor:
        """The same with the scaled weights on the columns, ready to act on fields."""
        return torch.mul(self._pairs, self.scale * self.weights, out=self._tables(3))

    @cached_property
    def _scratch(self) -> Tensor:
        """The changes of three Gram matrices and one more table, used again by every product."""
        return self._tables(4)

    @property
    @override
    def value(self) -> float:
        return float(0.5 * self.scale * self.weights @ (self.grams[0] * self._pairs[0]) @ self.weights)

    @override
    def gradient(self) -> Triple:
        return tuple(pair @ x for pair, x in zip(self._pairs, self.weighted, strict=True))

    @override
    def product(self, fields: Triple, interaction: bool, local: bool) -> Triple:
        out = tuple(torch.empty(d.shape, dtype=d.dtype, device=d.device) for d in fields)
        for i in range(len(fields[0])):
            self._one_product([d[i] for d in fields], [x[i] for x in out], interaction, local)
        # Gram matrices do not see the trivial columns of a and b; their rows must be cut by hand.
        out[0][..., 0] = out[1][..., 0] = 0
        return out

    def _one_product(self, moves: list[Tensor], out: list[Tensor], interaction: bool, local: bool) -> None:
        *changes, table = self._scratch
        for move, x, change in zip(moves, self.neurons, changes, strict=True):
            if interaction and local:
                torch.mm(move, x.T, out=table)
                torch.add(table, table.T, out=change)
            else:  # rows move (local) or columns do (interaction)
                torch.mm(*((move, x.T) if local else (x, move.T)), out=change)
        for i in range(3):
            j, k = (i + 1) % 3, (i + 2) % 3
            torch.mul(changes[j], self.grams[k], out=table).addcmul_(changes[k], self.grams[j])
            torch.mm(table, self.weighted[i], out=out[i])
            if interaction:
                out[i].addmm_(self._weighted_pairs[i], moves[i])

    @override
    def kernel(self) -> Tensor:
        return self.scale * self.grams[0] * self._pairs[0]

    @override
    def local_blocks(self) -> dict[str, Tensor]:
        (a, b, _), (_, wb, wc) = self.neurons, self.weighted
        ga, gb, gc = self.grams
        return {
            "ab": torch.einsum("jl,lx,ly->jxy", gc, a, wb),
            "ac": torch.einsum("jl,lx,ly->jxy", gb, a, wc),
            "bc": torch.einsum("jl,lx,ly->jxy", ga, b, wc),
        }


class SquaresTerm(Term):
    r"""``(1/16) |C^T W (S^2/2)|^2 + (1/4n) |C^T W gamma|^2``, S^2 without its means over the group.

    With m the sum of the means of a and b: ``(a + b)^2 = (at^2 + 2 m at) + (bt^2 + 2 m bt) + 2 at bt + m^2``
    where at, bt have mean zero. The first two functions are ``(at + m)^2`` and ``(bt + m)^2`` up to
    constants; S = [2 (at + m), 2 (bt + m)] / sqrt(n) at the n points each, shape (q, 2n); gamma collects
    all means, ``gamma = |at|^2 + |bt|^2 + m^2``. The product 2 at bt belongs to `TrilinearTerm`.
    Functions are kept as coordinates X of shape (q, 2, n) with m in column 0 of both. With
    ``Q = [S^2/2, (2/sqrt(n)) gamma]``, shape (q, 2n + 1), the term is ``(1/16) |C^T W Q|^2``.
    """

    def __init__(self, weights: Tensor, neurons: Triple, basis: Tensor):
        a, b, self.c = neurons
        self.n = a.shape[1]
        self.weights = weights
        self.weighted_c = weights[:, None] * self.c
        self.basis = 2 * basis
        self.unit = 2 / self.n**0.5  # of the last column of Q
        self.functions = self._functions(a, b)
        self.slopes = self._slopes(self.functions)
        gamma = self._means(self.functions, self.functions)
        self.squares = torch.cat([0.5 * self.slopes.square(), self.unit * gamma[:, None]], dim=1)
        self.moments = self._centre(self.weighted_c.T @ self.squares) / 8

    def _functions(self, a: Tensor, b: Tensor) -> Tensor:
        """Coordinates of ``at + m`` and ``bt + m``, (q, 2, n); linear."""
        functions = torch.stack([a, b], dim=1)
        functions[..., 0] = functions[..., 0].sum(1, keepdim=True)
        return functions

    def _slopes(self, functions: Tensor) -> Tensor:
        return (functions.flatten(0, 1) @ self.basis.T).reshape(len(functions), -1)

    @staticmethod
    def _means(one: Tensor, two: Tensor) -> Tensor:
        """Bilinear form of gamma, (q,): m enters both functions but counts once."""
        return (one * two).sum((1, 2)) - one[:, 0, 0] * two[:, 0, 0]

    def _centre(self, moments: Tensor) -> Tensor:
        """Remove, in place, the mean over each group of n points, (n, 2n + 1); gamma has none."""
        points = moments[:, : 2 * self.n].unflatten(1, (2, self.n))
        points -= points.mean(2, keepdim=True)
        return moments

    def _pull(self, of_slopes: Tensor, of_gamma: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Gradients in a and b, (q, 2, n), of derivatives in S and (derivative in gamma, functions) pairs."""
        total = (of_slopes.reshape(-1, self.n) @ self.basis).reshape(-1, 2, self.n)
        double = 0
        for factor, functions in of_gamma:
            factor = 2 * self.unit * factor
            total.addcmul_(factor[:, None, None], functions)
            double = double + factor * functions[:, 0, 0]
        total[..., 0] = (total[:, 0, 0] + total[:, 1, 0] - double)[:, None]
        return total

    @property
    @override
    def value(self) -> float:
        return 4 * float(self.moments.square().sum())

    @cached_property
    def _covector(self) -> Tensor:
        """Derivative of V in Q of each neuron."""
        return self.c @ self.moments

    @override
    def gradient(self) -> Triple:
        of_slopes = self._covector[:, :-1] * self.slopes
        ga, gb = self._pull(of_slopes, [(self._covector[:, -1], self.functions)]).unbind(1)
        return ga, gb, self.squares @ self.moments.T

    @override
    def product(self, fields: Triple, interaction: bool, local: bool) -> Triple:
        images = [self._one_product(*one, interaction, local) for one in zip(*fields, strict=True)]
        return tuple(
            part[0][None] if len(part) == 1 else torch.stack(part) for part in zip(*images, strict=True)
        )

    def _one_product(self, da: Tensor, db: Tensor, dc: Tensor, interaction: bool, local: bool) -> Triple:
        functions = self._functions(da, db)
        slopes = self._slopes(functions)
        squares = torch.empty_like(self.squares)
        torch.mul(self.slopes, slopes, out=squares[:, :-1])
        squares[:, -1] = 2 * self.unit * self._means(self.functions, functions)
        parts = [(dc, self.moments, squares)] if local else []
        if interaction:
            moments = (self.weights[:, None] * dc).T @ self.squares
            moments = self._centre(moments.addmm_(self.weighted_c.T, squares)).div_(8)
            parts.append((self.c, moments, self.squares))
        (c, moments, squares), *more = parts
        of_squares, of_c = c @ moments, squares @ moments.T
        for c, moments, squares in more:
            of_squares.addmm_(c, moments)
            of_c.addmm_(squares, moments.T)
        of_slopes = of_squares[:, :-1] * self.slopes
        pairs = [(of_squares[:, -1], self.functions)]
        if local:
            of_slopes.addcmul_(self._covector[:, :-1], slopes)
            pairs.append((self._covector[:, -1], functions))
        return (*self._pull(of_slopes, pairs).unbind(1), of_c)

    @override
    def kernel(self) -> Tensor:
        squares = self._centre(self.squares.clone())
        return (self.c @ self.c.T) * (squares @ squares.T / 8)

    @override
    def local_blocks(self) -> dict[str, Tensor]:
        n, of_gamma = self.n, 2 * self.unit * self.moments[:, -1]
        diagonal, slope_c = [], []
        for i in range(2):
            block = slice(i * n, (i + 1) * n)
            weight = self._covector[:, block]
            diagonal.append(torch.einsum("xs,jx,xt->jst", self.basis, weight, self.basis))
            of_points = self.slopes[:, block]
            own = torch.einsum("xs,jx,kx->jsk", self.basis, of_points, self.moments[:, block])
            own[:, 1:, :] += self.functions[:, i, 1:, None] * of_gamma
            slope_c.append(own)
        return self._join_blocks(diagonal, slope_c)

    def _join_blocks(self, diagonal: list[Tensor], slope_c: list[Tensor]) -> dict[str, Tensor]:
        """Let the mean act on both functions: trivial rows of a and b also feel the other's function."""
        n, gamma = self.n, self.unit * self._covector[:, -1]
        (aa, bb), (ac, bc) = diagonal, slope_c
        mean_mean = aa[:, 0, 0] + bb[:, 0, 0] + 2 * gamma
        cross = torch.zeros_like(aa)
        cross[:, 0, 1:], cross[:, 1:, 0] = bb[:, 0, 1:], aa[:, 1:, 0]
        eye = torch.eye(n - 1, dtype=aa.dtype, device=aa.device)
        for block in (aa, bb):
            block[:, 1:, 1:] += 2 * gamma[:, None, None] * eye
        for block in (aa, bb, cross):
            block[:, 0, 0] = mean_mean
        both = ac[:, 0, :] + bc[:, 0, :] + self.functions[:, 0, :1] * (2 * self.unit * self.moments[:, -1])
        ac[:, 0, :] = bc[:, 0, :] = both
        return {"aa": aa, "bb": bb, "ab": cross, "ac": ac, "bc": bc}


class TargetTerm(Term):
    """``-(2/n) sum_{k != 0} Re rho_kkk`` and, for the unprojected loss, ``-(1/n) sum_j w_j c_j0 gamma_j``."""

    def __init__(self, weights: Tensor, neurons: Triple, group: FiniteAbelianGroup, *, projected: bool):
        self.weights, self.neurons, self.n = weights, neurons, group.order
        self.projected = projected
        # real_columns puts the self-conjugate characters first, then the (cos, sin) pairs
        self.fixed = sum(part == "real" for _, part in group.real_columns)
        self._split_neurons = tuple(self._split(x) for x in neurons)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates at real characters, and those of conjugate pairs as complex numbers cos + i sin."""
        # Always a copy: odd row lengths and odd offsets (one neuron) cannot be viewed as complex.
        pairs = x[..., self.fixed :].clone(memory_format=torch.contiguous_format)
        return x[..., : self.fixed], torch.view_as_complex(pairs.unflatten(-1, (-1, 2)))

    def _join(self, real: Tensor, paired: Tensor) -> Tensor:
        """Derivative of the loss from products of coefficients; the trivial character is left at zero.

        With ``z_a = (cos - i sin)/sqrt2`` and ``z_c = (cos + i sin)/sqrt2`` every factor z of a conjugate
        pair brings ``1/sqrt2``, and the pair counts twice in the sum over k.
        """
        out = torch.empty((*real.shape[:-1], self.n), dtype=real.dtype, device=real.device)
        torch.mul(real, -2 / self.n, out=out[..., : self.fixed])
        torch.mul(torch.view_as_real(paired).flatten(-2), -(2**0.5) / self.n, out=out[..., self.fixed :])
        out[..., 0] = 0
        return out

    @property
    @override
    def value(self) -> float:
        _, _, c = self.neurons
        total = float(self.weights @ (self._products()[2] * c).sum(1))
        return total if self.projected else total - float(self.weights @ (self._gamma() * c[:, 0])) / self.n

    def _products(self) -> Triple:
        """Derivatives of ``-(2/n) Re sum_k z_ak z_bk z_ck`` of each neuron, from pairwise products."""
        (ra, pa), (rb, pb), (rc, pc) = self._split_neurons
        return (
            self._join(rb * rc, pb.conj() * pc),
            self._join(ra * rc, pa.conj() * pc),
            self._join(ra * rb, pa * pb),
        )

    def _gamma(self) -> Tensor:
        a, b, _ = self.neurons
        return a.square().sum(1) + b.square().sum(1) + 2 * a[:, 0] * b[:, 0]

    @override
    def gradient(self) -> Triple:
        out = self._products()
        if self.projected:
            return out
        a, b, c = self.neurons
        for x, other, grad in ((a, b, out[0]), (b, a, out[1])):
            grad -= 2 / self.n * c[:, :1] * x
            grad[:, 0] -= 2 / self.n * c[:, 0] * other[:, 0]
        out[2][:, 0] -= self._gamma() / self.n
        return out

    @override
    def product(self, fields: Triple, interaction: bool, local: bool) -> Triple:
        if not local:
            return tuple(torch.zeros_like(d) for d in fields)
        (ra, pa), (rb, pb), (rc, pc) = self._split_neurons
        (dra, dpa), (drb, dpb), (drc, dpc) = (self._split(d) for d in fields)
        out = (
            self._join(drb * rc + rb * drc, dpb.conj() * pc + pb.conj() * dpc),
            self._join(dra * rc + ra * drc, dpa.conj() * pc + pa.conj() * dpc),
            self._join(dra * rb + ra * drb, dpa * pb + pa * dpb),
        )
        if not self.projected:
            self._add_trivial(fields, out)
        return out

    def _add_trivial(self, fields: Triple, out: Triple) -> None:
        """Second variation of ``-(1/n) c_0 gamma``, added to the outputs."""
        a, b, c = self.neurons
        da, db, dc = fields
        scale = -2 / self.n
        for x, dx, other, dother, grad in ((a, da, b, db, out[0]), (b, db, a, da, out[1])):
            grad += scale * (c[:, :1] * dx + dc[..., :1] * x)
            grad[..., 0] += scale * (c[:, 0] * dother[..., 0] + dc[..., 0] * other[:, 0])
        gamma = (a * da).sum(-1) + (b * db).sum(-1) + a[:, 0] * db[..., 0] + da[..., 0] * b[:, 0]
        out[2][..., 0] += scale * gamma

    @override
    def kernel(self) -> float:
        return 0.0

    @override
    def local_blocks(self) -> dict[str, Tensor]:
        q, n = self.neurons[0].shape
        eye = torch.eye(n, dtype=self.weights.dtype, device=self.weights.device)
        columns = {key: [] for key in ("aa", "bb", "ab", "ac", "bc")}
        zero = torch.zeros(1, q, n, dtype=eye.dtype, device=eye.device)
        for unit in eye:
            one = unit.expand(1, q, n)
            of_a = self.product((one, zero, zero), False, True)
            of_b = self.product((zero, one, zero), False, True)
            columns["aa"].append(of_a[0][0])
            columns["bb"].append(of_b[1][0])
            columns["ab"].append(of_b[0][0])
            of_c = self.product((zero, zero, one), False, True)
            columns["ac"].append(of_c[0][0])
            columns["bc"].append(of_c[1][0])
        return {key: torch.stack(value, dim=2) for key, value in columns.items()}


def _without_trivial(x: Tensor) -> Tensor:
    x = x.clone()
    x[..., 0] = 0
    return x
