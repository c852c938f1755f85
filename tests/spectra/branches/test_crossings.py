"""Branches and zero crossings of planted families, whose truth is known by construction."""

import numpy as np
import pytest
import scipy.linalg

from manifold.errors import InputError
from spectra.branches.crossings import CrossingKind, find_crossings
from spectra.branches.tracking import SpectralStep, track

STEPS = 21
TIMES = np.linspace(-1, 1, STEPS)
WIDTH = TIMES[1] - TIMES[0]
ERROR = 1e-11


class Planted:
    """Blocks of a symmetric matrix family in a slowly turning frame, with the truth of each block."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.blocks, self.crossings, self.touches, self.avoided = [], [], [], 0
        self.intervals = self.rng.permutation(np.arange(2, STEPS - 3)).tolist()

    def crossing(self, copies=1, at=None, direction=None):
        place = self.intervals.pop() + 0.5 if at is None else at
        slope = (direction or self.rng.choice([-1, 1])) * self.rng.uniform(0.8, 1.2)
        t0 = TIMES[0] + WIDTH * place
        self.blocks.append(lambda t: slope * (t - t0) * np.eye(copies))
        self.crossings += [(int(place), "up" if slope > 0 else "down")] * copies

    def opposed_pair(self):
        interval = self.intervals.pop()
        self.crossing(at=interval + 0.2, direction=1)
        self.crossing(at=interval + 0.8, direction=-1)

    def touch(self):
        place, size = self.intervals.pop(), self.rng.choice([-1, 1]) * self.rng.uniform(0.5, 2)
        self.blocks.append(lambda t: np.array([[size * (t - TIMES[place]) ** 2]]))
        self.touches.append(place)

    def avoided_crossing(self, level):
        gap, slope = 10 ** self.rng.uniform(-2.5, -0.5), self.rng.uniform(0.8, 1.2)
        t0 = TIMES[0] + WIDTH * (self.intervals.pop() + self.rng.uniform(0.3, 0.7))
        self.blocks.append(
            lambda t: level * np.eye(2) + np.array([[slope * (t - t0), gap], [gap, -slope * (t - t0)]])
        )
        self.avoided += level == 0

    def steps(self, solver_seed=0):
        sizes = [len(block(0.0)) for block in self.blocks]
        n = sum(sizes) + 3
        turn = np.triu(self.rng.standard_normal((n, n)), 1)
        turn = 0.05 * (turn - turn.T) / np.linalg.norm(turn, 2)
        frame = np.linalg.qr(self.rng.standard_normal((n, n)))[0]
        solver, found = np.random.default_rng(solver_seed), []
        for t in TIMES:
            matrix = scipy.linalg.block_diag(*(block(t) for block in self.blocks), 5 * np.eye(3))
            values, vectors = np.linalg.eigh(matrix)
            values[np.abs(values) < 1e-14] = 0
            vectors = frame @ scipy.linalg.expm(t * turn) @ vectors
            found.append(SpectralStep(values, np.full(n, ERROR), scrambled(values, vectors, solver)))
        return found


def scrambled(values, vectors, rng):
    """The same eigenspaces with another basis inside degenerate ones, as a solver may return them."""
    vectors = vectors * rng.choice([-1, 1], len(values))
    for value in np.unique(values.round(9)):
        same = np.flatnonzero(np.abs(values - value) < 1e-8)
        vectors[:, same] = vectors[:, same] @ np.linalg.qr(rng.standard_normal((len(same), len(same))))[0]
    return vectors


def random_family(seed):
    family = Planted(seed)
    for _ in range(family.rng.integers(1, 4)):
        family.crossing()
    family.crossing(copies=int(family.rng.integers(2, 4)))
    family.touch()
    family.opposed_pair()
    family.avoided_crossing(0.0)
    family.avoided_crossing(family.rng.choice([-3.0, 3.0]))
    return family


def of_kind(events, kind):
    return [e for e in events if e.kind is kind]


@pytest.mark.parametrize("seed", range(200))
def test_planted_families_are_classified(seed):
    family = random_family(seed)
    steps = family.steps()
    events = find_crossings(steps, track(steps))
    crossings = of_kind(events, CrossingKind.CROSSING)
    assert sorted((e.low, e.direction) for e in crossings) == sorted(family.crossings)
    assert all(e.high == e.low + 1 for e in crossings)
    touches = of_kind(events, CrossingKind.TOUCH)
    assert sorted((e.low + 1, e.high - 1) for e in touches) == [(p, p) for p in sorted(family.touches)]
    assert len(of_kind(events, CrossingKind.UNRESOLVED)) in ({0, 2} if family.avoided else {0})


def paths(branches, steps):
    """Tracks as a set of value sequences, whatever their numbers."""
    rounded = np.where(branches.index >= 0, branches.eigenvalues, np.inf).round(9) + 0.0
    return sorted(map(tuple, rounded.T))


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_permuted_input_and_another_basis_of_clusters_leave_the_tracks(seed):
    steps = random_family(seed).steps()
    again = random_family(seed).steps(solver_seed=5)
    rng = np.random.default_rng(seed)
    mixed = []
    for step in again:
        order = rng.permutation(len(step.eigenvalues))
        mixed.append(SpectralStep(step.eigenvalues[order], step.errors[order], step.vectors[:, order]))
    first, second = track(steps), track(mixed)
    assert paths(first, steps) == paths(second, mixed)
    summary = [
        sorted((e.low, e.high, e.direction, e.kind.value) for e in find_crossings(s, b))
        for s, b in ((steps, first), (mixed, second))
    ]
    assert summary[0] == summary[1]


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_time_reversal_leaves_the_tracks(seed):
    steps = random_family(seed).steps()
    forward, backward = track(steps), track(steps[::-1])
    turned = sorted(tuple(path[::-1]) for path in paths(backward, steps))
    assert paths(forward, steps) == turned
    flipped = {"up": "down", "down": "up", "none": "none"}
    there = sorted((e.low, e.high, e.direction, e.kind.value) for e in find_crossings(steps, forward))
    back = find_crossings(steps[::-1], backward)
    last = STEPS - 1
    assert there == sorted((last - e.high, last - e.low, flipped[e.direction], e.kind.value) for e in back)


def diagonal(rows, errors=ERROR, complete=True):
    rows = np.atleast_2d(np.array(rows, float))
    k = rows.shape[1]
    return [SpectralStep(row, np.full(k, errors), np.eye(k), complete) for row in rows]


def test_branches_leave_a_cluster_as_they_came():
    """Two lines meet exactly at a step, where the solver's basis is arbitrary."""
    steps = diagonal([[1, 3], [2, 2], [3, 1]])
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    steps[1] = SpectralStep(steps[1].eigenvalues, steps[1].errors, turn)
    branches = track(steps)
    assert branches.eigenvalues.T.tolist() == [[1, 2, 3], [3, 2, 1]]
    assert branches.overlaps == pytest.approx(np.ones((2, 2)))


