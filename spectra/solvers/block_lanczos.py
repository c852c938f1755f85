"""Both ends of the spectrum by a block method that does not lose copies of degenerate eigenvalues.

Block Lanczos in its Davidson form: Rayleigh-Ritz in a growing basis with thick restarts, expanded by the
(optionally preconditioned) residuals of the wanted Ritz pairs. Without a preconditioner its spaces are those
of block Lanczos; a random block as wide as the number of wanted pairs meets every copy of an eigenvalue. A
start, which may lack copies, is tested by a Krylov space in the complement of what converged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError
from spectra.operators.variation import SymmetricOperator
from spectra.rounding import arithmetic
from spectra.solvers.lanczos import Lanczos
from spectra.solvers.ritz_basis import RitzBasis
from spectra.solvers.spectrum import Reason, Spectrum, certify, dense_spectrum, power_norm

ENDS = ("smallest", "largest")
GUARD = 4  # extra pairs iterated at each end, so that the last wanted ones converge fast
CHECK = 60  # Lanczos steps in the complement of converged ends, in search of copies they lack
MIXING = 10.0  # times a residual: how far the eigenvalues that a Ritz vector mixes may lie apart
PASSES = 8  # of an orthogonalisation at most
RESTART = 4  # basis size over the size of the iterated block
Preconditioner = Callable[[Tensor, Tensor], Tensor]


def block_spectrum(
    operator: SymmetricOperator, count: int, *, tol: float = 1e-6, seed: int = 0, max_products: int = 20_000,
    max_seconds: float = math.inf, start: Tensor | None = None, precondition: Preconditioner | None = None,
    ends: tuple[str, ...] = ENDS, complete: tuple[str, ...] = (), uncertainty: float = 0.0,
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
        ``smallest`` and ``largest``, or one of them: of an end that was not asked for only what came along.
    complete : tuple of str
        Ends whose start is known to hold every copy (see `spectra.methods.large_end`), not searched again.
    uncertainty : float
        Norm of what the operator is known to: signs of Ritz values within it prove nothing.

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
    if operator.dimension <= 2 * RESTART * (count + GUARD):
        return dense_spectrum(operator)
    rng = np.random.default_rng(seed)
    search = _Search(operator, count, tol, rng, precondition, ends, complete, uncertainty)
    return search.run(start, operator.matvecs + max_products, time.monotonic() + max_seconds)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Ritz pairs of a basis, and residuals of those chosen at both ends, the low ones first.

    Of these, `wanted` are those that are counted, `asked` those at an end that was asked for.
    """

    values: Tensor
    coordinates: Tensor
    chosen: Tensor
    low: int
    residuals: Tensor
    sizes: Tensor
    wanted: Tensor
    asked: Tensor
    norm: float
    converged: bool

    def thresholds(self) -> tuple[float, float]:
        """The last wanted value of each end."""
        values = self.values[self.chosen[self.wanted]]
        low = int(self.wanted[: self.low].sum())
        return float(values[low - 1]), float(values[low])


