"""The block decomposition against dense spectra."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError, NotConvergedError, TooLargeError
from manifold.groups import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.block_solvers import block_spectrum
from spectra.blocks import BlockStructure, blocked_spectrum, check_blocks, frequency_blocks
from spectra.constructions import cosine, f4_6, f6
from spectra.functionals import Decayed
from spectra.group_task import GroupTask
from spectra.variation import DenseOperator, SecondVariation


def problem(network, centred=False, decay=0.0, noise=0.0, seed=0):
    task = GroupTask(network.group, centred=centred)
    measure = network.measure(centred=centred)
    if noise:
        rng = torch.Generator().manual_seed(seed)
        points = measure.points + noise * torch.randn(
            measure.points.shape, generator=rng, dtype=torch.float64
        )
        measure = ParticleMeasure(points)
    functional = Decayed(task, decay) if decay else task
    return functional, measure, SecondVariation(functional.linearise(measure))


@pytest.mark.parametrize("orders", [(5,), (7,), (3, 3)])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_single_frequency_solutions_fall_apart_exactly(orders, centred, decay):
    functional, measure, full = problem(f6(FiniteAbelianGroup(orders)), centred, decay)
    structure = frequency_blocks(functional, measure)
    pairs = (functional.functional if decay else functional).group.conjugate_pairs
    assert len(structure.sizes) >= len(pairs)
    assert structure.products < full.dimension / 2 or len(pairs) == 2
    found = blocked_spectrum(full, structure)
    exact = np.linalg.eigvalsh(full.dense().numpy())
    assert np.abs(found.eigenvalues - exact).max() <= found.errors[0] < 1e-12 * found.norm
    assert found.complete
    if not decay:
        assert found.counts.negative == 0
        assert found.counts.positive == int((exact > 1e-9).sum())


@pytest.mark.parametrize("seed", range(3))
def test_weyl_bound_holds_and_is_near_for_impure_neurons(seed):
    network = cosine(FiniteAbelianGroup((7,)), neurons=30, seed=seed)
    for noise in (1e-4, 1e-2):
        functional, measure, full = problem(network, noise=noise, seed=seed)
        found = blocked_spectrum(full, frequency_blocks(functional, measure), useful=10.0)
        exact = np.linalg.eigvalsh(full.dense().numpy())
        off = np.abs(found.eigenvalues - exact).max()
        assert off <= found.errors[0]
        assert found.counts.negative <= int((exact < 0).sum())
        assert found.counts.positive <= int((exact > 0).sum())


def test_vanished_neurons_are_blocks_of_one():
    group = FiniteAbelianGroup((5,))
    network = f6(group)
    points = network.measure().points
    padded = ParticleMeasure(torch.cat([points, torch.zeros(6, points.shape[1], dtype=torch.float64)]))
    task = Decayed(GroupTask(group), 0.2)
    structure = frequency_blocks(task, padded)
    assert (np.sort(structure.sizes)[: 6 * points.shape[1]] == 1).all()
    full = SecondVariation(task.linearise(padded))
    found = blocked_spectrum(full, structure)
    exact = np.linalg.eigvalsh(full.dense().numpy())
    assert np.abs(found.eigenvalues - exact).max() <= found.errors[0] < 1e-11


def test_ends_agree_with_the_iterative_solver():
    functional, measure, full = problem(f6(FiniteAbelianGroup((11,))))
    found = blocked_spectrum(full, frequency_blocks(functional, measure))
    ends = block_spectrum(full, 6, tol=1e-9)
    assert np.abs(ends.largest(6)[0] - found.largest(6)[0]).max() < 1e-8
    assert np.abs(ends.smallest(6)[0] - found.smallest(6)[0]).max() < 1e-8


def test_refusals_say_how_large():
    group = FiniteAbelianGroup((7,))
    repaired = f4_6(group)  # six neurons carry every output frequency: one block
    functional, measure, _ = problem(repaired)
    assert frequency_blocks(functional, measure).products > 14 * 18
    wide = BlockStructure(np.zeros(9000, dtype=np.int64))
    with pytest.raises(TooLargeError, match="9,000 unknowns"):
        check_blocks(wide)
    with pytest.raises(InputError, match="squared loss"):
        check_blocks(frequency_blocks(GroupTask(group, loss="cross_entropy"), measure))
    matrix = torch.ones(8, 8, dtype=torch.float64) + torch.eye(8, dtype=torch.float64)
    halves = BlockStructure(np.repeat([0, 1], 4))
    with pytest.raises(NotConvergedError, match="coupling dropped") as caught:
        blocked_spectrum(DenseOperator(matrix), halves)
    exact = np.linalg.eigvalsh(matrix.numpy())
    assert np.abs(caught.value.partial.eigenvalues - exact).max() <= caught.value.partial.errors[0]
