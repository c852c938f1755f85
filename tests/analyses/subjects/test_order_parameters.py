"""Order parameters against sums written out in plain numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.subjects.order_parameters import (
    decoupling,
    neuron_purity,
    order_parameters,
    plain_projected_mse,
)
from analyses.subjects.subject import Subject
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.activations import parse_activation
from spectra.networks.constructions import f6
from spectra.networks.group_network import GroupNetwork
from spectra.networks.potentials import GroupPotentials
from tests import oracles


def weights(n, q, seed=0, scale=0.5):
    rng = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(n, q, generator=rng, dtype=torch.float64) for _ in range(3)]


def network(orders, q=6, seed=0):
    group = FiniteAbelianGroup(orders)
    return GroupNetwork(group, *weights(group.order, q, seed))


@pytest.mark.parametrize("orders", [(5,), (4,), (2, 2), (2, 3)])
def test_purity_is_the_share_of_the_strongest_pair(orders):
    """Written out: the powers of all characters but the trivial one, a real one counted once."""
    net = network(orders)
    group, n = oracles.elements(orders), net.group.order
    minus = [group.index(tuple((-i) % m for i, m in zip(k, orders, strict=True))) for k in group]
    power = np.zeros((net.width, n))
    for table in (net.a, net.b, net.c):
        for k, frequency in enumerate(group):
            chi = np.array([oracles.character(orders, frequency, x) for x in group])
            power[:, k] += np.abs(table.numpy().T @ chi.conj()) ** 2  # |c| has both conventions alike
    purity, frequency = neuron_purity(net)
    for j in range(net.width):
        pairs = {k: sum(power[j, i] for i in {k, minus[k]}) for k in range(1, n) if k <= minus[k]}
        best = max(pairs, key=pairs.get)
        assert frequency[j] == best
        assert purity[j] == pytest.approx(pairs[best] / sum(power[j, 1:]), rel=1e-12)


def test_purity_of_a_real_character_beside_a_pair():
    """Z4: power 3 on the real character k = 2, power 2 + 2 on the pair (1, 3)."""
    group = FiniteAbelianGroup((4,))
    x = np.arange(4)
    row = torch.as_tensor(np.sqrt(3.0) * np.cos(np.pi * x) + 2 * np.sqrt(2.0) * np.cos(np.pi * x / 2))[
        :, None
    ]
    zero = torch.zeros_like(row)
    purity, frequency = neuron_purity(GroupNetwork(group, row, zero, zero))
    assert frequency[0] == 1
    assert purity[0] == pytest.approx(4 / 7, rel=1e-12)
    dead = neuron_purity(GroupNetwork(group, zero, zero, zero))
    assert dead[0][0] == 0


def raw_gradient(net, orders):
    parts = [part.clone().requires_grad_() for part in (net.a, net.b, net.c)]
    loss = oracles.naive_loss(*parts, net.output_scale, orders, "projected_mse")
    return torch.cat(torch.autograd.grad(loss, parts)), torch.cat([net.a, net.b, net.c])


@pytest.mark.parametrize(("orders", "seed"), [((5,), 0), ((4,), 1), ((2, 2), 2)])
def test_the_equivariance_defect_is_the_share_of_the_force_that_is_not_radial(orders, seed):
    """The map to z is a scaling of the raw weights, so the share is that of the plain gradient."""
    net = network(orders, seed=seed)
    gradient, weights_ = raw_gradient(net, orders)
    along = (gradient * weights_).sum(0) / weights_.norm(dim=0)
    expected = 1 - float(along.square().sum() / gradient.square().sum())
    assert 0.2 < expected < 0.999  # so that its square is something else
    assert decoupling(Subject(net))["equivariance_defect"] == pytest.approx(expected, rel=1e-9)


def test_the_share_off_the_diagonal_is_that_of_the_sampled_metric(monkeypatch):
    """Two functions with gradients along one neuron: K is known, one shared coordinate couples them."""
    net = network((3,), q=70)  # more neurons than one chunk holds
    seen = {}

    def jacobian(points):
        seen["points"] = seen.get("points", 0) + len(points)
        rows = torch.zeros(len(points), 2, points.shape[1], dtype=points.dtype)
        rows[:, 0, 0], rows[:, 1, 0], rows[:, 1, 1] = points[:, 0], points[:, 1], points[:, 2]
        return rows

    monkeypatch.setattr("analyses.subjects.order_parameters._sampled_jacobian", lambda *_: jacobian)
    found = decoupling(Subject(net))["offdiagonal_share"]
    assert seen["points"] == net.width
    z = Subject(net).measure.points.numpy()
    first, both, second = (
        (z[:, 0] ** 2).mean(),
        (z[:, 0] * z[:, 1]).mean(),
        (z[:, 1] ** 2 + z[:, 2] ** 2).mean(),
    )
    off = 2 * both**2
    assert found == pytest.approx(off / (off + first**2 + second**2), rel=1e-12)


def test_a_network_without_force_has_no_defect():
    zero = torch.zeros(3, 2, dtype=torch.float64)
    found = decoupling(Subject(GroupNetwork(FiniteAbelianGroup((3,)), zero, zero, zero)))
    assert found == {"offdiagonal_share": 0.0, "equivariance_defect": 0.0}


@pytest.mark.parametrize("orders", [(4,), (5,), (2, 3)])
def test_potentials_and_shares(orders):
    net = network(orders, seed=3)
    found = order_parameters(Subject(net))
    group, n, tau = oracles.elements(orders), net.group.order, (2 * net.group.order * net.width) ** (1 / 3)
    table = np.array([[oracles.character(orders, k, x) for k in group] for x in group])
    za, zb, zc = (
        tau / n * (part.numpy().T @ kernel)
        for part, kernel in ((net.a, table.conj()), (net.b, table.conj()), (net.c, table))
    )
    rho = np.einsum("ja,jb,jc->abc", za, zb, zc) / net.width
    expected = np.array([rho[k, k, k] for k in range(1, n)])
    assert np.abs(found.targets - expected).max() < 1e-12
    products = (za * zb * zc)[:, 1:]
    assert found.alignment == pytest.approx(np.abs(products.mean(0)) / np.abs(products).mean(0), rel=1e-12)
    crossed = [
        abs(rho[i, j, k]) for k in range(1, n) for i in range(1, n) for j in range(1, n) if not i == j == k
    ]
    assert found.largest["R_c"] == pytest.approx(max(crossed), rel=1e-12)
    assert found.zeros["R_c"] == pytest.approx(np.mean(np.array(crossed) <= 0.05))
    assert found.ones == pytest.approx(np.mean(np.abs(expected - 1) <= 0.05))
    assert found.identity_error < 1e-12
    plain = oracles.naive_loss(net.a, net.b, net.c, 1.0, orders, "projected_mse")
    assert found.projected_mse == pytest.approx(float(plain), rel=1e-12)


def test_a_neuron_is_alive_beyond_a_thousandth_of_the_largest():
    a, b, c = weights(3, 3)
    size = torch.sqrt(a.square() + b.square() + c.square()).norm(dim=0)
    factors = torch.tensor([1.0, 1.01e-3, 0.99e-3]) * size[0] / size
    net = GroupNetwork(FiniteAbelianGroup((3,)), a * factors, b * factors, c * factors)
    assert order_parameters(Subject(net)).alive.tolist() == [True, True, False]


@pytest.mark.parametrize("orders", [(5,), (2, 2)])
def test_a_solution_has_ones_zeros_and_vanishing_sums(orders):
    net = f6(FiniteAbelianGroup(orders))
    found = order_parameters(Subject(net))
    assert found.ones == 1.0
    assert found.zeros["R_c"] == 1.0
    assert found.largest_sum < 1e-12
    assert np.abs(found.targets - 1).max() < 1e-12
    assert found.alive.all()
    half = order_parameters(Subject(replace(net, c=0.94 * net.c)))  # beyond the tolerance of 0.05
    assert half.ones == 0.0
    near = order_parameters(Subject(replace(net, c=0.96 * net.c)))
    assert near.ones == 1.0


def test_the_largest_sum_is_that_over_all_frequencies():
    """Uncentred, Z5: ``2 rho_{m0k} + S_a(m,k)``, the same for b, and all three for m = 0, written out."""
    net, n = network((5,), seed=4), 5
    za, zb, zc = (part.numpy() for part in net.coefficients())
    sizes = []
    for k in range(1, n):
        sums = {}
        for p, z in (("a", za), ("b", zb)):
            for m in range(n):
                sums[p, m] = sum((z[:, i] * z[:, (m - i) % n] * zc[:, k]).mean() for i in range(n))
        sizes += [abs(sums["a", m] + 2 * (za[:, m] * zb[:, 0] * zc[:, k]).mean()) for m in range(1, n)]
        sizes += [abs(sums["b", m] + 2 * (za[:, 0] * zb[:, m] * zc[:, k]).mean()) for m in range(1, n)]
        both = sums["a", 0] + sums["b", 0] + 2 * (za[:, 0] * zb[:, 0] * zc[:, k]).mean()
        sizes.append(abs(both))
    assert order_parameters(Subject(net)).largest_sum == pytest.approx(max(sizes), rel=1e-12)


@pytest.mark.parametrize("name", ["x^3", "x^2+x", "relu"])
def test_other_activations(name):
    """A polynomial's loss is rebuilt from its potentials, no other one's."""
    net = replace(network((4,), seed=5), activation=parse_activation(name), output_scale=1e-3)
    found = order_parameters(Subject(net))
    assert np.isnan(found.ones)
    outputs = net.outputs()
    wrong = outputs - torch.eye(4, dtype=torch.float64)[torch.as_tensor(net.group.sums)]
    wrong = wrong - wrong.mean(-1, keepdim=True)
    assert found.projected_mse == pytest.approx(float(wrong.square().sum() / 16), rel=1e-12)
    if name == "relu":
        assert np.isnan(found.identity_error)
    else:
        assert found.identity_error < 1e-12
    largest = np.abs(found.targets).max()
    crossed = GroupPotentials.of(net).named_sets()["R_c"].abs().numpy()
    assert found.zeros["R_c"] == pytest.approx(np.mean(crossed <= 0.05 * largest))


def test_an_error_of_the_potentials_shows_in_the_identity(monkeypatch):
    net = network((5,))
    for shift in (0.1, -0.1):
        value = plain_projected_mse(net) + shift
        monkeypatch.setattr(
            "analyses.subjects.order_parameters._loss_by_potentials", lambda *_, value=value: value
        )
        assert order_parameters(Subject(net)).identity_error == pytest.approx(0.1)


def test_decoupling_of_outputs_samples_each_at_most_once():
    """27 outputs of Z3: asked for 100 of them, all are taken, and the share does not depend on the seed."""
    net = replace(network((3,), seed=6), activation=parse_activation("relu"))
    shares = [decoupling(Subject(net), seed=seed)["offdiagonal_share"] for seed in (0, 1)]
    assert shares[0] == pytest.approx(shares[1], rel=1e-12)
    assert decoupling(Subject(net), count=5)["offdiagonal_share"] != pytest.approx(shares[0], rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_without_units_zeros_are_shares_of_the_largest_target(seed):
    """The largest modulus: its real part or the smallest one make a difference in some of these."""
    net = replace(network((5,), seed=seed), activation=parse_activation("relu"), output_scale=1e-3)
    found, sets = order_parameters(Subject(net)), GroupPotentials.of(net).named_sets()
    unit = max(abs(complex(one)) for one in sets["R_g"])
    for name, share in found.zeros.items():
        assert share == pytest.approx(np.mean([abs(complex(one)) <= 0.05 * unit for one in sets[name]]))


def test_sets_without_potentials_and_networks_of_any_size():
    """Z2 has one frequency: nothing is crossed, so all of it is zero; small networks are alive as well."""
    a, b, c = (1e-9 * part for part in weights(2, 4))
    found = order_parameters(Subject(GroupNetwork(FiniteAbelianGroup((2,)), a, b, c)))
    assert (found.largest["R_c"], found.zeros["R_c"]) == (0.0, 1.0)
    assert found.alive.all()
