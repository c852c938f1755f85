"""Sums and products of networks: homomorphism, set calculus, compression; against einsum on plain weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold.errors import InputError, TooLargeError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.networks.constructions import f4_6, f6, memorise
from spectra.networks.group_network import GroupNetwork
from spectra.networks.merging import compress
from spectra.networks.potentials import GroupPotentials
from spectra.networks.semiring import add, multiply, predicted_potentials
from spectra.networks.symbol_sets import SymbolSets, all_potentials
from tests import oracles

GROUPS = ["Z2", "Z3", "Z4", "Z5", "Z6", "Z2xZ2", "Z3xZ2"]
PAIRS = settings(max_examples=500, derandomize=True, deadline=None)


def random_network(name, q, rng, *, tied=False):
    group = FiniteAbelianGroup.parse(name)
    a, b, c = torch.as_tensor(rng.normal(size=(3, group.order, q)))
    return GroupNetwork(group, a, None if tied else b, c, float(rng.uniform(0.2, 2)) / group.order)


def rho_by_hand(network, p, r, k1, k2, k):
    """One potential straight from the weights, no coefficients of ours, and its natural scale.

    The scale is what the sum is made of: the mean over neurons of ``max|a| max|b| max|c|`` in canonical
    weights (mass times the product of the maxima), below which cancellation hides in the weights themselves.
    """
    orders = network.group.orders
    elements = oracles.elements(orders)
    chi = [np.array([oracles.character(orders, elements[i], x) for x in elements]) for i in (k1, k2, k)]
    n, q = network.a.shape
    tau = (2 * n * q * network.output_scale) ** (1 / 3)
    weights = {"a": network.a, "b": network.a if network.tied else network.b, "c": network.c}
    three = [tau * weights[name].numpy() for name in (p, r, "c")]
    z1, z2 = (w.T @ character.conj() / n for w, character in zip(three[:2], chi[:2], strict=True))
    zc = three[2].T @ chi[2] / n
    scale = np.prod([np.abs(w).max(0) for w in three], axis=0).mean()
    return (z1 * z2 * zc).mean(), scale


@PAIRS
@given(
    st.sampled_from(GROUPS), st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3), st.booleans()
)
def test_every_potential_is_a_ring_homomorphism(name, seed, q1, q2, tied):
    rng = np.random.default_rng(seed)
    left, right = random_network(name, q1, rng, tied=tied), random_network(name, q2, rng, tied=tied)
    p, r = ("a", "b")[rng.integers(2)], ("a", "b")[rng.integers(2)]
    index = rng.integers(0, left.group.order, size=3)
    (x, size_x), (y, size_y) = (rho_by_hand(net, p, r, *index) for net in (left, right))
    total, _ = rho_by_hand(add(left, right), p, r, *index)
    assert abs(total - (x + y)) < 1e-12 * (size_x + size_y)
    product = multiply(left, right)
    assert product.width == q1 * q2
    assert product.tied == tied
    found, _ = rho_by_hand(product, p, r, *index)
    assert abs(found - x * y) < 1e-12 * size_x * size_y


@PAIRS
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_monomials_of_weighted_measures_are_ring_homomorphisms(seed, dimension, q1, q2):
    """Any monomial, any weights and masses; the scale is the integral of |r|."""
    rng = np.random.default_rng(seed)
    powers = rng.integers(0, 4, size=dimension)
    pair = [
        (rng.normal(size=(q, dimension)) * 10.0 ** rng.uniform(-1, 1), rng.uniform(0.1, 3, size=q))
        for q in (q1, q2)
    ]

    def integral(points, weights, size=False):
        values = np.prod(points**powers, axis=1)
        return float(weights @ (np.abs(values) if size else values))

    left, right = (ParticleMeasure(torch.as_tensor(z), torch.as_tensor(w)) for z, w in pair)
    (x, y), (size_x, size_y) = ([integral(*one, size) for one in pair] for size in (False, True))
    found = {
        name: integral(one.points.numpy(), one.weights.numpy())
        for name, one in (("sum", left + right), ("product", left * right))
    }
    assert abs(found["sum"] - (x + y)) < 1e-12 * (size_x + size_y)
    assert abs(found["product"] - x * y) < 1e-12 * size_x * size_y
    one, zero = ParticleMeasure.one(dimension), ParticleMeasure.zero(dimension)
    assert torch.equal((left * one).points, left.points)
    assert len(left * zero) == 0
    assert torch.equal((left + zero).points, left.points)


@pytest.mark.parametrize("name", GROUPS)
def test_predicted_potentials_are_the_measured_ones(name):
    rng = np.random.default_rng(3)
    left, right = random_network(name, 4, rng), random_network(name, 3, rng, tied=True)
    for operation, compose in (("add", add), ("multiply", multiply)):
        predicted = all_potentials(predicted_potentials(operation, left, right))
        measured = all_potentials(GroupPotentials.of(compose(left, right)))
        assert (predicted - measured).abs().max() < 1e-12 * (1 + predicted.abs().max())


def test_sum_adds_outputs():
    rng = np.random.default_rng(0)
    left, right = random_network("Z2xZ3", 4, rng), random_network("Z2xZ3", 2, rng)
    total = add(left, right)
    n = 6
    unit = [net.outputs() * net.tau**3 / (2 * n * net.width * net.output_scale) for net in (left, right)]
    assert torch.allclose(total.outputs(), sum(unit), rtol=0, atol=1e-12)


@PAIRS
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.2))
def test_set_calculus(seed, tol):
    """Weighted measures with potentials near 0 and 1: no promise is broken, and none is empty talk."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, size=(2, 12))
    noise = tol * rng.uniform(-1, 1, size=(2, 12))
    targets = np.where(kinds == 2, rng.normal(size=(2, 12)) * 3, kinds + noise)
    weights = rng.uniform(0.1, 2, size=(2, 4))
    points = rng.normal(size=(2, 4, 12))
    points[:, -1] = (targets - np.einsum("mj,mjr->mr", weights[:, :-1], points[:, :-1])) / weights[:, -1:]
    left, right = (
        ParticleMeasure(torch.as_tensor(p), torch.as_tensor(w)) for p, w in zip(points, weights, strict=True)
    )
    first, second = (SymbolSets.measured(m.expectation(m.points), tol=tol + 1e-12) for m in (left, right))
    for predicted, measure in ((first | second, left + right), (first & second, left * right)):
        assert predicted.kept_by(measure.expectation(measure.points))
    zero, one = kinds == 0, kinds == 1
    assert bool((first & second).zeros[torch.as_tensor(zero[0] | zero[1])].all())
    assert bool((first & second).ones[torch.as_tensor(one[0] & one[1])].all())
    assert bool((first | second).ones[torch.as_tensor((one[0] & zero[1]) | (zero[0] & one[1]))].all())


