"""Exposed faces: what a face says of its points, and maximum entropy on them in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, fsolve
from scipy.special import ive

from manifold.errors import InfeasibleMomentsError, NotConvergedError, TooLargeError
from manifold.maxent import faces
from manifold.maxent.faces import (
    FaceFit,
    _distinct,
    _on_torus,
    exposed_face,
    fit_anywhere,
    fit_on_face,
    integer_kernel,
    touching_face,
)
from manifold.maxent.family import MaxEntFamily
from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import complex_pairs, parse_monomials


def parts(space, monomials):
    place = parse_space(space)
    return place, parse_monomials(monomials, place)


def family(space, monomials):
    return MaxEntFamily(*parts(space, monomials))


def test_distinct_points_are_further_apart_than_the_radius():
    line = np.array([0.0, 0.05, 1.0, 0.1, 1.02, 3.0, 0.11])[:, None] * np.array([[0.6, 0.8]])
    assert _distinct(line, 0.1) == [0, 2, 5, 6]  # a distance equal to the radius is not beyond it
    assert _distinct(line, 0.2) == [0, 2, 5]
    assert _distinct(line, 0.1, most=2) == [0, 2]
    assert len(_distinct(np.arange(100.0)[:, None], 0.5)) == 65
    assert _distinct(line[:0], 0.1) == []


@pytest.mark.parametrize("seed", range(12))
def test_an_integer_kernel_is_the_lattice_of_all_orthogonal_vectors(seed):
    """Every small integer vector on the used entries that is orthogonal is an integer combination."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 5))
    vectors = rng.integers(-3, 4, (int(rng.integers(0, 4)), count))
    if seed % 2 and len(vectors) > 1:
        vectors[-1] = 2 * vectors[0]
    used = rng.random(count) < 0.8
    basis, inverse = integer_kernel(vectors, used)
    rank = np.linalg.matrix_rank(vectors[:, used]) if used.any() and len(vectors) else 0
    assert basis.shape == (count, used.sum() - rank)
    assert inverse.shape == basis.shape[::-1]
    assert basis.dtype.kind == inverse.dtype.kind == "i"
    assert (vectors @ basis == 0).all()
    assert (basis[~used] == 0).all()
    assert (inverse[:, ~used] == 0).all()
    assert (inverse @ basis == np.eye(basis.shape[1])).all()
    for found in itertools.product(range(-3, 4), repeat=count):
        found = np.array(found) * used
        if not (vectors @ found).any():
            assert (basis @ (inverse @ found) == found).all()


def test_monomials_of_a_torus_are_cosines_with_their_phases():
    rows = [((2, -1, 0), 0.3 - 0.4j), ((0, 3, 1), 2.0), ((-1, 0, 0), 1j), ((0, 0, -1), -0.7 + 0.1j)]
    found = _on_torus(rows, 3, ["a", "b", "c", "d"])
    angles = np.random.default_rng(0).uniform(0, 7, (5, 3))
    points = np.stack([np.cos(angles), np.sin(angles)], 2).reshape(5, 6)
    expected = np.stack([(v * np.exp(1j * angles @ np.array(m))).real for m, v in rows], 1)
    np.testing.assert_allclose(found.values(torch.as_tensor(points)).numpy(), expected, atol=1e-14)
    assert found.names == ("a", "b", "c", "d")


CUBIC = "Re(z1*z2*conj(z3));Im(z1*z2*conj(z3));Re(z1*conj(z2)*z3);Re(z1^2*z3)"


