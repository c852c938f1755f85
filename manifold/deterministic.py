"""Deterministic equivalent of the risk of kernel ridge regression, from eigenvalues and coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from manifold.errors import InputError


@dataclass(frozen=True)
class RidgePrediction:
    """Predicted excess risk and the quantities behind it.

    Attributes
    ----------
    risk : float
        Predicted mean excess risk, L2 of the uniform probability measure.
    implicit_ridge : float
        chi, the solution of ``n = sum_i l_i / (l_i + chi) + n eta / chi``.
    degrees_of_freedom : float
        ``sum_i (l_i / (l_i + chi))^2``; the prediction needs it well below n.
    """

    risk: float
    implicit_ridge: float
    degrees_of_freedom: float


def predicted_risk(
    kernel_eigenvalues: np.ndarray,
    coefficients: np.ndarray,
    *,
    samples: int,
    ridge: float,
    noise: float,
    unlearnable: float = 0.0,
) -> RidgePrediction:
    """Deterministic equivalent of the mean excess risk for n samples.

    ``E = E0 [ sum_i (chi / (l_i + chi))^2 c_i^2 + unlearnable + sigma^2 ] - sigma^2`` with
    ``E0 = n / (n - sum_i (l_i / (l_i + chi))^2)``: features behave like Gaussian ones of the same covariance.

    Parameters
    ----------
    kernel_eigenvalues : ndarray, shape (P,)
        l_i, eigenvalues of the kernel under the uniform probability measure.
    coefficients : ndarray, shape (P,)
        Target coefficients c_i in the orthonormal eigenfunctions.
    samples : int
        n.
    ridge : float
        eta in ``(1/n) sum residual^2 + eta |f|_K^2``.
    noise : float
        sigma, standard deviation of the noise.
    unlearnable : float
        Energy of the target outside the P eigenfunctions.

    Returns
    -------
    RidgePrediction

    Raises
    ------
    InputError
        If ridge is not positive or samples is below 1.
    """
    if ridge <= 0 or samples < 1:
        raise InputError(f"expected ridge > 0 and samples >= 1, got {ridge} and {samples}")
    l = np.asarray(kernel_eigenvalues, dtype=float)  # noqa: E741

    def excess(log_chi: float) -> float:
        chi = np.exp(log_chi)
        return (l / (l + chi)).sum() + samples * ridge / chi - samples

    # chi lies between eta (no features) and eta + trace / n.
    bracket = np.log(ridge) - 1e-9, np.log(ridge + l.sum() / samples) + 1e-9
    chi = float(np.exp(brentq(excess, *bracket, xtol=1e-13)))
    shrink = l / (l + chi)
    dof = float((shrink**2).sum())
    bias = float((((1 - shrink) * coefficients) ** 2).sum()) + unlearnable
    amplification = samples / (samples - dof)
    return RidgePrediction(amplification * (bias + noise**2) - noise**2, chi, dof)
