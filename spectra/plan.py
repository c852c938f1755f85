"""Which operator, on which space, from which side, by which method: decided and said before the work."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from manifold.errors import InputError, TooLargeError
from manifold.measures import ParticleMeasure
from manifold.monomials import Monomials
from spectra.assembly import can_assemble
from spectra.block_solvers import block_spectrum, norm_bound
from spectra.blocks import Report, blocked_spectrum
from spectra.chart import chart_multiplicities, chart_spectrum
from spectra.density import PROBES, STEPS, SpectralDensity, spectral_density
from spectra.eigen import DENSE_LIMIT, VECTORS_LIMIT, Reason, Spectrum, dense_spectrum, power_norm
from spectra.functionals import Functional
from spectra.gradient_span import span_of_form, span_of_gradients
from spectra.inertia import local_eigenvalues, with_local_bounds
from spectra.large_end import prepare_large_end
from spectra.long_lanczos import BASIS_BYTES
from spectra.machine import resident_memory
from spectra.partition import check_blocks, frequency_blocks
from spectra.restricted_moments import RestrictedMoments
from spectra.rounding import arithmetic, of_points
from spectra.single_precision import in_single_precision
from spectra.small_end import SCOUT, prepare_small_end
from spectra.span_compression import compress_to_span, predicted_memory, predicted_seconds
from spectra.uncertainty import operator_uncertainty
from spectra.variation import DeflatedVariation, RestrictedVariation, SecondVariation, flat_operator

OPERATORS = ("wasserstein", "flat", "chart")
SUBSPACES = ("span", "full")
FLAT_TABLES = 3  # N x N: the kernel, a moved one and their difference, which tell its rounding
MEMORY_LIMIT = 12 * 2**30
MAX_SECONDS = 240.0  # of an iteration nobody gave a limit for
BESIDE = 64 * 2**20  # libraries loaded on the way (drawing, sparse solvers) and small tables
SMALL_END_SHARE = 0.7  # of the time for a start of the small end; the rest is for the large end and proof
DENSE_WORK = 2e12  # flops of a dense reduction that a user would wait for without asking


@dataclass(frozen=True)
class SpectrumPlan:
    """What will be computed.

    Parameters
    ----------
    operator : str
        ``wasserstein`` (second variation on vector fields), ``flat`` (L2 kernel) or ``chart`` (L'' alone).
    subspace : str
        ``span`` (T_R, gradients of span(R)), ``full``, or ``complement``: what the symmetries of R leave. It
        holds T_R and is equal to it unless gradients depend on each other, where that is too large to tell.
    side : str
        ``potentials`` or ``particles``: the smaller description of the space.
    dimension : int
        Dimension of the eigenproblem (for ``span`` on the potentials side the number m of potentials).
    dense : bool
        Dense solver (complete spectrum) or not: block Lanczos (ends) or frequency blocks.
    count : int or None
        Eigenvalues at each end when not complete.
    memory : int
        Predicted bytes at the peak, beside the program.
    blocks : bool
        Complete by frequency blocks with Weyl's bound (see `spectra.blocks`).
    density : bool
        Only the density of the spectrum (see `spectra.density`).
    products : int or None
        Predicted operator products, where that is known.
    moments : bool
        Complete in span(R) without the matrix of gradients (see `spectra.span_compression`).
    seconds : float or None
        Rough time on one core, where that is known.
    metric : bool
        T_R from a form of its gradients instead of their matrix (see `Functional.metric`).
    spare : int
        Bytes that it may need in addition where the spectrum is hard; known only during the work.
    program : int
        Bytes that the process holds when the plan is made: libraries and the checkpoint.
    """

    operator: str
    subspace: str
    side: str
    dimension: int
    dense: bool
    count: int | None
    memory: int
    blocks: bool = False
    density: bool = False
    products: int | None = None
    moments: bool = False
    seconds: float | None = None
    metric: bool = False
    spare: int = 0
    program: int = field(default_factory=resident_memory)

    @property
    def sentence(self) -> str:
        """The plan in one line."""
        how = "dense, complete" if self.dense else f"block Lanczos, {self.count} at each end"
        if self.blocks:
            how = "frequency blocks, complete with the norm of the dropped coupling as error"
        if self.density:
            how = f"density by stochastic Lanczos quadrature, {PROBES} starts of {STEPS} steps"
        if self.moments:
            how = "complete, from sums over neurons (longer where gradients are nearly dependent)"
        work = "" if self.products is None else f", {self.products:,} products"
        if self.seconds is not None:
            work += f", about {max(1.0, self.seconds):,.0f} s on one core"
        return (
            f"{self.operator} second variation, {self.subspace}, {self.side} side, "
            f"dimension {self.dimension:,}, {how}{work}, "
            f"about {(self.memory + self.program) / 2**20:,.0f} MiB with the program"
            + (
                f", up to {self.spare / 2**20:,.0f} MiB more if the small end is crowded"
                if self.spare
                else ""
            )
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


def plan_spectrum(
    functional: Functional, measure: ParticleMeasure, *, operator: str = "wasserstein",
    subspace: str = "span", potentials: Monomials | None = None, count: int | None = 10,
    density: bool = False, memory_limit: int = MEMORY_LIMIT,
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
    density : bool
        Only the density, of the Wasserstein operator on the full space.
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
    if density:
        return _density_plan(operator, size, potentials)
    if operator == "flat":
        memory = dense_memory(q) + 8 * FLAT_TABLES * q * q
        return SpectrumPlan(operator, subspace, "particles", q, True, count, memory)
    if operator == "chart":
        total = sum(multiplicity for _, multiplicity in chart_multiplicities(functional))
        return SpectrumPlan(operator, subspace, "potentials", total, True, count, 8 * 4 * total + BESIDE)
    small, large = sorted((m, size))
    if subspace == "span":
        memory = dense_span_memory(small, large)
        if memory <= memory_limit and 6.0 * large * small * small < DENSE_WORK:
            side = "potentials" if m <= size else "particles"
            return SpectrumPlan(operator, "span", side, small, True, count, memory)
        if potentials is not None:
            raise TooLargeError(_too_large(m, size, memory))
        if m > size and size <= DENSE_LIMIT and functional.metric() is not None:
            memory = 8 * 6 * size * size
            return SpectrumPlan(operator, "span", "particles", size, True, count, memory, metric=True)
        if count is None and m <= size:
            moments = _moments_plan(functional, measure, operator, memory_limit)
            return moments or _blocks_plan(
                functional, measure, operator, memory_limit, _too_large(m, size, memory)
            )
        subspace = "full" if m <= size or count is None else "complement"
    dense = subspace == "full" and (count is None or size <= DENSE_LIMIT)
    memory = dense_memory(size) if dense else krylov_memory(size, count)
    if dense and memory > memory_limit:
        return _blocks_plan(functional, measure, operator, memory_limit, (
            f"a complete spectrum of {size:,} dimensions needs {memory / 2**30:.1f} GiB dense; the limit is "
            f"{memory_limit / 2**30:.0f} GiB, about {int((memory_limit / 16) ** 0.5):,} dimensions"
        ))  # fmt: skip
    return SpectrumPlan(
        operator, subspace, "particles", size, dense, count, memory, spare=0 if dense else BASIS_BYTES
    )


def dense_memory(size: int) -> int:
    """Bytes at the peak of a dense spectrum: tables of N x N, and what every analysis needs beside them.

    Measured at N = 3,150 and 6,300 with eigenvectors (8.9 and 8.5 tables: the matrix, the solver's copy and
    work space, eigenvectors twice, their image, residual and defect); without them four are assumed.
    """
    return 8 * (9 if size <= VECTORS_LIMIT else 4) * size * size + BESIDE


def krylov_memory(size: int, count: int) -> int:
    """Bytes at the peak of block Lanczos: a single-precision basis, and blocks of the double-precision one.

    Measured at N = 11,700 and 27,600: as much as a basis of `SCOUT` vectors. A small end that is a dense
    cluster takes up to `BASIS_BYTES` more.
    """
    return min(BASIS_BYTES, 4 * size * SCOUT) + 8 * size * 16 * count + BESIDE


def dense_span_memory(small: int, large: int) -> int:
    """Bytes at the peak of a dense spectrum in span(R), of m potentials and N coordinates, sorted by size.

    Measured at (1,210, 1,980) and (2,028, 3,900): 7.5 gradient matrices (made in parts, weighted, factored)
    and 3 tables of the smaller side.
    """
    return 8 * (8 * small * large + 4 * small * small) + BESIDE


def _density_plan(operator: str, size: int, potentials: Monomials | None) -> SpectrumPlan:
    if operator != "wasserstein" or potentials is not None:
        raise InputError(
            "eigenvalues: expected the wasserstein operator and all potentials for a density; the other "
            "spectra are small enough to ask for all"
        )
    memory = 8 * size * (STEPS + 64) + BESIDE
    return SpectrumPlan(
        operator, "full", "particles", size, False, None, memory, density=True, products=PROBES * STEPS
    )


def _too_large(m: int, size: int, memory: float) -> str:
    small, large = sorted((m, size))
    return (
        f"span(R) with m = {m:,} potentials and q D = {size:,} needs {memory / 2**30:.1f} GiB and "
        f"{6e-12 * large * small**2:,.0f} Tflop dense; ask for --subspace full, fewer --potentials, "
        "or a smaller network"
    )


def _moments_plan(
    functional: Functional, measure: ParticleMeasure, operator: str, memory_limit: int
) -> SpectrumPlan | None:
    """The plan without a matrix of gradients, or None where the task has no such sums or they do not fit."""
    at = functional.linearise(measure)
    if not can_assemble(at):
        return None
    count, neurons = RestrictedMoments(at).count, len(measure)
    memory = predicted_memory(count, neurons) + BESIDE
    if memory > memory_limit:
        return None
    return SpectrumPlan(
        operator, "span", "potentials", count, False, None, memory, moments=True,
        seconds=predicted_seconds(count, neurons),
    )  # fmt: skip


def _blocks_plan(
    functional: Functional, measure: ParticleMeasure, operator: str, memory_limit: int, why_not_dense: str
) -> SpectrumPlan:
    """The plan of a block decomposition, or the refusal that names both obstacles.

    Raises
    ------
    TooLargeError
        If the blocks do not help either.
    """
    structure = frequency_blocks(functional, measure)
    try:
        check_blocks(structure, memory_limit)
    except (InputError, TooLargeError) as error:
        raise TooLargeError(f"{why_not_dense}; {error}") from error
    size = len(structure.labels)
    return SpectrumPlan(
        operator, "full", "particles", size, False, None, structure.memory + BESIDE, blocks=True,
        products=structure.predicted_products,
    )  # fmt: skip


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
    shaken = functional.shaken(seed)

    def kernel(at: ParticleMeasure) -> torch.Tensor:
        return flat_operator((functional if at is measure else shaken).linearise(at)).matrix

    rounding = of_points(measure, kernel, seed=seed)
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
    if found.missing or not found.converged:  # nothing is said about what leaves a space that is not known
        leak = None
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
