"""Which eigenvalues move one way only, what moves them, and the condition that is said to make them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifold.measures import ParticleMeasure
from spectra.tasks.group_task import GroupTask

CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class Monotony:
    """Shares of moves of eigenvalues from one step to the next; a move inside both bounds counts for both.

    Parameters
    ----------
    hessian : float
        Share of (eigenvalue, step) moves on which the Hessian eigenvalue does not increase.
    jacobian : float
        Share on which the eigenvalue of the flow's Jacobian (minus the Hessian) does not increase.
    hessian_steps, jacobian_steps : float
        Share of steps on which none of them increases.
    moves : int
        Number of moves.
    """

    hessian: float
    jacobian: float
    hessian_steps: float
    jacobian_steps: float
    moves: int


def monotony(eigenvalues: np.ndarray, errors: np.ndarray) -> Monotony:
    """Count the directions of moves, beyond error bounds.

    Parameters
    ----------
    eigenvalues, errors : ndarray, shape (T, k)
        One column per eigenvalue (sorted place or branch), Hessian sign; NaN where there is none.

    Returns
    -------
    Monotony
        NaN shares without moves.
    """
    change, bound = np.diff(eigenvalues, axis=0), errors[1:] + errors[:-1]
    there = np.isfinite(change)
    if not there.any():
        return Monotony(np.nan, np.nan, np.nan, np.nan, 0)
    falls, rises = change <= bound, change >= -bound
    steps = there.any(axis=1)
    return Monotony(
        float(falls[there].mean()), float(rises[there].mean()),
        float((falls | ~there).all(axis=1)[steps].mean()), float((rises | ~there).all(axis=1)[steps].mean()),
        int(there.sum()),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Moves:
    """Moves of branches from each step to the next, split by what moved.

    An eigenvalue is ``<v, L v>``: an interaction part ``<v, Phi L'' Phi^T v>``, that moves with the Gram
    matrix of the potentials (``K = E <grad r, grad r>``, or ``G = E r r`` for the flat operator) and with the
    curvature L'', and a local part ``<v, Hess V v>``.

    Parameters
    ----------
    change, bound : ndarray, shape (T - 1, B)
        Change of the Hessian eigenvalue and its error bound; NaN where the branch does not go on.
    gram, curvature, local : ndarray, shape (T - 1, B)
        Their sum is the change.
    """

    change: np.ndarray
    bound: np.ndarray
    gram: np.ndarray
    curvature: np.ndarray
    local: np.ndarray

    def leading(self, sign: int) -> dict[str, float]:
        """Of the certain moves up (+1) or down (-1): their number, and the share led by each part."""
        moved = np.isfinite(self.change) & (sign * self.change > self.bound)
        parts = {name: sign * getattr(self, name)[moved] for name in ("gram", "curvature", "local")}
        first = np.argmax(np.stack(list(parts.values())), axis=0)
        shares = {
            f"by_{name}": float((first == i).mean()) if moved.any() else np.nan
            for i, name in enumerate(parts)
        }
        return {"moves": int(moved.sum()), **shares}


def split_moves(
    eigenvalues: np.ndarray, errors: np.ndarray, local: np.ndarray, curvature: np.ndarray | None = None
) -> Moves:
    """Split the moves of branches into the parts that made them.

    Parameters
    ----------
    eigenvalues, errors, local : ndarray, shape (T, B)
        Of each branch, Hessian sign; ``local`` is ``<v, Hess V v>``; NaN where there is none.
    curvature : ndarray, shape (T - 1, B), optional
        By how much the motion of L'' moved each; default 0 (squared errors).

    Returns
    -------
    Moves
    """
    change, by_local = np.diff(eigenvalues, axis=0), np.diff(local, axis=0)
    by_curvature = np.where(np.isfinite(change), 0.0, np.nan) if curvature is None else curvature
    return Moves(change, errors[1:] + errors[:-1], change - by_local - by_curvature, by_curvature, by_local)


def curvature_response(
    task: GroupTask, measure: ParticleMeasure, vectors: Tensor, *, flat: bool = False
) -> np.ndarray:
    """How the outputs on the pairs of a task move along half-densities.

    Parameters
    ----------
    task : GroupTask
    measure : ParticleMeasure
    vectors : Tensor, shape (q D, k)
        ``sqrt(w_j) v(z_j)`` of vector fields v; with ``flat`` (q, k), changes of density.
    flat : bool

    Returns
    -------
    ndarray, shape (P n, k)
        Derivatives of ``f = (1/2n) sum_j w_j c_j (a_j[x] + b_j[y])^2`` of every pair.
    """
    n = task.group.order
    values, root = task.basis * n**0.5, measure.weights.sqrt()

    def outputs(points: Tensor, weights: Tensor) -> Tensor:
        a, b, c = (part @ values.T for part in task.embed(points))
        squares = (a[:, :, None] + b[:, None, :]).square().reshape(len(weights), -1)
        found = (weights[:, None] * squares).T @ c / (2 * n)
        return found if task.pairs is None else found[task.pairs @ [n, 1]]

    moved = np.empty(((n * n if task.pairs is None else len(task.pairs)) * n, vectors.shape[1]))
    for column, vector in enumerate(vectors.T):
        if flat:  # linear in the weights
            change = outputs(measure.points, root * vector)
        else:
            field = vector.reshape(measure.points.shape) / root[:, None]
            change = torch.func.jvp(lambda z: outputs(z, measure.weights), (measure.points,), (field,))[1]
        moved[:, column] = change.reshape(-1).cpu().numpy()
    return moved


def curvature_form(outputs: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The second derivative of the mean cross-entropy at some outputs, along each response.

    Parameters
    ----------
    outputs : ndarray, shape (P, n)
    response : ndarray, shape (P n, k)
        From `curvature_response`.

    Returns
    -------
    ndarray, shape (k,)
        ``mean over pairs of sum_i p_i r_i^2 - (sum_i p_i r_i)^2``, p the softmax: at the outputs of the
        response's own network this is the interaction part of its eigenvalues.
    """
    p = torch.as_tensor(outputs).softmax(1).numpy()[:, :, None]
    moves = np.asarray(response, float).reshape(*outputs.shape, -1)
    return ((p * moves**2).sum(1) - (p * moves).sum(1) ** 2).mean(0)


