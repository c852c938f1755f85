import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive

from manifold.errors import InfeasibleMomentsError, InputError, NotIntegrableError
from manifold.integration.adaptive import AdaptiveIntegrator
from manifold.integration.rules import product_rule
from manifold.maxent.family import MaxEntFamily, components
from manifold.maxent.fisher_rao import FisherRaoManifold
from manifold.maxent.fitting import fit
from manifold.monomials import Monomials
from manifold.spaces.embedded import Product, Sphere, parse_space
from manifold.spaces.monomial_expressions import parse_monomials
from tests.manifold.maxent.families import random_problem
from tests.manifold.maxent.oracles_maxent import bingham, cubic_sphere, folland, von_mises_fisher

CUBIC = "Re(z1*z2*conj(z3))"


def family(space, monomials):
    space = parse_space(space)
    return MaxEntFamily(space, parse_monomials(monomials, space))


@pytest.mark.parametrize("kappa", [1e-3, 0.7, 12.0, 300.0, 1e5])
def test_von_mises(kappa):
    found = family("T1", "Re(z1)").evaluate([kappa], order=2)
    assert found.log_partition == pytest.approx(np.log(ive(0, kappa)) + kappa, abs=1e-10)
    assert found.mean[0] == pytest.approx(ive(1, kappa) / ive(0, kappa), abs=1e-10)


@pytest.mark.parametrize("dimension", range(2, 11))
@pytest.mark.parametrize("kappa", [0.5, 20.0])
def test_von_mises_fisher(dimension, kappa):
    # Along the last coordinate, so that a single angle matters, and along an oblique direction.
    space = Sphere(dimension - 1)
    last = MaxEntFamily(space, Monomials(np.eye(dimension, dtype=int)[-1:]))
    log_z, mean = von_mises_fisher(kappa, dimension)
    found = last.evaluate([kappa])
    assert found.log_partition == pytest.approx(log_z, abs=1e-10)
    assert found.mean[0] == pytest.approx(mean, abs=1e-10)


@pytest.mark.parametrize("dimension", [3, 4, 5])
def test_von_mises_fisher_oblique(dimension):
    direction = np.random.default_rng(dimension).normal(size=dimension)
    direction /= np.linalg.norm(direction)
    found = MaxEntFamily(Sphere(dimension - 1), Monomials(np.eye(dimension, dtype=int))).evaluate(
        8 * direction
    )
    log_z, mean = von_mises_fisher(8.0, dimension)
    assert found.log_partition == pytest.approx(log_z, abs=1e-10)
    np.testing.assert_allclose(found.mean, mean * direction, atol=1e-10)


@pytest.mark.parametrize(("a", "b"), [(3.0, -2.0), (40.0, 25.0), (-300.0, 120.0)])
def test_bingham(a, b):
    found = family("S2", "x1^2;x2^2").evaluate([a, b])
    assert found.log_partition == pytest.approx(bingham(a, b), abs=1e-10)


@pytest.mark.parametrize("lam", [0.3, 5.0, 60.0, 200.0, 3e3, 1e5, 1e6])
def test_cubic_on_five_sphere(lam):
    log_z, mean, variance = cubic_sphere(lam)
    found = family("S5", CUBIC).evaluate([lam], order=2)
    assert found.log_partition == pytest.approx(log_z, abs=1e-10, rel=1e-14)
    assert found.mean[0] == pytest.approx(mean, abs=1e-10)
    if lam <= 200:  # beyond, the reference series itself cancels
        assert found.covariance[0, 0] == pytest.approx(variance, rel=1e-8)
    else:  # Laplace: three directions across the two-torus of maximisers
        assert lam * (3**-1.5 - found.mean[0]) == pytest.approx(1.5, rel=2 / lam)
        assert lam**2 * found.covariance[0, 0] == pytest.approx(1.5, rel=3 / lam + 1e-7)


def test_real_form_of_the_cubic_agrees_with_the_complex_one():
    # x1 x3 x5 - x2 x4 x5 + x1 x4 x6 + x2 x3 x6 with equal lambdas, hyperspherical instead of polyspherical.
    real = family("S5", "x1*x3*x5;x2*x4*x5;x1*x4*x6;x2*x3*x6")
    log_z, mean, _ = cubic_sphere(30.0)
    found = real.evaluate(30.0 * np.array([1, -1, 1, 1]))
    assert found.log_partition == pytest.approx(log_z, abs=1e-10)
    assert found.mean @ [1, -1, 1, 1] == pytest.approx(mean, abs=1e-10)


def test_product_space_factorises():
    found = family("S2xS1xS3", "x3;x4;x9").evaluate([3.0, 2.0, 5.0])
    parts = [von_mises_fisher(3.0, 3), von_mises_fisher(2.0, 2), von_mises_fisher(5.0, 4)]
    assert found.log_partition == pytest.approx(sum(p[0] for p in parts), abs=1e-10)
    np.testing.assert_allclose(found.mean, [p[1] for p in parts], atol=1e-10)


