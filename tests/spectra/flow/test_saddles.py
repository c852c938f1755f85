"""Stationary points of every kind by Levenberg-Marquardt."""

import pytest
import torch

from manifold.errors import NotConvergedError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.flow import saddles
from spectra.flow.gradient_flow import FixedPointKind, gradient_flow
from spectra.flow.saddles import nearest_stationary_point
from spectra.functionals.base import PotentialFunctional
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum
from spectra.tasks.group_task import GroupTask


def test_the_saddle_between_two_wells():
    """V = (x^2 - 1)^2 + y^2: wells at x = -1, 1, a saddle at the origin."""
    well = PotentialFunctional(
        lambda z: ((z[:, 0] ** 2 - 1) ** 2 + z[:, 1] ** 2)[:, None], lambda rho: rho[0], count=1
    )
    start = ParticleMeasure(torch.tensor([[0.2, 0.3], [-0.1, 0.5], [0.9, 0.1]], dtype=torch.float64))
    found = nearest_stationary_point(well, start, tol=1e-10)
    expected = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(found.measure.points, expected, atol=1e-9)
    assert found.kind is FixedPointKind.STATIONARY


def test_a_stationary_point_of_a_group_task_from_the_middle_of_training():
    task = GroupTask(FiniteAbelianGroup((3,)), centred=True)
    rng = torch.Generator().manual_seed(0)
    start = ParticleMeasure(0.6 * torch.randn(24, task.dimension, generator=rng, dtype=torch.float64))
    *_, middle = gradient_flow(task, start, [6.0])
    found = nearest_stationary_point(task, middle, tol=1e-9)
    assert found.gradient_norm > 1e-2
    assert found.gradient_norm_after <= 1e-9
    assert float(task.gradient(found.measure).norm(dim=1).max()) <= 1e-9
    spectrum = compute_spectrum(plan_spectrum(task, found.measure), task, found.measure).spectrum
    assert spectrum.complete


def test_steps_without_matrices_end_at_the_same_kind_of_point(monkeypatch):
    task = GroupTask(FiniteAbelianGroup((3,)), centred=True)
    rng = torch.Generator().manual_seed(0)
    start = ParticleMeasure(0.6 * torch.randn(24, task.dimension, generator=rng, dtype=torch.float64))
    *_, near = gradient_flow(task, start, [25.0])
    dense = nearest_stationary_point(task, near, tol=1e-9)
    monkeypatch.setattr(saddles, "SMALL_SPAN", 0)
    free = nearest_stationary_point(task, near, tol=1e-9)
    for found in (dense, free):
        assert found.kind is FixedPointKind.MP_CRITICAL
        assert found.gradient_norm_after <= 1e-9 < found.gradient_norm
    assert dense.moved == pytest.approx(free.moved, rel=0.2)


def test_a_slope_without_stationary_point_says_so():
    tilted = PotentialFunctional(lambda z: z, lambda rho: rho[0], count=1)
    with pytest.raises(NotConvergedError) as stopped:
        nearest_stationary_point(tilted, ParticleMeasure(torch.zeros(1, 1, dtype=torch.float64)))
    assert stopped.value.partial.gradient_norm_after == 1.0
