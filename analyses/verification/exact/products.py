"""Gradient and Hessian products of the plain network in doubles, and the ends of its spectrum by Lanczos.

For networks whose Hessian does not fit: a certificate of another kind, said as such.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from analyses.verification.exact.numbers import DOUBLE
from analyses.verification.exact.problem import RawProblem, activation_tables

STEPS = 160
SLACK = 64.0  # rounding units of a product, times the root of the dimension


class PlainProducts:
    """The objective in raw weights through its outputs, one row of pairs at a time.

    Parameters
    ----------
    problem : RawProblem
    span : bool
        Compress to the complement of the symmetry directions, of which T_R is a part.
    """

    def __init__(self, problem: RawProblem, *, span: bool = False):
        self.problem, self.span = problem, span
        self.a, self.b, self.c = problem.weights(DOUBLE)
        u = self.a[:, None, :] + self.b[None, :, :]
        self.level, self.slope, self.bend = _tables(problem, u)
        self.share = np.zeros((problem.n, problem.n))
        self.share[tuple(problem.pair_list().T)] = 1 / len(problem.pair_list())
        self.wanted = problem.wanted()
        self.symmetries = symmetry_directions(problem, (self.a, self.b, self.c)) if span else None
        self.outputs = problem.scale * self.level @ self.c.T
        self.loss, self.g = self._loss()

    def _loss(self) -> tuple[float, np.ndarray]:
        problem, n = self.problem, self.problem.n
        target = np.eye(n)[self.wanted]
        if problem.loss == "cross_entropy":
            shifted = self.outputs - self.outputs.max(-1, keepdims=True)
            weights = np.exp(shifted)
            total = weights.sum(-1, keepdims=True)
            self.chance = weights / total
            surprise = np.log(total[..., 0]) - np.take_along_axis(shifted, self.wanted[..., None], -1)[..., 0]
            return float((self.share * surprise).sum()), self.share[..., None] * (self.chance - target)
        rest = self.outputs - target
        if problem.loss == "projected_mse":
            rest = rest - rest.mean(-1, keepdims=True)
        return float((self.share * (rest**2).sum(-1)).sum()), 2 * self.share[..., None] * rest

    def _curved(self, moves: np.ndarray) -> np.ndarray:
        """Hessian of the loss in the outputs times moves of the outputs, (n, n, n)."""
        if self.problem.loss == "cross_entropy":
            inside = moves - (self.chance * moves).sum(-1, keepdims=True)
            return self.share[..., None] * self.chance * inside
        if self.problem.loss == "projected_mse":
            moves = moves - moves.mean(-1, keepdims=True)
        return 2 * self.share[..., None] * moves

    @property
    def objective(self) -> float:
        """H plus decay."""
        return self.loss + 0.5 * self.problem.decay * sum(float((w**2).sum()) for w in self._stored())

    def _stored(self) -> tuple[np.ndarray, ...]:
        return (self.a, self.c) if self.problem.b is None else (self.a, self.b, self.c)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Tensors, group elements, neurons of a direction."""
        return self.problem.blocks, self.problem.n, self.problem.q

    def gradient(self) -> np.ndarray:
        """Of the objective, in the shape of a direction."""
        pull = self.problem.scale * (self.g @ self.c) * self.slope
        of_c = self.problem.scale * np.einsum("xyk,xyj->kj", self.g, self.level, optimize=True)
        return self._gathered(pull.sum(1), pull.sum(0), of_c) + self.problem.decay * np.stack(self._stored())

    def _gathered(self, of_a: np.ndarray, of_b: np.ndarray, of_c: np.ndarray) -> np.ndarray:
        parts = [of_a + of_b, of_c] if self.problem.b is None else [of_a, of_b, of_c]
        out = np.stack(parts)
        return out - out.mean(1, keepdims=True) if self.problem.centred else out

    def product(self, vector: np.ndarray) -> np.ndarray:
        """Hessian of the objective times a direction, compressed where that was asked."""
        moves = self._inside(vector.reshape(self.shape))
        da, dc = moves[0], moves[-1]
        db = da if self.problem.b is None else moves[1]
        s = self.problem.scale
        du = da[:, None, :] + db[None, :, :]
        rise = self.slope * du
        dg = self._curved(s * (rise @ self.c.T + self.level @ dc.T))
        pull = s * ((dg @ self.c + self.g @ dc) * self.slope + (self.g @ self.c) * self.bend * du)
        of_c = s * np.einsum("xyk,xyj->kj", dg, self.level, optimize=True)
        of_c += s * np.einsum("xyk,xyj->kj", self.g, rise, optimize=True)
        image = self._gathered(pull.sum(1), pull.sum(0), of_c) + self.problem.decay * moves
        return self._inside(image).reshape(-1)

    def _inside(self, moves: np.ndarray) -> np.ndarray:
        if self.problem.centred:
            moves = moves - moves.mean(1, keepdims=True)
        if self.symmetries is None:
            return moves
        inner = np.einsum("gtxj,txj->gj", self.symmetries, moves)
        return moves - np.einsum("gtxj,gj->txj", self.symmetries, inner)


