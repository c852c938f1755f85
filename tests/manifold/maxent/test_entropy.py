import numpy as np
import pytest
import torch
from scipy.special import digamma

from manifold.errors import InputError
from manifold.maxent.family import MaxEntFamily
from manifold.maxent.nearest_neighbours import (
    ball_share,
    distances,
    intrinsic_dimension,
    kozachenko_leonenko,
    merge_duplicates,
)
from manifold.sampling.tempered_hmc import draw
from manifold.spaces.embedded import Sphere, Stiefel, Torus, parse_space
from manifold.spaces.monomial_expressions import parse_monomials


def test_caps():
    assert ball_share(Sphere(2), np.array([np.pi / 2, np.pi, 1.0])) == pytest.approx(
        [0.5, 1.0, (1 - np.cos(1.0)) / 2]
    )
    assert ball_share(Sphere(1), np.array([1.0])) == pytest.approx(1 / np.pi)
    assert ball_share(Torus(2), np.array([np.pi / 2])) == pytest.approx(0.25)
    with pytest.raises(InputError):
        ball_share(Stiefel(3, 1), np.array([1.0]))


@pytest.mark.parametrize("space", [Sphere(2), Sphere(5), Torus(2)], ids=lambda s: s.name)
def test_uniform_entropy_is_zero(space):
    values = [
        kozachenko_leonenko(
            space, space.uniform(400, generator=__import__("torch").Generator().manual_seed(s)).numpy()
        )
        for s in range(6)
    ]
    assert np.mean([v.value for v in values]) == pytest.approx(0, abs=0.12)


def test_known_law_with_weights_and_duplicates():
    space = Sphere(2)
    monomials = parse_monomials("x3", space)
    truth = MaxEntFamily(space, monomials).entropy([5.0])
    points = draw(space, monomials, np.array([5.0]), 600, seed=4)
    plain = kozachenko_leonenko(space, points, neighbours=3)
    assert plain.value == pytest.approx(truth, abs=0.15)
    doubled = kozachenko_leonenko(space, np.concatenate([points, points]), neighbours=3)
    assert doubled.value == pytest.approx(plain.value, abs=1e-9)
    assert doubled.distinct == 600
    # The uniform law thinned to the same density by weights: entropy of the weighted law, not of the points.
    generator = __import__("torch").Generator().manual_seed(1)
    flat = space.uniform(3000, generator=generator).numpy()
    weighted = kozachenko_leonenko(space, flat, np.exp(5 * flat[:, 2]), neighbours=3)
    assert weighted.value == pytest.approx(truth, abs=0.15)


def test_too_few_points_have_no_entropy():
    point = np.array([[0.0, 0, 1]])
    assert kozachenko_leonenko(Sphere(2), np.repeat(point, 9, 0)).value == -np.inf


def test_intrinsic_dimension():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 500)
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros(500)], 1)
    assert intrinsic_dimension(Sphere(2), circle).value == pytest.approx(1, abs=0.15)
    cloud = Sphere(4).uniform(500, generator=__import__("torch").Generator().manual_seed(0)).numpy()
    assert intrinsic_dimension(Sphere(4), cloud).value == pytest.approx(4, abs=0.7)


def ladder(counts, gap=1e-3):
    """Pairs of points on a circle, each with one more point ``e`` times as far: log(r2 / r1) is 1 for two."""
    angles = []
    for i in range(counts):
        base = 2 * np.pi * i / counts
        angles += [base, base + gap, base - np.e * gap]
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def test_intrinsic_dimension_of_few_points_has_the_factor_of_its_bias():
    """d = (q - 1) / sum log(r2 / r1): of q ratios that are exponential the inverse mean is too large."""
    points = ladder(4)
    chord = 2 * np.sin(1e-3 / 2)  # the far point sees the other two at e and e + 1 times the gap
    assert chord == pytest.approx(1e-3, rel=1e-6)
    logs = np.tile([1.0, np.log(np.e + 1), np.log((np.e + 1) / np.e)], 4)
    found = intrinsic_dimension(Sphere(1), points)
    assert found.value == pytest.approx(11 / logs.sum(), rel=1e-9)
    assert found.standard_error == pytest.approx(found.value / np.sqrt(10), rel=1e-12)
    few = intrinsic_dimension(Sphere(1), ladder(3))
    assert np.isnan(few.value)
    assert np.isnan(few.standard_error)


