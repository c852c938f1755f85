"""The group functional against plain torch networks and dense autodiff Hessians."""

import itertools

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.networks.group_network import GroupNetwork
from spectra.tasks.group_task import LOSSES, GroupTask
from tests import oracles

GROUPS = [(2,), (3,), (4,), (5,), (7,), (2, 3), (2, 2, 3)]
CASES = [
    *itertools.product(GROUPS, LOSSES, [False], [False], [None]),
    *itertools.product([(4,), (5,), (2, 3)], LOSSES, [True], [False, True], [None]),
    *itertools.product([(4,), (5,)], LOSSES, [False], [False, True], [0.8, 0.3]),
]


def make(orders, centred, tied, q=4, seed=0, scale=0.7):
    group = FiniteAbelianGroup(orders)
    rng = torch.Generator().manual_seed(seed)
    weights = [torch.randn(group.order, q, generator=rng, dtype=torch.float64) for _ in range(3)]
    if centred:
        weights = [w - w.mean(0) for w in weights]
    a, b, c = weights
    return group, GroupNetwork(group, a, None if tied else b, c, scale)


def split(group, share, seed=1):
    if share is None:
        return None, None
    n = group.order
    chosen = np.random.default_rng(seed).permutation(n * n)[: int(share * n * n)]
    mask = torch.zeros(n * n, dtype=torch.bool)
    mask[chosen] = True
    return np.stack(np.divmod(chosen, n), axis=1), mask.reshape(n, n)


@pytest.mark.parametrize(("orders", "loss", "centred", "tied", "share"), CASES)
@pytest.mark.parametrize("form", ["gram", "outputs"])
def test_value_gradient_and_operator_agree_with_autodiff(orders, loss, centred, tied, share, form):
    group, net = make(orders, centred, tied)
    pairs, mask = split(group, share)
    task = GroupTask(group, loss=loss, centred=centred, tied=tied, pairs=pairs)
    measure = net.measure(centred=centred)

    def scalar(points):
        basis = torch.as_tensor(group.real_basis)[:, int(centred) :]
        blocks = [group.order**0.5 * basis @ x.T for x in points.chunk(2 if tied else 3, dim=1)]
        a, c = blocks[0], blocks[-1]
        b = a if tied else blocks[1]
        factor = 1 / (2 * group.order * net.width)
        return oracles.naive_loss(a, b, c, factor, orders, loss, mask)

    points = measure.points.clone().requires_grad_()
    value = scalar(points)
    (slope,) = torch.autograd.grad(value, points)
    gram = loss != "cross_entropy" and form == "gram"
    at = task.linearise(measure, gram=gram)
    assert at.value == pytest.approx(value.item(), rel=1e-12)
    assert torch.allclose(at.gradient / net.width, slope, rtol=1e-10, atol=1e-12)

    size = points.numel()
    dense = net.width * oracles.dense_hessian(scalar, measure.points)
    fields = torch.eye(size, dtype=torch.float64).reshape(size, *measure.points.shape)
    ours = at.product(fields).reshape(size, size)
    top = dense.abs().max()
    assert (ours - dense).abs().max() < 1e-11 * top
    parts = at.product(fields, ("interaction",)) + at.product(fields, ("local",))
    assert (parts.reshape(size, size) - ours).abs().max() < 1e-12 * top


@pytest.mark.parametrize(("orders", "loss", "centred", "tied", "share"), CASES)
@pytest.mark.parametrize("form", ["gram", "outputs"])
def test_local_blocks_and_flat_kernel(orders, loss, centred, tied, share, form):
    group, net = make(orders, centred, tied, seed=3)
    task = GroupTask(group, loss=loss, centred=centred, tied=tied, pairs=split(group, share)[0])
    gram = loss != "cross_entropy" and form == "gram"
    at = task.linearise(net.measure(centred=centred), gram=gram)
    slow = super(type(at), at).local_blocks()
    assert torch.allclose(at.local_blocks(), slow, rtol=1e-10, atol=1e-11)
    # One neuron scaled by t enters H through its own kernel entry: d2/dw2 of H along its weight.
    kernel = at.flat_kernel()
    w0 = at.measure.weights
    for j, k in [(0, 0), (0, 1), (2, 3)]:

        def along(s, t, j=j, k=k):
            w = w0.clone()
            w[j] += s
            w[k] += t
            return task.linearise(ParticleMeasure(at.measure.points, w)).value

        h = 1e-3
        mixed = (along(h, h) - along(h, -h) - along(-h, h) + along(-h, -h)) / (4 * h * h)
        assert float(kernel[j, k]) == pytest.approx(mixed, rel=2e-4, abs=1e-6)


def test_weighted_measure_equals_split_neurons():
    group, net = make((5,), False, False, q=3)
    task = GroupTask(group)
    plain = net.measure()
    doubled = ParticleMeasure(
        torch.cat([plain.points, plain.points[:1]]),
        torch.cat([plain.weights[:1] / 4, plain.weights[1:], plain.weights[:1] * 3 / 4]),
    )
    one, two = task.linearise(plain), task.linearise(doubled)
    assert two.value == pytest.approx(one.value, rel=1e-13)
    assert torch.allclose(two.gradient[:3], one.gradient, rtol=1e-12, atol=1e-13)


def test_points_of_the_wrong_dimension_are_refused():
    group, net = make((5,), False, False)
    with pytest.raises(InputError, match="dimension 12"):
        GroupTask(group, centred=True).linearise(net.measure())


def test_the_comparison_can_fail():
    """A negative control: the operator of another network is far from this one's Hessian."""
    group, net = make((5,), False, False)
    _, other = make((5,), False, False, seed=9)
    fields = torch.randn(1, *net.measure().points.shape, dtype=torch.float64)
    one = GroupTask(group).linearise(net.measure()).product(fields)
    two = GroupTask(group).linearise(other.measure()).product(fields)
    assert (one - two).abs().max() > 1e-3 * one.abs().max()


@pytest.mark.parametrize("orders", [(3,), (4,), (5,)])
def test_one_neuron(orders):
    rng = np.random.default_rng(0)
    group = FiniteAbelianGroup(orders)
    a, b, c = torch.as_tensor(rng.normal(size=(3, group.order, 1)))
    network = GroupNetwork(group, a, b, c, 0.1)
    task = GroupTask(group)
    by_hand = float(oracles.naive_loss(a, b, c, 0.1, orders, "projected_mse"))
    for gram in (True, False):
        assert task.linearise(network.measure(), gram=gram).value == pytest.approx(by_hand, rel=1e-12)
