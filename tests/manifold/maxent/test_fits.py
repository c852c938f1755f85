"""What a fit says of itself, against closed forms."""

import numpy as np
import pytest
from scipy.special import i0e, i1e

from manifold.maxent.family import MaxEntFamily
from manifold.maxent.fitting import Reason, fit
from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import parse_monomials


@pytest.mark.parametrize("kappa", [0.5, 4.0])
def test_both_entropies_of_von_mises(kappa):
    """``log(2 pi I0) - kappa I1 / I0`` against length; ``log 2 pi`` less against the uniform one."""
    space = parse_space("S1")
    family = MaxEntFamily(space, parse_monomials("x1;x2", space))
    found = fit(family, [i1e(kappa) / i0e(kappa), 0.0])
    exact = np.log(2 * np.pi * i0e(kappa)) + kappa - kappa * i1e(kappa) / i0e(kappa)
    assert found.entropy_riemannian == pytest.approx(exact, abs=1e-10)
    assert found.entropy == pytest.approx(exact - np.log(2 * np.pi), abs=1e-10)
    assert (found.dimension, found.reason) == (2, Reason.CONVERGED)
    assert found.diagnostics is not fit(family, [0.1, 0.0]).diagnostics
