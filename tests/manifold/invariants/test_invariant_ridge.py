"""Spectral ridge against dense solves and scikit-learn; exact risk against quadrature; the prediction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV

from manifold.errors import InputError
from manifold.groups.named import named_action
from manifold.invariants.kernel_ridge import InvariantKernelRidge, SampleFactor, sobolev_eigenvalues
from manifold.invariants.predicted_risk import predicted_risk
from manifold.invariants.weyl import invariant_basis
from manifold.spaces.homogeneous import SpectralSpace
from tests.manifold.invariants import oracles_complexity as oracle

RIDGES = np.array([1e-6, 1e-4, 1e-2])


def circle(order, radius):
    return invariant_basis(named_action(SpectralSpace.parse("T1"), f"Z{order}"), cutoff=float(radius**2))


# 40 < p: dual; 500 with order 16: primal (p = 375).
@pytest.mark.parametrize(("samples", "order"), [(40, 1), (300, 1), (40, 16), (500, 16)])
def test_risk_equals_scikit_learn_with_the_averaged_kernel_in_closed_form(samples, order):
    basis = circle(order, 3000)
    rng = np.random.default_rng(0)
    x, noise = rng.uniform(0, 2 * np.pi, (samples, 1)), rng.standard_normal(samples)
    c = rng.standard_normal(len(basis)) / (1 + basis.eigenvalues)
    y = basis.evaluate(x, c) + 0.3 * noise
    factor = SampleFactor.of(basis, 2.0, x, y)
    ours = ((factor.coefficients(RIDGES) - c[:, None]) ** 2).sum(axis=0)
    # The trapezoid rule is exact for the squared difference of such trigonometric polynomials.
    grid = 2 * np.pi * np.arange(8192)[:, None] / 8192
    truth = basis.evaluate(grid, c)
    for ridge, risk in zip(RIDGES, ours, strict=True):
        model = KernelRidge(alpha=samples * ridge, kernel="precomputed")
        model.fit(oracle.circle_kernel(x[:, 0], x[:, 0], s=2, order=order), y)
        fit = model.predict(oracle.circle_kernel(grid[:, 0], x[:, 0], s=2, order=order))
        assert risk == pytest.approx(np.mean((fit - truth) ** 2), rel=1e-6)


@pytest.mark.parametrize(
    ("space", "name", "cutoff"),
    [("T2", "signperm", 64.0), ("T3", "perm", 9.0), ("S2", "D3", 72.0), ("S3", "perm", 35.0)],
)
@pytest.mark.parametrize("samples", [30, 120])
def test_fits_equal_dense_solves_with_brute_force_kernels(space, name, cutoff, samples):
    action = named_action(SpectralSpace.parse(space), name)
    basis = invariant_basis(action, cutoff=cutoff)
    rng = np.random.default_rng(1)
    x, test = action.space.sample(samples, rng), action.space.sample(20, rng)
    y = rng.standard_normal(samples)

    def kernel(a, b):
        if space[0] == "T":
            reach = int(cutoff**0.5)
            return oracle.torus_kernel(
                a, b, s=2.0, reach=reach, matrices=action.matrices, shifts=action.shifts
            )
        return oracle.sphere_kernel(a, b, s=2.0, degree=basis.degree, matrices=action.matrices)

    fitted = SampleFactor.of(basis, 2.0, x, y).coefficients(RIDGES)
    for ridge, c in zip(RIDGES, fitted.T, strict=True):
        slow = kernel(test, x) @ oracle.ridge_fit(kernel(x, x), y, ridge)
        np.testing.assert_allclose(basis.values(test) @ c, slow, atol=1e-7 * np.abs(slow).max())


@settings(derandomize=True, deadline=None, max_examples=12)
@given(hs.integers(5, 90), hs.sampled_from([1, 2, 5]), hs.integers(0, 10**6))
def test_bias_and_variance_are_the_moments_of_the_risk(samples, order, seed):
    basis = circle(order, 30)
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 2 * np.pi, (samples, 1))
    c = rng.standard_normal(len(basis)) / (1 + basis.eigenvalues)
    factor = SampleFactor.of(basis, 1.0, x, basis.evaluate(x, c))
    # The fit is linear in y: its noise part is a matrix, one column per unit noise.
    columns = [SampleFactor.of(basis, 1.0, x, e).coefficients(RIDGES[1:2])[:, 0] for e in np.eye(samples)]
    clean = SampleFactor.of(basis, 1.0, x, basis.values(x) @ c).coefficients(RIDGES[1:2])[:, 0]
    assert factor.variance(RIDGES[1:2])[0] == pytest.approx((np.array(columns) ** 2).sum(), rel=1e-7)
    assert factor.squared_bias(RIDGES[1:2], c)[0] == pytest.approx(((clean - c) ** 2).sum(), rel=1e-6)


def test_noise_drawn_in_the_eigenbasis_has_the_law_of_sampled_noise():
    basis, rng = circle(1, 12), np.random.default_rng(5)
    x = rng.uniform(0, 2 * np.pi, (60, 1))
    c = np.ones(len(basis)) / 5
    f = basis.evaluate(x, c)
    factor = SampleFactor.of(basis, 1.0, x, f)
    ours = factor.noisy_risks(1e-3, c, noise=0.5, draws=20000, rng=rng)
    slow = []
    for _ in range(2000):
        y = f + 0.5 * rng.standard_normal(60)
        slow.append(((SampleFactor.of(basis, 1.0, x, y).coefficients([1e-3])[:, 0] - c) ** 2).sum())
    exact = factor.squared_bias([1e-3], c)[0] + 0.25 * factor.variance([1e-3])[0]
    assert ours.mean() == pytest.approx(exact, rel=4 * ours.std() / ours.mean() / 20000**0.5)
    for share in (0.5, 0.9):
        spread = np.std([np.quantile(part, share) for part in np.split(np.array(slow), 20)]) / 20**0.5
        assert abs(np.quantile(ours, share) - np.quantile(slow, share)) < 5 * spread


def test_estimator_is_invariant_and_fits_into_a_grid_search():
    space = SpectralSpace.parse("S2")
    rng = np.random.default_rng(0)
    x = space.sample(300, rng)
    y = x[:, 2] ** 2 + 0.05 * rng.standard_normal(300)
    model = InvariantKernelRidge(named_action(space, "antipode"), s=2.0, ridge=1e-4)
    found = GridSearchCV(model, {"ridge": [1e-6, 1e-3, 10.0]}, cv=3).fit(x, y)
    assert found.best_params_["ridge"] < 10.0
    best = found.best_estimator_
    test = space.sample(200, rng)
    np.testing.assert_allclose(best.predict(-test), best.predict(test), atol=1e-9)
    assert np.mean((best.predict(test) - test[:, 2] ** 2) ** 2) < 0.05**2


def test_estimator_refuses_bad_input():
    space = SpectralSpace.parse("S2")
    x = space.sample(10, np.random.default_rng(0))
    group = named_action(space, "antipode")
    with pytest.raises(InputError, match="trace"):
        InvariantKernelRidge(group, s=1.0).fit(x, x[:, 0])
    with pytest.raises(InputError, match="ridge"):
        InvariantKernelRidge(group, ridge=0.0).fit(x, x[:, 0])
    with pytest.raises(InputError, match="unit vectors"):
        InvariantKernelRidge(group).fit(2 * x, x[:, 0])
    with pytest.raises(InputError, match="3 coordinates"):
        InvariantKernelRidge(group).fit(x[:, :2], x[:, 0])


def test_deterministic_equivalent_solves_its_equation_and_is_exact_for_gaussian_features():
    rng = np.random.default_rng(0)
    l = 1.0 / np.arange(1, 301) ** 2  # noqa: E741
    c = rng.standard_normal(300) / np.arange(1, 301)
    common = {"target_eigenvalues": l, "target_energy": c**2, "noise": 0.5}
    found = predicted_risk(l, samples=150, ridge=1e-3, **common)
    assert (l / (l + found.implicit_ridge)).sum() + 150 * 1e-3 / found.implicit_ridge == pytest.approx(150)
    risks = []
    for _ in range(200):
        z = rng.standard_normal((150, 300)) * np.sqrt(l)
        y = z @ (c / np.sqrt(l)) + 0.5 * rng.standard_normal(150)
        w = z.T @ np.linalg.solve(z @ z.T + 150 * 1e-3 * np.eye(150), y)
        risks.append(((np.sqrt(l) * w - c) ** 2).sum())
    assert np.mean(risks) == pytest.approx(found.risk, abs=4 * np.std(risks) / 200**0.5)
    with pytest.raises(InputError):
        predicted_risk(l, samples=0, ridge=1e-3, **common)


def test_sobolev_eigenvalues():
    np.testing.assert_allclose(sobolev_eigenvalues([0.0, 3.0], 2.0), [1.0, 1 / 16])