class _Search:
    def __init__(
        self, operator: SymmetricOperator, count: int, tol: float, rng: np.random.Generator,
        precondition: Preconditioner | None, ends: tuple[str, ...], complete: tuple[str, ...],
        uncertainty: float,
    ):  # fmt: skip
        self.uncertainty = uncertainty
        self.operator, self.count, self.tol, self.rng = operator, count, tol, rng
        self.precondition, self.ends = precondition, ends
        self.complete, self.tested = complete, set(ends) - set(complete)
        # An end alone does not show the norm that its tolerance refers to.
        self.least_norm = 0.0 if "largest" in ends else power_norm(operator)
        self.widths = [count + GUARD if end in ends else 1 for end in ENDS]

    def _random(self, columns: int) -> Tensor:
        block = self.rng.standard_normal((self.operator.dimension, columns))
        return torch.as_tensor(block, device=self.operator.device)

    def run(self, start: Tensor | None, last_product: int, last_time: float) -> Spectrum:
        columns = 0 if start is None else start.shape[1]
        block = self._random(max(0, sum(self.widths) - columns))
        block = block if start is None else torch.cat([start, block], dim=1)
        most = max(2 * RESTART * max(self.widths), block.shape[1])
        basis = RitzBasis(self.operator, most + CHECK)
        basis.extend(block)
        tests, before = [self._powers, self._missing], None
        while True:
            pairs = self._pairs(basis)
            if not pairs.converged or self._moved(pairs, before):
                tests = [self._powers, self._missing]
            stop = self.operator.matvecs >= last_product or time.monotonic() >= last_time
            if stop or (pairs.converged and not tests):
                break
            before = pairs if pairs.converged else None
            fresh = tests.pop(0)(basis, pairs) if pairs.converged else self._directions(pairs)
            if basis.size + fresh.shape[1] > most:
                basis.restart(pairs.coordinates[:, self._chosen(basis.size, 2)[0]])
            if basis.extend(fresh) == 0 and not pairs.converged:
                break  # nothing is left to try: the basis spans an invariant space
        return self._certified(basis, pairs, not tests)

    def _pairs(self, basis: RitzBasis) -> _Pairs:
        values, coordinates = basis.pairs()
        chosen, low = self._chosen(len(values))
        residuals = basis.residuals(values[chosen], coordinates[:, chosen])
        sizes, norm = residuals.norm(dim=0), max(self.least_norm, float(values.abs().max()))
        is_low = torch.arange(len(chosen)) < low
        wanted = torch.where(is_low, chosen < self.count, chosen >= len(values) - self.count)
        asked = (is_low & ("smallest" in self.ends)) | (~is_low & ("largest" in self.ends))
        converged = bool((sizes[wanted & asked] <= self.tol * norm).all())
        return _Pairs(values, coordinates, chosen, low, residuals, sizes, wanted, asked, norm, converged)

    def _chosen(self, size: int, times: int = 1) -> tuple[Tensor, int]:
        """Numbers of the iterated Ritz pairs at both ends, and how many of them are at the low one."""
        low, high = (times * width for width in self.widths)
        if low + high > size:
            low = size // 2 if len(self.ends) == 2 else min(low, size - 1) if low > high else 1
            high = size - low
        return torch.cat([torch.arange(low), torch.arange(size - high, size)]), low

    def _moved(self, pairs: _Pairs, before: _Pairs | None) -> bool:
        """Whether a test has changed a wanted value, any of them: then it has found a copy."""
        if before is None:
            return False
        now, then = (p.values[p.chosen[p.wanted & p.asked]] for p in (pairs, before))
        return len(now) != len(then) or bool(((now - then).abs() > self.tol * pairs.norm).any())

    def _directions(self, pairs: _Pairs) -> Tensor:
        """Residuals of the ends that are still open, those of the small end preconditioned."""
        small = self.tol * pairs.norm
        parts = [pairs.residuals[:, :0]]
        for name, end in zip(ENDS, (slice(0, pairs.low), slice(pairs.low, None)), strict=True):
            sizes = pairs.sizes[end]
            if name not in self.ends or bool((sizes[pairs.wanted[end]] <= small).all()):
                continue
            open_pairs = sizes > 1e-2 * small
            if name in self.complete:  # nearly there: the guards have done their work
                open_pairs = (sizes > 0.5 * small) & pairs.wanted[end]
            part = pairs.residuals[:, end][:, open_pairs]
            if self.precondition is not None and name == "smallest":
                part = self.precondition(part, pairs.values[pairs.chosen[end]][open_pairs])
            parts.append(part)
        return torch.cat(parts, dim=1)

    def _powers(self, basis: RitzBasis, pairs: _Pairs) -> Tensor:
        """A random block, preconditioned twice: it turns to what is lowest, copies included."""
        if self.precondition is None or "smallest" not in self.tested:
            return pairs.residuals[:, :0]
        block = self._random(self.count)
        for _ in range(2):
            lowest = pairs.values[: self.count]
            block = self.precondition(block / block.norm(dim=0), lowest)
        return block

    def _missing(self, basis: RitzBasis, pairs: _Pairs) -> Tensor:
        """Ritz vectors in the complement that belong among the wanted ones: copies that were missed."""
        if not self.tested:
            return pairs.residuals[:, :0]
        # Only what has converged is avoided: a guard that has not may hold a part of a missing copy.
        converged = pairs.chosen[pairs.sizes <= self.tol * pairs.norm]
        known = basis.vectors(pairs.coordinates[:, converged])
        space = Lanczos(self.operator.apply, self._random(1), CHECK, known)
        while not space.exhausted:
            space.step()
        values, coordinates, _ = space.ritz()
        low, high = pairs.thresholds()
        margin = self.tol * pairs.norm
        missing = ("smallest" in self.tested) & (values < low - margin)
        missing |= ("largest" in self.tested) & (values > high + margin)
        return space.vectors(coordinates[:, missing])

    def _certified(self, basis: RitzBasis, pairs: _Pairs, tested: bool) -> Spectrum:
        values, kept = pairs.values, pairs.chosen[pairs.wanted]
        rounding = arithmetic(self.operator.dimension, pairs.norm) + self.uncertainty
        converged = pairs.converged and tested
        found = certify(
            self.operator, values[kept].cpu().numpy(), basis.vectors(pairs.coordinates[:, kept]),
            complete=False, method="block Lanczos", converged=converged,
            reason=Reason.KRYLOV if converged else Reason.NOT_CONVERGED,
            at_least=(int((values < -rounding).sum()), int((values > rounding).sum())),
            norm=pairs.norm,
        )  # fmt: skip
        # A residual bounds the distance to an eigenvalue. A vector whose residual is not small mixes several:
        # which of them is the next one at the end is known to the margin of the search only.
        mixed = np.minimum(MIXING * found.residuals, self.tol * pairs.norm)
        return replace(found, errors=found.errors + mixed)


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
    if not size:
        return 0.0, 0.0
    eps = (math.log(1.648 * math.sqrt(size) / risk) / (2 * steps - 1)) ** 2
    if eps >= 1 and size > steps:
        raise InputError(f"steps: expected more than {steps} Lanczos steps for a risk of {risk:g}")
    rng = np.random.default_rng(seed)
    v = torch.as_tensor(rng.standard_normal((size, 1)), device=operator.device)
    basis = torch.zeros(size, 0, dtype=v.dtype, device=v.device)
    images = basis
    for _ in range(min(steps, size)):
        for _ in range(PASSES):
            v = v / v.norm()
            v = v - basis @ (basis.T @ v)
            if v.norm() > 0.5:  # else most of it was rounding, which need not be orthogonal
                break
        else:  # zero, or nothing is left outside
            break
        basis = torch.cat([basis, v / v.norm()], dim=1)
        image = operator.apply(basis[:, -1:])
        images = torch.cat([images, image], dim=1)
        v = operator.apply(image)
    estimate = float(torch.linalg.svdvals(images)[0])
    complete = basis.shape[1] >= size
    return (estimate if complete else estimate / math.sqrt(1 - eps)), estimate
