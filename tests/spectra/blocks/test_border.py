"""Blocks joined by a border against dense spectra."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError, TooLargeError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.blocks import border as border_module
from spectra.blocks.border import Border
from spectra.blocks.partition import BlockStructure, check_blocks, frequency_blocks
from spectra.blocks.spectrum import CutBlocks, blocked_spectrum
from spectra.functionals.base import Decayed
from spectra.networks.constructions import f4_6
from spectra.operators.variation import DenseOperator, SecondVariation
from spectra.tasks.group_task import GroupTask


def repaired(orders, decay=0.0):
    """F4/6, where six neurons carry every output frequency, with its border."""
    task = GroupTask(FiniteAbelianGroup(orders))
    functional = Decayed(task, decay) if decay else task
    measure = f4_6(task.group).measure()
    full = SecondVariation(functional.linearise(measure))
    return full, frequency_blocks(functional, measure, largest=50)


@pytest.mark.parametrize("orders", [(7,), (11,), (3, 5), (2, 5)])
@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_repaired_solutions_are_complete(orders, decay):
    full, structure = repaired(orders, decay)
    assert 0 < len(structure.border) < full.dimension / 2
    assert structure.products < full.dimension / 2
    found = blocked_spectrum(full, structure)
    exact = np.linalg.eigvalsh(full.dense().numpy())
    assert np.abs(found.eigenvalues - exact).max() <= found.errors[0] < 1e-9 * found.norm
    assert found.complete
    assert found.counts.negative == int((exact < -1e-9).sum())


def test_only_what_the_border_sees_is_solved():
    full, structure = repaired((23,))
    sizes = []
    solve = torch.linalg.eigvalsh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "eigvalsh", lambda a: sizes.append(len(a)) or solve(a))
        blocked_spectrum(full, structure)
    assert len(structure.border) < sizes[-1] < 0.4 * full.dimension


def _arrow(seed, copies, size, border, coupling=0.0):
    """Copies of one block joined by a border, and a coupling between blocks that none should have."""
    rng = np.random.default_rng(seed)
    block = rng.standard_normal((size, size))
    matrix = np.kron(np.eye(copies), block + block.T)
    edge = rng.standard_normal((copies * size, border))
    corner = rng.standard_normal((border, border))
    matrix = matrix + coupling * rng.standard_normal(matrix.shape)
    whole = np.block([[matrix, edge], [edge.T, corner]])
    labels = np.concatenate([np.repeat(np.arange(copies), size), np.full(border, -1)])
    order = rng.permutation(len(whole))
    return torch.as_tensor(0.5 * (whole + whole.T))[order][:, order], BlockStructure(labels[order])


@pytest.mark.parametrize("seed", range(5))
def test_arrow_matrices(seed):
    matrix, structure = _arrow(seed, 9, 4, 5)
    found = blocked_spectrum(DenseOperator(matrix), structure)
    exact = np.linalg.eigvalsh(matrix.numpy())
    assert np.abs(found.eigenvalues - exact).max() <= found.errors[0] < 1e-9 * found.norm
    assert np.abs(CutBlocks(DenseOperator(matrix), structure).dense().numpy() - matrix.numpy()).max() < 1e-14


@pytest.mark.parametrize("coupling", [1e-6, 1e-3])
def test_what_couples_blocks_is_in_the_bound(coupling):
    matrix, structure = _arrow(1, 9, 4, 5, coupling)
    found = blocked_spectrum(DenseOperator(matrix), structure)
    off = np.abs(found.eigenvalues - np.linalg.eigvalsh(matrix.numpy())).max()
    assert 0.01 * coupling < off <= found.errors[0]


def test_nearly_equal_eigenvalues_and_faint_couplings_are_in_the_error(monkeypatch):
    monkeypatch.setattr(border_module, "ALIKE", 1e-2)
    monkeypatch.setattr(border_module, "UNSEEN", 1e-2)
    rng = np.random.default_rng(0)
    values = np.repeat([-1.0, 0.5, 2.0], 20) + 1e-3 * rng.standard_normal(60)
    edge = rng.standard_normal((60, 8)) * np.geomspace(1, 1e-4, 8)
    matrix = torch.as_tensor(np.block([[np.diag(values), edge], [edge.T, np.eye(8)]]))
    border = Border(DenseOperator(matrix), np.arange(60, 68))
    border.absorb_diagonal(torch.arange(60), torch.as_tensor(values))
    found, error = border.eigenvalues()
    off = np.abs(np.sort(found) - np.linalg.eigvalsh(matrix.numpy())).max()
    assert 1e-4 < off <= error < 0.1


def test_blocks_that_are_no_copies_are_refused(monkeypatch):
    monkeypatch.setattr(border_module, "LEFT_LIMIT", 20)
    matrix, structure = _arrow(2, 9, 4, 5)
    with pytest.raises(TooLargeError, match="5 unknowns of neurons that carry many output frequencies"):
        blocked_spectrum(DenseOperator(matrix), structure)


def test_a_border_that_does_not_fit_is_refused():
    _, structure = _arrow(0, 9, 4, 5)
    check_blocks(structure)
    with pytest.raises(TooLargeError, match=r"5 unknowns of neurons .* GiB"):
        check_blocks(structure, memory_limit=2**20)
    check_blocks(
        BlockStructure(structure.labels[structure.labels >= 0]), memory_limit=1
    )  # no border: as ever


# -- numbers written out --------------------------------------------------------------------------------

EPS = 2.0**-52


def edge_of(values, rows, corner):
    """An arrow matrix with a diagonal, and its border with that diagonal absorbed."""
    k, r = rows.shape
    whole = np.block([[np.diag(values), rows], [rows.T, corner]])
    border = Border(DenseOperator(torch.as_tensor(whole)), np.arange(k, k + r))
    border.absorb_diagonal(torch.arange(k), torch.as_tensor(values))
    return whole, border


def table(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("border", [1, 5, 16, 17, 40])
def test_columns_are_taken_in_chunks(border):
    size = border + 3
    matrix = table(size, size)
    operator, told = DenseOperator(torch.as_tensor(matrix + matrix.T)), []
    found = Border(operator, np.arange(border), lambda: told.append(operator.matvecs))
    assert told == [*range(16, border, 16), border]
    assert np.allclose(found._coupling.numpy(), (matrix + matrix.T)[:, :border])
    assert np.allclose(found._corner.numpy(), (matrix + matrix.T)[:border, :border])


def test_a_corner_that_is_not_quite_symmetric_is_made_so():
    class Skew(DenseOperator):
        def __init__(self, matrix):
            super().__init__(matrix)
            self.matrix = matrix

    matrix = torch.as_tensor(table(4, 4))
    found = Border(Skew(matrix), np.array([1, 3]))
    inside = matrix[[1, 3]][:, [1, 3]]
    assert torch.equal(found._corner, 0.5 * (inside + inside.T))


def test_products_that_are_not_finite_are_refused():
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 1] = float("nan")
    with pytest.raises(InputError, match="finite"):
        Border(DenseOperator(matrix), np.array([1]))


@pytest.mark.parametrize(("spread", "together"), [(0.9, True), (1.1, False)])
def test_eigenvalues_count_as_one_within_1e_minus_11_of_the_norm(spread, together):
    """Two values seen along one direction: taken as one, one of the two is free of the border."""
    values = np.array([1.0, 1.0 + 4e-11 * spread, -2.0])
    rows = np.array([[1.0], [2.0], [0.5]])
    _, border = edge_of(values, rows, np.array([[4.0]]))  # the corner is the norm
    found, error = border.eigenvalues()
    rounding = 2 * EPS * ((3 if together else 4) + 1) * np.abs(found).max()
    expected = 2e-11 * spread if together else 0.0
    assert error == pytest.approx(expected + rounding, rel=1e-4, abs=0)
    middle = 1.0 + 2e-11 * spread
    assert (np.abs(found - middle).min() < 1e-14) == together


@pytest.mark.parametrize(("size", "kept"), [(1.1, True), (0.9, False)])
def test_couplings_count_from_1e_minus_11_of_the_norm(size, kept):
    values = np.array([8.0, -3.0])
    rows = np.array([[1.0, 0.0], [0.0, 8e-11 * size]])
    _, border = edge_of(values, rows, np.eye(2))
    found, error = border.eigenvalues()
    rounding = 2 * EPS * ((4 if kept else 3) + 1) * np.abs(found).max()
    assert error == pytest.approx((0.0 if kept else 8e-11 * size) + rounding, rel=1e-4, abs=0)


def test_what_is_dropped_adds_in_squares_and_widths_do_not(monkeypatch):
    monkeypatch.setattr(border_module, "ALIKE", 0.1)
    monkeypatch.setattr(border_module, "UNSEEN", 0.1)
    values = np.array([-10.0, -9.8, 1.0, 1.6, 4.0, 4.4])
    rows = np.array([[0.3, 0, 0], [0, 0.4, 0], [0, 0.2, 0], [0, 0, 0.1], [3.0, 0, 0], [0, 0, 0]])
    whole, border = edge_of(values, rows, np.zeros((3, 3)))
    found, error = border.eigenvalues()
    # Three pairs, whose widths are 0.1, 0.3 and 0.2; of each the largest of the couplings lost.
    assert error == pytest.approx(0.3 + np.sqrt(0.4**2 + 0.2**2))
    assert sorted(found)[:2] == pytest.approx([-9.9, -9.9])
    assert np.abs(np.sort(found) - np.linalg.eigvalsh(whole)).max() <= error
    free = [value for value in found if abs(value - 1.3) < 1e-12]
    assert len(free) == 2
    seen = np.linalg.eigvalsh(np.array([[4.2, 3.0, 0, 0], [3.0, 0, 0, 0], [0] * 4, [0] * 4]))
    expected = np.sort([-9.9, -9.9, 1.3, 1.3, 4.2, *seen])
    assert np.sort(found) == pytest.approx(expected)


def test_blocks_go_to_their_eigenvectors_with_the_rounding_of_the_largest():
    rng = np.random.default_rng(3)
    one, two = (part + part.T for part in (rng.standard_normal((4, 4)), rng.standard_normal((2, 2))))
    edge, corner = rng.standard_normal((6, 1)), np.array([[0.5]])
    blocks = np.zeros((6, 6))
    blocks[:4, :4], blocks[4:, 4:] = one, two
    whole = np.block([[blocks, edge], [edge.T, corner]])
    border = Border(DenseOperator(torch.as_tensor(whole)), np.array([6]))
    border.absorb(torch.arange(4), torch.as_tensor(one))
    border.absorb(torch.arange(4, 6), torch.as_tensor(two))
    found, error = border.eigenvalues()
    assert np.allclose(np.sort(found), np.linalg.eigvalsh(whole), atol=1e-13)
    assert error == pytest.approx(2 * EPS * (7 + 4) * np.abs(found).max(), rel=1e-6, abs=0)


def test_the_norm_is_that_of_blocks_or_of_the_corner():
    """Faint couplings beside a large eigenvalue of either sign, or a large corner, are dropped."""
    faint = np.array([[1e-9]])
    for values, corner in (([-1e3], [[1.0]]), ([1.0], [[1e3]]), ([1.0], [[-1e3]])):
        _, border = edge_of(np.array(values), faint, np.array(corner))
        _, error = border.eigenvalues()
        assert error == pytest.approx(1e-9 + 4 * EPS * 1e3, rel=1e-3, abs=0)
    _, border = edge_of(np.array([1.0]), faint, np.array([[1.0]]))
    assert border.eigenvalues()[1] < 1e-14
    _, border = edge_of(np.array([1e-4]), 1e-4 * faint, np.array([[1e-4]]))  # nor is there a norm of one
    found, error = border.eigenvalues()
    assert error < 1e-18
    assert found.dtype == np.float64


@pytest.mark.parametrize(("limit", "fits"), [(7, True), (6, False)])
def test_the_dense_rest_is_limited_with_its_border(limit, fits, monkeypatch):
    monkeypatch.setattr(border_module, "LEFT_LIMIT", limit)
    whole, border = edge_of(np.arange(1.0, 6), table(5, 2), np.eye(2))
    if fits:
        assert np.allclose(np.sort(border.eigenvalues()[0]), np.linalg.eigvalsh(whole))
    else:
        with pytest.raises(TooLargeError, match="see more than 6 directions"):
            border.eigenvalues()
