"""The deep single-precision Krylov space and the choice of help for the small end."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.methods import small_end
from spectra.methods.small_end import prepare_small_end
from spectra.operators.single_precision import in_single_precision
from spectra.operators.variation import DeflatedVariation, SecondVariation, SymmetricOperator
from spectra.solvers.block_lanczos import block_spectrum
from spectra.solvers.lanczos_deep import lowest_vectors
from spectra.solvers.lanczos_passes import UpperVectors, upper_vectors
from spectra.tasks.group_task import GroupTask

SIZE = 6000


def _clustered():
    """A product whose spectrum has a dense cluster at its small end and a few large eigenvalues."""
    rng = np.random.default_rng(1)
    cluster = -1e-4 + 1e-2 * np.sqrt(rng.random(SIZE - 60))  # thins out towards its edge
    values = np.sort(np.concatenate([cluster, rng.random(60)]))
    mirrors = torch.as_tensor(rng.standard_normal((2, SIZE, 1)))
    mirrors /= mirrors.norm(dim=1, keepdim=True)

    def product(v):
        one, two = mirrors.to(v.dtype)
        v = v - 2 * one * (one.T @ v)
        v = v - 2 * two * (two.T @ v)
        v = torch.as_tensor(values, dtype=v.dtype)[:, None] * v
        v = v - 2 * two * (two.T @ v)
        return v - 2 * one * (one.T @ v)

    return product, values


class _Clustered(SymmetricOperator):
    dimension = SIZE

    def __init__(self, product):
        self.product = product

    def _apply(self, block):
        return self.product(block)


@pytest.mark.parametrize("rows", [700, 10**6])  # with and without restarts
def test_the_edge_of_a_cluster_in_single_precision(rows):
    product, values = _clustered()
    norm = values[-1]
    found = upper_vectors(
        lambda v: -product(v), SIZE, 6, dtype=torch.float32, basis_bytes=4 * SIZE * rows
    )  # fmt: skip
    assert found.complete
    assert np.abs(-found.values[:6] - values[:6]).max() < 1e-6 * norm
    vectors = found.vectors.double()
    true = (product(vectors) + vectors * torch.as_tensor(found.values)).norm(dim=0).numpy()
    np.testing.assert_allclose(true, found.residuals, rtol=0.05, atol=6e-7 * norm)
    assert true[:6].max() < 1.5e-6 * norm
    helped, alone = (
        block_spectrum(_Clustered(product), 6, ends=("smallest",), start=start, max_products=1500)
        for start in (vectors, None)
    )
    errors = [np.abs(s.smallest(6)[0] - values[:6]).max() / norm for s in (helped, alone)]
    assert errors[0] < 2e-6 < errors[1]


def test_a_deep_space_starts_a_block_solver():
    rows = 700  # so that the basis has to restart
    product, values = _clustered()
    norm = values[-1]
    vectors, found, residuals = lowest_vectors(product, SIZE, 6, basis_bytes=4 * SIZE * rows)
    assert abs(found[0] - values[0]) < 1e-6 * norm
    true = (product(vectors.double()) - vectors.double() * torch.as_tensor(found)).norm(dim=0)
    np.testing.assert_allclose(true.numpy(), residuals, rtol=0.05, atol=2e-6 * norm)


def test_limits_of_the_deep_space_are_kept():
    product, _ = _clustered()
    spent = []

    def counted(v):
        spent.append(1)
        return product(v)

    lowest_vectors(counted, SIZE, 6, max_products=30)
    assert len(spent) <= 30 + 40  # and the products that compute the residuals


def _operator(*, deflated):
    task = GroupTask(FiniteAbelianGroup((7,)))
    rng = np.random.default_rng(0)
    measure = ParticleMeasure(torch.as_tensor(0.7 * rng.standard_normal((24, task.dimension))))
    full = SecondVariation(task.linearise(measure))
    reference = torch.linalg.eigvalsh(SymmetricOperator.dense(full))
    return task, measure, DeflatedVariation(full) if deflated else full, reference


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("remedy", ["none", "elimination", "deep space"])
def test_small_end_agrees_with_the_dense_matrix(monkeypatch, deflated, remedy):
    if remedy != "none":
        monkeypatch.setattr(small_end, "SCOUT", 20)
    if remedy == "deep space":
        monkeypatch.setattr(small_end, "FACTOR_BYTES", 0)
    task, measure, operator, reference = _operator(deflated=deflated)
    if deflated:
        reference = torch.linalg.eigvalsh(operator.dense())
    small = prepare_small_end(operator, in_single_precision(operator, task, measure), 4)
    assert (small.precondition is not None) == (remedy == "elimination")
    assert small.complete == (("smallest",) if remedy == "none" else ())
    found = block_spectrum(
        operator, 4, start=small.start, precondition=small.precondition, complete=small.complete
    )
    assert found.converged
    values, errors = found.smallest(4)
    assert (np.abs(values - reference[:4].numpy()) <= errors).all()


def test_other_functionals_get_no_help():
    task, measure, operator, _ = _operator(deflated=False)
    operator.at = object()
    assert in_single_precision(operator, task, measure) is None
    found = prepare_small_end(operator, None, 2)
    assert (found.start, found.complete, found.precondition, found.products) == (None, (), None, 0)


# -- what is asked of whom ------------------------------------------------------------------------------


class _Counting(SymmetricOperator):
    dimension = 3

    def _apply(self, block):
        return 2 * block


class _Asked:
    """In place of a solver: costs some products of an operator, keeps what it was asked, gives an answer."""

    def __init__(self, answer, *, operator=None, products=0):
        self.answer, self.operator, self.products = answer, operator, products

    def __call__(self, *arguments, **options):
        self.arguments, self.options = arguments, options
        if self.operator is not None:
            self.operator.matvecs += self.products
        return self.answer


def _upper(complete=False):
    vectors = torch.ones(3, 2, dtype=torch.float32)
    return UpperVectors(vectors, np.array([5.0, 3.0]), np.array([0.5, 0.25]), complete)


def _prepared(monkeypatch, *, complete=False, assembles=True, dimension=9, **options):
    single = _Counting()
    single.matvecs = 7
    scout = _Asked(_upper(complete), operator=single, products=11)
    deep = _Asked((4 * torch.ones(3, 1), None, None), operator=single, products=100)
    inverse, assembly = _Asked("an inverse"), object()
    monkeypatch.setattr(small_end, "upper_vectors", scout)
    monkeypatch.setattr(small_end, "lowest_vectors", deep)
    monkeypatch.setattr(small_end, "_shifted_inverse", inverse)
    monkeypatch.setattr(small_end, "Assembly", lambda at: (assembly, at))
    monkeypatch.setattr(small_end, "can_assemble", lambda at: assembles)
    full = SimpleNamespace(dimension=dimension, at="at")
    found = prepare_small_end(SimpleNamespace(full=full), single, 2, **options)
    return found, scout, deep, inverse, (assembly, "at")


def test_a_complete_scout_is_all_the_help(monkeypatch):
    found, scout, deep, _, _ = _prepared(monkeypatch, complete=True)
    product, *rest = scout.arguments
    assert torch.equal(product(torch.ones(3, 1)), -2 * torch.ones(3, 1))  # the other end
    assert rest == [3, 2]
    assert scout.options == {
        "tol": 1e-6, "seed": 0, "max_seconds": 60.0, "max_products": 1000, "dtype": torch.float32,
        "device": torch.device("cpu"),
    }  # fmt: skip
    assert found.start.dtype == torch.float64
    assert torch.equal(found.start, torch.ones(3, 2, dtype=torch.float64))
    assert (found.complete, found.precondition) == (("smallest",), None)
    assert (found.products, found.method) == (11, "single-precision Lanczos")
    assert not hasattr(deep, "options")
    _, scout, *_ = _prepared(monkeypatch, tol=1e-3, seed=4, max_seconds=9.0)
    assert [scout.options[key] for key in ("tol", "seed", "max_seconds")] == [1e-3, 4, 9.0]


def test_without_a_factor_the_space_goes_deep_for_the_time_that_is_left(monkeypatch):
    times = iter([100.0, 104.0])
    monkeypatch.setattr(small_end.time, "monotonic", lambda: next(times))
    found, _, deep, _, _ = _prepared(monkeypatch, assembles=False, max_seconds=30.0, tol=1e-4, seed=3)
    assert deep.arguments[1:] == (3, 2)
    assert torch.equal(deep.arguments[0](torch.ones(3, 1)), 2 * torch.ones(3, 1))
    expected = {"tol": 1e-4, "seed": 3, "device": torch.device("cpu"), "max_seconds": 26.0}
    assert deep.options == expected
    assert torch.equal(found.start, torch.tensor([[1.0, 1.0, 4.0]] * 3, dtype=torch.float64))
    assert (found.complete, found.precondition, found.products) == ((), None, 111)
    assert found.method == "deep single-precision Lanczos"


@pytest.mark.parametrize(("limit", "fits"), [(2 * 6**2, True), (2 * 6**2 - 1, False)])
def test_the_factor_is_packed_and_in_single_precision(monkeypatch, limit, fits):
    monkeypatch.setattr(small_end, "FACTOR_BYTES", limit)
    found, _, _, inverse, assembly = _prepared(monkeypatch)
    assert hasattr(inverse, "arguments") == fits
    if fits:
        assert inverse.arguments == (assembly, -5.0, 0.5)
        assert (found.precondition, found.complete, found.products) == ("an inverse", (), 11)
        assert found.method == "elimination of c"
        assert found.start.shape == (3, 2)


def test_an_inverse_acts_on_lifted_residuals(monkeypatch):
    task = GroupTask(FiniteAbelianGroup((3,)))
    points = torch.as_tensor(np.random.default_rng(0).standard_normal((4, task.dimension)))
    operator = DeflatedVariation(SecondVariation(task.linearise(ParticleMeasure(points))))
    single = _Counting()
    monkeypatch.setattr(small_end, "upper_vectors", _Asked(_upper(), operator=single, products=11))
    monkeypatch.setattr(small_end, "_shifted_inverse", _Asked(lambda block, values: block * values))
    found = prepare_small_end(operator, single, 2)
    block = torch.as_tensor(np.random.default_rng(0).standard_normal((operator.dimension, 2)))
    torch.testing.assert_close(
        found.precondition(block, torch.tensor([2.0, -3.0])), block * torch.tensor([2, -3.0])
    )
    assert (found.complete, found.products, found.method) == ((), 11, "elimination of c")
    monkeypatch.setattr(small_end, "_shifted_inverse", _Asked(None))
    assert prepare_small_end(operator, single, 2).precondition is None


@pytest.mark.parametrize("tries", [1, 2, 4, 5])
def test_a_shift_moves_away_until_the_factor_exists(monkeypatch, tries):
    shifts = []

    def inverse(assembly, shift):
        assert assembly == "assembly"
        shifts.append(shift)
        return "inverse" if len(shifts) == tries else None

    monkeypatch.setattr(small_end, "elimination_inverse", inverse)
    found = small_end._shifted_inverse("assembly", -2.0, 0.25)
    assert found == ("inverse" if tries < 5 else None)
    distance = 0.3 * 2 + 2 * 0.25
    assert shifts == pytest.approx([-2.0 - distance * 4**i for i in range(min(tries, 4))])
