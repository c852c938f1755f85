"""Block solvers on matrices with planted, degenerate spectra."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from spectra.block_solvers import block_spectrum, norm_bound
from spectra.variation import DenseOperator, SymmetricOperator


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
