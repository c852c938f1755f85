"""Certified counts and the plan's choice of solver, against dense spectra."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from manifold.errors import TooLargeError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.certificates import convex_bounds as inertia
from spectra.certificates.convex_bounds import local_eigenvalues, with_local_bounds
from spectra.functionals.base import Decayed
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum
from spectra.networks.constructions import f6
from spectra.operators.complement import complement
from spectra.operators.tangent import tangent_space
from spectra.operators.variation import DeflatedVariation, RestrictedVariation, SecondVariation
from spectra.solvers.block_lanczos import block_spectrum
from spectra.solvers.spectrum import Reason, Spectrum
from spectra.tasks.group_task import LOSSES, GroupTask


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
    monkeypatch.setattr("spectra.methods.plan.DENSE_WORK", 1.0)
    monkeypatch.setattr("spectra.methods.plan.DENSE_LIMIT", 1)
    task = GroupTask(FiniteAbelianGroup((7,)))
    measure = random_measure(task, 13, 3, 0.6)  # fewer unknowns than potentials: particles side
    wide = random_measure(task, 20, 3, 0.6)
    for points, subspace in ((measure, "complement"), (wide, "full")):
        plan = plan_spectrum(task, points, count=2, subspace="span")
        assert not plan.dense
        assert plan.subspace == subspace
        result = compute_spectrum(plan, task, points)
        assert result.spectrum.converged
        low, high = result.spectrum.smallest_enclosure
        full = SecondVariation(task.linearise(points))
        space = tangent_space(full.weighted_gradients())
        inside = full if subspace == "full" else RestrictedVariation(full, space)
        exact = np.linalg.eigvalsh(inside.dense().numpy())
        assert low <= exact[0] <= high
        assert low < high < exact[0] + 1e-5
        at = task.linearise(points)
        removed = DeflatedVariation(SecondVariation(at)).space if subspace == "complement" else None
        assert low == pytest.approx(float(local_eigenvalues(at, removed).min()), rel=1e-9)


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
    exact = np.linalg.eigvalsh(SecondVariation(task.linearise(impure)).dense().numpy())
    assert (
        not result.spectrum.complete
        or np.abs(result.spectrum.eigenvalues - exact).max() <= (result.spectrum.errors[0])
    )


EPS = 2.0**-52


def listed(values, *, dimension, norm=2.0, **more):
    """A spectrum of which only these values were computed, exactly."""
    values, exact = np.array(values), np.zeros(len(values))
    empty = torch.zeros(dimension, 0)
    return Spectrum(
        values, exact, exact, empty, dimension, norm, False, "test", 0, True, Reason.KRYLOV, **more
    )


def local(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_local_part_bounds_what_was_not_computed():
    found = with_local_bounds(listed([1.0], dimension=9, null=1), local(-5, -1, 0, 0, 0, 1, 2, 3, 4))
    assert found.at_most == (4, None)  # of five that may be negative one is zero
    assert found.at_least == (0, 4)
    assert found.lowest == -5 - 16 * EPS * 3 * 5  # the local part is larger than what was computed
    assert (found.counts.negative, found.counts.positive, found.counts.most_negative) == (0, 4, 4)


def test_local_eigenvalues_count_beyond_rounding_of_the_larger_of_both():
    unit = 16 * EPS * 2 * 8  # four dimensions, norm 8
    base = listed([1.0], dimension=4, norm=8.0, at_least=(1, 0), at_most=(None, 3))
    found = with_local_bounds(base, local(-1, -0.9 * unit, 0.9 * unit, 1.1 * unit))
    assert (found.at_least, found.at_most) == ((1, 1), (3, 3))
    assert found.lowest == pytest.approx(-1 - unit, rel=1e-16, abs=0)
    wide = with_local_bounds(base, local(-1, -0.9 * unit, 0.9 * unit, 1.1 * unit), uncertainty=0.5)
    assert (wide.at_least, wide.at_most, wide.lowest) == ((1, 0), (4, 3), pytest.approx(-1.5))
    proved = with_local_bounds(listed([1.0], dimension=4, at_least=(0, 2)), local(-1, -1, -1, 1))
    assert proved.at_least == (0, 2)
    all_null = with_local_bounds(listed([], dimension=2, null=2), local(1, 1))
    assert all_null.at_most == (0, None)


def test_no_local_part_proves_nothing():
    found = with_local_bounds(listed([], dimension=0), local())
    assert (found.at_least, found.at_most, found.lowest) == ((0, 0), (0, None), None)


def test_local_eigenvalues_are_those_of_every_neuron_where_they_fit(monkeypatch):
    rng = np.random.default_rng(0)
    blocks = torch.as_tensor(rng.standard_normal((3, 4, 4)))
    blocks = blocks + blocks.mT
    at = SimpleNamespace(measure=SimpleNamespace(points=torch.zeros(3, 4)), local_blocks=lambda: blocks)
    expected = np.sort(np.concatenate([np.linalg.eigvalsh(block) for block in blocks.numpy()]))
    found = local_eigenvalues(at)
    assert (found.shape, found.dtype) == ((12,), torch.float64)
    assert np.allclose(np.sort(found.numpy()), expected, atol=1e-14)
    keep = torch.ones(3, 4, dtype=torch.bool)
    keep[:, 1:] = False
    space = complement(torch.zeros(3, 0, 4, dtype=torch.float64), keep=keep)
    assert torch.equal(local_eigenvalues(at, space), blocks[:, 0, 0])
    monkeypatch.setattr(inertia, "LOCAL_BYTES", 4 * 8 * 3 * 16)  # the blocks and three tables of their size
    assert local_eigenvalues(at) is not None
    monkeypatch.setattr(inertia, "LOCAL_BYTES", 4 * 8 * 3 * 16 - 1)
    assert local_eigenvalues(at) is None
