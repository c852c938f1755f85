"""A start for the large end of the spectrum: separated eigenvalues, every copy of each."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectra.block_solvers import GUARD
from spectra.lanczos import Lanczos, Product
from spectra.variation import SymmetricOperator

ROOM = 400  # most steps of one pass
LOOK = 10  # steps between two looks at the Ritz values
PASSES = 40  # most copies of one eigenvalue
DOUBT = 0.1  # a complement is seen when its top is known to this share of its distance from the wanted ones


@dataclass(frozen=True, eq=False)
class LargeEnd:
    """What a block solver is given for the large end.

    Parameters
    ----------
    start : Tensor, shape (N, count + guard), float64
        Approximate eigenvectors.
    complete : tuple of str
        ``("largest",)`` where the start was seen to hold every copy, else empty: then the solver searches.
    products : int
        Single-precision products spent.
    """

    start: Tensor
    complete: tuple[str, ...]
    products: int


def prepare_large_end(
    operator: SymmetricOperator, single: SymmetricOperator | None, count: int, *,
    tol: float = 1e-6, seed: int = 0, max_seconds: float = math.inf,
) -> LargeEnd:  # fmt: skip
    """A start for the large end.

    Parameters
    ----------
    operator : SymmetricOperator
        Whose large end is wanted.
    single : SymmetricOperator or None
        The same in single precision, which is used instead where there is one.
    count : int
        Wanted eigenvalues.
    tol : float
        Wanted residual relative to the norm.
    seed : int
        Of the start vectors.
    max_seconds : float
        Limit; what has been found by then is returned.

    Returns
    -------
    LargeEnd
    """
    used = operator if single is None else single
    before = used.matvecs
    start, complete = largest_vectors(
        used.apply, used.dimension, count, tol=tol, seed=seed, max_seconds=max_seconds,
        dtype=torch.float64 if single is None else torch.float32, device=used.device,
    )  # fmt: skip
    products = 0 if single is None else single.matvecs - before
    return LargeEnd(start.double(), ("largest",) if complete else (), products)


def largest_vectors(
    product: Product, dimension: int, count: int, *, tol: float = 1e-6, seed: int = 0,
    dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu", max_seconds: float = math.inf,
) -> tuple[Tensor, bool]:  # fmt: skip
    """Approximate eigenvectors at the large end by Lanczos passes, each in the complement of those before.

    Every pass meets one more copy of each degenerate eigenvalue. The last one shows that the complement
    holds nothing that belongs to the wanted ones: its largest Ritz value has settled below them.

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
    max_seconds : float
        Limit.

    Returns
    -------
    vectors : Tensor, shape (N, count + guard)
        Orthonormal up to rounding, the largest first; fewer where the space is smaller.
    complete : bool
        Whether the complement was seen to hold no more; False where a limit came first.
    """
    last = time.monotonic() + max_seconds
    rng = np.random.default_rng(seed)
    wanted = min(count + GUARD, dimension)
    vectors = torch.zeros(dimension, 0, dtype=dtype, device=device)
    values = np.zeros(0)
    for _ in range(PASSES):
        first = torch.as_tensor(rng.standard_normal((dimension, 1)), dtype=dtype, device=device)
        space = Lanczos(product, first, min(ROOM, dimension - len(values)), vectors)
        if space.room <= 0:
            return vectors, True
        threshold = values[count - 1] if len(values) >= count else -np.inf
        found, coordinates, settled = _settled(space, count, wanted, threshold, tol, last)
        if settled and len(values) >= count and not (found > threshold).any():
            return vectors, True
        vectors = torch.cat([vectors, space.vectors(coordinates)], dim=1)
        values = np.concatenate([values, found])
        order = np.argsort(-values, kind="stable")[:wanted]
        vectors, values = vectors[:, torch.as_tensor(order.copy(), device=device)], values[order]
        if not settled:
            break
    return vectors, False


def _settled(
    space: Lanczos, count: int, wanted: int, threshold: float, tol: float, last: float
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Grow the space until what lies above the threshold is known; Ritz values descending, coordinates.

    Third: whether it is known, False where room or time ended first.
    """
    while True:
        for _ in range(LOOK):
            if not space.exhausted:
                space.step()
        values, residuals = (table[::-1] for table in space.estimates())
        norm = np.abs(values).max()
        above = values > threshold
        above[count:] = False
        clear = threshold - values[0] > 0 and residuals[0] <= DOUBT * (threshold - values[0])
        done = clear or (above.any() and space.steps > count and (residuals[above] <= tol * norm).all())
        done = bool(done or space.invariant)
        if done or space.exhausted or time.monotonic() > last:
            values, coordinates, _ = (table[..., ::-1] for table in space.ritz())
            return values[:wanted], coordinates[:, :wanted], done
