"""Monomials against explicit products and automatic differentiation."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from manifold.monomials import Monomials

EXPONENTS = [[0, 0, 0], [1, 0, 0], [2, 0, 1], [1, 1, 1], [0, 3, 2]]


def test_real_values_jacobian_and_names():
    monomials = Monomials(EXPONENTS)
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[0, 0] = 0.0  # 0^0 = 1 and its derivative must not be NaN
    expected = np.array([[np.prod(p**e) for e in np.array(EXPONENTS)] for p in points.numpy()])
    assert np.allclose(monomials.values(points), expected, atol=1e-13)
    slow = torch.stack([torch.func.jacrev(lambda z: monomials.values(z[None])[0])(p) for p in points])
    assert torch.allclose(monomials.jacobian(points), slow, atol=1e-12)
    assert monomials.names == ("1", "x1", "x1^2*x3", "x1*x2*x3", "x2^3*x3^2")
    assert monomials.degrees.tolist() == [0, 1, 3, 3, 5]


def test_complex_coordinates_and_conjugates():
    """Re and Im of z1^2 conj(z2) on R^4."""
    coordinates = np.array([[1, 1j, 0, 0], [0, 0, 1, -1j]])
    monomials = Monomials([[2, 1], [2, 1]], coordinates, [False, True])
    points = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z1, z2 = points[:, 0] + 1j * points[:, 1], points[:, 2] + 1j * points[:, 3]
    product = z1**2 * z2.conj()
    assert torch.allclose(monomials.values(points), torch.stack([product.real, product.imag], 1))
    jacobian = monomials.jacobian(points)
    h = 1e-6
    for i in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[i] = h
        slope = (monomials.values(points + step) - monomials.values(points - step)) / (2 * h)
        assert torch.allclose(jacobian[:, :, i], slope, atol=1e-7)


@pytest.mark.parametrize(
    ("exponents", "kwargs", "match"),
    [
        ([[-1, 0]], {}, "non-negative"),
        ([[1, 0]], {"coordinates": np.eye(3)}, "2 rows"),
        ([[1, 0]], {"imaginary": [True, False]}, "one flag per monomial"),
        ([[1, 0]], {"names": ("a", "b")}, "expected 1"),
    ],
)
def test_bad_arguments_are_named(exponents, kwargs, match):
    with pytest.raises(InputError, match=match):
        Monomials(exponents, **kwargs)


def test_points_of_another_dimension_are_refused():
    with pytest.raises(InputError, match=r"\(q, 2\)"):
        Monomials([[1, 0]]).values(torch.zeros(3, 5, dtype=torch.float64))
