"""The semiring of group networks: stack neurons (sum, OR) and multiply them pairwise (product, AND).

With complex Fourier coefficients of canonical weights every potential is a mean of cubic monomials,
``rho(mu) = sum_j w_j z_i z_j z_k``, so ``rho(mu1 + mu2) = rho(mu1) + rho(mu2)`` and, for the law of the
element-wise product of independent draws, ``rho(mu1 * mu2) = rho(mu1) rho(mu2)``. A weight w_j is carried
back to the unit mass of a network, 1/q per neuron, by scaling z_j with ``(w_j q)^(1/3)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manifold.errors import InputError, TooLargeError
from manifold.groups import FiniteAbelianGroup
from spectra.networks import GroupNetwork
from spectra.potentials import GroupPotentials

MEMORY_LIMIT = 2 << 30
WORKING_COPIES = 4  # complex coefficients of the result, one product at work, real weights, their copy

Coefficients = tuple[Tensor, Tensor | None, Tensor]


def network_of_coefficients(
    group: FiniteAbelianGroup, coefficients: Coefficients, *, weights: Tensor | None = None
) -> GroupNetwork:
    """The network with given complex Fourier coefficients, in canonical weights (tau = 1).

    Parameters
    ----------
    group : FiniteAbelianGroup
        Of order n.
    coefficients : tuple of Tensor, complex, shape (q, n)
        z_a, z_b, z_c as `GroupNetwork.coefficients` gives them, frequency along axis 1; z_b None: tied.
        Real weights need ``z_{-k} = conj z_k``.
    weights : Tensor, shape (q,), optional
        Weights w_j of the neurons, also negative; default 1/q. The sign goes into c, and z_j is scaled by
        ``(|w_j| q)^(1/3)``: every potential is cubic, so none changes.

    Returns
    -------
    GroupNetwork
        With ``s = 1/(2 n q)``.

    Raises
    ------
    InputError
        If the coefficients are not those of real weights, or their shapes disagree.
    """
    first = coefficients[0]
    q = len(first)
    if q == 0:
        raise InputError("network: expected at least one neuron, got none (the zero measure has no network)")
    scale, sign = torch.ones(q, dtype=torch.float64), torch.ones(q, dtype=torch.float64)
    if weights is not None:
        scale, sign = (weights.abs() * q) ** (1 / 3), torch.where(weights < 0, -1.0, 1.0).double()
    characters = torch.as_tensor(group.characters, device=first.device)
    a, b, c = coefficients
    blocks = [
        None if z is None else _real(name, z, table) * (factor * scale).to(first.device)
        for name, z, table, factor in (
            ("z_a", a, characters, 1.0),
            ("z_b", b, characters, 1.0),
            ("z_c", c, characters.conj(), sign),
        )
    ]
    return GroupNetwork(group, *blocks, output_scale=1 / (2 * group.order * q))


def _real(name: str, coefficients: Tensor, table: Tensor) -> Tensor:
    values = (coefficients @ table.T).T
    size = float(coefficients.abs().sum(1).max())
    if float(values.imag.abs().max()) > 1e-9 * max(size, 1e-300):
        raise InputError(f"{name}: expected coefficients of real weights, z_(-k) = conj z_k")
    return values.real.contiguous()


def _together(first: GroupNetwork, second: GroupNetwork) -> tuple[Coefficients, Coefficients]:
    """Coefficients of both, tied only where both are."""
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
    return network_of_coefficients(first.group, stacked, weights=weights)


def product_bytes(first: GroupNetwork, second: GroupNetwork) -> int:
    """Predicted bytes of work for the product of two networks: 4 complex copies of q1 q2 x 3n."""
    return WORKING_COPIES * 16 * first.width * second.width * 3 * first.group.order


def multiply(
    first: GroupNetwork, second: GroupNetwork, *, memory_limit: int = MEMORY_LIMIT
) -> GroupNetwork:
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
            f"multiply: {first.width:,} x {second.width:,} = {first.width * second.width:,} neurons need about "
            f"{needed / 2**20:,.0f} MiB, the limit is {memory_limit / 2**20:,.0f} MiB; compress the factors "
            "first (--compress 1e-6), or raise the limit"
        )
    pairs = tuple(
        None if x is None else (x[:, None, :] * y[None, :, :]).flatten(0, 1)
        for x, y in zip(left, right, strict=True)
    )
    return network_of_coefficients(first.group, pairs)


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
