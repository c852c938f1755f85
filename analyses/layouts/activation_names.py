"""Activations of two-layer networks by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS = ("square", "relu", "gelu", "tanh", "abs")


def activate(values: Tensor, name: str) -> Tensor:
    """Apply an activation element by element.

    Parameters
    ----------
    values : Tensor
    name : str
        One of `ACTIVATIONS`, or a polynomial in x.

    Returns
    -------
    Tensor
    """
    from spectra.networks.activations import parse_activation  # late: spectra imports torch

    return parse_activation(name).value(values)


def known_activation(name: str) -> str:
    """The name under which an activation is written down.

    Parameters
    ----------
    name : str
        One of `ACTIVATIONS`, or a polynomial in x such as ``x^3 - 0.5*x``.

    Returns
    -------
    str

    Raises
    ------
    InputError
        If it is neither.
    """
    if name in ACTIVATIONS:
        return name
    from spectra.networks.activations import parse_activation

    return parse_activation(name).name
