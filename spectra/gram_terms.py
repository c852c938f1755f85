r"""Fast terms of the squared loss of the group task: Gram products instead of n^2 x q activations.

A neuron is a triple (a, b, c) of coordinates in the orthonormal real Fourier basis, n each, column 0 the
trivial character. With the prediction ``f = (1/2n) sum_j w_j c_j (a_j[x] + b_j[y])^2`` the mean squared
error over all pairs is a constant plus three terms, each with value, gradient and second variation:

- `TrilinearTerm`: ``(1/n) sum_jl w_j w_l (a_j.a_l)(b_j.b_l)(c_j.c_l)`` over the non-trivial part of a, b;
- `SquaresTerm`: ``(1/4n) |C^T W Q|^2``, Q the squares of the neurons, split into a part that depends on x
  alone, one on y alone and the mean;
- `TargetTerm`: ``-(2/n) sum_{k != 0} Re rho_kkk`` and its trivial channel.

Triples of tensors have shape (q, n); fields (directions of change) have shape (k, q, n).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from manifold.groups import FiniteAbelianGroup

Triple = tuple[Tensor, Tensor, Tensor]


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
        self.grams = tuple(x @ x.T for x in self.neurons)

    @cached_property
    def _pairs(self) -> Triple:
        """For each factor the product of the two other Gram matrices."""
        a, b, c = self.grams
        return b * c, a * c, a * b

    @property
    @override
    def value(self) -> float:
        return float(0.5 * self.scale * self.weights @ (self.grams[0] * self._pairs[0]) @ self.weights)

    @override
    def gradient(self) -> Triple:
        return tuple(pair @ x for pair, x in zip(self._pairs, self.weighted, strict=True))

    @override
    def product(self, fields: Triple, interaction: bool, local: bool) -> Triple:
        fields = (_without_trivial(fields[0]), _without_trivial(fields[1]), fields[2])
        changes = [_gram_change(d, x, interaction, local) for d, x in zip(fields, self.neurons, strict=True)]
        result = []
        for i in range(3):
            j, k = (i + 1) % 3, (i + 2) % 3
            change = changes[j] * self.grams[k]
            change.addcmul_(changes[k], self.grams[j])
            out = change @ self.weighted[i]
            if interaction:
                out += self._pairs[i] @ (self.scale * self.weights[:, None] * fields[i])
            result.append(out)
        return tuple(result)

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
    r"""``(1/4n) |C^T W Q|^2`` with Q = [alpha, beta, gamma] of each neuron, shape (q, 2n + 1).

    With m the sum of the means of a and b: ``(a + b)^2 = (at^2 + 2 m at) + (bt^2 + 2 m bt) + 2 at bt + m^2``
    where at, bt have mean zero. alpha and beta are the first two functions (divided by sqrt n, so that
    the plain inner product is a mean) without their means, gamma collects all means,
    ``gamma = |at|^2 + |bt|^2 + m^2``. The product 2 at bt belongs to `TrilinearTerm`.
    """

    def __init__(self, weights: Tensor, neurons: Triple, basis: Tensor):
        a, b, self.c = neurons
        self.n = a.shape[1]
        self.weights = weights
        # Function values from coordinates: unit mean square for a unit coordinate.
        self.basis = basis * self.n**0.5
        self.ab = (a, b)
        self.means = a[:, :1] + b[:, :1]
        # d alpha / d at = 2 (at + m), at the n points; values including m come for free from column 0.
        self.slopes = tuple(2 / self.n**0.5 * self._values(x, self.means) for x in self.ab)
        self.features = self._features()
        self.moments = self._contract(self.c, self.features)

    def _values(self, x: Tensor, mean: Tensor | float) -> Tensor:
        """Function values of the non-trivial part of x, plus a mean."""
        return x[..., 1:] @ self.basis[:, 1:].T + mean

    def _features(self) -> Tensor:
        squares = [self.n**0.5 / 4 * slope.square() for slope in self.slopes]  # (at + m)^2 / sqrt n
        gamma = sum(x[:, 1:].square().sum(1, keepdim=True) for x in self.ab) + self.means.square()
        return torch.cat([*squares, gamma], dim=1)

    def _contract(self, c: Tensor, features: Tensor) -> Tensor:
        """``C^T W Q`` with alpha and beta made mean-free, shape (.., n, 2n + 1)."""
        moments = (self.weights[:, None] * c).mT @ features
        for block in (slice(0, self.n), slice(self.n, 2 * self.n)):
            moments[..., block] -= moments[..., block].mean(-1, keepdim=True)
        return moments

    def _feature_change(self, fields: Triple) -> Tensor:
        """Directional derivative of the features, (k, q, 2n + 1)."""
        mean = fields[0][..., :1] + fields[1][..., :1]
        parts = []
        for x, slope in zip(fields[:2], self.slopes, strict=True):
            parts.append(slope * self._values(x, mean))
        gamma = 2 * self.means * mean
        for x, d in zip(self.ab, fields[:2], strict=True):
            gamma = gamma + 2 * (x[:, 1:] * d[..., 1:]).sum(-1, keepdim=True)
        return torch.cat([*parts, gamma], dim=-1)

    def _pull(
        self, covector: Tensor, pair: tuple[Tensor, Tensor], slopes: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """Adjoint of `_feature_change` at neurons ``pair`` with their ``slopes``: gradients in a and b."""
        gamma = covector[..., 2 * self.n :]
        mean = 2 * (pair[0][..., :1] + pair[1][..., :1]) * gamma
        inner = []
        for i, slope in enumerate(slopes):
            at_points = covector[..., i * self.n : (i + 1) * self.n] * slope
            inner.append(at_points @ self.basis[:, 1:])
            mean = mean + at_points.sum(-1, keepdim=True)
        # a mean enters both functions, so both trivial columns receive the same derivative
        return [torch.cat([mean, y + 2 * gamma * x[..., 1:]], -1) for x, y in zip(pair, inner, strict=True)]

    @property
    @override
    def value(self) -> float:
        return float(self.moments.square().sum()) / (4 * self.n)

    @cached_property
    def _covector(self) -> Tensor:
        """Derivative of V in the features of each neuron."""
        return self.c @ self.moments / (2 * self.n)

    @override
    def gradient(self) -> Triple:
        ga, gb = self._pull(self._covector, self.ab, self.slopes)
        return ga, gb, self.features @ self.moments.T / (2 * self.n)

    @override
    def product(self, fields: Triple, interaction: bool, local: bool) -> Triple:
        half = 1 / (2 * self.n)
        change = self._feature_change(fields)
        covector = torch.zeros_like(change)
        out_c = torch.zeros_like(fields[2])
        if interaction:
            moments = self._contract(fields[2], self.features) + self._contract(self.c, change)
            covector += half * (self.c @ moments)
            out_c += half * (self.features @ moments.mT)
        if local:
            covector += half * (fields[2] @ self.moments)
            out_c += half * (change @ self.moments.T)
        out_a, out_b = self._pull(covector, self.ab, self.slopes)
        if local:
            mean = fields[0][..., :1] + fields[1][..., :1]
            slopes = tuple(2 / self.n**0.5 * self._values(x, mean) for x in fields[:2])
            more_a, more_b = self._pull(self._covector, fields[:2], slopes)
            out_a, out_b = out_a + more_a, out_b + more_b
        return out_a, out_b, out_c

    def _centred_features(self) -> Tensor:
        features = self.features.clone()
        for block in (slice(0, self.n), slice(self.n, 2 * self.n)):
            features[:, block] -= features[:, block].mean(1, keepdim=True)
        return features

    @override
    def kernel(self) -> Tensor:
        features = self._centred_features()
        return (self.c @ self.c.T) * (features @ features.T) / (2 * self.n)

    @override
    def local_blocks(self) -> dict[str, Tensor]:
        n = self.n
        diagonal, slope_c = [], []
        for i, (x, slope) in enumerate(zip(self.ab, self.slopes, strict=True)):
            block = slice(i * n, (i + 1) * n)
            weight = 2 / n**0.5 * self._covector[:, block]
            diagonal.append(torch.einsum("xs,jx,xt->jst", self.basis, weight, self.basis))
            own = torch.einsum("xs,jx,kx->jsk", self.basis, slope, self.moments[:, block])
            own[:, 1:, :] += 2 * x[:, 1:, None] * self.moments[:, 2 * n]
            slope_c.append(own / (2 * n))
        return self._join_blocks(diagonal, slope_c)

    def _join_blocks(self, diagonal: list[Tensor], slope_c: list[Tensor]) -> dict[str, Tensor]:
        """Let the mean act on both functions: trivial rows of a and b also feel the other's function."""
        n, gamma = self.n, self._covector[:, 2 * self.n]
        (aa, bb), (ac, bc) = diagonal, slope_c
        mean_mean = aa[:, 0, 0] + bb[:, 0, 0] + 2 * gamma
        cross = torch.zeros_like(aa)
        cross[:, 0, 1:], cross[:, 1:, 0] = bb[:, 0, 1:], aa[:, 1:, 0]
        eye = torch.eye(n - 1, dtype=aa.dtype, device=aa.device)
        for block in (aa, bb):
            block[:, 1:, 1:] += 2 * gamma[:, None, None] * eye
        for block in (aa, bb, cross):
            block[:, 0, 0] = mean_mean
        both = ac[:, 0, :] + bc[:, 0, :] + self.means * self.moments[:, 2 * n] / n
        ac[:, 0, :] = bc[:, 0, :] = both
        return {"aa": aa, "bb": bb, "ab": cross, "ac": ac, "bc": bc}


