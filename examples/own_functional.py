"""A functional of your own: three monomials on the plane, a loss of their means, and its spectrum."""

import torch

from manifold.measures import ParticleMeasure
from manifold.monomials import Monomials
from spectra.functionals.base import PotentialFunctional
from spectra.functionals.conformance import check_functional
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum

symbols = Monomials([[2, 1], [1, 0], [0, 3]], names=("x^2 y", "x", "y^3"))


def loss(rho):
    """L, any smooth function of the means rho."""
    return (rho[0] - 1) ** 2 + torch.cosh(rho[1]) + 0.5 * rho[2] ** 2


functional = PotentialFunctional(symbols.values, loss, count=len(symbols))
points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
measure = ParticleMeasure(points)
for check, measured in check_functional(functional, measure).items():
    print(f"{check:>16} {measured:.3g}")
found = compute_spectrum(plan_spectrum(functional, measure, count=None), functional, measure)
for value, error in zip(found.spectrum.eigenvalues, found.spectrum.errors, strict=True):
    print(f"eigenvalue {value:.6f} +- {error:.0e}")
