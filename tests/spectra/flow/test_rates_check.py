"""The true flow beside eigenvalues, and which eigenvalues move one way."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError, NotConvergedError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.branches.motion import monotony, split_moves, third_derivative_range
from spectra.flow.gradient_flow import gradient_flow, refine
from spectra.flow.rates_check import check_linearisation, choose_modes
from spectra.functionals.base import PotentialFunctional
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum
from spectra.tasks.group_task import GroupTask


@pytest.fixture(scope="module")
def fixed_point():
    task = GroupTask(FiniteAbelianGroup((3,)), centred=True)
    rng = torch.Generator().manual_seed(0)
    start = ParticleMeasure(0.6 * torch.randn(24, task.dimension, generator=rng, dtype=torch.float64))
    *_, last = gradient_flow(task, start, [30.0])
    point = refine(task, last, tol=1e-9).measure
    result = compute_spectrum(plan_spectrum(task, point), task, point)
    return task, point, result


def test_rates_of_the_true_flow_are_the_eigenvalues(fixed_point):
    task, point, result = fixed_point
    found = result.spectrum
    modes = choose_modes(found.eigenvalues, found.errors, 6)
    vectors = result.lift(found.vectors[:, torch.as_tensor(modes)])
    check = check_linearisation(task, point, found.eigenvalues[modes], vectors)
    assert len(modes) == 6
    assert check.relative_errors.max() < 1e-3
    wrong = check_linearisation(task, point, 1.1 * found.eigenvalues[modes][-1:], vectors[:, -1:])
    assert wrong.relative_errors[0] > 0.05


def test_the_error_falls_with_the_size_and_with_its_square(fixed_point):
    task, point, result = fixed_point
    vectors = result.lift(result.spectrum.vectors)[:, -3:]
    values = result.spectrum.eigenvalues[-3:]

    def errors(size, centred):
        return check_linearisation(task, point, values, vectors, size=size, centred=centred).relative_errors

    one_sided = np.log2(errors(0.01, False) / errors(0.005, False))
    both = np.log2(errors(0.04, True) / errors(0.02, True))
    assert both == pytest.approx(2 * np.ones(3), abs=0.25)
    assert np.median(one_sided) == pytest.approx(1, abs=0.2)  # linear and cubic parts may cancel in one mode


def test_growth_along_an_unstable_direction():
    """A maximum of a quartic potential: v'' = -1 at zero, so the flow grows like exp(t)."""
    functional = PotentialFunctional(
        lambda z: torch.stack([z[:, 0].square() / 2, z[:, 0] ** 4], 1), lambda rho: rho[1] - rho[0], count=2
    )
    point = ParticleMeasure(torch.zeros(1, 1, dtype=torch.float64))
    check = check_linearisation(functional, point, [-1.0], torch.ones(1, 1, dtype=torch.float64))
    assert check.rates[0] == pytest.approx(-1, rel=1e-4)


def test_modes_near_their_error_are_left_out():
    values, errors = np.array([-1.0, 1e-9, 0.5, 1, 2, 3]), np.full(6, 1e-10)
    assert choose_modes(values, errors, 20).tolist() == [0, 2, 3, 4, 5]
    assert choose_modes(values, errors, 4).tolist() == [0, 2, 4, 5]
    with pytest.raises(InputError, match="not zero"):
        check_linearisation(None, None, [0.0], torch.ones(1, 1))


def test_monotony_counts_moves_beyond_errors():
    values = np.array([[1.0, 1.0, 0.0], [0.5, 2.0, 1e-12], [0.2, np.nan, 0.0]])
    found = monotony(values, np.full((3, 3), 1e-11))
    assert found.moves == 5
    assert found.hessian == pytest.approx(4 / 5)
    assert found.jacobian == pytest.approx(3 / 5)
    assert (found.hessian_steps, found.jacobian_steps) == (0.5, 0)
    assert np.isnan(monotony(values[:1], values[:1]).hessian)


def test_condition_against_third_derivatives_by_autodiff():
    rng = torch.Generator().manual_seed(1)
    f = torch.randn(3, 4, generator=rng, dtype=torch.float64)
    targets = torch.tensor([0, 2, 1])

    def loss(flat):
        return torch.nn.functional.cross_entropy(flat.reshape(3, 4), targets)

    hessian = torch.func.hessian(loss)
    _, dense = torch.func.jvp(hessian, (f.flatten(),), (torch.func.grad(loss)(f.flatten()),))
    expected = torch.linalg.eigvalsh(dense)
    low, high = third_derivative_range(f.numpy(), targets.numpy())
    assert (low, high) == pytest.approx((float(expected[0]), float(expected[-1])), abs=1e-14)
    assert low < 0 < high


def test_moves_are_attributed_to_the_part_that_moved():
    values = np.array([[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, -1.0, np.nan]])
    local = np.array([[0.0, 0.0, 0.0, 0.0], [0.9, 0.2, 0.5, np.nan]])
    errors = np.full((2, 4), 1e-9)
    moves = split_moves(values, errors, local)
    assert moves.leading(1) == {"moves": 2, "by_gram": 0.5, "by_curvature": 0.0, "by_local": 0.5}
    assert moves.leading(-1) == {"moves": 1, "by_gram": 1.0, "by_curvature": 0.0, "by_local": 0.0}
    bent = split_moves(values, errors, local, np.array([[0.0, 0.5, -1.4, np.nan]]))
    assert bent.leading(1)["by_curvature"] == 0.5
    assert bent.leading(-1)["by_curvature"] == 1.0
    total = bent.gram + bent.curvature + bent.local
    assert total == pytest.approx(np.diff(values, axis=0), nan_ok=True)


def test_a_flow_that_would_never_end_is_refused(monkeypatch):
    monkeypatch.setattr("spectra.flow.gradient_flow.MOST_STEPS", 40)
    task = GroupTask(FiniteAbelianGroup((3,)))
    rng = np.random.default_rng(0)
    start = ParticleMeasure(torch.as_tensor(rng.standard_normal((2, task.dimension))))
    *_, last = gradient_flow(task, start, [0.1])
    assert task.value(last) < task.value(start)
    with pytest.raises(NotConvergedError, match=r"40 steps of the integrator reach t = .* of 1e\+30"):
        list(gradient_flow(task, start, [1e30]))
