"""The block decomposition against dense spectra."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError, NotConvergedError, TooLargeError
from manifold.groups import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.block_solvers import block_spectrum
from spectra.blocks import CutBlocks, blocked_spectrum, coupling_bound
from spectra.constructions import cosine, f4_6, f6
from spectra.eigen import dense_spectrum
from spectra.functionals import Decayed
from spectra.group_task import GroupTask
from spectra.partition import BlockStructure, check_blocks, frequency_blocks
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
    assert np.abs(found.eigenvalues - exact).max() <= found.errors[0] < 1e-10 * found.norm
    assert np.abs(found.eigenvalues - exact).max() < 1e-13 * found.norm * full.dimension
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
    assert np.abs(found.eigenvalues - exact).max() <= found.errors[0] < 1e-10 * found.norm


def test_ends_agree_with_the_iterative_solver():
    functional, measure, full = problem(f6(FiniteAbelianGroup((11,))))
    found = blocked_spectrum(full, frequency_blocks(functional, measure))
    ends = block_spectrum(full, 6, tol=1e-9)
    assert np.abs(ends.largest(6)[0] - found.largest(6)[0]).max() < 1e-8
    assert np.abs(ends.smallest(6)[0] - found.smallest(6)[0]).max() < 1e-8


@pytest.mark.parametrize("orders", [(5,), (7,)])
def test_groups_of_bounded_memory_give_the_same_spectrum(orders):
    functional, measure, full = problem(f6(FiniteAbelianGroup(orders)), decay=0.03)
    structure = frequency_blocks(functional, measure)
    assert len(structure.groups()) == 1
    one = 8 * structure.products**2
    groups = structure.groups(one)
    assert len(groups) > 1
    assert all(8 * (structure.sizes[group] ** 2).sum() <= 2 * one for group in groups)
    assert sorted(np.concatenate(groups)) == list(np.nonzero(structure.sizes > 1)[0])
    told = []
    small = blocked_spectrum(full, structure, memory=one, progress=lambda *report: told.append(report))
    assert np.abs(small.eigenvalues - np.linalg.eigvalsh(full.dense().numpy())).max() <= small.errors[0]
    assert small.errors[0] < 1e-10 * small.norm
    done = [report[0] / report[1] for report in told]
    assert done[-1] == pytest.approx(1)
    assert {report[2] for report in told} == {
        "coupling between blocks", "assembling blocks", "eigenvalues of blocks"
    }  # fmt: skip


@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_cut_blocks_are_the_diagonal_blocks(noise):
    functional, measure, full = problem(f6(FiniteAbelianGroup((5,))), noise=noise)
    structure = frequency_blocks(functional, measure)
    labels = structure.labels.copy()
    labels[:7] = labels.max() + 1 + np.arange(7)  # some blocks of one unknown
    structure = BlockStructure(np.unique(labels, return_inverse=True)[1])
    dense = full.dense().numpy()
    chosen = np.nonzero(structure.sizes > 1)[0]
    same = structure.labels[:, None] == structure.labels[None, :]
    inside = same & np.isin(structure.labels, chosen)[:, None]
    cut = CutBlocks(full, structure)
    assert np.abs(CutBlocks(full, structure, chosen).dense().numpy() - dense * inside).max() < 1e-13
    single = ~np.isin(structure.labels, chosen)
    diagonal = np.diag(np.where(single, dense @ single, 0.0))
    assert np.abs(cut.dense().numpy() - dense * inside - diagonal).max() < 1e-13
    bound = coupling_bound(full, cut, negligible=0.0)
    exact = np.linalg.norm(dense - dense * inside - diagonal, 2)
    assert exact <= bound <= 2 * exact
    loose = coupling_bound(full, cut, negligible=1e9)
    assert bound <= loose <= 25.3 * 4 * np.linalg.norm(dense - dense * inside - diagonal)


def test_impurities_that_fall_into_assembled_blocks_are_in_the_bound():
    # Two strongly different diagonal blocks; the coupling has one sign, so that probing all blocks at once
    # puts its full size into every assembled block.
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((40, 40))
    labels = np.repeat(np.arange(8), 5)
    same = labels[:, None] == labels[None, :]
    matrix = torch.as_tensor(np.where(same, matrix + matrix.T, 0.02))
    found = blocked_spectrum(DenseOperator(matrix), BlockStructure(labels), useful=10.0)
    off = np.abs(found.eigenvalues - np.linalg.eigvalsh(matrix.numpy())).max()
    cut = np.linalg.norm(np.where(same, 0.0, matrix.numpy()), 2)
    assert off <= found.errors[0]
    assert cut < found.errors[0] < 4 * cut


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
    operator = DenseOperator(matrix)
    with pytest.raises(NotConvergedError, match="coupling between blocks has norm 4") as caught:
        blocked_spectrum(operator, halves)
    assert caught.value.exit_code == 3
    kept = blocked_spectrum(operator, halves, useful=10.0)
    assert np.abs(kept.eigenvalues - np.linalg.eigvalsh(matrix.numpy())).max() <= kept.errors[0]


def test_nan_in_the_operator_is_an_error():
    matrix = torch.eye(8, dtype=torch.float64)
    matrix[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        blocked_spectrum(DenseOperator(matrix), BlockStructure(np.repeat([0, 1], 4)))
    with pytest.raises(InputError, match="NaN"):
        block_spectrum(DenseOperator(torch.full((200, 200), float("nan"), dtype=torch.float64)), 2)
    with pytest.raises(InputError, match="NaN"):
        dense_spectrum(DenseOperator(matrix))


def test_the_loose_bound_of_the_coupling_keeps_its_risk():
    """A rank-one difference of norm 1: the largest of six Gaussians falls below 1/c with probability 1e-9."""
    size = 9
    zero = DenseOperator(torch.zeros(size, size, dtype=torch.float64))
    one = DenseOperator(torch.diag(torch.eye(size, dtype=torch.float64)[0]))
    bound = coupling_bound(one, zero, negligible=np.inf, seed=3)
    probes = np.random.default_rng(3).standard_normal((size, 6))
    factor = bound / np.abs(probes[0]).max()
    assert ((2 / np.pi) ** 0.5 / factor) ** 6 == pytest.approx(1e-9, rel=0.05)
