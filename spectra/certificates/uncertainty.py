"""How well an operator is known: rounding of the points it is made of, and choices at kinks.

By Weyl no eigenvalue, nor one of any compression, moves by more than the norm of what is uncertain.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from manifold.measures import ParticleMeasure
from spectra.blocks.spectrum import coupling_bound
from spectra.functionals.base import BOTH, Functional, Linearisation
from spectra.operators.variation import SecondVariation
from spectra.rounding import of_points

PROBES = 4  # vectors that an operator is applied to at each moved copy of the points


def operator_uncertainty(
    functional: Functional, measure: ParticleMeasure, *, parts: tuple[str, ...] = BOTH, seed: int = 0
) -> float:
    """Bound of the norm by which rounding, and choices at kinks, change the second variation.

    Parameters
    ----------
    functional : Functional
    measure : ParticleMeasure
        Positive weights.
    parts : tuple of str
        As in `spectra.operators.variation.SecondVariation`.
    seed : int
        Of the random moves and vectors.

    Returns
    -------
    float
        What rounding does (an estimate with a safety factor, see `spectra.rounding.of_points`), and the
        largest norm of the difference from an operator with another slope at kinks, see `Functional.choices`
        (fails with probability 1e-9).
    """
    size = measure.points.numel()
    if not size:
        return 0.0
    probes = np.random.default_rng(seed).standard_normal((size, PROBES)) / PROBES**0.5
    probes = torch.as_tensor(probes, device=measure.points.device)

    def variation(of: Functional) -> SecondVariation:
        return SecondVariation(of.linearise(measure), parts=parts)

    def image(at: Linearisation) -> Tensor:
        return SecondVariation(at, parts=parts).apply(probes)

    own = variation(functional)
    others = (variation(other) for other in functional.choices())
    kinks = [coupling_bound(own, other, negligible=0.0, seed=seed) for other in others]
    return of_linearisation(functional, measure, image, seed=seed) + max(kinks, default=0.0)


def of_linearisation(
    functional: Functional, measure: ParticleMeasure, image: Callable[[Linearisation], Tensor], *, seed: int
) -> float:
    """What rounding of the points, and inside the functional, does to an image of its linearisation.

    Parameters
    ----------
    functional : Functional
    measure : ParticleMeasure
    image : callable
        Maps a linearisation to a tensor, smoothly.
    seed : int
        Of the moves.

    Returns
    -------
    float
        Frobenius norm, see `spectra.rounding.of_points`; at moved points the functional is shaken too.
    """
    shaken = functional.shaken(seed)

    def moved(at: ParticleMeasure) -> Tensor:
        return image((functional if at is measure else shaken).linearise(at))

    return of_points(measure, moved, seed=seed)
