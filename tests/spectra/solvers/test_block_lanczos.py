"""Block solvers on matrices with planted, degenerate spectra."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from spectra.operators.variation import DenseOperator, SymmetricOperator
from spectra.solvers import block_lanczos as block_solvers
from spectra.solvers.block_lanczos import ENDS, _Pairs, _Search, block_spectrum, norm_bound
from spectra.solvers.ritz_basis import RitzBasis
from spectra.solvers.spectrum import Reason, power_norm


def planted(seed, size=150):
    """A random symmetric matrix with 2- to 8-fold eigenvalues at both ends or at zero."""
    rng = np.random.default_rng(seed)
    values = np.sort(rng.uniform(-1, 1, size))
    low, high, zero = rng.integers(2, 9, 3)
    values[:low] = -1.2
    values[-high:] = 1.5
    if seed % 3 == 0:  # the small end is zero: a positive semi-definite operator
        values = np.abs(values)
        values[:zero] = 0.0
    elif seed % 3 == 1:
        values[size // 2 : size // 2 + zero] = 0.0
    basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
    values = np.sort(values)
    return DenseOperator(torch.as_tensor(basis * values @ basis.T)), values


@pytest.mark.parametrize("batch", range(8))
def test_no_copy_is_lost_and_no_sign_is_wrong(batch):
    for seed in range(25 * batch, 25 * batch + 25):
        operator, values = planted(seed)
        found = block_spectrum(operator, 10, tol=1e-8, seed=seed)
        assert found.converged
        assert not found.complete
        expected = np.concatenate([values[:10], values[-10:]])
        assert np.abs(found.eigenvalues - expected).max() < 1e-7
        assert (np.abs(found.eigenvalues - expected) <= found.errors).all()
        real = int((values < -1e-12).sum()), int((values > 1e-12).sum())
        for count, name in zip(real, ("negative", "positive"), strict=True):
            low, high = found.counts.bounds[name]
            assert low <= count <= high


def test_limits_return_a_marked_partial_result():
    operator, values = planted(1, 400)
    found = block_spectrum(operator, 4, tol=1e-14, max_products=40)
    assert not found.converged
    assert all(np.abs(values - v).min() <= e for v, e in zip(found.eigenvalues, found.errors, strict=True))
    hurried = block_spectrum(operator, 4, tol=1e-14, max_seconds=0.0)
    assert not hurried.converged


def test_warm_start_saves_products_and_a_start_of_wrong_vectors_does_no_harm():
    operator, values = planted(2, 400)
    first = block_spectrum(operator, 5, tol=1e-7)
    cold = first.matvecs
    operator.matvecs = 0
    again = block_spectrum(operator, 5, tol=1e-7, start=first.vectors)
    assert again.converged
    assert again.matvecs < 0.8 * cold
    one = torch.ones(400, 1, dtype=torch.float64)
    wrong = block_spectrum(operator, 5, tol=1e-7, start=one)
    assert np.allclose(wrong.eigenvalues, np.concatenate([values[:5], values[-5:]]), atol=1e-6)


def test_a_good_preconditioner_saves_products():
    rng = np.random.default_rng(0)
    diagonal = torch.as_tensor(np.concatenate([-1e-3 * np.arange(1, 11), np.linspace(1e-3, 10, 490)]))
    noise = torch.as_tensor(rng.standard_normal((500, 500))) * 1e-6
    operator = DenseOperator(torch.diag(diagonal) + noise)
    exact = torch.linalg.eigvalsh(operator.matrix).numpy()

    def precondition(residuals, values):
        gap = diagonal[:, None] - values
        return residuals / torch.where(gap.abs() < 1e-4, 1e-4, gap)

    results = [block_spectrum(operator, 6, tol=1e-9, precondition=p) for p in (None, precondition)]
    counts = []
    for found in results:
        assert np.allclose(found.eigenvalues[:6], exact[:6], atol=1e-8)
        counts.append(found.matvecs)
    assert counts[1] - counts[0] < 0.5 * counts[0]


def test_copies_that_a_start_lacks_at_the_small_end_are_found_through_the_preconditioner():
    """A dense cluster just above: without the shifted inverse the Krylov space is blind there."""
    values = np.concatenate([np.repeat(-np.linspace(1, 0.9, 10), 2), np.linspace(-0.89, 1000, 3980)])
    diagonal = torch.as_tensor(np.sort(values))

    def precondition(residuals, ritz):
        return residuals / (diagonal + 1.01)[:, None]

    start = torch.eye(4000, dtype=torch.float64)[:, 0:20:2]  # exact, one copy of each
    found = block_spectrum(
        Rank(diagonal), 4, tol=1e-9, start=start, precondition=precondition, ends=("smallest",)
    )
    assert found.converged
    assert np.allclose(found.smallest(4)[0], [-1, -1, *[values[2]] * 2], atol=1e-6)
    assert 800 < found.norm <= 1000 * (1 + 1e-12)  # not the size of the end that was asked for


def test_one_end_costs_less_than_both():
    operator, values = planted(5, 400)
    counts = []
    for ends in (("smallest", "largest"), ("largest",), ("smallest",)):
        operator.matvecs = 0
        found = block_spectrum(operator, 5, tol=1e-8, ends=ends)
        assert found.converged
        if "largest" in ends:
            assert np.allclose(found.eigenvalues[-5:], values[-5:], atol=1e-7)
        if "smallest" in ends:
            assert np.allclose(found.eigenvalues[:5], values[:5], atol=1e-7)
        counts.append(operator.matvecs)
    assert max(counts[1:]) < counts[0]
    with pytest.raises(InputError, match="ends"):
        block_spectrum(operator, 5, ends=("middle",))


def test_bad_input():
    operator, _ = planted(0)
    with pytest.raises(InputError, match="at least one"):
        block_spectrum(operator, 0)
    operator.matrix[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        block_spectrum(operator, 5)


class Rank(SymmetricOperator):
    """A diagonal operator too large for a matrix."""

    def __init__(self, diagonal):
        self.diagonal, self.dimension = diagonal, len(diagonal)

    def _apply(self, block):
        return self.diagonal[:, None] * block


@pytest.mark.parametrize("seed", range(10))
def test_norm_bound_is_above_the_norm_and_near_it(seed):
    diagonal = torch.randn(20_000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    diagonal[7] = -6.0  # one isolated eigenvalue, of the sign that plain Lanczos could overlook
    bound, estimate = norm_bound(Rank(diagonal), seed=seed)
    assert estimate <= 6.0 + 1e-12
    assert 6.0 <= bound < 10.0
    with pytest.raises(InputError, match="Lanczos steps"):
        norm_bound(Rank(diagonal), steps=3)


def test_norm_bound_of_small_and_zero_operators_is_exact():
    assert norm_bound(Rank(torch.zeros(50, dtype=torch.float64)))[0] == 0.0
    small = torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64)
    assert norm_bound(Rank(small))[0] == pytest.approx(3.0)
    assert norm_bound(Rank(small), steps=3) == pytest.approx((3.0, 3.0))  # as many steps as dimensions
    assert norm_bound(Rank(small[:0])) == (0.0, 0.0)
    for seed in range(5):
        operator = DenseOperator(table(15, 15, seed=seed))
        expected = float(torch.linalg.matrix_norm(operator.matrix, 2))
        assert norm_bound(operator, seed=seed) == pytest.approx((expected, expected), rel=1e-12)


def test_twenty_steps_bound_a_norm_but_for_one_in_a_billion():
    operator = Rank(torch.linspace(-1, 1, 5000, dtype=torch.float64))
    found = norm_bound(operator)
    assert operator.matvecs == 40
    assert found == norm_bound(operator, seed=0, steps=20, risk=1e-9) != norm_bound(operator, seed=1)


@pytest.mark.parametrize("size", [12, 27, 60])
@pytest.mark.parametrize("rank", [1, 2, 5, 9])
def test_the_estimate_of_a_norm_is_never_above_it(rank, size):
    """Where the Krylov space is invariant only rounding is left, which once was counted twice and more."""
    rng = np.random.default_rng(rank)
    basis = torch.as_tensor(np.linalg.qr(rng.standard_normal((size, rank)))[0])
    values = torch.arange(1.0, rank + 1, dtype=torch.float64) * (-1) ** torch.arange(rank)
    bound, estimate = norm_bound(DenseOperator(basis @ torch.diag(values) @ basis.T))
    assert estimate == pytest.approx(rank, rel=1e-12)
    assert rank * (1 - 1e-12) <= bound < 1.3 * rank


@pytest.mark.parametrize(("size", "steps", "risk"), [(20_000, 20, 1e-9), (5_000, 15, 1e-4), (300, 12, 1e-3)])
def test_norm_bound_keeps_the_risk_of_the_theorem(size, steps, risk):
    """Kuczynski & Wozniakowski: 1.648 sqrt(N) exp(-sqrt(eps) (2k - 1)) at the bound's eps is the risk."""
    diagonal = torch.linspace(-1, 1, size, dtype=torch.float64)
    operator = Rank(diagonal)
    bound, estimate = norm_bound(operator, steps=steps, risk=risk)
    assert operator.matvecs == 2 * steps  # what the theorem calls k is a step of L^2
    left_open = 1 - (estimate / bound) ** 2
    assert 1.648 * size**0.5 * np.exp(-(left_open**0.5) * (2 * steps - 1)) == pytest.approx(risk, rel=1e-6)