def test_a_broken_promise_is_noticed():
    sets = SymbolSets.measured(torch.tensor([0.0, 1.0]), tol=0.01)
    assert (sets & sets).kept_by(torch.tensor([0.0, 1.0]))
    assert not (sets & sets).kept_by(torch.tensor([0.1, 1.0]))
    assert not (sets & sets).kept_by(torch.tensor([0.0, 1.1]))
    with pytest.raises(InputError, match="tol"):
        SymbolSets.measured(torch.tensor([0.0]), tol=0.6)


@pytest.mark.parametrize("name", ["Z3", "Z5", "Z7", "Z3xZ5"])
@pytest.mark.parametrize("other", [f6, f4_6, memorise])
def test_products_of_constructed_solutions_solve(name, other):
    group = FiniteAbelianGroup.parse(name)
    product = multiply(f6(group), compress(other(group)).network)
    weights = (product.a, product.b, product.c)
    loss = oracles.naive_loss(*weights, 1 / (2 * group.order), group.orders, "projected_mse")
    assert float(loss) < 1e-18


def test_refusals():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="same group, got Z4 and Z2xZ2"):
        add(random_network("Z4", 2, rng), random_network("Z2xZ2", 2, rng))
    left = random_network("Z4", 300, rng)
    with pytest.raises(TooLargeError, match=r"90,000 neurons need about .* MiB.*--compress"):
        multiply(left, left, memory_limit=1 << 20)
    with pytest.raises(InputError, match="add or multiply"):
        predicted_potentials("divide", left, left)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_compression_merges_parallel_neurons_within_its_bound(tied, noise):
    rng = np.random.default_rng(5)
    net = random_network("Z5", 6, rng, tied=tied)
    pick = rng.integers(0, 6, size=40)
    stretch = torch.as_tensor(rng.normal(size=40))
    jitter = 1 + noise * torch.as_tensor(rng.uniform(-1, 1, size=(3, 5, 40)))
    a, b = (
        None if w is None else w[:, pick] * stretch * j for w, j in zip((net.a, net.b), jitter, strict=False)
    )
    c = torch.as_tensor(rng.normal(size=(5, 40)))
    c[:, 0] = 0
    wide = GroupNetwork(net.group, a, b, c, net.output_scale)
    small = compress(wide, tol=1e-3)
    assert small.network.width == len(set(pick[1:]))
    assert small.dropped == 1
    assert small.network.tied == tied
    scale = [x.tau**3 / (2 * 5 * x.width * x.output_scale) / 10 for x in (wide, small.network)]
    first, second = (x.outputs() * s for x, s in zip((wide, small.network), scale, strict=True))
    distance = float((first - second).square().sum(-1).mean() ** 0.5)
    assert distance <= small.output_bound + 1e-13
    assert small.output_bound < 1e-12 if noise == 0 else 1e-9 < small.output_bound < 1e-3
    potentials = [all_potentials(GroupPotentials.of(x)) for x in (wide, small.network)]
    assert (potentials[0] - potentials[1]).abs().max() <= small.potential_bound + 1e-12
    losses = [GroupPotentials.of(x).projected_loss() for x in (wide, small.network)]
    assert abs(losses[0] - losses[1]) <= small.loss_bound(losses[0]) + 1e-12


def test_memorisation_times_itself_is_memorisation():
    group = FiniteAbelianGroup.parse("Z3")
    square = multiply(memorise(group), memorise(group))
    small = compress(square)
    assert (square.width, small.network.width) == (81, 9)