def _tables(problem: RawProblem, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if problem.activation == "tanh":
        t = np.tanh(u)
        return t, 1 / np.cosh(np.clip(u, -350, 350)) ** 2, -2 * t / np.cosh(np.clip(u, -350, 350)) ** 2
    if problem.activation == "gelu":
        bell = np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
        return u * ndtr(u), ndtr(u) + u * bell, (2 - u**2) * bell
    return activation_tables(problem, DOUBLE, u, 0.0)


def symmetry_directions(problem: RawProblem, weights: tuple[np.ndarray, ...]) -> np.ndarray:
    """Orthonormal directions per neuron that no potential sees, zeros where there is none.

    ``(a, b, -d c)``, the shift between the means of a and b, and the mean of c where it is not seen.

    Parameters
    ----------
    problem : RawProblem
    weights : tuple of ndarray
        a, b and c.

    Returns
    -------
    ndarray, shape (g, tensors, n, q)
    """
    a, b, c = weights
    fields = []
    if problem.degree is not None:
        parts = (a, -problem.degree * c) if problem.b is None else (a, b, -problem.degree * c)
        fields.append(np.stack(parts))
    if not problem.centred:
        one = np.ones_like(a)
        if problem.b is not None:
            fields.append(np.stack([one, -one, 0 * one]))
        if not problem.sees_mean:
            fields.append(np.stack([0 * one] * (problem.blocks - 1) + [one]))
    found: list[np.ndarray] = []
    for field in reversed(fields):  # the fixed ones first: what is left of the scaling is accurate
        size = np.sqrt((field**2).sum((0, 1)))
        for _ in range(2):
            for known in found:
                field = field - known * (known * field).sum((0, 1))
        rest = np.sqrt((field**2).sum((0, 1)))
        found.append(np.where(rest > 1e-10 * size, field / np.where(rest > 0, rest, 1), 0.0))
    return np.array(found).reshape(-1, problem.blocks, *a.shape)


@dataclass(frozen=True, eq=False)
class Ends:
    """Ritz values of a Krylov space, ascending, each with the norm of its residual.

    Parameters
    ----------
    values, residuals : ndarray
    norm : float
        Largest modulus.
    rounding : float
        Of the products.
    """

    values: np.ndarray
    residuals: np.ndarray
    norm: float
    rounding: float


def lanczos_ends(problem: RawProblem, *, span: bool, seed: int, steps: int = STEPS) -> Ends:
    """Lanczos with full orthogonalisation in doubles, in canonical units.

    Parameters
    ----------
    problem : RawProblem
    span : bool
        On the complement of the symmetries.
    seed : int
    steps : int

    Returns
    -------
    Ends
        By Cauchy the i-th largest Ritz value is never above the i-th largest eigenvalue, and within its
        residual of some eigenvalue.
    """
    operator = PlainProducts(problem, span=span)
    size = int(np.prod(operator.shape))
    vector = np.random.default_rng(seed).normal(size=size)
    vector = operator._inside(vector.reshape(operator.shape)).reshape(-1)
    basis = [vector / np.linalg.norm(vector)]
    diagonal, beside = [], []
    for _ in range(min(steps, size)):
        image = operator.product(basis[-1])
        diagonal.append(float(basis[-1] @ image))
        known = np.array(basis)
        for _ in range(2):
            image = image - known.T @ (known @ image)
        beside.append(float(np.linalg.norm(image)))
        if beside[-1] <= 1e-13 * max(map(abs, diagonal)):
            break
        basis.append(image / beside[-1])
    table = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
    values, vectors = np.linalg.eigh(table)
    norm = float(np.abs(values).max()) * problem.raw_scale
    rounding = SLACK * DOUBLE.eps * size**0.5 * norm
    return Ends(
        values * problem.raw_scale, beside[-1] * np.abs(vectors[-1]) * problem.raw_scale, norm, rounding
    )
