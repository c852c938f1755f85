"""Certificates of spectra: errors, counts and enclosures against formulas written out for small matrices."""

import dataclasses

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from spectra.operators.variation import DenseOperator
from spectra.solvers import spectrum as eigen
from spectra.solvers.spectrum import Reason, Spectrum, certify, dense_spectrum, power_norm

EPS = 2.0**-52
OPTIONS = {"method": "test", "converged": True, "reason": Reason.KRYLOV}


def spectrum(values, errors, *, dimension=None, complete=False, norm=2.0, **more):
    values = np.array(values, dtype=float)
    errors = np.broadcast_to(np.array(errors, dtype=float), values.shape)
    vectors = torch.zeros(len(values), 0)
    size = len(values) if dimension is None else dimension
    return Spectrum(
        values, errors, errors, vectors, size, norm, complete, "test", 0, True, Reason.KRYLOV, **more
    )


def rotated(values, seed=0):
    values = torch.as_tensor(values, dtype=torch.float64)
    rng = np.random.default_rng(seed)
    frame = torch.as_tensor(np.linalg.qr(rng.standard_normal((len(values), len(values))))[0])
    return DenseOperator(frame @ torch.diag(values) @ frame.T), frame


# -- enclosures and ends --------------------------------------------------------------------------------


def test_the_smallest_eigenvalue_of_a_complete_spectrum_is_known_to_its_error():
    found = spectrum([-1.0, 3.0], [0.25, 0.5], complete=True)
    assert found.smallest_enclosure == (-1.25, -0.75)
    assert dataclasses.replace(found, missing=1).smallest_enclosure is None
    assert spectrum([], [], complete=True).smallest_enclosure is None


def test_the_smallest_eigenvalue_of_an_end_lies_between_a_proof_and_a_ritz_value():
    found = spectrum([-1.0, 3.0], 0.25, dimension=9, lowest=-4.0, uncertainty=0.5)
    low, high = found.smallest_enclosure
    assert low == -4.0
    assert high + 0.5 == pytest.approx(16 * EPS * 3 * 2, abs=EPS)  # and not the residual
    assert dataclasses.replace(found, lowest=None).smallest_enclosure is None
    assert dataclasses.replace(found, missing=2).smallest_enclosure is None
    # A proof that is rounded above the Ritz value does not turn the interval round.
    assert dataclasses.replace(found, lowest=-0.5).smallest_enclosure[0] == -1.0


def test_what_the_operator_is_uncertain_by_adds_up():
    found = spectrum([-1.0, 3.0], [0.25, 0.5], lowest=-2.0, uncertainty=0.125).widened(0.5)
    assert found.errors.tolist() == [0.75, 1.0]
    assert (found.lowest, found.uncertainty) == (-2.5, 0.625)
    assert spectrum([1.0], 0.0).widened(0.5).lowest is None


def test_the_ends_are_ordered_from_outside():
    found = spectrum([-2.0, -1.0, 1.0, 3.0], [0.1, 0.2, 0.3, 0.4])
    assert [part.tolist() for part in found.largest(2)] == [[3.0, 1.0], [0.4, 0.3]]
    assert [part.tolist() for part in found.smallest(3)] == [[-2.0, -1.0, 1.0], [0.1, 0.2, 0.3]]


# -- counts ---------------------------------------------------------------------------------------------


def numbers(counts):
    return (
        counts.negative, counts.marginal, counts.positive, counts.undetermined, counts.certified,
        counts.most_negative, counts.most_positive,
    )  # fmt: skip


def test_a_value_at_its_error_has_no_sign():
    found = spectrum([-1.0, -0.5, 0.0, 0.5, 1.0, 2.0], [0.5, 0.5, 0.0, 0.5, 0.5, 0.5], complete=True)
    assert numbers(found.counts) == (1, 0, 2, 3, False, 4, 5)
    signed = spectrum([-1.0, 1.0, 2.0], 0.5, complete=True)
    assert numbers(signed.counts) == (1, 0, 2, 0, True, 1, 2)
    assert not dataclasses.replace(signed, complete=False).counts.certified


def test_zeros_are_those_that_are_known():
    found = spectrum([-1.0, 1e-9, 2e-9, 2.0], [0.5, 0.5, 0.5, 0.5], complete=True, null=1)
    assert numbers(found.counts) == (1, 1, 1, 1, False, 2, 2)
    more = dataclasses.replace(found, null=5)  # no more than have no sign
    assert numbers(more.counts) == (1, 2, 1, 0, True, 1, 1)
    assert more.counts.bounds == {"negative": [1, 1], "marginal": [2, 2], "positive": [1, 1]}


