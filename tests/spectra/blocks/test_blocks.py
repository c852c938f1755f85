"""The block decomposition against dense spectra."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError, NotConvergedError, TooLargeError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.blocks import spectrum as blocks
from spectra.blocks.partition import BlockStructure, check_blocks, frequency_blocks
from spectra.blocks.spectrum import BlockGroup, CutBlocks, blocked_spectrum, coupling_bound
from spectra.functionals.base import Decayed
from spectra.networks.constructions import cosine, f4_6, f6
from spectra.operators.variation import DenseOperator, SecondVariation
from spectra.solvers.block_lanczos import block_spectrum, norm_bound
from spectra.solvers.spectrum import Reason, dense_spectrum, power_norm
from spectra.tasks.group_task import GroupTask


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


# -- small matrices, entry by entry ---------------------------------------------------------------------

EPS = 2.0**-52
LABELS = np.array([0, 1, 0, -1, 2, 1, 3, 0, -1, 2, 1, 4])  # sizes 3, 3, 2, 1, 1 and a border of 2


def symmetric(size=12, seed=0):
    table = torch.as_tensor(np.random.default_rng(seed).standard_normal((size, size)))
    return table + table.T


def inside(labels, chosen):
    return torch.as_tensor((labels[:, None] == labels[None, :]) & np.isin(labels, chosen)[:, None])


@pytest.mark.parametrize("limit", [2**27, 8 * 12 * 2, 8 * 12])
def test_cut_blocks_with_a_border_and_single_unknowns(limit, monkeypatch):
    monkeypatch.setattr(blocks, "MASKED_BYTES", limit)
    matrix = symmetric()
    operator = DenseOperator(matrix)
    cut = CutBlocks(operator, BlockStructure(LABELS))
    border = torch.as_tensor(LABELS < 0)
    single = torch.as_tensor(LABELS >= 3)
    expected = torch.where(inside(LABELS, [0, 1, 2]), matrix, 0.0)
    expected += torch.diag(torch.where(single, matrix @ single.double(), 0.0))
    expected = torch.where(border[:, None] | border[None, :], matrix, expected)
    torch.testing.assert_close(cut.dense(), expected)
    assert cut.count == 3
    assert torch.equal(cut.single, single)
    operator.matvecs = 0
    widths, apply = [], DenseOperator.apply
    with monkeypatch.context() as patch:
        patch.setattr(
            DenseOperator, "apply", lambda s, block: widths.append(block.shape[1]) or apply(s, block)
        )
        cut.apply(symmetric()[:, :4])
    assert operator.matvecs == 4 * 3 + 4 + 4  # three blocks, columns and rows of the border
    assert max(widths[:-2]) == min(3, limit // (8 * 12))
    some = CutBlocks(operator, BlockStructure(LABELS), np.array([1, 2, 4]))
    torch.testing.assert_close(some.dense(), torch.where(inside(LABELS, [1, 2]), matrix, 0.0))
    assert not some.single.any()
    assert (some.count, some.device) == (2, operator.device)


def test_blocks_are_probed_all_at_once():
    labels = np.repeat([0, 1, 2], [20, 3, 15])
    matrix = symmetric(38)
    for coupled in (False, True):
        table = matrix if coupled else torch.where(inside(labels, [0, 1, 2]), matrix, 0.0)
        operator, told = DenseOperator(table), []
        group = BlockGroup(
            operator, BlockStructure(labels), np.array([0, 2]), lambda o=operator, s=told: s.append(o.matvecs)
        )
        assert told == [16, 20]
        first, last = slice(0, 20), slice(23, 38)
        probed = table[first, first].clone()
        probed[:, :15] += table[first, last]  # what couples blocks falls into their columns
        other = table[last, last] + table[last, first][:, :15]
        expected = torch.zeros(38, 38, dtype=torch.float64)
        expected[first, first], expected[last, last] = 0.5 * (probed + probed.T), 0.5 * (other + other.T)
        torch.testing.assert_close(group.dense(), expected)
        drained = list(group.drain())
        assert [members.tolist() for members, _ in drained] == [[*range(23, 38)], [*range(20)]]
        torch.testing.assert_close(drained[1][1], expected[first, first])
        assert group.blocks == [] == group.members


def test_a_block_that_is_not_finite_is_refused():
    operator = DenseOperator(torch.eye(4, dtype=torch.float64))
    group = BlockGroup(operator, BlockStructure(np.array([0, 0, 1, 1])), np.array([0, 1]))
    group.blocks[1][0, 1] = float("inf")
    with pytest.raises(InputError, match="finite products"):
        next(group.drain())


@pytest.mark.parametrize("seed", [0, 4])
def test_a_coupling_is_bounded_once_or_twice(seed):
    one, two = DenseOperator(symmetric(9, 1)), DenseOperator(symmetric(9, 2))
    probes = np.random.default_rng(seed).standard_normal((9, 6))
    difference = (one.matrix - two.matrix).numpy()
    loose = 25.3 * np.linalg.norm(difference @ probes, axis=0).max()
    assert coupling_bound(one, two, negligible=1.001 * loose, seed=seed) == pytest.approx(loose)
    assert one.matvecs == two.matvecs == 6
    sharp = coupling_bound(one, two, negligible=0.999 * loose, seed=seed)
    assert sharp == pytest.approx(np.linalg.norm(difference, 2))
    assert one.matvecs > 6
    assert coupling_bound(one, one, negligible=0.0) == 0.0
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="finite"):
            coupling_bound(DenseOperator(wrong * torch.ones(9, 9).double()), two, negligible=0.0)


def test_a_coupling_in_many_dimensions_is_the_bound_and_not_the_estimate():
    operator, zero = DenseOperator(symmetric(80)), DenseOperator(torch.zeros(80, 80, dtype=torch.float64))
    bound, estimate = norm_bound(DenseOperator(symmetric(80)), seed=2)
    assert bound > 1.1 * estimate
    assert coupling_bound(operator, zero, negligible=0.0, seed=2) == pytest.approx(bound, rel=1e-12)


def test_the_norm_of_a_small_operator_is_small():
    operator = DenseOperator(1e-3 * torch.eye(10, dtype=torch.float64))
    found = blocked_spectrum(operator, BlockStructure(THREE))
    assert found.norm == pytest.approx(1e-3)
    assert found.errors.max() < 1e-17


class Bounds:
    """In place of `coupling_bound`: prescribed answers, and what was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, one, two, *, negligible, seed):
        self.asked.append((type(one).__name__, negligible, seed))
        return self.answers.pop(0)


