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
        One of `ACTIVATIONS`.

    Returns
    -------
    Tensor
    """
    import torch

    functions = {
        "square": torch.square,
        "relu": torch.relu,
        "gelu": torch.nn.functional.gelu,
        "tanh": torch.tanh,
        "abs": torch.abs,
    }
    return functions[name](values)
