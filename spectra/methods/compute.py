"""Carry out a plan: one result, whatever the method."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from manifold.measures import ParticleMeasure
from manifold.monomials import Monomials
from spectra.blocks.partition import frequency_blocks
from spectra.blocks.spectrum import Report, blocked_spectrum
from spectra.certificates.convex_bounds import local_eigenvalues, with_local_bounds
from spectra.certificates.uncertainty import of_linearisation, operator_uncertainty
from spectra.functionals.base import Functional
from spectra.methods.chart import chart_spectrum
from spectra.methods.large_end import prepare_large_end
from spectra.methods.plan import MAX_SECONDS, SpectrumPlan
from spectra.methods.small_end import prepare_small_end
from spectra.methods.span_spectrum import compress_to_span
from spectra.operators.gradient_span import span_of_form, span_of_gradients
from spectra.operators.single_precision import in_single_precision
from spectra.operators.variation import DeflatedVariation, RestrictedVariation, SecondVariation, flat_operator
from spectra.rounding import arithmetic
from spectra.solvers.block_lanczos import block_spectrum, norm_bound
from spectra.solvers.density import SpectralDensity, spectral_density
from spectra.solvers.spectrum import Reason, Spectrum, dense_spectrum, power_norm

SMALL_END_SHARE = 0.7  # of the time for a start of the small end; the rest is for the large end and proof


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
        Largest ``|(1 - Q Q^T) L v|`` over eigenvectors v in T_R, or an upper bound of it where they are not
        computed: zero where T_R is invariant; None in the full space and where T_R is not known.
    lift : callable
        Eigenvectors to half-densities (N, k), or the identity.
    density : SpectralDensity or None
        Where only the density was asked for.
    functions : int
        Largest rank that T_R could have: independent functions, or free directions of distinct particles.
    """

    plan: SpectrumPlan
    spectrum: Spectrum
    rank: int | None
    rank_gap: float
    symmetry_null: int
    leak: float | None
    lift: Callable[[torch.Tensor], torch.Tensor]
    density: SpectralDensity | None = None
    functions: int = 0


