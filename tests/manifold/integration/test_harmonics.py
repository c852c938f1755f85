"""Node counts from the complex plane: enough on closed forms for every frequency, and not far too many."""

import math

import mpmath as mp
import numpy as np
import pytest
from scipy.special import ive

from manifold.integration.harmonics import (
    Harmonics,
    Lattice,
    _concentration,
    _largest,
    amplitudes,
    bandwidth,
    fourier,
    growth,
    node_count,
)
from manifold.integration.polar_terms import Axis
from manifold.integration.rules import gauss_jacobi, global_rule
from manifold.maxent.family import MaxEntFamily, components
from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import parse_monomials

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


SHIFTS = np.geomspace(1e-7, 8.0, 240)


def cosh_sum(amplitude, y):
    return sum(a * (math.cosh(k * y) - 1) for k, a in enumerate(amplitude))


def test_growth_at_every_shift_and_beyond_what_a_double_holds():
    amplitude = np.array([5.0, 2.0, 0.0, 0.5])
    for y, found in zip(SHIFTS, growth(amplitude), strict=True):
        small = sum(a * k * k for k, a in enumerate(amplitude)) * y * y / 2
        assert found == pytest.approx(cosh_sum(amplitude, y) if y > 1e-3 else small, rel=1e-5)
    found = growth(np.append(np.zeros(100), 1.0))
    assert np.isinf(found).tolist() == [100 * y >= 700 for y in SHIFTS]
    assert growth(np.array([3.0])).tolist() == [0.0] * 240


@pytest.mark.parametrize("amplitude", [[0.0, 3.0], [0.0, 0.1, 20.0], [7.0, 0.0, 0.0, 1e-3]])
@pytest.mark.parametrize("tol", [1e-14, 1e-3])
def test_bandwidth_and_trapezoid_counts_are_the_least_over_all_shifts(amplitude, tol):
    def least(start, shifts):
        return min((cosh_sum(amplitude, y) + start) / y for y in shifts)

    shifts = SHIFTS[SHIFTS > 1e-2]
    amplitude = np.array(amplitude)
    found = bandwidth(amplitude, tol)
    assert found == math.ceil(least(-math.log(tol), shifts))
    assert least(-math.log(tol), np.linspace(0.01, 8, 5000)) <= found
    for extra in (0, 1, 7):
        bound = least(math.log(4 / tol), shifts) + extra
        count = node_count(PHASE, amplitude, tol, extra=extra)
        assert count % 2 == 0
        assert bound <= count < bound + 2


def test_without_moments_nothing_is_added():
    found, _ = harmonics_of("T1", "Re(z1)")
    amplitude, lam = np.array([0.0, 3.0]), np.array([3.0])
    for tol in np.geomspace(1e-3, 1e-12, 20):  # some of these counts are next to a step
        assert node_count(PHASE, amplitude, tol) == node_count(PHASE, amplitude, tol, extra=0)
        assert found.nodes(lam, 0, tol) == node_count(PHASE, amplitude, tol, extra=0)


def test_an_amplitude_beyond_all_bounds_has_a_finite_count():
    assert node_count(PHASE, np.array([0.0, 1e300]), 1e-12) == 10**9


@pytest.mark.parametrize("slope", [0.0, 0.4, 30.0])
def test_concentration_from_the_mass_at_the_ends(slope):
    """Densities uniform, cos^2, sin, sin cos, sin cos^3: the least mass of a length 1 / L at an end."""
    width, s, c = 1 / (1 + slope), math.sin(1.0), math.cos(1.0)
    amplitude = np.array([9.0, slope / 3, slope / 3])
    for axis, masses in (
        (Axis(1, 1, 0), [width / math.pi]),
        (Axis(1, 3, 0), [s**2 * width**3 / 3 * 2 / math.pi]),
        (Axis(2, 1, 0), [c * width, s * width**2 / 2]),
        (Axis(2, 2, 0), [c * s * width**2]),
        (Axis(2, 4, 0), [4 * c * s**3 * width**4 / 4, 4 * c**3 * s * width**2 / 2]),
    ):
        assert _concentration(axis, amplitude) == pytest.approx(1 - math.log(min(masses)))


@pytest.mark.parametrize("kappa", [-40.0, -3.0, 0.5, 40.0])
@pytest.mark.parametrize(("block", "rest"), [(1, 1), (1, 2), (1, 6), (2, 1), (2, 2), (2, 4)])
def test_concentration_bounds_the_mean_over_the_integral(block, rest, kappa):
    """exp(kappa sin^block chi): the mean without the density against the integral with it."""
    ends = (-np.pi / 2, np.pi / 2) if block == 1 else (0, np.pi / 2)
    chi = np.linspace(*ends, 20001)
    chi = (chi[1:] + chi[:-1]) / 2
    density = np.abs(np.sin(chi)) ** (block - 1) * np.cos(chi) ** (rest - 1)
    values = np.exp(kappa * np.sin(chi) ** block - abs(kappa))
    exact = math.log(values.mean() / (values @ density / density.sum()))
    amplitude = np.array([0.0, abs(kappa)]) if block == 1 else np.array([0.0, 0.0, abs(kappa) / 2])
    assert exact <= _concentration(Axis(block, rest, 0), amplitude)


