"""Rank, gap and tilt of a tangent space against small matrices whose answer is known."""

import numpy as np
import pytest
import torch

from spectra.operators.complement import complement
from spectra.operators.tangent import _graded_span, tangent_space, tangent_space_of_metric

EPS = 2.0**-52


def rows_of_size_one(rows, columns, seed=0):
    """A random matrix whose rows have a largest entry of one."""
    table = np.random.default_rng(seed).standard_normal((rows, columns))
    return torch.as_tensor(table / np.abs(table).max(1, keepdims=True))


def all_of(q, dimension):
    """The space of all half-densities on q particles."""
    keep = torch.ones(q, dimension, dtype=torch.bool)
    return complement(torch.zeros(q, 0, dimension, dtype=torch.float64), keep=keep)


# -- which rows count -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "rank"), [(0.95e6, 3), (1.05e6, 4)])
def test_a_row_counts_from_a_million_times_its_noise(ratio, rank):
    noise = torch.full((4,), 1e-12, dtype=torch.float64)
    noise[2] = 1 / ratio
    space = tangent_space(torch.eye(4, dtype=torch.float64), noise=noise)
    assert (space.rank, space.rank_bound) == (rank, 4)


@pytest.mark.parametrize(("size", "rank"), [(0.9e-290, 0), (1.1e-290, 4)])
def test_numbers_that_lose_digits_do_not_count(size, rank):
    gradients = size * torch.eye(4, dtype=torch.float64)
    space = tangent_space(gradients, noise=torch.zeros(4, dtype=torch.float64))
    assert (space.rank, space.rank_bound) == (rank, 4)
    assert (space.gap, space.tilt) == (0.0, 0.0)


def test_the_rank_is_at_most_that_of_rows_columns_functions_and_the_space():
    gradients = rows_of_size_one(6, 5)
    assert (tangent_space(gradients).rank, tangent_space(gradients).rank_bound) == (5, 5)
    gradients[4:] = 0
    space = tangent_space(gradients)
    assert (space.rank, space.rank_bound) == (4, 4)
    assert space.gap < 1e-15
    few = tangent_space(gradients, functions=2)
    assert (few.rank, few.rank_bound) == (2, 2)
    sizes = torch.linalg.svdvals(gradients)
    assert few.gap == pytest.approx(float(sizes[2] / sizes[1]))
    none = tangent_space(gradients, functions=0)
    assert (none.rank, none.rank_bound, none.gap, none.tilt) == (0, 0, 0.0, 0.0)
    keep = torch.tensor([[True, True, True], [True, False, False]])
    inside = complement(torch.zeros(2, 0, 3, dtype=torch.float64), keep=keep)
    assert tangent_space(gradients, inside).rank_bound == 4
    assert tangent_space(gradients[:, :3], inside).rank_bound == 3


@pytest.mark.parametrize("shape", [(7, 3), (3, 7)])
@pytest.mark.parametrize(("factor", "rank"), [(1.02, 2), (0.98, 3)])
def test_a_direction_counts_above_the_noise_of_the_largest(shape, factor, rank):
    """A change of the table by its noise, entry by entry, has a norm of its larger side times that."""
    left, right = (np.linalg.qr(rows_of_size_one(n, 3, n).numpy())[0] for n in shape)
    even = torch.as_tensor(left * np.array([1.0, 0.5, 1e-8]) @ right.T)
    even = even / even.abs().amax(1, keepdim=True)
    sizes = torch.linalg.svdvals(even)
    level = factor * float(sizes[2] / sizes[0]) / 7
    scale = torch.logspace(0, -3, shape[0], dtype=torch.float64)
    noise = 1e-3 * level * scale
    noise[1] = level * scale[1]  # the worst one tells
    space = tangent_space(scale[:, None] * even, noise=noise)
    assert (space.rank, space.rank_bound) == (rank, 3)


def test_where_the_gradients_fill_the_space_it_is_that_space():
    directions = torch.as_tensor(np.random.default_rng(1).standard_normal((2, 1, 3)))
    directions[1, 0] *= 1e-5
    space = complement(directions, keep=torch.ones(2, 3, dtype=torch.bool), sizes=torch.ones(2))
    assert space.tilt > 1e-12
    inside = space.lift(torch.as_tensor(np.random.default_rng(2).standard_normal((4, 9))))
    found = tangent_space(inside, space)
    assert (found.rank, found.rank_bound, found.tilt) == (4, 4, space.tilt)
    assert torch.equal(found.basis, space.lift(torch.eye(4, dtype=torch.float64)))
    fewer = tangent_space(inside[:, :3], space)
    assert (fewer.rank, fewer.rank_bound) == (3, 3)
    assert fewer.tilt != space.tilt
    assert (inside[:, :3] - fewer.basis @ (fewer.basis.T @ inside[:, :3])).norm() < 1e-14


# -- how far the space may be turned --------------------------------------------------------------------