def output_curvature(outputs: np.ndarray) -> np.ndarray:
    """Eigenvalues of L'' of the mean cross-entropy, outputs as potentials, ascending, shape (P n,).

    Parameters
    ----------
    outputs : ndarray, shape (P, n)
    """
    p = torch.as_tensor(outputs).softmax(1)
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return np.sort(torch.linalg.eigvalsh(blocks).numpy().reshape(-1)) / len(outputs)


def third_derivative_range(outputs: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Extreme eigenvalues of ``sum_k [D^3 L]_k d_k L`` for the mean cross-entropy, outputs as potentials.

    Under a decoupled flow ``d rho_k/dt = -C d_k L`` the chart Hessian moves by ``-C`` times this matrix:
    where it is positive semidefinite (lowest eigenvalue >= 0) Hessian eigenvalues do not increase, where it
    is negative semidefinite they do not decrease. For quadratic losses (squared errors) it is exactly zero.

    Parameters
    ----------
    outputs : ndarray, shape (P, n)
        Outputs f of every pair; potentials in their span with an orthogonal change of coordinates give the
        same eigenvalues up to a positive factor.
    targets : ndarray of int, shape (P,)
        Target index of every pair.

    Returns
    -------
    tuple of float
        Lowest and highest eigenvalue (nats^2 per squared output).
    """
    count, n = outputs.shape
    outputs, targets = torch.as_tensor(outputs), torch.as_tensor(targets)
    low, high = np.inf, -np.inf
    size = max(1, CHUNK_BYTES // (8 * n * n))
    for f, target in zip(outputs.split(size), targets.split(size), strict=True):
        p = f.softmax(1)
        slope = p - torch.nn.functional.one_hot(target, n).to(p)
        change = p * (slope - (p * slope).sum(-1, keepdim=True))  # derivative of p along the slope
        cross = change[:, :, None] * p[:, None, :]
        values = torch.linalg.eigvalsh(torch.diag_embed(change) - cross - cross.mT)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return low / count**2, high / count**2