THREE = np.repeat([0, 1, 2, 3], [3, 3, 3, 1])


def decoupled():
    return DenseOperator(torch.where(inside(THREE, [0, 1, 2, 3]), symmetric(10), 0.0))


@pytest.mark.parametrize(
    ("answers", "memory", "spoilt"),
    [
        ([1e-3, 5e-4], 2**20, 5e-4),  # one group of three blocks, whose own bound is sharper
        ([1e-3, 5e-3], 2**20, 2**0.5 * 1e-3),  # or not: a probe is the sum of two other vectors
        ([1e-3, 5e-4], 8 * 9 * 2 + 71, 5e-4),  # a group of two and one of one, into which nothing falls
        ([1e-3, 5e-3], 8 * 9 * 2 + 71, 1e-3),
        ([1e-3], 8, 0.0),
    ],
)
def test_the_bound_is_what_is_dropped_and_what_falls_into_blocks(answers, memory, spoilt, monkeypatch):
    operator, bounds = decoupled(), Bounds(*answers)
    monkeypatch.setattr(blocks, "coupling_bound", bounds)
    found = blocked_spectrum(operator, BlockStructure(THREE), memory=memory, seed=5)
    exact = np.linalg.eigvalsh(operator.matrix.numpy())
    assert np.allclose(found.eigenvalues, exact, atol=1e-13)
    norm = np.abs(exact).max()
    assert found.norm == pytest.approx(norm)
    expected = 1e-3 + spoilt + 16 * EPS * 3**0.5 * norm
    assert np.allclose(found.errors, expected, rtol=1e-12, atol=0)
    rough = power_norm(operator, seed=5)
    assert bounds.asked[0] == ("DenseOperator", pytest.approx(1e-10 * rough, abs=0), 5)
    assert bounds.asked[1:] == [("BlockGroup", 0.0, 5)] * (len(answers) - 1)
    assert (found.dimension, found.complete, found.converged, found.reason) == (10, True, True, Reason.BLOCKS)
    assert found.vectors.shape == (10, 0)


@pytest.mark.parametrize(("factor", "asked"), [(0.95, 1), (1.05, 2)])
def test_what_falls_into_blocks_is_measured_from_1e_minus_9_of_the_norm(factor, asked, monkeypatch):
    operator = decoupled()
    dropped = factor * 1e-9 * power_norm(operator) / 2**0.5
    bounds = Bounds(dropped, 0.0)
    monkeypatch.setattr(blocks, "coupling_bound", bounds)
    blocked_spectrum(operator, BlockStructure(THREE))
    assert len(bounds.asked) == asked