def _graded(seed=0):
    """Gradients of rank 3 with rows of sizes 1 to 1e-4, and their noise."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(1, 1e-4, 8)
    table = scale[:, None] * (rng.standard_normal((8, 3)) @ rng.standard_normal((3, 5)))
    return torch.as_tensor(table), torch.as_tensor(scale * np.geomspace(1e-13, 1e-12, 8))


def test_the_tilt_is_above_what_the_noise_turns():
    gradients, noise = _graded()
    space = tangent_space(gradients, noise=noise)
    assert space.rank == 3
    turned = []
    for seed in range(20):
        change = noise[:, None] * torch.as_tensor(np.random.default_rng(seed).uniform(-1, 1, (8, 5)))
        moved = torch.linalg.svd(gradients + change)[0][:, :3]
        turned.append(float(torch.linalg.matrix_norm(moved - space.basis @ (space.basis.T @ moved), 2)))
    assert max(turned) < space.tilt < 1000 * max(turned)


@pytest.mark.parametrize("share", [0.9e-6, 1.1e-6])  # of the last row: in the second case it tells nothing
def test_the_tilt_is_that_of_the_left_vectors_moved_by_their_noise(share):
    """The same figure by a pseudo-inverse instead of a triangle."""
    gradients, noise = _graded()
    noise[:-1] *= 1e5
    noise[-1] = share * gradients[-1].abs().max()
    space = tangent_space(gradients, noise=noise)
    rows = gradients.abs().amax(1)
    even = gradients / rows[:, None]
    told = noise / rows < 1e-6
    assert told.sum() == (8 if share < 1e-6 else 7)
    even[~told] = 0
    left, sizes, _ = torch.linalg.svd(even, full_matrices=False)
    columns = (rows[:, None] * left)[:, :3].numpy()
    blur = float((noise / rows)[told].max()) * float(sizes[0]) * rows
    blur[~told] = 5**0.5 * noise[~told]
    noise_of_one = np.random.default_rng(0).standard_normal((8, 3)) / 8**0.5
    outside = np.eye(8) - columns @ np.linalg.pinv(columns)
    expected = blur.numpy()[:, None] * noise_of_one @ np.linalg.pinv(columns) / float(sizes[2])
    assert space.tilt == pytest.approx(16 * np.linalg.norm(outside @ expected), rel=1e-6, abs=0)


@pytest.mark.parametrize(("angle", "known"), [(0.098, True), (0.102, False)])
def test_an_angle_of_a_tenth_says_nothing(angle, known):
    columns = rows_of_size_one(6, 2).numpy()
    _, small = _graded_span(columns, np.full(6, 1e-9))
    _, tilt = _graded_span(columns, np.full(6, 1e-9 * angle / small))
    assert tilt == pytest.approx(angle) if known else tilt == float("inf")


def test_dependent_columns_span_nothing_that_is_known():
    columns = rows_of_size_one(6, 2).numpy()
    columns[:, 1] = 0
    assert _graded_span(columns, np.full(6, 1e-9))[1] == float("inf")


@pytest.mark.parametrize("first", ["large", "small"])
def test_small_rows_keep_their_digits(first):
    """Integer rows and tiny ones: what is orthogonal to the span is known by a solve of two equations."""
    small = 2.0**-40
    top, low = np.array([[3.0, 0, -2], [1, 4, 5]]), np.array([[2.0, -1, 7], [6, 3, 1]])
    along = low @ np.cross(*top)  # a combination that the large rows do not see
    below = np.array([-along[1], along[0]])
    above = -small * np.linalg.lstsq(top.T, low.T @ below, rcond=None)[0]
    order = [0, 1, 2, 3] if first == "large" else [3, 2, 1, 0]
    columns, normal = np.concatenate([top, small * low])[order], np.concatenate([above, below])[order]
    assert np.abs(normal @ columns).max() < 1e-26 / small
    basis, tilt = _graded_span(columns, EPS * np.abs(columns).max(1))
    assert np.abs(normal @ basis).max() < 1e-14 * np.linalg.norm(normal)
    assert np.allclose(basis.T @ basis, np.eye(3), atol=1e-14)
    assert tilt < 1e-13


# -- by a metric ----------------------------------------------------------------------------------------


def _metric(share):
    """A metric with a correlation of 1 - 2 s^2, whose singular values are 1 : s, and rows of size 1e3, 1."""
    close = 1 - 2 * share**2 / (1 + share**2)
    return torch.tensor([[1e6, 1e3 * close], [1e3 * close, 1.0]], dtype=torch.float64)


def test_a_metric_tells_singular_values_to_the_root_of_the_precision():
    least = 2 * 4 * (EPS / 2) ** 0.5  # both rows are known to 4 sqrt(eps / 2)
    ranks = {}
    for factor in (0.93, 1.07):
        found = tangent_space_of_metric(_metric(factor * least), all_of(2, 1), functions=2)
        assert found.rank_bound == 2
        if found.rank == 1:
            assert found.gap == pytest.approx(factor * least, rel=0.05)
        ranks[factor] = found.rank
    assert ranks == {0.93: 1, 1.07: 2}


def test_what_points_move_adds_to_the_noise_of_a_metric():
    rows = torch.tensor([1e3, 1.0], dtype=torch.float64)
    for moved, rank in ((0.0, 2), (0.9, 2), (1.1, 1)):  # times twice what the metric is known to
        noise = moved * 2 * 4 * (EPS / 2) ** 0.5 * rows
        share = 3 * 2 * 4 * (EPS / 2) ** 0.5
        found = tangent_space_of_metric(_metric(share), all_of(2, 1), functions=2, moved=noise)
        assert found.rank == rank


def test_a_metric_spans_what_its_gradients_span():
    gradients = torch.zeros(6, 3, dtype=torch.float64)
    gradients[:5] = torch.logspace(0, -3, 5, dtype=torch.float64)[:, None] * rows_of_size_one(5, 3)
    metric = gradients @ torch.diag(torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64)) @ gradients.T
    metric[5, 5] = -1e-20  # rounding of zero
    found = tangent_space_of_metric(metric, all_of(2, 3), functions=4)
    assert (found.rank, found.rank_bound) == (3, 4)
    left = gradients - found.basis @ (found.basis.T @ gradients)
    assert left.norm() < 1e-9 * gradients.norm()
