"""The complement of directions known per particle: an isometry that never touches them."""

import numpy as np
import pytest
import torch

from manifold.groups import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.block_solvers import block_spectrum
from spectra.complement import complement, complement_of_symmetries
from spectra.group_task import GroupTask
from spectra.variation import DeflatedVariation, SecondVariation

Q, D = 5, 7


def fields(count, seed=0):
    return torch.randn(Q, count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everything():
    return torch.ones(Q, D, dtype=torch.bool)


def eye(size):
    return torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_an_isometry_orthogonal_to_the_directions(count):
    directions = fields(count)
    space = complement(directions, keep=everything())
    assert space.dimension == Q * (D - count)
    lifted = space.lift(eye(space.dimension))
    torch.testing.assert_close(lifted.T @ lifted, eye(space.dimension), rtol=0, atol=1e-13)
    removed = torch.block_diag(*directions.mT)
    assert removed.shape == (Q * D, Q * count)
    assert (removed.T @ lifted).norm() < 1e-12
    torch.testing.assert_close(space.project(lifted), eye(space.dimension), rtol=0, atol=1e-13)


def test_zero_and_dependent_directions_take_nothing_away():
    directions = fields(3)
    directions[0, 1] = 0
    directions[1, 2] = directions[1, 0] - 2 * directions[1, 1]
    directions[2] = 0
    space = complement(directions, keep=everything())
    assert space.dimension == Q * D - 3 * Q + 1 + 1 + 3
    lifted = space.lift(eye(space.dimension))
    assert (torch.block_diag(*directions.mT).T @ lifted).abs().max() < 1e-12


def test_directions_that_nearly_depend_turn_the_space():
    directions = fields(2)
    assert complement(directions, keep=everything()).tilt < 1e-13
    directions[3, 1] = directions[3, 0] + 1e-8 * directions[3, 1]
    assert 1e-9 < complement(directions, keep=everything()).tilt < 1e-6


def test_coordinates_that_are_not_kept_are_not_there():
    keep = everything()
    keep[1] = False
    keep[2, 3:] = False
    directions = fields(1) * keep[:, None]
    space = complement(directions, keep=keep)
    assert space.dimension == int(keep.sum()) - (Q - 1)
    lifted = space.lift(eye(space.dimension)).reshape(Q, D, -1)
    assert not lifted[~keep].any()


def test_blocks_are_compressed_as_the_whole_is():
    blocks = torch.randn(Q, D, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    blocks = blocks + blocks.mT
    space = complement(fields(2), keep=everything())
    lifted = space.lift(eye(space.dimension))
    expected = torch.linalg.eigvalsh(lifted.T @ torch.block_diag(*blocks) @ lifted)
    found = space.block_eigenvalues(blocks).sort().values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def two_scales(task, q, seed=0):
    """A few strong eigenvalues far above the rest: none of what was removed may fill the list."""
    rng = np.random.default_rng(seed)
    points = 0.5 * rng.standard_normal((q, task.dimension))
    points[0] *= 2
    return ParticleMeasure(torch.as_tensor(points))


@pytest.mark.parametrize("centred", [True, False])
def test_no_eigenvalue_is_invented_at_either_end(centred):
    """Removed directions once got an eigenvalue of half the norm, and were listed with it."""
    task = GroupTask(FiniteAbelianGroup((7,)), centred=centred)
    full = SecondVariation(task.linearise(two_scales(task, 20)))
    operator = DeflatedVariation(full)
    exact = torch.linalg.eigvalsh(operator.dense()).numpy()
    everything = torch.linalg.eigvalsh(full.dense()).numpy()
    found = block_spectrum(operator, 30)
    assert not found.complete
    assert found.converged
    (high, high_error), (low, low_error) = found.largest(30), found.smallest(30)
    assert (np.abs(high - exact[::-1][:30]) <= high_error).all()
    assert (np.abs(low - exact[:30]) <= low_error).all()
    # A compression never exceeds the operator (Cauchy interlacing).
    assert (high <= everything[::-1][:30] + high_error).all()
    assert (low >= everything[:30] - low_error).all()


def test_neurons_that_no_function_reaches_are_left_out():
    task = GroupTask(FiniteAbelianGroup((5,)))
    points = two_scales(task, 6).points
    points[1] = 0  # dead
    points[2, 10:] = 0  # no c: only c can move the outputs
    points[3, :10] = 0  # never active: nothing can
    at = task.linearise(ParticleMeasure(points))
    space = complement_of_symmetries(at)
    gradients = SecondVariation(at).weighted_gradients()
    assert int(torch.linalg.matrix_rank(gradients)) == space.dimension
    lifted = space.lift(eye(space.dimension))
    outside = gradients - lifted @ (lifted.T @ gradients)
    assert outside.norm() < 1e-12 * gradients.norm()
