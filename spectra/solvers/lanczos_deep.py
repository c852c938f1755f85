"""Lanczos thousands of products deep in single precision, for a small end inside a dense cluster.

The smallest eigenvalues of a trained network are the edge of a cluster whose spacings are 1e-6 of the norm
and less. Only the degree of the Krylov polynomial tells them apart. Orthogonality would cost more than the
products there (see `spectra.solvers.lanczos_passes` for what is separated enough), so it is given up, and the
ghosts that come of it are dropped. What is found is a start for a solver in double precision, which certifies
it.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from spectra.solvers.lanczos import Product

BASIS_BYTES = 480 * 2**20
KEPT = 40  # Ritz vectors that survive a restart
LEAST = 8  # vectors of the basis before a limit ends it
GUARD = 6  # vectors beyond the wanted ones that are returned with them


def lowest_vectors(
    product: Product, dimension: int, count: int, *, tol: float = 1e-6, seed: int = 0,
    max_products: int = 20_000, max_seconds: float = math.inf, basis_bytes: int = BASIS_BYTES,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, np.ndarray, np.ndarray]:  # fmt: skip
    """Approximate eigenvectors at the small end by thick-restart Lanczos in single precision.

    Orthogonality is kept against the retained Ritz vectors only; what is lost to the others shows as ghost
    copies of converged eigenvalues. They are dropped, but while they last they hide what has not converged:
    the result is a start for a block solver, which also has to meet the copies of degenerate eigenvalues.

    Parameters
    ----------
    product : callable
        Maps a single-precision column (N, 1) to its image.
    dimension : int
        N.
    count : int
        Wanted vectors.
    tol : float
        Wanted residual relative to the norm.
    seed : int
        Of the start vector.
    max_products, max_seconds : int, float
        Limits.
    basis_bytes : int
        Memory for the basis.
    device : str
        Torch device.

    Returns
    -------
    vectors : Tensor, shape (N, count + guard), float32
        Ritz vectors, smallest first.
    values, residuals : ndarray
        Their Ritz values and residuals (absolute), by single-precision products.
    """
    rng = np.random.default_rng(seed)
    space = _LongBasis(product, dimension, basis_bytes, device)
    last = time.monotonic() + max_seconds
    space.start(torch.as_tensor(rng.standard_normal((dimension, 1)), dtype=torch.float32, device=device))
    while True:
        spent = space.fill(max_products, last) or space.size >= dimension - 1
        values, coordinates, residuals = space.ritz()
        small = tol * np.abs(values).max()
        settled = bool((residuals[:count] <= small).all())
        if not (spent or settled or space.full):
            continue
        vectors, values, residuals = space.improved(coordinates[:, : min(KEPT, space.size // 2)])
        if spent or (len(values) >= count and bool((residuals[:count] <= 3 * small).all())):
            wanted = slice(0, count + GUARD)
            return vectors[:, wanted], values[wanted], residuals[wanted]
        if space.full:
            space.restart(vectors, values)


class _LongBasis:
    def __init__(self, product: Product, dimension: int, limit: int, device: str | torch.device):
        room = min(dimension, max(4 * KEPT, limit // (4 * dimension)))
        self.product, self.products, self.kept, self.size = product, 0, 0, 0
        # One row per vector: rows are contiguous, columns of a wide table are not.
        self.rows = torch.empty(room, dimension, dtype=torch.float32, device=device)
        self.matrix = np.zeros((room + 1, room + 1))
        self.next: Tensor

    def start(self, vector: Tensor) -> None:
        self.next = vector / vector.norm()

    @property
    def full(self) -> bool:
        """Whether there is no room for another vector."""
        return self.size == len(self.rows)

    def fill(self, max_products: int, last: float) -> bool:
        """Extend the basis by a third, to its full length at most; True if a limit ended it before."""
        until = min(len(self.rows), 100 + 4 * self.size // 3)
        while self.size < until:
            if self.size >= LEAST and (self.products >= max_products or time.monotonic() >= last):
                return True
            self._step()
        return False

    def _step(self) -> None:
        k, v = self.size, self.next
        self.rows[k] = v[:, 0]
        image = self.product(v)
        self.products += 1
        if k > self.kept:
            image = image - self.matrix[k - 1, k] * self.rows[k - 1][:, None]
        alpha = _inner(image, v)
        image = image - alpha * v
        self.matrix[k, k] = alpha
        if self.kept:
            kept = self.rows[: self.kept]
            inner = kept @ image
            image = image - kept.T @ inner
            if k == self.kept:  # later steps only bring back what rounding lost
                arrow = inner[:, 0].double().cpu().numpy()
                self.matrix[:k, k] = self.matrix[k, :k] = arrow
        beta = math.sqrt(_inner(image, image))
        self.matrix[k, k + 1] = self.matrix[k + 1, k] = beta
        self.next = image / beta
        self.size += 1

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values, ascending, their coordinates, and residual estimates."""
        k = self.size
        values, coordinates = np.linalg.eigh(self.matrix[:k, :k])
        return values, coordinates, np.abs(self.matrix[k - 1, k] * coordinates[-1])

    def combine(self, coordinates: np.ndarray) -> Tensor:
        """Vectors from their coordinates, orthonormal up to rounding."""
        factors = torch.as_tensor(coordinates, dtype=torch.float32, device=self.rows.device)
        return self.rows[: self.size].T @ factors

    def improved(self, coordinates: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Rayleigh-Ritz pairs in the span of some Ritz vectors, by products of their own.

        Ghost copies are parallel and dropped. The recurrence only estimates; these residuals are true.
        """
        vectors = self.combine(coordinates)
        vectors, sizes = torch.linalg.qr(vectors / vectors.norm(dim=0))
        vectors = vectors[:, sizes.diagonal().abs() > 0.5]
        images = torch.cat([self.product(v[:, None]) for v in vectors.T], dim=1)
        self.products += images.shape[1]
        inner = (vectors.T @ images).double().cpu().numpy()
        values, turn = np.linalg.eigh(0.5 * (inner + inner.T))
        turn = torch.as_tensor(turn, dtype=torch.float32, device=vectors.device)
        vectors, images = vectors @ turn, images @ turn
        theta = torch.as_tensor(values, dtype=torch.float32, device=vectors.device)
        return vectors, values, (images - vectors * theta).norm(dim=0).double().cpu().numpy()

    def restart(self, vectors: Tensor, values: np.ndarray) -> None:
        """Keep some Ritz vectors of the small end and go on from the last residual.

        None of the large end: it converges again within a few steps.
        """
        self.kept = self.size = len(values)
        self.rows[: self.kept] = vectors.T
        self.matrix[:] = 0
        self.matrix[np.arange(self.kept), np.arange(self.kept)] = values
        self.start(self.next - vectors @ (vectors.T @ self.next))


def _inner(one: Tensor, two: Tensor) -> float:
    return float((one * two).sum(dtype=torch.float64))
