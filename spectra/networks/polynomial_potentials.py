"""Monomial potentials of networks with a polynomial activation, and the outputs rebuilt from them."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from manifold.errors import InputError
from spectra.networks.activations import Polynomial
from spectra.networks.group_network import GroupNetwork


@dataclass(frozen=True, eq=False)
class PolynomialPotentials:
    """Every monomial potential that the outputs of one network depend on.

    With canonical weights ``f(x, y)_k = g sum_d p_d sum_i C(d, i) E[a[x]^i b[y]^(d-i) c[k]]`` for
    ``sigma(t) = sum_d p_d t^d``: finitely many monomials of degree i + j + 1 span all potentials.

    Parameters
    ----------
    network : GroupNetwork
    moments : dict
        ``(i, j)`` to ``E[a[x]^i b[y]^j c[k]]``, shape (n, n, n), for the powers that sigma needs.
    """

    network: GroupNetwork
    moments: dict[tuple[int, int], Tensor]

    @classmethod
    def of(cls, network: GroupNetwork) -> PolynomialPotentials:
        """Compute them: O(q n^3) work and 8 n^3 bytes for each monomial.

        Parameters
        ----------
        network : GroupNetwork

        Returns
        -------
        PolynomialPotentials

        Raises
        ------
        InputError
            If the activation is not a polynomial.
        """
        if not isinstance(network.activation, Polynomial):
            raise InputError(f"activation: expected a polynomial, got {network.activation.name}")
        a, c = network.tau * network.a, network.tau * network.c
        b = a if network.tied else network.tau * network.b
        degrees = [d for d, value in enumerate(network.activation.coefficients) if value]
        moments = {}
        for degree in degrees:
            for i in range(degree + 1):
                moments[i, degree - i] = _moment(a**i, b ** (degree - i), c)
        return cls(network, moments)

    def outputs(self) -> Tensor:
        """Predictions rebuilt from the potentials alone, shape (n, n, n), axes x, y, output."""
        coefficients = self.network.activation.coefficients
        return self.network.gain * sum(
            coefficients[i + j] * comb(i + j, i) * moment for (i, j), moment in self.moments.items()
        )


def _moment(left: Tensor, right: Tensor, c: Tensor) -> Tensor:
    """``mean_j left_j[x] right_j[y] c_j[k]``, one row x at a time."""
    return torch.stack([(row * right) @ c.T for row in left]) / c.shape[1]
