"""Counts by factorisation against eigenvalues."""

import numpy as np
import pytest
import torch

from manifold.errors import TooLargeError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.certificates import inertia as sylvester
from spectra.certificates.inertia import _Defect, _inertia, _to_eliminate, count_signs
from spectra.functionals.base import Decayed
from spectra.operators.assembly import Assembly
from spectra.operators.variation import DeflatedVariation, DenseOperator, SecondVariation, SymmetricOperator
from spectra.solvers.block_lanczos import norm_bound
from spectra.tasks.group_task import GroupTask


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


EPS = 2.0**-52


class Diagonal(SymmetricOperator):
    def __init__(self, *values):
        self.values, self.dimension = torch.tensor(values, dtype=torch.float64)[:, None], len(values)

    def _apply(self, block):
        return self.values * block


@pytest.mark.parametrize(("limit", "fits"), [(16 * 9, True), (16 * 9 - 1, False)])
def test_matrix_and_factor_are_counted_against_the_memory(limit, fits):
    operator = Diagonal(1.0, 2.0, -3.0)
    if fits:
        assert count_signs(operator, memory_limit=limit).negative == (1, 1)
    else:
        with pytest.raises(TooLargeError, match="3 dimensions need"):
            count_signs(operator, memory_limit=limit)


def test_an_eliminated_c_needs_no_memory():
    task = GroupTask(FiniteAbelianGroup((3,)), centred=True)
    points = torch.as_tensor(np.random.default_rng(0).standard_normal((9, task.dimension)))
    operator = SecondVariation(task.linearise(ParticleMeasure(points)))
    rest = 2 * operator.dimension // 3
    assert _to_eliminate(operator) is not None
    assert count_signs(operator, memory_limit=16 * rest**2).dimension == 54
    with pytest.raises(TooLargeError, match=f"{rest} dimensions"):
        count_signs(operator, memory_limit=16 * rest**2 - 1)


def test_the_band_is_64_times_the_rounding_and_what_is_uncertain():
    operator = Diagonal(-4.0, 1.0, 2.0, 3.0)
    rounding = 16 * EPS * 2 * 4
    found = count_signs(operator)
    assert found.shift == pytest.approx(64 * rounding, rel=1e-6, abs=0)
    assert rounding <= found.error < 2 * rounding
    assert found.dimension == 4
    wide = count_signs(operator, uncertainty=1e-3)
    assert wide.shift == pytest.approx(64e-3, rel=1e-6)
    assert wide.error == pytest.approx(1e-3, rel=1e-6)
    near = count_signs(Diagonal(-4.0, 0.05, 2.0, 3.0), uncertainty=1e-3)
    assert (near.negative, near.positive) == ((1, 2), (2, 3))


def test_known_zeros_are_in_no_count():
    found = count_signs(Diagonal(-4.0, 0.0, 0.0, 0.0, 1.0, 2.0), null=2)
    assert (found.negative, found.positive) == ((1, 2), (2, 3))


def test_the_zero_operator_has_no_signs():
    found = count_signs(Diagonal(0.0, 0.0, 0.0))
    assert (found.negative, found.positive, found.shift, found.error) == ((0, 0), (0, 0), 0.0, 0.0)
    assert found.dimension == 3


@pytest.mark.parametrize("side", [-1, 1])
def test_an_inexact_factorisation_is_paid_by_the_band(side, monkeypatch):
    """At one of both shifts the factor is that of a matrix moved by 1e-3."""
    factored = sylvester._factored

    def wrong(matrix, shift):
        return factored(matrix + 1e-3 * torch.eye(5, dtype=torch.float64) * (shift * side > 0), shift)

    monkeypatch.setattr(sylvester, "_factored", wrong)
    found = count_signs(Diagonal(-4.0, -2e-3, 1e-1, 2.0, 3.0))
    assert 9e-4 < found.error < found.shift < 2e-2
    # At a shift of nothing the defect of -2e-3 is -2e-3 - (-2e-3)^2 / (-2e-3 + 1e-3) = 2e-3.
    assert found.shift == pytest.approx(4 * 2e-3, rel=1e-6)
    assert (found.negative, found.positive) == ((1, 2), (3, 4))


@pytest.mark.parametrize(
    ("block", "negative"),
    [
        ([[1.0, 2.0], [2.0, -3.0]], 1),
        ([[-2.0, 1.0], [1.0, -3.0]], 2),
        ([[2.0, 1.0], [1.0, 3.0]], 0),
        ([[0.2, 0.1], [0.1, 0.3]], 0),
        ([[0.25, 0.1], [0.1, 0.2]], 0),
    ],
)
def test_the_inertia_of_pivots_of_both_sizes(block, negative):
    """A block of size two between single pivots of both signs, and a second one of signs of its own."""
    other = [[1.0, 2.0], [2.0, 3.0]]
    parts = (torch.tensor(part, dtype=torch.float64) for part in ([[-1.0]], block, [[5.0]], other, [[7.0]]))
    factor = torch.block_diag(*parts)
    assert _inertia(factor, torch.tensor([1, -3, -3, 4, -6, -6, 7])) == 1 + negative + 1
    assert int((torch.linalg.eigvalsh(factor) < 0).sum()) == 1 + negative + 1


def test_the_band_knows_the_bound_of_the_norm_and_not_its_estimate():
    operator = Diagonal(*np.linspace(-3, 4, 80))
    bound, estimate = norm_bound(operator)
    assert bound > 1.1 * estimate
    found = count_signs(operator)
    assert found.shift == pytest.approx(64 * 16 * EPS * 80**0.5 * bound, rel=1e-9, abs=0)


@pytest.mark.parametrize(("condition", "eliminated"), [(0.9e-6, False), (1.1e-6, True)])
def test_c_is_eliminated_where_its_part_is_well_conditioned(condition, eliminated, monkeypatch):
    task = GroupTask(FiniteAbelianGroup((3,)), centred=True)
    points = torch.as_tensor(np.random.default_rng(0).standard_normal((4, task.dimension)))
    full = SecondVariation(Decayed(task, 0.5).linearise(ParticleMeasure(points)))
    outputs = torch.diag(torch.tensor([3.0, 2.0, 4 * condition - 0.5, 3.5], dtype=torch.float64))
    build = Assembly.__init__

    def made(self, at):
        build(self, at)
        self.outputs = outputs

    monkeypatch.setattr(Assembly, "__init__", made)
    assert (_to_eliminate(full) is not None) == eliminated
    assert _to_eliminate(SecondVariation(full.at, parts=("local",))) is None
    assert _to_eliminate(DeflatedVariation(full)) is None


def test_the_defect_is_that_of_the_shifted_matrix():
    operator = with_spectrum([-1.0, 0.5, 2.0], 0)
    inverse = torch.diag(torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64))
    shifted = operator.matrix - 0.3 * torch.eye(3, dtype=torch.float64)
    expected = shifted - shifted @ inverse @ shifted
    found = _Defect(operator, 0.3, lambda block: inverse @ block)
    torch.testing.assert_close(found.apply(torch.eye(3, dtype=torch.float64)), expected)
    assert found.device == operator.device
