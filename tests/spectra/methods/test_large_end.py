"""What is asked for the start of the large end, and what it is taken for."""

import math

import numpy as np
import pytest
import torch

from spectra.methods import large_end
from spectra.methods.large_end import prepare_large_end
from spectra.operators.variation import DenseOperator
from spectra.solvers.lanczos_passes import UpperVectors


def asked(monkeypatch, used, *, complete):
    """`upper_vectors` that costs five products of an operator and keeps what it was asked."""
    calls = []

    def upper(product, dimension, count, **options):
        calls.append((product(torch.ones(3, 1, dtype=options["dtype"])), dimension, count, options))
        used.matvecs += 4
        vectors = torch.ones(3, 2, dtype=options["dtype"])
        return UpperVectors(vectors, np.ones(2), np.zeros(2), complete)

    monkeypatch.setattr(large_end, "upper_vectors", upper)
    return calls


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_products_are_those_in_single_precision_where_there_is_one(alone, complete, monkeypatch):
    operator = DenseOperator(torch.eye(3, dtype=torch.float64))
    single = DenseOperator(2 * torch.eye(3, dtype=torch.float32))
    operator.matvecs, single.matvecs = 20, 30
    calls = asked(monkeypatch, operator if alone else single, complete=complete)
    found = prepare_large_end(operator, None if alone else single, 2)
    ((image, dimension, count, options),) = calls
    assert (dimension, count) == (3, 2)
    assert torch.equal(image.double(), (1 if alone else 2) * torch.ones(3, 1, dtype=torch.float64))
    assert options == {
        "tol": 1e-6, "seed": 0, "max_seconds": math.inf, "device": torch.device("cpu"),
        "dtype": torch.float64 if alone else torch.float32,
    }  # fmt: skip
    assert found.products == (0 if alone else 5)
    assert found.complete == (("largest",) if complete else ())
    assert found.start.dtype == torch.float64
    assert found.start.shape == (3, 2)


def test_what_is_asked_is_handed_on(monkeypatch):
    operator = DenseOperator(torch.eye(3, dtype=torch.float64))
    calls = asked(monkeypatch, operator, complete=True)
    prepare_large_end(operator, None, 1, tol=1e-3, seed=7, max_seconds=2.0)
    assert [calls[0][3][key] for key in ("tol", "seed", "max_seconds")] == [1e-3, 7, 2.0]
