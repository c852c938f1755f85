"""Random monomial families for tests and benchmarks of maximum-entropy fits."""

import math

import numpy as np

from manifold.maxent.family import MaxEntFamily
from manifold.monomials import Monomials
from manifold.spaces.embedded import parse_space


def random_monomials(dimension, rng, *, most=20, degree=4):
    """5 to ``most`` distinct real monomials of degree 1..``degree``."""
    count = min(int(rng.integers(5, most + 1)), math.comb(dimension + degree, degree) - 1)
    found = set()
    while len(found) < count:
        exponents = np.zeros(dimension, int)
        for k in rng.integers(0, dimension, int(rng.integers(1, degree + 1))):
            exponents[k] += 1
        found.add(tuple(exponents))
    exponents = np.array(sorted(found))
    rng.shuffle(exponents)
    return Monomials(exponents)


def random_problem(space_name, seed, *, scale=3.0):
    """A family, a lambda ~ N(0, scale^2) on its independent monomials, and the moments there."""
    rng = np.random.default_rng(seed)
    space = parse_space(space_name)
    family = MaxEntFamily(space, random_monomials(space.ambient, rng))
    lam = np.zeros(len(family))
    lam[family.independent] = scale * rng.normal(size=family.rank)
    return family, lam, family.mean(lam)
