import numpy as np
import pytest
import torch
from scipy.stats import kstest

from manifold.errors import NotConvergedError
from manifold.maxent.family import MaxEntFamily
from manifold.maxent.sampled_fits import fit_by_sampling
from manifold.monomials import Monomials
from manifold.sampling.tempered_hmc import TemperedSampler, draw, split_rhat
from manifold.spaces.embedded import Product, SpecialOrthogonal, Sphere, Stiefel, Torus, parse_space
from manifold.spaces.monomial_expressions import parse_monomials
from tests.manifold.maxent.oracles_maxent import (
    cubic_sphere,
    disjoint_cube_moments,
    disjoint_cubes,
    von_mises_fisher,
)

SPACES = [Sphere(2), Torus(2), Product((Sphere(3), Sphere(1))), Stiefel(4, 2), SpecialOrthogonal(3)]


def cubes(blocks):
    space = Sphere(6 * blocks - 1)
    names = [f"Re(z{3 * b + 1}*z{3 * b + 2}*conj(z{3 * b + 3}))" for b in range(blocks)]
    return space, parse_monomials(";".join(names), space)


@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_geodesics_stay_and_keep_speed(space):
    generator = torch.Generator().manual_seed(3)
    points = space.uniform(5, generator=generator)
    velocity = space.tangent(points, torch.randn(5, space.ambient, dtype=torch.float64, generator=generator))
    end, moved = space.geodesic(points, velocity, 0.7)
    torch.testing.assert_close(space.project(end), end)
    torch.testing.assert_close(space.tangent(end, moved), moved)
    torch.testing.assert_close(moved.norm(dim=-1), velocity.norm(dim=-1))
    step = 1e-6
    near, _ = space.geodesic(points, velocity, step)
    torch.testing.assert_close((near - points) / step, velocity, atol=1e-4, rtol=0)
    half, halfway = space.geodesic(points, velocity, 0.35)
    torch.testing.assert_close(space.geodesic(half, halfway, 0.35)[0], end)


@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.name)
def test_dimension_is_that_of_the_tangent_space(space):
    point = space.uniform(1, generator=torch.Generator().manual_seed(0))
    vectors = space.tangent(point.expand(space.ambient, -1), torch.eye(space.ambient, dtype=torch.float64))
    assert int(torch.linalg.matrix_rank(vectors, tol=1e-10)) == space.dimension


def test_convolution_oracle_on_one_block():
    assert disjoint_cubes([20.0]) == pytest.approx(cubic_sphere(20.0)[0], abs=1e-12)


def test_against_quadrature():
    space = parse_space("S2xS1")
    monomials = parse_monomials("x1*x4;x3^2;x2", space)
    lam = np.array([3.0, -2.0, 1.0])
    exact = MaxEntFamily(space, monomials).evaluate(lam, order=2)
    found = TemperedSampler(space, monomials, columns=48, seed=0).run(lam, sweeps=120, warmup=30)
    assert found.converged
    assert (np.abs(found.mean - exact.mean) < 4 * found.standard_error).all()
    assert abs(found.log_partition - exact.log_partition) < 4 * found.log_partition_error
    np.testing.assert_allclose(found.covariance, exact.covariance, atol=0.05)


def test_rhat_sees_stuck_chains():
    rng = np.random.default_rng(0)
    good = rng.normal(size=(200, 10, 1))
    assert split_rhat(good)[0] < 1.02
    assert split_rhat(good + np.where(np.arange(10) < 5, 0, 3)[None, :, None])[0] > 1.5


def test_draws_follow_the_law():
    points = draw(Sphere(4), Monomials(np.eye(5, dtype=int)[:1]), np.array([6.0]), 400, seed=2)
    height = np.linspace(-1, 1, 20001)
    density = np.exp(6 * height) * (1 - height**2)  # S^4: (1 - t^2)^{(d-2)/2} with d = 4
    cdf = np.cumsum(density) / density.sum()
    assert kstest(np.interp(points[:, 0], height, cdf), "uniform").pvalue > 1e-3


