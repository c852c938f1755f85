"""Constructed networks against the plain network's loss."""

import pytest
import torch

from manifold.errors import InputError
from manifold.groups import FiniteAbelianGroup
from spectra.constructions import cosine, f4, f4_6, f6, memorise, network_of
from tests import oracles

ODD = [(3,), (5,), (7,), (11,), (23,), (3, 5)]


def projected_loss(network):
    weights = (network.a, network.b, network.c)
    return oracles.naive_loss(*weights, network.output_scale, network.group.orders, "projected_mse").item()


@pytest.mark.parametrize("orders", ODD)
@pytest.mark.parametrize("build", [f6, f4_6, memorise])
def test_solutions_solve(build, orders):
    if build is memorise and orders == (23,):
        orders = (13,)
    group = FiniteAbelianGroup(orders)
    network = build(group)
    n = group.order
    assert network.width == {f6: 3 * (n - 1), f4_6: 2 * n, memorise: n * n}[build]
    assert projected_loss(network) < 1e-25
    assert network.accuracy() == 1.0


@pytest.mark.parametrize("orders", ODD)
def test_order_four_alone_misses_by_a_known_amount(orders):
    network = f4(FiniteAbelianGroup(orders))
    n = network.group.order
    assert projected_loss(network) == pytest.approx(2 * (n - 1) / n, rel=1e-12)


@pytest.mark.parametrize("orders", [(2,), (4,), (2, 3), (2, 2, 3)])
def test_memorisation_on_even_groups(orders):
    assert projected_loss(memorise(FiniteAbelianGroup(orders))) < 1e-25


@pytest.mark.parametrize("orders", [(7,), (6,), (3, 3)])
def test_cosine_circuits_approach_a_solution_like_one_over_their_neurons(orders):
    group = FiniteAbelianGroup(orders)
    small, large = (
        sum(projected_loss(cosine(group, neurons=count, seed=s)) for s in range(64)) for count in (30, 240)
    )
    assert small / large == pytest.approx(8, rel=0.2)


def test_refusals():
    even = FiniteAbelianGroup((6,))
    for build in (f6, f4, f4_6):
        with pytest.raises(InputError, match="odd order"):
            build(even)
    with pytest.raises(InputError, match="at least one per pair"):
        cosine(FiniteAbelianGroup((11,)), neurons=4)
    with pytest.raises(InputError, match="conj"):
        network_of(even, 1j * torch.ones(3, 2, 6).numpy())