@pytest.mark.parametrize(
    ("share", "answer"), [(0.95, "kept"), (1.05, "sure"), (1.9, "sure"), (2.1, "refused")]
)
def test_a_coupling_is_refused_beyond_a_twentieth_of_the_norm(share, answer, monkeypatch):
    operator = decoupled()
    rough = power_norm(operator, seed=0)
    dropped, asked = share * 0.05 * rough, []
    monkeypatch.setattr(blocks, "coupling_bound", Bounds(dropped, 0.0))
    monkeypatch.setattr(blocks, "norm_bound", lambda o, seed: asked.append(seed) or (2 * rough, 0.0))
    if answer == "refused":
        with pytest.raises(NotConvergedError, match=r"5 % of the operator's.*limit 5 %"):
            blocked_spectrum(operator, BlockStructure(THREE))
    else:
        found = blocked_spectrum(operator, BlockStructure(THREE))
        assert found.converged == (dropped <= 0.05 * found.norm)
        assert found.reason is (Reason.BLOCKS if found.converged else Reason.COUPLED)
    assert asked == ([] if answer == "kept" else [0])


def test_the_rough_norm_counts_where_the_bound_is_below_it(monkeypatch):
    operator = decoupled()
    rough = power_norm(operator, seed=0)
    monkeypatch.setattr(blocks, "coupling_bound", Bounds(0.06 * rough, 0.0))
    monkeypatch.setattr(blocks, "norm_bound", lambda o, seed: (0.5 * rough, 0.0))
    with pytest.raises(NotConvergedError, match="6 % of the operator's"):
        blocked_spectrum(operator, BlockStructure(THREE))


def test_changes_at_the_border_are_part_of_the_bound(monkeypatch):
    matrix = torch.where(inside(LABELS, [0, 1, 2, 3, 4]), symmetric(), 0.0)
    border = torch.as_tensor(LABELS < 0)
    operator = DenseOperator(torch.where(border[:, None] | border[None, :], symmetric(), matrix))
    monkeypatch.setattr(blocks, "coupling_bound", Bounds(1e-3, 5e-4))
    eigenvalues = blocks.Border.eigenvalues
    monkeypatch.setattr(blocks.Border, "eigenvalues", lambda self: (eigenvalues(self)[0], 2e-3))
    found = blocked_spectrum(operator, BlockStructure(LABELS))
    exact = np.linalg.eigvalsh(operator.matrix.numpy())
    assert np.allclose(found.eigenvalues, exact, atol=1e-13)
    expected = 1e-3 + 5e-4 + 2e-3 + 16 * EPS * 3**0.5 * np.abs(exact).max()
    assert np.allclose(found.errors, expected, rtol=1e-12, atol=0)


def test_progress_is_measured_in_products_and_predicted_in_cubes(monkeypatch):
    """Two seconds for four products; then a block of 2000 unknowns, 0.4 s of dense work, took another 0.4."""
    now, told = [100.0], []
    monkeypatch.setattr(blocks.time, "monotonic", lambda: now[0])
    operator = DenseOperator(torch.eye(3, dtype=torch.float64))
    operator.matvecs = 7
    structure = BlockStructure(np.repeat([0, 1], [2000, 1000]))
    meter = blocks._Meter(operator, structure, lambda *report: told.append(report))
    flops = (2000.0**3 + 1000.0**3) / 2e10
    products = 2000 + 6 * 3
    now[0], operator.matvecs = 102.0, 11
    meter("first")
    assert told[-1] == (pytest.approx(2.0), pytest.approx(0.5 * products + flops), "first")
    now[0] = 102.4
    meter("second", 2000)
    assert told[-1] == (pytest.approx(2.4), pytest.approx(0.5 * products + flops), "second")
    operator.matvecs = 7 + 3000  # more than predicted
    now[0] = 1600.4
    meter("third", 1000)
    each = (1500.4 - 0.45) / 3000
    assert told[-1] == (pytest.approx(3000 * each + 0.45), pytest.approx(3000 * each + flops), "third")
    assert meter.done == 2000.0**3 + 1000.0**3
    now[0] = 100.0  # no time at all
    operator.matvecs = 7
    meter("again")
    assert told[-1][:2] == (pytest.approx(0.45), pytest.approx(1e-6 * products + flops))
    silent = blocks._Meter(operator, structure, None)
    silent("nothing", 3)
    assert (silent.done, len(told)) == (27.0, 4)
