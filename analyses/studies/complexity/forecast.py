"""The target of a study, and the deterministic equivalent of its risk from spectra alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from manifold.errors import InputError
from manifold.groups.actions import GroupAction
from manifold.invariants.kernel_ridge import sobolev_eigenvalues
from manifold.invariants.predicted_risk import RidgePrediction, predicted_risk
from manifold.invariants.weyl import invariant_spectrum, weyl_main

FINEST = 40_000


@dataclass(frozen=True)
class Target:
    """A fixed function with zero mean and unit variance, invariant under one group.

    Coefficients ``+-(1 + lambda_i)^(-(a + d'/2) / 2)``, a = theta s, put it on the edge of F^{theta s}: the
    energy above lambda falls like ``lambda^(-a)``.

    Attributes
    ----------
    action : GroupAction
    smoothness : float
        a = theta s.
    cutoff : float
        Largest eigenvalue present.
    band : float or None
        If given, the energy is spread evenly over the functions with eigenvalue in (0, band] instead.
    """

    action: GroupAction
    smoothness: float
    cutoff: float
    band: float | None = None

    def coefficients(self, eigenvalues: np.ndarray) -> np.ndarray:
        """Coefficients in the invariant eigenfunctions with these eigenvalues, shape (P,).

        Raises
        ------
        InputError
            If no eigenvalue is positive and within the band.
        """
        signs = np.random.default_rng(7).choice([-1.0, 1.0], len(eigenvalues))
        if self.band is None:
            size = (1 + eigenvalues) ** (-(self.smoothness + self.action.quotient_dim / 2) / 2)
        else:
            size = (eigenvalues <= self.band).astype(float)
        size = np.where(eigenvalues > 0, size, 0.0)
        if not size.any():
            raise InputError("target: no invariant eigenfunction below its cutoff or band; raise it")
        return signs * size / np.linalg.norm(size)

    @cached_property
    def energies(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (T,) and the energy in each eigenspace (T,)."""
        eigenvalues = invariant_spectrum(self.action, cutoff=self.cutoff)
        levels, place = np.unique(eigenvalues, return_inverse=True)
        return levels, np.bincount(place, self.coefficients(eigenvalues) ** 2)

    @cached_property
    def first(self) -> float:
        """Smallest eigenvalue that holds energy."""
        levels, energy = self.energies
        return float(levels[energy > 0][0])

    def nyquist(self, share: float = 0.99) -> float:
        """Eigenvalue below which this share of the energy lies."""
        levels, energy = self.energies
        return float(levels[np.searchsorted(np.cumsum(energy), share * energy.sum())])


@dataclass(frozen=True)
class Forecast:
    """Predicted risks of one group learning one target, for any n, ridge and truncation.

    Attributes
    ----------
    action : GroupAction
    target : Target
    s, noise : float
    """

    action: GroupAction
    target: Target
    s: float
    noise: float

    @cached_property
    def finest(self) -> float:
        """A truncation so fine that it stands for none, with at most about 40,000 functions."""
        cutoff = max(self.target.cutoff, 1e5 * (self.target.band or 0.0))
        while weyl_main(self.action, cutoff) > FINEST:
            cutoff /= 1.1
        return cutoff

    @cached_property
    def spectrum(self) -> np.ndarray:
        """Invariant Laplace eigenvalues up to `finest`."""
        return invariant_spectrum(self.action, cutoff=self.finest)

    def count(self, cutoff: float) -> int:
        """Number of invariant eigenfunctions up to a cutoff (at most `finest`)."""
        return int(np.searchsorted(self.spectrum, cutoff, side="right"))

    def predict(self, samples: int, ridge: float, cutoff: float | None = None) -> RidgePrediction:
        """Deterministic equivalent with the kernel truncated at a Laplace eigenvalue (default: finest)."""
        cutoff = self.finest if cutoff is None else cutoff
        levels, energy = self.target.energies
        learnable = np.where(levels <= cutoff, sobolev_eigenvalues(levels, self.s), 0.0)
        return predicted_risk(
            sobolev_eigenvalues(self.spectrum[: self.count(cutoff)], self.s),
            target_eigenvalues=learnable,
            target_energy=energy,
            samples=int(samples),
            ridge=ridge,
            noise=self.noise,
        )

    def truncation_error(self, samples: int, ridge: float, cutoff: float) -> float:
        """Relative change of the predicted risk caused by the truncation."""
        fine = self.predict(samples, ridge).risk
        return abs(self.predict(samples, ridge, cutoff).risk / fine - 1)

    def resolved(self, samples: int, ridge: float, cutoff: float | None = None) -> float:
        """Laplace eigenvalue up to which the fit follows: ``(1 + lambda)^(-s) = chi``."""
        chi = self.predict(samples, ridge, cutoff).implicit_ridge
        return max(chi ** (-1 / self.s) - 1, 0.0)
