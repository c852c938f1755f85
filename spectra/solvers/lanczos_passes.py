"""Eigenvectors at the upper end of a spectrum, every copy of each: Lanczos passes one after the other.

One Krylov space meets one copy of a degenerate eigenvalue; the next one, in the complement of what was found,
meets the next copy. The last pass finds that the complement holds nothing that belongs to the wanted ones: a
search from a random start, at least half as deep as the one that found them, not a proof.
In single precision vectors need half the memory and products half the time; the rounding, about 3e-7 of the
norm, lies below what a start of a double-precision solver needs. For the lower end negate the product.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectra.solvers.block_lanczos import CHECK, GUARD
from spectra.solvers.lanczos import Lanczos, Product

BASIS_BYTES = 480 * 2**20  # of one pass; then it restarts
ROOM = 2000  # most vectors of it: their Rayleigh-Ritz problem is dense
KEPT = 40  # Ritz vectors that survive a restart
LOOK = 10  # steps between two looks at the Ritz values, at least
LEAST = 8  # steps before a limit ends a pass
PASSES = 40  # most copies of one eigenvalue
DOUBT = 0.1  # a complement is seen when its top is known to this share of its distance from the wanted ones


@dataclass(frozen=True, eq=False)
class UpperVectors:
    """Approximate eigenvectors of the largest eigenvalues.

    Parameters
    ----------
    vectors : Tensor, shape (N, count + guard)
        Orthonormal up to rounding, the largest first; fewer where the space is smaller.
    values, residuals : ndarray, shape (count + guard,)
        Ritz values, and their residuals up to the rounding of products (absolute).
    complete : bool
        Whether a search of the complement found no more; False where a limit came first.
    """

    vectors: Tensor
    values: np.ndarray
    residuals: np.ndarray
    complete: bool


def upper_vectors(
    product: Product, dimension: int, count: int, *, tol: float = 1e-6, seed: int = 0,
    dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu",
    max_seconds: float = math.inf, max_products: float = math.inf, basis_bytes: int = BASIS_BYTES,
) -> UpperVectors:  # fmt: skip
    """Approximate eigenvectors at the large end of an operator.

    Parameters
    ----------
    product : callable
        Maps a column (N, 1) of the given precision to its image.
    dimension : int
        N.
    count : int
        Wanted vectors.
    tol : float
        Wanted residual relative to the norm; single precision reaches about 4e-7, whatever is asked.
    seed : int
        Of the start vectors.
    dtype : torch.dtype
        Precision of vectors and products.
    device : str
        Torch device.
    max_seconds, max_products : float
        Limits; what has been found by then is returned.
    basis_bytes : int
        Memory of a basis.

    Returns
    -------
    UpperVectors
    """
    rng = np.random.default_rng(seed)
    wanted = min(count + GUARD, dimension)
    kept = max(KEPT, wanted)
    room = max(4 * kept, min(ROOM, basis_bytes // (dtype.itemsize * dimension)))
    search = _Search(product, count, tol, kept, time.monotonic() + max_seconds, max_products)
    known = _Pairs(torch.empty(dimension, 0, dtype=dtype, device=device), np.array([]), np.array([]))
    merged, complete = known, False
    for _ in range(PASSES):
        first = torch.as_tensor(rng.standard_normal((dimension, 1)), dtype=dtype, device=device)
        space = Lanczos(search.counted, first, room, known.vectors)
        if not space.room:
            merged, complete = known, True
            break
        threshold = known.values[count - 1] if len(known.values) >= count else -np.inf
        settled = search.settle(space, threshold)
        values, coordinates, residuals = (part[..., ::-1][..., :wanted] for part in space.ritz())
        found = _Pairs(space.vectors(coordinates), values, residuals)
        merged = known.joined(found).chosen(slice(wanted))
        complete = settled and values[0] <= threshold + 0.1 * tol * search.norm
        if complete or not settled:
            break
        # Only what has converged is avoided: a guard that has not may hold a part of a missing copy.
        known = known.joined(found.chosen(residuals <= tol * search.norm)).chosen(slice(wanted))
    return UpperVectors(merged.vectors, merged.values, merged.residuals, complete)


@dataclass(frozen=True, eq=False)
class _Pairs:
    vectors: Tensor
    values: np.ndarray
    residuals: np.ndarray

    def chosen(self, which: slice | np.ndarray) -> _Pairs:
        """Some of them, the largest first."""
        order = np.argsort(-self.values, kind="stable")
        order = order[which[order] if isinstance(which, np.ndarray) else which]
        columns = torch.as_tensor(order.copy(), device=self.vectors.device)
        return _Pairs(self.vectors[:, columns], self.values[order], self.residuals[order])

    def joined(self, other: _Pairs) -> _Pairs:
        """These and the others."""
        return _Pairs(
            torch.cat([self.vectors, other.vectors], dim=1),
            np.concatenate([self.values, other.values]), np.concatenate([self.residuals, other.residuals]),
        )  # fmt: skip


class _Search:
    def __init__(
        self, product: Product, count: int, tol: float, kept: int, last: float, max_products: float
    ):  # fmt: skip
        self.product, self.count, self.tol, self.kept, self.last = product, count, tol, kept, last
        self.products, self.max_products = 0, max_products
        self.deepest = 0  # products of the deepest pass so far
        self.norm = 0.0  # of the operator, as far as it was seen

    def counted(self, vector: Tensor) -> Tensor:
        self.products += 1
        return self.product(vector)

    @property
    def spent(self) -> bool:
        """Whether a limit was reached."""
        return self.products >= self.max_products or time.monotonic() >= self.last

    def settle(self, space: Lanczos, threshold: float) -> bool:
        """Grow the space until what lies above the threshold is known; False if a limit came first."""
        begin = self.products
        while True:
            for _ in range(max(LOOK, space.steps // 8)):
                if not space.exhausted and not (self.spent and space.steps >= LEAST):
                    space.step()
            depth = self.products - begin
            if self._known(space, threshold, depth) or space.invariant:
                self.deepest = max(self.deepest, depth)
                return True
            if self.spent:
                return False
            if space.exhausted:
                pairs = (part[..., ::-1][..., : self.kept] for part in space.ritz()[:2])
                space.restart(*pairs)

    def _known(self, space: Lanczos, threshold: float, depth: int) -> bool:
        values, residuals = (table[::-1] for table in space.estimates())
        self.norm = max(self.norm, float(np.abs(values).max()))
        above = values > threshold
        above[self.count :] = False
        if threshold > values[0] and residuals[0] <= DOUBT * (threshold - values[0]):
            # What converged within the deepest pass shows as a value in half of it: so would its copy.
            return depth >= max(CHECK, self.deepest // 2)
        small = residuals[above] <= self.tol * self.norm
        return bool(above.any() and space.steps > self.count and small.all())