def test_caps_beyond_a_hemisphere_and_spaces_without_balls():
    radius = np.array([0.3, 1.5, 1.8, 2.5, 3.0])
    assert ball_share(Sphere(2), radius) == pytest.approx((1 - np.cos(radius)) / 2)
    assert ball_share(Sphere(3), radius) == pytest.approx((radius - np.sin(radius) * np.cos(radius)) / np.pi)
    assert ball_share(Torus(3), np.array([1.0, 4.0])) == pytest.approx([np.pi**-3, 1.0])
    with pytest.raises(InputError, match="S2xS1"):
        ball_share(parse_space("S2xS1"), radius)


def test_distances():
    angles = np.array([[0.1, 0.2], [3.0, 6.0], [-3.0, 0.0]])
    points = np.stack([np.cos(angles), np.sin(angles)], 2).reshape(3, 4)
    expected = np.array([[0, 2.9, 3.1], [2.9, 0, 2 * np.pi - 6], [3.1, 2 * np.pi - 6, 0]])
    expected[0, 1] = expected[1, 0] = max(2.9, 2 * np.pi - 5.8)
    expected[1, 2] = expected[2, 1] = max(2 * np.pi - 6, 2 * np.pi - 6)
    assert distances(Torus(2), points) == pytest.approx(expected)
    east, north = np.array([1.0, 0, 0]), np.array([0, 0.6, 0.8])
    assert distances(Sphere(2), np.stack([east, -east, north])) == pytest.approx(
        np.pi * np.array([[0, 1, 0.5], [1, 0, 0.5], [0.5, 0.5, 0]])
    )


def test_duplicates_merge_within_the_radius_and_zeros_go():
    angle = np.array([0.0, 1.0, 5e-10, 2.0, 1.0 + 3e-9])
    points = np.stack([np.cos(angle), np.sin(angle)], 1)
    found, weights = merge_duplicates(Sphere(1), points, np.array([1.0, 2.0, 3.0, 0.0, 4.0]))
    assert found == pytest.approx(points[[0, 1, 4]], abs=1e-15)
    assert weights == pytest.approx([0.4, 0.2, 0.4])
    assert len(merge_duplicates(Sphere(1), points, np.ones(5), radius=1e-8)[0]) == 3


def plain_estimate(space, points, weights, k):
    """The formula of the docstring, point by point."""
    table, effective = distances(space, points), 1 / (weights**2).sum()
    terms = []
    for j in range(len(points)):
        mass, radius = 0.0, None
        for i in sorted(set(range(len(points))) - {j}, key=lambda i, j=j: table[j, i]):
            mass, radius = mass + weights[i], table[j, i]
            if mass >= (1 - 1e-9) * k / effective:
                break
        share = float(ball_share(space, np.array([radius]))[0])
        terms.append(np.log(share) - digamma(k) + np.log(k) - np.log(mass / (1 - weights[j])))
    value = weights @ np.array(terms)
    return value, np.sqrt(weights**2 @ (np.array(terms) - value) ** 2)


@pytest.mark.parametrize("space", [Sphere(2), Torus(2)], ids=lambda s: s.name)
@pytest.mark.parametrize("k", [1, 3])
def test_weighted_estimates_are_the_written_out_formula(space, k):
    generator = torch.Generator().manual_seed(3)
    points = space.uniform(24, generator=generator).numpy()
    weights = np.random.default_rng(1).dirichlet(np.ones(24))
    found = kozachenko_leonenko(space, points, 7 * weights, neighbours=k)
    value, error = plain_estimate(space, points, weights, k)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.standard_error == pytest.approx(error, rel=1e-12)
    assert found.effective == pytest.approx(1 / (weights**2).sum())
    assert (found.neighbours, found.distinct) == (k, 24)


