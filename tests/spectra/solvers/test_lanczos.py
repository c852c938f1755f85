"""Lanczos with partial orthogonalisation against Krylov spaces and recurrences written out in numpy."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from spectra.solvers.lanczos import NOISE, Lanczos

EPS = np.finfo(float).eps


def problem(size, values=None, seed=0):
    """A symmetric matrix and a start; with given eigenvalues or random entries."""
    rng = np.random.default_rng(seed)
    if values is None:
        matrix = rng.standard_normal((size, size))
        matrix = (matrix + matrix.T) / 2
    else:
        basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
        matrix = (basis * values) @ basis.T
    return matrix, rng.standard_normal((size, 1))


def grown(matrix, start, steps, *, room=None, avoid=None):
    table = torch.as_tensor(matrix)
    known = None if avoid is None else torch.as_tensor(avoid)
    space = Lanczos(lambda v: table @ v, torch.as_tensor(start), room or steps, known)
    for _ in range(steps):
        space.step()
    return space


def krylov(matrix, start, steps):
    """Orthonormal basis of ``start, A start, ...`` by Gram-Schmidt, twice."""
    basis = start / np.linalg.norm(start)
    while basis.shape[1] < steps:
        new = matrix @ basis[:, -1:]
        for _ in range(2):
            new = new - basis @ (basis.T @ new)
        basis = np.hstack([basis, new / np.linalg.norm(new)])
    return basis


@pytest.mark.parametrize("avoided", [0, 3])
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_ritz_pairs_are_those_of_the_krylov_space(avoided, steps):
    """With vectors to avoid, which need no eigenvectors be, it is that of the operator across them."""
    matrix, start = problem(40)
    known = np.linalg.qr(np.random.default_rng(5).standard_normal((40, 3)))[0][:, :avoided]
    across = np.eye(40) - known @ known.T
    projected = across @ matrix @ across
    space = grown(matrix, start, steps, avoid=known)
    basis = krylov(projected, across @ start, steps)
    expected = np.linalg.eigvalsh(basis.T @ matrix @ basis)
    values, coordinates, residuals = space.ritz()
    np.testing.assert_allclose(values, expected, atol=1e-12)
    vectors = space.vectors(coordinates).numpy()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(steps), atol=1e-12)
    assert np.abs(known.T @ vectors).max(initial=0) < 1e-14
    true = np.linalg.norm(projected @ vectors - vectors * values, axis=0)
    assert true.min() > 1e-3  # nothing has converged
    np.testing.assert_allclose(residuals, true, rtol=1e-9)
    quick = space.estimates()
    np.testing.assert_allclose(quick[0], values, atol=1e-12)
    np.testing.assert_allclose(quick[1], true, rtol=1e-9)


def test_ritz_pairs_can_be_asked_for_at_any_time():
    matrix, start = problem(30)
    often, once = grown(matrix, start, 1, room=20), grown(matrix, start, 20)
    for _ in range(19):
        often.ritz()
        often.step()
    for first, second in zip(often.ritz(), once.ritz(), strict=True):
        np.testing.assert_allclose(np.abs(first), np.abs(second), atol=1e-12)
    assert often.exhausted
    assert once.exhausted
    assert not often.invariant


def spiked(size=300, scale=1.0):
    """One eigenvalue far out: it converges soon, and orthogonality is lost along it again and again."""
    return problem(size, scale * np.append(np.linspace(-1, 1, size - 1), 20.0))


class Watched(Lanczos):
    """Notes what was estimated and in which steps all vectors were subtracted."""

    def __init__(self, *arguments):
        self.estimated, self.cleaned = [], []
        super().__init__(*arguments)

    def _estimated(self, length):
        losses, noise = super()._estimated(length)
        self.estimated.append((self.steps, losses.copy(), noise, length))
        return losses, noise

    def _orthogonalised(self, image, length):
        self.cleaned.append(self.steps)
        return super()._orthogonalised(image, length)


def watched(steps=60, scale=1.0, restarted=0):
    matrix, start = spiked(scale=scale)
    table = torch.as_tensor(matrix)
    space = Watched(lambda v: table @ v, torch.as_tensor(start), steps)
    if restarted:
        for _ in range(12):
            space.step()
        values, coordinates, _ = space.ritz()
        space.restart(values[:restarted], coordinates[:, :restarted])
        space.estimated.clear()
        space.cleaned.clear()
    while space.steps < steps:
        space.step()
    return space


def test_vectors_stay_orthogonal_to_the_root_of_the_precision_with_few_subtractions():
    space = watched()
    rows = space._rows.numpy()
    inner = rows @ rows.T - np.eye(len(rows))
    assert 1e-11 < np.abs(inner).max() < 10 * EPS**0.5
    assert 2 <= len(space.cleaned) <= 20  # of 60 steps
    # Two in a row: the next vector inherits the loss of the last two.
    pairs = list(zip(space.cleaned[::2], space.cleaned[1::2], strict=True))
    assert all(second == first + 1 for first, second in pairs)
    matrix, _ = spiked()
    values, coordinates, residuals = space.ritz()
    vectors = space.vectors(coordinates).numpy()
    true = np.linalg.norm(matrix @ vectors - vectors * values, axis=0)
    np.testing.assert_allclose(residuals, true, atol=1e-12)
    assert values[-1] == pytest.approx(20, abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("restarted", [0, 3])
def test_estimated_inner_products_follow_the_recurrence_of_simon(scale, restarted):
    """Entry i: ``b_{i+1} w_{j,i+1} + (a_i - a_j) w_{j,i} + b_i w_{j,i-1} - b_j w_{j-1,i}`` over b_{j+1}."""
    space = watched(scale=scale, restarted=restarted)
    used = space._coefficients[restarted:, restarted:]  # the recurrence begins anew with the last vector
    a, b = np.diagonal(used), np.append(0.0, np.diagonal(used, -1))  # b[i] leads to vector i
    before, now = [], [1.0]
    for steps, losses, noise, length in space.estimated:
        j = steps - restarted
        size = np.abs(a[: j + 1]).max() + 2 * max([length, *b[: j + 1]])
        assert noise == pytest.approx(NOISE * EPS * size / length, rel=1e-6, abs=0)
        assert len(losses) == j + 1
        assert losses[-1] == noise
        for i in range(j):
            total = (a[i] - a[j]) * now[i] + b[i + 1] * now[i + 1] - b[j] * before[i]
            total += b[i] * now[i - 1] if i else 0.0
            expected = total / length + np.copysign(noise, total)
            assert losses[i] == pytest.approx(expected, rel=1e-6, abs=1e-3 * noise)
        before, now = now, [*(np.full(j + 1, noise) if steps in space.cleaned else losses), 1.0]
    restart_and_first = [restarted, restarted + 1]
    assert not set(restart_and_first) & set(space.cleaned)  # nothing is lost so early


def test_a_restart_keeps_the_pairs_and_what_leads_out_of_them():
    matrix, start = problem(50)
    space = grown(matrix, start, 12, room=20)
    values, coordinates, residuals = (part[..., -4:] for part in space.ritz())
    vectors = space.vectors(coordinates).numpy()
    space.restart(values, coordinates)
    assert space.steps == 4
    np.testing.assert_allclose(space.ritz()[0], values, atol=1e-12)
    np.testing.assert_allclose(np.abs(space.estimates()[1]), residuals, rtol=1e-9)
    last = space._rows[4].numpy()
    while not space.exhausted:
        space.step()
    assert space.steps == 20
    # The space of the kept pairs and of the last vector's Krylov space across them.
    basis = np.linalg.qr(np.hstack([vectors, last[:, None]]))[0]
    while basis.shape[1] < 20:
        new = matrix @ basis[:, -1:]
        for _ in range(2):
            new = new - basis @ (basis.T @ new)
        basis = np.hstack([basis, new / np.linalg.norm(new)])
    expected = np.linalg.eigvalsh(basis.T @ matrix @ basis)
    found, coordinates, residuals = space.ritz()
    np.testing.assert_allclose(found, expected, atol=1e-11)
    np.testing.assert_allclose(space.estimates()[0], expected, atol=1e-11)
    vectors = space.vectors(coordinates).numpy()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(20), atol=1e-12)
    true = np.linalg.norm(matrix @ vectors - vectors * found, axis=0)
    np.testing.assert_allclose(residuals, true, rtol=1e-8)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("values", [[3.0, 2.0, -1.0], [1.0, -1.0], [1.0, 1e-9]])
def test_an_invariant_space_is_seen_at_any_scale(scale, values):
    """As many steps as eigenvalues, and no more room is used."""
    matrix, start = problem(60, scale * np.repeat(values, 60 // len(values)))
    space = grown(matrix, start, len(values) - 1, room=30)
    assert not space.invariant
    assert not space.exhausted
    space.step()
    assert space.invariant
    assert space.exhausted
    np.testing.assert_allclose(space.ritz()[0] / scale, sorted(values), atol=1e-12)


def test_a_space_ends_where_nothing_is_left():
    """Three vectors of five are to be avoided: two steps, whatever the room."""
    matrix, start = problem(5)
    space = grown(matrix, start, 0, room=4, avoid=np.eye(5)[:, :3])
    assert space.room == 2
    assert not space.exhausted
    while not space.exhausted:
        space.step()
    assert space.steps == 2
    assert space.invariant
    np.testing.assert_allclose(space.ritz()[0], np.linalg.eigvalsh(matrix[3:, 3:]), atol=1e-12)
    held = grown(matrix, np.eye(5)[:, :1], 0, room=4, avoid=np.eye(5)[:, :3])
    held.step()  # the start lies in what is avoided: a vector of zeros, no NaN
    assert (held._rows[:2] == 0).all()


def test_dependent_vectors_are_left_out():
    """Steps beyond an invariant space add no values."""
    matrix, start = problem(6, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    space = grown(matrix, start, 2, room=4)
    space._rows[2] = space._rows[0]  # as rounding may leave it
    space.step()
    values, coordinates, _ = space.ritz()
    assert len(values) == 2
    np.testing.assert_allclose(values, [1, 2], atol=1e-12)
    vectors = space.vectors(coordinates)
    np.testing.assert_allclose((vectors.T @ vectors).numpy(), np.eye(2), atol=1e-12)


@pytest.mark.parametrize(
    ("bad", "late"),
    [(np.nan, False), (np.inf, False), (1e200, False), (1e-200, False), (np.nan, True), (1e200, True)],
)
def test_products_that_cannot_be_squared_are_refused(bad, late):
    calls = []

    def product(vector):
        calls.append(None)
        return bad * vector if late == (len(calls) > 1) else vector.flip(0)

    space = Lanczos(product, torch.arange(1.0, 9.0, dtype=torch.float64)[:, None], 5)
    if late:
        space.step()
    with pytest.raises(InputError, match="finite products"):
        space.step()


def test_an_operator_that_is_zero_is_no_error():
    space = grown(np.zeros((4, 4)), np.ones((4, 1)), 1, room=3)
    assert space.invariant
    assert space.ritz()[0].tolist() == [0.0]


def test_a_space_whose_diagonal_vanishes_is_seen_to_be_invariant():
    """1 and -1 in equal parts: the coefficients are 0 and 1, and what leads out is rounding of the 1."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    matrix = (basis * np.repeat([1.0, -1.0], 20)) @ basis.T
    space = grown(matrix, basis[:, :1] + basis[:, 20:21], 2, room=10)
    assert space.invariant
    np.testing.assert_allclose(space.ritz()[0], [-1, 1], atol=1e-12)