def test_sampled_fit_of_two_blocks():
    space, monomials = cubes(2)
    rho = disjoint_cube_moments([30.0, 60.0])
    found = fit_by_sampling(space, monomials, rho, seed=1, columns=32, sweeps=8, rounds=12, tol=0.1)
    assert found.moment_error < 0.15
    assert (np.abs(found.lam - [30, 60]) < 6 * found.lambda_error + 1.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("lam", [[200.0] * 11, [600.0] + [0.0] * 10], ids=["equal", "one"])
def test_eleven_blocks_on_s65(lam):
    """Fit to 0.02 standard deviations, judged by the exact moments; log Z within its stated error."""
    space, monomials = cubes(11)
    rho = disjoint_cube_moments(lam)
    found = fit_by_sampling(space, monomials, rho, seed=0)
    deviation = np.sqrt(np.diag(found.samples.covariance))
    exact = disjoint_cube_moments(found.lam)
    assert (np.abs(exact - rho) < 0.02 * deviation).all()
    assert (found.samples.rhat < 1.02).all()
    assert (
        abs(found.samples.log_partition - disjoint_cubes(found.lam)) < 4 * found.samples.log_partition_error
    )


@pytest.mark.slow
def test_competing_blocks_are_mixed_or_refused():
    """Equal lambda = 440: one block or none takes the mass; a short run must not pass silently."""
    space, monomials = cubes(11)
    rho = disjoint_cube_moments([440.0] * 11)
    outcome = "fitted"
    try:
        samples = fit_by_sampling(space, monomials, rho, seed=0, sweeps=12).samples
    except NotConvergedError as error:
        outcome, samples = str(error), error.partial.samples
    mixed = (samples.rhat < 1.02).all()
    assert mixed or "R-hat" in outcome
    if outcome == "fitted":
        assert np.abs(samples.mean - rho).max() < 0.1 * np.sqrt(samples.covariance.diagonal().max())


def exact_height(kappa, dimension, rng):
    """An exact draw of x_1 under exp(kappa x_1), by its distribution function."""
    height = np.linspace(-1, 1, 40001)[1:-1]
    logs = kappa * height + (dimension - 3) / 2 * np.log1p(-(height**2))
    cdf = np.cumsum(np.exp(logs - logs.max()))
    return np.interp(rng.random(), cdf / cdf[-1], height)


@pytest.mark.slow
def test_simulation_based_calibration():
    """50 random families up to dimension 64: ranks of exact draws uniform, coverage right.

    Two thirds are von Mises-Fisher laws in a random direction, the others sums of 2 to 10 cubic blocks.
    """
    ranks, covered, asked, log_z = [], 0, 0, 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        if seed % 3:
            dimension = int(rng.integers(3, 65))
            kappa = float(rng.uniform(0.5, 2.0) * dimension)
            axis = rng.normal(size=dimension)
            axis /= np.linalg.norm(axis)
            space, monomials, lam = (
                Sphere(dimension - 1),
                Monomials(np.eye(dimension, dtype=int)),
                kappa * axis,
            )
            value, mean = von_mises_fisher(kappa, dimension)
            exact = mean * axis
        else:
            blocks = int(rng.integers(2, 11))
            space, monomials = cubes(blocks)
            lam = rng.uniform(5, 15 * blocks, blocks)
            value, exact = disjoint_cubes(lam), disjoint_cube_moments(lam)
        found = TemperedSampler(space, monomials, columns=32, seed=seed).run(lam, sweeps=60, warmup=30)
        # 2.04 standard errors of 32 columns hold 95 % (Student)
        covered += int((np.abs(found.mean - exact) < 2.04 * found.standard_error).sum())
        asked += len(exact)
        log_z += abs(found.log_partition - value) < 2 * found.log_partition_error
        if seed % 3:
            ranks.append((found.points @ axis < exact_height(kappa, dimension, rng)).mean())
    ranks = np.array(ranks)
    print(f"moments {covered} of {asked} covered, log Z {log_z} of 50, ranks p = "
          f"{kstest(ranks + rng.uniform(-1, 1, len(ranks)) / 64, 'uniform').pvalue:.2f}")  # fmt: skip
    assert kstest(ranks + rng.uniform(-1, 1, len(ranks)) / 64, "uniform").pvalue > 0.01
    assert 0.92 < covered / asked < 0.98
    assert log_z >= 48  # at least 95 %