@pytest.mark.parametrize(
    ("space", "monomials", "direction", "dimension", "free", "constants"),
    [
        ("S5", CUBIC, [1, 0, 0, 0], 2, [2, 3], {0: 3**-1.5, 1: 0.0}),
        ("S5", CUBIC, [-2, 0, 0, 0], 2, [2, 3], {0: -(3**-1.5), 1: 0.0}),
        ("S5", CUBIC, [0.6, 0.8, 0, 0], 2, [2, 3], {0: 0.6 * 3**-1.5, 1: 0.8 * 3**-1.5}),
        ("T2", "Re(z1*z2);Re(z1);Im(z1*conj(z2));Re(z1^2*z2^2)", [1, 0, 0, 0], 1, [1, 2], {0: 1.0, 3: 1.0}),
        ("T2", "Re(z1*z2);Im(z1);Im(z1*z2)", [0, 0, -1], 1, [1], {0: 0.0, 2: -1.0}),
        ("T3", "Re(z1^2*z2);Re(z3);Im(z1*z3)", [0.5, 0, 0], 2, [1, 2], {0: 1.0}),
        ("S2", "x3^2;x1;x1*x2;x3*x1", [-1, 0, 0, 0], 1, [1, 2], {0: 0.0, 3: 0.0}),
        ("S2", "x3;x1", [1, 0], 0, [], {0: 1.0, 1: 0.0}),
        ("S3", "|z2|^2;Re(z1^2);Re(z1*z2)", [-1, 0, 0], 1, [1], {0: 0.0, 2: 0.0}),
        ("S2", "x1^2;x1*x2;x1", [1, 0, 0], 0, [2], {0: 1.0, 1: 0.0}),
        ("S3", "|z1|^2", [-1], 1, [], {0: 0.0}),
        ("S4", "Re(z1*z2);x5;Re(z1^2)", [0, 1, 0], 0, [], {0: 0.0, 1: 1.0, 2: 0.0}),
        ("S4", "Re(z1*z2);x5^2", [1, 0], 1, [], {0: 0.5, 1: 0.0}),
        ("S2xS1", "Re(z1*z2);x3;Re(z2)", [1, 0, 0], 1, [2], {0: 1.0, 1: 0.0}),
        ("S1", "Re(z1^3);x1", [1, 0.3], 0, [], {0: 1.0, 1: 1.0}),  # two more maxima, which are lower
        ("S2", "x1^2;x2^2;x3^2;x2", [-2, -1, -3, 0], 0, [3], {0: 0.0, 1: 1.0, 2: 0.0}),  # h(u) < 0
        # One start of eight ends on the highest circle: fewer than 65, and no two at one point.
        ("T2", "Re(z1^8);Re(z1);Re(z1*z2)", [1, 0.2, 0], 1, [2], {0: 1.0, 1: 1.0}),
        # A part of the direction that vanishes on the face sees no phase there.
        ("S3", "|z1|^2;Re(z1*z2^2);x1", [1, 0.1, 0], 1, [2], {0: 1.0, 1: 0.0}),
    ],
)  # fmt: skip
def test_a_face_tells_the_monomials_at_its_points(space, monomials, direction, dimension, free, constants):
    """In the chart of the face, at every point that was found, and at a turned one."""
    place, r = parts(space, monomials)
    face = exposed_face(place, r, direction)
    unit = np.array(direction, float) / np.linalg.norm(direction)
    assert face.direction == pytest.approx(unit)
    assert (face.dimension, face.free.tolist()) == (dimension, free)
    assert face.kind == ("torus" if dimension else "points")
    for i in range(len(r)):
        if i in constants:
            assert face.constants[i] == pytest.approx(constants[i], abs=1e-6)
        else:
            assert np.isnan(face.constants[i])
    values = r.values(torch.as_tensor(face.points)).numpy()
    np.testing.assert_allclose(values @ unit, face.support, atol=1e-11)
    fixed = sorted(constants)
    np.testing.assert_allclose(values[:, fixed], np.tile(face.constants[fixed], (len(values), 1)), atol=1e-6)
    if not dimension:
        assert len(_distinct(face.points, 1e-3)) == len(face.points)
        return
    count = len(face.points)
    assert 40 < count <= 64
    pairs = complex_pairs(place)
    z = np.stack([face.points[:, a] + 1j * face.points[:, b] for a, b in pairs], 1)
    np.testing.assert_allclose(np.abs(z), np.tile(face.origin[:, 0], (count, 1)), atol=1e-4)
    assert face.chart.shape == (dimension, len(pairs))
    if not free:
        assert face.monomials is None
        return
    angles = (np.angle(z) - face.origin[:, 1]) @ face.chart.T
    torus = np.stack([np.cos(angles), np.sin(angles)], 2).reshape(count, -1)
    np.testing.assert_allclose(
        face.monomials.values(torch.as_tensor(torus)).numpy(), values[:, free], atol=1e-6
    )
    assert face.monomials.names == tuple(r.names[i] for i in free)


