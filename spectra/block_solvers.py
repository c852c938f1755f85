"""Both ends of the spectrum by a block method that does not lose copies of degenerate eigenvalues.

Block Lanczos in its Davidson form: Rayleigh-Ritz in a growing basis with thick restarts, expanded by the
(optionally preconditioned) residuals of the wanted Ritz pairs. Without a preconditioner its spaces are those
of block Lanczos; a random block as wide as the number of wanted pairs meets every copy of an eigenvalue.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from torch import Tensor

from manifold.errors import InputError
from spectra.eigen import EPS, Reason, Spectrum, certify, dense_spectrum
from spectra.variation import SymmetricOperator

ENDS = ("smallest", "largest")
GUARD = 4  # extra pairs iterated at each end, so that the last wanted ones converge fast
CHECKS = 3  # Krylov steps of a fresh random block that must leave converged ends unchanged
RESTART = 4  # basis size over the size of the iterated block
Preconditioner = Callable[[Tensor, Tensor], Tensor]


@dataclass(eq=False)
class _Basis:
    """Orthonormal columns V with their images L V and the Rayleigh-Ritz pairs in their span."""

    operator: SymmetricOperator
    columns: Tensor
    images: Tensor

    @classmethod
    def of(cls, operator: SymmetricOperator, columns: Tensor) -> _Basis:
        basis = cls(operator, columns[:, :0], columns[:, :0])
        basis.extend(columns)
        return basis

    def extend(self, block: Tensor) -> int:
        """Add what is new in a block; returns the number of new columns."""
        for _ in range(2):  # twice is enough (Kahan)
            block = block / block.norm(dim=0).clamp_min(1e-300)
            block = block - self.columns @ (self.columns.T @ block)
            left, sizes, _ = torch.linalg.svd(block, full_matrices=False)
            block = left[:, sizes > 1e-8]
        room = self.operator.dimension - self.columns.shape[1]
        block = block[:, :room]
        if block.shape[1]:
            self.columns = torch.cat([self.columns, block], dim=1)
            self.images = torch.cat([self.images, self.operator.apply(block)], dim=1)
        return block.shape[1]

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values, ascending, and their coordinates in the basis.

        Raises
        ------
        InputError
            If the operator gave NaN or infinity.
        """
        matrix = self.columns.T @ self.images
        if not torch.isfinite(matrix).all():
            raise InputError("operator: expected finite products, got NaN or infinity")
        return torch.linalg.eigh(0.5 * (matrix + matrix.T))

    def restart(self, coordinates: Tensor) -> None:
        """Keep the span of some Ritz vectors; costs no product."""
        self.columns, self.images = self.columns @ coordinates, self.images @ coordinates


def block_spectrum(
    operator: SymmetricOperator, count: int, *, tol: float = 1e-6, seed: int = 0, max_products: int = 20_000,
    max_seconds: float = math.inf, start: Tensor | None = None, precondition: Preconditioner | None = None,
    ends: tuple[str, ...] = ENDS,
) -> Spectrum:  # fmt: skip
    """The largest and smallest eigenvalues with residuals, copies of degenerate ones included.

    Parameters
    ----------
    operator : SymmetricOperator
    count : int
        Eigenvalues at each end.
    tol : float
        Wanted residual, relative to the operator norm.
    seed : int
        Of the random blocks.
    max_products, max_seconds : int, float
        Limits; what has been reached by then is returned, marked as not converged.
    start : Tensor, shape (N, k), optional
        Warm start, for instance the vectors of a neighbouring checkpoint; random columns are added.
    precondition : callable, optional
        Maps residuals (N, k) of the small end and their Ritz values (k,) to directions (N, k).
    ends : tuple of str
        ``smallest`` and ``largest``, or one of them: an end that was not asked for carries what came along.

    Returns
    -------
    Spectrum
        Not complete unless the space is small; errors are residual bounds, the counts are bounds from the
        Ritz values (by interlacing, k negative Ritz values prove k negative eigenvalues).

    Raises
    ------
    InputError
        If the operator gives NaN, for a count below one or an unknown end.
    """
    if count < 1:
        raise InputError(f"count: expected at least one eigenvalue at each end, got {count}")
    if not ends or set(ends) - set(ENDS):
        raise InputError(f"ends: expected some of {', '.join(ENDS)}, got {ends!r}")
    width = count + GUARD
    if operator.dimension <= 2 * RESTART * width:
        return dense_spectrum(operator)
    search = _Search(operator, count, width, tol, np.random.default_rng(seed), precondition, ends)
    return search.run(start, operator.matvecs + max_products, time.monotonic() + max_seconds)


