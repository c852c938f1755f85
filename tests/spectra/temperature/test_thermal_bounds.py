"""The theorem of Newton and Kantorovich by hand, and the second variation as eigenvalues of a product."""

from types import SimpleNamespace

import numpy as np
import pytest

from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import parse_monomials
from spectra.functionals.loss_expressions import parse_loss
from spectra.temperature.bounds import (
    SLIDING,
    Whitened,
    bound,
    loss_symmetries,
    uniform_by_symmetry,
    whitened,
)
from spectra.temperature.free_energy import FreeEnergy

EPS = np.finfo(float).eps


def energy_of(space, names, loss):
    place = parse_space(space)
    monomials = parse_monomials(names, place)
    return FreeEnergy(place, monomials, parse_loss(loss, len(monomials), {}))


class Hand:
    """Two statistics on three points, every number chosen: what `bound` asks an energy for."""

    def __init__(
        self, *, off=0.0, skew=0.0, residual=0.0, third=0.0, leak=0.0, by_symmetry=False, curved=1.0
    ):
        self.temperature, self.natural = 0.5, np.array([2.0, -1.0])
        self.values = np.array([[3.0, 0.0], [-1.0, 1.0], [0.0, -2.0]])
        self.root = np.array([[0.39, -0.16], [0.52, 0.12]])  # columns of length 0.65 and 0.2
        self.second = curved * np.array([[0.3, 0.02], [0.02, -0.1]])  # R^T L'' R
        self.mean = np.array([0.25, -0.5])
        inverse = np.linalg.inv(self.root)
        self.curvature = inverse.T @ self.second @ inverse
        self.steep = -self.temperature * self.natural + residual * np.array([1.0, 1.0])
        self.third, self.uniform_by_symmetry = third, by_symmetry
        covariance = self.root @ self.root.T
        evaluated = SimpleNamespace(
            mean=self.mean + np.array([off, 0.0]),
            covariance=covariance + skew * self.root @ np.diag([1.0, 0.25]) @ self.root.T,
        )
        self.family = SimpleNamespace(evaluate=lambda natural, order: evaluated if order == 2 else None)
        values, modes = np.linalg.eigh(self.temperature * np.eye(2) + self.second)
        self.found = Whitened(
            self.mean, covariance, self.root, self.curvature, values, modes, np.zeros((2, 0)), values, leak
        )

    def slope(self, mean):
        assert (mean == self.mean).all()
        return self.steep

    def third_derivative(self, mean):
        assert (mean == self.mean).all()
        return self.third

    def bound(self):
        return bound(self, self.temperature, self.natural, self.found)


def by_hand(hand, *, off=0.0, skew=0.0, residual=0.0, third=0.0, leak=0.0):
    """The docstring of `spectra.temperature.bounds`, term by term (the columns of R are orthogonal)."""
    t, ulp = hand.temperature, 16 * EPS
    size = np.array([0.65, 0.2])  # lengths of R's columns
    eigenvalues = np.linalg.eigvalsh(hand.second)
    norm = np.abs(eigenvalues).max()
    # Norm of R^T L'': the curvature against what the two rules' means differ by.
    pulled = np.linalg.svd(hand.root.T @ hand.curvature)[1].max()
    spread = 3.0
    rounding = ulp * (size[0] * (5**0.5 + np.sqrt((hand.steep**2).sum()) / t) + pulled * spread / t)
    pull = np.hypot(*(hand.root.sum(0) * residual / t))
    start = pull + pulled * off / t + rounding
    cubic = 2 * third * size[0] ** 3
    gap = np.abs(t + eigenvalues).min() - 2 * leak - norm * skew
    beta = max(1.0, t / gap)
    centred = hand.values - hand.mean
    reach = 1.2 * max(
        np.hypot(*(centred @ column / length**2 for column, length in zip(hand.root.T, size, strict=True)))
    )
    lipschitz = 1.2 * (2 * reach * norm + cubic) / t
    h = beta**2 * lipschitz * start
    radius = (1 - np.sqrt(max(1 - 2 * h, 0))) / (beta * lipschitz)
    widest = np.hypot(hand.root[:, 0], hand.root[:, 1]).max()
    return SimpleNamespace(
        h=h, reach=reach, beta=beta, radius=radius, start=start,
        rho=1.2 * widest * radius + off + ulp * spread,
        second=norm * (2.4 * reach * radius + skew) + 1.2 * cubic * radius + leak + 2 * ulp * (t + norm),
        density=2.4 * reach * radius + skew, curvature=1.2 * cubic * radius,
    )  # fmt: skip