def compute_spectrum(
    plan: SpectrumPlan, functional: Functional, measure: ParticleMeasure, *,
    potentials: Monomials | None = None, seed: int = 0, max_seconds: float = MAX_SECONDS,
    progress: Report | None = None,
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
    max_seconds : float
        Limit of the iteration for the ends; what is reached by then is marked as not converged.
    progress : callable, optional
        Told done, total and the stage by the long methods (blocks and density).

    Returns
    -------
    SpectrumResult

    Raises
    ------
    NotConvergedError
        If the coupling between frequency blocks is too large to be an error bound.
    """
    if plan.operator == "chart":
        found = chart_spectrum(functional)
        return SpectrumResult(plan, found, found.dimension, 0.0, 0, None, lambda vectors: vectors)
    if plan.operator == "flat":
        return SpectrumResult(
            plan, flat_spectrum(functional, measure, seed=seed), None, 0.0, 0, None, lambda vectors: vectors
        )
    if plan.subspace != "full":  # vector fields agree at copies of a neuron
        measure, index = measure.distinct()
        spread = partial(_spread, measure, index)
    else:
        spread = _same
    full = SecondVariation(functional.linearise(measure))
    deflated = DeflatedVariation(full)
    uncertainty = operator_uncertainty(functional, measure, seed=seed)
    if plan.density:
        density = spectral_density(full, seed=seed, progress=progress)
        found = _spectrum_of(density, uncertainty, full.at.null_count)
        return SpectrumResult(plan, found, None, 0.0, deflated.removed, None, spread, density)
    if plan.moments:
        inside = compress_to_span(full, seed=seed, progress=progress)
        functions = min(inside.functions, functional.potential_count, deflated.dimension)
        found = dataclasses.replace(
            inside.spectrum.widened(uncertainty), missing=max(0, functions - inside.rank)
        )
        return SpectrumResult(
            plan, found, inside.rank, inside.gap, deflated.removed, inside.leak,
            lambda vectors: spread(inside.lift(vectors)), functions=functions,
        )  # fmt: skip
    if plan.subspace == "span" and plan.dense:
        return _span_spectrum(plan, functional, full, deflated, potentials, uncertainty, spread, seed)
    found = _particle_spectrum(
        plan, functional, measure, full, deflated, uncertainty, seed, max_seconds, progress
    )
    lift = deflated.lift if plan.subspace == "complement" else _same
    return SpectrumResult(
        plan, found, None, 0.0, deflated.removed, None, lambda vectors: spread(lift(vectors))
    )


def _same(vectors: torch.Tensor) -> torch.Tensor:
    return vectors


def _spread(measure: ParticleMeasure, index: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Half-densities on distinct particles to those on all copies of them, (N, k), of the same norm."""
    copies = torch.bincount(index, minlength=len(measure)).to(vectors)
    fields = vectors.reshape(len(measure), measure.dimension, -1) / copies.sqrt()[:, None, None]
    return fields[index].reshape(len(index) * measure.dimension, -1)


def flat_spectrum(functional: Functional, measure: ParticleMeasure, *, seed: int = 0) -> Spectrum:
    """The complete flat spectrum, with what rounding of the points does to it.

    Parameters
    ----------
    functional : Functional
    measure : ParticleMeasure
    seed : int
        Of the moves that measure rounding.

    Returns
    -------
    Spectrum
        Exact zeros are those that the rank of the kernel, at most the number of potentials, leaves.
    """
    found = dense_spectrum(flat_operator(functional.linearise(measure)))
    rounding = of_linearisation(functional, measure, lambda at: flat_operator(at).matrix, seed=seed)
    seen = int((measure.points != 0).any(1).sum())
    null = len(measure) - min(seen, functional.potential_count)  # the kernel has no larger rank
    return dataclasses.replace(found.widened(rounding), null=null)


def _span_spectrum(
    plan: SpectrumPlan, functional: Functional, full: SecondVariation, deflated: DeflatedVariation,
    potentials: Monomials | None, uncertainty: float, spread: Callable[[torch.Tensor], torch.Tensor],
    seed: int,
) -> SpectrumResult:  # fmt: skip
    if plan.metric:
        space = span_of_form(functional, full.at.measure, deflated.space)
    else:
        space = span_of_gradients(functional, full.at.measure, deflated.space, potentials)
    restricted = RestrictedVariation(full, space)
    found = dense_spectrum(restricted)
    leak: float | None = float(restricted.leak(found.vectors).max()) if space.rank else 0.0
    tilt = restricted.tilt_error(norm_bound(full, seed=seed)[0]) if space.tilt else 0.0
    found = dataclasses.replace(found.widened(uncertainty + tilt), missing=space.rank_bound - space.rank)
    if not np.isfinite(tilt):
        found = dataclasses.replace(found, converged=False, reason=Reason.DEPENDENT)
    if not found.converged or (found.missing and not space.rank):
        leak = None  # nothing is said about what leaves a space that is not known
    return SpectrumResult(
        plan, found, space.rank, space.gap, deflated.removed, leak,
        lambda vectors: spread(restricted.lift(vectors)), functions=space.rank_bound,
    )  # fmt: skip


def _spectrum_of(density: SpectralDensity, uncertainty: float, null: int) -> Spectrum:
    """No eigenvalue, but the counts that Ritz values prove: by interlacing, k below zero prove k."""
    nothing = np.zeros(0)
    rounding = uncertainty + arithmetic(density.dimension, density.norm)
    carried = density.weights > 0
    at_least = tuple(
        int((carried & beyond).sum(1).max())
        for beyond in (density.nodes < -rounding, density.nodes > rounding)
    )
    return Spectrum(
        nothing, nothing, nothing, torch.zeros(density.dimension, 0, dtype=torch.float64), density.dimension,
        density.norm, False, "stochastic Lanczos quadrature", density.matvecs, True, Reason.DENSITY, at_least,
        null=null, uncertainty=uncertainty,
    )  # fmt: skip


def _particle_spectrum(
    plan: SpectrumPlan, functional: Functional, measure: ParticleMeasure, full: SecondVariation,
    deflated: DeflatedVariation, uncertainty: float, seed: int, max_seconds: float, progress: Report | None,
) -> Spectrum:  # fmt: skip
    null = full.at.null_count
    if plan.blocks:
        found = blocked_spectrum(full, frequency_blocks(functional, measure), seed=seed, progress=progress)
        return dataclasses.replace(found.widened(uncertainty), null=null)
    if plan.dense:
        return dataclasses.replace(dense_spectrum(full).widened(uncertainty), null=null)
    inside = plan.subspace == "complement"
    operator = deflated if inside else full
    if not operator.dimension:
        return dense_spectrum(operator)
    if inside:  # a turned space: twice the angle times the norm, itself at most twice what powers show
        uncertainty += 4 * deflated.space.tilt * power_norm(full, seed=seed)
    local = local_eigenvalues(full.at, deflated.space if inside else None) if functional.convex else None
    count = plan.count or 1
    begin = time.monotonic()
    single = in_single_precision(operator, functional, measure)
    small = prepare_small_end(operator, single, count, seed=seed, max_seconds=SMALL_END_SHARE * max_seconds)
    left = 0.5 * (max_seconds - (time.monotonic() - begin))
    large = prepare_large_end(operator, single, count, seed=seed, max_seconds=left)
    del single
    starts = [large.start] if small.start is None else [large.start, small.start]
    found = block_spectrum(
        operator, count, seed=seed, max_seconds=max_seconds - (time.monotonic() - begin),
        start=torch.cat(starts, dim=1), precondition=small.precondition,
        complete=large.complete + small.complete, uncertainty=uncertainty,
    )  # fmt: skip
    found = dataclasses.replace(
        found.widened(uncertainty), matvecs=found.matvecs + small.products + large.products,
        method=f"{found.method}, {small.method}" if small.method else found.method,
        null=0 if inside else null,
    )  # fmt: skip
    if local is None:
        return found
    rounding = operator_uncertainty(functional, measure, parts=("local",), seed=seed)
    return with_local_bounds(found, local, uncertainty=rounding)
