"""Eigenvectors at the upper end of a spectrum, every copy of each: Lanczos passes one after the other.

One Krylov space meets one copy of a degenerate eigenvalue; the next one, in the complement of what was found,
meets the next copy. The last pass shows that the complement holds nothing that belongs to the wanted ones.
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

from spectra.block_solvers import GUARD
from spectra.lanczos import Lanczos, Product

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
        Whether the complement was seen to hold no more; False where a limit came first.
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
    search = _Search(product, count, tol, time.monotonic() + max_seconds, max_products)
    rng = np.random.default_rng(seed)
    wanted = min(count + GUARD, dimension)
    room = min(ROOM, max(4 * KEPT, basis_bytes // (dtype.itemsize * dimension)))
    vectors = torch.zeros(dimension, 0, dtype=dtype, device=device)
    values = residuals = np.zeros(0)
    for _ in range(PASSES):
        first = torch.as_tensor(rng.standard_normal((dimension, 1)), dtype=dtype, device=device)
        space = Lanczos(search.counted, first, min(room, dimension - len(values)), vectors)
        if space.room <= 0:
            return UpperVectors(vectors, values, residuals, True)
        threshold = values[count - 1] if len(values) >= count else -np.inf
        settled = search.settle(space, threshold)
        found, coordinates, errors = (part[..., ::-1][..., :wanted] for part in space.ritz())
        if settled and len(values) >= count and found[0] <= threshold + search.slack(space):
            return UpperVectors(vectors, values, residuals, True)
        vectors = torch.cat([vectors, space.vectors(coordinates)], dim=1)
        values, residuals = np.concatenate([values, found]), np.concatenate([residuals, errors])
        order = np.argsort(-values, kind="stable")[:wanted]
        vectors = vectors[:, torch.as_tensor(order.copy(), device=device)]
        values, residuals = values[order], residuals[order]
        if not settled:
            break
    return UpperVectors(vectors, values, residuals, False)


class _Search:
    def __init__(self, product: Product, count: int, tol: float, last: float, max_products: float):
        self.product, self.count, self.tol, self.last = product, count, tol, last
        self.products, self.max_products = 0, max_products

    def counted(self, vector: Tensor) -> Tensor:
        self.products += 1
        return self.product(vector)

    @property
    def spent(self) -> bool:
        """Whether a limit was reached."""
        return self.products >= self.max_products or time.monotonic() >= self.last

    def slack(self, space: Lanczos) -> float:
        """What does not count as larger: a tenth of the tolerance."""
        return 0.1 * self.tol * float(np.abs(space.estimates()[0]).max())

    def settle(self, space: Lanczos, threshold: float) -> bool:
        """Grow the space until what lies above the threshold is known; False if a limit came first."""
        while True:
            for _ in range(max(LOOK, space.steps // 8)):
                if not space.exhausted and not (self.spent and space.steps >= LEAST):
                    space.step()
            if space.invariant or self._known(space, threshold):
                return True
            if self.spent:
                return False
            if space.exhausted:
                pairs = (part[..., ::-1][..., : min(KEPT, space.steps // 2)] for part in space.ritz()[:2])
                space.restart(*pairs)

    def _known(self, space: Lanczos, threshold: float) -> bool:
        values, residuals = (table[::-1] for table in space.estimates())
        above = values > threshold
        above[self.count :] = False
        if threshold > values[0] and residuals[0] <= DOUBT * (threshold - values[0]):
            return True
        small = residuals[above] <= self.tol * np.abs(values).max()
        return bool(above.any() and space.steps > self.count and small.all())
