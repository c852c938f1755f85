"""Finite Abelian groups against their definitions."""

import itertools

import numpy as np
import pytest

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from tests import oracles

ORDERS = [(2,), (3,), (4,), (7,), (12,), (2, 2), (2, 3), (4, 6), (2, 2, 3)]


@pytest.mark.parametrize("orders", ORDERS)
def test_elements_sums_and_characters(orders):
    group = FiniteAbelianGroup(orders)
    elements = oracles.elements(orders)
    assert [tuple(e) for e in group.elements] == elements
    assert np.array_equal(group.sums, oracles.sum_table(orders).numpy())
    for (i, k), (j, x) in itertools.product(enumerate(elements), enumerate(elements)):
        assert group.characters[j, i] == pytest.approx(oracles.character(orders, k, x), abs=1e-13)
    assert (group.sums[np.arange(group.order), group.negatives] == 0).all()


@pytest.mark.parametrize("orders", ORDERS)
def test_real_basis_is_orthonormal_and_matches_its_labels(orders):
    group = FiniteAbelianGroup(orders)
    assert np.allclose(group.real_basis.T @ group.real_basis, np.eye(group.order), atol=1e-13)
    z = np.random.default_rng(0).standard_normal(group.order)
    coefficients = group.fourier(np.sqrt(group.order) * group.real_basis @ z)
    for column, (k, part) in enumerate(group.real_columns):
        if part == "real":
            assert coefficients[k] == pytest.approx(z[column], abs=1e-12)
        elif part == "cos":
            assert coefficients[k] == pytest.approx((z[column] - 1j * z[column + 1]) / np.sqrt(2), abs=1e-12)


@pytest.mark.parametrize("orders", ORDERS)
def test_fourier_inverts_and_turns_shifts_into_phases(orders):
    group = FiniteAbelianGroup(orders)
    values = np.random.default_rng(1).standard_normal((group.order, 3))
    assert np.allclose(group.inverse_fourier(group.fourier(values)), values, atol=1e-12)
    shift = group.order - 1
    moved = group.fourier(values[group.sums[shift]])
    assert np.allclose(moved, group.characters[shift][:, None] * group.fourier(values), atol=1e-12)


def test_large_phases_keep_their_digits():
    group = FiniteAbelianGroup((2003,))
    value = group.characters[2002, 2001]
    assert value == pytest.approx(np.exp(2j * np.pi * ((2002 * 2001) % 2003) / 2003), abs=1e-15)


@pytest.mark.parametrize("name", ["", "23", "Z", "Z0", "Z1", "Z4x", "C4", "Z-3", "Z4xx5", "Z9999999"])
def test_bad_names_are_refused_with_an_example(name):
    with pytest.raises(InputError, match=r"Z|group"):
        FiniteAbelianGroup.parse(name)


def test_names_round_trip():
    assert FiniteAbelianGroup.parse(" z4 X z6").name == "Z4xZ6"