@pytest.mark.parametrize(("block", "rest"), [(1, 2), (1, 5), (2, 1), (2, 4)])
@pytest.mark.parametrize("extra", [0, 3])
def test_gauss_counts_are_the_least_over_all_shifts(block, rest, extra):
    axis, amplitude, tol = Axis(block, rest, 0), np.array([0.0, 2.0, 0.5]), 1e-10
    start = math.log(4 / tol) + _concentration(axis, amplitude)
    level = min(
        (cosh_sum(amplitude, y) + start - math.log(1 - math.exp(-y))) / y for y in SHIFTS[SHIFTS > 1e-2]
    )
    bound = (level + extra) / (2 * block) + 1
    assert bound <= node_count(axis, amplitude, tol, extra=extra) < bound + 2


KEYS = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [2, 0], [2, 1], [3, 2], [0, 4]])


def test_fourier_series_are_the_functions():
    angles = np.linspace(0, 7, 40)
    waves = np.exp(1j * np.outer(np.arange(-5, 6), angles))
    pairs = Axis(2, 2, 0)
    np.testing.assert_allclose(fourier(pairs, KEYS, 5) @ waves, pairs.functions(KEYS, angles), atol=1e-13)
    phases = np.array([[0], [3], [-5]])
    found = fourier(PHASE, phases, 5)
    np.testing.assert_allclose(found @ waves, PHASE.functions(phases, angles), atol=1e-13)
    assert np.count_nonzero(found) == 3  # what is rounding is nothing
    assert np.count_nonzero(fourier(pairs, KEYS, 5)) == 1 + 2 + 2 + 2 + 3 + 4 + 6 + 5


def test_amplitudes_by_hand():
    found = amplitudes(Axis(2, 2, 0), KEYS, 5)
    expected = [
        [1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0.5, 0, 0, 0],
        [0.5, 0, 0.5, 0, 0, 0], [0, 0.25, 0, 0.25, 0, 0],
        [0, 1 / 8, 0, 1 / 16, 0, 1 / 16],  # sin^3 cos^2 = (2 sin x + sin 3x - sin 5x) / 16
        [3 / 8, 0, 1 / 2, 0, 1 / 8, 0],
    ]  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_largest_values_of_powers():
    grid = np.linspace(-np.pi, np.pi, 200001)
    exact = np.abs(Axis(1, 2, 0).functions(KEYS, grid)).max(1)
    assert _largest(Axis(1, 2, 0), KEYS) == pytest.approx(exact, rel=1e-8)
    assert _largest(PHASE, np.array([[3], [0]])).tolist() == [1.0, 1.0]


def harmonics_of(space, monomials):
    place = parse_space(space)
    ((_, terms),) = components(parse_monomials(monomials, place), place)
    return Harmonics(terms), terms


@pytest.mark.parametrize(
    ("space", "monomials"), [("S2", "x1^2*x3^2;x2"), ("T2", "Re(z1*z2^2);Im(z1)"), ("S3", "x1*x2;x3*x4^2")]
)
def test_ranges_and_amplitudes_along_an_axis_bound_the_functions(space, monomials):
    """Ranges term by term; along an axis the others are at their largest."""
    found, terms = harmonics_of(space, monomials)
    lam = np.array([1.3, -0.7])
    grid = np.linspace(-np.pi, np.pi, 4001)
    tops = [
        np.abs(axis.functions(terms.keys[:, axis.column : axis.column + axis.width], grid)).max(1)
        for axis in terms.axes
    ]
    sizes = np.abs(terms.coefficients) * np.prod(tops, axis=0)
    expected = [sizes[terms.owner == i].sum() for i in range(2)]
    assert found.ranges == pytest.approx(expected, rel=1e-6)
    for a, axis in enumerate(terms.axes):
        keys = terms.keys[:, axis.column : axis.column + axis.width]
        degree = found.degrees[a]
        assert degree == np.abs(keys).sum(1).max()
        total = np.zeros(degree + 1)
        for t in range(len(keys)):
            others = np.prod([top[t] for b, top in enumerate(tops) if b != a])
            size = abs(lam[terms.owner[t]] * terms.coefficients[t]) * others
            total += size * amplitudes(axis, keys[t : t + 1], degree)[0]
        assert found.amplitudes(lam, a) == pytest.approx(total, rel=1e-6, abs=1e-12)
        counted = node_count(axis, found.amplitudes(lam, a), 1e-9, extra=4)
        assert found.nodes(lam, a, 1e-9, extra=4) == counted
        assert found.nodes(lam, a, 1e-9) <= counted


def test_sizes_of_a_lattice_are_those_of_its_coefficients():
    """2 Re(z1 conj z2^2) - Im(z1), in vectors led by a positive entry."""
    place = parse_space("T2")
    ((_, terms),) = components(parse_monomials("Re(z1*conj(z2)^2);Im(z1)", place), place)
    lattice = Lattice(terms)
    sizes = lattice.sizes(np.array([2.0, -1.0]))
    leading = lattice.vectors[np.arange(len(sizes)), (lattice.vectors != 0).argmax(1)]
    assert (leading[sizes > 0] > 0).all()
    assert sorted(sizes[sizes > 0]) == pytest.approx([1.0, 2.0])


def test_a_lattice_holds_one_of_each_vector_and_its_negative():
    """sin x and its square have harmonics of both signs, which are one function."""
    place = parse_space("S2")
    ((_, terms),) = components(parse_monomials("x1^2*x3^2;x3;x2*x3", place), place)
    lattice = Lattice(terms)
    found = {tuple(vector) for vector in lattice.vectors}
    assert len(found) == len(lattice.vectors) > 4
    assert not {tuple(-np.array(vector)) for vector in found if any(vector)} & found
    assert lattice.sizes(np.array([0.0, 3.0, 0.0])).max() == pytest.approx(3.0)
