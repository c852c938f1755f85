"""What is certified holds for the network that was asked about: rank, signs, rounding, kinks."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.certificates.uncertainty import operator_uncertainty
from spectra.functionals.base import Decayed
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum
from spectra.networks.activations import Abs, Gelu, Relu, Tanh
from spectra.networks.constructions import f6
from spectra.networks.group_network import GroupNetwork
from spectra.operators.variation import SecondVariation
from spectra.rounding import arithmetic, of_points
from spectra.solvers.block_lanczos import block_spectrum
from spectra.tasks.group_task import GroupTask
from spectra.tasks.output_task import OutputTask
from tests import oracles


def raw(n, q, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return [torch.as_tensor(scale * rng.standard_normal((n, q))) for _ in range(3)]


def answer(network, loss="projected_mse", **question):
    task = GroupTask(network.group, loss=loss, tied=network.tied)
    if not network.quadratic:
        task = OutputTask(network.group, network.activation, gain=network.gain, loss=loss, tied=network.tied)
    measure = network.measure()
    question = {"count": None, "subspace": "full"} | question
    return compute_spectrum(plan_spectrum(task, measure, **question), task, measure)


def signs(counts):
    return counts.negative, counts.marginal, counts.positive


# -- span(R) of neurons of very different sizes ---------------------------------------------------------


def test_small_neurons_beside_a_large_one_have_the_signs_of_exact_arithmetic():
    """Exact values by arithmetic with 60 digits; singular values of all gradients at once gave 9 and 12."""
    rng = np.random.default_rng(20)
    sizes = np.array([1.0, 2e-6, 2e-6])
    weights = [torch.as_tensor(rng.normal(size=(3, 3)) * sizes) for _ in range(3)]
    found = answer(GroupNetwork(FiniteAbelianGroup((3,)), *weights), "mse", subspace="span")
    spectrum = found.spectrum
    assert (found.rank, found.functions) == (21, 21)
    assert signs(spectrum.counts) == (8, 0, 13)
    assert spectrum.counts.certified
    near = sorted(spectrum.eigenvalues, key=abs)[:5]
    exact = [1.20807e-7, 3.378e-7, 1.34536e-6, 2.33334e-6, 4.03103e-6]
    assert near == pytest.approx(exact, rel=1e-5)


def _extended_span(network, tol):
    """Eigenvalues in span(R) by 80-bit arithmetic: pivoted orthogonalisation of the gradients, twice."""
    n, q = network.a.shape
    hessian, gradients = oracles.extended_hessian(network.a, network.b, network.c, network.output_scale)
    rows, basis = gradients.copy(), []
    top = np.sqrt((rows**2).sum(1)).max()
    while True:
        lengths = np.sqrt((rows**2).sum(1))
        i = int(lengths.argmax())
        if lengths[i] < tol * top or len(basis) == 3 * n * q:
            break
        v = rows[i] / lengths[i]
        for _ in range(2):
            for w in basis:
                v = v - w * (v @ w)
            v = v / np.sqrt(v @ v)
        basis.append(v)
        rows = rows - np.outer(rows @ v, v)
    q_matrix = np.stack(basis, 1)
    inside = q_matrix.T @ hessian @ q_matrix
    return network.raw_scale * np.linalg.eigvalsh(inside.astype(float))


@pytest.mark.parametrize("ratio", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_holds_where_gradients_do_not_fill_what_symmetries_leave(ratio, seed):
    weights = [w * torch.cat([torch.ones(6), torch.full((5,), ratio)]).double() for w in raw(3, 11, seed)]
    network = GroupNetwork(FiniteAbelianGroup((3,)), *weights)
    found = answer(network, subspace="span")
    expected = _extended_span(network, 1e-17)
    assert found.rank == len(expected) == 18  # n^2 (n - 1), fewer than 11 (3 n - 3)
    assert (
        np.abs(found.spectrum.eigenvalues - expected) <= found.spectrum.errors + 1e-13 * expected[-1]
    ).all()


def test_copies_of_a_neuron_make_one_direction():
    """Vector fields on a measure agree at copies of a neuron: span(R) is that of the measure."""
    weights = raw(5, 4, 1)
    once = GroupNetwork(FiniteAbelianGroup((5,)), *weights)
    twice = GroupNetwork(FiniteAbelianGroup((5,)), *(torch.cat([w, w], dim=1) for w in weights), 0.5)
    one, two = (answer(network, subspace="span") for network in (once, twice))
    assert one.rank == two.rank == two.functions
    assert two.spectrum.counts.certified
    apart = np.abs(one.spectrum.eigenvalues - two.spectrum.eigenvalues)
    assert (apart <= one.spectrum.errors + two.spectrum.errors).all()
    lifted = two.lift(two.spectrum.vectors)
    assert lifted.shape == (8 * 15, two.rank)
    torch.testing.assert_close(
        lifted.T @ lifted, torch.eye(two.rank, dtype=torch.float64), atol=1e-10, rtol=0
    )


def test_a_rank_that_rounding_hides_is_not_certified():
    network = f6(FiniteAbelianGroup((7,)))
    found = answer(network, subspace="span")
    assert found.rank < found.functions
    counts = found.spectrum.counts
    assert not counts.certified
    assert counts.undetermined >= found.functions - found.rank
    assert found.spectrum.smallest_enclosure is None


@pytest.mark.parametrize("subspace", ["span", "full"])
@pytest.mark.parametrize("count", [None, 3])
def test_a_network_of_zeros_has_an_empty_or_a_zero_spectrum(subspace, count):
    network = GroupNetwork(FiniteAbelianGroup((3,)), *(torch.zeros(3, 2, dtype=torch.float64),) * 3)
    found = answer(network, subspace=subspace, count=count)
    counts = found.spectrum.counts
    assert signs(counts) == (0, 18 if subspace == "full" else 0, 0)
    assert counts.certified


# -- zero is not small ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stretch", [1.0, 10.0, 100.0, 1000.0])
def test_a_rescaling_that_cannot_change_signs_does_not(stretch):
    """(a, b, c) -> (t a, t b, c/t^2) is a congruence: 42 negative, 16 zero, 62 positive (50 digits)."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = (0.3 * torch.randn(5, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    group = FiniteAbelianGroup((5,))
    network = GroupNetwork(group, stretch * a, stretch * b, c / stretch**2)
    counts = answer(network).spectrum.counts
    for name, exact in (("negative", 42), ("marginal", 16), ("positive", 62)):
        low, high = counts.bounds[name]
        assert low <= exact <= high
    assert counts.certified == (stretch <= 10)


