"""Moments of span(R) and the spectrum they give, against the dense matrix of gradients."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import spectra.methods.plan
from manifold.errors import InputError, TooLargeError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.functionals.base import Decayed
from spectra.methods import span_spectrum as span_compression
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum
from spectra.methods.span_spectrum import SpanBasis, compress_to_span
from spectra.operators.span_moments import RestrictedMoments
from spectra.operators.tangent import tangent_space
from spectra.operators.variation import DenseOperator, RestrictedVariation, SecondVariation, SymmetricOperator
from spectra.solvers.spectrum import Reason, Spectrum, dense_spectrum
from spectra.tasks.group_task import GroupTask

CASES = [
    ((5,), "projected_mse", False, 0.0),
    ((4,), "projected_mse", True, 0.3),
    ((2, 3), "mse", False, 0.2),
    ((2, 2), "projected_mse", False, 0.0),
    ((7,), "projected_mse", True, 0.0),
    ((5,), "mse", True, 0.1),
]
NEURONS = 20


def _measure(task, q, *, seed=3, scale=0.7, equal=False):
    rng = np.random.default_rng(seed)
    points = torch.as_tensor(scale * rng.standard_normal((q, task.dimension)))
    return ParticleMeasure(points, None if equal else torch.as_tensor(rng.uniform(0.5, 1.5, q) / q))


def _variation(orders, loss, centred, decay, *, q=NEURONS):
    task = GroupTask(FiniteAbelianGroup(orders), loss=loss, centred=centred)
    functional = Decayed(task, decay) if decay else task
    return SecondVariation(functional.linearise(_measure(task, q)))


def _reference(full):
    """Space and spectrum by the singular values of the matrix of gradients."""
    space = tangent_space(full.weighted_gradients())
    restricted = RestrictedVariation(full, space)
    return space, restricted, dense_spectrum(restricted)


def _close(found, expected, *, tol=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=tol * float(expected.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_metric_and_local_part_are_those_of_the_gradients(case):
    full = _variation(*case)
    gradients = full.weighted_gradients()
    local = SecondVariation(full.at, parts=("local",))
    moments = RestrictedMoments(full.at)
    assert moments.count == gradients.shape[1]
    _close(moments.metric(), gradients.T @ gradients)
    _close(moments.local_form(), gradients.T @ local.apply(gradients))


@pytest.mark.parametrize("case", CASES)
def test_the_interaction_is_the_square_of_the_metric(case):
    full = _variation(*case)
    gradients = full.weighted_gradients()
    interaction = SecondVariation(full.at, parts=("interaction",))
    moments = RestrictedMoments(full.at)
    metric = moments.metric()
    _close(moments.curvature * metric @ metric, gradients.T @ interaction.apply(gradients))


@pytest.mark.parametrize("case", CASES)
def test_functions_are_lifted_and_fields_projected(case):
    full = _variation(*case)
    gradients, moments = full.weighted_gradients(), RestrictedMoments(full.at)
    rng = np.random.default_rng(0)
    functions = torch.as_tensor(rng.standard_normal((moments.count, 3)))
    fields = torch.as_tensor(rng.standard_normal((full.dimension, 3)))
    _close(moments.lift(functions), gradients @ functions)
    _close(moments.project(fields), gradients.T @ fields)


@pytest.mark.parametrize("case", CASES)
def test_eigenvalues_are_those_of_the_restriction(case):
    full = _variation(*case)
    space, restricted, expected = _reference(full)
    found = compress_to_span(full)
    spectrum = found.spectrum
    assert found.rank == space.rank == spectrum.dimension
    assert found.functions == full.weighted_gradients().shape[1]
    apart = np.abs(spectrum.eigenvalues - expected.eigenvalues)
    assert apart.max() < 1e-10 * expected.norm
    assert (apart <= spectrum.errors + expected.errors).all()
    assert spectrum.errors.max() < 1e-7 * spectrum.norm
    assert spectrum.complete
    assert spectrum.converged
    assert spectrum.reason is Reason.MOMENTS
    assert "refined" not in spectrum.method
    assert found.leak >= float(restricted.leak(expected.vectors).max())
    lifted = found.lift(spectrum.vectors)
    _close(lifted.T @ lifted, torch.eye(found.rank, dtype=torch.float64), tol=1e-9)
    _close(lifted.T @ full.apply(lifted), torch.diag(torch.as_tensor(spectrum.eigenvalues)), tol=1e-9)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize(("orders", "centred", "q"), [((5,), True, 3), ((5,), False, 3), ((2, 3), True, 4)])
def test_dependent_gradients_and_copies_of_neurons(orders, centred, q, copies):
    task = GroupTask(FiniteAbelianGroup(orders), centred=centred)
    points = _measure(task, q).points.repeat(copies, 1)
    full = SecondVariation(Decayed(task, 0.1).linearise(ParticleMeasure(points)))
    space, _, expected = _reference(full)
    found = compress_to_span(full)
    assert found.rank == space.rank < found.functions
    assert 0 < found.gap < 1e-4
    apart = np.abs(found.spectrum.eigenvalues - expected.eigenvalues)
    assert apart.max() < 1e-10 * expected.norm
    assert (apart <= found.spectrum.errors + expected.errors).all()


def _two_sizes(seed, ratio):
    """Half of the neurons are much smaller than the others."""
    task = GroupTask(FiniteAbelianGroup((5,)), centred=True)
    points, more = (_measure(task, 6, seed=seed + shift).points for shift in (0, 100))
    return SecondVariation(task.linearise(ParticleMeasure(torch.cat([points, ratio * more]))))


def test_the_gap_of_a_rank_is_that_of_distances_from_the_span_of_those_before():
    """Taken one by one, the farthest first, by projections of the gradients themselves."""
    task = GroupTask(FiniteAbelianGroup((5,)), centred=True)
    full = SecondVariation(task.linearise(_measure(task, 3)))
    moments = RestrictedMoments(full.at)
    metric = moments.metric()
    basis = SpanBasis(moments, metric.clone())
    left, kept = full.weighted_gradients().clone(), []
    for _ in range(basis.rank):
        sizes = left.norm(dim=0)
        kept.append(float(sizes.max()))
        unit = left[:, sizes.argmax()] / sizes.max()
        left = left - unit[:, None] * (unit @ left)
    assert basis.triangle[-1, -1] == pytest.approx(kept[-1], rel=1e-6)
    # What is left of the others is rounding: replace it by a known distance, the root of a moved diagonal.
    last = int(basis.order[-1])
    moved = metric.clone()
    moved[last, last] += (0.01 * kept[-1]) ** 2
    cut = (0.01 * kept[-1]) ** 2 / float(metric.diagonal().max())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(span_compression, "EPS", 10 * cut / len(metric))
        found = SpanBasis(moments, moved)
    assert found.rank == basis.rank
    assert found.gap == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_error_covers_an_ill_conditioned_metric(seed, refine, monkeypatch):
    full = _two_sizes(seed, 4e-3)
    space, _, expected = _reference(full)
    sizes = torch.linalg.svdvals(full.weighted_gradients())
    assert sizes[0] > 1e5 * sizes[space.rank - 1]
    if not refine:
        monkeypatch.setattr(span_compression, "REFINE", np.inf)
    found = compress_to_span(full)
    assert found.rank == space.rank
    apart = np.abs(found.spectrum.eigenvalues - expected.eigenvalues).max()
    assert apart <= found.spectrum.errors.min() + expected.errors.max()
    assert ("refined" in found.spectrum.method) == refine
    if refine:
        assert found.spectrum.errors.max() < 1e-7 * expected.norm
    else:
        assert apart > 1e-9 * expected.norm  # so that there is something to cover
    # No sign is claimed that the reference does not have.
    assert found.spectrum.counts.negative <= expected.counts.negative
    assert found.spectrum.counts.positive <= expected.counts.positive
    lifted = found.lift(found.spectrum.vectors)
    tol = 1e-8 if refine else 1e-2
    _close(lifted.T @ lifted, torch.eye(found.rank, dtype=torch.float64), tol=tol)


def test_a_wrong_table_shows_in_the_error(monkeypatch):
    full = _variation(*CASES[0])
    right = compress_to_span(full).spectrum
    local_form = RestrictedMoments.local_form

    def wrong(self, **options):
        table = local_form(self, **options)
        table[3, 5] += 0.01
        table[5, 3] += 0.01
        return table

    monkeypatch.setattr(RestrictedMoments, "local_form", wrong)
    monkeypatch.setattr(span_compression, "REFINE", np.inf)
    found = compress_to_span(full).spectrum
    apart = np.abs(found.eigenvalues - right.eigenvalues).max()
    assert apart > 1e-6 * right.norm
    assert apart <= found.errors.min()


def test_an_empty_span_and_broken_numbers():
    task = GroupTask(FiniteAbelianGroup((5,)), centred=True)
    zero = ParticleMeasure(torch.zeros(3, task.dimension, dtype=torch.float64))
    found = compress_to_span(SecondVariation(task.linearise(zero)))
    assert found.rank == len(found.spectrum.eigenvalues) == 0
    moments = RestrictedMoments(task.linearise(_measure(task, 3)))
    metric = moments.metric()
    metric[1, 1] = torch.nan
    with pytest.raises(InputError, match="finite"):
        SpanBasis(moments, metric)
    tied = GroupTask(FiniteAbelianGroup((5,)), tied=True)
    with pytest.raises(InputError, match="untied"):
        RestrictedMoments(tied.linearise(_measure(tied, 3)))


@pytest.fixture
def no_gradients(monkeypatch):
    """As if the matrix of gradients were too much work."""
    monkeypatch.setattr(spectra.methods.plan, "DENSE_WORK", 1.0)


@pytest.mark.usefixtures("no_gradients")
def test_the_plan_takes_the_sums_where_the_gradients_do_not_fit():
    task = GroupTask(FiniteAbelianGroup((5,)))
    measure = _measure(task, NEURONS, equal=True)
    plan = plan_spectrum(task, measure, count=None)
    assert plan.moments
    assert plan.subspace == "span"
    assert plan.dimension == task.potential_count == 100
    assert "from sums over neurons" in plan.sentence
    assert " s on one core" in plan.sentence
    assert " MiB" in plan.sentence
    steps = []
    result = compute_spectrum(plan, task, measure, progress=lambda done, total, _: steps.append(done / total))
    _, _, expected = _reference(SecondVariation(task.linearise(measure)))
    assert np.abs(result.spectrum.eigenvalues - expected.eigenvalues).max() < 1e-10 * expected.norm
    assert result.rank == result.functions == 100
    assert steps == sorted(steps)
    assert steps[-1] == 1
    # Some eigenvalues only, or another structure, is as before.
    assert not plan_spectrum(task, measure, count=3).moments
    entropy = GroupTask(FiniteAbelianGroup((5,)), loss="cross_entropy")
    with pytest.raises(TooLargeError, match="Tflop"):
        plan_spectrum(entropy, measure, count=None, memory_limit=2**20)


def test_the_plan_keeps_the_gradients_where_they_fit():
    task = GroupTask(FiniteAbelianGroup((5,)))
    plan = plan_spectrum(task, _measure(task, NEURONS), count=None)
    assert plan.dense
    assert not plan.moments
    assert dataclasses.replace(plan, moments=True).sentence != plan.sentence


def test_the_operator_is_compared_and_not_assembled(monkeypatch):
    """Only a few products are made, and no matrix of gradients."""
    full = _variation(*CASES[0])

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(SecondVariation, "weighted_gradients", refuse)
    monkeypatch.setattr(SymmetricOperator, "dense", refuse)
    monkeypatch.setattr(SecondVariation, "dense", refuse)
    assert compress_to_span(full).spectrum.matvecs < 60


# -- moments of a matrix of gradients that is at hand ---------------------------------------------------

EPS = 2.0**-52


class Moments:
    """The moments of given gradients, and of a local part that does not commute with them."""

    curvature = 0.7

    def __init__(self, dimension=9, rank=4, count=6, seed=0):
        rng = np.random.default_rng(seed)
        table = rng.standard_normal((dimension, rank)) @ rng.standard_normal((rank, count))
        self.gradients, self.count, self.q = torch.as_tensor(table), count, 3
        self.n, self.outputs = 2, range(3)
        part = torch.as_tensor(rng.standard_normal((dimension, dimension)))
        self.local = part + part.T

    def metric(self, advance=lambda: None):
        advance()
        return self.gradients.T @ self.gradients

    def local_form(self, advance=lambda: None):
        advance()
        return self.gradients.T @ self.local @ self.gradients

    def lift(self, block):
        return self.gradients @ block

    def project(self, block):
        return self.gradients.T @ block

    def operator(self):
        return DenseOperator(self.curvature * self.gradients @ self.gradients.T + self.local)


def eye(size):
    return torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("step", [1, 2, 512])
@pytest.mark.parametrize("count", [4, 6])  # all functions independent, or two that depend on the others
def test_the_compression_is_that_of_an_orthonormal_basis(step, count, monkeypatch):
    monkeypatch.setattr(span_compression, "STEP", step)
    moments = Moments(count=count)
    basis = SpanBasis(moments, moments.metric())
    fields = basis.lift(eye(4))
    assert basis.rank == 4
    _close(fields.T @ fields, eye(4), tol=1e-12)
    _close(fields @ (fields.T @ moments.gradients), moments.gradients)
    _close(basis.project(eye(9)), fields.T)
    expected = fields.T @ moments.operator().matrix @ fields
    _close(basis.compress(moments.local_form()), expected)
    small = basis.compress(moments.local_form())
    assert torch.equal(small, small.T)


@pytest.mark.parametrize("step", [1, 2, 512])
def test_a_basis_that_is_not_orthonormal_is_made_so_once_more(step, monkeypatch):
    monkeypatch.setattr(span_compression, "STEP", step)
    moments = Moments()
    basis = SpanBasis(moments, moments.metric())
    basis.triangle = np.asfortranarray(basis.triangle * (1 + 1e-2 * np.random.default_rng(1).random((4, 4))))
    before = basis.lift(eye(4))
    assert (before.T @ before - eye(4)).norm() > 1e-3
    found = basis.refine(moments.operator())
    fields = basis.lift(eye(4))
    _close(fields.T @ fields, eye(4), tol=1e-12)
    _close(found, fields.T @ moments.operator().matrix @ fields)
    assert torch.equal(found, found.T)


def test_a_basis_far_from_orthonormal_is_left_as_it_is():
    moments = Moments()
    basis = SpanBasis(moments, moments.metric())
    triangle = basis.triangle.copy()
    moments.project = lambda block: -moments.gradients.T @ block  # an indefinite Q^T Q
    assert basis.refine(moments.operator()) is None
    assert np.array_equal(basis.triangle, triangle)


def of_metric(*diagonal):
    metric = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    return SpanBasis(SimpleNamespace(count=len(diagonal)), metric)


@pytest.mark.parametrize(("factor", "rank"), [(0.9, 2), (1.1, 3)])
def test_a_function_counts_above_m_units_in_the_last_place(factor, rank):
    found = of_metric(0.25, factor * 3 * EPS * 4, 4.0)
    assert found.rank == rank
    assert found.order[:2].tolist() == [2, 0]
    assert found.gap == (0.0 if rank == 3 else pytest.approx((factor * 12 * EPS) ** 0.5 / 0.5, abs=0))


def test_small_metrics_have_a_rank_of_their_own():
    found = of_metric(1e-20, 4e-20, 9e-20, 1e-36)
    assert found.rank == 3
    assert found.gap == pytest.approx((1e-36 / 1e-20) ** 0.5)


def test_no_function_has_a_gradient():
    found = of_metric(0.0, 0.0)
    assert (found.rank, found.gap, found.tilt) == (0, 0.0, 0.0)
    assert found.compress(torch.zeros(2, 2)).shape == (0, 0)


def test_what_is_left_out_is_measured_from_those_taken():
    """A gradient along the first one, but for a hundredth: that is the gap over the last length."""
    metric = torch.tensor([[4.0, 0.0, 2.0], [0.0, 1.0, 0.0], [2.0, 0.0, 1.0 + 1e-4]], dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(span_compression, "EPS", 1e-4)
        found = SpanBasis(SimpleNamespace(count=3), metric)
    assert found.rank == 2
    assert found.gap == pytest.approx(1e-2 / 1.0, rel=1e-9)


def test_the_tilt_is_the_condition_of_the_triangle():
    found = of_metric(1.0, 1e-4, 4.0)
    assert found.tilt == pytest.approx(16 * EPS * 2 / 1e-2, rel=1e-12, abs=0)
    for angle, known in ((0.098, True), (0.102, False)):
        found.triangle[2, 2] = 2 * 16 * EPS / angle
        assert found.tilt == (pytest.approx(angle) if known else np.inf)
    found.triangle[2, 2] = 0.0
    assert found.tilt == np.inf


def test_predictions_of_memory_and_time():
    m, q = 2000, 500
    assert span_compression.predicted_memory(m, q) == 8 * (11.5 * m**2 + 6 * m * q)
    assert span_compression.predicted_memory(8000, q) == 8 * (11.5 * 8000**2 + 6 * 8000 * q)
    assert span_compression.predicted_memory(8001, q) == int(8 * (4.5 * 8001**2 + 6 * 8001 * q))
    expected = 12 * m**2 * q / 2e10 + 5 * m**3 / 3e10
    assert span_compression.predicted_seconds(m, q) == pytest.approx(expected, rel=1e-12)


# -- the error ------------------------------------------------------------------------------------------


def _found(norm=2.0, converged=True):
    values, errors = np.array([-1.0, norm]), np.array([0.1, 0.2])
    return Spectrum(
        values, errors, errors, torch.zeros(2, 0), 2, norm, True, "dense", 5, converged, Reason.DENSE
    )


def test_the_error_is_that_of_a_pencil():
    found = span_compression._with_error(_found(), (1e-3, 1e-2), 1e-4, "moments", 17)
    expected = (1e-3 + 1e-2 * 2) / (1 - 1e-2) + 1e-4
    assert np.allclose(found.errors, np.array([0.1, 0.2]) + expected, rtol=1e-12)
    assert (found.method, found.matvecs, found.converged) == ("moments, dense", 17, True)
    assert found.reason is Reason.MOMENTS
    assert not span_compression._with_error(_found(converged=False), (0, 0), 0, "", 0).converged
    for skew in (1.0, 2.0):
        lost = span_compression._with_error(_found(), (0.0, skew), 0.0, "", 0)
        assert np.isinf(lost.errors).all()
        assert (lost.converged, lost.reason) == (False, Reason.DEPENDENT)


@pytest.mark.parametrize(("share", "useful"), [(0.99, True), (1.01, False)])
def test_an_error_of_a_twentieth_of_the_norm_says_little(share, useful):
    found = span_compression._with_error(_found(), (share * 0.05 * 2, 0.0), 0.0, "", 0)
    assert found.converged == useful
    assert found.reason is (Reason.MOMENTS if useful else Reason.DEPENDENT)


def test_a_pencil_stays_within_its_error():
    """Random C, E and F: eigenvalues of (C + E, 1 + F) against those of C."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        c, e, f = (part + part.T for part in rng.standard_normal((3, 4, 4)))
        e, f = 1e-2 * e / np.linalg.norm(e, 2), 0.3 * f / np.linalg.norm(f, 2)
        values = np.linalg.eigvalsh(c)
        pencil = np.sort(np.linalg.eigvals(np.linalg.solve(np.eye(4) + f, c + e)).real)
        found = dataclasses.replace(_found(), norm=np.abs(values).max(), errors=np.zeros(1))
        bound = span_compression._with_error(found, (1e-2, 0.3), 0.0, "", 0).errors[0]
        assert np.abs(values - pencil).max() <= bound


