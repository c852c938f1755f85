import numpy as np
import pytest
import torch

from manifold.errors import InfeasibleMomentsError
from manifold.maxent.faces import FaceFit, exposed_face, fit_anywhere, integer_kernel
from manifold.maxent.family import MaxEntFamily
from manifold.maxent.fitting import fit
from manifold.maxent.moment_body import separate, support_function
from manifold.sampling.linear_forms import LinearForm
from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import parse_monomials
from tests.manifold.maxent.families import random_monomials

TOP = 3**-1.5
CUBIC = "Re(z1*z2*conj(z3))"


def family(space, monomials):
    space = parse_space(space)
    return MaxEntFamily(space, parse_monomials(monomials, space))


def planted(space_name, seed, excess):
    """Moments with u.rho = h(u) (1 + excess), on the ray from the uniform mean to r(maximiser)."""
    rng = np.random.default_rng(seed)
    space = parse_space(space_name)
    tested = MaxEntFamily(space, random_monomials(space.ambient, rng, most=10))
    u = np.zeros(len(tested))
    u[tested.independent] = rng.normal(size=tested.rank) / tested.scale[tested.independent]
    support, point = support_function(space, tested.monomials, u, starts=128)
    vertex = tested.monomials.values(torch.as_tensor(point)[None]).numpy()[0]
    mean = tested.uniform_moments[0]
    reach = (support * (1 + excess) - u @ mean) / (support - u @ mean)
    return tested, mean + reach * (vertex - mean)


def refused(space_name, seed, excess):
    tested, rho = planted(space_name, seed, excess)
    with pytest.raises(InfeasibleMomentsError) as caught:
        fit(tested, rho)
    certificate = caught.value.certificate
    # Verified without the code that found it: a fine random net of the space stays below u.rho.
    net = tested.space.uniform(20000, generator=torch.Generator().manual_seed(99))
    assert (tested.monomials.values(net).numpy() @ certificate.direction).max() < certificate.value
    assert certificate.direction @ rho == pytest.approx(certificate.value)
    assert certificate.value > certificate.support


@pytest.mark.parametrize("space", ["S2", "T2", "S3", "S2xS1"])
@pytest.mark.parametrize("excess", [1e-4, 0.3])
def test_planted_infeasible_moments_are_refused(space, excess):
    refused(space, 0, excess)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["S2", "T2", "S3", "S2xS1", "S5"])
@pytest.mark.parametrize("seed", range(20))
def test_hundred_planted_infeasible_moments(space, seed):
    refused(space, seed, 1e-4)


@pytest.mark.parametrize(("space", "slack"), [("S2", 1e-3), ("T2", 1e-3), ("S3", 1e-2)])
def test_feasible_moments_near_the_boundary_are_fitted(space, slack):
    tested, rho = planted(space, 1, -slack)
    result = fit(tested, rho)
    assert result.converged
    np.testing.assert_allclose(tested.mean(result.lam), rho, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["S2", "T2", "S3", "S2xS1", "T3"])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("slack", [1e-2, 1e-3])
def test_many_feasible_moments_near_the_boundary(space, seed, slack):
    tested, rho = planted(space, seed, -slack)
    np.testing.assert_allclose(tested.mean(fit(tested, rho).lam), rho, atol=1e-8)


def test_separation_finds_nothing_inside():
    tested, rho = planted("S2", 3, -0.2)
    assert separate(tested, rho) is None


@pytest.mark.parametrize("space", ["S3", "T2", "S2xS1"])
def test_support_function_two_ways(space):
    rng = np.random.default_rng(5)
    place = parse_space(space)
    monomials = random_monomials(place.ambient, rng, most=8)
    u = rng.normal(size=len(monomials))
    ascent, point = support_function(place, monomials, u)
    riemannian, _ = support_function(place, monomials, u, method="pymanopt")
    assert ascent == pytest.approx(riemannian, abs=1e-9)
    assert (monomials.values(torch.as_tensor(point)[None]).numpy() @ u)[0] == pytest.approx(ascent)


def test_linear_form_equals_monomials():
    space = parse_space("S5")
    monomials = parse_monomials("Re(z1*z2*conj(z3));Im(z1^2*z3);x1^2*x2;|z2|^2", space)
    points = space.uniform(7, generator=torch.Generator().manual_seed(0))
    u = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    form = LinearForm(monomials)
    value, gradient = form(points, u)
    torch.testing.assert_close(value, monomials.values(points) @ u)
    torch.testing.assert_close(form.values(points), monomials.values(points))
    torch.testing.assert_close(gradient, torch.einsum("qmd,m->qd", monomials.jacobian(points), u))


@pytest.mark.parametrize("distance", [1e-2, 3e-4, 1e-6])
def test_cubic_near_its_face(distance):
    """lambda (h - rho) -> 3/2, and the entropy falls by (3/2) log per factor of lambda."""
    result = fit(family("S5", CUBIC), [TOP * (1 - distance)])
    assert result.lam[0] * TOP * distance == pytest.approx(1.5, rel=6 * distance)
    other = fit(family("S5", CUBIC), [TOP * (1 - distance / 2)])
    slope = (other.entropy - result.entropy) / np.log(other.lam[0] / result.lam[0])
    assert slope == pytest.approx(-1.5, rel=8 * distance)


def test_torus_face_of_the_cubic():
    monomials = CUBIC + ";Im(z1*z2*conj(z3));Re(z1*conj(z2)*z3);Re(z1^2*z3)"
    tested = family("S5", monomials)
    found = fit_anywhere(tested, [TOP, 0.0, 0.02, 0.05])
    assert isinstance(found, FaceFit)
    assert found.face.dimension == 2
    assert found.moment_error < 1e-9
    # On the face |z_k|^2 = 1/3 and theta_3 = theta_1 + theta_2: the two others are TOP cos(2 theta_1) and
    # TOP cos(3 theta_1 + theta_2), independent angles, hence two von Mises laws.
    from scipy.optimize import brentq
    from scipy.special import ive

    expected = [
        brentq(lambda k, r=r: ive(1, k) / ive(0, k) - r, 0, 9) / TOP for r in (0.02 / TOP, 0.05 / TOP)
    ]
    np.testing.assert_allclose(found.fit.lam, expected, rtol=1e-8)
    with pytest.raises(InfeasibleMomentsError):
        fit_anywhere(tested, [TOP * (1 + 1e-5), 0.0, 0.02, 0.05])


def test_finite_face():
    found = fit_anywhere(family("S2", "x1^2;x1*x2;x1"), [1.0, 0.0, 0.3])
    assert found.face.dimension == 0
    np.testing.assert_allclose(np.sort(found.weights), [0.35, 0.65], atol=1e-10)


def test_great_circle_face():
    found = fit_anywhere(family("S2", "x3^2;x1"), [0.0, 0.3])
    assert found.face.dimension == 1
    assert found.fit.lam[0] == pytest.approx(0.62921538, abs=1e-7)  # von Mises: I1/I0 = 0.3


def test_face_direction_is_unit():
    space = parse_space("S2")
    face = exposed_face(space, parse_monomials("x3;x1", space), [3.0, 0.0])
    assert face.support == pytest.approx(1.0)
    np.testing.assert_allclose(face.points[0], [0, 0, 1], atol=1e-6)


def test_integer_kernel():
    basis, inverse = integer_kernel(np.array([[1, 1, -1]]), np.ones(3, bool))
    assert (np.array([1, 1, -1]) @ basis == 0).all()
    np.testing.assert_array_equal(inverse @ basis, np.eye(2, dtype=int))
