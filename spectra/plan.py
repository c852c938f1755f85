"""Which operator, on which space, from which side, by which method: decided and said before the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from manifold.errors import InputError, TooLargeError
from manifold.measures import ParticleMeasure
from manifold.monomials import Monomials
from spectra.eigen import DENSE_LIMIT, Spectrum, dense_spectrum, krylov_spectrum, power_norm
from spectra.functionals import Functional
from spectra.variation import (
    DeflatedVariation,
    RestrictedVariation,
    SecondVariation,
    flat_operator,
    tangent_space,
)

OPERATORS = ("wasserstein", "flat", "chart")
SUBSPACES = ("span", "full")
MEMORY_LIMIT = 12 * 2**30
DENSE_WORK = 2e12  # flops of a dense reduction that a user would wait for without asking


@dataclass(frozen=True)
class SpectrumPlan:
    """What will be computed.

    Parameters
    ----------
    operator : str
        ``wasserstein`` (second variation on vector fields), ``flat`` (L2 kernel) or ``chart`` (L'' alone).
    subspace : str
        ``span`` (T_R, gradients of span(R)) or ``full``.
    side : str
        ``potentials`` or ``particles``: the smaller description of the space.
    dimension : int
        Dimension of the eigenproblem (for ``span`` on the potentials side the number m of potentials).
    dense : bool
        Dense solver (complete spectrum) or Lanczos (ends).
    count : int or None
        Eigenvalues at each end when not complete.
    memory : int
        Predicted bytes.
    """

    operator: str
    subspace: str
    side: str
    dimension: int
    dense: bool
    count: int | None
    memory: int

    @property
    def sentence(self) -> str:
        """The plan in one line."""
        how = "dense, complete" if self.dense else f"Lanczos, {self.count} at each end"
        return (
            f"{self.operator} second variation, {self.subspace}, {self.side} side, "
            f"dimension {self.dimension:,}, {how}, about {self.memory / 2**20:,.0f} MiB"
        )


@dataclass(frozen=True, eq=False)
class SpectrumResult:
    """A spectrum with the space it lives on.

    Parameters
    ----------
    plan : SpectrumPlan
        What was computed.
    spectrum : Spectrum
        Eigenvalues with bounds.
    rank : int or None
        Numerical rank of T_R (None where it was not computed).
    rank_gap : float
        First dropped over last kept singular value of the gradient matrix: small = a clear rank.
    symmetry_null : int
        Directions along which R does not change (scaling symmetry, free means): taken apart.
    leak : float or None
        Largest ``|(1 - Q Q^T) L v|`` over eigenvectors v in T_R: zero where T_R is invariant.
    lift : callable
        Eigenvectors to half-densities (N, k), or the identity.
    """

    plan: SpectrumPlan
    spectrum: Spectrum
    rank: int | None
    rank_gap: float
    symmetry_null: int
    leak: float | None
    lift: Callable[[torch.Tensor], torch.Tensor]


def plan_spectrum(
    functional: Functional, measure: ParticleMeasure, *, operator: str = "wasserstein",
    subspace: str = "span", potentials: Monomials | None = None, count: int | None = 10,
    memory_limit: int = MEMORY_LIMIT,
) -> SpectrumPlan:  # fmt: skip
    """Choose side and method; refuse what does not fit.

    Parameters
    ----------
    functional : Functional
        The objective.
    measure : ParticleMeasure
        Its particles.
    operator, subspace : str
        See `SpectrumPlan`.
    potentials : Monomials, optional
        A subset of R to span the space with; default all of it.
    count : int or None
        Eigenvalues wanted at each end; None: all.
    memory_limit : int
        Bytes.

    Returns
    -------
    SpectrumPlan

    Raises
    ------
    InputError
        For unknown names or a count below one.
    TooLargeError
        If a complete spectrum was asked and does not fit.
    """
    if operator not in OPERATORS or subspace not in SUBSPACES:
        raise InputError(
            f"operator and subspace: expected one of {OPERATORS} and of {SUBSPACES}, "
            f"got {operator!r}, {subspace!r}"
        )
    if count is not None and count < 1:
        raise InputError(f"eigenvalues: expected at least 1 or 'all', got {count}")
    q, dimension = measure.points.shape
    size, m = q * dimension, functional.potential_count if potentials is None else len(potentials)
    if operator == "flat":
        return SpectrumPlan(operator, subspace, "particles", q, True, count, 8 * 4 * q * q)
    small, large = sorted((m, size))
    if subspace == "span":
        memory = 8 * 4 * small * large + 8 * 4 * small * small
        if memory <= memory_limit and 6.0 * large * small * small < DENSE_WORK:
            side = "potentials" if m <= size else "particles"
            return SpectrumPlan(operator, "span", side, small, True, count, memory)
        if potentials is not None or (count is None and m <= size):
            raise TooLargeError(
                f"span(R) with m = {m:,} potentials and q D = {size:,} needs {memory / 2**30:.1f} GiB and "
                f"{6e-12 * large * small**2:,.0f} Tflop dense; ask for --subspace full, fewer --potentials, "
                "or a smaller network"
            )
        subspace = "span" if m > size else "full"
    dense = subspace == "full" and (count is None or size <= DENSE_LIMIT)
    memory = 8 * 4 * size * size if dense else 8 * size * 60
    if dense and memory > memory_limit:
        raise TooLargeError(
            f"a complete spectrum of {size:,} dimensions needs {memory / 2**30:.1f} GiB; the limit is "
            f"{memory_limit / 2**30:.0f} GiB, about {int((memory_limit / 32) ** 0.5):,} dimensions: "
            "ask for --eigenvalues K"
        )
    return SpectrumPlan(operator, subspace, "particles", size, dense, count, memory)


def compute_spectrum(
    plan: SpectrumPlan, functional: Functional, measure: ParticleMeasure, *,
    potentials: Monomials | None = None, seed: int = 0,
) -> SpectrumResult:  # fmt: skip
    """Carry out a plan.

    Parameters
    ----------
    plan : SpectrumPlan
        From `plan_spectrum` with the same arguments.
    functional : Functional
        The objective.
    measure : ParticleMeasure
        Its particles.
    potentials : Monomials, optional
        A subset of R.
    seed : int
        Of start vectors.

    Returns
    -------
    SpectrumResult
    """
    at = functional.linearise(measure)
    if plan.operator == "flat":
        found = dense_spectrum(flat_operator(at))
        return SpectrumResult(plan, found, None, 0.0, 0, None, lambda vectors: vectors)
    full = SecondVariation(at)
    deflated = DeflatedVariation(full)
    if plan.subspace == "span" and plan.dense:
        gradients = None if potentials is None else potentials.jacobian(measure.points)
        space = tangent_space(full.weighted_gradients(gradients))
        restricted = RestrictedVariation(full, space)
        found = dense_spectrum(restricted)
        leak = float(restricted.leak(found.vectors).max()) if space.rank else 0.0
        return SpectrumResult(plan, found, space.rank, space.gap, deflated.removed, leak, restricted.lift)
    operator = deflated if plan.subspace == "span" else full
    deflated.shift = 0.5 * power_norm(full, seed=seed)  # inside the spectrum, away from both ends
    found = dense_spectrum(operator) if plan.dense else krylov_spectrum(operator, plan.count or 1, seed=seed)
    return SpectrumResult(plan, found, None, 0.0, deflated.removed, None, lambda vectors: vectors)