def test_blocks_certify_no_zero_that_is_only_small():
    """F6 moved by 1e-9 has 53 negative eigenvalues below 1e-11: smaller than the bound is not zero."""
    group = FiniteAbelianGroup((7,))
    exact = f6(group)
    rng = np.random.default_rng(0)
    moved = [
        w + 1e-9 * torch.as_tensor(rng.standard_normal(tuple(w.shape))) for w in (exact.a, exact.b, exact.c)
    ]
    network = GroupNetwork(group, *moved, exact.output_scale)
    task, measure = GroupTask(group), network.measure()
    plan = plan_spectrum(task, measure, subspace="full", count=None)
    dense = compute_spectrum(plan, task, measure).spectrum
    blocks = compute_spectrum(dataclasses.replace(plan, dense=False, blocks=True), task, measure).spectrum
    assert dense.counts.negative >= 53
    low, high = blocks.counts.bounds["negative"]
    assert low <= dense.counts.negative <= high
    assert not blocks.counts.certified
    assert blocks.counts.marginal == dense.counts.marginal == 2 * network.width


# -- rounding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2.0**7, 2.0**14, 2.0**20])
def test_means_that_cancel_are_part_of_the_bound(size):
    """a + t, b - t is the same network: its spectrum may move by the stated error only."""
    a, b, c = (torch.round(2**20 * w) / 2**20 for w in raw(3, 3, 0))  # t is added without rounding
    group = FiniteAbelianGroup((3,))
    plain = answer(GroupNetwork(group, a, b, c), "mse").spectrum
    moved = answer(GroupNetwork(group, a + size, b - size, c), "mse").spectrum
    apart = np.abs(plain.eigenvalues - moved.eigenvalues)
    assert (apart <= plain.errors + moved.errors).all()
    assert moved.errors.max() < 1e-12 * size * moved.norm


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_a_mean_that_the_loss_does_not_see_costs_no_digit(size):
    a, b, c = (torch.round(2**20 * w) / 2**20 for w in raw(3, 3, 0))
    group = FiniteAbelianGroup((3,))
    plain, moved = (answer(GroupNetwork(group, a, b, x)).spectrum for x in (c, c + size))
    assert np.abs(plain.eigenvalues - moved.eigenvalues).max() < 1e-13 * plain.norm
    assert moved.errors.max() < 1e-12 * plain.norm
    assert signs(moved.counts) == signs(plain.counts)


