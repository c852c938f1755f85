"""Invariant eigenfunctions: kernels against brute-force averages, moments, transfer, Weyl bounds."""

import numpy as np
import pytest

from manifold.errors import InputError, TooLargeError
from manifold.groups.actions import FiniteAction
from manifold.groups.named import named_action
from manifold.invariants.kernel_ridge import sobolev_eigenvalues
from manifold.invariants.weyl import invariant_basis, invariant_spectrum, weyl_counts
from manifold.spaces.homogeneous import SpectralSpace
from tests.manifold.invariants import oracles_complexity as oracle

CUTOFFS = {"T1": 900.0, "T2": 81.0, "T3": 16.0, "S2": 90.0, "S3": 48.0, "S4": 28.0}
SHIPPED = {
    "T1": ["trivial", "Z8", "D4", "reflect"],
    "T2": ["trivial", "Z4xZ4", "Z4", "swap", "signs", "perm", "signperm", "reflect", "SO2", "circle:1,2"],
    "T3": ["perm", "signperm", "circle:1,1,0", "circle:2,-1,3", "Z2xZ2xZ2"],
    "S2": ["trivial", "Z5", "D3", "antipode", "swap", "perm", "signs", "signperm", "SO2", "O2", "SO2xflip"],
    "S3": ["trivial", "Z4", "antipode", "perm", "signperm", "SO2", "SO3", "hopf", "SO2xflip"],
    "S4": ["antipode", "perm", "SO3", "O4", "SO3xflip"],
}
CASES = [(space, name) for space, names in SHIPPED.items() for name in names]
FINITE = [(s, n) for s, n in CASES if "SO" not in n and "circle" not in n and n not in ("O2", "O4", "hopf")]


def made(space, name):
    return named_action(SpectralSpace.parse(space), name)


def sampled(basis, count, seed=0):
    return basis.action.space.sample(count, np.random.default_rng(seed))


@pytest.mark.parametrize(("space", "name"), FINITE)
def test_kernel_is_the_group_average(space, name):
    action = made(space, name)
    basis = invariant_basis(action, cutoff=CUTOFFS[space])
    x, y = sampled(basis, 7), sampled(basis, 5, 1)
    weight = sobolev_eigenvalues(basis.eigenvalues, 1.5)
    ours = (basis.values(x) * weight) @ basis.values(y).T
    if space[0] == "T":
        reach = int(CUTOFFS[space] ** 0.5)
        slow = oracle.torus_kernel(x, y, s=1.5, reach=reach, matrices=action.matrices, shifts=action.shifts)
    else:
        slow = oracle.sphere_kernel(x, y, s=1.5, degree=basis.degree, matrices=action.matrices)
    np.testing.assert_allclose(ours, slow, atol=1e-10)


GLIDES = {
    "glide": ([[0, 1], [1, 0]], [np.pi, 0.0]),
    "rotation about another centre": ([[0, -1], [1, 0]], [2 * np.pi / 3, 0.5]),
    "screw": ([[-1, 0], [0, 1]], [0.3, 2 * np.pi / 4]),
}


@pytest.mark.parametrize("name", GLIDES)
def test_point_groups_with_shifts_of_their_own(name):
    matrix, shift = (np.array(part, dtype=float) for part in GLIDES[name])
    action = FiniteAction.from_generators(SpectralSpace.parse("T2"), matrix[None], shift[None])
    basis = invariant_basis(action, cutoff=49.0)
    x, y = sampled(basis, 7), sampled(basis, 5, 1)
    ours = (basis.values(x) * sobolev_eigenvalues(basis.eigenvalues, 1.5)) @ basis.values(y).T
    slow = oracle.torus_kernel(x, y, s=1.5, reach=7, matrices=action.matrices, shifts=action.shifts)
    np.testing.assert_allclose(ours, slow, atol=1e-10)
    np.testing.assert_allclose(basis.eigenvalues, invariant_spectrum(action, cutoff=49.0))


def rotations_of(action, rng):
    """A random element of each shipped infinite group, as a map of points."""
    if action.space.kind == "torus":
        step = rng.uniform(0, 6) * np.array(action.weights)
        return lambda x: x + step
    if hasattr(action, "weights"):
        # A turn by an irrational angle in general: one of a prime number of equally spaced ones.
        turn = action.rotations(9973)[rng.integers(1, 9973)]
        return lambda x: x @ turn.T
    block = np.linalg.qr(rng.standard_normal((action.block, action.block)))[0]
    sign = -1.0 if action.flip else 1.0
    return lambda x: np.concatenate([x[:, : action.block] @ block.T, sign * x[:, action.block :]], axis=1)


