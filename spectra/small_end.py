"""Help for the small end of the spectrum of a group task, which Krylov methods resolve last.

Two remedies, by size: a shifted inverse where the first-layer matrix fits in memory (`spectra.assembly`), and
a deep single-precision Krylov space as a start where it does not (`spectra.long_lanczos`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from spectra.assembly import Assembly, can_assemble, elimination_inverse
from spectra.block_solvers import Preconditioner
from spectra.eigen import power_norm
from spectra.long_lanczos import lowest_vectors
from spectra.variation import DeflatedVariation, SecondVariation, SymmetricOperator

FACTOR_BYTES = 2**29  # of the packed single-precision factor: 16,384 first-layer unknowns
SCOUT = 400  # products that find where the spectrum begins
HOPELESS = 3e-4  # residual, relative to the norm, of a deep space full of ghosts: the lowest are separated
RESTARTED = 3000  # most products of restarted Lanczos, which is the better one then
SEPARATED = 1e-4  # residual, relative to the eigenvalue, with which it hands them on


@dataclass(frozen=True, eq=False)
class SmallEnd:
    """What a block solver is given for the small end.

    Parameters
    ----------
    start : Tensor or None
        Approximate eigenvectors (N, k).
    precondition : callable or None
        Residuals to directions.
    products : int
        Single-precision products spent.
    method : str
        In words, for the user.
    """

    start: Tensor | None = None
    precondition: Preconditioner | None = None
    products: int = 0
    method: str = ""


def prepare_small_end(
    operator: SecondVariation | DeflatedVariation, single: SymmetricOperator | None, count: int, *,
    tol: float = 1e-6, seed: int = 0, max_seconds: float = 60.0,
) -> SmallEnd:  # fmt: skip
    """Choose and carry out what helps the iteration at the small end.

    Parameters
    ----------
    operator : SecondVariation or DeflatedVariation
        Whose small end is wanted.
    single : SymmetricOperator or None
        The same in single precision, None where there is none.
    count : int
        Wanted eigenvalues.
    tol : float
        Wanted residual relative to the norm.
    seed : int
        Of the start vector.
    max_seconds : float
        Limit of the Krylov space.

    Returns
    -------
    SmallEnd
        Empty without single precision.
    """
    if single is None:
        return SmallEnd()
    full, before = operator.full, single.matvecs
    # Decided from sizes: the tables of an assembly that would not be used need as much memory as the rest.
    first_layer = 2 * full.dimension // 3
    fits = can_assemble(full.at) and 2 * first_layer**2 <= FACTOR_BYTES
    last = time.monotonic() + max_seconds
    start, values, residuals = lowest_vectors(
        single.apply, single.dimension, count, tol=tol, seed=seed, max_seconds=max_seconds,
        max_products=SCOUT if fits else 10**6, give_up=HOPELESS, device=single.device,
    )  # fmt: skip
    products, start = single.matvecs - before, start.double()
    if not fits:
        if residuals[:count].max() <= HOPELESS * power_norm(operator, seed=seed):
            return SmallEnd(start, None, products, "long single-precision Lanczos")
        separated = _arpack_start(operator, count, tol=SEPARATED, seed=seed, last=last)
        return SmallEnd(torch.cat([start, separated], dim=1), None, products, "ARPACK")
    inverse = _shifted_inverse(Assembly(full.at), float(values[0]), float(residuals[0]))
    if inverse is None or not isinstance(operator, DeflatedVariation):
        return SmallEnd(start, inverse, products, "elimination of c")
    return SmallEnd(
        start, lambda r, values: operator.project(inverse(r, values)), products, "elimination of c"
    )


def _shifted_inverse(assembly: Assembly, lowest: float, uncertainty: float) -> Preconditioner | None:
    """An inverse with a shift as close below the spectrum as a lowest Ritz value allows."""
    distance = 0.3 * abs(lowest) + 2 * uncertainty
    for _ in range(4):
        inverse = elimination_inverse(assembly, lowest - distance)
        if inverse is not None:
            return inverse
        distance *= 4
    return None


class _OutOfTime(Exception):
    """Raised inside a product: ARPACK has no limit of its own."""


def _arpack_start(operator: SymmetricOperator, count: int, *, tol: float, seed: int, last: float) -> Tensor:
    """Approximate eigenvectors of the small end by ARPACK, (N, k); none if they do not converge in time."""
    size, basis = operator.dimension, min(operator.dimension, 4 * count + 40)
    none = torch.zeros(size, 0, dtype=torch.float64, device=operator.device)
    if basis <= count + 1:
        return none
    product = operator.linear_operator().matvec

    def timed(vector: np.ndarray) -> np.ndarray:
        if time.monotonic() > last:
            raise _OutOfTime
        return product(vector)

    try:
        _, vectors = eigsh(
            LinearOperator((size, size), matvec=timed, dtype=np.float64), k=count, which="SA", tol=0.3 * tol,
            v0=np.random.default_rng(seed).standard_normal(size), ncv=basis,
            maxiter=max(1, RESTARTED // (basis - count)),
        )  # fmt: skip
    except ArpackNoConvergence as stopped:
        vectors = stopped.eigenvectors
    except _OutOfTime:
        return none
    return torch.as_tensor(np.ascontiguousarray(vectors), device=operator.device)
