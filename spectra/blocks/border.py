"""Blocks joined by a few unknowns, a border: complete spectra of arrow matrices with degenerate blocks.

A neuron that carries many output frequencies joins their blocks into one. With its first layer set aside as a
border of r unknowns the blocks fall apart again: ``L = [[B, C], [C^T, D]]``, B block diagonal. Blocks of a
network built from copies share their eigenvalues; in an eigenspace of B of dimension M at most r directions
see the border. The others, found by a singular value decomposition of the eigenspace's rows of C, are
eigenvectors of L as they stand. What is left is a dense problem of the border and the directions it sees.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError, TooLargeError
from spectra.operators.variation import SymmetricOperator
from spectra.rounding import EPS

ALIKE = 1e-11  # of the norm: eigenvalues of blocks closer than this count as one
UNSEEN = 1e-11  # of the norm: a coupling to the border below this is dropped
LEFT_LIMIT = 16_000  # unknowns of the dense problem that is left
STEP = 16  # columns at once


class Border:
    """Rows and columns of an operator at some unknowns, and the eigenvalues of blocks seen from there.

    Parameters
    ----------
    operator : SymmetricOperator
        L, of dimension N.
    inside : ndarray of int, shape (r,)
        The unknowns of the border.
    advance : callable
        Called after every few products.
    """

    def __init__(
        self, operator: SymmetricOperator, inside: np.ndarray, advance: Callable[[], None] = lambda: None
    ):
        size, device = operator.dimension, operator.device
        self.inside = torch.as_tensor(inside, device=device)
        self._coupling = torch.empty(size, len(inside), dtype=torch.float64, device=device)
        for low in range(0, len(inside), STEP):
            part = self.inside[low : low + STEP]
            unit = torch.zeros(size, len(part), dtype=torch.float64, device=device)
            unit[part, torch.arange(len(part), device=device)] = 1
            self._coupling[:, low : low + len(part)] = operator.apply(unit)
            advance()
        if not torch.isfinite(self._coupling).all():
            raise InputError("operator: expected finite products, got NaN or infinity")
        corner = self._coupling[self.inside]
        self._corner = 0.5 * (corner + corner.T)
        self._values = torch.zeros(size, dtype=torch.float64, device=device)
        self._largest = 1  # unknowns of a block

    def absorb(self, members: Tensor, block: Tensor) -> None:
        """Take a diagonal block to its eigenvectors.

        Parameters
        ----------
        members : Tensor of int, shape (k,)
            Its unknowns.
        block : Tensor, shape (k, k)
        """
        values, vectors = torch.linalg.eigh(block)
        self._largest = max(self._largest, len(block))
        self._values[members] = values
        self._coupling[members] = vectors.T @ self._coupling[members]

    def absorb_diagonal(self, members: Tensor, values: Tensor) -> None:
        """Take blocks of one unknown each, (k,)."""
        self._values[members] = values

    def eigenvalues(self) -> tuple[np.ndarray, float]:
        """All N eigenvalues of blocks and border together, in any order, and the error of what was dropped.

        Returns
        -------
        values : ndarray, shape (N,)
        error : float
            Norm of the changes made: eigenvalues taken as one, couplings dropped, rounding.

        Raises
        ------
        TooLargeError
            If the border sees too many directions: the blocks are not copies of each other.
        """
        outside = torch.ones(len(self._values), dtype=torch.bool, device=self._values.device)
        outside[self.inside] = False
        members = outside.nonzero().flatten()
        members = members[torch.argsort(self._values[members])]
        values = self._values[members].cpu().numpy()
        norm = max(np.abs(values).max(initial=0.0), float(torch.linalg.matrix_norm(self._corner, 2)))
        free, seen, rows = [], [], []
        width, dropped = 0.0, 0.0
        for part in _alike(values, ALIKE * norm):
            value = 0.5 * (values[part.start] + values[part.stop - 1])
            width = max(width, 0.5 * float(values[part.stop - 1] - values[part.start]))
            kept, lost = _seen(self._coupling[members[part]], UNSEEN * norm)
            dropped = float(np.hypot(dropped, lost))
            free.append(np.full(part.stop - part.start - len(kept), value))
            seen.append(np.full(len(kept), value))
            rows.append(kept)
            if sum(map(len, seen)) + len(self.inside) > LEFT_LIMIT:
                raise TooLargeError(
                    f"blocks: {len(self.inside):,} unknowns of neurons that carry many output frequencies "
                    f"join the blocks, and see more than {LEFT_LIMIT:,} directions of them; ask for a number "
                    "of eigenvalues, or their density, instead of all"
                )
        left = self._left(np.concatenate(seen), torch.cat(rows))
        left = torch.linalg.eigvalsh(left).cpu().numpy()
        rounding = 2 * EPS * (len(left) + self._largest) * max(norm, float(np.abs(left).max()))
        return np.concatenate([*free, left]), width + dropped + rounding

    def _left(self, values: np.ndarray, rows: Tensor) -> Tensor:
        """The dense problem of the seen directions and the border."""
        k, size = len(rows), len(rows) + len(self._corner)
        left = torch.zeros(size, size, dtype=rows.dtype, device=rows.device)
        left[:k, :k].diagonal().copy_(torch.as_tensor(values))
        left[:k, k:], left[k:, :k], left[k:, k:] = rows, rows.T, self._corner
        return left


def _alike(values: np.ndarray, width: float) -> list[slice]:
    """Runs of ascending values no wider than this."""
    parts, start = [], 0
    while start < len(values):
        stop = int(np.searchsorted(values, values[start] + width, side="right"))
        parts.append(slice(start, stop))
        start = stop
    return parts


def _seen(coupling: Tensor, small: float) -> tuple[Tensor, float]:
    """Coupling (k, r) of the k directions that see the border, and the norm of what is dropped."""
    if len(coupling) > coupling.shape[1]:  # singular values and right vectors are those of R
        coupling = torch.linalg.qr(coupling, mode="r")[1]
    _, sizes, right = torch.linalg.svd(coupling, full_matrices=False)
    kept = sizes > small
    lost = sizes[~kept]
    return sizes[kept, None] * right[kept], float(lost.max()) if len(lost) else 0.0