@pytest.mark.parametrize(("space", "name"), [c for c in CASES if c not in FINITE])
def test_infinite_groups_invariant_orthonormal_and_complete(space, name):
    action = made(space, name)
    basis = invariant_basis(action, cutoff=CUTOFFS[space])
    x = sampled(basis, 50)
    move = rotations_of(action, np.random.default_rng(3))
    np.testing.assert_allclose(basis.values(move(x)), basis.values(x), atol=1e-10)
    # Orthonormal: coefficients in the full basis, which the finite test covers, have unit Gram matrix.
    whole = invariant_basis(made(space, "trivial"), cutoff=CUTOFFS[space])
    columns = np.stack([whole.transfer(basis, unit) for unit in np.eye(len(basis))])
    np.testing.assert_allclose(columns @ columns.T, np.eye(len(basis)), atol=1e-9)
    # Complete: averaging random functions over many random elements leaves the span of the basis.
    assert len(basis) == brute_force_rank(action, whole)


def brute_force_rank(action, whole):
    """Dimension of the functions fixed by three random elements (they generate a dense subgroup)."""
    rng = np.random.default_rng(4)
    x = sampled(whole, 2 * len(whole), 5)
    values = whole.values(x)
    changes = [whole.values(rotations_of(action, rng)(x)) - values for _ in range(3)]
    singular = np.linalg.svd(np.concatenate(changes), compute_uv=False)
    return int((singular < 1e-8 * singular[0]).sum())


@pytest.mark.parametrize(("space", "name"), CASES)
def test_counting_agrees_with_the_basis_and_weyl_bounds_hold(space, name):
    basis = invariant_basis(made(space, name), cutoff=CUTOFFS[space])
    np.testing.assert_allclose(basis.eigenvalues, invariant_spectrum(basis.action, cutoff=CUTOFFS[space]))
    counts = weyl_counts(basis, np.linspace(0.5, CUTOFFS[space], 150))
    assert all(c.within for c in counts)
    assert abs(counts[-1].remainder) < counts[-1].main + counts[-1].bound


def test_weyl_bound_would_catch_a_wrong_volume():
    action = made("T1", "Z4")
    wrong = type(action)(**{**vars(action), "quotient_volume": 1.3 * action.quotient_volume})
    assert not all(c.within for c in weyl_counts(invariant_basis(wrong, cutoff=4e4), np.linspace(1, 4e4, 50)))


@pytest.mark.parametrize(
    ("space", "name"),
    [("T1", "Z1"), ("T1", "Z8"), ("T2", "swap"), ("T3", "perm"), ("T2", "circle:1,2"), ("S2", "Z3")],
)
def test_moments_and_evaluation_against_the_table_of_values(space, name):
    basis = invariant_basis(made(space, name), cutoff=CUTOFFS[space])
    x = sampled(basis, 400)
    targets = np.sin(x[:, 0]) + x[:, -1] ** 2
    values = basis.values(x)
    gram, correlation = basis.moments(x, targets)
    np.testing.assert_allclose(gram, values.T @ values / len(x), atol=1e-11)
    np.testing.assert_allclose(correlation, values.T @ targets / len(x), atol=1e-11)
    c = np.random.default_rng(2).standard_normal(len(basis))
    np.testing.assert_allclose(basis.evaluate(x, c), values @ c, atol=1e-10)


@pytest.mark.parametrize(
    ("space", "large", "small"),
    [("T1", "Z8", "Z2"), ("T2", "signperm", "swap"), ("S2", "signperm", "antipode"), ("S3", "SO3", "SO2")],
)
def test_transfer_keeps_the_function_and_its_norm(space, large, small):
    cutoff = CUTOFFS[space]
    of, to = (invariant_basis(made(space, name), cutoff=cutoff) for name in (large, small))
    c = np.random.default_rng(0).standard_normal(len(of))
    moved = to.transfer(of, c)
    x = sampled(of, 60)
    np.testing.assert_allclose(to.values(x) @ moved, of.values(x) @ c, atol=1e-9)
    assert (moved**2).sum() == pytest.approx((c**2).sum(), rel=1e-9)
    half = to.head(cutoff / 3)
    np.testing.assert_allclose(half.transfer(of, c), moved[: len(half)], atol=1e-9)


def test_bad_cutoffs():
    with pytest.raises(InputError, match="cutoff"):
        invariant_basis(made("T1", "Z2"), cutoff=float("nan"))
    with pytest.raises(TooLargeError):
        invariant_basis(made("T3", "perm"), cutoff=1e6)
