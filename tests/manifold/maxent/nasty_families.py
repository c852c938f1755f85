"""Families that have broken quadrature: aliasing frequencies, girdles, near faces, dependent, tiny, huge."""

from dataclasses import dataclass, field

import numpy as np

KINDS = ("aliasing", "girdle", "face", "dependent", "product", "tiny", "huge", "plain", "high")
SPACES = {"S1": [1], "S2": [2], "S3": [3], "T1": [1], "T2": [1, 1], "T3": [1, 1, 1], "S2xS1": [2, 1],
          "S1xS1": [1, 1]}  # fmt: skip
FLAT = ("S1", "S2", "T1", "T2", "S1xS1")


@dataclass
class Nasty:
    """A family as the package reads it and as the reference does, with a lambda."""

    kind: str
    space: str
    spheres: list
    names: list
    values: list = field(repr=False)  # functions of points (q, ambient)
    lam: np.ndarray = None
    two: bool = False  # only the first two coordinates of a higher sphere occur

    def functions(self, x):
        """All monomials at points, shape (q, m)."""
        return np.stack([f(x) for f in self.values], 1)


def real(powers):
    """``x_i^e ..`` from {i: e}, by name and as a function."""
    name = "*".join(f"x{i + 1}^{e}" for i, e in sorted(powers.items()))
    return name, lambda x: np.prod([x[:, i] ** e for i, e in powers.items()], axis=0)


def phase(powers, part="Re"):
    """``Re prod z_k^e`` from {k: e}, negative e for the conjugate; pairs of neighbouring coordinates."""
    words = [f"z{k + 1}^{e}" if e > 0 else f"conj(z{k + 1})^{-e}" for k, e in sorted(powers.items())]

    def function(x):
        z = np.prod([(x[:, 2 * k] + 1j * np.sign(e) * x[:, 2 * k + 1]) ** abs(e) for k, e in powers.items()],
                    axis=0)  # fmt: skip
        return z.real if part == "Re" else z.imag

    return f"{part}({'*'.join(words)})", function


def nasty_family(seed):
    """A nasty family drawn from a seed; kinds take turns."""
    rng = np.random.default_rng([17, seed])
    kind = KINDS[seed % len(KINDS)]
    return {"aliasing": _aliasing, "girdle": _girdle, "face": _face, "dependent": _dependent,
            "product": _product, "tiny": _random, "huge": _random, "plain": _random,
            "high": _high}[kind](kind, rng)  # fmt: skip


def _made(kind, space, pairs, lam, *, spheres=None, two=False):
    names, values = zip(*pairs, strict=True)
    return Nasty(kind, space, spheres or SPACES[space], list(names), list(values), np.array(lam, float), two)


def _size(rng, low, high):
    return 10 ** rng.uniform(low, high)


def _aliasing(kind, rng):
    """Frequencies in multiples of 4 (or 3, 5, 8): a grid of 2^k points folds them onto nothing."""
    if rng.random() < 0.5:
        a, b = rng.choice([2, 4], 2)
        i, j = rng.choice(3, 2, replace=False)
        return _made(kind, "S2", [real({i: a, j: b})], [rng.choice([-1, 1]) * _size(rng, 1, 5)])
    step = int(rng.choice([3, 4, 5, 8, 16, 32]))
    pairs = [phase({0: step}), phase({0: step, 1: step * int(rng.choice([-1, 1, 2]))})]
    return _made(kind, "T2", pairs, rng.choice([-1, 1], 2) * _size(rng, 0, 3 if step < 8 else 1.7))


def _girdle(kind, rng):
    """``-(u . x)^2``: all mass on a great circle, oblique to the coordinates."""
    size = _size(rng, 0.5, 5)
    if rng.random() < 0.3:
        return _made(kind, "S2", [real({2: 2})], [-size])
    a, b = np.cos(t := rng.uniform(0.2, 1.3)), np.sin(t)
    pairs = [real({0: 2}), real({0: 1, 2: 1}), real({2: 2})]
    return _made(kind, "S2", pairs, -min(size, 3e4) * np.array([a * a, 2 * a * b, b * b]))


def _face(kind, rng):
    """One direction so large that the moments are within 1e-9 of the boundary."""
    space = str(rng.choice(FLAT))
    size = _size(rng, 2, 9)
    if space == "S2":
        pairs = [real({int(rng.integers(3)): 1}), real({0: 1, 1: 1})]
    else:
        pairs = [phase({0: 1}), phase({0: 2}, "Im")]
    return _made(kind, space, pairs, [size, rng.normal() * min(size**0.5, 30)])


def _dependent(kind, rng):
    """Squares that add up to one, and a double angle that is a polynomial of the single one."""
    if rng.random() < 0.5:
        pairs = [real({i: 2}) for i in range(3)] + [real({0: 1})]
        return _made(kind, "S2", pairs, [*(rng.normal(size=2) * _size(rng, 0, 2)), 0.0, rng.normal()])
    pairs = [real({0: 2}), real({1: 2}), phase({0: 2}), real({0: 1})]
    return _made(kind, "S1", pairs, [rng.normal() * _size(rng, 0, 3), 0.0, 0.0, rng.normal()])


def _product(kind, rng):
    space = str(rng.choice(["S2xS1", "T2", "T3"]))
    size = _size(rng, -1, 1.3)
    if space == "S2xS1":
        pairs = [real({0: 1, 3: 1}), real({2: 2}), real({1: 1, 4: 2})]
    elif space == "T2":
        pairs = [phase({0: 1, 1: -1}), phase({0: 2, 1: 1}), phase({1: 3}, "Im")]
    else:
        pairs = [phase({0: 1, 1: 1, 2: -1}), phase({0: 1}), phase({1: 2, 2: 1}, "Im")]
    return _made(kind, space, pairs, size * rng.normal(size=3))


def _random(kind, rng):
    space = str(rng.choice([*FLAT, "S3"] if kind == "plain" else FLAT))
    spheres = SPACES[space]
    ambient = sum(d + 1 for d in spheres)
    chosen = {}
    for _ in range(int(rng.integers(1, 5))):
        powers = {}
        for i in rng.integers(0, ambient, int(rng.integers(1, 5))):
            powers[int(i)] = powers.get(int(i), 0) + 1
        chosen[tuple(sorted(powers.items()))] = powers
    pairs = [real(p) for p in chosen.values()]
    lam = rng.normal(size=len(pairs))
    size = {"tiny": _size(rng, -9, -2), "huge": _size(rng, 3, 5), "plain": 3.0}[kind]
    return _made(kind, space, pairs, size * lam)


def _high(kind, rng):
    """S3, S4 and S5 through functions of two coordinates."""
    d = int(rng.integers(3, 6))
    pairs = [real({0: int(rng.integers(1, 5))}), real({0: 1, 1: int(rng.integers(1, 3))}), real({1: 2})]
    return _made(kind, f"S{d}", pairs, _size(rng, 0, 2) * rng.normal(size=3), spheres=[d], two=True)
