"""The second variation in single precision: half the memory and twice the speed, for starts of a solver."""

from __future__ import annotations

import numpy as np
import torch

from manifold.measures import ParticleMeasure
from spectra.functionals.base import Functional
from spectra.operators.assembly import group_task
from spectra.operators.variation import DeflatedVariation, SecondVariation, SymmetricOperator


def in_single_precision(
    operator: SecondVariation | DeflatedVariation, functional: Functional, measure: ParticleMeasure
) -> SecondVariation | DeflatedVariation | None:
    """The same operator with parameters, products and vectors in float32.

    Parameters
    ----------
    operator : SecondVariation or DeflatedVariation
        Of the functional at the measure.
    functional : Functional
    measure : ParticleMeasure

    Returns
    -------
    SecondVariation or DeflatedVariation or None
        Its products differ from those in double precision by about 3e-7 of the norm. None unless the
        functional is a group task (others may not be made for it) of a size that single precision holds.
    """
    weights = measure.weights.float()
    if group_task(operator.full.at) is None or float(weights.min()) <= 0:
        return None
    single = SecondVariation(functional.linearise(ParticleMeasure(measure.points.float(), weights)))
    if isinstance(operator, DeflatedVariation):
        single = operator.on(single)
    return single if _agree(single, operator) else None


def _agree(single: SymmetricOperator, operator: SymmetricOperator) -> bool:
    """Whether one product is right to 1e-4: small and large numbers may be out of range."""
    rng = np.random.default_rng(0)
    probe = torch.as_tensor(rng.standard_normal((operator.dimension, 1)), device=operator.device)
    exact, image = operator.apply(probe), single.apply(probe.float())
    small = 1e-4 * exact.norm()
    # The norm too, by squares in single precision: they are out of range before the numbers are.
    return bool((image.double() - exact).norm() <= small and (image.norm() - exact.norm()).abs() <= small)
