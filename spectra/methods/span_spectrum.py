"""The complete spectrum of the second variation in span(R) from its moments, where gradients do not fit.

The metric is factored with pivots, ``K = G G^T`` with G of shape (m, r): functions are taken one after the
other, each time the one whose gradient is farthest from the span of those before, until what is left is
rounding. On the r functions taken, with the triangle G_1 of their rows, the fields ``Q = Phi^T G_1^{-T}`` are
orthonormal and ``Q^T L Q = kappa G^T G + G_1^{-1} B G_1^{-T}``: ``K K`` is never multiplied out, so only the
local part is divided by the small eigenvalues of the metric.

How far rounding, and the condition of the metric with it, has moved the result is measured, not estimated:
the difference of the small matrix and ``Q^T L Q`` by the operator's own products, and of ``Q^T Q`` and 1,
have norms that are bounded by products with random vectors. They bound every eigenvalue at once.

A metric of condition 1e8 and more, as neurons of very different sizes have, leaves fields that are not quite
orthonormal. Where the bound shows it, the fields are made orthonormal once more by a factor of ``Q^T Q``, and
``Q^T L Q`` is made from the operator's products with all of them: rounding then grows with the root of that
condition only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from scipy.linalg import lapack
from torch import Tensor
from typing_extensions import override

from manifold.errors import InputError
from spectra.blocks.spectrum import NEGLIGIBLE, USEFUL, Report, coupling_bound
from spectra.certificates.convex_bounds import local_eigenvalues
from spectra.operators.span_moments import RestrictedMoments
from spectra.operators.tangent import UNCLEAR
from spectra.operators.variation import DenseOperator, SecondVariation, SymmetricOperator
from spectra.rounding import EPS, SAFETY
from spectra.solvers.spectrum import VECTORS_LIMIT, Reason, Spectrum, dense_spectrum

TABLES = 4.5  # m x m tables of float64 at the peak, where no eigenvectors are computed
TABLES_WITH_VECTORS = 11.5  # with them: measured 10.9 at m = 2,028
PRODUCT_RATE, SOLVE_RATE = 2e10, 3e10  # flops in a second, on one core, for predictions only
SOLVES = 5.0  # m^3 flops of the factor, the reduction and the eigenvalues, weighted by their rates
REFINE = 1e-8  # of the norm: a larger error is worth r products with the operator
STEP = 512  # rows at once, where a table is rearranged in place


def predicted_memory(count: int, neurons: int) -> int:
    """Bytes at the peak for m = count functions."""
    tables = TABLES_WITH_VECTORS if count <= VECTORS_LIMIT else TABLES
    return int(8 * (tables * count**2 + 6 * count * neurons))


def predicted_seconds(count: int, neurons: int) -> float:
    """Rough seconds on one core for m = count functions."""
    return _seconds_of_tables(count, neurons) + SOLVES * float(count) ** 3 / SOLVE_RATE


def _seconds_of_tables(count: int, neurons: int) -> float:
    return 12.0 * float(count) ** 2 * neurons / PRODUCT_RATE


class SpanBasis:
    """Functions of R with independent gradients, made orthonormal by a pivoted Cholesky factor.

    Parameters
    ----------
    moments : RestrictedMoments
    metric : Tensor, shape (m, m)
        Its metric K, which is overwritten.

    Raises
    ------
    InputError
        If the metric holds NaN or infinity.
    """

    def __init__(self, moments: RestrictedMoments, metric: Tensor):
        if not torch.isfinite(metric).all():
            raise InputError("operator: expected finite moments, got NaN or infinity")
        self.moments = moments
        sizes = metric.diagonal().clone().numpy()
        cut = len(metric) * EPS * float(sizes.max(initial=0.0))
        # Of a symmetric matrix the transpose is the column-major array that LAPACK works in, without a copy.
        factor, order, rank, _ = lapack.dpstrf(metric.numpy().T, tol=cut, lower=1, overwrite_a=1)
        self.rank = int(rank)
        self.order = torch.as_tensor(order.astype(np.int64) - 1)
        whole = self.rank == len(metric)
        self.triangle = factor if whole else np.asfortranarray(factor[: self.rank, : self.rank])
        self.rest = factor[self.rank :, : self.rank].copy()
        left = sizes[self.order[self.rank :]] - np.square(self.rest).sum(1)
        kept = float(self.triangle[-1, -1]) if self.rank else 0.0
        self.gap = float(np.sqrt(max(0.0, left.max(initial=0.0)))) / kept if kept else 0.0

    @property
    def tilt(self) -> float:
        """Bound of the angle by which rounding of the fields Q turns their span away from T_R."""
        if not self.rank:
            return 0.0
        inverse, failed = lapack.dtrcon(self.triangle, norm="1", uplo="L")
        if failed or inverse == 0:
            return float("inf")
        angle = SAFETY * EPS / inverse  # the condition in the 1-norm: some times that in the 2-norm
        return angle if angle < UNCLEAR else float("inf")

    def lift(self, vectors: Tensor) -> Tensor:
        """``Q v``: coordinates to half-densities along the particles, (r, k) to (N, k)."""
        found = self._solve(vectors, transposed=True)
        coefficients = torch.zeros(self.moments.count, found.shape[1], dtype=found.dtype)
        coefficients[self.order[: self.rank]] = found
        return self.moments.lift(coefficients)

    def project(self, halves: Tensor) -> Tensor:
        """``Q^T x``: half-densities to coordinates, (N, k) to (r, k)."""
        return self._solve(self.moments.project(halves)[self.order[: self.rank]], transposed=False)

    def _solve(self, right: Tensor, *, transposed: bool) -> Tensor:
        solution = scipy.linalg.solve_triangular(
            self.triangle, right.numpy(), lower=True, trans=int(transposed), check_finite=False
        )
        return torch.as_tensor(solution)

    def compress(self, local: Tensor) -> Tensor:
        """``Q^T L Q`` by the moments, shape (r, r).

        Parameters
        ----------
        local : Tensor, shape (m, m)
            B of the moments, which is overwritten.

        Returns
        -------
        Tensor
        """
        if not self.rank:
            return local[:0, :0]
        table, chosen, r = local.numpy(), self.order[: self.rank].numpy(), self.rank
        for low in range(0, len(table), STEP):
            table[:r, low : low + STEP] = table[chosen, low : low + STEP]
        for low in range(0, r, STEP):
            table[low : low + STEP, :r] = table[low : low + STEP, chosen]
        part = table.T if r == len(table) else np.asfortranarray(table[:r, :r])
        part, _ = lapack.dsygst(part, self.triangle, itype=1, lower=1, overwrite_a=1)
        interaction, _ = lapack.dlauum(self.triangle, lower=1)
        interaction *= self.moments.curvature
        part += interaction
        if len(self.rest):
            part += self.moments.curvature * (self.rest.T @ self.rest)
        return torch.from_numpy(_mirrored(part))

    def refine(self, full: SecondVariation) -> Tensor | None:
        """Make Q orthonormal once more; ``Q^T L Q`` by products with its columns, shape (r, r).

        None, and nothing is changed, if Q is so far from orthonormal that ``Q^T Q`` is not definite.
        """
        factor, failed = lapack.dpotrf(_Compressed(self, None).dense().numpy().T, lower=1, clean=1)
        if failed:
            return None
        matrix = _Compressed(self, full).dense().numpy()
        part, _ = lapack.dsygst(matrix.T, factor, itype=1, lower=1, overwrite_a=1)
        self.triangle = np.asfortranarray(np.tril(self.triangle) @ factor)
        return torch.from_numpy(_mirrored(part))


def _mirrored(lower: np.ndarray) -> np.ndarray:
    """A symmetric matrix from its lower triangle, in place."""
    for low in range(0, len(lower), STEP):
        high = min(low + STEP, len(lower))
        corner = np.tril(lower[low:high, low:high])
        lower[low:high, low:high] = corner + np.tril(corner, -1).T
        lower[low:high, high:] = lower[high:, low:high].T
    return lower


class _Compressed(SymmetricOperator):
    """``Q^T L Q`` by the operator's own products, or ``Q^T Q`` without an operator."""

    def __init__(self, basis: SpanBasis, full: SecondVariation | None):
        self.basis, self.full, self.dimension = basis, full, basis.rank

    @override
    def _apply(self, block: Tensor) -> Tensor:
        fields = self.basis.lift(block)
        return self.basis.project(fields if self.full is None else self.full.apply(fields))


