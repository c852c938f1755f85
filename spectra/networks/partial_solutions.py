"""Partial solutions: networks that meet a chosen part of the constraints, found by least squares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import least_squares

from manifold.errors import InputError, NotConvergedError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.group_network import GroupNetwork
from spectra.networks.potentials import group_monomials

ZERO_SETS = ("R_c", "R_n", "R_*")


def partial_solution(
    group: FiniteAbelianGroup, zeros: Sequence[str], *, neurons: int, seed: int = 0, tries: int = 8,
    tol: float = 1e-12,
) -> GroupNetwork:  # fmt: skip
    """A network with every rho_kkk = 1 and the chosen sets 0, whatever its other potentials are.

    Levenberg-Marquardt on ``E r_i - target_i`` over the particles, from Gaussian starts.

    Parameters
    ----------
    group : FiniteAbelianGroup
        Of order n.
    zeros : sequence of str
        Some of ``R_c``, ``R_n``, ``R_*``.
    neurons : int
        Width q; below (number of independent potentials)/(D - 1), D = 3(n - 1), solutions are not expected.
    seed : int
        Of the starts.
    tries : int
        Starts.
    tol : float
        Largest ``|E r_i - target_i|`` accepted.

    Returns
    -------
    GroupNetwork
        Centred, in canonical weights.

    Raises
    ------
    InputError
        For an unknown set or no neuron.
    NotConvergedError
        If no start meets the tolerance.
    """
    if not set(zeros) <= set(ZERO_SETS):
        raise InputError(f"zeros: expected some of {', '.join(ZERO_SETS)}, got {', '.join(zeros)}")
    if neurons < 1:
        raise InputError(f"neurons: expected at least 1, got {neurons}")
    sets = [group_monomials(group, chosen=name, centred=True) for name in ("R_g", *dict.fromkeys(zeros))]
    target = np.concatenate([np.where(~one.imaginary & (i == 0), 1.0, 0.0) for i, one in enumerate(sets)])
    dimension = 3 * (group.order - 1)

    def points(x: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(x.reshape(neurons, dimension))

    def miss(x: np.ndarray) -> np.ndarray:
        return torch.cat([one.values(points(x)).mean(0) for one in sets]).numpy() - target

    def slope(x: np.ndarray) -> np.ndarray:
        rows = torch.cat([one.jacobian(points(x)) for one in sets], dim=1) / neurons
        return rows.transpose(0, 1).reshape(len(target), -1).numpy()

    rng = np.random.default_rng(seed)
    best = np.inf
    for _ in range(tries):
        found = least_squares(miss, rng.normal(size=neurons * dimension), slope, xtol=1e-15, ftol=1e-15,
                              gtol=1e-15, max_nfev=300)  # fmt: skip
        best = min(best, float(np.abs(found.fun).max()))
        if best <= tol:
            n = group.order
            blank = torch.zeros(n, neurons, dtype=torch.float64)
            return GroupNetwork(group, blank, blank, blank, 1 / (2 * n * neurons)).with_points(
                points(found.x), centred=True
            )
    raise NotConvergedError(
        f"partial solution: {tries} starts with {neurons} neurons miss a potential by {best:.1e} at least, "
        f"wanted {tol:.0e}; give more neurons"
    )
