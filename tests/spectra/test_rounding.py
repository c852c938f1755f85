"""What rounding of points is said to do, for maps whose answer is a sum that can be written down."""

import numpy as np
import pytest
import torch

from manifold.measures import ParticleMeasure
from spectra.rounding import arithmetic, of_points, of_rows

EPS = 2.0**-52
POINTS = torch.tensor([[3.0, -5.0], [0.25, 8.0], [-1.0, 1e-3]], dtype=torch.float64)


def noises(seed, shape=(3, 2)):
    """Moves of three copies, in units of the sizes of the points."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for _ in range(3)]


def test_arithmetic_is_sixteen_units_of_a_random_walk():
    assert arithmetic(9, 5.0) == 16 * EPS * 3 * 5


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("scale", [None, torch.full((3, 2), 7.0, dtype=torch.float64)])
def test_a_linear_map_moves_by_sixteen_times_the_root_mean_square(seed, scale):
    sizes = POINTS.abs().numpy() if scale is None else scale.numpy()
    moved = [np.linalg.norm(sizes * noise) for noise in noises(seed)]
    measure = ParticleMeasure(POINTS, scale=scale)
    expected = 16 * EPS * 4 * np.mean(np.square(moved)) ** 0.5
    assert of_points(measure, lambda at: 4 * at.points - 1, seed=seed) == pytest.approx(
        expected, rel=0.01, abs=0
    )


@pytest.mark.parametrize("seed", [0, 5])
def test_of_points_at_zero_terms_of_size_one_are_rounded(seed):
    zero = ParticleMeasure(torch.zeros(3, 2, dtype=torch.float64))
    expected = 16 * EPS * np.linalg.norm(2 * noises(seed)[0])
    assert of_points(zero, lambda at: 2 * at.points, seed=seed) == pytest.approx(expected, rel=1e-12, abs=0)


def test_a_curved_map_moves_by_its_slope():
    """Points move far more than by rounding, but not so far that a curvature counts."""
    measure = ParticleMeasure(POINTS)
    moved = [np.linalg.norm(2 * POINTS.numpy() ** 2 * noise) for noise in noises(0)]
    expected = 16 * EPS * np.mean(np.square(moved)) ** 0.5
    assert of_points(measure, lambda at: at.points.square()) == pytest.approx(expected, rel=0.01, abs=0)


def test_points_at_zero_beside_others_have_no_size():
    points = POINTS.clone()
    points[1] = 0
    moved = [np.linalg.norm(points.numpy() * noise) for noise in noises(0)]
    expected = 16 * EPS * np.mean(np.square(moved)) ** 0.5
    found = of_points(ParticleMeasure(points), lambda at: at.points)
    assert found == pytest.approx(expected, rel=0.01, abs=0)


def test_what_is_not_finite_is_not_hidden():
    assert not np.isfinite(of_points(ParticleMeasure(POINTS), lambda at: at.points / 0.0))


@pytest.mark.parametrize("seed", [0, 5])
def test_rows_are_known_to_their_largest_change_and_to_a_unit_in_the_last_place(seed):
    """Cancellation to zero, to a part, and none."""
    measure = ParticleMeasure(POINTS)

    def table(at):
        x = at.points
        return torch.stack([x[:, 0] - POINTS[:, 0], 1e4 + 0 * x[:, 0], -x[:, 1]], dim=1)

    found = of_rows(measure, table, table(measure), seed=seed)
    first = np.abs(POINTS.numpy() * noises(seed)[0]).max(1)
    assert np.allclose(found, 1e4 * EPS, rtol=1e-12, atol=0)  # the largest entry is known to its own rounding
    found = of_rows(measure, lambda at: table(at)[:, ::2], table(measure)[:, ::2], seed=seed).numpy()
    least = EPS * np.abs(table(measure)[:, ::2].numpy()).max(1)
    assert np.allclose(found, np.maximum(least, EPS * first), rtol=0.01, atol=0)
    assert (found > 1.01 * least).any()
