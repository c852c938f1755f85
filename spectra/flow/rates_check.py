"""Proof of the linearisation: the true flow near a fixed point beside the eigenvalues of its Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from manifold.errors import InputError
from manifold.measures import ParticleMeasure
from spectra.flow.gradient_flow import gradient_flow
from spectra.functionals.base import Functional

SAMPLES = 6


@dataclass(frozen=True, eq=False)
class LinearisationCheck:
    """Rates of the true flow along eigenvectors, beside the eigenvalues.

    Parameters
    ----------
    eigenvalues : ndarray, shape (k,)
        Hessian eigenvalues of the modes checked: the linearised flow decays like ``exp(-lambda t)``.
    rates : ndarray, shape (k,)
        Fitted decay rates of the true nonlinear flow (negative = growth).
    relative_errors : ndarray, shape (k,)
        ``|rate - lambda| / |lambda|``.
    size : float
        Length of the perturbation in L2(mu).
    """

    eigenvalues: np.ndarray
    rates: np.ndarray
    relative_errors: np.ndarray
    size: float


def choose_modes(eigenvalues: np.ndarray, errors: np.ndarray, count: int) -> np.ndarray:
    """Modes from both ends of the spectrum whose eigenvalue is well above its error (a hundred times).

    Parameters
    ----------
    eigenvalues, errors : ndarray, shape (k,)
        Ascending.
    count : int
        How many.

    Returns
    -------
    ndarray of int
        Ascending.
    """
    usable = np.flatnonzero(np.abs(eigenvalues) > np.maximum(100 * errors, 1e-6 * np.abs(eigenvalues).max()))
    if len(usable) <= count:
        return usable
    return np.concatenate([usable[: count // 2], usable[len(usable) - (count - count // 2) :]])


def check_linearisation(
    functional: Functional, point: ParticleMeasure, eigenvalues: np.ndarray, vectors: Tensor, *,
    size: float = 1e-3, centred: bool = True, progress: Callable[[float, float, str], None] | None = None,
) -> LinearisationCheck:  # fmt: skip
    """Perturb a fixed point along eigenvectors, follow the true flow, fit the rates.

    Each mode is followed for one time constant ``1/|lambda|``. With ``centred`` two flows start at plus and
    minus the perturbation and half their difference is fitted: quadratic terms cancel and the error falls
    with the square of the size; with one flow it falls with the size.

    Parameters
    ----------
    functional : Functional
        The objective.
    point : ParticleMeasure
        A refined fixed point; what is left of its gradient cancels in the centred difference.
    eigenvalues : ndarray, shape (k,)
        Hessian eigenvalues, none of them zero.
    vectors : Tensor, shape (N, k)
        Their unit eigenvectors as half-densities ``sqrt(w_j) v(z_j)``.
    size : float
        Length of the perturbation in L2(mu).
    centred : bool
        Use both signs.
    progress : callable, optional
        Called with (modes done, modes, message).

    Returns
    -------
    LinearisationCheck

    Raises
    ------
    InputError
        If an eigenvalue is zero or the size is not positive.
    """
    eigenvalues = np.asarray(eigenvalues, float)
    if size <= 0 or (eigenvalues == 0).any():
        raise InputError("linearisation: expected a positive size and eigenvalues that are not zero")
    root = point.weights.sqrt()[:, None]
    rates = np.zeros(len(eigenvalues))
    for i, value in enumerate(eigenvalues):
        if progress is not None:
            progress(i, len(eigenvalues), "following the flow along eigenvectors")
        mode = vectors[:, i].reshape(point.points.shape)
        times = np.linspace(0, 1 / abs(value), SAMPLES)
        ahead = _amplitudes(functional, point, mode, root, times, size)
        if centred:
            ahead = (ahead - _amplitudes(functional, point, mode, root, times, -size)) / 2
        with np.errstate(invalid="ignore", divide="ignore"):  # a flow that turns back has no rate: NaN
            rates[i] = -np.polyfit(times, np.log(ahead), 1)[0]
    return LinearisationCheck(eigenvalues, rates, np.abs(rates - eigenvalues) / np.abs(eigenvalues), size)


def _amplitudes(
    functional: Functional, point: ParticleMeasure, mode: Tensor, root: Tensor, times: np.ndarray, size: float
) -> np.ndarray:
    """Component along the mode of the flow's distance from the fixed point at each time."""
    start = ParticleMeasure(point.points + size * mode / root, point.weights)
    flow = gradient_flow(functional, start, times, rtol=1e-8, atol=1e-6 * abs(size) / len(point) ** 0.5)
    return np.array([float((mode * root * (now.points - point.points)).sum()) for now in flow])
