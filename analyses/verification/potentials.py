"""Order parameters once more: potentials by plain Fourier sums in extended precision, purity, accuracy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from analyses.verification.exact.problem import RawProblem

LARGEST_GROUP = 40  # n^3 q products of coefficients
ROUNDING = 1e-13  # of E|z|^3 and the like: what doubles leave of sums over neurons and elements


@dataclass(frozen=True, eq=False)
class Potentials:
    """Potentials of the group task at a network.

    Parameters
    ----------
    targets : ndarray, complex, shape (n - 1,)
        ``rho_kkk``.
    mixed : ndarray, complex, shape (n, n, n), optional
        ``rho_{k1 k2 k}``; None for large groups.
    squares : tuple of ndarray, optional
        ``rho_{p; k1 k2 k}`` of p = a, b.
    size : float
        ``E |z|^3``: their scale.
    alignment : ndarray, shape (n - 1,)
        ``|E z_a z_b z_c| / E |z_a z_b z_c|``.
    purity : ndarray, shape (q,)
        Power share of the strongest frequency pair.
    power : ndarray, shape (q,)
        ``|z_j|``.
    negatives : ndarray of int
        Number of -k.
    """

    targets: np.ndarray
    mixed: np.ndarray | None
    squares: tuple[np.ndarray, ...] | None
    size: float
    alignment: np.ndarray
    purity: np.ndarray
    power: np.ndarray
    negatives: np.ndarray

    def shares(self, name: str, tolerance: float, unit: float) -> tuple[float, float]:
        """Bounds of the share of a set within a tolerance of its value (1 for R_g, 0 for the others)."""
        inner = slice(1, None)
        if name == "R_g":
            distances = np.abs(self.targets - 1)
        else:
            n = len(self.negatives)
            k = np.arange(n)
            same = (k[:, None, None] == k[None, :, None]) & (k[None, :, None] == k[None, None, :])
            opposite = np.broadcast_to((self.negatives[:, None] == k)[:, :, None], (n, n, n))
            if name == "R_c":
                distances = np.abs(self.mixed[inner, inner, inner][~same[inner, inner, inner]])
            else:
                chosen = (opposite if name == "R_n" else ~opposite)[inner, inner, inner]
                distances = np.concatenate([np.abs(s[inner, inner, inner][chosen]) for s in self.squares])
        if not len(distances):
            return 1.0, 1.0
        slack = ROUNDING * max(self.size, unit)
        return tuple(float((distances <= tolerance * unit + sign * slack).mean()) for sign in (-1, 1))


def potentials_of(problem: RawProblem) -> Potentials:
    """Potentials of the weights as stored (not centred), by sums over group elements.

    Parameters
    ----------
    problem : RawProblem

    Returns
    -------
    Potentials
    """
    orders, n, q = problem.orders, problem.n, problem.q
    elements = np.array(list(itertools.product(*(range(order) for order in orders))))
    turns = np.zeros((n, n), dtype=np.longdouble)
    for i, order in enumerate(orders):
        turns += np.longdouble((elements[:, i, None] * elements[None, :, i]) % order) / order
    angle = 2 * np.longdouble(np.arccos(np.longdouble(-1))) * turns
    character = np.cos(angle) + 1j * np.sin(angle)
    tau = np.sqrt(np.longdouble(q * n) / np.longdouble(problem.raw_scale))
    a, b, c = (
        np.asarray(w, dtype=np.longdouble)
        for w in (problem.a, problem.a if problem.b is None else problem.b, problem.c)
    )
    za, zb = (tau / n * (character.conj() @ w) for w in (a, b))
    zc = tau / n * (character @ c)  # c = sum z_c conj(chi)
    triple = za * zb * zc
    targets = triple.mean(1)[1:]
    moduli = np.abs(triple).mean(1)[1:]
    power = sum(np.abs(z) ** 2 for z in (za, zb, zc))
    lengths = (
        np.sqrt(sum((np.abs(w) ** 2).sum(0) for w in ((a, c) if problem.b is None else (a, b, c))) / n) * tau
    )
    negatives = np.array(
        [int(np.ravel_multi_index(tuple((-element) % np.array(orders)), orders)) for element in elements]
    )
    paired = power + np.where(negatives != np.arange(n), 1, 0)[:, None] * power[negatives]
    total = power[1:].sum(0)
    purity = np.where(total > 0, paired[1:].max(0, initial=0) / np.where(total > 0, total, 1), 0)
    mixed = squares = None
    if n <= LARGEST_GROUP:
        za, zb, zc = (z.astype(complex) for z in (za, zb, zc))
        mixed = np.einsum("kj,lj,mj->klm", za, zb, zc, optimize=True) / q
        squares = tuple(np.einsum("kj,lj,mj->klm", z, z, zc, optimize=True) / q for z in (za, zb))
    return Potentials(
        targets, mixed, squares, float((lengths**3).mean()), (np.abs(targets) / np.maximum(moduli, 1e-300)),
        purity, lengths, negatives,
    )  # fmt: skip


def accuracy_bounds(outputs: np.ndarray, wanted: np.ndarray, rounding: float) -> tuple[float, float]:
    """Least and largest share of pairs whose largest output is right, outputs known to a rounding.

    Parameters
    ----------
    outputs : ndarray, shape (n, n, n)
    wanted : ndarray of int, shape (n, n)
    rounding : float

    Returns
    -------
    tuple of float
    """
    right = np.take_along_axis(outputs, wanted[..., None], -1)[..., 0]
    others = outputs.copy()
    np.put_along_axis(others, wanted[..., None], -np.inf, -1)
    lead = right - others.max(-1)
    return float((lead > rounding).mean()), float((lead >= -rounding).mean())
