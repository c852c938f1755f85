"""Moments of span(R) and the spectrum they give, against the dense matrix of gradients."""

import dataclasses

import numpy as np
import pytest
import torch

import spectra.plan
from manifold.errors import InputError, TooLargeError
from manifold.groups import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra import span_compression
from spectra.eigen import Reason, dense_spectrum
from spectra.functionals import Decayed
from spectra.group_task import GroupTask
from spectra.plan import compute_spectrum, plan_spectrum
from spectra.restricted_moments import RestrictedMoments
from spectra.span_compression import SpanBasis, compress_to_span
from spectra.tangent import tangent_space
from spectra.variation import RestrictedVariation, SecondVariation, SymmetricOperator

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
    monkeypatch.setattr(spectra.plan, "DENSE_WORK", 1.0)


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
