"""The checks that users run on their own functionals: right ones pass, wrong ones are caught."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.functionals.base import Decayed, Functional, Linearisation, PotentialFunctional
from spectra.functionals.conformance import (
    NonconformingError,
    check_first_variation,
    check_functional,
    check_second_variation,
)
from spectra.tasks.group_task import GroupTask

GROUP = FiniteAbelianGroup((3,))


def random_measure(dimension, count=5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    points = torch.randn(count, dimension, generator=rng, dtype=torch.float64)
    return ParticleMeasure(points, torch.rand(count, generator=rng, dtype=torch.float64) + 0.1)


def generic():
    return PotentialFunctional(
        lambda z: torch.stack([z[:, 0] * z[:, 1], z[:, 1] ** 3, torch.sin(z[:, 0])], dim=1),
        lambda rho: rho[0] ** 2 * rho[1] + torch.exp(0.3 * rho[2]),
        count=3,
    )


@pytest.mark.parametrize(
    ("functional", "dimension"),
    [
        (generic(), 2),
        (GroupTask(GROUP), 9),
        (GroupTask(GROUP, loss="mse"), 9),
        (GroupTask(GROUP, centred=True), 6),
        (GroupTask(GROUP, tied=True), 6),
        (GroupTask(GROUP, loss="cross_entropy"), 9),
        (GroupTask(GROUP, pairs=[[0, 1], [1, 1], [2, 0]]), 9),
        (Decayed(GroupTask(GROUP), 0.3), 9),
    ],
)
def test_right_functionals_pass(functional, dimension):
    report = check_functional(functional, random_measure(dimension))
    assert report["first_variation"] > 1.9
    assert report["second_variation"] > 2.9
    assert len(report) == 9


def test_slopes_are_two_and_three():
    measure = random_measure(2)
    assert check_first_variation(generic(), measure).slope == pytest.approx(2, abs=0.05)
    assert check_second_variation(generic(), measure).slope == pytest.approx(3, abs=0.05)


class Wrong(Functional):
    """A right functional with one thing replaced."""

    potential_count = 3

    def __init__(self, **changed):
        self.changed = changed

    def linearise(self, measure):
        return WrongLinearisation(generic().linearise(measure), self.changed)


class WrongLinearisation(Linearisation):
    def __init__(self, inner, changed):
        self.inner, self.changed, self.measure = inner, changed, inner.measure

    def _of(self, name, right):
        return self.changed.get(name, lambda x: x)(right)

    value = property(lambda self: self._of("value", self.inner.value))
    gradient = property(lambda self: self._of("gradient", self.inner.gradient))

    def product(self, fields, parts=("interaction", "local")):
        whole = self.inner.product(fields, parts)
        return self._of("product", whole) if len(parts) == 2 else self._of(parts[0], whole)

    def local_blocks(self):
        return self._of("blocks", self.inner.local_blocks())

    def flat_kernel(self):
        return self._of("kernel", self.inner.flat_kernel())

    def potential_gradients(self):
        return self._of("gradients", self.inner.potential_gradients())

    def slope_norm(self):
        return self.inner.slope_norm()

    def symmetry_fields(self):
        return self._of("symmetry", self.inner.symmetry_fields())


@pytest.mark.parametrize(
    ("name", "change", "caught"),
    [
        ("gradient", lambda g: 1.01 * g, "first_variation"),
        ("gradient", lambda g: g + 1e-3, "first_variation"),
        ("value", lambda h: float("nan"), "finite"),
        ("product", lambda x: 1.01 * x, "second_variation"),
        ("local", lambda x: 2 * x, "split"),
        ("blocks", lambda b: 1.001 * b, "local_blocks"),
        ("kernel", lambda k: k + torch.triu(torch.ones_like(k), 1), "flat_kernel"),
        ("gradients", lambda g: g[:, :1], "span"),
        ("symmetry", lambda s: torch.ones(len(s), 1, s.shape[2], dtype=s.dtype), "symmetry"),
    ],
)
def test_wrong_functionals_are_caught(name, change, caught):
    check_functional(Wrong(), random_measure(2))
    with pytest.raises(NonconformingError, match=caught) as error:
        check_functional(Wrong(**{name: change}), random_measure(2))
    assert error.value.exit_code == 1


class SkewLinearisation(WrongLinearisation):
    def product(self, fields, parts=("interaction", "local")):
        turned = torch.stack([fields[..., 1], -fields[..., 0]], dim=-1)
        return self.inner.product(fields, parts) + (turned if "local" in parts else 0.0)


class Skew(Wrong):
    def linearise(self, measure):
        return SkewLinearisation(generic().linearise(measure), {})


def test_an_operator_that_is_not_self_adjoint_is_caught():
    # An antisymmetric part vanishes in <Lv, v>: only the test of self-adjointness sees it.
    with pytest.raises(NonconformingError, match="self_adjoint"):
        check_functional(Skew(), random_measure(2))


def test_a_quadratic_functional_has_no_remainder():
    linear = PotentialFunctional(lambda z: z, lambda rho: rho.square().sum(), count=2)
    found = check_second_variation(linear, random_measure(2))
    assert found.passed
    assert found.slope == float("inf")
    assert not replace(found, slope=2.0).passed


def test_the_example_is_short_and_runs(capsys):
    script = Path(__file__).parents[3] / "examples" / "own_functional.py"
    assert len(script.read_text().splitlines()) < 30
    runpy.run_path(str(script))
    out = capsys.readouterr().out
    assert "second_variation" in out
    assert out.count("eigenvalue") == 3
