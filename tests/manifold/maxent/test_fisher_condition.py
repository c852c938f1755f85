"""The condition of the Fisher information is that of correlations: it does not see units."""

import pytest

from manifold.maxent.family import MaxEntFamily
from manifold.maxent.fitting import fit
from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import parse_monomials


@pytest.mark.parametrize(
    ("space", "monomials", "moments", "condition"),
    [
        ("S1", "x1;x1*x2", [0, 0], 1.0),  # variances 1/2 and 1/8, uncorrelated: unscaled it would be 4
        ("S2", "x1^2;x2^2", [1 / 3, 1 / 3], 3.0),  # correlation -1/2
        ("S2", "x3;x1^2;x2^2", [0, 1 / 3, 1 / 3], 3.0),  # and an uncorrelated one of another size
    ],
)
def test_condition_at_the_uniform_measure(space, monomials, moments, condition):
    space = parse_space(space)
    found = fit(MaxEntFamily(space, parse_monomials(monomials, space)), moments)
    assert found.condition == pytest.approx(condition, rel=1e-8)
