"""Partitions by output frequency against a search written out, and their sizes against numbers."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError, TooLargeError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.blocks import partition
from spectra.blocks.partition import BlockStructure, check_blocks, frequency_blocks
from spectra.functionals.base import Decayed
from spectra.tasks.group_task import GroupTask

LABELS = np.array([0, 2, 0, -1, 1, 0, 2, -1, 3])


def test_the_sizes_of_a_partition():
    found = BlockStructure(LABELS)
    assert found.sizes.tolist() == [3, 1, 2, 1]
    assert found.border.tolist() == [3, 7]
    assert found.products == 3
    assert [part.tolist() for part in found.members] == [[0, 2, 5], [4], [1, 6], [8]]
    assert BlockStructure(np.array([-1, -1])).products == 0


def test_products_are_those_of_groups_probes_and_border():
    """Both large blocks at once; six vectors for the coupling, each cut to two blocks; two of the border."""
    assert BlockStructure(LABELS).predicted_products == 3 + 6 * (2 + 1) + 2
    assert BlockStructure(np.arange(4)).predicted_products == 6


def test_memory_is_that_of_blocks_couplings_and_the_rest(monkeypatch):
    monkeypatch.setattr(partition, "LEFT_LIMIT", 100)
    blocks, unknowns = 8 * (9 + 1 + 4 + 1), 9
    assert BlockStructure(LABELS).memory == blocks + 2 * 8 * 100**2 + 8 * unknowns * (64 + 3 * 2)
    assert BlockStructure(LABELS[LABELS >= 0]).memory == blocks + 8 * 7 * 64
    monkeypatch.setattr(partition, "GROUP_BYTES", 50)
    assert BlockStructure(LABELS[LABELS >= 0]).memory == 50 + 8 * 7 * 64


def test_groups_hold_no_more_than_one_block_beyond_the_memory():
    labels = np.repeat(np.arange(6), [1, 4, 2, 3, 4, 2])  # bytes 128, 128, 72, 32, 32, largest first
    structure = BlockStructure(labels)
    assert [g.tolist() for g in structure.groups()] == [[1, 4, 3, 2, 5]]
    assert [g.tolist() for g in structure.groups(200)] == [[1], [4, 3, 2, 5]]
    assert [g.tolist() for g in structure.groups(128)] == [[1], [4, 3, 2], [5]]
    assert [g.tolist() for g in structure.groups(30)] == [[1], [4], [3], [2], [5]]
    assert BlockStructure(np.arange(3)).groups() == []


# -- by frequency ---------------------------------------------------------------------------------------


def network(task, carried, *, seed=0):
    """Random first layers, and c at these frequencies: one dictionary of sizes for every neuron."""
    keep = slice(int(task.centred), None)
    frequency = [k for k, _ in task.group.real_columns][keep]
    points = np.random.default_rng(seed).standard_normal((len(carried), task.dimension))
    points[:, -len(frequency) :] = 0
    for j, sizes in enumerate(carried):
        for k, size in sizes.items():
            columns = [task.dimension - len(frequency) + i for i, f in enumerate(frequency) if f == k]
            points[j, columns] = size / len(columns) ** 0.5
    return ParticleMeasure(torch.as_tensor(points))


def searched(task, measure, *, cut=0.1, border=()):
    """Blocks as sets of unknowns, by joining them one by one."""
    points = measure.points.numpy()
    frequency = np.array([k for k, _ in task.group.real_columns][int(task.centred) :])
    q, dimension = points.shape
    first = dimension - len(frequency)
    lengths = np.linalg.norm(points, axis=1)
    nodes = [
        [("lone", j, i) if lengths[j] <= 1e-4 * lengths.max() else ("neuron", j) if i < first
         else ("frequency", frequency[i - first]) for i in range(dimension)]
        for j in range(q)
    ]  # fmt: skip
    names = {node: node for row in nodes for node in row}
    for j in range(q):
        c = points[j, first:]
        for k in set(frequency):
            alive = lengths[j] > 1e-4 * lengths.max()
            if alive and j not in border and np.linalg.norm(c[frequency == k]) > cut * np.linalg.norm(c):
                old, new = names.get(("neuron", j)), names.get(("frequency", k))
                names = {key: new if value == old else value for key, value in names.items()}
    blocks = {}
    for j in range(q):
        for i in range(dimension):
            name = "border" if j in border and i < first else names[nodes[j][i]]
            blocks.setdefault(name, set()).add(j * dimension + i)
    return blocks.pop("border", set()), {frozenset(block) for block in blocks.values()}


def as_sets(structure):
    return set(structure.border.tolist()), {frozenset(part.tolist()) for part in structure.members}


CARRIED = [{1: 1.0}, {1: 1.0, 2: 0.09}, {2: 1.0, 3: 0.11}, {3: 2.0}, {}, {1: -0.5}]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_blocks_are_joined_by_what_c_carries(centred, tied):
    task = GroupTask(FiniteAbelianGroup((7,)), centred=centred, tied=tied)
    measure = network(task, CARRIED)
    expected = searched(task, measure)
    assert as_sets(frequency_blocks(task, measure)) == expected
    assert as_sets(frequency_blocks(Decayed(task, 0.1), measure)) == expected
    assert expected[0] == set()
    one = searched(task, measure, cut=0.05)
    assert as_sets(frequency_blocks(task, measure, cut=0.05)) == one
    assert len(one[1]) < len(expected[1])


@pytest.mark.parametrize("size", [0.9e-4, 1.1e-4])
@pytest.mark.parametrize("scale", [5.0, 1e-3])
@pytest.mark.parametrize("vanished", [0, 1])
def test_neurons_below_1e_minus_4_of_the_largest_are_single_unknowns(size, scale, vanished):
    task = GroupTask(FiniteAbelianGroup((5,)), centred=True)
    measure = network(task, [{1: 1.0}, {1: 1.0}, {2: 1.0}])
    points = scale * measure.points / measure.points.norm(dim=1, keepdim=True)
    points[vanished] *= size
    measure = ParticleMeasure(points)
    found = frequency_blocks(task, measure)
    assert as_sets(found) == searched(task, measure)
    assert (found.sizes == 1).sum() == (task.dimension if size < 1e-4 else 0)


@pytest.mark.parametrize(("limit", "set_aside"), [(2 * 8, True), (2 * 8 - 1, False)])
def test_neurons_of_several_frequencies_make_a_border_where_they_are_few(limit, set_aside, monkeypatch):
    task = GroupTask(FiniteAbelianGroup((5,)), centred=True)
    measure = network(task, [{1: 1.0}, {1: 1.0, 2: 0.5}, {2: 1.0}, {1: 0.5, 2: 1.0}, {1: 2.0}])
    monkeypatch.setattr(partition, "BORDER_LIMIT", limit)
    whole = frequency_blocks(task, measure)
    assert as_sets(whole) == searched(task, measure)
    kept = frequency_blocks(task, measure, largest=whole.products)
    assert as_sets(kept) == as_sets(whole)
    found = frequency_blocks(task, measure, largest=whole.products - 1)
    assert as_sets(found) == searched(task, measure, border=(1, 3) if set_aside else ())


def test_vanished_neurons_join_nothing_and_make_no_border():
    task = GroupTask(FiniteAbelianGroup((5,)), centred=True)
    measure = network(task, [{1: 1.0}, {1: 1.0, 2: 0.5}])
    points = measure.points.clone()
    points[1] *= 1e-6
    measure = ParticleMeasure(points)
    found = frequency_blocks(task, measure, largest=1)
    assert as_sets(found) == searched(task, measure)
    assert len(found.border) == 0
    assert found.products == frequency_blocks(task, ParticleMeasure(points[:1])).products


def test_losses_that_couple_all_frequencies_have_no_blocks():
    group = FiniteAbelianGroup((5,))
    task = GroupTask(group)
    measure = network(task, [{1: 1.0}])
    assert frequency_blocks(task, measure) is not None
    assert frequency_blocks(GroupTask(group, loss="cross_entropy"), measure) is None
    assert frequency_blocks(GroupTask(group, pairs=[(0, 1), (2, 3)]), measure) is None
    assert frequency_blocks(Decayed(GroupTask(group, loss="cross_entropy"), 0.1), measure) is None


# -- refusals -------------------------------------------------------------------------------------------


def test_blocks_up_to_8000_unknowns_are_solved():
    check_blocks(BlockStructure(np.zeros(8000, dtype=np.int64)), memory_limit=1)
    with pytest.raises(TooLargeError, match="has 8,001 unknowns"):
        check_blocks(BlockStructure(np.zeros(8001, dtype=np.int64)))
    with pytest.raises(InputError, match="squared loss"):
        check_blocks(None)


def test_a_border_must_fit():
    structure = BlockStructure(LABELS)
    check_blocks(structure, structure.memory)
    with pytest.raises(TooLargeError, match="2 unknowns of neurons"):
        check_blocks(structure, structure.memory - 1)
