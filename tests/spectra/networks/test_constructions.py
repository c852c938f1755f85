"""Constructed networks against the plain network's loss."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.constructions import cosine, f4, f4_6, f6, memorise, network_of
from tests import oracles

ODD = [(3,), (5,), (7,), (11,), (23,), (3, 5)]
EVEN = [(2,), (4,), (6,), (2, 2), (2, 4), (12,), (2, 2, 3)]


def projected_loss(network):
    weights = (network.a, network.b, network.c)
    return oracles.naive_loss(*weights, network.output_scale, network.group.orders, "projected_mse").item()


@pytest.mark.parametrize("orders", ODD + EVEN)
@pytest.mark.parametrize("build", [f6, f4_6, memorise])
def test_solutions_solve(build, orders):
    group = FiniteAbelianGroup(orders)
    network = build(group)
    n, real = group.order, int((group.negatives == np.arange(group.order)).sum()) - 1
    blocks = 2 * n if real < n - 1 else 2 * (n - 1)
    assert network.width == {f6: 3 * (n - 1) - real, f4_6: blocks, memorise: n * n}[build]
    assert projected_loss(network) < 1e-25
    assert network.accuracy() == 1.0


@pytest.mark.parametrize("orders", ODD)
def test_order_four_alone_misses_by_a_known_amount(orders):
    network = f4(FiniteAbelianGroup(orders))
    n = network.group.order
    assert projected_loss(network) == pytest.approx(2 * (n - 1) / n, rel=1e-12)


@pytest.mark.parametrize("orders", EVEN)
def test_order_four_alone_misses_at_complex_characters_only(orders):
    group = FiniteAbelianGroup(orders)
    characters = int((group.negatives != np.arange(group.order)).sum())
    assert projected_loss(f4(group)) == pytest.approx(2 * characters / group.order, rel=1e-12, abs=1e-25)


@pytest.mark.parametrize("orders", [(7,), (6,), (3, 3)])
def test_the_root_of_the_loss_of_cosine_circuits_falls_like_one_over_the_root_of_the_neurons(orders):
    """The slope of log root H over log N is -1/2, within its 95 % interval and that narrower than 0.05."""
    group, seeds = FiniteAbelianGroup(orders), 48
    counts = np.array([24, 48, 96, 192, 384])
    losses = np.array(
        [[projected_loss(cosine(group, neurons=count, seed=s)) for s in range(seeds)] for count in counts]
    )
    mean = losses.mean(1)
    x = np.log(counts) - np.log(counts).mean()
    slope = 0.5 * x @ np.log(mean) / (x @ x)
    relative = losses.std(1, ddof=1) / mean / seeds**0.5
    error = 0.5 * np.sqrt((x**2) @ relative**2) / (x @ x)
    assert 1.96 * error < 0.05
    assert abs(slope + 0.5) < 1.96 * error


def test_refusals():
    even = FiniteAbelianGroup((6,))
    with pytest.raises(InputError, match="at least one per pair"):
        cosine(FiniteAbelianGroup((11,)), neurons=4)
    with pytest.raises(InputError, match="conj"):
        network_of(even, 1j * torch.ones(3, 2, 6).numpy())
