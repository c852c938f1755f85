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
    *,
    target_eigenvalues: np.ndarray,
    target_energy: np.ndarray,
    samples: int,
    ridge: float,
    noise: float,
) -> RidgePrediction:
    """Deterministic equivalent of the mean excess risk for n samples.

    ``E = E0 [ sum_t (chi / (l_t + chi))^2 e_t + sigma^2 ] - sigma^2`` with
    ``E0 = n / (n - sum_i (l_i / (l_i + chi))^2)``: features behave like Gaussian ones of the same covariance.

    Parameters
    ----------
    kernel_eigenvalues : ndarray, shape (P,)
        l_i, eigenvalues of the kernel under the uniform probability measure.
    target_eigenvalues : ndarray, shape (T,)
        Kernel eigenvalues l_t of the eigenspaces that hold the target; 0 where the kernel lacks them.
    target_energy : ndarray, shape (T,)
        Energies e_t of the target there (squared coefficients in orthonormal functions, summed or not).
    samples : int
        n.
    ridge : float
        eta in ``(1/n) sum residual^2 + eta |f|_K^2``.
    noise : float
        sigma, standard deviation of the noise.

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
    # Eigenvalues come with large multiplicities: sum over the distinct ones.
    l, copies = np.unique(np.asarray(kernel_eigenvalues, dtype=float), return_counts=True)  # noqa: E741

    def excess(log_chi: float) -> float:
        chi = np.exp(log_chi)
        return copies @ (l / (l + chi)) + samples * ridge / chi - samples

    # chi lies between eta (no features) and eta + trace / n.
    bracket = np.log(ridge) - 1e-9, np.log(ridge + copies @ l / samples) + 1e-9
    chi = float(np.exp(brentq(excess, *bracket, xtol=1e-13)))
    dof = float(copies @ (l / (l + chi)) ** 2)
    bias = float(target_energy @ (chi / (np.asarray(target_eigenvalues) + chi)) ** 2)
    amplification = samples / (samples - dof)
    return RidgePrediction(amplification * (bias + noise**2) - noise**2, chi, dof)
