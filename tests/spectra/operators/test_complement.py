"""The complement of directions known per particle: an isometry that never touches them."""

import numpy as np
import pytest
import torch

from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.operators.complement import complement, complement_of_symmetries
from spectra.operators.variation import DeflatedVariation, SecondVariation
from spectra.solvers.block_lanczos import block_spectrum
from spectra.tasks.group_task import GroupTask

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


@pytest.mark.parametrize(("left", "removed"), [(0.9e-12, 1), (1.1e-12, 2)])
def test_a_direction_counts_from_1e_minus_12_of_its_size_beside_the_others(left, removed):
    directions = torch.zeros(1, 2, 4, dtype=torch.float64)
    directions[0, 0, 1] = 5
    directions[0, 1, 1:3] = torch.tensor([-3, 3 * left])
    space = complement(directions, keep=torch.ones(1, 4, dtype=torch.bool))
    assert space.dimension == 4 - removed
    assert (directions[0, :removed] @ space.lift(eye(4 - removed))).abs().max() < 1e-16


def test_the_tilt_is_the_rounding_of_a_direction_over_what_is_left_of_it():
    directions = torch.zeros(3, 2, 4, dtype=torch.float64)
    directions[:, 0, 0] = torch.tensor([1.0, -1.0, 0.5])
    directions[:, 1, 0], directions[:, 1, 2] = 1.0, torch.tensor([1e-2, 1e-3, 1e-1])
    keep = torch.ones(3, 4, dtype=torch.bool)
    unit = 8 * 2.0**-52  # eight units in the last place of the larger of both sizes
    assert complement(directions, keep=keep).tilt == pytest.approx(1e3 * unit, rel=1e-5, abs=0)
    assert complement(directions[:, :1], keep=keep).tilt == unit
    sizes = torch.tensor([0.5, 0.25, 40.0], dtype=torch.float64)
    assert complement(directions, keep=keep, sizes=sizes).tilt == pytest.approx(1e3 * unit, rel=1e-5, abs=0)
    sizes[0] = 40.0
    assert complement(directions, keep=keep, sizes=sizes).tilt == pytest.approx(
        40 / 1e-2 * unit, rel=1e-5, abs=0
    )
    assert complement(0 * directions, keep=keep, sizes=sizes).tilt == 0.0
    assert complement(directions[:, :0], keep=keep).tilt == 0.0
    directions[0] = 0  # nothing to take out of one particle: the others have their rounding still
    assert complement(directions[:, :1], keep=keep).tilt == unit


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_directions_along_the_axes_leave_the_others_as_they_are(sign):
    directions = torch.zeros(1, 2, 4, dtype=torch.float64)
    directions[0, 0, 1], directions[0, 1, 3] = 2 * sign, -3 * sign
    space = complement(directions, keep=torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(space.lift(eye(2)), eye(4)[:, [0, 2]], rtol=0, atol=0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_direction_next_to_an_axis_is_reflected_without_cancellation(sign):
    directions = torch.tensor([[[1e-4, sign, 0.0]]], dtype=torch.float64)
    lifted = complement(directions, keep=torch.ones(1, 3, dtype=torch.bool)).lift(eye(2))
    assert (directions[0] @ lifted).abs().max() < 1e-15


def test_a_small_angle_between_directions_costs_no_orthogonality():
    directions = fields(3)
    directions[:, 1] = directions[:, 0] + 1e-7 * directions[:, 1]
    directions[:, 2] = directions[:, 1] - 1e-9 * directions[:, 2]
    space = complement(directions, keep=everything())
    lifted = space.lift(eye(space.dimension))
    assert space.dimension == Q * (D - 3)
    torch.testing.assert_close(lifted.T @ lifted, eye(space.dimension), rtol=0, atol=1e-14)
    assert (torch.block_diag(*directions.mT).T @ lifted).abs().max() < 1e-14


def test_the_pivot_is_the_largest_entry_that_is_still_there():
    directions = torch.tensor([[[1e-9, 1.0, 1e-9, -0.6]]], dtype=torch.float64)
    keep = torch.tensor([[True, True, True, False]])
    directions = directions * keep
    space = complement(directions, keep=keep)
    assert space.inside.tolist() == [0, 2]
    found = space.to(torch.float32)
    assert found.reflectors.dtype == torch.float32
    assert (found.inside is space.inside, found.tilt) == (True, space.tilt)


def test_the_complement_of_symmetries_knows_the_sizes_of_the_particles():
    """A field along c of a particle whose c is small is rounded at the size of the particle."""
    task = GroupTask(FiniteAbelianGroup((5,)), loss="mse", centred=True)
    points = fields(1)[:, 0].repeat(1, 2)[:, : task.dimension]
    points[0, 4:8] = points[0, :4] * 1e-7
    at = task.linearise(ParticleMeasure(points))
    known = at.symmetry_fields()
    found = complement_of_symmetries(at)
    expected = complement(known, keep=torch.ones_like(points, dtype=torch.bool), sizes=points.norm(dim=1))
    assert found.tilt == expected.tilt
    assert found.dimension == expected.dimension == points.numel() - known.shape[1] * len(points)


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