def test_all_of_a_small_space_is_invariant_in_single_precision():
    """Rounding leads out of it by 1e-7, which is not nothing; there is nowhere to go all the same."""
    matrix = torch.diag(torch.linspace(1, 2, 7))
    space = Lanczos(lambda v: matrix @ v, torch.ones(7, 1), 20)
    while not space.exhausted:
        space.step()
    assert space.steps == 7
    assert space.invariant
    np.testing.assert_allclose(space.ritz()[0], np.linspace(1, 2, 7), atol=1e-6)


def test_later_products_may_vanish():
    """What leads out of a space may be too small to be squared: that ends it, and is no error."""
    matrix = np.diag([1.0, 2.0])
    space = grown(np.pad(matrix, (0, 2)), np.array([[1.0], [1.0], [0.0], [0.0]]), 2, room=4)
    table = torch.as_tensor(np.pad(matrix, (0, 2)))
    space.product = lambda v: table @ v * 0 + 1e-200
    assert not space.exhausted or space.invariant
    space.step()
    assert space._coefficients[3, 2] == 0


def test_products_of_which_some_are_zero_and_the_others_vanish_are_refused():
    factors = torch.tensor([[1e-200], [0.0], [0.0]], dtype=torch.float64)
    space = Lanczos(lambda v: factors * v, torch.ones(3, 1, dtype=torch.float64), 2)
    with pytest.raises(InputError, match="finite products"):
        space.step()