def test_what_is_proved_counts_beyond_what_is_listed():
    found = spectrum([-1.0, 2.0], 0.5, dimension=10, at_least=(2, 3), at_most=(4, None), null=1)
    assert numbers(found.counts) == (2, 1, 3, 4, False, 4, 7)
    bounds = {"negative": [2, 4], "marginal": [1, 5], "positive": [3, 7]}
    assert found.counts.bounds == bounds
    missing = dataclasses.replace(found, missing=2)  # may have any sign
    assert numbers(missing.counts) == (2, 1, 3, 6, False, 6, 9)
    loose = dataclasses.replace(found, at_most=(9, 8))
    assert numbers(loose.counts)[5:] == (6, 7)
    # More listed than proved, and more signs than dimensions cannot make a negative remainder.
    assert numbers(spectrum([-1.0, -2.0, 2.0], 0.5, at_least=(1, 1)).counts) == (2, 0, 1, 0, False, 2, 1)
    assert numbers(spectrum([-1.0], 0.5, at_least=(1, 1)).counts) == (1, 0, 1, 0, False, 1, 1)
    assert numbers(spectrum([0.0], 0.5).counts) == (0, 0, 0, 1, False, 1, 1)  # nothing is proved by default


# -- certificates ---------------------------------------------------------------------------------------


def approximate(seed=1):
    """A matrix with approximate eigenpairs that are neither sorted nor quite orthonormal."""
    operator, frame = rotated([-5.0, -1.0, 2.0, 3.0, 4.0])
    rng = np.random.default_rng(seed)
    vectors = frame + 1e-3 * torch.as_tensor(rng.standard_normal((5, 5)))
    values = np.array([-5.0, -1.0, 2.0, 3.0, 4.0]) + 1e-2 * rng.standard_normal(5)
    order = np.array([3, 0, 4, 2, 1])
    return operator, values, vectors, order


def test_errors_of_a_whole_set_are_that_of_weyl():
    operator, values, vectors, order = approximate()
    found = certify(operator, values[order], vectors[:, order], complete=True, **OPTIONS)
    assert np.array_equal(found.eigenvalues, values)
    assert torch.equal(found.vectors, vectors)
    residual = (operator.matrix @ vectors).numpy() - vectors.numpy() * values
    defect = np.linalg.norm((vectors.T @ vectors).numpy() - np.eye(5))
    norm = np.abs(values).max()
    assert np.allclose(found.residuals, np.linalg.norm(residual, axis=0), rtol=1e-10)
    expected = np.linalg.norm(residual) + norm * defect + 16 * EPS * 5**0.5 * norm
    assert np.allclose(found.errors, expected, rtol=1e-12)
    assert (found.norm, found.dimension, found.complete, found.matvecs) == (norm, 5, True, 5)
    exact = np.array([-5.0, -1.0, 2.0, 3.0, 4.0])
    assert (np.abs(found.eigenvalues - exact) <= found.errors).all()


def test_errors_of_some_are_residuals():
    operator, values, vectors, _ = approximate()
    values, vectors = values[2:4], vectors[:, 2:4]
    found = certify(operator, values, vectors, complete=False, at_least=(1, 2), norm=5.0, **OPTIONS)
    residual = (operator.matrix @ vectors).numpy() - vectors.numpy() * values
    defect = np.linalg.norm((vectors.T @ vectors).numpy() - np.eye(2))
    expected = np.linalg.norm(residual, axis=0) * (1 + defect) + 16 * EPS * 5**0.5 * 5.0
    assert np.allclose(found.errors, expected, rtol=1e-12)
    assert (found.norm, found.at_least, found.complete) == (5.0, (1, 2), False)
    plain = certify(operator, values, vectors, complete=False, **OPTIONS)
    assert plain.norm == np.abs(values).max()
    assert plain.at_least == (0, 0)


@pytest.mark.parametrize("scale", [1.0, 2.0**-20])
def test_exact_pairs_are_known_to_arithmetic(scale):
    values = scale * np.array([4.0, -8.0, 1.0])
    operator = DenseOperator(torch.diag(torch.as_tensor(values)))
    eye = torch.eye(3, dtype=torch.float64)
    for complete in (True, False):
        found = certify(operator, values, eye, complete=complete, **OPTIONS)
        assert np.array_equal(found.eigenvalues, np.sort(values))
        assert np.array_equal(found.errors, np.full(3, 16 * EPS * 3**0.5 * 8 * scale))