@pytest.mark.parametrize(
    ("space", "monomials", "direction"),
    [
        ("S3", "x1^2;x2", [-1, 0]),  # a sphere of two dimensions
        ("S2", "x3^2;x1^2", [-1, 0]),  # a circle, on which x1^2 has a constant part and a varying one
        ("S4", "|z2|^2;x5", [-1, 0]),  # moduli that vary along the face
        ("S3", "|z1|^2;|z2|^2;x1", [1, 1, 0]),  # all of the space
        ("S5", "|z3|^2;x1", [-1, 0]),  # one modulus vanishes, two vary
        ("S2", "x3^2;x3^4;x1", [1, -1, 0]),  # two circles, at x3^2 = 1/2
        ("S2xS2", "x3^2;x3^4;x6;x1", [1, -1, 1, 0]),
        ("T3", "Re(z3);x1*x3", [1, 0]),  # two frequencies in one monomial
        ("S1", "x1^2;x2^2;x1", [1, 1, 0]),  # constant, by phases that cancel
    ],
)  # fmt: skip
def test_other_faces_are_refused(space, monomials, direction):
    with pytest.raises(NotConvergedError, match="neither a few points nor a torus"):
        exposed_face(*parts(space, monomials), direction)


def test_von_mises_on_a_great_circle():
    tested = family("S2", "x3^2;x1;x1*x2;x2*x3")
    face = exposed_face(tested.space, tested.monomials, [-1, 0, 0, 0])
    scale = tested.scale
    moments = np.array([0.0, 0.3, 0.0, 1e-9])
    found = fit_on_face(tested, moments, face)
    kappa = brentq(lambda k: ive(1, k) / ive(0, k) - 0.3, 0, 5)
    entropy = np.log(ive(0, kappa)) + kappa - 0.3 * kappa
    assert found.entropy == pytest.approx(entropy, abs=1e-9)
    assert found.weights is None
    assert found.fit.lam == pytest.approx([kappa, 0], abs=1e-7)
    assert (found.moments == moments).all()
    assert found.moment_error == pytest.approx(1e-9 / scale[3], rel=0.2)
    off = fit_on_face(tested, [2e-3, 0.3, 0.0, 1e-3], face)  # the largest of both, each in its own unit
    assert off.moment_error == pytest.approx(max(2e-3 / scale[0], 1e-3 / scale[3]), rel=1e-6)
    assert off.moment_error > 2e-3 / max(scale)


def test_where_nothing_varies_there_is_nothing_to_fit():
    tested = family("S2", "x3;x1")
    face = exposed_face(tested.space, tested.monomials, [1, 0])
    found = fit_on_face(tested, [1.0, 1e-3], face)
    assert (found.fit, found.weights, found.entropy) == (None, None, 0.0)
    assert found.moment_error == pytest.approx(1e-3 * 3**0.5, rel=1e-4)  # the deviation of x1 is 3^-1/2


def test_three_points_by_linear_equations():
    tested = family("S1", "Re(z1^3);Re(z1);Im(z1)")
    face = exposed_face(tested.space, tested.monomials, [1, 0, 0])
    assert len(face.points) == 3
    moments = np.array([1.0, 0.3, -0.2])
    found = fit_on_face(tested, moments, face)
    weights = (1 + 2 * face.points @ moments[1:]) / 3
    assert weights.min() > 0
    assert found.weights == pytest.approx(weights, abs=1e-10)
    assert found.entropy == pytest.approx(-(weights * np.log(3 * weights)).sum(), abs=1e-9)
    assert found.moment_error < 1e-6
    assert found.fit is None
    with pytest.raises(NotConvergedError, match="on 3 points of a face: moments missed"):
        fit_on_face(tested, [1.0, -0.9, 0.9], face)  # outside of the triangle
    off = fit_on_face(tested, [0.99, 0.3, -0.2], face)
    assert off.moment_error == pytest.approx(0.01 * 2**0.5, rel=1e-4)


def test_four_points_have_exponential_weights():
    tested = family("S1", "Re(z1^4);x1;x2")
    face = exposed_face(tested.space, tested.monomials, [1, 0, 0])
    found = fit_on_face(tested, [1.0, 0.5, 0.1], face)

    def off(lam):
        w = np.exp(face.points @ lam)
        return w @ face.points / w.sum() - [0.5, 0.1]

    weights = np.exp(face.points @ fsolve(off, [1.0, 0.1], xtol=1e-13))
    weights /= weights.sum()
    assert found.weights == pytest.approx(weights, abs=1e-9)
    assert found.entropy == pytest.approx(-(weights * np.log(4 * weights)).sum(), abs=1e-9)
    deep = fit_on_face(tested, [1.0, 1 - 1e-5, 0.0], face)  # next to one of them: long steps are cut
    assert deep.weights.max() == pytest.approx(1 - 1e-5, abs=1e-9)
    assert deep.weights @ face.points == pytest.approx([1 - 1e-5, 0], abs=1e-7)
    for outside in ([1.2, 0.0], [0.0, 1.2]):  # one of both is met
        with pytest.raises(NotConvergedError, match="on 4 points"):
            fit_on_face(tested, [1.0, *outside], face)


