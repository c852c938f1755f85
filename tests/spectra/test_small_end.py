"""The deep single-precision Krylov space and the choice of help for the small end."""

import numpy as np
import pytest
import torch

from manifold.groups import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra import small_end
from spectra.block_solvers import block_spectrum
from spectra.group_task import GroupTask
from spectra.krylov_passes import upper_vectors
from spectra.long_lanczos import lowest_vectors
from spectra.single_precision import in_single_precision
from spectra.small_end import prepare_small_end
from spectra.variation import DeflatedVariation, SecondVariation, SymmetricOperator

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
    assert prepare_small_end(operator, None, 2).start is None
