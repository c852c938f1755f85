"""The packed factor against a dense solve."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from spectra.operators.packed_cholesky import PackedMatrix


@pytest.mark.parametrize("size", [2, 6, 30, 64])
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_solves_as_the_dense_matrix(size, rows):
    rng = np.random.default_rng(size + rows)
    root = rng.standard_normal((size, size))
    matrix = root @ root.T + size * np.eye(size)
    above = np.triu(np.full((size, size), np.nan), 1)  # must not be read
    packed = PackedMatrix(size)
    for first in range(0, size, rows):
        packed.set_rows(first, torch.as_tensor(np.tril(matrix) + above)[first : first + rows])
    assert packed.factor()
    right = rng.standard_normal((size, 3))
    np.testing.assert_allclose(packed.solve(right), np.linalg.solve(matrix, right), atol=1e-5)


def test_an_indefinite_matrix_has_no_factor():
    packed = PackedMatrix(4)
    packed.set_rows(0, torch.diag(torch.tensor([1.0, 2.0, -1.0, 3.0])))
    assert not packed.factor()
    with pytest.raises(InputError, match="even"):
        PackedMatrix(5)
