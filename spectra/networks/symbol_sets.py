"""0-sets and 1-sets of potentials, and how they combine under sums and products of measures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from manifold.errors import InputError
from spectra.networks.potentials import GroupPotentials


def all_potentials(potentials: GroupPotentials) -> Tensor:
    """Every potential in one vector, complex, shape (3 n^3,): mixed, then squares of a, then of b."""
    parts = (potentials.mixed, potentials.squares_a, potentials.squares_b)
    return torch.cat([part.reshape(-1) for part in parts])


@dataclass(frozen=True, eq=False)
class SymbolSets:
    """Which potentials are 0, which are 1, to a tolerance per potential.

    Parameters
    ----------
    zeros, ones : Tensor of bool, shape (m,)
        ``|rho_r| <= tolerance_r`` and ``|rho_r - 1| <= tolerance_r``.
    sizes : Tensor, shape (m,)
        Upper bounds of ``|rho_r|``.
    tolerance : Tensor, shape (m,)
        Absolute.
    """

    zeros: Tensor
    ones: Tensor
    sizes: Tensor
    tolerance: Tensor

    @classmethod
    def measured(cls, values: Tensor, *, tol: float) -> SymbolSets:
        """Sets of given potentials.

        Parameters
        ----------
        values : Tensor, shape (m,)
            Potentials, real or complex.
        tol : float
            Absolute tolerance, in [0, 1/2): beyond, 0 and 1 could not be told apart.

        Returns
        -------
        SymbolSets

        Raises
        ------
        InputError
            If the tolerance is out of range.
        """
        if not 0 <= tol < 0.5:
            raise InputError(f"tol: expected a tolerance in [0, 0.5), got {tol}")
        sizes = values.abs()
        return cls(sizes <= tol, (values - 1).abs() <= tol, sizes, torch.full_like(sizes, tol))

    def __or__(self, other: SymbolSets) -> SymbolSets:
        """What is certain of ``mu1 + mu2``: 0-set R0 & S0, 1-set (R1 & S0) | (R0 & S1).

        Distances add: a member of either set is off its value by at most the sum of the tolerances.
        """
        ones = (self.ones & other.zeros) | (self.zeros & other.ones)
        return SymbolSets(
            self.zeros & other.zeros, ones, self.sizes + other.sizes, self.tolerance + other.tolerance
        )

    def __and__(self, other: SymbolSets) -> SymbolSets:
        """What is certain of ``mu1 * mu2``: 0-set R0 | S0, 1-set R1 & S1.

        With tolerances t and u: a zero times sigma is within ``t |sigma|`` (or ``u |rho|``) of 0, and
        ``|rho sigma - 1| <= t + u + t u`` for two ones.
        """
        t, u = self.tolerance, other.tolerance
        zero = torch.where(self.zeros, t * other.sizes, u * self.sizes)
        zeros, ones = self.zeros | other.zeros, self.ones & other.ones
        tolerance = torch.where(zeros, zero, t + u + t * u)
        return SymbolSets(zeros, ones, self.sizes * other.sizes, tolerance)

    def kept_by(self, values: Tensor, *, rounding: float = 1e-12) -> bool:
        """Whether measured potentials obey these predicted sets.

        Parameters
        ----------
        values : Tensor, shape (m,)
            Potentials of the composed measure.
        rounding : float
            Added to the tolerances, relative to 1 + the sizes.

        Returns
        -------
        bool
        """
        slack = self.tolerance + rounding * (1 + self.sizes)
        zero = (values.abs() <= slack)[self.zeros].all()
        one = ((values - 1).abs() <= slack)[self.ones].all()
        return bool(zero & one)
