"""The effective weights of a two-layer network on a group, biases carried exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from analyses.layouts.activation_names import activate

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """The effective weights of a network, float64, group elements in C order.

    Parameters
    ----------
    a, b, c : Tensor, shape (n, q)
        ``b`` is None for tied weights.
    constant : Tensor, shape (n,), optional
        Added to the outputs after the factor s; None: nothing is added.
    notes : tuple of str
        What was done to biases and the order of the elements, one sentence each.
    """

    a: Tensor
    b: Tensor | None
    c: Tensor
    constant: Tensor | None = None
    notes: tuple[str, ...] = ()

    def carried(self, activation: str, output_scale: float) -> Weights:
        """The same network with one more neuron of constant activity in place of the constant.

        Parameters
        ----------
        activation : str
        output_scale : float
            The factor s.

        Returns
        -------
        Weights
            Without a constant.
        """
        a, b, c, notes = self.a, self.b, self.c, self.notes
        if self.constant is not None and self.constant.abs().max() > 0:
            a, b, c = _add_constant(a, b, c, self.constant / output_scale, activation)
            notes += (
                "output bias carried exactly by one more neuron of constant activity; "
                "the spectrum is that of the network with this neuron",
            )
        return Weights(a.contiguous(), None if b is None else b.contiguous(), c.contiguous(), None, notes)


def _add_constant(
    a: Tensor, b: Tensor | None, c: Tensor, constant: Tensor, activation: str
) -> tuple[Tensor, Tensor | None, Tensor]:
    """One more neuron whose activity does not depend on the input and whose output is ``constant``."""
    import torch

    if activation == "square":  # the smallest norm of (a, b, c) that gives this constant
        levels = (4 * constant.square().sum() / len(constant)).reshape(1) ** (1 / 6)
    else:
        levels = torch.arange(1, 18, dtype=a.dtype)  # not all of them are roots of a polynomial
    activities = activate(levels, activation)
    first = int((activities.abs() > 1e-3 * activities.abs().max()).nonzero()[0])
    level, activity = float(levels[first]), float(activities[first])
    half = torch.full((len(a), 1), level / 2, dtype=a.dtype)
    a, b = torch.cat([a, half], 1), None if b is None else torch.cat([b, half], 1)
    return a, b, torch.cat([c, (constant / activity)[:, None]], 1)