def test_wide_bounds_and_ends_at_zero_are_unresolved():
    steps = diagonal([[1], [0.05], [1]], errors=0.1)
    assert [e.kind for e in find_crossings(steps, track(steps))] == [CrossingKind.UNRESOLVED]
    steps = diagonal([[-1], [-0.5], [0]])
    (event,) = find_crossings(steps, track(steps))
    assert (event.kind, event.low, event.high) == (CrossingKind.UNRESOLVED, 1, 2)
    steps = diagonal([[-1], [0.05], [1]], errors=0.1)
    (event,) = find_crossings(steps, track(steps))
    assert (event.kind, event.low, event.high) == (CrossingKind.CROSSING, 0, 2)


def test_marginal_branches_make_no_events():
    steps = diagonal([[0, 1], [0, 1], [0, 2]])
    assert find_crossings(steps, track(steps)) == []


def test_rank_may_change():
    steps = [*diagonal([[1.0, 2.0]]), SpectralStep([1.1], [ERROR], np.eye(2)[:, :1]), *diagonal([[1, 2]])]
    branches = track(steps)
    assert (branches.index >= 0).sum(1).tolist() == [2, 1, 2]
    assert branches.eigenvalues[:, 0].tolist() == [1, 1.1, 1]
    assert np.isnan(branches.eigenvalues[1, 1])


