"""Counts by factorisation against eigenvalues."""

import pytest
import torch

from manifold.errors import TooLargeError
from manifold.groups import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.block_solvers import norm_bound
from spectra.functionals import Decayed
from spectra.group_task import GroupTask
from spectra.sylvester import _Defect, count_signs
from spectra.variation import DeflatedVariation, DenseOperator, SecondVariation, SymmetricOperator


def with_spectrum(values, seed):
    rng = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    frame = torch.linalg.qr(torch.randn(len(values), len(values), generator=rng, dtype=torch.float64))[0]
    return DenseOperator(frame @ (values[:, None] * frame.T))


@pytest.mark.parametrize("seed", range(8))
def test_planted_signs(seed):
    rng = torch.Generator().manual_seed(seed)
    sizes = 10 ** (6 * torch.rand(60, generator=rng, dtype=torch.float64) - 6)
    signs = torch.where(torch.rand(60, generator=rng) < 0.4, -1.0, 1.0)
    found = count_signs(with_spectrum(sizes * signs, seed))
    negative = int((signs < 0).sum())
    assert found.negative == (negative, negative)
    assert found.positive == (60 - negative, 60 - negative)
    assert 0 < found.error < found.shift < 1e-9


def test_zeros_stay_between_the_bounds():
    found = count_signs(with_spectrum([-1.0, -0.5, 0.0, 0.0, 0.0, 1e-3, 2.0], 1))
    assert found.negative == (2, 5)
    assert found.positive == (2, 5)


def test_second_variation_with_its_symmetries_apart():
    task = GroupTask(FiniteAbelianGroup((3,)), centred=True)
    rng = torch.Generator().manual_seed(0)
    measure = ParticleMeasure(0.6 * torch.randn(12, task.dimension, generator=rng, dtype=torch.float64))
    operator = DeflatedVariation(SecondVariation(task.linearise(measure)))
    values = torch.linalg.eigvalsh(operator.dense())
    found = count_signs(operator)
    assert found.dimension == 72 - 12
    assert found.negative[0] <= int((values < -1e-9).sum()) <= found.negative[1]
    assert found.positive[0] <= int((values > 1e-9).sum()) <= found.positive[1]
    zeros = int((values.abs() < 1e-9).sum())
    assert found.negative[1] - found.negative[0] == zeros


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize(("order", "neurons"), [(5, 9), (3, 12)])
def test_elimination_counts_as_eigenvalues_do(centred, decay, order, neurons):
    task = GroupTask(FiniteAbelianGroup((order,)), centred=centred)
    rng = torch.Generator().manual_seed(0)
    measure = ParticleMeasure(0.6 * torch.randn(neurons, task.dimension, generator=rng, dtype=torch.float64))
    operator = SecondVariation(Decayed(task, decay).linearise(measure))
    values = torch.linalg.eigvalsh(SymmetricOperator.dense(operator))  # by products with unit vectors
    found = count_signs(operator)
    assert found.shift < 1e-9 < 1e-3 * float(values.abs()[values.abs() > 1e-9].min())
    negative, positive = int((values < -1e-9).sum()), int((values > 1e-9).sum())
    zeros = len(values) - negative - positive
    assert zeros == (0 if centred or decay else 2 * neurons)  # free means: of a against b, and of c
    assert found.negative == (negative, negative + zeros)
    assert found.positive == (positive, positive + zeros)


def test_an_inexact_factorisation_widens_the_band():
    operator = with_spectrum([-1.0, -1e-6, 1e-6, 2.0], 3)
    exact = torch.linalg.inv(operator.matrix)
    bound, _ = norm_bound(_Defect(operator, 0.0, lambda block: exact @ block))
    assert bound < 1e-9  # rounding, with a condition of 2e6
    other = torch.linalg.inv(operator.matrix + 1e-3 * torch.eye(4, dtype=torch.float64))
    bound, _ = norm_bound(_Defect(operator, 0.0, lambda block: other @ block))
    assert bound > 9e-4


def test_what_does_not_fit_is_refused():
    with pytest.raises(TooLargeError, match="3 dimensions need"):
        count_signs(with_spectrum([1.0, 2.0, 3.0], 0), memory_limit=100)
