"""The assembled matrix and its inverse against products with unit vectors."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.functionals.base import Decayed
from spectra.operators.assembly import Assembly, can_assemble, elimination_inverse
from spectra.operators.variation import SecondVariation, SymmetricOperator
from spectra.tasks.group_task import GroupTask

CASES = [
    ((5,), "projected_mse", False, 0.0),
    ((4,), "projected_mse", True, 0.3),
    ((2, 3), "mse", False, 0.0),
    ((5,), "mse", True, 0.1),
]


def _problem(orders, loss, centred, decay):
    task = GroupTask(FiniteAbelianGroup(orders), loss=loss, centred=centred)
    functional = Decayed(task, decay) if decay else task
    rng = np.random.default_rng(3)
    points = torch.as_tensor(rng.standard_normal((6, task.dimension)))
    weights = torch.as_tensor(rng.uniform(0.1, 0.3, 6))
    measure = ParticleMeasure(points, weights)
    at = functional.linearise(measure)
    return at, SymmetricOperator.dense(SecondVariation(at))  # by products with unit vectors


@pytest.mark.parametrize("case", CASES)
def test_matrix_is_that_of_the_products(case):
    at, reference = _problem(*case)
    found = Assembly(at).matrix()
    torch.testing.assert_close(found, reference, rtol=1e-12, atol=1e-12 * float(reference.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_inverse_by_elimination(case):
    at, reference = _problem(*case)
    below = float(torch.linalg.eigvalsh(reference)[0]) - 0.5
    solve = elimination_inverse(Assembly(at), below)
    rng = np.random.default_rng(0)
    right = torch.as_tensor(rng.standard_normal((len(reference), 3)))
    right = right / right.norm(dim=0)
    shifted = reference - below * torch.eye(len(reference), dtype=torch.float64)
    expected = torch.linalg.solve(shifted, right)
    torch.testing.assert_close(solve(right, None), expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


def test_a_shift_inside_the_spectrum_is_refused():
    at, reference = _problem(*CASES[0])
    inside = float(torch.linalg.eigvalsh(reference)[2])
    assert elimination_inverse(Assembly(at), inside) is None


def test_the_operator_uses_it():
    at, reference = _problem(*CASES[1])
    operator = SecondVariation(at)
    size = float(reference.abs().max())
    torch.testing.assert_close(operator.dense(), reference, rtol=1e-12, atol=1e-12 * size)
    assert operator.matvecs == 0


def test_other_structures_are_refused():
    group = FiniteAbelianGroup((5,))
    points = torch.ones(2, 10, dtype=torch.float64)
    tied = GroupTask(group, tied=True).linearise(ParticleMeasure(points))
    entropy = GroupTask(group, loss="cross_entropy").linearise(ParticleMeasure(points.repeat(1, 2)[:, :15]))
    assert not can_assemble(tied)
    assert not can_assemble(entropy)
    with pytest.raises(InputError):
        Assembly(tied)