def test_moments_inside_touch_no_face_and_beyond_are_separated():
    tested = family("S2", "x3^2;x1")
    down = np.array([-1.0, 0.0])
    assert touching_face(tested, np.array([0.2, 0.1]), down) is None
    assert touching_face(tested, np.array([0.0, 0.3]), None) is None
    assert touching_face(tested, np.array([0.0, 0.3]), np.zeros(2)) is None
    assert touching_face(tested, np.array([0.0, 0.3]), np.array([np.nan, 0.0])) is None
    face = touching_face(tested, np.array([0.0, 0.3]), 5 * down)
    assert (face.dimension, face.direction.tolist()) == (1, [-1, 0])
    with pytest.raises(InfeasibleMomentsError) as caught:
        touching_face(tested, np.array([-1e-3, 0.3]), 5 * down)
    certificate = caught.value.certificate
    assert certificate.direction.tolist() == [-1, 0]
    assert certificate.value == pytest.approx(1e-3)
    assert certificate.support == pytest.approx(0, abs=1e-12)
    assert abs(certificate.point[2]) < 1e-5
    assert certificate.starts == 384


@pytest.mark.parametrize("noise", [0.05, 5e-3, 5e-4, 0.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_small_parts_of_a_direction_are_left_out(noise, sign):
    """Where lambda ran away it also went a little elsewhere; in units of the deviations."""
    tested = family("S2", "x3^2;x1")
    other = sign * noise * tested.scale[0] / tested.scale[1]
    face = touching_face(tested, np.array([0.0, 0.3]), np.array([-1.0, other]))
    assert face.direction.tolist() == [-1, 0]


@pytest.mark.parametrize(("gap", "known"), [(2e-14, True), (-2e-14, True), (1e-13, False), (-1e-13, None)])
def test_moments_touch_within_a_rounding_of_their_deviation(gap, known):
    """1e-13 of the deviation 0.298 of x3^2, on both sides of the face at zero."""
    tested = family("S2", "x3^2;x1")
    moments = np.array([gap, 0.3])
    if known is None:
        with pytest.raises(InfeasibleMomentsError):
            touching_face(tested, moments, np.array([-1.0, 0.0]))
    else:
        assert (touching_face(tested, moments, np.array([-1.0, 0.0])) is not None) is known


def test_a_part_of_a_fifth_of_a_deviation_is_kept():
    tested = family("S2", "x3^2;x1")
    direction = np.array([-1.0, 0.2 * tested.scale[0] / tested.scale[1]])
    assert touching_face(tested, np.array([0.0, 0.3]), direction) is None


def test_a_face_without_a_chart_is_said_to_be_one():
    tested = family("S3", "x1^2;x2")
    with pytest.raises(NotConvergedError, match="neither a few points"):
        touching_face(tested, np.array([0.0, 0.1]), np.array([-1.0, 0.0]))


@pytest.mark.parametrize("kind", [NotConvergedError, TooLargeError])
def test_a_fit_that_fails_inside_fails_with_its_own_reason(kind, monkeypatch):
    tested = family("S2", "x3^2;x1")

    def failing(*_, **options):
        assert options == {"tol": 1e-3}
        error = kind("no")
        if direction is not None:
            error.direction = direction
        raise error

    monkeypatch.setattr(faces, "fit", failing)
    direction = None
    with pytest.raises(kind, match="no"):
        fit_anywhere(tested, [0.2, 0.1], tol=1e-3)
    direction = np.array([-1.0, 0.0])
    with pytest.raises(kind, match="no"):
        fit_anywhere(tested, [0.2, 0.1], tol=1e-3)
    monkeypatch.setattr(faces, "fit_on_face", lambda *arguments: arguments)
    given, moments, face = fit_anywhere(tested, [0.0, 0.1], tol=1e-3)
    assert given is tested
    assert list(moments) == [0.0, 0.1]
    assert face.dimension == 1


def test_two_points_of_a_finite_face():
    found = fit_anywhere(family("S2", "x1^2;x1*x2;x1"), [1.0, 0.0, 0.3])
    assert isinstance(found, FaceFit)
    assert sorted(found.weights) == pytest.approx([0.35, 0.65], abs=1e-10)
    assert found.entropy == pytest.approx(-0.35 * math.log(0.7) - 0.65 * math.log(1.3), abs=1e-10)