class Bounds:
    """In place of `coupling_bound`: prescribed answers, and what was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, one, two, *, negligible, seed):
        self.asked.append((one.dense(), two.dense(), negligible, seed))
        return self.answers.pop(0)


def test_both_products_are_compared(monkeypatch):
    moments = Moments()
    basis = SpanBasis(moments, moments.metric())
    small = DenseOperator(basis.compress(moments.local_form()) + 0.1 * eye(4))
    bounds = Bounds(0.5, 0.25)
    monkeypatch.setattr(span_compression, "coupling_bound", bounds)
    assert span_compression._apart(basis, moments.operator(), small, 3) == (0.5, 0.25)
    (compressed, same, negligible, seed), (gram, one, least, other) = bounds.asked
    _close(compressed + 0.1 * eye(4), small.matrix)
    _close(same, small.matrix)
    _close(gram, eye(4))
    _close(one, eye(4))
    assert negligible == pytest.approx(1e-10 * float(small.matrix.norm()) / 2, rel=1e-12, abs=0)
    assert (least, seed, other) == (1e-10, 3, 3)
    assert span_compression._apart(basis, moments.operator(), DenseOperator(eye(0)), 3) == (0.0, 0.0)
    for size in (0, 1, 9):
        assert span_compression._size(DenseOperator(3 * eye(size))) == pytest.approx(3.0 * (size > 0))


@pytest.mark.parametrize(("share", "refined"), [(0.9, False), (1.1, True)])
@pytest.mark.parametrize("by", ["operator", "metric"])
def test_the_steps_of_a_compression(share, refined, by, monkeypatch):
    moments = Moments()
    full = moments.operator()
    full.at = SimpleNamespace(moments=moments)
    levels = torch.tensor([-3.0, 1.0, 2.0], dtype=torch.float64)
    basis = SpanBasis(moments, moments.metric())
    compressed = basis.compress(moments.local_form())
    size = float(compressed.norm()) / 2
    first = (share * 1e-8 * size, 0.0) if by == "operator" else (0.0, share * 1e-8)
    bounds = Bounds(*first, 2e-3, 3e-3)
    told = []
    monkeypatch.setattr(span_compression, "RestrictedMoments", lambda at: at.moments)
    monkeypatch.setattr(span_compression, "coupling_bound", bounds)
    monkeypatch.setattr(span_compression, "local_eigenvalues", lambda at: levels)
    monkeypatch.setattr(span_compression, "SAFETY", 16 * 0.05 / basis.tilt)  # a tilt whose square counts
    assert basis.tilt == pytest.approx(0.05)
    found = compress_to_span(full, seed=4, progress=lambda *report: told.append(report))
    exact = torch.linalg.eigvalsh(compressed)
    values = torch.as_tensor(found.spectrum.eigenvalues)
    _close(values, exact)
    assert found.spectrum.method == (
        "moments of span(R), refined by products, dense" if refined else "moments of span(R), dense"
    )
    assert [asked[3] for asked in bounds.asked] == [4] * (4 if refined else 2)
    norm, tilt = float(exact.abs().max()), basis.tilt
    moved, skew = (2e-3, 3e-3) if refined else first
    turned = 2 * tilt * 2.5 + 2 * tilt**2 * (norm + 3.0)
    expected = (moved + skew * norm) / (1 - skew) + turned
    dense = dense_spectrum(DenseOperator(compressed)).errors
    assert 2 * tilt**2 * (norm + 3.0) > 1e-2 * turned
    assert np.allclose(found.spectrum.errors, expected + dense, rtol=1e-6 if refined else 1e-9)
    assert (found.functions, found.rank, found.leak, found.gap) == (6, 4, 2.5, basis.gap)
    fields = found.lift(eye(4))
    _close(fields.T @ fields, eye(4), tol=1e-10)
    assert told[-1][0] == told[-1][1]
    tables, total = 12 * 6**2 * 3 / 2e10, told[0][1]
    done = {message: part for part, _, message in reversed(told)}  # when each was told first
    assert done["metric of span(R)"] == done["rank of span(R)"] == pytest.approx(tables / 10, abs=0)
    for share, message in (
        (0.5, "comparing with the operator's products"),
        (0.55, "all eigenvalues in span(R)"),
    ):
        assert done[message] == pytest.approx(tables + share * (total - tables), abs=0)
    names = [message for _, _, message in told]
    assert names[:3] == ["metric of span(R)", "rank of span(R)", "local part in span(R)"]
    dependent = "products with all of span(R), whose gradients are nearly dependent"
    assert (dependent in names) == refined
    if refined:
        assert done[dependent] == pytest.approx(tables + 0.5 * (total - tables), abs=0)


def test_progress_of_tables_and_of_dense_work():
    told = []
    moments = SimpleNamespace(count=2000, q=50, n=3, outputs=range(2))
    meter = span_compression._Meter(moments, lambda *report: told.append(report))
    tables, total = 12 * 2000**2 * 50 / 2e10, 12 * 2000**2 * 50 / 2e10 + 5 * 2000**3 / 3e10
    meter.table("one")
    assert told[-1] == (pytest.approx(tables / 10), pytest.approx(total), "one")
    meter.solve(0, "none of it")
    assert told[-1][0] == pytest.approx(tables / 10)
    meter.solve(0.25, "a quarter")
    assert told[-1] == (pytest.approx(tables + (total - tables) / 4), pytest.approx(total), "a quarter")
    meter.solve(0.1, "not back")
    assert told[-1][0] == pytest.approx(tables + (total - tables) / 4)
    meter.solve(1, "all")
    meter.table("more")
    assert told[-1][0] == told[-1][1] == pytest.approx(total)
    span_compression._Meter(moments, None).table("to nobody")
