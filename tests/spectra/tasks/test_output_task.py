"""Two-layer networks of any activation against plain autodiff of the network as a user would write it."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import torch

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.functionals.base import PotentialFunctional
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum
from spectra.networks.activations import NAMED, SQUARE, Polynomial, Tanh, parse_activation
from spectra.networks.group_network import GroupNetwork
from spectra.networks.polynomial_potentials import PolynomialPotentials
from spectra.operators.variation import SecondVariation
from spectra.solvers.spectrum import dense_spectrum
from spectra.tasks.group_task import GroupTask
from spectra.tasks.output_task import OutputTask, kink_distances
from spectra.tasks.pair_terms import CrossEntropy
from tests.oracles import dense_hessian, sum_table

PLAIN = {  # written with torch's own functions only
    "square": lambda t: t * t,
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
    "abs": torch.abs,
    "x^3": lambda t: t * t * t,
    "x - 0.5*x^2 + 0.25*x^4": lambda t: t - t * t / 2 + t * t * t * t / 4,
    "2*x": lambda t: 2 * t,
}
LOSSES = ["projected_mse", "mse", "cross_entropy"]


def plain_loss(sigma, scale, orders, loss, mask=None):
    """The loss of raw weights a, (b,) c of shape (n, q) as a stranger would train it."""
    target = sum_table(orders)

    def scalar(*weights):
        a, c = weights[0], weights[-1]
        b = a if len(weights) == 2 else weights[1]
        outputs = scale * torch.einsum("xyj,mj->xym", sigma(a[:, None, :] + b[None, :, :]), c)
        keep = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
        if loss == "cross_entropy":
            return torch.nn.functional.cross_entropy(outputs[keep], target[keep])
        gap = outputs - torch.eye(len(a), dtype=a.dtype)[target]
        if loss == "projected_mse":
            gap = gap - gap.mean(-1, keepdim=True)
        return gap.square().sum(-1)[keep].mean()

    return scalar


def random_network(name, orders, q, *, tied=False, scale=0.7, seed=0):
    group = FiniteAbelianGroup(orders)
    rng = torch.Generator().manual_seed(seed)
    a, b, c = torch.randn(3, group.order, q, generator=rng, dtype=torch.float64)
    return GroupNetwork(group, a, None if tied else b, c, scale, parse_activation(name))


def task_of(net, loss, pairs=None):
    return OutputTask(net.group, net.activation, gain=net.gain, loss=loss, tied=net.tied, pairs=pairs)


CASES = [
    (name, orders, loss, tied)
    for i, name in enumerate(PLAIN)
    for orders, loss, tied in [
        ((3,), LOSSES[i % 3], False),
        ((4,), LOSSES[(i + 1) % 3], True),
        ((2, 2), LOSSES[(i + 2) % 3], False),
    ]
]


@pytest.mark.parametrize(("name", "orders", "loss", "tied"), CASES)
def test_everything_against_the_dense_hessian_of_plain_torch(name, orders, loss, tied):
    q = 4
    net = random_network(name, orders, q, tied=tied)
    n = net.group.order
    mask = torch.rand(n, n, generator=torch.Generator().manual_seed(1)) < 0.7
    pairs = np.argwhere(mask.numpy()) if loss == "mse" else None
    scalar = plain_loss(PLAIN[name], 0.7, orders, loss, mask if pairs is not None else None)
    weights = [w for w in (net.a, net.b, net.c) if w is not None]
    task, measure = task_of(net, loss, pairs), net.measure()
    at = task.linearise(measure)
    assert at.value == pytest.approx(float(scalar(*weights)), rel=1e-13)
    hessian = dense_hessian(scalar, *weights)
    found = dense_spectrum(SecondVariation(at)).eigenvalues
    expected = net.raw_scale * np.linalg.eigvalsh(hessian.numpy())
    assert np.abs(found - expected).max() < 1e-12 * np.abs(expected).max()
    slopes = torch.func.grad(scalar, argnums=tuple(range(len(weights))))(*weights)
    moved = torch.cat([torch.as_tensor(net.group.real_basis).T @ s for s in slopes]).T
    # dz = tau/sqrt(n) d(raw), and the derivative in z_j is 1/q times grad V(z_j)
    wanted = q * n**0.5 / net.tau * moved
    assert (at.gradient - wanted).abs().max() < 1e-13 * wanted.abs().max()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["gelu", "tanh", "x - 0.5*x^2 + 0.25*x^4"])
def test_every_part_against_the_generic_functional(name, loss):
    net = random_network(name, (3,), 5)
    task, measure = task_of(net, loss), net.measure()
    n, target = 3, sum_table((3,)).reshape(-1)
    sample = torch.cartesian_prod(*[torch.arange(n)] * 3)

    def output_loss(rho):
        outputs = rho.reshape(n * n, n)
        if loss == "cross_entropy":
            return torch.nn.functional.cross_entropy(outputs, target)
        gap = outputs - torch.eye(n, dtype=rho.dtype)[target]
        gap = gap - gap.mean(-1, keepdim=True) if loss == "projected_mse" else gap
        return gap.square().sum(-1).mean()

    generic = PotentialFunctional(
        torch.func.vmap(lambda point: task.outputs(point, sample)), output_loss, count=n**3
    )
    at, slow = task.linearise(measure), generic.linearise(measure)
    fields = torch.randn(3, *measure.points.shape, generator=torch.Generator().manual_seed(2)).double()
    assert at.value == pytest.approx(slow.value, rel=1e-13)
    for parts in (("interaction",), ("local",)):
        assert torch.allclose(at.product(fields, parts), slow.product(fields, parts), rtol=1e-11, atol=1e-12)
    assert torch.allclose(at.flat_kernel(), slow.flat_kernel(), rtol=1e-11, atol=1e-13)
    blocks = super(type(at), at).local_blocks()  # through products
    assert torch.allclose(at.local_blocks(), blocks, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["relu", "gelu", "x^3", "2*x"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_number_of_independent_potentials(name, tied):
    net = random_network(name, (3,), 200, tied=tied)
    sample = torch.cartesian_prod(*[torch.arange(3)] * 3)
    outputs = torch.func.vmap(lambda z: task_of(net, "mse").outputs(z, sample))(net.measure().points)
    assert task_of(net, "mse").potential_count == int(torch.linalg.matrix_rank(outputs))
    outputs = outputs.reshape(-1, 9, 3)
    projected = (outputs - outputs.mean(-1, keepdim=True)).flatten(1)
    assert task_of(net, "projected_mse").potential_count == int(torch.linalg.matrix_rank(projected))


@pytest.mark.parametrize(("name", "tied"), [("relu", False), ("abs", True), ("x^3", False), ("tanh", False)])
def test_symmetry_directions_change_no_potential(name, tied):
    net = random_network(name, (4,), 3, tied=tied)
    for loss in LOSSES:
        at = task_of(net, loss).linearise(net.measure())
        fields = at.symmetry_fields()
        expected = (name != "tanh") + (not tied) + (loss == "projected_mse")
        assert fields.shape[1] == expected
        overlap = torch.einsum("jmd,jgd->jmg", at.potential_gradients(), fields)
        assert overlap.abs().max() < 1e-12 if fields.shape[1] else True


def test_the_span_holds_the_whole_spectrum_at_a_critical_point():
    """A ReLU network made to fit its targets exactly is MP-critical: nothing lives outside span(R)."""
    net = random_network("relu", (3,), 30, seed=4)
    hidden = net.activation.value(net.a[:, None] + net.b[None]).reshape(9, 30)
    wanted = torch.eye(3, dtype=torch.float64)[sum_table((3,)).reshape(-1)] / net.output_scale
    c = (torch.linalg.pinv(hidden) @ wanted).T
    net = GroupNetwork(net.group, net.a, net.b, c, net.output_scale, net.activation)
    task, measure = task_of(net, "mse"), net.measure()
    assert task.value(measure) < 1e-24
    spectra = [
        compute_spectrum(plan_spectrum(task, measure, subspace=space, count=None), task, measure)
        for space in ("span", "full")
    ]
    inside, everything = (np.sort(s.spectrum.eigenvalues) for s in spectra)
    assert len(inside) == spectra[0].rank == 27
    assert np.abs(everything[-27:] - inside).max() < 1e-11 * everything[-1]
    assert np.abs(everything[:-27]).max() < 1e-11 * everything[-1]
    assert spectra[0].leak < 1e-10 * everything[-1]


def test_the_ends_by_iteration_are_the_ends_of_the_dense_spectrum():
    net = random_network("gelu", (5,), 24, scale=0.05)
    task, measure = task_of(net, "cross_entropy"), net.measure()
    dense = dense_spectrum(SecondVariation(task.linearise(measure))).eigenvalues
    plan = plan_spectrum(task, measure, subspace="full", count=4)
    plan = type(plan)(**(plan.__dict__ | {"dense": False}))
    found = compute_spectrum(plan, task, measure).spectrum
    assert found.converged
    (top, error), (low, low_error) = found.largest(4), found.smallest(4)
    assert (np.abs(top - dense[::-1][:4]) <= error + 1e-13).all()
    assert (np.abs(low - dense[:4]) <= low_error + 1e-13).all()


@pytest.mark.parametrize("name", ["gelu", "abs", "2*x"])
def test_ritz_values_in_the_span_interlace_the_whole_spectrum(name):
    """Tied and unprojected: the case without any symmetry direction, for activations without a degree."""
    net = random_network(name, (4,), 6, tied=True)
    task, measure = task_of(net, "mse"), net.measure()
    inside, whole = (
        compute_spectrum(plan_spectrum(task, measure, subspace=space, count=None), task, measure)
        for space in ("span", "full")
    )
    ritz, true = inside.spectrum.eigenvalues, whole.spectrum.eigenvalues
    assert 0 < inside.rank == len(ritz) <= min(task.potential_count, len(true))
    gap = len(true) - len(ritz)
    slack = 1e-12 * np.abs(true).max()
    assert (true[: len(ritz)] <= ritz + slack).all()
    assert (ritz <= true[gap:] + slack).all()


def test_the_square_is_the_group_task():
    net = random_network("square", (5,), 6)
    for loss in LOSSES:
        one = dense_spectrum(SecondVariation(task_of(net, loss).linearise(net.measure()))).eigenvalues
        other = GroupTask(net.group, loss=loss)
        two = dense_spectrum(SecondVariation(other.linearise(net.measure()))).eigenvalues
        assert np.abs(one - two).max() < 1e-12 * two[-1]


@pytest.mark.parametrize("operator", ["chart"])
def test_no_chart_where_the_potentials_do_not_determine_the_loss(operator):
    net = random_network("relu", (3,), 4)
    with pytest.raises(InputError, match="chart"):
        plan_spectrum(task_of(net, "mse"), net.measure(), operator=operator)


class TestActivations:
    points = torch.linspace(-3, 3, 61, dtype=torch.float64) + 0.013

    @pytest.mark.parametrize("name", PLAIN)
    def test_derivatives_are_those_of_autodiff(self, name):
        sigma = parse_activation(name)
        slope = torch.func.vmap(torch.func.grad(PLAIN[name]))
        bend = torch.func.vmap(torch.func.grad(torch.func.grad(PLAIN[name])))
        assert torch.allclose(sigma.value(self.points), PLAIN[name](self.points), rtol=1e-14, atol=1e-15)
        assert torch.allclose(sigma.slope(self.points), slope(self.points), rtol=1e-13, atol=1e-14)
        found = sigma.curvature(self.points) + 0 * self.points
        assert torch.allclose(found, bend(self.points), rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("name", PLAIN)
    def test_degrees(self, name):
        sigma = parse_activation(name)
        if sigma.degree is not None:
            stretched = 1.7**sigma.degree * sigma.value(self.points)
            assert torch.allclose(sigma.value(1.7 * self.points), stretched, rtol=1e-13, atol=0)
        assert (sigma.degree is None) == (name in {"gelu", "tanh", "x - 0.5*x^2 + 0.25*x^4"})

    @pytest.mark.parametrize(
        ("text", "coefficients"),
        [("x", (0, 1)), ("-x**3+2", (2, 0, 0, -1)), ("1e-1*X^2 - .5x", (0, -0.5, 0.1)),
         ("x^2 + x^2 + 0*x^9", (0, 0, 2))],
    )  # fmt: skip
    def test_formulas(self, text, coefficients):
        sigma = parse_activation(text)
        assert sigma.coefficients == pytest.approx(coefficients)
        assert parse_activation(sigma.name).coefficients == sigma.coefficients

    @pytest.mark.parametrize(
        "text",
        ["", "sin", "x^17", "1", "x^-1", "x x", "x^2 3", "*x", "x*", "2**x", "x^1.5", "1e999*x", "x+", "y",
         "__import__('os')", "x" * 5000, "nan*x", "x - x"],
    )  # fmt: skip
    def test_everything_else_is_refused(self, text):
        with pytest.raises(InputError, match="polynomial"):
            parse_activation(text)

    def test_the_square_in_disguise(self):
        assert parse_activation("x^2") is SQUARE
        assert set(NAMED) == {"square", "relu", "gelu", "tanh", "abs"}
        assert isinstance(parse_activation("2*x^2"), Polynomial)


class TestPolynomialPotentials:
    @pytest.mark.parametrize("name", ["x^3", "x - 0.5*x^2 + 0.25*x^4", "1 + x^2", "square"])
    @pytest.mark.parametrize("tied", [False, True])
    def test_outputs_rebuilt_from_monomials(self, name, tied):
        net = random_network(name, (4,), 7, tied=tied)
        rebuilt = PolynomialPotentials.of(net).outputs()
        assert torch.allclose(rebuilt, net.outputs(), rtol=1e-12, atol=1e-12)

    def test_other_activations_have_none(self):
        with pytest.raises(InputError, match="polynomial"):
            PolynomialPotentials.of(random_network("gelu", (3,), 2))


def test_kinks_are_counted():
    group = FiniteAbelianGroup((3,))
    a = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[-1.0, 0.0], [-2.0 + 1e-10, 0.0], [5.0, 0.0]], dtype=torch.float64)
    net = GroupNetwork(group, a, b, a, 1.0, NAMED["relu"])
    double, single, total, nearest = kink_distances(net)
    assert (double, single, total) == (1 + 9, 2 + 9, 18)
    assert nearest == pytest.approx(1e-10 / 4, rel=1e-4)
    net = GroupNetwork(group, a[:, :1] + 1, None, a[:, :1], 1.0, NAMED["relu"])
    assert kink_distances(net) == (0, 0, 9, 1.0)


@pytest.mark.parametrize("gap", [1.0, 30.0, 300.0])
def test_saturated_probabilities_lose_no_digit(gap):
    """Against exact exponentials: p = 1 - (tiny) is never subtracted from 1."""
    f = torch.tensor([[gap, 0.0, -1.0], [0.0, gap, 1.0]], dtype=torch.float64)
    target = torch.tensor([0, 1])
    change = torch.tensor([[3.0, -1.0, 0.5], [0.25, 2.0, -4.0]], dtype=torch.float64)
    loss = CrossEntropy()
    mp.mp.dps = 400
    for row in range(2):
        weights = [mp.exp(mp.mpf(float(x))) for x in f[row]]
        p = [w / sum(weights) for w in weights]
        moves = [mp.mpf(float(x)) for x in change[row]]
        mean = sum(x * y for x, y in zip(p, moves, strict=True))
        gradient = [x - (k == int(target[row])) for k, x in enumerate(p)]
        curvature = [x * (y - mean) for x, y in zip(p, moves, strict=True)]
        root = [mp.sqrt(x) * (y - mean) for x, y in zip(p, moves, strict=True)]
        one = slice(row, row + 1)
        for found, exact in (
            (loss.gradient(f[one], target[one])[0], gradient),
            (loss.curvature(f[one], change[one])[0], curvature),
            (loss.curvature_root(f[one], change[None, one])[0, 0], root),
        ):
            assert found.numpy() == pytest.approx([float(x) for x in exact], rel=1e-13, abs=0)


@pytest.mark.parametrize("x", [0.3, 5.0, 18.0, 40.0])
def test_slopes_in_the_tail_of_tanh_lose_no_digit(x):
    mp.mp.dps = 60
    exact = mp.sech(mp.mpf(x)) ** 2
    at = torch.tensor([x, -x], dtype=torch.float64)
    assert Tanh().slope(at).numpy() == pytest.approx([float(exact)] * 2, rel=1e-14, abs=0)
    bend = float(-2 * mp.tanh(mp.mpf(x)) * exact)
    assert Tanh().curvature(at).numpy() == pytest.approx([bend, -bend], rel=1e-14, abs=0)
