"""Which operator, on which space, from which side, by which method: decided and said before the work."""

from __future__ import annotations

from dataclasses import dataclass, field

from manifold.errors import InputError, TooLargeError
from manifold.measures import ParticleMeasure
from manifold.monomials import Monomials
from spectra.blocks.partition import check_blocks, frequency_blocks
from spectra.functionals.base import Functional
from spectra.machine import resident_memory
from spectra.methods.chart import chart_multiplicities
from spectra.methods.small_end import SCOUT
from spectra.methods.span_spectrum import predicted_memory, predicted_seconds
from spectra.operators.assembly import can_assemble
from spectra.operators.span_moments import RestrictedMoments
from spectra.solvers.density import PROBES, STEPS
from spectra.solvers.lanczos_deep import BASIS_BYTES
from spectra.solvers.spectrum import DENSE_LIMIT, VECTORS_LIMIT

OPERATORS = ("wasserstein", "flat", "chart")
SUBSPACES = ("span", "full")
FLAT_TABLES = 3  # N x N: the kernel, a moved one and their difference, which tell its rounding
MEMORY_LIMIT = 12 * 2**30
MAX_SECONDS = 240.0  # of an iteration nobody gave a limit for
BESIDE = 64 * 2**20  # libraries loaded on the way (drawing, sparse solvers) and small tables
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
        Complete by frequency blocks with Weyl's bound (see `spectra.blocks.spectrum`).
    density : bool
        Only the density of the spectrum (see `spectra.solvers.density`).
    products : int or None
        Predicted operator products, where that is known.
    moments : bool
        Complete in span(R) without the matrix of gradients (see `spectra.methods.span_spectrum`).
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
