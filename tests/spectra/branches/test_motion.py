"""Motion of eigenvalues: counts by hand, derivatives by autodiff and differences."""

import numpy as np
import pytest
import torch

from manifold.groups.abelian import FiniteAbelianGroup
from spectra.branches import motion
from spectra.branches.motion import (
    curvature_form,
    curvature_response,
    monotony,
    output_curvature,
    split_moves,
    third_derivative_range,
)
from spectra.networks.group_network import GroupNetwork
from spectra.tasks.group_task import GroupTask


def test_a_move_as_large_as_both_bounds_counts_for_both_directions():
    """Bounds 1/4 and 1/2 at the two ends: moves of 3/4 are inside, a move of 1 is not."""
    errors = np.array([[0.25] * 4, [0.5] * 4])
    found = monotony(np.array([[0.0] * 4, [0.75, -0.75, 1.0, -1.0]]), errors)
    assert (found.hessian, found.jacobian, found.moves) == (3 / 4, 3 / 4, 4)
    assert (found.hessian_steps, found.jacobian_steps) == (0.0, 0.0)


def test_bounds_are_those_of_both_ends_of_each_step():
    """Errors that differ from step to step: 1 + 2, 2 + 4 and 4 + 8."""
    errors = np.array([[1.0], [2.0], [4.0], [8.0]])
    values = np.array([[0.0], [3.5], [9.0], [21.5]])  # beyond, inside, beyond
    found = monotony(values, errors)
    assert (found.hessian, found.jacobian) == (1 / 3, 1.0)
    assert split_moves(values, errors, values).bound.tolist() == [[3], [6], [12]]


def test_steps_count_where_something_moves_at_all():
    """Of four steps one moves nothing; one goes down only, one up only, one both ways."""
    nan = np.nan
    values = np.array([[0.0, 5.0], [-1.0, 4.0], [nan, nan], [1.0, 1.0], [2.0, 1.5], [3.0, nan]])
    found = monotony(values, np.where(np.isnan(values), nan, 0.01))
    assert found.moves == 5
    assert (found.hessian, found.jacobian) == (2 / 5, 3 / 5)
    assert (found.hessian_steps, found.jacobian_steps) == (1 / 3, 2 / 3)
    empty = monotony(values[:, :0], values[:, :0])
    assert empty.moves == 0
    shares = [empty.hessian, empty.jacobian, empty.hessian_steps, empty.jacobian_steps]
    assert np.isnan(shares).all()


def test_a_move_is_certain_beyond_its_bound():
    values = np.array([[0.0, 0.0, 0.0], [0.75, 0.76, -0.76]])
    moves = split_moves(values, np.array([[0.25] * 3, [0.5] * 3]), np.zeros((2, 3)))
    assert moves.bound.tolist() == [[0.75] * 3]
    assert moves.change.tolist() == [[0.75, 0.76, -0.76]]
    assert (moves.gram, moves.curvature.tolist()) == (pytest.approx(moves.change), [[0.0] * 3])
    assert moves.leading(1) == {"moves": 1, "by_gram": 1.0, "by_curvature": 0.0, "by_local": 0.0}
    assert moves.leading(-1)["moves"] == 1
    still = split_moves(values, np.ones((2, 3)), np.zeros((2, 3))).leading(1)
    assert still.pop("moves") == 0
    assert np.isnan(list(still.values())).all()
    gone = split_moves(np.array([[1.0], [np.nan]]), np.zeros((2, 1)), np.array([[0.0], [np.nan]]))
    assert np.isnan(gone.curvature).all()


def test_a_change_is_the_sum_of_its_parts_and_led_by_the_largest():
    values, local = np.array([[0.0] * 4, [1.0, 1.0, -1.0, 1.0]]), np.array([[0.0] * 4, [0.9, 0.2, 0.5, 0.1]])
    bent = np.array([[0.0, 0.5, -1.4, 0.1]])
    moves = split_moves(values, np.full((2, 4), 1e-9), local, bent)
    assert moves.gram[0] == pytest.approx([0.1, 0.3, -0.1, 0.8])
    assert moves.leading(1) == {
        "moves": 3, "by_gram": pytest.approx(1 / 3), "by_curvature": pytest.approx(1 / 3),
        "by_local": pytest.approx(1 / 3),
    }  # fmt: skip
    assert moves.leading(-1) == {"moves": 1, "by_gram": 0.0, "by_curvature": 1.0, "by_local": 0.0}


