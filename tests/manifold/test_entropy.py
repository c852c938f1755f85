import numpy as np
import pytest

from manifold.entropy import ball_share, intrinsic_dimension, kozachenko_leonenko
from manifold.errors import InputError
from manifold.expressions import parse_monomials
from manifold.maxent import MaxEntFamily
from manifold.sampling import draw
from manifold.spaces import Sphere, Stiefel, Torus


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
