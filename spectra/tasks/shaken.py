"""Tables rounded at random, to see what the roundings inside a loss do that no change of its input shows.

Where terms of size one cancel whatever the weights are (the slope of tanh is 1 at 0, the probabilities of a
fresh network are all 1/n), moving the weights does not move the terms, but rounding does.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from spectra.networks.activations import Activation
from spectra.rounding import STEP
from spectra.tasks.pair_terms import OutputLoss

ROUNDED = 0.5  # units in the last place, of one function: more than the 0.3 of rounding to nearest


class Shaker:
    """Multiplies every entry of a table by ``1 + 2^-45 xi`` with independent standard normal xi.

    Parameters
    ----------
    seed : int
        Of all tables together.
    """

    def __init__(self, seed: int):
        self._draws = np.random.default_rng(seed)

    def __call__(self, table: Tensor | float) -> Tensor | float:
        """The table with other last digits; a number, which costs no rounding, as it is."""
        if not isinstance(table, Tensor):
            return table
        noise = torch.as_tensor(self._draws.standard_normal(tuple(table.shape)))
        return table * (1 + ROUNDED * STEP * noise.to(table))


class ShakenActivation(Activation):
    """An activation whose values and derivatives are shaken.

    Parameters
    ----------
    exact : Activation
    shaker : Shaker
    """

    def __init__(self, exact: Activation, shaker: Shaker):
        self.exact, self._shaken = exact, shaker
        self.name, self.degree, self.kinked = exact.name, exact.degree, exact.kinked

    @override
    def value(self, x: Tensor) -> Tensor:
        return self._shaken(self.exact.value(x))

    @override
    def slope(self, x: Tensor) -> Tensor:
        return self._shaken(self.exact.slope(x))

    @override
    def curvature(self, x: Tensor) -> Tensor | float:
        return self._shaken(self.exact.curvature(x))


class ShakenLoss(OutputLoss):
    """A loss of outputs whose derivatives are shaken.

    Parameters
    ----------
    exact : OutputLoss
    shaker : Shaker
    """

    def __init__(self, exact: OutputLoss, shaker: Shaker):
        self.exact, self._shaken, self.sees_mean = exact, shaker, exact.sees_mean

    @override
    def value(self, f: Tensor, target: Tensor) -> Tensor:
        return self.exact.value(f, target)

    @override
    def gradient(self, f: Tensor, target: Tensor) -> Tensor:
        return self._shaken(self.exact.gradient(f, target))

    @override
    def curvature(self, f: Tensor, change: Tensor) -> Tensor:
        return self._shaken(self.exact.curvature(f, change))

    @override
    def curvature_root(self, f: Tensor, features: Tensor) -> Tensor:
        return self._shaken(self.exact.curvature_root(f, features))


def shaken_pair(activation: Activation, loss: OutputLoss, seed: int) -> tuple[Activation, OutputLoss]:
    """Both functions of a loss over pairs, shaken by one generator.

    Parameters
    ----------
    activation : Activation
    loss : OutputLoss
    seed : int

    Returns
    -------
    tuple of Activation and OutputLoss
    """
    shaker = Shaker(seed)
    return ShakenActivation(activation, shaker), ShakenLoss(loss, shaker)
