"""Blocks joined by a border against dense spectra."""

import numpy as np
import pytest
import torch

from manifold.errors import TooLargeError
from manifold.groups import FiniteAbelianGroup
from spectra import border as border_module
from spectra.blocks import CutBlocks, blocked_spectrum
from spectra.border import Border
from spectra.constructions import f4_6
from spectra.functionals import Decayed
from spectra.group_task import GroupTask
from spectra.partition import BlockStructure, check_blocks, frequency_blocks
from spectra.variation import DenseOperator, SecondVariation


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
