"""Value, gradient and Hessian of the objective in the raw weights, pair by pair, from the plain network.

Parameters are ordered (tensor, element of the group, neuron). One pair (x, y) moves the outputs through the
rows a[x], b[y] and all of c:

    df_k/da_j[x] = df_k/db_j[y] = s c_jk sigma'(u_j),    df_k/dc_jk = s sigma(u_j),

and the Hessian is ``sum J^T W J + sum_k g_k d2 f_k`` with the gradient g and the Hessian W of its loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import mpmath
import numpy as np

from analyses.verification.exact.numbers import Numbers
from analyses.verification.exact.problem import RawProblem, activation_tables


@dataclass(frozen=True, eq=False)
class SecondOrder:
    """The objective to second order in the raw weights.

    Parameters
    ----------
    loss, objective : number
        H, and H plus decay.
    outputs : ndarray, shape (P, n)
        Of the pairs of the loss.
    gradient : ndarray, shape (N,)
        Of the objective.
    hessian : ndarray, shape (N, N)
        Of the objective.
    jacobian : ndarray, shape (m, N)
        Gradients of functions that span span(R), over *all* pairs.
    kink : float
        ReLU'(0) that was taken.
    """

    loss: object
    objective: object
    outputs: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    jacobian: np.ndarray | None
    kink: float


def second_order(
    problem: RawProblem, numbers: Numbers, *, kink: float = 0.0, span: bool = True
) -> SecondOrder:
    """Everything about the objective up to second order.

    Parameters
    ----------
    problem : RawProblem
    numbers : Numbers
    kink : float
        ReLU'(0).
    span : bool
        Whether the gradients of the potentials are wanted.

    Returns
    -------
    SecondOrder
        On the ``q D`` coordinates of the problem: raw weights, or orthonormal ones of those without means.
    """
    a, b, c = problem.weights(numbers)
    n, q = problem.n, problem.q
    s = numbers.of(np.array(problem.scale)).item()
    u = a[:, None, :] + b[None, :, :]
    level, slope, bend = activation_tables(problem, numbers, u, kink)
    pairs = problem.pair_list()
    outputs = numbers.mul(s, numbers.dot(level[tuple(pairs.T)], c.T))
    loss, g, curvature = output_loss(problem, numbers, outputs, problem.wanted()[tuple(pairs.T)])
    size = problem.blocks * n * q
    hessian, gradient = numbers.zeros(size, size), numbers.zeros(size)
    first, last = _places(problem)
    for p, (x, y) in enumerate(pairs):
        h = numbers.mul(s, level[x, y])
        d = numbers.mul(s, numbers.mul(c, slope[x, y][None]))  # (n, q)
        w = curvature[p] if curvature.ndim == 3 else curvature
        rows = [first(0, x), first(1, y)]
        wd = numbers.dot(w, d)  # (n, q)
        interaction = numbers.dot(d.T, wd)
        pull = numbers.mul(s, numbers.dot(c.T, g[p]))  # s sum_k c_k g_k
        interaction[np.arange(q), np.arange(q)] += numbers.mul(pull, bend[x, y])
        mixed = numbers.mul(wd.T[:, :, None], h[None, None, :])  # (q, n, q)
        local = numbers.mul(numbers.mul(s, slope[x, y])[:, None], g[p][None, :])  # (q, n)
        mixed[np.arange(q), :, np.arange(q)] += local
        mixed = mixed.reshape(q, n * q)
        for one in rows:
            gradient[one] += numbers.mul(pull, slope[x, y])
            hessian[one, last] += mixed
            hessian[last, one] += mixed.T
            for two in rows:
                hessian[one, two] += interaction
        gradient[last] += numbers.mul(g[p][:, None], h[None, :]).reshape(-1)
        if curvature.ndim == 3:
            hessian[last, last] += _kron(numbers, w, numbers.mul(h[:, None], h[None, :]))
    if curvature.ndim == 2:
        heads = numbers.mul(s, level[tuple(pairs.T)])
        hessian[last, last] += _kron(numbers, curvature, numbers.dot(heads.T, heads))
    objective = _add_decay(problem, numbers, (a, b, c), loss, gradient, hessian)
    jacobian = _potential_gradients(problem, numbers, c, level, slope) if span else None
    if problem.centred:
        basis = contrasts(numbers, n)
        gradient = _without_means(problem, numbers, basis, gradient[None])[0]
        hessian = _without_means(problem, numbers, basis, _without_means(problem, numbers, basis, hessian).T)
        jacobian = None if jacobian is None else _without_means(problem, numbers, basis, jacobian)
    return SecondOrder(loss, objective, outputs, gradient, hessian, jacobian, kink)


def _places(problem: RawProblem):
    """Slices of the parameters of one element of a or b, and of all of c."""
    n, q, tied = problem.n, problem.q, problem.b is None

    def first(tensor: int, element: int) -> slice:
        start = ((0 if tied else tensor) * n + int(element)) * q
        return slice(start, start + q)

    return first, slice((problem.blocks - 1) * n * q, problem.blocks * n * q)


def _kron(numbers: Numbers, w: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    n, q = len(w), len(kernel)
    return numbers.mul(w[:, None, :, None], kernel[None, :, None, :]).reshape(n * q, n * q)


def output_loss(
    problem: RawProblem, numbers: Numbers, outputs: np.ndarray, wanted: np.ndarray
) -> tuple[object, np.ndarray, np.ndarray]:
    """Loss, its gradient (P, n) and its Hessian in the outputs: (n, n), or (P, n, n) where pairs differ."""
    count, n = outputs.shape
    share = numbers.ratio(1, count)
    eye = numbers.of(np.eye(n))
    if problem.loss == "cross_entropy":
        return _cross_entropy(numbers, outputs, wanted, share)
    rest = outputs - eye[wanted]
    project = eye
    if problem.loss == "projected_mse":
        project = eye - numbers.ratio(1, n)
        rest = rest - numbers.mul(rest.sum(1), numbers.ratio(1, n))[:, None]
    loss = numbers.mul(numbers.mul(rest, rest).sum(), share)
    return loss, numbers.mul(rest + rest, share), numbers.mul(project + project, share)


def _cross_entropy(
    numbers: Numbers, outputs: np.ndarray, wanted: np.ndarray, share: object
) -> tuple[object, np.ndarray, np.ndarray]:
    count, n = outputs.shape
    top = outputs.max(1)[:, None]
    shifted = outputs - top
    weights = numbers.apply(mpmath.exp, shifted)
    total = weights.sum(1)
    inverse = numbers.apply(lambda x: 1 / x, total)
    chance = numbers.mul(weights, inverse[:, None])
    eye = numbers.of(np.eye(n))
    rows = np.arange(count)
    surprise = numbers.apply(mpmath.log, total) - shifted[rows, wanted]
    loss = numbers.mul(surprise.sum(), share)
    gradient = chance - eye[wanted]
    # 1 - p of the wanted output as the sum of the others: no cancellation where the network is sure
    others = chance.copy()
    others[rows, wanted] = 0 * others[rows, wanted]
    gradient[rows, wanted] = -others.sum(1)
    curvature = -numbers.mul(chance[:, :, None], chance[:, None, :])
    diagonal = np.arange(n)
    for k in diagonal:
        rest = chance.sum(1) * 0 + np.delete(chance, k, axis=1).sum(1)
        curvature[:, k, k] = numbers.mul(chance[:, k], rest)
    return loss, numbers.mul(gradient, share), numbers.mul(curvature, share)


def _add_decay(
    problem: RawProblem, numbers: Numbers, weights: tuple[np.ndarray, ...], loss: object,
    gradient: np.ndarray, hessian: np.ndarray,
) -> object:  # fmt: skip
    if not problem.decay:
        return loss
    a, b, c = weights
    strength = numbers.of(np.array(problem.decay)).item()
    vector = np.concatenate([w.reshape(-1) for w in ((a, c) if problem.b is None else (a, b, c))])
    gradient += numbers.mul(strength, vector)
    places = np.arange(len(vector))
    hessian[places, places] += strength
    return loss + numbers.mul(numbers.mul(strength, numbers.ratio(1, 2)), numbers.mul(vector, vector).sum())


def _potential_gradients(
    problem: RawProblem, numbers: Numbers, c: np.ndarray, level: np.ndarray, slope: np.ndarray
) -> np.ndarray:
    """Gradients of ``c_k sigma(a[x] + b[y])``, or of ``(c_k - c_last) sigma`` without means, (m, N)."""
    n, q = problem.n, problem.q
    channels = np.eye(n) if problem.sees_mean else np.eye(n)[:-1] - np.eye(n)[-1]
    heads = numbers.dot(numbers.of(channels), c)  # (channels, q)
    first, last = _places(problem)
    rows = numbers.zeros(n * n, len(channels), problem.blocks * n * q)
    whole = numbers.of(channels)
    for x in range(n):
        for y in range(n):
            table = rows[x * n + y]
            joint = numbers.mul(heads, slope[x, y][None])
            table[:, first(0, x)] += joint
            table[:, first(1, y)] += joint
            table[:, last] += numbers.mul(whole[:, :, None], level[x, y][None, None]).reshape(
                len(channels), -1
            )
    return rows.reshape(n * n * len(channels), -1)


def contrasts(numbers: Numbers, n: int) -> np.ndarray:
    """Orthonormal basis of the vectors without mean (Helmert), shape (n, n - 1)."""
    basis = numbers.zeros(n, n - 1)
    for k in range(1, n):
        basis[:k, k - 1] = numbers.root(1, k * (k + 1))
        basis[k, k - 1] = -numbers.root(k, k + 1)
    return basis


def _without_means(problem: RawProblem, numbers: Numbers, basis: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows in raw weights to rows in coordinates of weights without mean."""
    n, q = problem.n, problem.q
    shaped = rows.reshape(len(rows) * problem.blocks, n, q).transpose(1, 0, 2).reshape(n, -1)
    moved = numbers.dot(basis.T.copy(), shaped).reshape(n - 1, -1, q).transpose(1, 0, 2)
    return moved.reshape(len(rows), -1)
