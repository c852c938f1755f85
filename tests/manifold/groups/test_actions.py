"""Group actions: isometry, closure, faithfulness, quotients, invariant counts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from manifold.errors import InputError
from manifold.groups.actions import CircleAction, FiniteAction, harmonic_characters
from manifold.groups.named import default_chain, named_action
from manifold.spaces.homogeneous import SpectralSpace, ball_volume, sphere_volume

T1, T2, S2, S3 = (SpectralSpace.parse(name) for name in ("T1", "T2", "S2", "S3"))


def test_volumes_of_spheres_and_balls():
    assert ball_volume(3) == pytest.approx(4 * math.pi / 3)
    assert sphere_volume(2) == pytest.approx(4 * math.pi)
    assert S3.volume == pytest.approx(2 * math.pi**2)


@pytest.mark.parametrize(
    ("space", "name", "order"),
    [
        ("T1", "Z8", 8),
        ("T1", "D6", 12),
        ("T2", "Z4xZ4", 16),
        ("T2", "swap", 2),
        ("T3", "perm", 6),
        ("T3", "signperm", 48),
        ("T2", "signs", 4),
        ("S2", "antipode", 2),
        ("S3", "perm", 24),
        ("S2", "signperm", 48),
        ("S2", "D5", 10),
        ("S4", "signs", 32),
    ],
)
def test_orders_and_quotients_of_finite_groups(space, name, order):
    action = named_action(SpectralSpace.parse(space), name)
    assert action.order == order
    assert action.quotient_dim == action.space.dim
    assert action.quotient_volume == pytest.approx(action.space.volume / order)
    assert action.quotient_volume_error == 0


@settings(derandomize=True, deadline=None, max_examples=25)
@given(hs.integers(2, 4000))
def test_cyclic_closure_has_no_rounding_twins(order):
    assert named_action(T1, f"Z{order}").order == order


@pytest.mark.parametrize(
    ("space", "name", "dim", "volume"),
    [
        ("S2", "SO2", 1, math.pi),
        ("S3", "SO3", 1, math.pi),
        ("S3", "SO2", 2, 2 * math.pi),
        ("S3", "hopf", 2, math.pi),
        ("S2", "SO2xflip", 1, math.pi / 2),
        ("T2", "SO2", 1, 2 * math.pi),
        ("T2", "circle:1,2", 1, 2 * math.pi / math.sqrt(5)),
    ],
)
def test_quotients_of_infinite_groups(space, name, dim, volume):
    action = named_action(SpectralSpace.parse(space), name)
    assert action.order is None
    assert action.quotient_dim == dim
    assert action.quotient_volume == pytest.approx(volume)


def test_estimated_quotient_volume_agrees_with_the_exact_one():
    # Weights (1, 2) on S^3: vol = 2 pi^2 E[1 / (2 pi sqrt(|z1|^2 + 4 |z2|^2))], |z1|^2 uniform on [0, 1].
    action = CircleAction.on(S3, (1, 2), name="weighted")
    exact = math.pi * 2 / 3 * (2 - 1)  # integral of (4 - 3 u)^(-1/2) over [0, 1] is 2/3
    assert action.quotient_volume_error > 0
    assert abs(action.quotient_volume - exact) < 5 * action.quotient_volume_error


def test_characters_are_traces_of_rotated_harmonics():
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    expected = [1 + 2 * sum(math.cos(m * angle) for m in range(1, deg + 1)) for deg in range(12)]
    assert harmonic_characters(turn, 11) == pytest.approx(expected, abs=1e-10)


def test_molien_counts_of_the_octahedral_group():
    # Signed permutations of R^3: invariants x^2+y^2+z^2, x^4+y^4+z^4, x^6+..: harmonics 1/((1-t^4)(1-t^6)).
    counts = named_action(S2, "signperm").invariant_dimensions(24)
    series = np.zeros(25, dtype=int)
    for a in range(0, 25, 4):
        series[a::6] += 1
    assert counts.tolist() == series.tolist()


def test_maps_that_are_no_isometries_are_refused():
    with pytest.raises(InputError, match="no isometry"):
        FiniteAction.from_generators(S2, np.diag([1.0, 1.0, 2.0])[None])
    turn = named_action(S2, "Z8").matrices[1][:2, :2]
    with pytest.raises(InputError, match="signed permutations"):
        FiniteAction.from_generators(T2, turn[None])
    with pytest.raises(InputError, match="translations"):
        FiniteAction.from_generators(S2, np.eye(3)[None], np.ones((1, 3)))


def test_actions_that_are_not_faithful_or_no_group_are_refused():
    with pytest.raises(InputError, match="not faithful"):
        FiniteAction.from_elements(S2, np.stack([np.eye(3), -np.eye(3), np.eye(3)]))
    with pytest.raises(InputError, match="not closed"):
        FiniteAction.from_elements(T1, np.ones((2, 1, 1)), np.array([[0.0], [1.0]]))
    with pytest.raises(InputError, match="finite order"):
        FiniteAction.from_generators(T1, np.ones((1, 1, 1)), np.array([[1.0]]))
    with pytest.raises(InputError, match=r"not faithful.*\(1, 2\)"):
        CircleAction.on(T2, (2, 4), name="double")


@pytest.mark.parametrize(("space", "name"), [("S2", "SO3"), ("S3", "O4"), ("T1", "SO2")])
def test_quotients_of_dimension_zero_are_explained(space, name):
    with pytest.raises(InputError, match="d' = 0"):
        named_action(SpectralSpace.parse(space), name)


@pytest.mark.parametrize("name", ["Z0", "Z4xZ4", "nonsense", "SO2", "hopf"])
def test_names_that_make_no_sense_on_the_circle(name):
    with pytest.raises(InputError):
        named_action(T1, name)


def test_default_chains():
    assert default_chain("Z8") == ["Z1", "Z2", "Z4", "Z8"]
    assert default_chain("Z12") == ["Z1", "Z2", "Z4", "Z12"]
    assert default_chain("Z4xZ4") == ["Z1xZ1", "Z2xZ2", "Z4xZ4"]
    assert default_chain("D8") == ["trivial", "Z8", "D8"]
    assert default_chain("swap") == ["trivial", "swap"]
    assert default_chain("SO2xflip") == ["trivial", "SO2", "SO2xflip"]
