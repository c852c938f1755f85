"""What rounding does: the one place that decides it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from manifold.measures import ParticleMeasure

EPS = float(np.finfo(np.float64).eps)
UNITS = (
    16  # units in the last place, of sums that round like a random walk of the square root of their length
)
STEP = 2.0**-44  # relative move of points: far above rounding, far below the curvature of any operator
MOVES = 3  # moved copies of the points
SAFETY = 16  # times the root mean square over the moves; a maximum over them is rarely three times as large


def arithmetic(dimension: int, norm: float) -> float:
    """Bound of what double-precision arithmetic does to eigenvalues.

    Parameters
    ----------
    dimension : int
        N of the operator.
    norm : float
        Its norm.

    Returns
    -------
    float
        ``16 eps sqrt(N) |L|``.
    """
    return UNITS * EPS * dimension**0.5 * norm


def of_points(
    measure: ParticleMeasure, image: Callable[[ParticleMeasure], Tensor], *, seed: int = 0
) -> float:
    """How far rounding of the points moves what is computed from them.

    Points are known to their own rounding only, which cancellation may blow up. Every coordinate is moved at
    random by ``2^-44`` of its size, and the change, scaled down to one unit in the last place, is multiplied
    by a safety factor. Algorithms whose own roundings act like changes of their input, as those of sums and
    products do, are covered with it.

    Parameters
    ----------
    measure : ParticleMeasure
        What one unit in the last place refers to is its ``scale``, by default the size of each coordinate.
    image : callable
        Maps a measure to a tensor, smoothly.
    seed : int
        Of the moves.

    Returns
    -------
    float
        Euclidean (Frobenius) norm; NaN or infinity where the image is not finite.
    """
    base = image(measure)
    changes = [float(torch.linalg.vector_norm(image(at) - base)) for at in _moved(measure, seed)]
    return SAFETY * EPS / STEP * float(np.mean(np.square(changes))) ** 0.5


def relative_rounding(
    measure: ParticleMeasure, table: Callable[[ParticleMeasure], Tensor], base: Tensor, *, seed: int = 0
) -> float:
    """What the rows of a table are known to, relative to their largest entries: the worst row of one move.

    Parameters
    ----------
    measure : ParticleMeasure
    table : callable
        Maps a measure to a matrix.
    base : Tensor, shape (N, m)
        The matrix at the measure itself.
    seed : int
        Of the move.

    Returns
    -------
    float
        At least one unit in the last place.
    """
    sizes = base.abs().amax(1)
    change = (table(next(_moved(measure, seed))) - base).abs_().amax(1)
    seen = sizes > 0
    return EPS * max(1.0, float((change[seen] / sizes[seen]).max()) / STEP if bool(seen.any()) else 0.0)


def _moved(measure: ParticleMeasure, seed: int) -> Iterator[ParticleMeasure]:
    rng = np.random.default_rng(seed)
    sizes = measure.points.abs() if measure.scale is None else measure.scale
    if not bool((sizes > 0).any()):
        sizes = torch.ones_like(sizes)  # a network of zeros has no size of its own
    for _ in range(MOVES):
        noise = torch.as_tensor(rng.standard_normal(sizes.shape), device=sizes.device)
        yield dataclasses.replace(measure, points=measure.points + STEP * sizes * noise)