def test_poor_overlap_is_evidence_only_with_complete_spectra():
    vectors = [np.eye(3)[:, :1], np.eye(3)[:, 1:2]]
    for complete, kind in ((True, CrossingKind.CROSSING), (False, CrossingKind.UNRESOLVED)):
        steps = [SpectralStep([s], [ERROR], v, complete) for s, v in zip((-1, 1), vectors, strict=True)]
        (event,) = find_crossings(steps, track(steps))
        assert (event.kind, event.overlap) == (kind, 0.0)


@pytest.mark.parametrize(
    ("values", "errors", "vectors"),
    [([1], [1, 2], np.eye(1)), ([1], [-1], np.eye(1)), ([np.nan], [0], np.eye(1)), ([1], [0], np.eye(2))],
)
def test_bad_steps(values, errors, vectors):
    with pytest.raises(InputError):
        SpectralStep(values, errors, vectors)


def test_bad_sequences():
    with pytest.raises(InputError, match="at least one"):
        track([])
    with pytest.raises(InputError, match="one dimension"):
        track([*diagonal([[1.0]]), *diagonal([[1.0, 2.0]])])


def test_steps_without_vectors_have_no_branches():
    branches = track([SpectralStep(np.zeros(0), np.zeros(0), np.zeros((4, 0))) for _ in range(3)])
    assert branches.index.shape == branches.eigenvalues.shape == (3, 0)
    assert branches.overlaps.shape == (2, 0)


def opposed(errors, *, turn=0.0):
    """One branch up through zero at t = 0.49, one down at 0.51; the vectors turn by an angle."""
    c, s = np.cos(turn), np.sin(turn)
    pair = [np.array([-0.98, 1.02]), np.array([1.02, -0.98])]
    return [
        SpectralStep(pair[0], np.full(2, errors), np.eye(2)),
        SpectralStep(pair[1], np.full(2, errors), np.array([[c, -s], [s, c]])),
    ]


@pytest.mark.parametrize(
    ("errors", "turn", "kind"),
    [
        (1e-11, 0.0, CrossingKind.CROSSING),
        # Half of the determinant, (0.02)^2 at t = 1/2, is a coupling of 0.0283 times 1/2 there.
        (0.027, 0.0, CrossingKind.CROSSING),
        (0.030, 0.0, CrossingKind.UNRESOLVED),
        # A turn by phi couples them by 2 sin(phi) cos(phi); with the bounds it is too much, alone it is not.
        (1e-11, 0.010, CrossingKind.CROSSING),
        (0.012, 0.010, CrossingKind.UNRESOLVED),
        (0.012, -0.010, CrossingKind.UNRESOLVED),
    ],
)
def test_error_bounds_of_an_opposed_pair_count_as_coupling(errors, turn, kind):
    steps = opposed(errors, turn=turn)
    events = find_crossings(steps, track(steps))
    assert sorted(e.direction for e in events) == ["down", "up"]
    assert {e.kind for e in events} == {kind}


def test_signs_and_clusters_of_a_step():
    """A sign beyond its bound; neighbours nearer than both bounds and 1e-8 of the norm are one cluster."""
    step = SpectralStep([-2.0, -0.1, 0.1, 0.3, 2.0], [0.1, 0.1, 0.05, 0.1, 0.1], np.eye(5))
    assert step.signs.tolist() == [-1, 0, 1, 1, 1]
    assert step.norm == 2.0
    errors = [0.02, 0.02, 0.02, 0.02, 0.02]
    step = SpectralStep([0.0, 0.03, 0.1, 0.145, 1.0], errors, np.eye(5))
    assert step.clusters.tolist() == [0, 0, 1, 2, 3]  # gaps 0.03, 0.07, 0.045, 0.855 against 0.04
    step = SpectralStep([1.0, 1.0 + 0.9e-5, 1.0 + 2.1e-5, 1000.0], np.zeros(4), np.eye(4))
    assert step.clusters.tolist() == [0, 0, 1, 2]
    step = SpectralStep([0.0, 0.1, 0.2, 0.3], [0.01, 0.05, 0.06, 0.02], np.eye(4))
    assert step.clusters.tolist() == [0, 1, 1, 2]  # each gap against the errors of its own two ends
    empty = SpectralStep(np.zeros(0), np.zeros(0), np.zeros((3, 0)))
    assert (empty.norm, empty.clusters.tolist()) == (0.0, [])
    branches = track(diagonal([[0.5, -0.5, 0.2]], errors=0.5))
    assert branches.signs.tolist() == [[0, 0, 0]]
    assert (track(diagonal([[0.6, -0.6]], errors=0.5)).signs == [[-1, 1]]).all()


