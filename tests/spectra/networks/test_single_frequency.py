"""The fewest neurons at one frequency: search, and the solutions put into networks."""

import numpy as np
import pytest

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.constructions import _at_frequencies, network_of, order_four, order_six, order_two
from spectra.networks.single_frequency import character_order, constraints, search
from tests import oracles

FEWEST = {2: 2, 3: 6, 4: 4, 5: 6}


@pytest.mark.parametrize("orders", [(2,), (4,), (6,), (2, 2), (5,), (2, 4)])
def test_solutions_side_by_side_solve_the_task(orders):
    """Found at each frequency on its own, judged by the plain loss of the whole network."""
    group = FiniteAbelianGroup(orders)
    blocks = []
    for k in group.conjugate_pairs:
        order = character_order(k, orders)
        found = search(order, FEWEST.get(order, 6), starts=6)
        assert found.solved, (order, found.residual)
        blocks.append((k, found.triples))
    network = network_of(group, _at_frequencies(group, blocks))
    weights = (network.a, network.b, network.c)
    loss = oracles.naive_loss(*weights, network.output_scale, orders, "projected_mse")
    assert float(loss) < 1e-18
    assert network.accuracy() == 1


@pytest.mark.parametrize(
    ("order", "neurons", "least"), [(2, 1, 0.89), (3, 4, 0.49), (4, 2, 0.6), (5, 4, 0.49)]
)
def test_fewer_neurons_leave_a_residual(order, neurons, least):
    found = search(order, neurons, starts=4)
    assert found.solved == 0
    assert found.residual > least


@pytest.mark.parametrize(("order", "neurons"), [(4, 3), (5, 5)])
def test_one_neuron_less_comes_near_only_with_growing_weights(order, neurons):
    found = search(order, neurons, starts=3, seed=1)
    assert 1e-10 < found.residual < 1e-3
    assert found.solved == 0
    assert np.abs(found.triples).max() > 10  # a solution with one neuron more has weights below 1


def test_the_constraints_are_those_of_the_named_families():
    assert np.abs(constraints(order_two(), 2)).max() < 1e-15
    for order in (3, 4, 5, 7):
        assert np.abs(constraints(order_six(), order)).max() < 1e-15
        assert np.abs(constraints(order_four(), order)).max() > 0.5  # sum |a|^2 c stays
    with pytest.raises(InputError, match="order"):
        search(1, 2)


def test_orders_of_characters():
    assert [character_order(k, (6,)) for k in range(6)] == [1, 6, 3, 2, 3, 6]
    assert [character_order(k, (2, 4)) for k in range(8)] == [1, 4, 2, 4, 2, 4, 2, 4]
