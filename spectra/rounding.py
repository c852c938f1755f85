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
    if not bool(measure.points.any()):
        # Points at zero have no size of their own: what cancels there are the terms of points of size one.
        noise = np.random.default_rng(seed).standard_normal(tuple(measure.points.shape))
        somewhere = dataclasses.replace(measure, points=torch.as_tensor(noise).to(measure.points))
        return SAFETY * EPS * float(torch.linalg.vector_norm(image(somewhere)))
    base = image(measure)
    changes = [float(torch.linalg.vector_norm(image(at) - base)) for at in _moved(measure, seed)]
    return SAFETY * EPS / STEP * float(np.mean(np.square(changes))) ** 0.5


def of_rows(
    measure: ParticleMeasure, table: Callable[[ParticleMeasure], Tensor], base: Tensor, *, seed: int = 0
) -> Tensor:
    """What the largest entry of each row of a table is known to: the change of one move, scaled down.

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
    Tensor, shape (N,)
        At least one unit in the last place of the row.
    """
    change = (table(next(_moved(measure, seed))) - base).abs_().amax(1)
    return torch.maximum(EPS * base.abs().amax(1), EPS / STEP * change)


def _moved(measure: ParticleMeasure, seed: int) -> Iterator[ParticleMeasure]:
    rng = np.random.default_rng(seed)
    sizes = measure.points.abs() if measure.scale is None else measure.scale
    for _ in range(MOVES):
        noise = torch.as_tensor(rng.standard_normal(sizes.shape), device=sizes.device)
        yield dataclasses.replace(measure, points=measure.points + STEP * sizes * noise)