def test_norm_bound_asks_for_the_steps_that_the_risk_needs():
    """1.648 sqrt(N) exp(-(2k - 1)) <= risk: 15 steps at N = 10,000 and risk 1e-10, but not 14."""
    operator = Rank(torch.linspace(-1, 1, 10_000, dtype=torch.float64))
    assert 1.648 * 100 * np.exp(-29) < 1e-10 < 1.648 * 100 * np.exp(-27)
    assert norm_bound(operator, steps=15, risk=1e-10)[0] > 1
    with pytest.raises(InputError, match="more than 14 Lanczos steps"):
        norm_bound(operator, steps=14, risk=1e-10)


# -- the steps of the search ----------------------------------------------------------------------------

EPS = 2.0**-52


def diagonal(*values):
    return DenseOperator(torch.diag(torch.tensor(values, dtype=torch.float64)))


def searching(operator, count=2, *, tol=1e-6, precondition=None, ends=ENDS, complete=(), uncertainty=0.0):
    rng = np.random.default_rng(0)
    return _Search(operator, count, tol, rng, precondition, ends, complete, uncertainty)


def units(size, *places):
    return torch.eye(size, dtype=torch.float64)[:, list(places)]


def table(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize(("size", "method"), [(40, "dense"), (41, "block Lanczos")])
def test_small_spaces_are_solved_completely(size, method):
    """Twice the basis of the iteration: eight times the wanted pair and its four guards."""
    found = block_spectrum(diagonal(*range(1, size + 1)), 1)
    assert found.method == method
    assert found.complete == (method == "dense")


@pytest.mark.parametrize("bad", [(), ("middle",), ("smallest", "middle")])
def test_ends_are_smallest_and_largest(bad):
    with pytest.raises(InputError, match="ends: expected some of smallest, largest"):
        block_spectrum(diagonal(*range(50)), 1, ends=bad)


def test_pairs_are_iterated_at_both_ends():
    both = searching(diagonal(*range(30)))
    places, low = both._chosen(20)
    assert (places.tolist(), low) == ([*range(6), *range(14, 20)], 6)
    assert both._chosen(12)[0].tolist() == [*range(12)]
    places, low = both._chosen(7)  # fewer than are iterated: half of them at each end
    assert (places.tolist(), low) == ([*range(7)], 3)
    places, low = both._chosen(30, 2)
    assert (places.tolist(), low) == ([*range(12), *range(18, 30)], 12)
    top, bottom = (searching(diagonal(*range(30)), ends=(end,)) for end in ("largest", "smallest"))
    assert top._chosen(20)[0].tolist() == [0, *range(14, 20)]
    assert bottom._chosen(20)[0].tolist() == [*range(6), 19]
    places, low = top._chosen(5)
    assert (places.tolist(), low) == ([*range(5)], 1)
    places, low = bottom._chosen(5)
    assert (places.tolist(), low) == ([*range(5)], 4)
    places, low = bottom._chosen(6)
    assert (places.tolist(), low) == ([*range(6)], 5)


def test_one_end_knows_the_norm_of_the_other():
    operator = diagonal(*range(-40, 1))
    assert searching(operator, ends=("smallest",)).least_norm == power_norm(diagonal(*range(-40, 1)))
    assert searching(operator).least_norm == searching(operator, ends=("largest",)).least_norm == 0.0


@pytest.mark.parametrize("ends", [ENDS, ("smallest",), ("largest",)])
def test_ritz_pairs_and_which_of_them_are_wanted(ends):
    operator, size = DenseOperator(table(60, 60)), 20
    search = searching(operator, ends=ends)
    basis = RitzBasis(operator, size)
    block = torch.linalg.qr(table(60, size, seed=1))[0]
    basis.extend(block)
    pairs = search._pairs(basis)
    small = block.T @ operator.matrix @ block
    expected = torch.linalg.eigvalsh(small)
    torch.testing.assert_close(pairs.values, expected)
    vectors = basis.vectors(pairs.coordinates)[:, pairs.chosen]
    residuals = operator.matrix @ vectors - vectors * expected[pairs.chosen]
    torch.testing.assert_close(pairs.residuals, residuals)
    torch.testing.assert_close(pairs.sizes, residuals.norm(dim=0))
    assert pairs.norm == pytest.approx(max(search.least_norm, float(expected.abs().max())))
    chosen = pairs.chosen.tolist()
    # Of the end that was not asked for one pair comes along, which is counted.
    assert [chosen[i] for i in pairs.wanted.nonzero().flatten()] == [
        *((0, 1) if "smallest" in ends else (0,)), *((18, 19) if "largest" in ends else (19,))
    ]  # fmt: skip
    kept = [chosen[i] for i in pairs.asked.nonzero().flatten()]
    assert kept == [c for c in chosen if (c < 10 and "smallest" in ends) or (c >= 10 and "largest" in ends)]
    assert not pairs.converged
    if ends == ENDS:
        assert pairs.thresholds() == pytest.approx((float(expected[1]), float(expected[18])))
    worst = float(pairs.sizes[pairs.wanted & pairs.asked].max()) / pairs.norm
    for tol, converged in ((1.001 * worst, True), (0.999 * worst, False)):
        search.tol = tol
        assert search._pairs(basis).converged == converged


def pairs_of(values, sizes, *, low, wanted, norm=1.0, size=30):
    """Ritz pairs as a step has them: of all values those with a size are iterated, the low ones first."""
    values, sizes = (torch.tensor(part, dtype=torch.float64) for part in (values, sizes))
    high = len(sizes) - low
    chosen = torch.cat([torch.arange(low), torch.arange(len(values) - high, len(values))])
    wanted = torch.tensor(wanted, dtype=torch.bool)
    residuals = table(size, len(sizes))
    residuals = residuals / residuals.norm(dim=0) * sizes
    eye = torch.eye(len(values), dtype=torch.float64)
    return _Pairs(values, eye, chosen, low, residuals, sizes, wanted, torch.ones_like(wanted), norm, True)


def test_a_wanted_value_that_moves_has_found_a_copy():
    search = searching(diagonal(*range(30)), tol=1e-3)
    options = {"low": 2, "wanted": [1, 0, 0, 1]}
    before = pairs_of([0.0, 0.1, 0.5, 0.9, 1.0], [0.0] * 4, norm=2.0, **options)

    def after(*values):
        return pairs_of(values, [0.0] * 4, norm=2.0, **options)

    assert not search._moved(before, None)
    assert not search._moved(after(1.9e-3, 0.2, 0.6, 0.8, 1 - 1.9e-3), before)  # others may
    assert search._moved(after(2.1e-3, 0.1, 0.5, 0.9, 1.0), before)
    assert search._moved(after(0.0, 0.1, 0.5, 0.9, 1 - 2.1e-3), before)
    more = pairs_of([0.0, 0.1, 0.5, 0.9, 1.0], [0.0] * 4, norm=2.0, low=2, wanted=[1, 1, 0, 1])
    assert search._moved(more, before)


def columns(found, pairs):
    """Numbers of the residuals that were taken."""
    return [int((pairs.residuals - part[:, None]).norm(dim=0).argmin()) for part in found.T]


def test_an_end_is_open_until_its_wanted_pairs_are_small():
    search = searching(diagonal(*range(30)), tol=1e-3)
    pairs = pairs_of(range(9), [1e-2, 1.9e-5, 2.1e-5, 1.9e-3, 1.0, 2.1e-3], low=3, wanted=[1, 0, 0, 1, 0, 0],
                     norm=2.0)  # fmt: skip
    found = search._directions(pairs)
    assert columns(found, pairs) == [0, 2]  # the large end is done, whatever its guards are
    pairs.sizes[3] = 2.1e-3
    assert columns(search._directions(pairs), pairs) == [0, 2, 3, 4, 5]
    search.ends = ("largest",)
    assert columns(search._directions(pairs), pairs) == [3, 4, 5]
    pairs.sizes[3] = 1e-3
    assert search._directions(pairs).shape == (30, 0)


def test_an_end_with_a_complete_start_is_done_by_its_wanted_pairs():
    search = searching(diagonal(*range(30)), tol=1e-3, complete=("smallest",))
    pairs = pairs_of(range(9), [1e-2, 0.9e-3, 1.1e-3, 1.0, 1e-6, 1e-6, 1.0], low=4,
                     wanted=[1, 1, 1, 0, 0, 1, 1], norm=2.0)  # fmt: skip
    assert columns(search._directions(pairs), pairs) == [0, 2, 6]


def test_only_the_small_end_is_preconditioned():
    asked = []

    def precondition(block, values):
        asked.append((block, values.tolist()))
        return 2 * block

    search = searching(diagonal(*range(30)), tol=1e-3, precondition=precondition)
    pairs = pairs_of(range(9), [1.0, 1e-9, 1.0, 1.0, 1.0], low=3, wanted=[1, 0, 0, 0, 1])
    found = search._directions(pairs)
    torch.testing.assert_close(
        found, torch.cat([2 * pairs.residuals[:, [0, 2]], pairs.residuals[:, 3:]], dim=1)
    )
    ((block, values),) = asked
    torch.testing.assert_close(block, pairs.residuals[:, [0, 2]])
    assert values == [0.0, 2.0]


def test_powers_of_the_preconditioner_are_taken_of_a_random_block():
    asked = []

    def precondition(block, values):
        asked.append((block.norm(dim=0), values.tolist()))
        return 3 * block

    operator = diagonal(*range(30))
    pairs = pairs_of([float(i) for i in range(9)], [0.0] * 5, low=3, wanted=[1, 1, 0, 0, 1])
    search = searching(operator, precondition=precondition)
    found = search._powers(None, pairs)
    block = torch.as_tensor(np.random.default_rng(0).standard_normal((30, 2)))
    torch.testing.assert_close(found, 3 * block / block.norm(dim=0))
    assert [values for _, values in asked] == [[0.0, 1.0]] * 2
    for sizes, _ in asked:
        torch.testing.assert_close(sizes, torch.ones(2, dtype=torch.float64))
    for other in (
        searching(operator), searching(operator, precondition=precondition, ends=("largest",)),
        searching(operator, precondition=precondition, complete=("smallest",)),
    ):  # fmt: skip
        assert other._powers(None, pairs).shape == (30, 0)


@pytest.mark.parametrize("ends", [ENDS, ("smallest",), ("largest",)])
def test_copies_are_found_in_the_complement_at_the_ends_that_were_asked_for(ends):
    """One copy of each of both doublets is held; the middle of the spectrum holds nothing."""
    values = [-3.0, -3.0, -2.0, *np.linspace(-1, 1, 54), 2.0, 4.0, 4.0]
    operator = diagonal(*values)
    search = searching(operator, 2, ends=ends)
    basis = RitzBasis(operator, 40)
    basis.extend(units(60, 0, 2, 57, 58, *range(5, 30)))
    pairs = search._pairs(basis)
    assert pairs.converged
    found = search._missing(basis, pairs)
    expected = [*([1] if "smallest" in ends else []), *([59] if "largest" in ends else [])]
    assert found.shape == (60, len(expected))
    for place, vector in zip(expected, found.T, strict=True):
        assert float(vector[place].abs()) == pytest.approx(1, abs=1e-9)
    search = searching(operator, 2, ends=ends, complete=ends)
    assert search._missing(basis, pairs).shape == (60, 0)


@pytest.mark.parametrize(("beyond", "found"), [(0.9, 0), (1.1, 1)])
@pytest.mark.parametrize("end", ENDS)
def test_a_copy_is_missing_when_it_lies_beyond_the_margin(beyond, found, end):
    """The margin of the search is the tolerance; what lies within it is no other eigenvalue."""
    sign = 1 if end == "largest" else -1
    values = sign * np.array([4.0, 3.0, 2.0, *np.linspace(-1, 1, 57)])
    values[2] = sign * (3.0 + beyond * 1e-3 * 4)
    operator = diagonal(*values)
    search = searching(operator, 2, tol=1e-3, ends=(end,))
    search.least_norm = 0.0
    basis = RitzBasis(operator, 40)
    basis.extend(units(60, 0, 1, *range(5, 30)))
    assert search._missing(basis, search._pairs(basis)).shape == (60, found)


def test_a_guard_that_has_not_converged_is_not_avoided():
    """It holds half of the missing copy: in its complement only half of that would be left."""
    values = np.array([*np.linspace(-1, 1, 55), 2.0, 2.1, 3.0, 4.0, 4.0])
    operator = diagonal(*values)
    search = searching(operator, 2, ends=("largest",))
    basis = RitzBasis(operator, 40)
    mixed = (units(60, 59) + units(60, 30)) / 2**0.5
    basis.extend(torch.cat([units(60, 57, 58, *range(1, 20)), mixed], dim=1))
    pairs = search._pairs(basis)
    found = search._missing(basis, pairs)
    assert found.shape == (60, 1)
    assert float(found[59, 0].abs()) == pytest.approx(1, abs=1e-6)


def test_what_has_converged_to_the_tolerance_is_avoided():
    """Residuals of 1.6e-6 at a norm of 4: the pairs are no copies of themselves."""
    operator = diagonal(*np.linspace(-1, 1, 57), 2.0, 3.0, 4.0)
    search = searching(operator, 2, ends=("largest",))
    basis = RitzBasis(operator, 40)
    basis.extend(torch.cat([units(60, 57, 58, *range(1, 20)), units(60, 59) + 4e-7 * units(60, 30)], dim=1))
    pairs = search._pairs(basis)
    assert 0.25e-6 < float(pairs.sizes[-1]) < 4e-6
    assert search._missing(basis, pairs).shape == (60, 0)


@pytest.mark.parametrize(("tol", "converged"), [(0.5, True), (1e-3, False)])
def test_the_certificate_adds_what_a_vector_mixes(tol, converged):
    """Ten residuals or the tolerance, whichever is less."""
    operator = DenseOperator(table(60, 60))
    search = searching(operator, 2, tol=tol, uncertainty=1.0)
    basis = RitzBasis(operator, 40)
    exact = torch.linalg.eigh(operator.matrix)[1][:, [*range(8), *range(52, 60)]]
    basis.extend(exact + 1e-3 * table(60, 16, seed=1))
    pairs = search._pairs(basis)
    found = search._certified(basis, pairs, True)
    values = pairs.values.numpy()
    assert np.allclose(found.eigenvalues, values[[0, 1, 14, 15]])
    assert found.norm == pytest.approx(np.abs(values).max())
    margin = 16 * EPS * 60**0.5 * found.norm
    mixed = 10 * found.residuals if converged else np.full(4, 1e-3 * pairs.norm)
    assert np.allclose(found.errors, found.residuals + margin + mixed, rtol=1e-9)
    assert found.at_least == (int((values < -1 - margin).sum()), int((values > 1 + margin).sum()))
    assert not found.complete
    assert (found.converged, found.reason) == (
        (True, Reason.KRYLOV) if converged else (False, Reason.NOT_CONVERGED)
    )
    assert not search._certified(basis, pairs, False).converged


def test_a_search_goes_on_as_long_as_it_finds_copies(monkeypatch):
    """Two of three copies are missing at each end, and one Krylov space meets one of them."""
    values = [-4.0] * 3 + [-3.0, -2.0, -1.9, -1.8, -1.7, -1.6] + list(np.linspace(-1, 1, 72))
    values = np.array(values + [1.6, 1.7, 1.8, 1.9, 2.0, 3.0] + [4.0] * 3)
    monkeypatch.setattr(block_solvers, "CHECK", 14)  # too few for rounding to bring the next copy with it
    operator = diagonal(*values)
    start = units(90, 0, *range(3, 9), *range(81, 87), 89)
    found = block_spectrum(operator, 3, tol=1e-8, start=start)
    assert found.converged
    assert found.eigenvalues == pytest.approx([-4.0] * 3 + [4.0] * 3)


def test_signs_are_proved_by_default():
    found = block_spectrum(diagonal(*np.linspace(-0.3, 0.5, 90)), 3)
    assert min(found.at_least) > 3  # by all Ritz values, not those that are listed alone
    assert found.counts.negative == found.at_least[0]
    wide = block_spectrum(diagonal(*np.linspace(-0.3, 0.5, 90)), 3, uncertainty=1.0)
    assert wide.at_least == (0, 0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ends", [ENDS, ("smallest",), ("largest",)])
def test_small_operators_with_copies(ends, seed):
    operator, values = planted(seed, 90)
    found = block_spectrum(operator, 3, tol=1e-8, seed=seed, ends=ends)
    assert found.converged
    low, high = (3 if end in ends else 1 for end in ENDS)
    assert len(found.eigenvalues) == low + high
    if "smallest" in ends:
        assert np.abs(found.smallest(3)[0] - values[:3]).max() < 1e-7
    if "largest" in ends:
        assert np.abs(found.largest(3)[0] - values[::-1][:3]).max() < 1e-7
    bound = np.abs(values[:, None] - found.eigenvalues).min(0)
    assert (bound <= found.errors).all()


def test_limits_end_the_search_at_once():
    operator, _ = planted(1, 90)
    operator.matvecs = 50
    few = block_spectrum(operator, 3, tol=1e-8, max_products=14)
    assert not few.converged
    assert operator.matvecs == 50 + 14 + 6  # the first block, and the products of the certificate
    operator.matvecs = 0
    more = block_spectrum(operator, 3, tol=1e-8, max_products=15)
    assert operator.matvecs == 14 + 14 + 6
    assert len(more.eigenvalues) == 6


def test_a_start_is_completed_by_random_columns(monkeypatch):
    operator, values = planted(2, 90)
    exact = torch.linalg.eigh(operator.matrix)[1]
    sizes = []
    extend = RitzBasis.extend
    monkeypatch.setattr(RitzBasis, "extend", lambda s, b: sizes.append(b.shape[1]) or extend(s, b))
    for start, columns_of_all in ((exact[:, :3], 14), (exact[:, :20], 20)):
        sizes.clear()
        found = block_spectrum(operator, 3, start=start, tol=1e-8)
        assert sizes[0] == columns_of_all
        assert np.abs(found.smallest(3)[0] - values[:3]).max() < 1e-7


def test_a_basis_restarts_with_twice_the_iterated_pairs(monkeypatch):
    kept, sizes = [], []
    restart, extend = RitzBasis.restart, RitzBasis.extend
    monkeypatch.setattr(RitzBasis, "restart", lambda s, c: kept.append(c.shape[1]) or restart(s, c))
    monkeypatch.setattr(RitzBasis, "extend", lambda s, b: (extend(s, b), sizes.append(s.size))[0])
    values = np.concatenate([[-0.1], np.linspace(0, 1, 100), [1.1]])
    for ends in (ENDS, ("largest",)):
        block_spectrum(diagonal(*values), 1, tol=1e-10, ends=ends)
        assert set(kept) == {20 if ends == ENDS else 12}
        assert 35 < max(sizes) <= 2 * 4 * 5
        kept.clear()
        sizes.clear()


def test_a_search_without_directions_ends():
    """What the preconditioner gives is in the basis already: nothing is left to try."""
    operator, _ = planted(2, 90)
    found = block_spectrum(
        operator, 3, tol=1e-8, ends=("smallest",), precondition=lambda block, _: torch.zeros_like(block)
    )
    assert not found.converged
    assert operator.matvecs == 8 + 8 + 4  # of the norm, of the first block and of the certificate
