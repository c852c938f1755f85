"""The chart spectrum: eigenvalues of ``L''`` alone, in the orthonormal coordinates of the potentials."""

from __future__ import annotations

import numpy as np
import torch

from manifold.errors import InputError
from spectra.functionals.base import Decayed, Functional
from spectra.solvers.spectrum import EPS, Reason, Spectrum
from spectra.tasks.group_task import GroupTask


def chart_multiplicities(functional: Functional) -> list[tuple[float, int]]:
    """Eigenvalues of ``L''`` with their multiplicities, for squared losses over all pairs.

    The loss is ``const - (2/n) sum Re rho_kkk + (1/n) sum_k (sum |rho_{k1 k2 k}|^2 + 1/4 sum |S|^2)``, a
    quadratic form in the potentials, with ``k1, k2 != 0`` and one coordinate for every sum S that the loss
    sees: two for each ``m != 0`` and one for ``m = 0``. In real orthonormal coordinates (``sqrt2 Re``,
    ``sqrt2 Im`` per conjugate pair) ``L''`` is diagonal: ``2/n`` for every rho, ``1/(2n)`` for every S.

    Parameters
    ----------
    functional : Functional
        A `GroupTask` or its decayed form (decay is no potential of R and does not enter).

    Returns
    -------
    list of (float, int)

    Raises
    ------
    InputError
        For other losses, training splits and tied weights, where ``L''`` is not constant or not diagonal.
    """
    task = functional.functional if isinstance(functional, Decayed) else functional
    if not isinstance(task, GroupTask) or task.loss == "cross_entropy" or task.pairs is not None or task.tied:
        raise InputError(
            "operator: the chart spectrum needs a squared loss over all pairs of an untied network; "
            "use --operator flat or wasserstein"
        )
    n = task.group.order
    outputs = n - int(task.projected or task.centred)
    return [(2 / n, outputs * (n - 1) ** 2), (1 / (2 * n), outputs * (2 * n - 1))]


def chart_spectrum(functional: Functional) -> Spectrum:
    """The complete chart spectrum: the same for every network, since squared losses are quadratic in rho.

    Parameters
    ----------
    functional : Functional
        See `chart_multiplicities`.

    Returns
    -------
    Spectrum
        All ``n^2 (n - 1)`` eigenvalues (``n^3`` for the unprojected loss), without vectors.
    """
    pairs = chart_multiplicities(functional)
    values = np.sort(np.concatenate([np.full(count, value) for value, count in pairs]))
    size = len(values)
    zero = np.zeros(size)
    return Spectrum(
        values, EPS * values, zero, torch.empty(size, 0, dtype=torch.float64), size, float(values[-1]),
        True, "exact formula", 0, True, Reason.EXACT,
    )  # fmt: skip
