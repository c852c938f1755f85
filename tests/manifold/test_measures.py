"""The semiring of measures: potentials are ring homomorphisms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold.errors import InputError
from manifold.measures import ParticleMeasure
from manifold.monomials import Monomials

R = Monomials([[1, 0, 0], [1, 1, 0], [2, 0, 1], [1, 1, 1], [0, 3, 0]])


def measure(seed, q):
    rng = np.random.default_rng(seed)
    return ParticleMeasure(torch.as_tensor(rng.normal(size=(q, 3))), torch.as_tensor(rng.random(q)))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), p=st.integers(1, 6), q=st.integers(1, 6))
def test_potentials_are_ring_homomorphisms(seed, p, q):
    one, two = measure(seed, p), measure(seed + 1, q)
    rho = [m.expectation(R.values) for m in (one, two)]
    assert torch.allclose((one + two).expectation(R.values), rho[0] + rho[1], rtol=1e-11, atol=1e-11)
    assert torch.allclose((one * two).expectation(R.values), rho[0] * rho[1], rtol=1e-11, atol=1e-11)
    assert (one * two).mass == pytest.approx(one.mass * two.mass)
    third = measure(seed + 2, 2)
    left, right = (one + two) * third, one * third + two * third
    assert torch.allclose(left.expectation(R.values), right.expectation(R.values), rtol=1e-11, atol=1e-11)


def test_neutral_elements():
    mu = measure(0, 4)
    for same in (mu * ParticleMeasure.one(3), mu + ParticleMeasure.zero(3)):
        assert torch.allclose(same.expectation(R.values), mu.expectation(R.values))
    nothing = mu * ParticleMeasure.zero(3)
    assert len(nothing) == 0
    assert nothing.mass == 0


def test_zero_and_one_sets_with_their_tolerance():
    mu = ParticleMeasure(torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64))
    assert mu.assigned(R.values, 1.0, 1e-12).tolist() == [True, True, False, False, True]
    assert mu.assigned(R.values, 0.0, 1e-12).tolist() == [False, False, True, True, False]
    assert mu.assigned(R.values, 0.9, 0.2).tolist() == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("points", "weights", "match"),
    [
        (torch.zeros(3), None, r"\(q, D\)"),
        (torch.zeros(2, 2), torch.zeros(3), r"\(2,\)"),
        (torch.full((2, 2), float("nan")), None, "finite"),
        (torch.zeros(2, 2), torch.tensor([1.0, -1.0]), "negative"),
    ],
)
def test_bad_measures_are_refused(points, weights, match):
    with pytest.raises(InputError, match=match):
        ParticleMeasure(points, weights)


def test_different_spaces_do_not_mix():
    with pytest.raises(InputError, match="same dimension"):
        measure(0, 2) + ParticleMeasure.one(2)
