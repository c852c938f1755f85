"""The density of a spectrum against dense spectra."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.constructions import cosine
from spectra.operators.variation import DenseOperator, SecondVariation
from spectra.solvers.density import SpectralDensity, spectral_density
from spectra.tasks.group_task import GroupTask


@pytest.fixture(scope="module")
def circuit():
    network = cosine(FiniteAbelianGroup((7,)), neurons=40, seed=2)
    full = SecondVariation(GroupTask(network.group).linearise(network.measure()))
    operator = DenseOperator(full.dense())  # the same products, quicker
    return operator, np.linalg.eigvalsh(operator.matrix.numpy())


@pytest.fixture(scope="module")
def density(circuit):
    return spectral_density(circuit[0], probes=12, steps=60, seed=5)


def thresholds(values):
    top = np.abs(values).max()
    return np.concatenate([-np.geomspace(top, 1e-3 * top, 12), np.geomspace(1e-3 * top, 1.1 * top, 12)])


def test_cumulative_counts_are_those_of_the_dense_spectrum(circuit, density):
    at = thresholds(circuit[1])
    exact = (circuit[1][None, :] <= at[:, None]).sum(1)
    found = density.cumulative(at)
    slack = 4 * found.standard_error + 1e-9 * density.dimension
    assert (found.low - slack <= exact).all()
    assert (exact <= found.high + slack).all()
    assert (found.low <= found.count + 1e-9).all()
    assert (found.count <= found.high + 1e-9).all()
    resolved = found.high - found.low <= 0.1 * density.dimension  # elsewhere a step is left open
    assert resolved.sum() >= 8
    assert found.standard_error.max() < 0.05 * density.dimension  # the test can fail


def test_moments_are_exact_to_the_standard_error(circuit, density):
    for power in (1, 2, 3):
        estimate, error = density.moment(power)
        assert abs(estimate - (circuit[1] ** power).sum()) <= 4 * error
        assert error < 0.2 * (np.abs(circuit[1]) ** power).sum()
    assert density.moment(0) == (pytest.approx(density.dimension, rel=1e-12), pytest.approx(0, abs=1e-9))


def test_few_steps_leave_an_interval_that_holds_for_every_start():
    rng = np.random.default_rng(0)
    values = np.sort(rng.standard_normal(200))
    found = spectral_density(DenseOperator(torch.diag(torch.as_tensor(values))), probes=4, steps=6, seed=1)
    at = np.linspace(-2, 2, 41)
    # Signs as start vectors give every eigenvalue of a diagonal matrix the same mass: F is known exactly.
    exact = (values[None, :] <= at[:, None]).sum(1)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        alone = SpectralDensity(np.stack([nodes] * 2), np.stack([weights] * 2), 200, 0).cumulative(at)
        assert (alone.low <= exact + 1e-9).all()
        assert (exact <= alone.high + 1e-9).all()
        assert alone.standard_error.max() < 1e-9
    wider, finer = found.cumulative(at), spectral_density(
        DenseOperator(torch.diag(torch.as_tensor(values))), probes=4, steps=60, seed=1
    ).cumulative(at)  # fmt: skip
    assert (finer.high - finer.low).mean() < 0.3 * (wider.high - wider.low).mean()


def test_invariant_spaces_end_the_iteration_with_exact_weights():
    matrix = torch.diag(torch.tensor([0.0, 0.0, 0.0, 2.0, 2.0, -1.0], dtype=torch.float64))
    found = spectral_density(DenseOperator(matrix), probes=3, steps=6, seed=0)
    counted = found.cumulative(np.array([-1.5, -0.5, 1.0, 2.5]))
    assert np.allclose(counted.count, [0, 1, 4, 6])
    zero = spectral_density(DenseOperator(torch.zeros(5, 5, dtype=torch.float64)), probes=2, steps=3)
    assert np.allclose(zero.cumulative(np.array([-0.1, 0.1])).count, [0, 5])


def test_bins_cover_everything(density):
    edges = density.edges()
    counted = density.cumulative(edges)
    assert counted.count[0] == 0
    assert counted.count[-1] == pytest.approx(density.dimension)
    assert (np.diff(edges) > 0).all()


def test_bad_input():
    operator = DenseOperator(torch.full((4, 4), float("nan"), dtype=torch.float64))
    with pytest.raises(InputError, match="NaN"):
        spectral_density(operator)
    with pytest.raises(InputError, match="at least 2 probes"):
        spectral_density(DenseOperator(torch.eye(3, dtype=torch.float64)), probes=1)


def test_errors_are_those_of_a_mean_over_starts():
    """Five starts by hand: at 0.5 they hold 1/4, 1/2, 1/2, 3/4 and 1 of the mass, N = 8."""
    nodes = np.tile([0.0, 1.0], (5, 1))
    low = np.array([0.25, 0.5, 0.5, 0.75, 1.0])
    found = SpectralDensity(nodes, np.stack([low, 1 - low], 1), 8, 0)
    counted = found.cumulative([-1.0, 0.5, 2.0])
    assert counted.count == pytest.approx([0, 8 * 3 / 5, 8])
    assert counted.low == pytest.approx([0, 0, 4.8])  # one node before the threshold is open
    assert counted.high == pytest.approx([4.8, 8, 8])
    variance = ((low - low.mean()) ** 2).sum() / 4
    error = 8 * (variance / 5) ** 0.5
    assert counted.standard_error == pytest.approx([error] * 3)  # the largest of low, count and high
    assert found.moment(1) == pytest.approx((8 * (1 - low).mean(), error))


def test_standard_errors_are_the_scatter_over_seeds():
    """The mean square of stated errors against the variance of the estimates themselves."""
    mixed = torch.randn(60, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = DenseOperator(mixed)
    runs = [spectral_density(operator, probes=4, steps=8, seed=seed) for seed in range(60)]
    for power in (1, 2):
        estimates, errors = np.array([run.moment(power) for run in runs]).T
        assert estimates.std(ddof=1) == pytest.approx((errors**2).mean() ** 0.5, rel=0.35)


def test_edges_are_five_to_a_decade_over_six_decades():
    nodes = np.array([[-2.0, 0.5], [-1.0, 1.0]])
    edges = SpectralDensity(nodes, np.full((2, 2), 0.5), 4, 0).edges()
    top = edges[-1]
    assert 2.0 < top < 2.001  # the largest node lies inside
    assert edges == pytest.approx(-edges[::-1])
    assert len(edges) == 2 * (6 * 5 + 1)
    positive = edges[31:]
    assert positive[0] == pytest.approx(1e-6 * top)
    assert positive[1:] / positive[:-1] == pytest.approx(np.full(30, 10**0.2))
    assert SpectralDensity(0 * nodes, np.full((2, 2), 0.5), 4, 0).edges()[-1] == 1.0
    assert SpectralDensity(nodes[:, :0], nodes[:, :0], 4, 0).norm == 0.0


def test_one_step_of_one_dimension_and_the_products_told():
    told = []
    found = spectral_density(
        DenseOperator(torch.tensor([[3.0]], dtype=torch.float64)), probes=2, steps=1,
        progress=lambda *report: told.append(report),
    )  # fmt: skip
    assert found.nodes.tolist() == [[3.0], [3.0]]
    assert found.weights.tolist() == [[1.0], [1.0]]
    assert found.matvecs == 2
    assert told == [(1, 2, "spectral density"), (2, 2, "spectral density")]
    with pytest.raises(InputError, match="1 step"):
        spectral_density(DenseOperator(torch.eye(3, dtype=torch.float64)), steps=0)
    with pytest.raises(InputError, match="1 dimension"):
        spectral_density(DenseOperator(torch.zeros(0, 0, dtype=torch.float64)))


def test_the_threshold_itself_counts_and_a_start_alone_has_its_own_interval():
    found = SpectralDensity(np.array([[0.0, 1.0], [0.0, 1.0]]), np.full((2, 2), 0.5), 2, 0)
    assert found.cumulative([0.0, 1.0]).count.tolist() == [1.0, 2.0]
    with pytest.raises(AttributeError):
        found.dimension = 3


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e8])
def test_an_invariant_space_is_recognised_at_any_scale(scale):
    """Three eigenvalues, twenty steps: three nodes, whatever the size of the operator; no weight beyond."""
    turn = torch.linalg.qr(
        torch.randn(40, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )[0]
    values = scale * torch.tensor([-1.0] * 10 + [0.5] * 20 + [2.0] * 10, dtype=torch.float64)
    found = spectral_density(DenseOperator(turn * values @ turn.T), probes=3, steps=20, seed=4)
    assert ((found.weights > 0).sum(1) == 3).all()
    assert found.nodes[:, :3] / scale == pytest.approx(np.tile([-1.0, 0.5, 2.0], (3, 1)), rel=1e-10)
    assert found.weights.sum(1) == pytest.approx(1)