def test_one_neighbour_below_a_thousand_effective_points_and_four_from_there():
    angle = np.arange(1001) * 0.7
    points = np.stack([np.cos(angle), np.sin(angle)], 1)
    assert kozachenko_leonenko(Sphere(1), points[:999]).neighbours == 1
    assert kozachenko_leonenko(Sphere(1), points).neighbours == 4


@pytest.mark.parametrize(("count", "finite"), [(2, False), (3, True), (5, True)])
def test_the_fewest_points_that_have_a_value(count, finite):
    points = np.stack([np.cos(np.arange(count)), np.sin(np.arange(count))], 1)
    found = kozachenko_leonenko(Sphere(1), points, neighbours=1)
    assert np.isfinite(found.value) == finite
    assert np.isfinite(found.standard_error) == finite
    assert kozachenko_leonenko(Sphere(1), points, neighbours=count - 1).value == -np.inf
    heavy = np.array([1.0] + [0.05] * (count - 1))
    assert kozachenko_leonenko(Sphere(1), points, heavy).value == -np.inf  # 1.1 effective points


def test_intrinsic_dimension_uses_the_heaviest_points_with_their_weights():
    points = ladder(5)
    weights = np.random.default_rng(2).uniform(1, 2, 15)
    light = np.concatenate([weights, [1e-3, 1e-3]])  # 99 % of the weight is without these two
    more = np.concatenate([points, [[np.cos(0.5), np.sin(0.5)], [np.cos(0.7), np.sin(0.7)]]])
    logs = np.tile([1.0, np.log(np.e + 1), np.log((np.e + 1) / np.e)], 5)
    share = weights / weights.sum()
    effective = 1 / (share**2).sum()
    found = intrinsic_dimension(Sphere(1), more, light)
    assert found.value == pytest.approx((effective - 1) / effective / (share @ logs), rel=1e-6)
    assert found.standard_error == pytest.approx(found.value / np.sqrt(effective - 2), rel=1e-9)
    few = np.concatenate([np.ones(4), np.full(11, 0.02)])
    assert np.isnan(intrinsic_dimension(Sphere(1), points, few).value)  # fewer than ten carry 99 %
    assert np.isfinite(intrinsic_dimension(Sphere(1), points[:12][:10]).value)
    for light, known in ((0.02, False), (0.04, False), (0.06, True)):  # 4.4, 4.8 and 5.4 effective points
        found = np.concatenate([np.ones(4), np.full(11, light)])
        assert np.isfinite(intrinsic_dimension(Sphere(1), points, found).value) == known


@pytest.mark.parametrize(
    "weights",
    [
        [0.45, 0.3, 0.25],  # the first point needs both others for the weight of one effective point
        [0.615] + [0.385 / 20] * 20,  # and this one has less than that in all others
    ],
)
def test_balls_that_reach_to_the_farthest_point(weights):
    angles = np.arange(len(weights)) ** 1.1
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = kozachenko_leonenko(Sphere(1), points, np.array(weights), neighbours=1)
    value, error = plain_estimate(Sphere(1), points, np.array(weights), 1)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.standard_error == pytest.approx(error, rel=1e-12)


def test_as_few_points_as_neighbours_have_no_value():
    points = np.stack([np.cos(np.arange(4)), np.sin(np.arange(4))], 1)
    assert np.isfinite(kozachenko_leonenko(Sphere(1), points, neighbours=2).value)
    for neighbours in (3, 4, 5, 6):
        assert kozachenko_leonenko(Sphere(1), points, neighbours=neighbours).value == -np.inf


def test_opposite_points_are_half_a_circle_apart():
    """Rounding makes some of these chords longer than 2."""
    points = np.random.default_rng(0).standard_normal((300, 3))
    points /= np.linalg.norm(points, axis=1)[:, None]
    assert (np.linalg.norm(points - -points, axis=1) > 2).any()
    found = np.diagonal(distances(Sphere(2), np.concatenate([points, -points])), 300)
    assert found == pytest.approx(np.full(300, np.pi), abs=1e-7)