@pytest.mark.parametrize(
    "what",
    [
        {"residual": 1e-4}, {"residual": 2e-4, "third": 0.7}, {"off": 2e-4}, {"off": 1e-4, "skew": 1e-3},
        {"residual": 1e-4, "leak": 1e-2}, {"residual": 1e-4, "third": 0.4, "leak": 2e-2, "skew": 2e-2},
        {"residual": 2e-4, "third": 0.1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("curved", [1.0, -1.0, 3.0])
def test_bounds_are_those_of_newton_and_kantorovich(what, curved):
    hand = Hand(curved=curved, **what)
    expected, found = by_hand(hand, **what), hand.bound()
    assert expected.h < 0.5
    assert expected.reach * expected.radius < 0.05
    assert found.condition == pytest.approx(expected.beta, rel=1e-12)
    assert found.radius == pytest.approx(expected.radius, rel=1e-8)
    assert found.rho == pytest.approx(expected.rho, rel=1e-8)
    assert found.second_variation == pytest.approx(expected.second, rel=1e-8)
    assert found.density == pytest.approx(expected.density, rel=1e-8)
    assert found.curvature == pytest.approx(expected.curvature, rel=1e-8, abs=0)


def test_what_is_left_without_a_residual_is_rounding():
    hand = Hand()
    expected, found = by_hand(hand), hand.bound()
    assert found.radius == pytest.approx(expected.beta * expected.start, rel=1e-9, abs=0)
    assert found.rho == pytest.approx(1.2 * np.hypot(0.52, 0.12) * found.radius + 48 * EPS, rel=1e-9, abs=0)
    norm = np.abs(np.linalg.eigvalsh(hand.second)).max()
    rounding = found.second_variation - norm * 2.4 * expected.reach * found.radius
    assert rounding == pytest.approx(32 * EPS * (0.5 + norm), rel=1e-6, abs=0)


def test_where_the_theorem_says_nothing_everything_is_infinite():
    """h above one half, a density that moves by more than a twentieth, a Jacobian within its own error."""
    near, beyond = (by_hand(Hand(residual=r), residual=r) for r in (0.0025, 0.012))
    assert near.h < 0.5 < beyond.h
    assert 0.05 < near.reach * near.radius < 0.1  # a bound, but of a density that moves too much
    for hand in (Hand(residual=0.0025), Hand(residual=0.012)):
        found = hand.bound()
        assert found.rho == found.second_variation == found.density == found.curvature == np.inf
        assert np.isfinite(found.condition)
    for hand in (Hand(leak=0.2), Hand(skew=1.0, curved=3.0)):
        found = hand.bound()
        assert (found.radius, found.condition) == (np.inf, np.inf)
    nan = Hand()
    nan.steep = np.array([np.nan, 0.0])
    assert nan.bound().radius == np.inf


def test_a_uniform_measure_known_by_symmetry_is_near_without_any_condition():
    """``|R^T lambda|`` is the distance; it counts only where it is the smaller one."""
    hand = Hand(leak=1.0, by_symmetry=True)
    hand.natural = np.array([1e-4, 5e-5])
    assert hand.bound().radius == pytest.approx(1.2e-4 * np.hypot(0.39 + 0.26, -0.16 + 0.06))
    far = Hand(by_symmetry=True)
    assert far.bound().radius == Hand().bound().radius < 1e-10


def test_a_space_without_statistics_that_vary_has_bounds_of_rounding():
    hand = Hand()
    hand.values = np.array([[0.5, 2.0]] * 3)
    hand.mean = np.array([0.5, 2.0])
    nothing = np.zeros((2, 2))
    hand.found = Whitened(
        hand.mean, nothing, np.zeros((2, 0)), hand.curvature, np.zeros(0), np.zeros((0, 0)),
        np.zeros((0, 0)), np.zeros(0), 0.0,
    )  # fmt: skip
    evaluated = SimpleNamespace(mean=hand.mean, covariance=nothing)
    hand.family = SimpleNamespace(evaluate=lambda natural, order: evaluated if order == 2 else None)
    found = hand.bound()
    assert (found.radius, found.density, found.curvature, found.condition) == (0.0, 0.0, 0.0, 1.0)
    assert found.rho == 16 * EPS * 2.0
    assert found.second_variation == 32 * EPS * 0.5


CUBIC = "rho1^2/2 - rho2*rho1 + rho3^3 + rho2^2*rho3"


def test_the_second_variation_is_that_of_the_product_of_covariance_and_curvature():
    energy = energy_of("S2", "x1;x2;x3^2", CUBIC)
    natural = np.array([0.4, -0.3, 0.8])
    found = whitened(energy, 0.7, natural)
    weights = np.exp(energy.values @ natural) * energy.uniform_weights
    weights = weights / weights.sum()
    covariance = np.cov(energy.values.T, aweights=weights, bias=True)
    assert found.mean == pytest.approx(weights @ energy.values)
    assert found.covariance == pytest.approx(covariance)
    assert found.root @ found.root.T == pytest.approx(covariance)
    assert found.dual.T @ found.root == pytest.approx(np.eye(3), abs=1e-12)
    _, b, c = found.mean
    curvature = np.array([[1, -1, 0], [-1, 2 * c, 2 * b], [0, 2 * b, 6 * c]])
    assert found.curvature == pytest.approx(curvature)
    exact = np.sort(np.linalg.eigvals(curvature @ covariance).real) + 0.7
    assert found.values == pytest.approx(exact)
    assert found.across == pytest.approx(exact)
    assert found.leak == 0.0


def test_constant_combinations_are_left_out():
    """x1^2 + x2^2 + x3^2 = 1: two statistics vary, and no more."""
    found = whitened(energy_of("S2", "x1^2;x2^2;x3^2", "rho1^2"), 1.0, np.array([0.1, 0.2, 0.3]))
    assert found.root.shape == (3, 2)
    assert found.values == pytest.approx(
        np.linalg.eigvalsh(np.eye(2) + found.root.T[:, :1] @ found.root[:1] * 2)
    )


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_rank_does_not_depend_on_the_size_of_the_statistics(scale):
    energy = energy_of("S2", "x1^2;x2^2;x3^2", "rho1^2+2*rho2^2")
    energy.values = scale * energy.values
    energy.__dict__["symmetries"] = np.zeros((0, 3))
    assert whitened(energy, 1.0, np.zeros(3)).root.shape == (3, 2)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_rotations_that_move_the_measure_are_taken_apart(scale):
    """The magnet on S2: two directions across the magnetisation, one along it."""
    energy = energy_of("S2", "x1;x2;x3", f"-{scale}*(rho1^2+rho2^2+rho3^2)/2")
    temperature = 0.2 * scale
    natural = energy.solve(temperature, np.array([1.0, 2.0, 2.0]))
    found = whitened(energy, temperature, natural)
    assert found.orbit.shape == (3, 2)
    assert found.orbit.T @ found.orbit == pytest.approx(np.eye(2), abs=1e-12)
    # Along the orbit the mean turns: dmean = R u stands across it.
    assert np.abs(found.mean @ found.root @ found.orbit).max() < 1e-10
    second = temperature * np.eye(3) + found.root.T @ found.curvature @ found.root
    assert found.leak == pytest.approx(np.linalg.norm(second @ found.orbit), rel=1e-6, abs=1e-18)
    assert found.leak < 1e-12 * scale
    assert found.across == pytest.approx(found.values[-1:], rel=1e-9)
    direction = found.mean / np.linalg.norm(found.mean)
    along = temperature - scale * direction @ found.covariance @ direction
    assert found.across[0] == pytest.approx(along, rel=1e-6)


def test_a_measure_off_the_solution_has_a_leak_or_no_orbit():
    energy = energy_of("S1", "x1;x2", "-(rho1^2+rho2^2)/2")
    natural = energy.solve(0.3, np.array([1.0, 2.0]))
    direction = np.array([-natural[1], natural[0]]) / np.linalg.norm(natural)

    def left(factor):  # of the exact zero
        return 0.3 - direction @ whitened(energy, 0.3, natural * factor).covariance @ direction

    slope = abs(left(1 + 1e-4)) / 1e-4
    for size, known in ((4e-7, True), (1e-6, False)):
        factor = 1 + size / slope
        found = whitened(energy, 0.3, natural * factor)
        allowed = SLIDING * (0.3 + np.abs(found.values).max())
        assert abs(left(factor)) == pytest.approx(size, rel=1e-2)
        assert (size < allowed) == known
        assert found.orbit.shape == (2, int(known))
        assert len(found.across) == 2 - int(known)
        assert found.leak == pytest.approx(abs(left(factor)) if known else 0.0, rel=1e-5, abs=0)


def test_an_orbit_of_statistics_of_different_size():
    """Poles of order one and two on the circle: one rotation, which moves all four."""
    loss = "-(rho1^2+rho2^2)/2 - ((rho3-1/2)^2+rho4^2)/3"
    energy = energy_of("S1", "x1;x2;x1^2;x1*x2", loss)
    found = whitened(energy, 0.2, energy.solve(0.2, np.array([2.0, 1.0, 0.3, 0.1])))
    assert found.orbit.shape == (4, 1)
    assert found.leak < 1e-10
    assert (np.diff(found.across) > 0).all()
    second = np.sort(np.append(found.across, 0.0))
    assert second == pytest.approx(found.values, abs=1e-9)


@pytest.mark.parametrize(
    ("space", "names", "loss", "count"),
    [
        ("S2", "x1;x2;x3", "rho1^2+rho2^2+rho3^2", 3),
        ("S2", "x1;x2;x3", "rho1^2+rho2^2", 1),
        ("S2", "x1;x2;x3", "rho1^2+rho2^2+rho3^4", 1),
        ("S2", "x1;x2;x3", "rho1^2+2*rho2^2+3*rho3^2", 0),
        ("S2", "x1;x2;x3", "1e-8*(rho1^2+2*rho2^2+3*rho3^2)", 0),
        ("S2", "x1;x2;x3", "1e-6*(rho1^2+rho2^2)+rho3^2", 1),
        ("S2", "x3^2", "rho1^2", 1),  # a rotation about the axis moves nothing
        ("T2", "x1;x2;x3;x4", "rho1^2+rho2^2+(rho3^2+rho4^2)^2", 2),
        ("S1", "x1;x2", "sqrt(rho1)+rho2", 0),  # NaN at half of the measures
        ("S1", "x1;x2", "sqrt(-2+rho1)", 0),  # and at all of them
    ],
)
def test_symmetries_of_a_loss_are_counted(space, names, loss, count):
    energy = energy_of(space, names, loss)
    found = loss_symmetries(energy)
    assert found.shape == (count, len(energy.lie_gradients))
    assert found @ found.T == pytest.approx(np.eye(count))
    if (names, count) == ("x1;x2;x3", 1):
        assert np.abs(found[0]) == pytest.approx([1, 0, 0], abs=1e-9)  # of the plane 1, 2


@pytest.mark.parametrize(
    ("space", "names", "loss", "known"),
    [
        ("S2", "x1;x2;x3", "rho1^2+rho2^2+rho3^2", True),
        ("S2", "x1;x2;x3", "rho1^2+rho2^2", False),  # x3 is left
        ("S2", "x3^2", "rho1^2", False),
        ("S1", "x1;x2", "rho1+rho2", False),  # no symmetry at all
        ("S1", "x1;x2;x1^2;x1*x2", "rho1^2+rho2^2+(rho3-1/2)^2+rho4^2", True),
    ],
)
def test_the_uniform_measure_is_stationary_where_symmetry_leaves_nothing_else(space, names, loss, known):
    energy = energy_of(space, names, loss)
    assert uniform_by_symmetry(energy) is known
    if known:
        assert np.abs(energy._residual(0.3, np.zeros(energy.values.shape[1]))).max() < 1e-12


def test_no_symmetry_no_orbit():
    energy = energy_of("S1", "x1;x2", "rho1^2+2*rho2^2")
    assert whitened(energy, 0.5, np.array([0.3, 0.4])).orbit.shape == (2, 0)
