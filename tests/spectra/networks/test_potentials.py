"""Potentials and the loss identity against explicit loops and the plain network."""

import numpy as np
import pytest
import torch

from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.group_network import GroupNetwork
from spectra.networks.potentials import GroupPotentials, group_monomials
from tests import oracles

GROUPS = [(2,), (3,), (4,), (5,), (7,), (2, 2), (2, 3), (2, 2, 3)]


def random_network(orders, *, centred, seed=0, q=6, scale=0.4):
    group = FiniteAbelianGroup(orders)
    rng = torch.Generator().manual_seed(seed)
    weights = [torch.randn(group.order, q, generator=rng, dtype=torch.float64) for _ in range(3)]
    if centred:
        weights = [w - w.mean(0) for w in weights]
    return GroupNetwork(group, *weights, scale)


@pytest.mark.parametrize("orders", GROUPS)
@pytest.mark.parametrize("centred", [True, False])
def test_loss_identity(orders, centred):
    net = random_network(orders, centred=centred)
    expected = oracles.naive_loss(net.a, net.b, net.c, net.output_scale, orders, "projected_mse").item()
    assert GroupPotentials.of(net).projected_loss() == pytest.approx(expected, rel=1e-12)
    if net.group.order <= 7:
        canonical = [net.tau * w.numpy() for w in (net.a, net.b, net.c)]
        slow = oracles.loss_by_potentials(*canonical, orders, centred=centred)
        assert slow == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [5, 23])
@pytest.mark.parametrize("size", [1e-3, 1e-5])
def test_loss_identity_holds_relative_to_a_small_loss(order, size):
    """Near a solution H is tiny; the error must be small against H, not against its constant (n-1)/n."""
    from spectra.networks.constructions import f6

    exact = f6(FiniteAbelianGroup((order,)))
    rng = torch.Generator().manual_seed(0)
    moved = [
        w + size * torch.randn(w.shape, generator=rng, dtype=w.dtype) for w in (exact.a, exact.b, exact.c)
    ]
    net = GroupNetwork(exact.group, *moved, exact.output_scale)
    expected = oracles.naive_loss(*moved, net.output_scale, (order,), "projected_mse").item()
    assert expected < 100 * size**2
    assert GroupPotentials.of(net).projected_loss() == pytest.approx(expected, rel=1e-10, abs=0)


@pytest.mark.parametrize("orders", [(4,), (5,), (2, 3)])
@pytest.mark.parametrize("centred", [True, False])
def test_potentials_are_expectations_of_the_monomials(orders, centred):
    net = random_network(orders, centred=centred)
    measure, sets = net.measure(centred=centred), GroupPotentials.of(net).named_sets()
    for name, expected in sets.items():
        monomials = group_monomials(net.group, chosen=name, centred=centred)
        rho = measure.expectation(monomials.values)
        ours = np.sort_complex((rho[0::2] + 1j * rho[1::2]).numpy().round(10))
        assert np.allclose(ours, np.sort_complex(expected.numpy().round(10)), atol=1e-9)


@pytest.mark.parametrize(("orders", "rank"), [((3,), 18), ((4,), 48), ((5,), 100), ((2, 2), 48)])
@pytest.mark.parametrize("centred", [True, False])
def test_number_of_independent_potentials(orders, rank, centred):
    """n^2 (n - 1), from the rank of the loss's own coordinates (outputs) at random neurons."""
    from spectra.tasks.group_task import GroupTask

    net = random_network(orders, centred=centred, q=2 * rank)
    task = GroupTask(net.group, centred=centred)
    gradients = task.linearise(net.measure(centred=centred)).potential_gradients()
    flat = gradients.permute(0, 2, 1).reshape(-1, gradients.shape[1])
    assert torch.linalg.matrix_rank(flat, rtol=1e-9) == rank == task.potential_count


@pytest.mark.parametrize(
    ("order", "centred", "rank"), [(3, True, 6), (3, False, 12), (4, True, 18), (5, False, 60)]
)
def test_number_of_independent_potentials_tied(order, centred, rank):
    from spectra.tasks.group_task import GroupTask

    group = FiniteAbelianGroup((order,))
    points = torch.randn(3 * rank, 2 * (order - centred), dtype=torch.float64)
    from manifold.measures import ParticleMeasure

    task = GroupTask(group, centred=centred, tied=True)
    gradients = task.linearise(ParticleMeasure(points)).potential_gradients()
    flat = gradients.permute(0, 2, 1).reshape(-1, gradients.shape[1])
    assert torch.linalg.matrix_rank(flat, rtol=1e-9) == rank == task.potential_count
