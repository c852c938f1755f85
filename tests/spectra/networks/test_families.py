"""Factorisation of networks whose families are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.constructions import _at_frequencies, cosine, f4_6, f6, network_of
from spectra.networks.families import FOUR, OTHER, SIX, SIX_PHASES, factor, shares

OMEGA = np.exp(2j * np.pi / 3)
GROUP = FiniteAbelianGroup((7,))


def times(*families):
    result = np.ones((1, 3), complex)
    for family in families:
        result = np.array([x * y for x in result for y in np.array(family)])
    return result


def unit(rng):
    return np.exp(2j * np.pi * rng.random())


def member(name, rng):
    """A random member, with common phases, random sizes along the scaling symmetry, signs and order."""
    nu, xi, alpha, beta = (unit(rng) for _ in range(4))
    syn = [[OMEGA**i] * 3 for i in range(3)]
    nu_i = [[1, 1, 1], [1j, -1j, 1]]
    if name == FOUR:
        triples = times(nu_i, [[1, 1, 1], [xi, -1j * np.conj(xi), 1j]])
    elif name == SIX:
        triples = times([[1, 1, 1], [nu, -nu, -(nu**-2)]], syn)
    else:
        free = [unit(rng) for _ in range(3)]
        triples = times(nu_i, [[x, 1 / (x * OMEGA**i), OMEGA**i] for i, x in enumerate(free)])
    triples = times(triples, [[alpha, beta, 1 / (alpha * beta)]]) * len(triples) ** (-1 / 3)
    size = rng.uniform(0.5, 2, size=(len(triples), 1)) ** np.array([1, 1, -2])
    sign = rng.choice([-1, 1], size=(len(triples), 1)) ** np.array([1, 1, 2])
    return rng.permutation(triples * size * sign)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.sampled_from([FOUR, SIX, SIX_PHASES]), st.integers(0, 2**32 - 1))
def test_members_are_recognised_and_noise_is_measured(name, seed):
    rng = np.random.default_rng(seed)
    triples = member(name, rng)
    (found,) = factor(network_of(GROUP, _at_frequencies(GROUP, [(2, triples)])))
    assert (found.frequency, found.order) == (2, len(triples))
    assert found.residuals[name] < 1e-7
    noisy = triples * np.exp(0.02j * rng.normal(size=triples.shape))
    (found,) = factor(network_of(GROUP, _at_frequencies(GROUP, [(2, noisy)])))
    assert 1e-4 < found.residuals[name] < 0.06


@pytest.mark.parametrize("orders", [(7,), (23,), (3, 5)])
def test_constructed_solutions(orders):
    group = FiniteAbelianGroup(orders)
    pairs = len(group.conjugate_pairs)
    assert shares(factor(f6(group, nu=np.exp(0.7j))))[SIX] == 1
    mixed = factor(f4_6(group))
    assert sorted(f.order for f in mixed) == [4] * (pairs - 1) + [6]
    assert shares(mixed)[FOUR] == pytest.approx((pairs - 1) / pairs)


def test_parallel_neurons_count_once():
    rng = np.random.default_rng(0)
    triples = member(FOUR, rng)
    doubled = np.concatenate([triples, triples]) * 2 ** (-1 / 3)
    (found,) = factor(network_of(GROUP, _at_frequencies(GROUP, [(3, doubled)])))
    assert (found.order, found.neurons, found.name) == (4, 8, FOUR)


def test_what_is_no_family_is_called_other():
    found = factor(cosine(GROUP, neurons=18, seed=1))
    assert {f.name for f in found} == {OTHER}
    assert all(f.residual > 0.15 for f in found if f.order in {4, 6})
    with pytest.raises(InputError, match="tol"):
        factor(f6(GROUP), tol=0.0)
