import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from manifold.errors import InputError
from manifold.maxent.estimator import MaxEntDensity


def test_fit_score_sample():
    truth = MaxEntDensity("S2", "x3;x1*x2").fit(_points())
    cloud = truth.sample(800, random_state=1)
    again = clone(truth).fit(cloud)
    np.testing.assert_allclose(again.lambda_, truth.lambda_, atol=0.45)
    assert again.score(cloud) == pytest.approx(-again.entropy_)  # at the fit, likelihood per point = -entropy
    assert again.score(cloud) > MaxEntDensity("S2", "x3").fit(cloud).score(cloud)


def _points():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(300, 3)) + np.array([0, 0, 1.0])
    points[:, 1] += 0.5 * points[:, 0]
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_weights_are_multiplicities():
    points = _points()[:40]
    weights = np.random.default_rng(1).integers(1, 4, 40)
    weighted = MaxEntDensity("S2", "x3;x1").fit(points, sample_weight=weights)
    repeated = MaxEntDensity("S2", "x3;x1").fit(np.repeat(points, weights, axis=0))
    np.testing.assert_allclose(weighted.lambda_, repeated.lambda_, rtol=1e-9)


@pytest.mark.parametrize("points", [np.ones((4, 2)), np.ones((4, 3))])
def test_points_off_the_space(points):
    with pytest.raises(InputError, match="X: expected"):
        MaxEntDensity("S2", "x1").fit(points)


@pytest.mark.parametrize(
    ("points", "weights"),
    [
        (np.zeros((0, 3)), None),
        (np.full((2, 3), np.nan), None),
        (np.array([[np.inf, 0, 0]]), None),
        (np.eye(3), [1, 1, -0.5]),
        (np.eye(3), [0, 0, 0]),
        (np.eye(3), [1, 1]),
        (np.eye(3), [1, np.nan, 1]),
        (np.zeros(3), None),
    ],
)
def test_samples_that_say_nothing_are_refused(points, weights):
    with pytest.raises(ValueError, match=r".+"):
        MaxEntDensity("S2", "x1;x2").fit(points, sample_weight=weights)


def test_nothing_works_before_fit():
    density = MaxEntDensity("S2", "x1")
    for call in (lambda: density.score(np.eye(3)), lambda: density.score_samples(np.eye(3)), density.sample):
        with pytest.raises(NotFittedError):
            call()


def test_scores_of_nan_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        MaxEntDensity("S2", "x3").fit(_points()).score(np.full((1, 3), np.nan))


def test_random_states_of_sklearn():
    density = MaxEntDensity("S2", "x3").fit(_points())
    assert density.sample(2).shape == (2, 3)  # None: numpy's global state
    np.testing.assert_array_equal(density.sample(3, 7), density.sample(3, np.random.RandomState(7)))
    with pytest.raises(InputError, match="n_samples"):
        density.sample(0)
