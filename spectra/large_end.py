"""A start for the large end of the spectrum: separated eigenvalues, every copy of each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from manifold.measures import ParticleMeasure
from spectra.assembly import group_task
from spectra.block_solvers import GUARD
from spectra.functionals import Functional
from spectra.lanczos import Lanczos, Product
from spectra.single_precision import in_single_precision
from spectra.variation import DeflatedVariation, SecondVariation

ROOM = 400  # most steps of one pass
LOOK = 10  # steps between two looks at the Ritz values
PASSES = 40  # most copies of one eigenvalue
DOUBT = 0.1  # a complement is seen when its top is known to this share of its distance from the wanted ones


def prepare_large_end(
    operator: SecondVariation | DeflatedVariation, functional: Functional, measure: ParticleMeasure,
    count: int, *, tol: float = 1e-6, seed: int = 0,
) -> tuple[Tensor, int]:  # fmt: skip
    """A start for the large end, in single precision where the functional is a group task.

    Parameters
    ----------
    operator : SecondVariation or DeflatedVariation
        Whose large end is wanted.
    functional : Functional
        The objective.
    measure : ParticleMeasure
        Its particles.
    count : int
        Wanted eigenvalues.
    tol : float
        Wanted residual relative to the norm.
    seed : int
        Of the start vectors.

    Returns
    -------
    start : Tensor, shape (N, count + guard), float64
    products : int
        Single-precision products spent.
    """
    full = operator.full if isinstance(operator, DeflatedVariation) else operator
    single = group_task(full.at) is not None
    used = in_single_precision(operator, functional, measure) if single else operator
    start = largest_vectors(
        used.apply, used.dimension, count, tol=tol, seed=seed,
        dtype=torch.float32 if single else torch.float64, device=used.device,
    )  # fmt: skip
    return start.double(), used.matvecs if single else 0


def largest_vectors(
    product: Product, dimension: int, count: int, *, tol: float = 1e-6, seed: int = 0,
    dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu",
) -> Tensor:  # fmt: skip
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
        Wanted residual relative to the norm; single precision reaches about 2e-6, whatever is asked.
    seed : int
        Of the start vectors.
    dtype : torch.dtype
        Precision of vectors and products.
    device : str
        Torch device.

    Returns
    -------
    Tensor, shape (N, count + guard)
        Orthonormal up to rounding, the largest first; fewer where the space is smaller.
    """
    rng = np.random.default_rng(seed)
    wanted = min(count + GUARD, dimension)
    vectors = torch.zeros(dimension, 0, dtype=dtype, device=device)
    values = np.zeros(0)
    for _ in range(PASSES):
        first = torch.as_tensor(rng.standard_normal((dimension, 1)), dtype=dtype, device=device)
        space = Lanczos(product, first, min(ROOM, dimension - len(values)), vectors)
        if space.room <= 0:
            break
        threshold = values[count - 1] if len(values) >= count else -np.inf
        found, coordinates = _settled(space, count, wanted, threshold, tol)
        new = found > threshold
        if len(values) >= count and not new.any():
            break
        vectors = torch.cat([vectors, space.vectors(coordinates)], dim=1)
        values = np.concatenate([values, found])
        order = np.argsort(-values, kind="stable")[:wanted]
        vectors, values = vectors[:, torch.as_tensor(order.copy(), device=device)], values[order]
    return vectors


def _settled(
    space: Lanczos, count: int, wanted: int, threshold: float, tol: float
) -> tuple[np.ndarray, np.ndarray]:
    """Grow the space until what lies above the threshold is known; Ritz values descending, coordinates."""
    while True:
        for _ in range(LOOK):
            if not space.exhausted:
                space.step()
        values, coordinates, residuals = (table[..., ::-1] for table in space.ritz())
        norm = np.abs(values).max()
        above = values > threshold
        above[count:] = False
        clear = threshold - values[0] > 0 and residuals[0] <= DOUBT * (threshold - values[0])
        done = clear or (above.any() and space.steps > count and (residuals[above] <= tol * norm).all())
        if done or space.exhausted:
            return values[:wanted], coordinates[:, :wanted]
