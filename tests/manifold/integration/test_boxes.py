"""Adaptive boxes against closed forms and plain product rules, which share no code with them."""

import numpy as np
import pytest

from manifold.errors import TooLargeError
from manifold.integration.boxes import BoxIntegrator
from manifold.integration.rules import product_rule
from manifold.maxent.family import MaxEntFamily
from manifold.maxent.fitting import fit
from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import parse_monomials
from tests.manifold.maxent.families import random_problem
from tests.manifold.maxent.oracles_maxent import bingham, cubic_sphere


def boxes_of(family):
    ((_, part),) = family._parts
    return part.boxes


def family(space, monomials):
    space = parse_space(space)
    return MaxEntFamily(space, parse_monomials(monomials, space))


@pytest.mark.parametrize("lam", [5.0, 200.0, 1e4, 1e6])
def test_cubic_on_five_sphere(lam):
    log_z, mean, _ = cubic_sphere(lam)
    integrator = boxes_of(family("S5", "Re(z1*z2*conj(z3))"))
    found, _ = integrator.cumulants(np.array([lam]), order=2, tol=1e-14)
    assert found.log_partition == pytest.approx(log_z, abs=1e-10, rel=1e-14)
    assert found.mean[0] == pytest.approx(mean, abs=1e-11)


def test_bingham():
    integrator = boxes_of(family("S2", "x1^2;x2^2"))
    found, _ = integrator.cumulants(np.array([-300.0, 120.0]), tol=1e-14)
    assert found.log_partition == pytest.approx(bingham(-300.0, 120.0), abs=1e-11)


@pytest.mark.parametrize("space", ["S2", "T2", "S2xS1"])
def test_against_brute_force_rule(space):
    tested, lam, _ = random_problem(space, 1, scale=2.0)
    points, weights = product_rule(tested.space, 80)
    values = tested.monomials.values(__import__("torch").as_tensor(points)).numpy()
    density = weights * np.exp(values @ lam)
    density, log_z = density / density.sum(), np.log(density.sum())
    mean = density @ values
    found, _ = boxes_of(tested).cumulants(lam, order=2, tol=1e-14)
    assert found.log_partition == pytest.approx(log_z, abs=1e-11)
    np.testing.assert_allclose(found.mean, mean, atol=1e-12)
    covariance = (values * density[:, None]).T @ values - np.outer(mean, mean)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-11)


def test_two_scales_at_once():
    """A peak of width 1e-3 along one axis, a broad bulge along the other: a product of two Bessel laws."""
    from scipy.special import ive

    integrator = BoxIntegrator(*_torus_terms())
    found, boxes = integrator.cumulants(np.array([1e6, 2.0]), tol=1e-14)
    expected = np.log(ive(0, 1e6)) + 1e6 + np.log(ive(0, 2.0)) + 2.0
    assert found.log_partition == pytest.approx(expected, rel=1e-14)
    assert len(boxes.low) < 2000


def _torus_terms():
    space = parse_space("T2")
    from manifold.integration.polar_terms import terms_of

    terms = terms_of(parse_monomials("Re(z1);Re(z2)", space), space, polyspherical=True)
    return terms, [False] * len(terms.axes)


def test_too_many_nodes_are_refused(monkeypatch):
    monkeypatch.setattr("manifold.integration.boxes.MOST_NODES", 1000)
    with pytest.raises(TooLargeError, match="boxes"):
        boxes_of(family("S2", "x1^2;x2*x3")).cumulants(np.array([50.0, 30.0]), tol=1e-14)


def test_rules_that_disagree_are_refined():
    """A rare mode that twelve slices miss: the fit enlarges its rules until they agree."""
    from tests.manifold.maxent.test_moment_body import planted

    tested, rho = planted("S3", 1, -1e-2)
    result = fit(tested, rho)
    np.testing.assert_allclose(tested.evaluate(result.lam, growth=3.0).mean, rho, atol=1e-9)
