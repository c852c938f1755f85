"""Help for the small end of the spectrum of a group task, which Krylov methods resolve last.

Lanczos passes in single precision, as at the large end. Where the end is the edge of a cluster too dense for
a thousand products: a shifted inverse, if the first-layer matrix fits in memory
(`spectra.operators.assembly`), else a Krylov space many thousand products deep
(`spectra.solvers.lanczos_deep`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.operators.assembly import Assembly, can_assemble, elimination_inverse
from spectra.operators.variation import DeflatedVariation, SecondVariation, SymmetricOperator
from spectra.solvers.block_lanczos import Preconditioner
from spectra.solvers.lanczos_deep import lowest_vectors
from spectra.solvers.lanczos_passes import upper_vectors

FACTOR_BYTES = 2**29  # of the packed single-precision factor: 16,384 first-layer unknowns
SCOUT = 1000  # products after which other remedies are cheaper


@dataclass(frozen=True, eq=False)
class SmallEnd:
    """What a block solver is given for the small end.

    Parameters
    ----------
    start : Tensor or None
        Approximate eigenvectors (N, k).
    complete : tuple of str
        ``("smallest",)`` where the start was seen to hold every copy, else empty.
    precondition : callable or None
        Residuals to directions.
    products : int
        Single-precision products spent.
    method : str
        In words, for the user.
    """

    start: Tensor | None = None
    complete: tuple[str, ...] = ()
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
    found = upper_vectors(
        lambda vector: -single.apply(vector), single.dimension, count, tol=tol, seed=seed,
        max_seconds=max_seconds, max_products=SCOUT,
        dtype=torch.float32, device=single.device,
    )  # fmt: skip
    products, start = single.matvecs - before, found.vectors.double()
    if found.complete:
        return SmallEnd(start, ("smallest",), None, products, "single-precision Lanczos")
    if not fits:
        deep, _, _ = lowest_vectors(
            single.apply, single.dimension, count, tol=tol, seed=seed, device=single.device,
            max_seconds=last - time.monotonic(),
        )  # fmt: skip
        products = single.matvecs - before
        start = torch.cat([start, deep.double()], dim=1)
        return SmallEnd(start, (), None, products, "deep single-precision Lanczos")
    inverse = _shifted_inverse(Assembly(full.at), float(-found.values[0]), float(found.residuals[0]))
    if inverse is None or not isinstance(operator, DeflatedVariation):
        return SmallEnd(start, (), inverse, products, "elimination of c")
    return SmallEnd(
        start, (), lambda r, values: operator.project(inverse(operator.lift(r), values)), products,
        "elimination of c",
    )  # fmt: skip


def _shifted_inverse(assembly: Assembly, lowest: float, uncertainty: float) -> Preconditioner | None:
    """An inverse with a shift as close below the spectrum as a lowest Ritz value allows."""
    distance = 0.3 * abs(lowest) + 2 * uncertainty
    for _ in range(4):
        inverse = elimination_inverse(assembly, lowest - distance)
        if inverse is not None:
            return inverse
        distance *= 4
    return None