class TargetTerm(Term):
    """``-(2/n) sum_{k != 0} Re rho_kkk`` and, for the unprojected loss, ``-(1/n) sum_j w_j c_j0 gamma_j``."""

    def __init__(self, weights: Tensor, neurons: Triple, group: FiniteAbelianGroup):
        self.weights, self.neurons, self.n = weights, neurons, group.order
        # real_columns puts the self-conjugate characters first, then the (cos, sin) pairs
        self.fixed = sum(part == "real" for _, part in group.real_columns)

    def _twist(self, x: Tensor, y: Tensor, sign: float) -> Tensor:
        """Product of Fourier coefficients in real coordinates (sign 1), or its adjoint in x (sign -1).

        With ``z_a = (cos - i sin)/sqrt2`` and ``z_c = (cos + i sin)/sqrt2``:
        ``sum_{k != 0} Re(z_ak z_bk z_ck) = twist(a, b, 1) . c = twist(b, c, -1) . a``.
        """
        shape = torch.broadcast_shapes(x.shape, y.shape)
        out = torch.empty(shape, dtype=x.dtype, device=x.device)
        real, u, v = slice(1, self.fixed), slice(self.fixed, None, 2), slice(self.fixed + 1, None, 2)
        xu, xv = x[..., u] * 0.5**0.5, x[..., v] * 0.5**0.5
        torch.sub(xu * y[..., u], sign * xv * y[..., v], out=out[..., u])
        torch.add(xu * y[..., v], sign * xv * y[..., u], out=out[..., v])
        out[..., real] = x[..., real] * y[..., real]
        out[..., 0] = 0
        return out

    @property
    @override
    def value(self) -> float:
        a, b, c = self.neurons
        main = 2 * (self._twist(a, b, 1) * c).sum(1) + self._gamma() * c[:, 0]
        return -float(self.weights @ main) / self.n

    def _gamma(self) -> Tensor:
        a, b, _ = self.neurons
        return a.square().sum(1) + b.square().sum(1) + 2 * a[:, 0] * b[:, 0]

    @override
    def gradient(self) -> Triple:
        a, b, c = self.neurons
        out = [2 * self._twist(b, c, -1), 2 * self._twist(a, c, -1), 2 * self._twist(a, b, 1)]
        for x, other, grad in ((a, b, out[0]), (b, a, out[1])):
            grad += 2 * c[:, :1] * x
            grad[:, 0] += 2 * c[:, 0] * other[:, 0]
        out[2][:, 0] += self._gamma()
        return tuple(-x / self.n for x in out)

    @override
    def product(self, fields: Triple, interaction: bool, local: bool) -> Triple:
        if not local:
            return tuple(torch.zeros_like(d) for d in fields)
        a, b, c = self.neurons
        da, db, dc = fields
        out = [
            2 * (self._twist(db, c, -1) + self._twist(b, dc, -1)),
            2 * (self._twist(da, c, -1) + self._twist(a, dc, -1)),
            2 * (self._twist(da, b, 1) + self._twist(a, db, 1)),
        ]
        for x, dx, other, dother, grad in ((a, da, b, db, out[0]), (b, db, a, da, out[1])):
            grad += 2 * (c[:, :1] * dx + dc[..., :1] * x)
            grad[..., 0] += 2 * (c[:, 0] * dother[..., 0] + dc[..., 0] * other[:, 0])
        out[2][..., 0] += 2 * ((a * da).sum(-1) + (b * db).sum(-1))
        out[2][..., 0] += 2 * (a[:, 0] * db[..., 0] + da[..., 0] * b[:, 0])
        return tuple(-x / self.n for x in out)

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


def _gram_change(field: Tensor, neurons: Tensor, interaction: bool, local: bool) -> Tensor:
    """Change of a Gram matrix: rows move (local), columns move (interaction), or both."""
    rows = field @ neurons.T
    if interaction and local:
        return rows + rows.mT
    return rows if local else rows.mT.contiguous()
