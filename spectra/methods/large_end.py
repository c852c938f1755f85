"""A start for the large end of the spectrum: separated eigenvalues, every copy of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.operators.variation import SymmetricOperator
from spectra.solvers.lanczos_passes import upper_vectors


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
    found = upper_vectors(
        used.apply, used.dimension, count, tol=tol, seed=seed, max_seconds=max_seconds,
        dtype=torch.float64 if single is None else torch.float32, device=used.device,
    )  # fmt: skip
    products = 0 if single is None else single.matvecs - before
    return LargeEnd(found.vectors.double(), ("largest",) if found.complete else (), products)
