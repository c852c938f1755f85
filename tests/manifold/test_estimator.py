import numpy as np
import pytest
from sklearn.base import clone

from manifold.errors import InputError
from manifold.estimator import MaxEntDensity


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