@pytest.mark.parametrize("orders", [(3,), (4,)])
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_response_of_the_outputs_by_differences(orders, some, flat):
    """Outputs of the plain network moved along ``vector / sqrt(w)``, or reweighted by ``sqrt(w) vector``."""
    group = FiniteAbelianGroup(orders)
    n, width = group.order, 3
    rng = torch.Generator().manual_seed(n)
    network = GroupNetwork(group, *torch.randn(3, n, width, generator=rng, dtype=torch.float64))
    pairs = np.array([[1, 0], [2, 2], [0, 1]])
    task = GroupTask(group, loss="cross_entropy", pairs=pairs if some else None)
    measure = network.measure()
    size = width if flat else measure.points.numel()
    vectors = torch.randn(size, 2, generator=rng, dtype=torch.float64)

    def outputs(points, weights):
        """``sum_j w_j c_j (a_j + b_j)^2`` by the network's own scale, which is that of equal weights."""
        moved = network.with_points(points)
        squares = (moved.a[:, None] + moved.b[None]).square()
        found = torch.einsum("j,xyj,zj->xyz", weights * width * network.output_scale, squares, moved.c)
        rows = pairs if some else np.stack(np.divmod(np.arange(n * n), n), 1)
        return found[rows[:, 0], rows[:, 1]].reshape(-1).numpy()

    assert outputs(measure.points, measure.weights) == pytest.approx(
        network.outputs().reshape(n * n, n).numpy().reshape(-1) if not some
        else network.outputs()[pairs[:, 0], pairs[:, 1]].reshape(-1).numpy()
    )  # fmt: skip
    found, step = curvature_response(task, measure, vectors, flat=flat), 1e-5
    root = measure.weights.sqrt()
    for column in range(2):
        ends = []
        for sign in (1, -1):
            if flat:
                ends.append(
                    outputs(measure.points, measure.weights + sign * step * root * vectors[:, column])
                )
            else:
                field = vectors[:, column].reshape(measure.points.shape) / root[:, None]
                ends.append(outputs(measure.points + sign * step * field, measure.weights))
        assert found[:, column] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-8)
    assert curvature_response(task, measure, vectors[:, :0], flat=flat).shape == (len(found), 0)
    if not flat:
        assert (curvature_response(task, measure, vectors) == found).all()


def softmax_loss(targets, shape):
    return lambda flat: torch.nn.functional.cross_entropy(flat.reshape(shape), targets)


def test_curvature_along_responses_is_the_second_derivative():
    rng = torch.Generator().manual_seed(3)
    f = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    loss = softmax_loss(torch.tensor([0, 1, 2, 1]), f.shape)
    hessian = torch.func.hessian(loss)(f.flatten())
    response = torch.randn(12, 5, generator=rng, dtype=torch.float64)
    expected = (response * (hessian @ response)).sum(0)
    assert curvature_form(f.numpy(), response.numpy()) == pytest.approx(expected.numpy())
    values = output_curvature(f.numpy())
    assert values == pytest.approx(torch.linalg.eigvalsh(hessian).numpy(), abs=1e-14)


@pytest.mark.parametrize("chunk", [1, 2 * 8 * 16, 2**26])
def test_the_condition_is_the_same_in_pieces(chunk, monkeypatch):
    monkeypatch.setattr(motion, "CHUNK_BYTES", chunk)
    rng = torch.Generator().manual_seed(1)
    f = 2 * torch.randn(5, 4, generator=rng, dtype=torch.float64)
    targets = torch.tensor([0, 2, 1, 3, 0])
    loss = softmax_loss(targets, f.shape)
    slope = torch.func.grad(loss)(f.flatten())
    _, dense = torch.func.jvp(torch.func.hessian(loss), (f.flatten(),), (slope,))
    expected = torch.linalg.eigvalsh(dense)
    found = third_derivative_range(f.numpy(), targets.numpy())
    assert found == pytest.approx((float(expected[0]), float(expected[-1])), rel=1e-10)


def test_the_condition_can_be_met():
    """Two outputs: D^3 L times the slope is ``(p' (1 - 2p)) slope [1 -1; -1 1]``, of one sign."""
    p = 1 / (1 + np.exp(-1.0))
    low, high = third_derivative_range(np.array([[1.0, 0.0]]), np.array([0]))
    # L = log(1 + exp(-u)) with u = f0 - f1: along grad L = -(1 - p) (1, -1) u moves by -2 (1 - p).
    third = p * (1 - p) * (1 - 2 * p) * (-2 * (1 - p))
    assert (low, high) == pytest.approx((min(0, 2 * third), max(0, 2 * third)), abs=1e-15)