# -- dense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectors", [True, False])
def test_dense_spectra_with_and_without_vectors(vectors):
    values = np.array([-3.0, -1e-3, 0.5, 2.0])
    operator, _ = rotated(values)
    found = dense_spectrum(operator, vectors=vectors)
    assert (np.abs(found.eigenvalues - values) <= found.errors).all()
    assert found.errors.max() < 1e-13
    assert found.complete
    assert found.converged
    assert found.vectors.shape == (4, 4 if vectors else 0)
    assert found.reason is (Reason.DENSE if vectors else Reason.DENSE_VALUES)
    if not vectors:
        norm = np.abs(found.eigenvalues).max()
        assert np.array_equal(found.errors, np.full(4, 4 * EPS * norm + 16 * EPS * 2 * norm))
        assert (found.norm, found.dimension) == (norm, 4)


@pytest.mark.parametrize(("size", "columns"), [(5, 5), (6, 0)])
def test_vectors_are_kept_up_to_a_limit(size, columns, monkeypatch):
    monkeypatch.setattr(eigen, "VECTORS_LIMIT", 5)
    assert dense_spectrum(rotated(np.arange(1.0, size + 1))[0]).vectors.shape == (size, columns)


def test_an_empty_space_has_an_empty_spectrum():
    found = dense_spectrum(DenseOperator(torch.zeros(0, 0, dtype=torch.float64)))
    assert (len(found.eigenvalues), found.dimension, found.norm, found.matvecs) == (0, 0, 0.0, 0)
    assert (found.complete, found.converged, found.reason) == (True, True, Reason.EMPTY)
    assert found.counts.certified
    assert found.vectors.shape == (0, 0)


def test_what_is_not_finite_is_refused_with_and_without_vectors():
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[1, 1] = float("inf")
    for vectors in (True, False):
        with pytest.raises(InputError, match="infinity"):
            dense_spectrum(DenseOperator(matrix), vectors=vectors)


def _with_wrong_values(monkeypatch, change):
    values = np.array([-4.0, -1.0, 0.0, 2.0, 4.0])
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda _: torch.as_tensor(values + change))
    matrix = torch.diag(torch.as_tensor(values))
    return dense_spectrum(DenseOperator(matrix), vectors=False)


LEAST = 5 * (5 * EPS * 4 + 16 * EPS * 5**0.5 * 4)  # five eigenvalues off by their bound


@pytest.mark.parametrize(("factor", "agrees"), [(0.9, True), (1.1, False), (-0.9, True), (-1.1, False)])
@pytest.mark.parametrize(
    "direction",
    [[0.0, 0, 1, 0, 0], [0.5, 0, 0, 0, -0.5]],  # seen by the trace; by squares alone, that move by 8 LEAST
)
def test_sums_of_eigenvalues_are_checked(monkeypatch, factor, agrees, direction):
    found = _with_wrong_values(monkeypatch, factor * LEAST * np.array(direction))
    assert found.converged == agrees
    assert found.reason is (Reason.DENSE_VALUES if agrees else Reason.SUMS_DISAGREE)


# -- power steps ----------------------------------------------------------------------------------------


def test_power_steps_are_those_of_the_matrix():
    operator, _ = rotated([-6.0, 1.0, 2.0, 3.0, 5.0], 3)
    rng = torch.Generator().manual_seed(7)
    v = torch.randn(5, 1, generator=rng, dtype=torch.float64)
    size = power_norm(operator, seed=7, steps=3)
    assert operator.matvecs == 3
    matrix = operator.matrix
    expected = (matrix @ matrix @ matrix @ v).norm() / (matrix @ matrix @ v).norm()
    assert size == pytest.approx(float(expected), rel=1e-12)
    assert power_norm(operator) != power_norm(operator, seed=1)
    operator.matvecs = 0
    assert 4.0 < power_norm(operator) <= 6.0
    assert operator.matvecs == 8


def test_power_steps_of_nothing_stop():
    operator = DenseOperator(torch.zeros(4, 4, dtype=torch.float64))
    assert power_norm(operator) == 0.0
    assert operator.matvecs == 1
