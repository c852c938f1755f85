"""Second variation, restriction to span(R), spectra and refinement against dense references."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold.errors import InputError, NotConvergedError
from manifold.groups import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.block_solvers import block_spectrum
from spectra.eigen import dense_spectrum
from spectra.flow import FixedPointKind, gradient_flow, refine
from spectra.functionals import Decayed, PotentialFunctional
from spectra.group_task import GroupTask
from spectra.plan import compute_spectrum, plan_spectrum
from spectra.potentials import group_monomials
from spectra.tangent import tangent_space
from spectra.variation import (
    DeflatedVariation,
    DenseOperator,
    RestrictedVariation,
    SecondVariation,
    flat_operator,
)
from tests import oracles

ORDERS = [(4,), (5,), (7,), (2, 3), (2, 2, 3)]


def random_measure(task, q, seed=0, scale=0.5):
    rng = torch.Generator().manual_seed(seed)
    return ParticleMeasure(scale * torch.randn(q, task.dimension, generator=rng, dtype=torch.float64))


def solution(orders, q, *, centred=True, decay=0.0, seed=0):
    """A refined fixed point reached by the flow."""
    task = GroupTask(FiniteAbelianGroup(orders), centred=centred)
    functional = Decayed(task, decay) if decay else task
    *_, last = gradient_flow(functional, random_measure(task, q, seed), [30.0])
    return functional, refine(functional, last, tol=1e-9)


@pytest.mark.parametrize("orders", ORDERS)
@pytest.mark.parametrize("centred", [True, False])
def test_spectrum_equals_that_of_the_raw_hessian(orders, centred):
    """eig in z = q n (2nqs)^(-2/3) eig of the Hessian in raw weights, for a raw net with any s."""
    from spectra.networks import GroupNetwork

    group, q, s = FiniteAbelianGroup(orders), 2, 0.3
    rng = torch.Generator().manual_seed(1)
    raw = [torch.randn(group.order, q, generator=rng, dtype=torch.float64) for _ in range(3)]
    if centred:
        raw = [w - w.mean(0) for w in raw]
    net = GroupNetwork(group, *raw, s)

    def scalar(a, b, c):
        return oracles.naive_loss(a, b, c, s, orders, "projected_mse")

    dense = net.raw_scale * oracles.dense_hessian(scalar, *raw)
    if centred:  # compress to mean-free weights
        basis = torch.linalg.svd(torch.eye(group.order, dtype=torch.float64) - 1 / group.order)[0][
            :, :-1
        ].contiguous()
        lift = torch.kron(
            torch.eye(3, dtype=torch.float64), torch.kron(basis, torch.eye(q, dtype=torch.float64))
        )
        dense = lift.T @ dense @ lift
    expected = torch.linalg.eigvalsh(dense).numpy()
    task = GroupTask(group, centred=centred)
    at = task.linearise(net.measure(centred=centred))
    assert at.null_count == (0 if centred else 2 * q)  # the mean of c, and a + t, b - t
    found = dataclasses.replace(dense_spectrum(SecondVariation(at)), null=at.null_count)
    assert np.abs(found.eigenvalues - expected).max() < 1e-11 * np.abs(expected).max()
    assert found.counts.certified
    assert found.errors.max() < 1e-10 * found.norm


@pytest.mark.parametrize(("orders", "rank"), [((3,), 18), ((5,), 100)])
@pytest.mark.parametrize("centred", [True, False])
def test_mp_critical_points_have_their_whole_spectrum_in_span_r(orders, rank, centred):
    functional, point = solution(orders, 2 * rank, centred=centred)
    assert point.kind is FixedPointKind.MP_CRITICAL
    assert point.gradient_norm_after < 1e-9
    full = SecondVariation(functional.linearise(point.measure))
    space = tangent_space(full.weighted_gradients())
    restricted = RestrictedVariation(full, space)
    found = dense_spectrum(restricted)
    assert space.rank == rank == found.counts.positive
    assert found.counts.negative == 0
    everything = np.linalg.eigvalsh(full.dense().numpy())
    assert np.abs(everything[-rank:] - found.eigenvalues).max() < 1e-8
    assert np.abs(everything[:-rank]).max() < 1e-8
    assert restricted.leak(found.vectors).max() < 1e-8
    # the scaling symmetry gives one exact null direction per neuron, orthogonal to span(R)
    deflated = DeflatedVariation(full)
    assert deflated.removed == len(point.measure) * (1 if centred else 3)
    inside = torch.eye(full.dimension, dtype=torch.float64)
    directions = inside - deflated.lift(deflated.project(inside))
    assert full.apply(directions).norm() < 1e-7
    assert (space.basis.T @ directions).norm() < 1e-10


def test_a_decayed_run_has_the_spectrum_of_the_decayed_objective():
    functional, point = solution((3,), 24, decay=0.02)
    assert point.kind is FixedPointKind.STATIONARY
    plain = dense_spectrum(SecondVariation(functional.functional.linearise(point.measure)))
    decayed = dense_spectrum(SecondVariation(functional.linearise(point.measure)))
    assert np.allclose(decayed.eigenvalues, plain.eigenvalues + 0.02, atol=1e-11)
    assert decayed.counts.negative == 0


def test_ritz_values_interlace_the_full_spectrum_away_from_fixed_points():
    task = GroupTask(FiniteAbelianGroup((4,)))
    full = SecondVariation(task.linearise(random_measure(task, 12)))
    everything = np.linalg.eigvalsh(full.dense().numpy())
    ritz = dense_spectrum(RestrictedVariation(full, tangent_space(full.weighted_gradients()))).eigenvalues
    gap = len(everything) - len(ritz)
    assert (ritz >= everything[: len(ritz)] - 1e-12).all()
    assert (ritz <= everything[gap:] + 1e-12).all()


def test_flat_spectrum_is_that_of_the_weighted_kernel():
    """H is quadratic in the weights, so its second differences are the kernel exactly."""
    group = FiniteAbelianGroup((3,))
    task = GroupTask(group, centred=True)
    measure = random_measure(task, 40)
    values = flat_operator(task.linearise(measure)).matrix
    ours = np.linalg.eigvalsh(values.numpy())[::-1][:18]
    q = len(measure)
    hessian = np.zeros((q, q))
    base = measure.weights
    unit = torch.eye(q, dtype=torch.float64)

    def h(w):
        return task.linearise(ParticleMeasure(measure.points, w)).value

    for i in range(q):
        for j in range(i, q):
            hessian[i, j] = hessian[j, i] = (
                h(base + unit[i] + unit[j]) - h(base + unit[i]) - h(base + unit[j]) + h(base)
            )
    expected = np.linalg.eigvalsh(hessian / q)[::-1][:18]
    assert np.allclose(ours, expected, rtol=1e-9, atol=1e-10 * ours[0])


@pytest.mark.parametrize("q", [3, 40])
def test_plans_take_the_smaller_side(q):
    task = GroupTask(FiniteAbelianGroup((4,)), centred=True)
    measure = random_measure(task, q)
    plan = plan_spectrum(task, measure)
    assert plan.side == ("particles" if q == 3 else "potentials")
    result = compute_spectrum(plan, task, measure)
    assert result.rank == min(task.potential_count, q * (task.dimension - 1))
    assert result.spectrum.complete


def test_krylov_ends_agree_with_dense_and_report_failure():
    task = GroupTask(FiniteAbelianGroup((5,)), centred=True)
    full = SecondVariation(task.linearise(random_measure(task, 30)))
    dense = dense_spectrum(full)
    ends = block_spectrum(full, 4, tol=1e-9)
    assert ends.converged
    assert np.allclose(ends.largest(4)[0], dense.largest(4)[0], atol=1e-7)
    assert np.allclose(ends.smallest(4)[0], dense.smallest(4)[0], atol=1e-7)
    assert not ends.counts.certified
    short = block_spectrum(full, 4, tol=1e-14, max_products=1)
    assert not short.converged
    assert "iteration limit" in short.reason.value


def test_error_bounds_hold_and_signs_are_not_overclaimed():
    values = torch.tensor([-1.0, -1e-17, 0.0, 1e-17, 1e-3, 2.0], dtype=torch.float64)
    rotation = torch.linalg.qr(
        torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )[0]
    found = dense_spectrum(DenseOperator(rotation @ torch.diag(values) @ rotation.T))
    assert (np.abs(found.eigenvalues - values.numpy()) <= found.errors).all()
    counts = found.counts
    assert (counts.negative, counts.marginal, counts.positive, counts.undetermined) == (1, 0, 2, 3)
    assert not counts.certified  # nothing says that the three small ones are zero
    known = dataclasses.replace(found, null=3).counts
    assert (known.negative, known.marginal, known.positive, known.certified) == (1, 3, 2, True)


def test_nan_in_the_operator_is_refused():
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        dense_spectrum(DenseOperator(matrix))


def test_refinement_that_cannot_converge_keeps_its_partial_result():
    task = GroupTask(FiniteAbelianGroup((5,)), centred=True)
    with pytest.raises(NotConvergedError) as caught:
        refine(task, random_measure(task, 10, scale=0.3), max_iterations=1)
    assert caught.value.partial.gradient_norm_after > 1e-9


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), orders=st.sampled_from(ORDERS[:4]), centred=st.booleans())
def test_spectrum_invariances(seed, orders, centred):
    """Permuting neurons, shifting by the group, splitting a neuron in two: the spectrum stays."""
    group = FiniteAbelianGroup(orders)
    task = GroupTask(group, centred=centred)
    measure = random_measure(task, 4, seed)
    rng = np.random.default_rng(seed)
    base = dense_spectrum(SecondVariation(task.linearise(measure))).eigenvalues
    order = torch.as_tensor(rng.permutation(4))
    permuted = ParticleMeasure(measure.points[order])
    # translate a by g, b by h, c by g + h: rotation of each Fourier pair
    g, h = (int(i) for i in rng.integers(0, group.order, 2))
    basis = torch.as_tensor(group.real_basis)[:, int(centred) :]
    a, b, c = (basis @ part.T for part in measure.points.chunk(3, dim=1))
    moved = [w[group.sums[shift]] for w, shift in ((a, g), (b, h), (c, group.sums[g, h]))]
    shifted = ParticleMeasure(torch.cat([w.T @ basis for w in moved], dim=1))
    for other in (permuted, shifted):
        assert task.value(other) == pytest.approx(task.value(measure), rel=1e-11)
        found = dense_spectrum(SecondVariation(task.linearise(other))).eigenvalues
        assert np.allclose(found, base, atol=1e-11 * np.abs(base).max())
    double = ParticleMeasure(
        torch.cat([measure.points, measure.points[:1]]),
        torch.cat([measure.weights[:1] * 0.3, measure.weights[1:], measure.weights[:1] * 0.7]),
    )
    split = dense_spectrum(SecondVariation(task.linearise(double))).eigenvalues
    # splitting adds the local spectrum of that neuron; the old eigenvalues all stay
    local = torch.linalg.eigvalsh(task.linearise(measure).local_blocks()[0]).numpy()
    assert np.allclose(np.sort(np.concatenate([base, local])), split, atol=1e-10 * np.abs(base).max())


def test_generic_functional_agrees_with_the_group_functional():
    group = FiniteAbelianGroup((4,))
    task = GroupTask(group, centred=True)
    measure = random_measure(task, 5)
    monomials = group_monomials(group, centred=True)
    basis = torch.as_tensor(group.real_basis)[:, 1:] * 2

    def outputs(points):
        a, b, c = (part @ basis.T for part in points.chunk(3, dim=1))
        table = c[:, None, None, :] * (a[:, :, None] + b[:, None, :])[..., None] ** 2 / 8
        return table.reshape(len(points), -1)

    target = (torch.eye(4, dtype=torch.float64) - 0.25)[torch.as_tensor(group.sums)].reshape(-1)
    generic = PotentialFunctional(outputs, lambda rho: (rho - target).square().sum() / 16, count=64)
    one, two = generic.linearise(measure), task.linearise(measure)
    assert one.value == pytest.approx(two.value, rel=1e-12)
    assert torch.allclose(one.gradient, two.gradient, atol=1e-12)
    fields = torch.randn(
        3, 5, task.dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for parts in (("interaction",), ("local",), ("interaction", "local")):
        assert torch.allclose(one.product(fields, parts), two.product(fields, parts), atol=1e-11)
    assert torch.allclose(one.flat_kernel(), two.flat_kernel(), atol=1e-11)
    assert torch.allclose(one.local_blocks(), two.local_blocks(), atol=1e-11)
    spans = [tangent_space(SecondVariation(at).weighted_gradients()) for at in (one, two)]
    by_monomials = tangent_space(SecondVariation(two).weighted_gradients(monomials.jacobian(measure.points)))
    assert spans[0].rank == spans[1].rank == by_monomials.rank
    angle = spans[0].basis.T @ spans[1].basis
    assert torch.linalg.svdvals(angle).min() > 1 - 1e-10
    assert torch.linalg.svdvals(spans[0].basis.T @ by_monomials.basis).min() > 1 - 1e-10


def test_flow_reduces_the_loss_like_an_exponential_near_a_minimum():
    functional, point = solution((3,), 30)
    full = SecondVariation(functional.linearise(point.measure))
    found = dense_spectrum(full)
    rate = found.eigenvalues[-1]
    mode = found.vectors[:, -1].reshape(point.measure.points.shape)
    size = 1e-5
    start = ParticleMeasure(point.measure.points + size * mode)
    time = 1.0 / rate
    (end,) = gradient_flow(functional, start, [time], rtol=1e-9, atol=1e-14)
    left = ((end.points - point.measure.points) * mode).sum() / size
    assert float(left) == pytest.approx(np.exp(-rate * time), rel=1e-3)


@pytest.mark.parametrize(("sizes", "rank"), [((3.0, 1.0, 2e-6, 5e-12), 3), ((3.0, 1e-5, 1e-12, 1e-13), 2)])
def test_the_gap_of_a_rank_is_the_first_size_dropped_over_the_last_kept(sizes, rank):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 4)))[0] for n in (9, 6))
    gradients = torch.as_tensor(left * np.array(sizes) @ right.T)
    rows = gradients / gradients.abs().amax(1, keepdim=True)  # of size one, whatever that of the particles
    expected = torch.linalg.svdvals(rows)
    cut = float((expected[rank] * expected[rank - 1]).sqrt() / expected[0])
    space = tangent_space(1e-5 * gradients, noise=1e-5 * gradients.abs().amax(1) * cut / 9)
    assert (space.rank, space.rank_bound) == (rank, 6)
    assert space.gap == pytest.approx(float(expected[rank] / expected[rank - 1]), rel=1e-3)
    assert tangent_space(gradients[:, :2]).gap == 0.0  # nothing was dropped
    assert tangent_space(0 * gradients).rank == 0