class _Identity(SymmetricOperator):
    def __init__(self, dimension: int):
        self.dimension = dimension

    @override
    def _apply(self, block: Tensor) -> Tensor:
        return block


@dataclass(frozen=True, eq=False)
class SpanCompression:
    """The spectrum in span(R) with the space it lives on.

    Parameters
    ----------
    spectrum : Spectrum
        Complete; the errors hold for all eigenvalues at once except with probability 2e-9.
    functions, rank : int
        Functions that span R, and how many of them have independent gradients at these particles.
    gap : float
        Distance of the farthest gradient left out over that of the last one taken, each from the span of
        those taken before: small = a clear rank, 0 if none was left out.
    leak : float
        Upper bound of ``|(1 - Q Q^T) L v|`` over unit vectors v in the span: half the spread of the local
        part's eigenvalues, as the interaction stays inside.
    lift : callable
        Coordinates of vectors to half-densities, (rank, k) to (N, k).
    """

    spectrum: Spectrum
    functions: int
    rank: int
    gap: float
    leak: float
    lift: Callable[[Tensor], Tensor]


def compress_to_span(
    full: SecondVariation, *, seed: int = 0, progress: Report | None = None
) -> SpanCompression:
    """All eigenvalues of the second variation compressed to the gradients of span(R).

    Parameters
    ----------
    full : SecondVariation
        Of a group task, see `spectra.operators.assembly.can_assemble`.
    seed : int
        Of the vectors that measure the error.
    progress : callable, optional
        Told predicted seconds done, seconds in all, and the stage.

    Returns
    -------
    SpanCompression

    Raises
    ------
    InputError
        If the task has another structure, or a moment is NaN or infinite.
    """
    moments = RestrictedMoments(full.at)
    meter = _Meter(moments, progress)
    basis = SpanBasis(moments, moments.metric(advance=lambda: meter.table("metric of span(R)")).cpu())
    meter.solve(0, "rank of span(R)")
    local = moments.local_form(advance=lambda: meter.table("local part in span(R)")).cpu()
    small = DenseOperator(basis.compress(local))
    del local
    meter.solve(0.5, "comparing with the operator's products")
    method, apart = "moments of span(R)", _apart(basis, full, small, seed)
    if apart[0] + apart[1] * _size(small) > REFINE * _size(small):
        meter.solve(0.5, "products with all of span(R), whose gradients are nearly dependent")
        again = basis.refine(full)
        if again is not None:
            small, method = DenseOperator(again), "moments of span(R), refined by products"
            apart = _apart(basis, full, small, seed)
    meter.solve(0.55, "all eigenvalues in span(R)")
    found = dense_spectrum(small)
    meter.solve(1, "all eigenvalues in span(R)")
    levels = local_eigenvalues(full.at)
    leak = float(levels.max() - levels.min()) / 2
    norm = found.norm + float(levels.abs().max())  # of the full operator: outside the span it is local
    turned = 2 * basis.tilt * leak + 2 * basis.tilt**2 * norm
    return SpanCompression(
        _with_error(found, apart, turned, method, full.matvecs), moments.count, basis.rank, basis.gap, leak,
        basis.lift,
    )  # fmt: skip


