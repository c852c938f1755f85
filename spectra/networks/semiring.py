"""The semiring of group networks: stack neurons (sum, OR) and multiply them pairwise (product, AND).

With complex Fourier coefficients of canonical weights every potential is a mean of cubic monomials,
``rho(mu) = sum_j w_j z_i z_j z_k``, so ``rho(mu1 + mu2) = rho(mu1) + rho(mu2)`` and, for the law of the
element-wise product of independent draws, ``rho(mu1 * mu2) = rho(mu1) rho(mu2)``. Weights w_j go
into the neurons, z_j to ``w_j^(1/3) z_j`` (potentials are cubic); the canonical coordinates of the result,
``(w_j q)^(1/3) z_j``, are those of a measure of unit mass.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError, TooLargeError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.constructions import network_of
from spectra.networks.group_network import GroupNetwork
from spectra.networks.potentials import GroupPotentials

MEMORY_LIMIT = 2 << 30
WORKING_COPIES = 6  # complex copies of the coefficients at the worst moment: products, stack, checks

Coefficients = tuple[Tensor, Tensor | None, Tensor]


def _network(group: FiniteAbelianGroup, coefficients: Coefficients, weights: Tensor | float) -> GroupNetwork:
    """The network of a measure with weights w_j in canonical coefficients; z_b None: tied."""
    a, b, c = coefficients
    root = torch.as_tensor(weights, dtype=torch.float64) ** (1 / 3)
    root = root[:, None] if root.ndim else root
    stacked = np.stack([(root * z).cpu().numpy() for z in (a, a if b is None else b, c)])
    built = network_of(group, stacked)
    return built if b is not None else replace(built, b=None)


def _together(first: GroupNetwork, second: GroupNetwork) -> tuple[Coefficients, Coefficients]:
    """Coefficients of both, tied only where both are.

    Raises
    ------
    InputError
        If the groups differ.
    """
    if first.group != second.group:
        raise InputError(
            f"compose: expected networks on the same group, got {first.group.name} and {second.group.name}"
        )
    tied = first.tied and second.tied
    (a1, b1, c1), (a2, b2, c2) = first.coefficients(), second.coefficients()
    return (a1, None if tied else b1, c1), (a2, None if tied else b2, c2)


def add(first: GroupNetwork, second: GroupNetwork) -> GroupNetwork:
    """The sum ``mu1 + mu2``: all neurons of both; potentials and outputs add.

    Parameters
    ----------
    first, second : GroupNetwork
        On the same group, widths q1 and q2.

    Returns
    -------
    GroupNetwork
        Of width q1 + q2; tied only if both are.

    Raises
    ------
    InputError
        If the groups differ.
    """
    left, right = _together(first, second)
    weights = torch.cat(
        [torch.full((net.width,), 1 / net.width, dtype=torch.float64) for net in (first, second)]
    )
    stacked = tuple(None if x is None else torch.cat([x, y]) for x, y in zip(left, right, strict=True))
    return _network(first.group, stacked, weights)


def product_bytes(first: GroupNetwork, second: GroupNetwork) -> int:
    """Predicted bytes of work for the product of two networks: 6 complex copies of q1 q2 x 3n."""
    return WORKING_COPIES * 16 * first.width * second.width * 3 * first.group.order


def multiply(first: GroupNetwork, second: GroupNetwork, *, memory_limit: int = MEMORY_LIMIT) -> GroupNetwork:
    """The product ``mu1 * mu2``: one neuron per pair, coefficients multiplied; potentials multiply.

    Parameters
    ----------
    first, second : GroupNetwork
        On the same group, widths q1 and q2.
    memory_limit : int
        Bytes.

    Returns
    -------
    GroupNetwork
        Of width q1 q2; tied only if both are.

    Raises
    ------
    InputError
        If the groups differ.
    TooLargeError
        If the product does not fit in ``memory_limit``.
    """
    left, right = _together(first, second)
    if (needed := product_bytes(first, second)) > memory_limit:
        raise TooLargeError(
            f"multiply: {first.width:,} x {second.width:,} = {first.width * second.width:,} neurons need "
            f"about {needed / 2**20:,.0f} MiB, the limit is {memory_limit / 2**20:,.0f} MiB; "
            "compress the factors first (--compress 1e-6), or raise the limit"
        )
    pairs = tuple(
        None if x is None else (x[:, None, :] * y[None, :, :]).flatten(0, 1)
        for x, y in zip(left, right, strict=True)
    )
    return _network(first.group, pairs, 1 / (first.width * second.width))


OPERATIONS = {"add": add, "multiply": multiply}


def predicted_potentials(operation: str, first: GroupNetwork, second: GroupNetwork) -> GroupPotentials:
    """Potentials of a composed network from those of its parts, without building it.

    Parameters
    ----------
    operation : str
        ``add`` or ``multiply``.
    first, second : GroupNetwork
        On the same group.

    Returns
    -------
    GroupPotentials

    Raises
    ------
    InputError
        For another operation.
    """
    if operation not in OPERATIONS:
        raise InputError(f"operation: expected add or multiply, got {operation!r}")
    combine = torch.add if operation == "add" else torch.mul
    left, right = GroupPotentials.of(first), GroupPotentials.of(second)
    return GroupPotentials(
        first.group,
        combine(left.mixed, right.mixed),
        combine(left.squares_a, right.squares_a),
        combine(left.squares_b, right.squares_b),
    )
