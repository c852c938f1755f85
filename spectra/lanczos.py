"""Lanczos with full orthogonalisation, in the complement of vectors already known.

For well separated ends, which a single-vector Krylov space finds with the fewest products: a hundred steps or
so. It sees one copy of a degenerate eigenvalue; run again in the complement of what was found, it sees the
next copy, or that there is none. For ends hidden in a dense cluster see `spectra.long_lanczos`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

Product = Callable[[Tensor], Tensor]


class Lanczos:
    """A growing Krylov space of a symmetric operator, in the precision of its start.

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
        known = 0 if avoid is None else avoid.shape[1]
        self.product, self.known, self.room = product, known, min(room, len(first) - known)
        # One row per vector: rows are contiguous, columns of a wide table are not.
        self._rows = torch.empty(known + room + 1, len(first), dtype=first.dtype, device=first.device)
        if avoid is not None:
            self._rows[:known] = avoid.T
        self._alphas: list[float] = []
        self._betas: list[float] = []
        self._append(self._cleared(self._cleared(first[:, 0])))

    @property
    def steps(self) -> int:
        """Products spent."""
        return len(self._alphas)

    @property
    def invariant(self) -> bool:
        """Whether the space holds all that its start can reach."""
        lost = self.steps and self._betas[self.steps] <= 1e-12 * np.abs(self._alphas).max()
        return bool(lost) or self.steps >= len(self._rows[0]) - self.known

    @property
    def exhausted(self) -> bool:
        """Whether there is no room, or the space is invariant."""
        return self.steps >= self.room or self.invariant

    def _cleared(self, vector: Tensor) -> Tensor:
        held = self._rows[: self.known + len(self._betas)]
        return vector - (held @ vector) @ held

    def _append(self, vector: Tensor) -> None:
        length = float(vector.norm())
        self._rows[self.known + len(self._betas)] = vector / max(length, 1e-300)
        self._betas.append(length)

    def step(self) -> None:
        """Extend the space by one vector."""
        last = self._rows[self.known + self.steps]
        image = self.product(last[:, None])[:, 0]
        self._alphas.append(float((image * last).sum(dtype=torch.float64)))
        # The recurrence first: then nothing cancels in the pass over all vectors, and one pass is enough.
        image = image - self._alphas[-1] * last
        if self.steps > 1:
            image = image - self._betas[self.steps - 1] * self._rows[self.known + self.steps - 2]
        self._append(self._cleared(image))

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values, ascending, coordinates (steps, steps) and residuals (estimates of the recurrence)."""
        values, coordinates = eigh_tridiagonal(np.array(self._alphas), np.array(self._betas[1:-1]))
        return values, coordinates, abs(self._betas[-1] * coordinates[-1])

    def vectors(self, coordinates: np.ndarray) -> Tensor:
        """Vectors (N, k) from coordinates (steps, k), orthonormal up to rounding."""
        rows = self._rows[self.known : self.known + self.steps]
        factors = torch.as_tensor(coordinates.T.copy(), dtype=rows.dtype, device=rows.device)
        return (factors @ rows).T