def _size(small: DenseOperator) -> float:
    """Root mean square of the eigenvalues, not above the norm."""
    return float(small.matrix.norm()) / max(1, small.dimension) ** 0.5


def _apart(basis: SpanBasis, full: SecondVariation, small: DenseOperator, seed: int) -> tuple[float, float]:
    """Bounds of ``|Q^T L Q - C|`` and ``|Q^T Q - 1|``."""
    if not small.dimension:
        return 0.0, 0.0
    negligible = NEGLIGIBLE * _size(small)
    same = _Identity(small.dimension)
    return (
        coupling_bound(_Compressed(basis, full), small, negligible=negligible, seed=seed),
        coupling_bound(_Compressed(basis, None), same, negligible=NEGLIGIBLE, seed=seed),
    )


def _with_error(
    found: Spectrum, apart: tuple[float, float], turned: float, method: str, products: int
) -> Spectrum:
    """Add the error of what tells the eigenvalues of a small matrix C from those of L in the span of Q.

    With ``Q^T L Q = C + E`` and ``Q^T Q = 1 + F`` these are the eigenvalues of the pencil (C + E, 1 + F): by
    Weyl ``|lambda(C + E) - lambda(C)| <= |E|``, by Ostrowski ``lambda(C + E)`` is one of the pencil times a
    number within |F| of 1. What turns the span away from T_R comes on top.
    """
    moved, skew = apart
    error = (moved + skew * found.norm) / (1 - skew) + turned if skew < 1 else np.inf
    useful = error <= USEFUL * found.norm
    return dataclasses.replace(
        found, errors=found.errors + error, method=f"{method}, {found.method}", matvecs=products,
        converged=found.converged and useful, reason=Reason.MOMENTS if useful else Reason.DEPENDENT,
    )  # fmt: skip


class _Meter:
    """Turns finished stages into predicted seconds for a progress report."""

    def __init__(self, moments: RestrictedMoments, report: Report | None):
        m, q = moments.count, moments.q
        self.report, self.done = report, 0.0
        self.total = predicted_seconds(m, q)
        self.tables = _seconds_of_tables(m, q)
        self.each = self.tables / (2 * (moments.n + len(moments.outputs)))

    def table(self, message: str) -> None:
        """Tell that one step of a table is done."""
        self.done += self.each
        self._tell(message)

    def solve(self, share: float, message: str) -> None:
        """Tell that a share of the dense work is done."""
        self.done = max(self.done, share * (self.total - self.tables) + self.tables * (share > 0))
        self._tell(message)

    def _tell(self, message: str) -> None:
        if self.report is not None:
            self.report(min(self.done, self.total), self.total, message)
