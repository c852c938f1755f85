"""The large end: separated eigenvalues above a dense cluster, copies included."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.functionals.base import Decayed
from spectra.methods import plan
from spectra.methods.compute import compute_spectrum
from spectra.methods.large_end import prepare_large_end
from spectra.methods.plan import plan_spectrum
from spectra.operators.single_precision import in_single_precision
from spectra.operators.variation import DeflatedVariation, DenseOperator, SecondVariation, SymmetricOperator
from spectra.solvers import lanczos_passes as krylov_passes
from spectra.solvers.block_lanczos import block_spectrum
from spectra.solvers.lanczos import Lanczos
from spectra.solvers.lanczos_passes import _Pairs, _Search, upper_vectors
from spectra.tasks.group_task import GroupTask


class _Planted(SymmetricOperator):
    """A diagonal operator: a dense cluster up to ``edge`` and degenerate eigenvalues above it."""

    def __init__(self, size, edge, seed):
        rng = np.random.default_rng(seed)
        copies = rng.integers(1, 6, 8)
        top = np.repeat(1 - np.sort(rng.uniform(0, 0.9 * (1 - edge), 8)), copies)
        self.values = np.sort(np.concatenate([rng.uniform(-0.01, edge, size - len(top)), top]))
        self.diagonal, self.dimension = torch.as_tensor(self.values), size

    def _apply(self, block):
        return self.diagonal.to(block.dtype)[:, None] * block


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("edge", [0.5, 0.9, 0.95])
def test_all_copies_are_in_the_start(edge, dtype):
    for seed in range(5):
        operator = _Planted(5000, edge, seed)
        upper = upper_vectors(operator.apply, 5000, 10, seed=seed, dtype=dtype)
        assert upper.complete
        start = upper.vectors.double()
        assert torch.allclose(start.T @ start, torch.eye(start.shape[1], dtype=torch.float64), atol=1e-4)
        found = block_spectrum(operator, 10, start=start, ends=("largest",), complete=("largest",))
        assert found.converged
        assert np.abs(found.largest(10)[0] - operator.values[::-1][:10]).max() < 1e-9


def test_a_start_that_lacks_copies_is_completed():
    operator = _Planted(5000, 0.9, 3)
    distinct = np.unique(operator.values)[::-1][:10]
    assert not np.array_equal(distinct, operator.values[::-1][:10])
    columns = [int(np.flatnonzero(operator.values == v)[0]) for v in distinct]
    start = torch.eye(5000, dtype=torch.float64)[:, columns]  # exact, one copy of each
    found = block_spectrum(operator, 10, start=start, ends=("largest",))
    assert found.converged
    assert np.abs(found.largest(10)[0] - operator.values[::-1][:10]).max() < 1e-9
    # Told that the start is complete the solver believes it: the search is what finds them.
    trusting = block_spectrum(operator, 10, start=start, ends=("largest",), complete=("largest",))
    assert np.abs(trusting.largest(10)[0] - distinct).max() < 1e-9


def test_lanczos_keeps_clear_of_known_vectors_and_ends_in_an_invariant_space():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    values = np.repeat([3.0, 2.0, -1.0, 0.0], 10)
    matrix = torch.as_tensor(basis * values @ basis.T)
    known = torch.as_tensor(basis[:, :10])  # all of the eigenvalue 3
    space = Lanczos(lambda v: matrix @ v, torch.as_tensor(rng.standard_normal((40, 1))), 100, known)
    while not space.exhausted:
        space.step()
    found, coordinates, _ = space.ritz()
    assert space.steps == 3
    np.testing.assert_allclose(found, [-1, 0, 2], atol=1e-10)
    assert (space.vectors(coordinates).T @ known).abs().max() < 1e-12


def test_tiny_and_constant_operators():
    for matrix in (torch.eye(30, dtype=torch.float64), torch.zeros(30, 30, dtype=torch.float64)):
        start = upper_vectors(DenseOperator(matrix).apply, 30, 3).vectors
        assert torch.allclose(start.T @ start, torch.eye(start.shape[1], dtype=torch.float64), atol=1e-12)
    alone = DenseOperator(torch.ones(1, 1, dtype=torch.float64))
    assert upper_vectors(alone.apply, 1, 3).vectors.shape == (1, 1)


def test_a_basis_that_restarts_finds_the_same_copies():
    operator = _Planted(5000, 0.9, 3)
    upper = upper_vectors(operator.apply, 5000, 10, basis_bytes=1)
    assert upper.complete
    assert np.abs(upper.values[:10] - operator.values[::-1][:10]).max() < 1e-9
    true = operator.apply(upper.vectors) - upper.vectors * torch.as_tensor(upper.values)
    assert np.abs(true.norm(dim=0).numpy() - upper.residuals).max() < 1e-9


@pytest.mark.parametrize("limit", ["max_seconds", "max_products", "passes"])
def test_a_limit_never_passes_for_completeness(monkeypatch, limit):
    operator, options = _Planted(5000, 0.9, 3), {}
    if limit == "passes":
        monkeypatch.setattr(krylov_passes, "PASSES", 1)
    else:
        options[limit] = 0.0 if limit == "max_seconds" else 30
    upper = upper_vectors(operator.apply, 5000, 10, **options)
    assert not upper.complete
    assert operator.matvecs <= 30 or limit == "passes"
    found = block_spectrum(operator, 10, start=upper.vectors, ends=("largest",))  # which searches then
    assert np.abs(found.largest(10)[0] - operator.values[::-1][:10]).max() < 1e-9


@pytest.mark.parametrize("deflated", [False, True])
def test_start_of_a_group_task_agrees_with_the_dense_matrix(deflated):
    task = GroupTask(FiniteAbelianGroup((7,)))
    rng = np.random.default_rng(0)
    measure = ParticleMeasure(torch.as_tensor(0.7 * rng.standard_normal((24, task.dimension))))
    operator = SecondVariation(task.linearise(measure))
    operator = DeflatedVariation(operator) if deflated else operator
    reference = torch.linalg.eigvalsh(SymmetricOperator.dense(operator)).flip(0)[:5].numpy()
    found = prepare_large_end(operator, in_single_precision(operator, task, measure), 5)
    start = found.start
    assert found.products > 5
    assert found.complete == ("largest",)
    assert start.dtype == torch.float64
    ritz = torch.linalg.eigvalsh(start.T @ operator.apply(start)).flip(0)[:5].numpy()
    np.testing.assert_allclose(ritz, reference, rtol=1e-6)


def _diagonal(values, dtype):
    values = torch.as_tensor(values, dtype=dtype)[:, None]
    return lambda vector: values * vector


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sign", [1, -1])
def test_definite_operators(dtype, sign):
    """Zero lies outside the spectrum: what is left of known vectors must not grow there."""
    values = np.sort(sign * np.linspace(1, 2, 3000) ** 2)
    upper = upper_vectors(_diagonal(values, dtype), 3000, 3, dtype=dtype)
    assert upper.complete
    assert np.abs(upper.values[:3] - values[::-1][:3]).max() < 4e-6


@pytest.mark.parametrize("values", [np.zeros(50), np.ones(50), np.r_[np.zeros(40), 1.0]])
def test_constant_operators_in_single_precision(values):
    upper = upper_vectors(_diagonal(values, torch.float32), len(values), 3, dtype=torch.float32)
    assert np.abs(upper.values[:3] - np.sort(values)[::-1][:3]).max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_large_eigenspace_next_to_the_wanted_values_hides_no_copy(dtype):
    rng = np.random.default_rng(0)
    values = np.concatenate([[1, 1, 0.999], np.full(40_000, 0.98), rng.uniform(-1, 0.5, 3000)])
    for seed in range(5):
        upper = upper_vectors(_diagonal(values, dtype), len(values), 2, seed=seed, dtype=dtype)
        assert upper.complete
        assert np.abs(upper.values[:2] - 1).max() < 1e-5


@pytest.mark.parametrize("scale", [1e-170, 1e170, np.nan])
def test_sizes_beyond_floating_point_are_refused(scale):
    with pytest.raises(InputError, match="finite products"):
        upper_vectors(_diagonal(scale * np.linspace(0, 1, 100), torch.float64), 100, 3)


def test_time_that_ends_in_a_restart_leaves_true_residuals(monkeypatch):
    operator = _Planted(5000, 0.9, 3)
    restart = Lanczos.restart

    def last_restart(self, *pairs):
        restart(self, *pairs)
        monkeypatch.setattr(krylov_passes.time, "monotonic", lambda: np.inf)

    monkeypatch.setattr(Lanczos, "restart", last_restart)
    monkeypatch.setattr(krylov_passes, "ROOM", 1)
    upper = upper_vectors(operator.apply, 5000, 30, tol=1e-12, basis_bytes=1)
    assert not upper.complete
    true = operator.apply(upper.vectors) - upper.vectors * torch.as_tensor(upper.values)
    np.testing.assert_allclose(upper.residuals, true.norm(dim=0).numpy(), atol=1e-9)


@pytest.mark.parametrize("size", [0.0, 1e-26, 1e10, 0.5])
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_ends_of_networks_of_any_size(size, decay, monkeypatch):
    monkeypatch.setattr(plan, "DENSE_LIMIT", 0)
    monkeypatch.setattr(plan, "DENSE_WORK", 0.0)
    task = GroupTask(FiniteAbelianGroup((7,)))
    rng = np.random.default_rng(1)
    measure = ParticleMeasure(torch.as_tensor(size * rng.standard_normal((40, task.dimension))))
    functional = Decayed(task, decay) if decay else task
    found = compute_spectrum(plan_spectrum(functional, measure, count=3), functional, measure).spectrum
    exact = np.linalg.eigvalsh(SecondVariation(functional.linearise(measure)).dense().numpy())
    norm = np.abs(exact).max()
    assert np.abs(found.largest(3)[0] - exact[::-1][:3]).max() <= 1e-6 * norm
    assert found.smallest(3)[0][0] >= exact[0] - 1e-6 * norm


def search(count=2, tol=0.1, kept=3, last=np.inf, limit=np.inf):
    return _Search(lambda vector: vector, count, tol, kept, last, limit)


class Scripted:
    """A Krylov space that says what it is told to, and when it was asked."""

    def __init__(self, values=(-10.0, 1.0, 5.0), residuals=(9.0, 0.5, 1.0), *, steps=9, room=10**6):
        self.values, self.residuals = np.array(values), np.array(residuals)
        self.steps, self.room, self.looks, self.restarts, self.ends = steps, room, [], [], 10**6
        self.invariant, self.search = False, None

    @property
    def exhausted(self):
        return self.steps >= self.room or self.invariant

    def step(self):
        self.steps += 1
        self.search.counted(None)
        self.invariant = self.steps >= self.ends

    def estimates(self):
        self.looks.append(self.steps)
        assert len(self.looks) < 100, "no end"
        return self.values, self.residuals

    def ritz(self):
        return np.arange(float(self.steps)), np.eye(self.steps), np.zeros(self.steps)

    def restart(self, values, coordinates):
        self.restarts.append((values, coordinates))
        self.steps = len(values)


@pytest.mark.parametrize(
    ("change", "threshold", "known"),
    [
        ({}, -np.inf, True),  # 5 and 1, to a tenth of the norm 10
        ({"residuals": (9.0, 0.5, 1.1)}, -np.inf, False),
        ({"residuals": (9.0, 1.1, 0.5)}, -np.inf, False),
        ({"steps": 3}, -np.inf, True), ({"steps": 2}, -np.inf, False),  # more steps than wanted values
        ({"residuals": (9.0, 3.0, 1.0)}, 4.0, True),  # what lies below the threshold does not count
        ({"residuals": (9.0, 3.0, 1.0)}, 1.0, True), ({"residuals": (9.0, 3.0, 1.0)}, 0.9, False),
        ({"residuals": (9.0, 3.0, 0.0)}, 5.0, False),  # nothing above, nor anything known to be below
    ],
)  # fmt: skip
def test_what_lies_above_is_known_when_its_residuals_are_small(change, threshold, known):
    assert search()._known(Scripted(**change), threshold, 1000) is known


@pytest.mark.parametrize(
    ("top", "residual", "threshold", "depth", "deepest", "known"),
    [
        (5.0, 0.5, 10.0, 60, 0, True), (5.0, 0.5, 10.0, 59, 0, False),  # a tenth of the distance, and 60 deep
        (5.0, 0.51, 10.0, 1000, 0, False), (5.0, 0.2, 10.0, 60, 0, True),
        (-3.0, 0.5, 2.0, 60, 0, True),
        (5.0, 0.5, 10.0, 100, 201, True), (5.0, 0.5, 10.0, 99, 201, False),  # half of the deepest pass
        (5.0, 0.5, 10.0, 60, 30, True),
    ],
)  # fmt: skip
def test_a_complement_is_seen_when_its_top_is_and_the_pass_is_deep_enough(
    top, residual, threshold, depth, deepest, known
):
    seeker = search()
    seeker.deepest = deepest
    assert seeker._known(Scripted((-10.0, top), (9.0, residual)), threshold, depth) is known


def test_the_norm_is_the_largest_of_all_passes():
    seeker = search()
    for values, norm in (((-10.0, 5.0), 10.0), ((-2.0, 3.0), 10.0), ((1.0, 12.0), 12.0)):
        seeker._known(Scripted(values, (0.0, 0.0)), -np.inf, 0)
        assert seeker.norm == norm


def settled(space, seeker, threshold=-np.inf):
    space.search = seeker
    return seeker.settle(space, threshold)


def test_looks_become_rarer_with_depth_and_end_in_an_invariant_space():
    space, seeker = Scripted(residuals=(9.0, 9.0, 9.0), steps=0), search()
    seeker.products, seeker.deepest, space.ends = 1000, 50, 170
    assert settled(space, seeker)
    assert space.looks == [*range(10, 91, 10), 101, 113, 127, 142, 159, 170]
    assert seeker.products == 1170
    assert seeker.deepest == 170
    seeker.deepest = 500
    assert settled(Scripted(steps=0), seeker)
    assert seeker.deepest == 500
    assert seeker.products == 1180


@pytest.mark.parametrize(("limit", "steps"), [(3, 8), (8, 8), (12, 12), (20, 20)])
def test_a_limit_of_products_ends_a_pass_after_the_least_steps(limit, steps):
    space, seeker = Scripted(residuals=(9.0, 9.0, 9.0), steps=0), search(limit=limit)
    assert not settled(space, seeker)
    assert space.steps == seeker.products == steps
    assert seeker.deepest == 0


def test_time_ends_a_pass_after_the_least_steps(monkeypatch):
    monkeypatch.setattr(krylov_passes.time, "monotonic", lambda: 7.0)
    for last, done in ((7.0, False), (6.0, False), (8.0, True)):
        space = Scripted(residuals=(9.0, 9.0, 9.0), steps=0)
        space.ends = 30
        assert settled(space, search(last=last)) is done
        assert space.steps == (30 if done else 8)


def test_a_full_basis_restarts_from_its_largest_pairs():
    space, seeker = Scripted(residuals=(9.0, 9.0, 9.0), steps=0, room=10), search(limit=24)
    assert not settled(space, seeker)
    assert [values.tolist() for values, _ in space.restarts] == [[9.0, 8.0, 7.0]] * 2
    assert (space.restarts[0][1] == np.eye(10)[:, [9, 8, 7]]).all()
    assert seeker.products == 24


def test_pairs_are_chosen_largest_first():
    vectors = torch.arange(8.0).reshape(2, 4)
    pairs = _Pairs(vectors, np.array([1.0, 3.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3, 0.4]))
    first = pairs.chosen(slice(3))
    assert first.values.tolist() == [3, 3, 2]
    assert first.residuals.tolist() == [0.2, 0.4, 0.3]
    assert first.vectors.tolist() == vectors[:, [1, 3, 2]].tolist()
    small = pairs.chosen(pairs.residuals <= 0.3)
    assert small.residuals.tolist() == [0.2, 0.3, 0.1]
    both = first.joined(small)
    assert both.values.tolist() == [3, 3, 2, 3, 2, 1]
    assert both.vectors.shape == (2, 6)
    assert both.residuals.tolist() == [0.2, 0.4, 0.3, 0.2, 0.3, 0.1]


@pytest.mark.parametrize("dimension", [1, 2, 5, 7, 8, 12])
def test_small_spaces_are_found_whole(dimension):
    values = np.repeat(np.linspace(1, 2, (dimension + 1) // 2), 2)[:dimension]
    upper = upper_vectors(_diagonal(values, torch.float64), dimension, 3)
    assert upper.complete
    wanted = min(7, dimension)
    assert upper.vectors.shape == (dimension, wanted)
    np.testing.assert_allclose(upper.values[:3], values[::-1][:3], atol=1e-12)
    np.testing.assert_allclose(upper.vectors.T @ upper.vectors, np.eye(wanted), atol=1e-9)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize(
    ("top", "count", "passes"),
    [
        # A pass a copy, and one that finds no more above the last one wanted.
        ([3.0, 2.0, 1.5], 2, 2), ([3.0, 3.0, 2.0], 2, 3), ([3.0, 3.0, 3.0], 1, 2),
    ],
)  # fmt: skip
def test_passes_are_as_many_as_copies(scale, top, count, passes, monkeypatch):
    spaces = []

    class Counted(Lanczos):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            spaces.append(self)

    monkeypatch.setattr(krylov_passes, "Lanczos", Counted)
    values = scale * np.concatenate([top, np.linspace(0, 1, 200)])
    upper = upper_vectors(_diagonal(values, torch.float64), len(values), count, seed=2)
    assert upper.complete
    np.testing.assert_allclose(upper.values[:count] / scale, top[:count], atol=1e-10)
    assert len(spaces) == passes


def test_room_is_what_the_memory_holds_but_never_less_than_four_times_what_is_kept(monkeypatch):
    rooms = []

    class Asked(Lanczos):
        def __init__(self, product, first, room, avoid):
            rooms.append(room)
            super().__init__(product, first, room, avoid)

    monkeypatch.setattr(krylov_passes, "Lanczos", Asked)
    values = np.linspace(0, 1, 500)
    for dtype, memory, count, room in (
        (torch.float64, 8 * 500 * 300, 3, 300), (torch.float32, 8 * 500 * 300, 3, 600),
        (torch.float64, 8 * 500 * 100, 3, 160), (torch.float64, 1, 56, 240), (torch.float64, 10**9, 3, 2000),
    ):  # fmt: skip
        upper_vectors(_diagonal(values, dtype), 500, count, dtype=dtype, basis_bytes=memory, max_products=9)
        assert rooms.pop(0) == room
        rooms.clear()
