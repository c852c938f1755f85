"""Neurons of a network as weighted points of compact spaces: spheres per frequency, a global one, tori."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.monomials import Monomials
from manifold.spaces.embedded import Space, parse_space
from manifold.spaces.monomial_expressions import parse_monomials

BASES = ("frequency-sphere", "sphere", "torus")
SYMBOLS = ("target", "all")


@dataclass(frozen=True)
class Lift:
    """Neurons of one frequency as weighted points of a compact space.

    Attributes
    ----------
    k : tuple of int
        The frequency (empty for the global sphere).
    space : Space
    monomials : Monomials
    points : ndarray, shape (q, ambient)
    weights : ndarray, shape (q,)
        Normalised to one.
    mass : float
        Sum of the weights before: ``sum_j w_j |z_j|^3`` (sphere) or ``sum_j w_j |z_a z_b z_c|`` (torus).
    """

    k: tuple[int, ...]
    space: Space
    monomials: Monomials
    points: np.ndarray
    weights: np.ndarray
    mass: float


def lift_frequencies(
    group: FiniteAbelianGroup, a: np.ndarray, b: np.ndarray, c: np.ndarray, *, base: str,
    symbols: str = "target", weights: np.ndarray | None = None,
) -> list[Lift]:  # fmt: skip
    """Project a network's measure to a compact space per conjugate pair of frequencies.

    The potentials are homogeneous of degree three, so ``rho_r = integral r(z/|z|) |z|^3 dmu``: a neuron
    counts with ``|z|^3`` (on the torus of phases with ``|z_a z_b z_c|``). Dead neurons carry no mass and
    drop out.

    Parameters
    ----------
    group : FiniteAbelianGroup
    a, b, c : ndarray, complex, shape (q, n)
        Fourier coefficients z_ak, z_bk, z_ck of the canonical weights.
    base : {"frequency-sphere", "torus", "sphere"}
    symbols : {"target", "all"}
        ``target``: Re and Im of ``z_ak z_bk z_ck``; ``all``: every cubic monomial of the loss that lives on
        this frequency alone.
    weights : ndarray, shape (q,), optional

    Returns
    -------
    list of Lift
        Heaviest frequency first; one entry for the global sphere.
    """
    weights = np.full(len(a), 1 / len(a)) if weights is None else weights
    if base == "sphere":
        return _with_weight([_global_lift(group, a, b, c, weights)])
    lifts = []
    for k in group.conjugate_pairs:
        z = np.stack([a[:, k], b[:, k], c[:, k]], axis=1)
        real = group.negatives[k] == k
        if base == "torus":
            if real:
                continue
            mass = weights * np.abs(z).prod(1)
            alive = mass > 1e-12 * mass.max(initial=0)
            unit = z[alive] / np.abs(z[alive])
            space = parse_space("T3")
        else:
            size = np.sqrt((np.abs(z) ** 2).sum(1))
            mass = weights * size**3
            alive = mass > 1e-12 * mass.max(initial=0)
            unit = z[alive] / size[alive, None]
            space = parse_space("S2" if real else "S5")
        if not alive.any():
            continue
        points = unit.real if real else np.stack([unit.real, unit.imag], 2).reshape(len(unit), -1)
        expressions = "x1*x2*x3" if real else _symbols(symbols)
        frequency = tuple(int(v) for v in group.elements[k])
        total = float(mass.sum())
        lifts.append(
            Lift(frequency, space, parse_monomials(expressions, space), points, mass[alive] / total, total)
        )
    return sorted(_with_weight(lifts), key=lambda lift: -lift.mass)


def _with_weight(lifts: list[Lift]) -> list[Lift]:
    """The lifts, if there are any with neurons of finite weight.

    Raises
    ------
    InputError
        If no neuron carries weight, or a weight is beyond double precision.
    """
    if not lifts or not all(len(lift.points) and math.isfinite(lift.mass) for lift in lifts):
        raise InputError(
            "network: expected neurons with a finite weight |z|^3 > 0 at some frequency, got none (a network "
            "of zeros, or one whose |z|^3 is beyond double precision): there is no measure to fit"
        )
    return lifts


def _symbols(symbols: str) -> str:
    target = ["z1*z2*z3"]
    others = ["z1*z2*conj(z3)", "z1*conj(z2)*z3", "conj(z1)*z2*z3"]
    for p in ("z1", "z2"):
        others += [f"{p}*conj({p})*z3", f"{p}^2*z3", f"{p}^2*conj(z3)"]
    chosen = target if symbols == "target" else target + others
    return ";".join(f"Re({e});Im({e})" for e in chosen)


def _global_lift(
    group: FiniteAbelianGroup, a: np.ndarray, b: np.ndarray, c: np.ndarray, weights: np.ndarray
) -> Lift:
    """All frequencies together on one sphere, with the targets ``Re z_ak z_bk z_ck``."""
    blocks, expressions, pair, coordinate = [], [], 0, 0
    pairs = [k for k in group.conjugate_pairs if group.negatives[k] != k]
    for k in pairs:
        z = np.stack([a[:, k], b[:, k], c[:, k]], axis=1) * math.sqrt(2)
        blocks.append(np.stack([z.real, z.imag], 2).reshape(len(z), -1))
        expressions.append(f"Re(z{pair + 1}*z{pair + 2}*z{pair + 3})")
        pair, coordinate = pair + 3, coordinate + 6
    for k in group.conjugate_pairs:
        if group.negatives[k] == k:
            blocks.append(np.stack([a[:, k].real, b[:, k].real, c[:, k].real], 1))
            expressions.append("*".join(f"x{coordinate + i}" for i in (1, 2, 3)))
            coordinate += 3
    points = np.concatenate(blocks, 1)
    size = np.linalg.norm(points, axis=1)
    mass = weights * size**3
    alive = mass > 1e-12 * mass.max(initial=0)
    space = parse_space(f"S{coordinate - 1}")
    total = float(mass.sum())
    share = mass[alive] / total if total else mass[alive]
    monomials = parse_monomials(";".join(expressions), space)
    return Lift((), space, monomials, points[alive] / size[alive, None], share, total)
