"""Lanczos with partial orthogonalisation, in the complement of vectors already known.

A single-vector Krylov space finds well separated ends with the fewest products: a hundred steps or so. It
sees one copy of a degenerate eigenvalue; run again in the complement of what was found, it sees the next
copy, or that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import eigh, eigh_tridiagonal
from torch import Tensor

from manifold.errors import InputError

Product = Callable[[Tensor], Tensor]

INDEPENDENT = 0.1  # of inner products: below this share of a unit vector, two vectors are one
NOTHING = 1e-12  # of the largest coefficient: a product that leads out of the space by less is rounding
NOISE = 0.3  # of the last place of the norm: what rounding adds to an inner product of two vectors


class Lanczos:
    """A growing Krylov space of a symmetric operator, in the precision of its start.

    The vectors are made orthogonal to all others only when an estimate of their inner products (Simon, The
    Lanczos algorithm with partial reorthogonalization, 1984) exceeds the root of the precision, and in the
    step after. Every coefficient that was subtracted and the inner products that are left are kept, so that
    Ritz pairs are as good as the products, not as good as the orthogonality.

    Parameters
    ----------
    product : callable
        Maps a column (N, 1) to its image.
    first : Tensor, shape (N, 1)
        Start vector, not zero.
    room : int
        Most steps.
    avoid : Tensor, shape (N, k), optional
        Orthonormal vectors the space keeps clear of.
    """

    def __init__(self, product: Product, first: Tensor, room: int, avoid: Tensor | None = None):
        self._known = first.T[:0] if avoid is None else avoid.T.contiguous()
        self._free = len(first) - len(self._known)
        self.product, self.room, self.steps = product, min(room, self._free), 0
        held = self.room + 1  # vectors, one a row: rows are contiguous, columns of a wide table are not
        self._rows = torch.empty(held, len(first), dtype=first.dtype, device=first.device)
        self._coefficients = np.zeros((held, self.room))  # A Q_k = Q_{k+1} H
        self._inner, self._measured = np.empty((held, held)), 0
        self._eps = torch.finfo(first.dtype).eps
        self._losses = [np.array([]), np.ones(1)]  # estimated inner products of the last two vectors
        self._again, self._kept = False, 0  # whether to orthogonalise next; rows kept by a restart
        start = self._clear(self._clear(first[:, 0]))
        length = _length(start)
        self._rows[0] = start / length if length else 0

    @property
    def invariant(self) -> bool:
        """Whether the space holds all that its start can reach."""
        *inside, out = np.abs(self._coefficients[: self.steps + 1, : self.steps])
        lost = self.steps and out.max() <= NOTHING * np.max(inside)
        return bool(lost) or self.steps >= self._free

    @property
    def exhausted(self) -> bool:
        """Whether there is no room, or the space is invariant."""
        return self.steps >= self.room or self.invariant

    def _clear(self, vector: Tensor) -> Tensor:
        return vector - (self._known @ vector) @ self._known

    def step(self) -> None:
        """Extend the space by one vector."""
        j, last = self.steps, self._rows[self.steps]
        image = self.product(last[:, None])[:, 0]
        if j == 0:
            _length(image, whole=True)
        image = self._clear(image)
        for _ in range(2):  # the neighbours always, twice: nothing cancels afterwards
            image = self._subtracted(image, slice(max(j - 1, self._kept), j + 1))
        if self._kept:
            image = self._subtracted(image, slice(0, self._kept))
        image = self._clear(image)  # last, or what is left of the known ones grows from step to step
        length = _length(image)
        losses, noise = self._estimated(length)
        poor = bool(np.abs(losses).max() > self._eps**0.5)
        if poor or self._again:
            image, length = self._orthogonalised(image, length)
            losses[:] = noise
        self._again = poor and not self._again
        self._losses = [self._losses[1], np.append(losses, 1.0)]
        self._coefficients[j + 1, j] = length
        self._rows[j + 1] = image / length if length else 0
        self.steps = j + 1

    def _estimated(self, length: float) -> tuple[np.ndarray, float]:
        """Estimated inner products of the next vector with those held, and what rounding adds to each."""
        j, (before, now) = self.steps - self._kept, self._losses
        diagonal = np.diagonal(self._coefficients)[self._kept : self.steps + 1]
        below = np.append(0.0, np.diagonal(self._coefficients, -1)[self._kept : self.steps])
        length = max(length, 1e-300)
        scale = np.abs(diagonal).max() + 2 * max(below.max(), length)
        noise = min(1.0, NOISE * self._eps * scale / length)
        losses = (diagonal[:j] - diagonal[j]) * now[:j] + below[1:] * now[1:] - below[j] * before
        losses[1:] += below[1:j] * now[: j - 1]
        losses /= length
        return np.append(losses + np.copysign(noise, losses), noise), noise

    def _subtracted(self, image: Tensor, along: slice) -> Tensor:
        """The image without its parts along some vectors, which are noted."""
        parts = self._rows[along] @ image
        self._coefficients[along, self.steps] += parts.double().cpu().numpy()
        return image - parts @ self._rows[along]

    def _orthogonalised(self, image: Tensor, length: float) -> tuple[Tensor, float]:
        for _ in range(3):
            image = self._clear(self._subtracted(image, slice(0, self.steps + 1)))
            before, length = length, _length(image)
            if length > 0.5 * before:  # else most of it was rounding
                break
        return image, length

    def estimates(self) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values, ascending, and residuals by the recurrence alone: cheap, to see what has settled."""
        used = self._coefficients[: self.steps, : self.steps]
        if self._kept:
            values, coordinates = eigh(used)  # an arrow, whose lower triangle is all that is read
        else:
            values, coordinates = eigh_tridiagonal(np.diagonal(used), np.diagonal(used, -1))
        return values, self._residuals(coordinates)

    def _residuals(self, coordinates: np.ndarray) -> np.ndarray:
        return np.abs(self._coefficients[self.steps, : self.steps] @ coordinates)

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values, ascending, coordinates (steps, steps) and residuals (up to the error of products)."""
        k = self.steps
        rows = self._rows[: k + 1]
        new = (rows[self._measured :] @ rows.T).double().cpu().numpy()
        self._inner[self._measured : k + 1, : k + 1] = new
        self._inner[: k + 1, self._measured : k + 1] = new.T
        self._measured = k + 1
        gram = self._inner[:k, :k]
        compressed = self._inner[:k, : k + 1] @ self._coefficients[: k + 1, :k]
        # Vectors that depend on others, as they do once the space is all there is, are left out.
        sizes, directions = eigh(0.5 * (gram + gram.T))
        kept = sizes > INDEPENDENT
        root = directions[:, kept] / np.sqrt(sizes[kept])
        values, turned = eigh(root.T @ (0.5 * (compressed + compressed.T)) @ root)
        coordinates = root @ turned
        return values, coordinates, self._residuals(coordinates)

    def vectors(self, coordinates: np.ndarray) -> Tensor:
        """Vectors (N, k) from coordinates (steps, k), orthonormal up to rounding."""
        rows = self._rows[: self.steps]
        factors = torch.as_tensor(coordinates.T.copy(), dtype=rows.dtype, device=rows.device)
        return (factors @ rows).T

    def restart(self, values: np.ndarray, coordinates: np.ndarray) -> None:
        """Keep some Ritz pairs, values (k,) and coordinates (steps, k), and go on from the last vector."""
        k, last = len(values), self.steps
        out = self._coefficients[last, :last] @ coordinates
        self._rows[k], self._rows[:k] = self._rows[last].clone(), self.vectors(coordinates).T
        self._coefficients[:], self._measured = 0, 0
        self._coefficients[np.arange(k), np.arange(k)], self._coefficients[k, :k] = values, out
        self.steps = self._kept = k
        self._losses, self._again = [np.array([]), np.ones(1)], False


def _length(vector: Tensor, *, whole: bool = False) -> float:
    """Norm of a vector; of a whole product it may not vanish by rounding.

    Raises
    ------
    InputError
        For NaN or infinity, and where squares overflow or vanish.
    """
    length = float(vector.norm())
    if not math.isfinite(length) or (whole and length == 0 and bool(vector.any())):
        raise InputError("operator: expected finite products of a size that can be squared, got NaN or worse")
    return length
