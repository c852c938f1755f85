"""Node counts from the complex plane: enough on closed forms for every frequency, and not far too many."""

import mpmath as mp
import numpy as np
import pytest
from scipy.special import ive

from manifold.expressions import parse_monomials
from manifold.harmonics import Lattice, bandwidth, growth, node_count
from manifold.maxent import MaxEntFamily, components
from manifold.polynomials import Axis
from manifold.quadrature import gauss_jacobi, global_rule
from manifold.spaces import parse_space

PHASE = Axis(0, 0, 0)


@pytest.mark.parametrize("frequency", [1, 3, 4, 32, 64])
@pytest.mark.parametrize("kappa", [0.01, 1.0, 100.0, 1e4])
def test_trapezoid_counts(frequency, kappa):
    """exp(kappa cos(m x)): the mean is I0, whatever grid the frequency could hide on."""
    amplitude = np.zeros(frequency + 1)
    amplitude[frequency] = kappa
    nodes = node_count(PHASE, amplitude, 1e-12)
    angles, weights = global_rule(PHASE, nodes)
    found = weights @ np.exp(kappa * (np.cos(frequency * angles) - 1))
    assert found == pytest.approx(ive(0, kappa), rel=1e-12 + 4e-16 * kappa * frequency)
    assert nodes < 2.2 * frequency * (
        np.sqrt(2 * kappa * np.log(4e12)) + np.log(4e12) / np.arcsinh(1 / kappa + 1)
    )


def test_fewer_nodes_would_not_do():
    """The count is no vast overestimate: a third of it errs visibly."""
    amplitude = np.array([0.0, 200.0])
    nodes = node_count(PHASE, amplitude, 1e-12)
    angles, weights = global_rule(PHASE, nodes // 3)
    assert abs(weights @ np.exp(200 * (np.cos(angles) - 1)) / ive(0, 200.0) - 1) > 1e-12


@pytest.mark.parametrize(("block", "rest"), [(1, 2), (1, 3), (1, 6), (2, 1), (2, 2), (2, 4)])
@pytest.mark.parametrize("kappa", [-60.0, 3.0, 60.0])
def test_gauss_counts(block, rest, kappa):
    """exp(kappa sin chi) on a single coordinate, exp(kappa sin^2 chi) on a pair, against mpmath."""
    axis, alpha = Axis(block, rest, 0), mp.mpf(rest) / 2 - 1
    amplitude = np.array([0.0, abs(kappa)]) if block == 1 else np.array([0.0, 0.0, abs(kappa) / 2])
    angles, weights = global_rule(axis, node_count(axis, amplitude, 1e-13))
    found = weights @ np.exp(kappa * np.sin(angles) ** block - abs(kappa))
    mp.mp.dps = 25
    inner = [-1, -0.999, -0.99, -0.9, 0, 0.9, 0.99, 0.999, 1]
    if block == 1:
        density, exponent = (lambda t: (1 - t * t) ** alpha), (lambda t: t)
    else:
        density, exponent = (lambda t: (1 - t) ** alpha), (lambda t: (1 + t) / 2)
    exact = mp.quad(lambda t: mp.e ** (kappa * exponent(t) - abs(kappa)) * density(t), inner)
    assert found == pytest.approx(float(exact / mp.quad(density, inner)), rel=2e-13)


def test_bandwidth_bounds_fourier_coefficients():
    rng = np.random.default_rng(3)
    for _ in range(20):
        series = rng.normal(size=5) * 3 + 1j * rng.normal(size=5) * 3
        angles = 2 * np.pi * np.arange(2048) / 2048
        exponent = (np.exp(1j * np.outer(angles, np.arange(1, 6))) @ series).real
        spectrum = np.abs(np.fft.rfft(np.exp(exponent - exponent.max())))
        degree = bandwidth(np.concatenate([[0.0], np.abs(series)]), 1e-9)
        assert (spectrum[degree:] < 1e-9 * spectrum[0]).all()


def test_growth_is_that_of_the_exponent():
    assert growth(np.array([0.0, 2.0, 0.0, 0.5]))[100] == pytest.approx(
        2 * (np.cosh(y := np.geomspace(1e-7, 8.0, 240)[100]) - 1) + 0.5 * (np.cosh(3 * y) - 1), rel=1e-9
    )


@pytest.mark.parametrize(
    ("space", "monomials"), [("S2", "x1^2*x3^2;x2"), ("T2", "Re(z1*z2^2);Im(z1)"), ("S3", "x1*x2;x3*x4^2")]
)
def test_lattice_is_the_function_and_its_derivatives(space, monomials):
    place = parse_space(space)
    ((_, terms),) = components(parse_monomials(monomials, place), place)
    lattice, lam = Lattice(terms), np.array([1.3, -0.7])
    rng = np.random.default_rng(0)
    points, step = rng.uniform(0, 1.5, (4, len(terms.axes))), 1e-5
    value, gradient, hessian = lattice.derivatives(lam, points)
    direct = np.zeros(4)
    for key, c, owner in zip(terms.keys, terms.coefficients, terms.owner, strict=True):
        factor = np.full(4, c * lam[owner])
        for a, axis in enumerate(terms.axes):
            columns = key[None, axis.column : axis.column + axis.width]
            factor = factor * axis.functions(columns, points[:, a])[0]
        direct += factor.real
    np.testing.assert_allclose(value, direct, atol=1e-13)
    for a in range(points.shape[1]):
        ahead, behind = points.copy(), points.copy()
        ahead[:, a] += step
        behind[:, a] -= step
        up, down = lattice.derivatives(lam, ahead), lattice.derivatives(lam, behind)
        np.testing.assert_allclose(gradient[:, a], (up[0] - down[0]) / (2 * step), atol=1e-8)
        np.testing.assert_allclose(hessian[:, a], (up[1] - down[1]) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("lam", [10.0, 100.0, 400.0, 1e6])
def test_frequencies_in_multiples_of_four(lam):
    """x1^2 x3^2 hid from a grid of 64 nodes: log Z was wrong by 0.7 nats at 1e6."""
    mp.mp.dps = 30
    inner = [
        0,
        *(mp.mpf(10) ** -k for k in range(8, 0, -1)),
        0.5,
        0.9,
        *(1 - mp.mpf(10) ** -k for k in range(2, 10)),
        1,
    ]

    def slice_mass(z):
        a = lam * z * z * (1 - z * z) / 2
        return mp.exp(-a) * mp.besseli(0, a)

    exact = float(mp.log(mp.quad(slice_mass, inner)))
    space = parse_space("S2")
    found = MaxEntFamily(space, parse_monomials("x1^2*x3^2", space)).evaluate([-lam])
    assert abs(found.log_partition - exact) <= found.log_partition_error
    assert found.log_partition_error < 1e-12 * (1 + lam)


def test_gauss_jacobi_next_to_the_ends():
    """The smallest weights of Gauss-Legendre with 100 nodes, by mpmath at their nodes."""
    t, weights = gauss_jacobi(100, 0.0, 0.0)
    mp.mp.dps = 30
    node = mp.findroot(lambda x: mp.legendre(100, x), mp.mpf(float(t[0])))
    slope = 100 * (mp.legendre(99, node) - node * mp.legendre(100, node)) / (1 - node**2)
    exact = 2 / ((1 - node**2) * slope**2)
    assert float(2 * weights[0] / weights.sum()) == pytest.approx(float(exact), rel=1e-14)