@given(st.lists(st.integers(0, 4), min_size=3, max_size=6))
@settings(derandomize=True, deadline=None, max_examples=25)
def test_uniform_moments(exponents):
    if not any(exponents):
        return
    space = Sphere(len(exponents) - 1)
    monomials = Monomials([exponents, [2] + [0] * (len(exponents) - 1), [1] + [0] * (len(exponents) - 1)])
    mean, _ = MaxEntFamily(space, monomials).uniform_moments
    assert mean[0] == pytest.approx(folland(exponents), abs=1e-13)


@pytest.mark.parametrize("space", ["S2", "S3", "T2", "S2xS1"])
@pytest.mark.parametrize("seed", range(3))
def test_against_brute_force_rule(space, seed):
    """The factorised adaptive rule against a plain table of monomial values on a plain product rule."""
    tested, lam, _ = random_problem(space, seed, scale=1.0)
    points, weights = product_rule(tested.space, 48 if space == "S3" else 64)
    values = tested.monomials.values(__import__("torch").as_tensor(points)).numpy()
    density = weights * np.exp(values @ lam)
    z = density.sum()
    mean = density @ values / z
    covariance = (values * density[:, None]).T @ values / z - np.outer(mean, mean)
    found = tested.evaluate(lam, order=2)
    assert found.log_partition == pytest.approx(np.log(z), abs=1e-11)
    np.testing.assert_allclose(found.mean, mean, atol=1e-11)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-10)


@pytest.mark.parametrize("space", ["S1", "S2", "S3", "S4", "T1", "T2", "T3", "S2xS1", "T4", "S5"])
@pytest.mark.parametrize("seed", [0, 1])
def test_inverse_problem(space, seed):
    tested, lam, rho = random_problem(space, seed)
    newton = fit(tested, rho)
    assert np.abs(newton.lam - lam).max() <= 1e-8 * newton.condition**0.5 * np.abs(lam).max()
    assert newton.moment_error < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("space", ["S1", "S2", "S3", "S4", "T1", "T2", "T3", "S2xS1", "T4", "S5"])
def test_two_hundred_inverse_problems(space):
    """Lambda to 1e-8 relative to the conditioning, and in time (run with -s for the figures)."""
    seconds, errors = [], []
    for seed in range(200):
        tested, lam, rho = random_problem(space, seed)
        begin = time.perf_counter()
        newton = fit(MaxEntFamily(tested.space, tested.monomials), rho)
        seconds.append(time.perf_counter() - begin)
        errors.append(np.abs(newton.lam - lam).max() / (newton.condition**0.5 * np.abs(lam).max()))
    print(f"{space}: median {np.median(seconds):.3f} s, worst {max(seconds):.2f} s, error {max(errors):.1e}")
    assert max(errors) < 1e-8
    assert np.median(seconds) < 0.2
    assert max(seconds) < {"T4": 3, "S5": 10}.get(space, 1)


@pytest.mark.parametrize("space", ["S2", "T2", "S2xS1"])
@pytest.mark.parametrize("seed", range(4))
def test_trust_regions_agree_with_newton(space, seed):
    tested, _, rho = random_problem(space, 50 + seed, scale=1.5)
    newton, riemannian = fit(tested, rho), fit(tested, rho, method="trust-regions")
    np.testing.assert_allclose(riemannian.lam, newton.lam, atol=1e-7 * max(1, np.abs(newton.lam).max()))
    assert riemannian.entropy == pytest.approx(newton.entropy, abs=1e-10)


def test_indifferent_to_units():
    """x1 in units of 1e-3 (zeta = 1000 x1): a condition number of 1e6 changes nothing but lambda's unit."""
    exponents = np.array([[1, 0, 0], [2, 1, 0], [0, 0, 3]])
    plain = MaxEntFamily(Sphere(2), Monomials(exponents))
    scaled = MaxEntFamily(Sphere(2), Monomials(exponents, np.diag([1e3, 1.0, 1e-2])))
    unit = np.array([1e3, 1e6, 1e-6])
    rho = plain.mean([1.0, 2.0, -1.5])
    for method in ("newton", "trust-regions"):
        result = fit(scaled, rho * unit, method=method)
        np.testing.assert_allclose(result.lam * unit, [1.0, 2.0, -1.5], rtol=1e-9)


def test_identities_of_entropy():
    tested = family("S3", "x1*x2;x3^2;x4")
    lam, other = np.array([1.0, -2.0, 0.7]), np.array([0.3, 1.0, -1.0])
    assert tested.entropy(np.zeros(3)) == pytest.approx(0, abs=1e-13)
    assert tested.entropy(lam) < 0
    assert tested.relative_entropy(lam, lam) == pytest.approx(0, abs=1e-13)
    assert tested.relative_entropy(lam, np.zeros(3)) == pytest.approx(-tested.entropy(lam), abs=1e-12)
    points, weights = product_rule(tested.space, 40)
    p, q = tested.log_density(lam, points), tested.log_density(other, points)
    assert tested.relative_entropy(lam, other) == pytest.approx(weights @ (np.exp(p) * (p - q)), abs=1e-11)
    fewer = fit(family("S3", "x1*x2;x3^2"), tested.mean(lam)[:2])
    assert fewer.entropy >= tested.entropy(lam)  # each constraint lowers the entropy