def summary_of(steps):
    return [(e.low, e.high, e.direction, e.kind) for e in find_crossings(steps, track(steps))]


def test_uncertain_stretches_at_both_ends_reach_to_the_first_and_last_step():
    steps = diagonal([[0], [0], [-1], [1], [0], [0]])
    assert summary_of(steps) == [
        (0, 2, "none", CrossingKind.UNRESOLVED), (2, 3, "up", CrossingKind.CROSSING),
        (3, 5, "none", CrossingKind.UNRESOLVED),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("inner", "kind"), [((1e-9, 4e-8), CrossingKind.TOUCH), ((1e-9, 6e-8), CrossingKind.UNRESOLVED),
                        ((1e-9, 1e-3), CrossingKind.UNRESOLVED), ((1e-3, 1e-9), CrossingKind.UNRESOLVED)]
)  # fmt: skip
def test_a_touch_is_zero_to_rounding_at_every_step_inside(inner, kind):
    errors = [1e-3, *inner, 1e-3]
    steps = [SpectralStep([v], [e], np.eye(1)) for v, e in zip((1, 0, 0, 1), errors, strict=True)]
    # The bound is compared with 1e-8 of the norm of the step, which is that of another branch.
    steps = [
        SpectralStep(np.append(s.eigenvalues, 5.0), np.append(s.errors, 1e-12), np.eye(2)) for s in steps
    ]
    assert summary_of(steps) == [(0, 3, "none", kind)]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("turned", [1, 2])
def test_one_poor_link_or_one_incomplete_step_inside_is_enough(place, turned):
    vectors = [np.eye(3)[:, :1] if t < turned else np.eye(3)[:, 1:2] for t in range(3)]
    steps = [
        SpectralStep([v], [0.1], vector, complete=t != place)
        for t, (v, vector) in enumerate(zip((-1, 0, 1), vectors, strict=True))
    ]
    (event,) = find_crossings(steps, track(steps))
    assert event.overlap == 0.0
    assert event.kind is CrossingKind.UNRESOLVED
    whole = [SpectralStep(s.eigenvalues, s.errors, s.vectors) for s in steps]
    assert summary_of(whole) == [(0, 2, "up", CrossingKind.CROSSING)]


def test_opposed_crossings_one_after_the_other_are_no_pair():
    steps = diagonal([[-1, 1], [1, 1.5], [1.2, -1]], errors=0.4)
    assert [(low, kind) for low, _, _, kind in summary_of(steps)] == [
        (0, CrossingKind.CROSSING), (1, CrossingKind.CROSSING)
    ]  # fmt: skip
    at_once = diagonal([[-1, 1], [1, -1]], errors=0.4)
    assert {kind for *_, kind in summary_of(at_once)} == {CrossingKind.UNRESOLVED}


def test_overlaps_are_shares():
    almost = np.eye(2) * (1 + 1e-9)
    steps = [SpectralStep([1, 2], [ERROR] * 2, almost) for _ in range(3)]
    assert track(steps).overlaps.max() <= 1.0
    half = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    steps = [SpectralStep([1, 2], [ERROR] * 2, v) for v in (np.eye(2), half)]
    assert track(steps).overlaps == pytest.approx(np.full((1, 2), 0.5))


def test_places_inside_a_cluster_are_those_of_the_largest_overlap():
    """Bounds wider than the gap: one cluster, yet the vectors tell which is which."""
    branches = track(diagonal([[1.0, 1.05, 3.0]] * 3, errors=0.1))
    assert branches.index.tolist() == [[0, 1, 2]] * 3