def test_rounding_of_points_is_what_cancellation_makes_of_it():
    points = torch.tensor([[1e8, -1e8 + 1.0]], dtype=torch.float64)
    measure = ParticleMeasure(points)
    bound = of_points(measure, lambda at: at.points.sum(1))
    assert 1e8 * 2**-52 < bound < 100 * 1e8 * 2**-52
    scaled = dataclasses.replace(measure, scale=torch.ones_like(points))
    assert of_points(scaled, lambda at: at.points.sum(1)) < 1e-6 * bound
    assert of_points(measure, lambda at: 3 * at.points.sum(1)) == pytest.approx(3 * bound)


def test_arithmetic_grows_with_the_norm_and_the_root_of_the_dimension():
    assert arithmetic(4, 3.0) == pytest.approx(16 * 2.0**-52 * 2 * 3, abs=0)


def test_what_widens_a_spectrum_widens_all_that_it_claims():
    network = GroupNetwork(FiniteAbelianGroup((3,)), *raw(3, 4, 2))
    found = answer(network).spectrum
    wide = found.widened(0.5)
    assert np.allclose(wide.errors, found.errors + 0.5)
    assert wide.counts.negative == int((found.eigenvalues < -wide.errors).sum())
    low, high = found.smallest_enclosure
    assert wide.smallest_enclosure == pytest.approx((low - 0.5, high + 0.5))
    ends = dataclasses.replace(found, complete=False, lowest=-70.0)
    low, high = ends.smallest_enclosure
    assert ends.widened(0.5).smallest_enclosure == pytest.approx((low - 0.5, high + 0.5))


# -- kinks ----------------------------------------------------------------------------------------------