def test_fisher_rao_manifold():
    manifold = FisherRaoManifold(family("S2", "x1;x2*x3"))
    a, b, v = np.array([0.5, 1.0]), np.array([1.0, -0.5]), np.array([0.3, 0.2])
    step = 1e-4
    jacobian = np.array(
        [(manifold.mean(a + step * e) - manifold.mean(a - step * e)) / (2 * step) for e in np.eye(2)]
    )
    np.testing.assert_allclose(manifold.metric(a), jacobian, atol=1e-8)
    gradient = manifold.euclidean_to_riemannian_gradient(a, np.array([1.0, 2.0]))
    assert manifold.inner_product(a, gradient, v) == pytest.approx(v @ [1.0, 2.0])
    np.testing.assert_allclose(manifold.retraction(a, manifold.log(a, b)), b)
    near = a + 1e-3 * v
    assert manifold.dist(a, near) == pytest.approx(1e-3 * manifold.norm(a, v), rel=1e-2)
    kl = manifold.family.relative_entropy(manifold.embed(a), manifold.embed(near))
    assert kl == pytest.approx(manifold.dist(a, near) ** 2 / 2, rel=1e-2)


def test_dependent_monomials_are_named():
    tested = family("S2", "x1^2;x2^2;x3^2;x1;x2;x3;x1*x2;x1*x3;x2*x3")
    assert tested.rank == 8
    (dependency,) = tested.dependencies
    assert dependency.sentence.startswith("x3^2 = 1 ")
    assert "x1^2" in dependency.sentence
    with pytest.raises(InfeasibleMomentsError) as caught:
        fit(tested, [0.3, 0.3, 0.5, 0, 0, 0, 0, 0, 0])
    certificate = caught.value.certificate
    assert certificate.exact
    assert certificate.margin > 0.01


@pytest.mark.parametrize(
    ("space", "monomials", "moments", "message"),
    [
        ("Q3", "x1", [0.1], "S<d>"),
        ("S2", "x1*y", [0.1], "grammar|product of powers"),
        ("S2", "x4", [0.1], "x1..x3"),
        ("S3", "z1*z2", [0.1], "Re"),
        ("S2", "x1^2*|z1|^3", [0.1], "even power"),
        ("S2", "x1;x2", [0.1], "expected 2"),
        ("S2", "x1", [np.nan], "finite"),
        ("T1", "|z1|^2", [1.0], "constant"),
    ],
)
def test_bad_input(space, monomials, moments, message):
    with pytest.raises(InputError, match=message):
        fit(family(space, monomials), moments)


def test_euclidean_is_refused():
    with pytest.raises(NotIntegrableError):
        family("R3", "x1^3")


def test_product_names():
    assert parse_space("T3").name == "T3"
    assert parse_space("s2 x s1") == Product((Sphere(2), Sphere(1)))


@pytest.mark.parametrize(
    ("space", "monomials"),
    [
        ("S5", CUBIC),
        ("S5", CUBIC + ";Im(z1*z2*conj(z3));Re(z1^2*z3)"),
        ("S2", "x1^2;x2*x3"),
        ("S3", "x1*x2;x3*x4;x1^2*x3^2"),
        ("T2", "Re(z1*z2);Re(z1)"),
        ("T2", "Re(z1^2);Im(z1*z2);Re(z2^2)"),
        ("S2xS1", "x1*x4;x3^2;x2*x5"),
    ],
)
def test_halving_by_symmetry_changes_nothing(space, monomials):
    """Half rules exist only where reflections keep every term; whole rules must give the same."""
    place = parse_space(space)
    terms = [t for _, t in components(parse_monomials(monomials, place), place)]
    halved = 0
    for part in terms:
        lam = np.random.default_rng(1).normal(size=part.count) * 4
        quick, slow = AdaptiveIntegrator(part), AdaptiveIntegrator(part)
        halved += sum(quick.half)
        slow.half = [False] * len(part.axes)
        a, b = quick.cumulants(lam, order=2)[0], slow.cumulants(lam, order=2)[0]
        assert a.log_partition == pytest.approx(b.log_partition, abs=1e-12)
        np.testing.assert_allclose(a.mean, b.mean, atol=1e-12)
        np.testing.assert_allclose(a.covariance, b.covariance, atol=1e-12)
    assert halved or "Im(z1*z2*conj(z3))" in monomials  # Re, Im and another phase leave no reflection
