"""Certified counts and the plan's choice of solver, against dense spectra."""

import numpy as np
import pytest
import torch

from manifold.errors import TooLargeError
from manifold.groups import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.block_solvers import block_spectrum
from spectra.constructions import f6
from spectra.functionals import Decayed
from spectra.group_task import LOSSES, GroupTask
from spectra.inertia import local_eigenvalues, with_local_bounds
from spectra.plan import compute_spectrum, plan_spectrum
from spectra.variation import DeflatedVariation, SecondVariation


def random_measure(task, q, seed, scale):
    rng = torch.Generator().manual_seed(seed)
    return ParticleMeasure(scale * torch.randn(q, task.dimension, generator=rng, dtype=torch.float64))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_local_inertia_encloses_counts_and_the_lowest_eigenvalue(loss, decay, scale):
    task = GroupTask(FiniteAbelianGroup((5,)), loss=loss)
    functional = Decayed(task, decay) if decay else task
    assert functional.convex
    at = functional.linearise(random_measure(task, 30, 1, scale))
    full = SecondVariation(at)
    exact = np.linalg.eigvalsh(full.dense().numpy())
    found = with_local_bounds(block_spectrum(full, 5, tol=1e-7), local_eigenvalues(at))
    zero = 1e-12 * abs(exact).max()  # null directions have no sign
    for name, count in (("negative", (exact < -zero).sum()), ("positive", (exact > zero).sum())):
        low, high = found.counts.bounds[name]
        assert low <= count <= high
    assert found.counts.most_negative < full.dimension
    assert found.counts.positive > 5
    low, high = found.smallest_enclosure
    assert low <= exact[0] <= high


def test_bounds_in_a_subspace_count_what_was_taken_away():
    task = GroupTask(FiniteAbelianGroup((5,)))
    at = task.linearise(random_measure(task, 30, 2, 0.6))
    full = SecondVariation(at)
    deflated = DeflatedVariation(full)
    fields = at.symmetry_fields()  # (q, g, D)
    removed = torch.block_diag(*fields.mT)
    basis = torch.linalg.qr(torch.cat([removed, torch.eye(full.dimension)], dim=1))[0][:, removed.shape[1] :]
    exact = np.linalg.eigvalsh((basis.T @ full.dense() @ basis).numpy())
    found = with_local_bounds(block_spectrum(deflated, 5), local_eigenvalues(at, deflated.space))
    assert found.dimension == len(exact)
    assert found.counts.negative <= (exact < 0).sum() <= found.counts.most_negative
    assert found.counts.positive <= (exact > 0).sum()
    assert found.smallest_enclosure[0] <= exact[0] <= found.smallest_enclosure[1]


def test_plan_takes_ends_with_proved_bounds_when_it_is_not_dense(monkeypatch):
    monkeypatch.setattr("spectra.plan.DENSE_WORK", 1.0)
    task = GroupTask(FiniteAbelianGroup((5,)))
    measure = random_measure(task, 12, 3, 0.6)  # fewer unknowns than potentials would need: particles side
    wide = random_measure(task, 40, 3, 0.6)
    for points in (measure, wide):
        plan = plan_spectrum(task, points, count=4, subspace="span")
        result = compute_spectrum(plan, task, points)
        assert result.spectrum.converged
        if not plan.dense:
            assert result.spectrum.smallest_enclosure is not None


def test_complete_spectra_that_do_not_fit_dense_come_from_blocks():
    group = FiniteAbelianGroup((7,))
    task, measure = GroupTask(group), f6(group).measure()
    size = measure.points.numel()
    plan = plan_spectrum(task, measure, subspace="full", count=None, memory_limit=8 * size * size)
    assert plan.blocks
    assert "blocks" in plan.sentence
    result = compute_spectrum(plan, task, measure)
    exact = np.linalg.eigvalsh(SecondVariation(task.linearise(measure)).dense().numpy())
    assert np.abs(result.spectrum.eigenvalues - exact).max() < 1e-12 * result.spectrum.norm
    assert result.spectrum.converged

    loss = GroupTask(group, loss="cross_entropy")
    with pytest.raises(TooLargeError, match="couple all"):
        plan_spectrum(loss, measure, subspace="full", count=None, memory_limit=8 * size * size)
    impure = ParticleMeasure(measure.points + 0.02 * torch.randn(measure.points.shape, dtype=torch.float64))
    result = compute_spectrum(plan, task, impure)
    assert not result.spectrum.converged or result.spectrum.errors[0] < 0.05 * result.spectrum.norm