def test_what_a_cluster_holds_beside_a_branch_is_a_new_branch_across_it():
    """One vector before, then two equal eigenvalues in another basis, which part along the axes."""
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    steps = [
        SpectralStep([1.0], [ERROR], np.eye(2)[:, :1]), SpectralStep([2.0, 2.0], [ERROR] * 2, turn),
        SpectralStep([3.0, 4.0], [ERROR] * 2, np.eye(2)),
    ]  # fmt: skip
    branches = track(steps)
    assert branches.eigenvalues[:, 0].tolist() == [1, 2, 3]
    assert branches.eigenvalues[1:, 1].tolist() == [2, 4]
    assert branches.overlaps[1] == pytest.approx([1, 1])


def test_events_end_where_certain_signs_begin():
    born_late = [*diagonal([[5.0, 0.0]]), *diagonal([[5.0, 0.0]])]
    alone = SpectralStep([5.0], [ERROR], np.eye(2)[:, :1])
    steps = [alone, alone, *born_late, *diagonal([[5.0, 1.0], [5.0, 1.0]])]
    assert summary_of(steps) == [(2, 4, "none", CrossingKind.UNRESOLVED)]
    assert summary_of(steps[:3]) == []
    assert summary_of(steps[1:5]) == [(1, 3, "none", CrossingKind.UNRESOLVED)]
    assert summary_of(steps[2:4] + steps[4:5]) == [(0, 2, "none", CrossingKind.UNRESOLVED)]
    assert summary_of(steps[1:2] + steps[3:5]) == [(1, 2, "none", CrossingKind.UNRESOLVED)]
    assert summary_of(diagonal([[1], [2], [3]])) == []
    assert summary_of(diagonal([[1], [1], [1], [0], [0]])) == [(2, 4, "none", CrossingKind.UNRESOLVED)]


def test_steps_beyond_the_bracket_need_not_be_complete():
    vectors = [np.eye(3)[:, :1], np.eye(3)[:, 1:2], np.eye(3)[:, 1:2]]
    steps = [
        SpectralStep([v], [ERROR], vector, complete=t < 2)
        for t, (v, vector) in enumerate(zip((-1, 1, 1), vectors, strict=True))
    ]
    assert summary_of(steps) == [(0, 1, "up", CrossingKind.CROSSING)]


@pytest.mark.parametrize("turned", [0, 1])
def test_one_poor_link_makes_an_opposed_pair_doubtful(turned):
    before = np.eye(3)[:, :2]
    after = before.copy()
    after[:, turned] = np.eye(3)[:, 2]
    steps = [SpectralStep([-0.9, 1.1], [ERROR] * 2, before), SpectralStep([1.1, -0.9], [ERROR] * 2, after)]
    assert {kind for *_, kind in summary_of(steps)} == {CrossingKind.UNRESOLVED}
    steps[1] = SpectralStep([1.1, -0.9], [ERROR] * 2, before)
    assert {kind for *_, kind in summary_of(steps)} == {CrossingKind.CROSSING}


@pytest.mark.parametrize("sense", [1, -1])
def test_an_opposed_pair_is_looked_at_over_both_brackets(sense):
    """From the first step to the last both reach zero at once; from the middle one they would not."""
    steps = diagonal([[-1, 1], [0, 0.6], [1, -1]])[::sense]
    found = summary_of(steps)
    assert len(found) == 2
    assert {kind for *_, kind in found} == {CrossingKind.UNRESOLVED}


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(
    ("error", "kind"), [(0.027, CrossingKind.CROSSING), (0.030, CrossingKind.UNRESOLVED)]
)
def test_the_largest_bound_of_both_ends_counts(place, error, kind):
    steps = opposed(1e-11)
    errors = np.full((2, 2), 1e-11)
    errors[divmod(place, 2)] = error
    steps = [SpectralStep(s.eigenvalues, e, s.vectors) for s, e in zip(steps, errors, strict=True)]
    assert {found for *_, found in summary_of(steps)} == {kind}


def test_crossings_late_in_a_step_are_seen():
    """Zeros at 2/3 and at 20/29 of the step: in between, the determinant is positive."""
    steps = diagonal([[-2.0, 2.0], [1.0, -0.9]])
    assert {kind for *_, kind in summary_of(steps)} == {CrossingKind.CROSSING}