class _At(torch.autograd.Function):
    """A kinked activation with a chosen slope at 0, second derivative zero."""

    @staticmethod
    def forward(ctx, x, left, right, middle):
        ctx.save_for_backward(torch.where(x > 0, right, torch.where(x < 0, left, middle)).to(x))
        return torch.where(x > 0, right * x, left * x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None, None, None


@pytest.mark.parametrize("kind", [Relu, Abs])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_holds_whatever_the_slope_at_the_kink_is(kind, loss, seed):
    n, q, group = 4, 3, FiniteAbelianGroup((4,))
    a, b, c = (torch.round(2 * w) / 2 for w in raw(n, q, seed))
    on_kink = int((a[:, None] + b[None] == 0).sum())
    assert on_kink > 0
    network = GroupNetwork(group, a, b, c, activation=kind())
    spectrum = answer(network, loss).spectrum
    left, right = kind.sides
    target = oracles.sum_table((n,)).reshape(-1)
    for middle in (left, (left + right) / 2, right):

        def scalar(a, b, c, middle=middle):
            outputs = (_At.apply((a[:, None] + b[None]).reshape(-1, q), left, right, middle)) @ c.T
            if loss == "cross_entropy":
                return torch.nn.functional.cross_entropy(outputs, target)
            return (outputs - torch.eye(n, dtype=a.dtype)[target]).square().sum(1).mean()

        exact = network.raw_scale * torch.linalg.eigvalsh(oracles.dense_hessian(scalar, a, b, c)).numpy()
        assert (np.abs(spectrum.eigenvalues - exact) <= spectrum.errors).all()


@pytest.mark.parametrize("forms", [False, True])
def test_a_span_that_the_slope_at_the_kink_decides_is_left_open(forms):
    """With ReLU'(0) = 0 no gradient reaches neurons at zero, with 1/2 or 1 some do."""
    group = FiniteAbelianGroup((2,))
    zero = torch.zeros(2, 3, dtype=torch.float64)
    network = GroupNetwork(group, zero, zero, raw(2, 3, 0)[2], activation=Relu())
    task, measure = OutputTask(group, network.activation), network.measure()
    ranks = []
    for one in (task, *task.choices()):
        at = one.linearise(measure)
        ranks.append(np.linalg.matrix_rank(SecondVariation(at).weighted_gradients().numpy()))
    plan = dataclasses.replace(plan_spectrum(task, measure, count=None), metric=forms)
    found = compute_spectrum(plan, task, measure)
    assert ranks[0] == found.rank == 0 < max(ranks) <= found.spectrum.missing
    assert found.leak is None
    assert found.spectrum.counts.most_positive >= max(ranks)
    assert not found.spectrum.counts.certified


@pytest.mark.parametrize("forms", [False, True])
def test_kinks_do_not_matter_where_gradients_fill_everything(forms):
    group = FiniteAbelianGroup((5,))
    a, b, c = raw(5, 2, 4)
    b[1, 0] = -a[0, 0]
    task, measure = OutputTask(group, Abs()), GroupNetwork(group, a, b, c, activation=Abs()).measure()
    plan = dataclasses.replace(plan_spectrum(task, measure, count=None), metric=forms)
    found = compute_spectrum(plan, task, measure)
    assert (found.rank, found.spectrum.missing) == (24, 0)
    assert found.spectrum.converged
    assert 0 < found.spectrum.errors.max() < np.inf
    assert found.leak is not None


@pytest.mark.parametrize("forms", [False, True])
def test_a_span_that_turns_with_the_slope_at_kinks_is_not_known(forms):
    """Three kinks of five neurons on Z2: the rank is 8 with every slope, the space is not the same."""
    group = FiniteAbelianGroup((2,))
    a, b, c = raw(2, 5, 1)
    b[0, :3] = -a[0, :3]
    task, measure = (
        OutputTask(group, Relu(), loss="mse"),
        GroupNetwork(group, a, b, c, activation=Relu()).measure(),
    )
    plan = dataclasses.replace(plan_spectrum(task, measure, count=None), metric=forms)
    found = compute_spectrum(plan, task, measure)
    assert found.rank + found.spectrum.missing >= 8
    assert not found.spectrum.counts.certified
    assert np.isinf(found.spectrum.errors).all()
    assert found.leak is None
    assert not found.spectrum.converged


def test_weights_that_cancel_are_on_the_kink_after_the_change_of_coordinates():
    """In Fourier coordinates exact zeros become 1e-17 of either sign: they are taken for what they were."""
    n, q, group = 7, 5, FiniteAbelianGroup((7,))
    a, _, c = raw(n, q, 4)
    network = GroupNetwork(group, a, -a, c, activation=Relu())
    spectrum = answer(network).spectrum

    def scalar(a, b, c):
        outputs = (a[:, None] + b[None]).relu() @ c.T
        residual = outputs - torch.eye(n, dtype=a.dtype)[oracles.sum_table((n,))]
        return (residual - residual.mean(-1, keepdim=True)).square().sum(-1).mean()

    exact = network.raw_scale * torch.linalg.eigvalsh(oracles.dense_hessian(scalar, a, -a, c)).numpy()
    assert np.abs(spectrum.eigenvalues - exact).max() < 1e-12 * spectrum.norm
    assert spectrum.errors.min() > 1e-4 * spectrum.norm  # 49 of 245 could be anything between


def test_smooth_activations_have_no_choices():
    task = GroupTask(FiniteAbelianGroup((3,)))
    assert task.choices() == [] == Decayed(task, 0.1).choices()
    kinked = OutputTask(FiniteAbelianGroup((3,)), Relu())
    assert [other.activation.at_kink for other in kinked.choices()] == [0.5, 1.0]
    assert len(Decayed(kinked, 0.1).choices()) == 2
    assert [other.at_kink for other in Abs().choices()] == [-1.0, 1.0]


def test_uncertainty_of_the_operator_bounds_its_change_under_rounding():
    task = GroupTask(FiniteAbelianGroup((5,)), loss="cross_entropy")
    measure = GroupNetwork(FiniteAbelianGroup((5,)), *raw(5, 6, 3)).measure()
    bound = operator_uncertainty(task, measure)
    full = SecondVariation(task.linearise(measure)).dense()
    worst = 0.0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        signs_of_moves = torch.as_tensor(rng.choice([-1.0, 1.0], measure.points.shape))
        turned = measure.points * (1 + 2.0**-52 * signs_of_moves)
        other = SecondVariation(task.linearise(ParticleMeasure(turned))).dense()
        worst = max(worst, float(torch.linalg.matrix_norm(other - full, 2)))
    assert 0 < worst < bound < 1000 * worst
    assert math.isfinite(bound)


@pytest.mark.parametrize("orders", [(3,), (4,), (5,), (2, 2)])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("loss", ["projected_mse", "mse", "cross_entropy"])
def test_as_many_potentials_as_functions_are_independent(orders, tied, centred, loss):
    """Counted by the rank of their values at more random neurons than there are functions."""
    task = GroupTask(FiniteAbelianGroup(orders), loss=loss, centred=centred, tied=tied)
    n = task.group.order
    rng = np.random.default_rng(0)
    neurons = task.potential_count + 10
    a, b, c = task.embed(torch.as_tensor(rng.standard_normal((neurons, task.dimension))))
    values = torch.as_tensor(task.group.real_basis) * n**0.5
    squares = ((a @ values.T)[:, :, None] + (b @ values.T)[:, None, :]).square().reshape(neurons, -1)
    functions = (squares[:, :, None] * (c @ values.T)[:, None, :]).reshape(neurons, -1)
    assert int(torch.linalg.matrix_rank(functions, rtol=1e-9)) == task.potential_count


@pytest.mark.parametrize("activation", [Relu(), Tanh(), Gelu()])
def test_no_sign_is_claimed_of_a_network_of_zeros(activation):
    """Its derivatives cancel in sums over pairs: what is left is rounding, and no norm tells its size."""
    group = FiniteAbelianGroup((5,))
    zero = torch.zeros(5, 12, dtype=torch.float64)
    task = OutputTask(group, activation)
    measure = GroupNetwork(group, zero, zero, zero, activation=activation).measure()
    uncertainty = operator_uncertainty(task, measure)
    assert uncertainty > 0
    found = block_spectrum(SecondVariation(task.linearise(measure)), 3, uncertainty=uncertainty)
    assert signs(found.widened(uncertainty).counts) == (0, 0, 0)


def test_coordinates_that_are_rounding_do_not_count_for_the_rank():
    """Fourier coordinates make 1e-17 of exact zeros of F6: scaled up they once hid the rest, or counted."""
    network = f6(FiniteAbelianGroup((3, 3)))
    found = answer(network, subspace="span")
    n, q = network.a.shape
    assert 0 < found.rank <= q * (3 * n - 3)
    assert found.rank == int(torch.linalg.matrix_rank(
        SecondVariation(GroupTask(network.group).linearise(network.measure())).weighted_gradients(), rtol=1e-9
    ))  # fmt: skip


@pytest.mark.parametrize("size", [1e3, 1e6])
def test_cross_entropy_loses_no_digit_to_a_mean_of_c(size):
    """softmax does not see it: it is an exact null direction, however large."""
    a, b, c = (torch.round(2**20 * w) / 2**20 for w in raw(4, 3, 5))
    group = FiniteAbelianGroup((4,))
    plain, moved = (answer(GroupNetwork(group, a, b, x), "cross_entropy").spectrum for x in (c, c + size))
    assert np.abs(plain.eigenvalues - moved.eigenvalues).max() < 1e-13 * plain.norm
    assert signs(moved.counts)[1] == 2 * 3
    assert moved.counts.certified


def test_a_tail_that_vanishes_in_double_precision_is_no_missing_direction():
    """gelu far below zero is 1e-300, not zero: its directions may be in span(R)."""
    a, b, c = raw(4, 3, 6)
    network = GroupNetwork(FiniteAbelianGroup((4,)), a - 60 * torch.eye(3)[0], b, c, activation=Gelu())
    task = OutputTask(network.group, network.activation, gain=network.gain)
    assert bool(task.linearise(network.measure()).reached().all())
    dead = GroupNetwork(network.group, network.a, b, c, activation=Relu())
    task = OutputTask(network.group, dead.activation, gain=dead.gain)
    assert not bool(task.linearise(dead.measure()).reached()[0].any())
