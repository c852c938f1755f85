"""Second variation, restriction to span(R), spectra and refinement against dense references."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold.errors import InputError, NotConvergedError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.flow.gradient_flow import FixedPointKind, gradient_flow, refine
from spectra.functionals.base import Decayed, PotentialFunctional
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum
from spectra.networks.potentials import group_monomials
from spectra.operators import variation
from spectra.operators.tangent import TangentSpace, tangent_space
from spectra.operators.variation import (
    DeflatedVariation,
    DenseOperator,
    RestrictedVariation,
    SecondVariation,
    SymmetricOperator,
    flat_operator,
)
from spectra.solvers.block_lanczos import block_spectrum
from spectra.solvers.spectrum import dense_spectrum
from spectra.tasks.group_task import GroupTask
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
    from spectra.networks.group_network import GroupNetwork

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


# -- operators, entry by entry --------------------------------------------------------------------------


class Matrix(SymmetricOperator):
    """A matrix, symmetric or not, by its products only."""

    def __init__(self, matrix):
        self.matrix, self.dimension, self.calls = matrix, len(matrix), []

    def _apply(self, block):
        self.calls.append(block.shape[1])
        return self.matrix @ block


def table(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape))


def weighted(q=3, *, equal=False, seed=0, orders=(3,), **options):
    task = GroupTask(FiniteAbelianGroup(orders), **options)
    weights = None if equal else torch.linspace(0.1, 0.7, q, dtype=torch.float64)
    return task, ParticleMeasure(table(q, task.dimension, seed=seed), weights)


def test_products_are_counted_and_their_shape_is_checked():
    operator = Matrix(table(4, 4))
    operator.apply(table(4, 3))
    operator.apply(table(4, 2))
    assert (operator.matvecs, operator.calls) == (5, [3, 2])
    empty = torch.zeros(4, 0, dtype=torch.float64)
    assert operator.apply(empty) is not empty
    assert operator.apply(empty).shape == (4, 0)
    assert operator.calls == [3, 2]
    for wrong in (table(3, 1), table(4), table(4, 1, 1)):
        with pytest.raises(InputError, match="block: expected shape"):
            operator.apply(wrong)
    assert operator.device == torch.device("cpu")


def test_matrices_are_assembled_in_chunks_and_made_symmetric():
    operator = Matrix(table(260, 260))
    torch.testing.assert_close(operator.dense(), 0.5 * (operator.matrix + operator.matrix.T), rtol=0, atol=0)
    assert operator.calls == [256, 4]
    dense = DenseOperator(operator.matrix)
    torch.testing.assert_close(dense.dense(), 0.5 * (operator.matrix + operator.matrix.T), rtol=0, atol=0)
    torch.testing.assert_close(dense.apply(table(260, 2)), dense.matrix @ table(260, 2))
    assert dense.dimension == 260


def test_scipy_sees_the_same_operator():
    operator = Matrix(table(4, 4))
    seen = operator.linear_operator()
    assert (seen.shape, seen.dtype) == ((4, 4), np.float64)
    block = table(4, 3).numpy()
    assert np.allclose(seen.matvec(block[:, 0]), operator.matrix.numpy() @ block[:, 0])
    assert np.allclose(seen.matmat(block), operator.matrix.numpy() @ block)


def test_particles_of_weight_zero_are_no_part_of_a_measure():
    task, measure = weighted()
    weights = measure.weights.clone()
    weights[1] = 0
    with pytest.raises(InputError, match="weight zero"):
        SecondVariation(task.linearise(ParticleMeasure(measure.points, weights)))


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("parts", [("interaction", "local"), ("interaction",), ("local",)])
def test_the_second_variation_is_that_of_the_weighted_loss(equal, parts, monkeypatch):
    """Second derivatives of H in the points are ``w_j (local) + w_j w_l (interaction)``: over the roots."""
    task, measure = weighted(equal=equal)
    at = task.linearise(measure)
    size = measure.points.numel()

    def value(points):
        return task.linearise(ParticleMeasure(points.reshape(measure.points.shape), measure.weights)).value

    step, eye = 1e-3, torch.eye(size, dtype=torch.float64)
    flat = measure.points.reshape(-1)
    hessian = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(i + 1):
            moves = [
                one * two * value(flat + step * (one * eye[i] + two * eye[j]))
                for one in (1, -1)
                for two in (1, -1)
            ]
            hessian[i, j] = hessian[j, i] = sum(moves) / (4 * step**2)
    root = measure.weights.repeat_interleave(task.dimension).sqrt()
    whole = hessian / torch.outer(root, root)
    local = torch.block_diag(*at.local_blocks())
    expected = {"il": whole, "i": whole - local, "l": local}["".join(part[0] for part in parts)]
    full = SecondVariation(at, parts=parts)
    by_products = SymmetricOperator.dense(full)
    assert (by_products - expected).norm() < 1e-5 * whole.norm()
    torch.testing.assert_close(full.dense(), by_products, rtol=0, atol=1e-12 * float(whole.norm()))
    assert full.full is full
    monkeypatch.setattr(variation, "FIELD_BYTES", 8 * size * 2)  # two fields at once
    block = table(size, 5)
    torch.testing.assert_close(full.apply(block), by_products @ block)


def test_fields_are_handed_on_in_chunks_of_bounded_memory(monkeypatch):
    task, measure = weighted(equal=True)
    full = SecondVariation(task.linearise(measure))
    sizes, fields = [], SecondVariation._fields
    monkeypatch.setattr(SecondVariation, "_fields", lambda s, b: sizes.append(b.shape[1]) or fields(s, b))
    for limit, expected in ((16 * full.dimension, [2, 2, 1]), (1, [1] * 5), (2**22, [5])):
        monkeypatch.setattr(variation, "FIELD_BYTES", limit)
        full.apply(table(full.dimension, 5))
        assert sizes == expected
        sizes.clear()


def test_gradients_are_weighted_by_the_root():
    task, measure = weighted()
    full = SecondVariation(task.linearise(measure))
    gradients = table(3, 4, task.dimension)
    found = full.weighted_gradients(gradients).reshape(3, task.dimension, 4)
    for j in range(3):
        torch.testing.assert_close(found[j], measure.weights[j] ** 0.5 * gradients[j].T)
    torch.testing.assert_close(
        full.weighted_gradients(), full.weighted_gradients(task.linearise(measure).potential_gradients())
    )


def test_what_leaves_a_space_and_what_a_tilt_costs():
    task, measure = weighted()
    full = SecondVariation(task.linearise(measure))
    dense = full.dense()
    basis = torch.linalg.qr(table(full.dimension, 6))[0]
    restricted = RestrictedVariation(full, TangentSpace(basis, 6, 0.0, 1e-2))
    outside = dense @ basis - basis @ (basis.T @ dense @ basis)
    torch.testing.assert_close(restricted.matrix, basis.T @ dense @ basis)
    vectors = table(6, 2)
    torch.testing.assert_close(restricted.lift(vectors), basis @ vectors)
    torch.testing.assert_close(restricted.leak(vectors), (outside @ vectors).norm(dim=0))
    norm = float(torch.linalg.matrix_norm(dense, 2))
    leak = float(torch.linalg.matrix_norm(outside, 2))
    assert restricted.tilt_error(norm) == pytest.approx(2e-2 * leak + 2e-4 * norm, rel=1e-12)
    # A space turned by that angle, in the worst direction that is seen at once: along what leaks.
    away = torch.linalg.qr(outside)[0]
    turned = np.cos(1e-2) * basis + np.sin(1e-2) * away
    moved = torch.linalg.eigvalsh(turned.T @ dense @ turned) - torch.linalg.eigvalsh(restricted.matrix)
    assert 0 < float(moved.abs().max()) <= restricted.tilt_error(norm)
    empty = RestrictedVariation(full, TangentSpace(basis[:, :0], 6, 0.0, 1e-2))
    assert empty.tilt_error(norm) == pytest.approx(2e-4 * norm)


def test_a_deflated_operator_is_the_compressed_matrix():
    task, measure = weighted()
    full = SecondVariation(task.linearise(measure))
    deflated = DeflatedVariation(full)
    lifted = deflated.lift(torch.eye(deflated.dimension, dtype=torch.float64))
    torch.testing.assert_close(deflated.dense(), lifted.T @ full.dense() @ lifted)
    torch.testing.assert_close(
        deflated.project(table(full.dimension, 2)), lifted.T @ table(full.dimension, 2)
    )
    assert deflated.removed == 3 * 3 == full.dimension - lifted.shape[1]
    other = SecondVariation(task.linearise(measure), parts=("local",))
    same = deflated.on(other)
    assert torch.equal(same.space.inside, deflated.space.inside)
    torch.testing.assert_close(same.dense(), lifted.T @ other.dense() @ lifted)
    assert (deflated.device, full.device) == (measure.points.device,) * 2


def test_the_flat_matrix_has_the_roots_of_both_weights():
    task, measure = weighted()
    at = task.linearise(measure)
    kernel, weights = at.flat_kernel(), measure.weights
    found = flat_operator(at).matrix
    for j in range(3):
        for k in range(3):
            assert found[j, k] == pytest.approx(float((weights[j] * weights[k]) ** 0.5 * kernel[j, k]))
