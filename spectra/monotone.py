"""Which eigenvalues move one way only, and the condition that is said to make them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20


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


def third_derivative_range(outputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Extreme eigenvalues of ``sum_k [D^3 L]_k d_k L`` for the mean cross-entropy, outputs as potentials.

    Under a decoupled flow ``d rho_k/dt = -C d_k L`` the chart Hessian moves by ``-C`` times this matrix:
    where it is positive semidefinite (lowest eigenvalue >= 0) Hessian eigenvalues do not increase, where it
    is negative semidefinite they do not decrease. For quadratic losses (squared errors) it is exactly zero.

    Parameters
    ----------
    outputs : Tensor, shape (P, n)
        Outputs f of every pair; potentials in their span with an orthogonal change of coordinates give the
        same eigenvalues up to a positive factor.
    targets : Tensor of int, shape (P,)
        Target index of every pair.

    Returns
    -------
    tuple of float
        Lowest and highest eigenvalue (nats^2 per squared output).
    """
    count, n = outputs.shape
    low, high = np.inf, -np.inf
    size = max(1, CHUNK_BYTES // (8 * n * n))
    for f, target in zip(outputs.split(size), targets.split(size), strict=True):
        p = f.softmax(-1)
        slope = p - torch.nn.functional.one_hot(target, n).to(p)
        change = p * (slope - (p * slope).sum(-1, keepdim=True))  # derivative of p along the slope
        cross = change[:, :, None] * p[:, None, :]
        values = torch.linalg.eigvalsh(torch.diag_embed(change) - cross - cross.mT)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return low / count**2, high / count**2