def arpack_start(
    operator: SymmetricOperator, count: int, end: str, *, tol: float = 1e-6, seed: int = 0,
    max_products: int = 2000,
) -> Tensor:  # fmt: skip
    """Approximate eigenvectors of one end, a start for `block_spectrum`, by ARPACK.

    A single-vector Krylov space needs the fewest products where eigenvalues are well separated, as they are
    at the large end; it may lose copies of degenerate ones, which the block solver then meets.

    Parameters
    ----------
    operator : SymmetricOperator
    count : int
        Wanted vectors.
    end : str
        ``smallest`` or ``largest``.
    tol : float
        Wanted residual relative to the eigenvalue.
    seed : int
        Of the start vector.
    max_products : int
        Limit; what has converged by then is returned.

    Returns
    -------
    Tensor, shape (N, k), k <= count
    """
    size, basis = operator.dimension, min(operator.dimension, 4 * count + 40)
    if basis <= count + 1:
        return torch.zeros(size, 0, dtype=torch.float64, device=operator.device)
    first = np.random.default_rng(seed).standard_normal(size)
    which = {"smallest": "SA", "largest": "LA"}[end]
    try:
        _, vectors = eigsh(
            operator.linear_operator(), k=count, which=which, tol=0.3 * tol, v0=first, ncv=basis,
            maxiter=max(1, max_products // (basis - count)),
        )  # fmt: skip
    except ArpackNoConvergence as stopped:
        vectors = stopped.eigenvectors
    return torch.as_tensor(np.ascontiguousarray(vectors), device=operator.device)


class _Search:
    def __init__(
        self, operator: SymmetricOperator, count: int, width: int, tol: float, rng: np.random.Generator,
        precondition: Preconditioner | None, ends: tuple[str, ...],
    ):  # fmt: skip
        self.operator, self.count, self.width, self.tol = operator, count, width, tol
        self.rng, self.precondition, self.ends = rng, precondition, ends

    def _random(self, columns: int) -> Tensor:
        block = self.rng.standard_normal((self.operator.dimension, columns))
        block = torch.as_tensor(block, device=self.operator.device)
        project = getattr(self.operator, "project", None)
        return block if project is None else project(block)

    def run(self, start: Tensor | None, last_product: int, last_time: float) -> Spectrum:
        block = self._random(2 * self.width)
        basis = _Basis.of(self.operator, block if start is None else torch.cat([start, block], dim=1))
        checks, added = 0, 0
        while True:
            values, coordinates = basis.ritz()
            chosen = self._ends(len(values))
            residuals = basis.images @ coordinates[:, chosen]
            residuals -= (basis.columns @ coordinates[:, chosen]) * values[chosen]
            sizes, norm = residuals.norm(dim=0), float(values.abs().max())
            wanted = self._wanted(len(values), chosen)
            asked = wanted & self._asked(len(chosen))
            converged = bool((sizes[asked] <= self.tol * norm).all())
            stop = self.operator.matvecs >= last_product or time.monotonic() >= last_time
            if stop or (converged and checks > CHECKS):
                break
            if converged:
                # Copies that the iteration lacks are met by the Krylov space of a fresh random block.
                fresh = self._random(self.width) if checks == 0 else basis.images[:, -added:]
            else:
                fresh = self._directions(residuals, sizes, values[chosen], asked, norm)
            checks = checks + 1 if converged else 0
            if len(values) + fresh.shape[1] > 2 * RESTART * self.width:
                basis.restart(coordinates[:, self._ends(len(values), 2)])
            added = basis.extend(fresh)
            if added == 0:  # the basis spans an invariant space
                converged, checks = True, CHECKS + 1
                break
        kept = chosen[wanted]
        return self._certified(values, basis, coordinates, kept, converged and checks > CHECKS)

    def _directions(
        self, residuals: Tensor, sizes: Tensor, values: Tensor, wanted: Tensor, norm: float
    ) -> Tensor:
        """Residuals of the ends that are still open, those of the small end preconditioned."""
        half = len(values) // 2
        parts = []
        for end in (slice(0, half), slice(half, None)):
            if bool((sizes[end][wanted[end]] <= self.tol * norm).all()):
                continue
            open_pairs = sizes[end] > 1e-2 * self.tol * norm
            part = residuals[:, end][:, open_pairs]
            if self.precondition is not None and end.start == 0:
                part = self.precondition(part, values[end][open_pairs])
            parts.append(part)
        return torch.cat(parts, dim=1)

    def _ends(self, size: int, times: int = 1) -> Tensor:
        """Numbers of the iterated Ritz pairs at both ends."""
        width = min(times * self.width, size // 2)
        return torch.cat([torch.arange(width), torch.arange(size - width, size)])

    def _asked(self, size: int) -> Tensor:
        """Which of the iterated pairs, both ends in turn, lie at an end that was asked for."""
        low = torch.arange(size) < size // 2
        return (low & ("smallest" in self.ends)) | (~low & ("largest" in self.ends))

    def _wanted(self, size: int, chosen: Tensor) -> Tensor:
        return (chosen < self.count) | (chosen >= size - self.count)

    def _certified(
        self, values: Tensor, basis: _Basis, coordinates: Tensor, kept: Tensor, converged: bool
    ) -> Spectrum:
        norm = float(values.abs().max())
        rounding = 16 * EPS * self.operator.dimension**0.5 * norm
        vectors = basis.columns[:, : len(values)] @ coordinates[:, kept]
        return certify(
            self.operator, values[kept].cpu().numpy(), vectors, complete=False, method="block Lanczos",
            converged=converged, reason=Reason.KRYLOV if converged else Reason.NOT_CONVERGED,
            at_least=(int((values < -rounding).sum()), int((values > rounding).sum())),
        )  # fmt: skip


def norm_bound(
    operator: SymmetricOperator, *, seed: int = 0, steps: int = 20, risk: float = 1e-9
) -> tuple[float, float]:
    """Upper bound of the operator norm that holds except with a stated small probability.

    Lanczos for L^2 from a random start: the largest Ritz value theta after k steps obeys
    ``P(lambda > theta / (1 - eps)) <= 1.648 sqrt(N) exp(-sqrt(eps) (2k - 1))``
    (Kuczynski & Wozniakowski 1992), whatever the operator.

    Parameters
    ----------
    operator : SymmetricOperator
    seed : int
        Of the start vector.
    steps : int
        Lanczos steps k; twice as many products.
    risk : float
        Probability that the bound fails.

    Returns
    -------
    bound, estimate : float
        The certified bound, and the largest Ritz value itself (a lower bound of the norm).

    Raises
    ------
    InputError
        If there are too few steps for the risk.
    """
    size = operator.dimension
    eps = (math.log(1.648 * math.sqrt(size) / risk) / (2 * steps - 1)) ** 2
    if eps >= 1 and size > steps:
        raise InputError(f"steps: expected more than {steps} Lanczos steps for a risk of {risk:g}")
    rng = np.random.default_rng(seed)
    v = torch.as_tensor(rng.standard_normal((size, 1)), device=operator.device)
    basis = torch.zeros(size, 0, dtype=v.dtype, device=v.device)
    images = basis
    for _ in range(min(steps, size)):
        for _ in range(2):
            v = v - basis @ (basis.T @ v)
        length = float(v.norm())
        if length == 0.0:
            break
        basis = torch.cat([basis, v / length], dim=1)
        image = operator.apply(basis[:, -1:])
        images = torch.cat([images, image], dim=1)
        v = operator.apply(image)
        if float(v.norm()) <= 1e-300:
            break
    estimate = float(torch.linalg.svdvals(images)[0]) if images.shape[1] else 0.0
    complete = basis.shape[1] >= size
    return (estimate if complete else estimate / math.sqrt(1 - eps)), estimate
