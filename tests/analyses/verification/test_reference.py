"""The referee's own reference: against autodiff, against itself in other arithmetic, and on known values."""

from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

import analyses.verification
from analyses.verification.exact.eigenvalues import eigenvalues_of, refined
from analyses.verification.exact.hessian import second_order
from analyses.verification.exact.numbers import DOUBLE, EXTENDED, FIXED, extended_product
from analyses.verification.exact.problem import RawProblem
from analyses.verification.exact.products import PlainProducts, lanczos_ends
from analyses.verification.exact.reference import dense_references
from analyses.verification.exact.span import eliminated, graded_rank, row_space
from tests import oracles
from tests.test_architecture import imported

FUNCTIONS = {
    "square": torch.square,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
    "relu": torch.relu,
    "abs": torch.abs,
    (0.5, -1.0, 0.0, 1.0): lambda u: 0.5 - u + u**3,
}
LOSSES = ("projected_mse", "mse", "cross_entropy")


def problem(activation="square", loss="projected_mse", *, orders=(2, 2), q=2, tied=False, seed=0, **options):
    rng = np.random.default_rng(seed)
    n = int(np.prod(orders))
    a, b, c = (rng.normal(size=(n, q)) for _ in range(3))
    return RawProblem(orders, a, None if tied else b, c, 0.7, activation, loss, **options)


def by_autodiff(p):
    """Loss plus decay of raw weights by torch, with its Hessian."""
    keep = torch.zeros(p.n, p.n, dtype=torch.bool)
    keep[tuple(torch.as_tensor(p.pair_list()).T)] = True
    target = oracles.sum_table(p.orders)

    def scalar(*weights):
        a, c = weights[0], weights[-1]
        b = a if p.b is None else weights[1]
        u = FUNCTIONS[p.activation](a[:, None, :] + b[None, :, :])
        outputs = p.scale * torch.einsum("xyj,mj->xym", u, c)
        decay = 0.5 * p.decay * sum((w**2).sum() for w in weights)
        if p.loss == "cross_entropy":
            return torch.nn.functional.cross_entropy(outputs[keep], target[keep]) + decay
        residual = outputs - torch.eye(p.n, dtype=a.dtype)[target]
        if p.loss == "projected_mse":
            residual = residual - residual.mean(-1, keepdim=True)
        return (residual**2).sum(-1)[keep].mean() + decay

    weights = [torch.tensor(w) for w in ((p.a, p.c) if p.b is None else (p.a, p.b, p.c))]
    return float(scalar(*weights)), oracles.dense_hessian(scalar, *weights).numpy()


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize(
    ("loss", "tied", "decay", "split"),
    [("projected_mse", False, 0.0, True), ("mse", True, 0.3, False), ("cross_entropy", False, 0.1, True)],
)
def test_the_hessian_is_that_of_autodiff_in_every_arithmetic(activation, loss, tied, decay, split):
    pairs = np.array([[0, 1], [2, 2], [3, 0], [1, 1], [0, 0]]) if split else None
    p = problem(activation, loss, tied=tied, decay=decay, pairs=pairs)
    value, expected = by_autodiff(p)
    size = np.abs(expected).max()
    for numbers in (FIXED, EXTENDED, DOUBLE):
        found = second_order(p, numbers, span=False)
        hessian = numbers.extended(found.hessian)
        assert np.abs(hessian - expected).max() < 1e-13 * size
        objective = np.empty(1, dtype=object if numbers is FIXED else np.longdouble)
        objective[0] = found.objective
        assert abs(float(numbers.extended(objective)[0]) - value) < 1e-13 * max(1, value)
    plain = PlainProducts(p)
    assert plain.objective == pytest.approx(value, rel=1e-13)
    columns = np.stack([plain.product(unit) for unit in np.eye(p.dimension)], axis=1)
    assert np.abs(columns - expected).max() < 1e-13 * size


def test_a_centred_problem_moves_without_means():
    p = problem("square", centred=True, orders=(3,))
    full = second_order(problem("square", orders=(3,)), EXTENDED, span=False)
    q = np.linalg.svd(np.eye(3) - 1 / 3)[0][:, :2]
    lift = np.kron(np.eye(3), np.kron(q, np.eye(p.q)))
    centred = [w - w.mean(0) for w in (p.a, p.b, p.c)]
    moved = second_order(RawProblem((3,), *centred, p.scale, "square"), EXTENDED, span=False)
    expected = np.linalg.eigvalsh(lift.T @ moved.hessian.astype(float) @ lift)
    found = second_order(p, EXTENDED, span=False).hessian.astype(float)
    assert np.allclose(np.linalg.eigvalsh(found), expected, atol=1e-13)
    assert found.shape != full.hessian.shape


def test_refined_eigenvalues_keep_clusters_and_small_ones_apart():
    rng = np.random.default_rng(0)
    values = np.sort(
        np.r_[0, 0, 1e-13, -3e-17, 1e-9, 1, 1 + 1e-12, 1 + 2e-12, 1 + 1e-12, -2, rng.normal(size=20)]
    )
    with mpmath.workdps(60):
        rotation = mpmath.qr(mpmath.matrix(rng.normal(size=(30, 30)).tolist()))[0]
        exact = rotation * mpmath.diag([mpmath.mpf(float(v)) for v in values]) * rotation.T
        table = FIXED.zeros(30, 30)
        for i in range(30):
            for j in range(30):
                table[i, j] = int(mpmath.ldexp(exact[i, j], 240))
    found = refined(FIXED.extended(table))
    assert np.abs(found.values - values).max() <= found.error < 2e-17
    few = eigenvalues_of(table[:20, :20], FIXED)
    assert "50 digits" in few.method
    assert np.abs(few.values - refined(FIXED.extended(table[:20, :20])).values).max() < 1e-18


def test_products_of_slices_have_extended_precision():
    rng = np.random.default_rng(1)
    x, y = (
        rng.normal(size=(130, 130)).astype(np.longdouble) + rng.normal(size=(130, 130)) * 1e-17 for _ in "ab"
    )
    x[3] *= np.longdouble(1e-200)
    difference = np.abs(extended_product(x, y) - x @ y)
    assert (difference <= 1e-17 * np.abs(x) @ np.abs(y)).all()
    assert np.abs(x.astype(float) @ y.astype(float) - x @ y).max() > 1e-16  # doubles would not do


def test_case_01_counts_of_a_graded_span():
    """Z3, MSE, one neuron of size 1 and two of 2e-6: rank 21, 8 negative, 13 positive (60 digits)."""
    rng = np.random.default_rng(20)
    a, b, c = (rng.normal(size=(3, 3)) * np.r_[1, 2e-6, 2e-6] for _ in range(3))
    (found,) = dense_references(RawProblem((3,), a, b, c, 1.0, "square", "mse"), space="span")
    assert (found.rank, found.rank_certain) == (21, True)
    assert (found.eigenvalues.values < -found.eigenvalues.error).sum() == 8
    assert (found.eigenvalues.values > found.eigenvalues.error).sum() == 13


@pytest.mark.parametrize("activation", ["square", "tanh", "relu"])
def test_spans_and_complements_agree_in_both_arithmetics(activation):
    p = problem(activation, "mse", orders=(5,), q=2)
    for space in ("span", "complement"):
        one, two = (dense_references(p, space=space, numbers=numbers)[0] for numbers in (FIXED, EXTENDED))
        assert one.rank == two.rank
        off = np.abs(one.eigenvalues.values - two.eigenvalues.values).max()
        assert off <= one.eigenvalues.error + two.eigenvalues.error < 1e-14
    if activation != "relu":  # a neuron that is off at many pairs leaves more than the symmetries
        assert dense_references(p, space="span")[0].rank == dense_references(p, space="complement")[0].rank


def test_an_exact_copy_adds_nothing_to_the_span_and_a_near_one_does():
    rng = np.random.default_rng(3)
    a, b, c = (rng.normal(size=(5, 1)) for _ in range(3))
    ranks = []
    for gap in (0.0, 1e-12):
        both = [np.hstack([w, w + gap * rng.normal(size=w.shape)]) for w in (a, b, c)]
        ranks.append(dense_references(RawProblem((5,), *both, 1.0, "square", "mse"), space="span")[0].rank)
    assert ranks == [13, 26]


def test_kinks_give_one_reference_for_every_slope():
    a = np.array([[1.0], [-2.0], [0.5]])
    p = RawProblem((3,), a, -a, np.array([[1.0], [2.0], [-1.0]]), 1.0, "relu", "mse")
    found = dense_references(p, space="full")
    assert [reference.kink for reference in found] == [0.0, 0.5, 1.0]
    ends = [float(reference.eigenvalues.values[-1]) for reference in found]
    assert len({round(end, 6) for end in ends}) == 3


def test_elimination_sees_what_doubles_cannot():
    rows = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1e-30], [2.0, 2.0, 1e-30]])
    assert eliminated(FIXED.of(rows), FIXED).rank == 2
    assert row_space(EXTENDED.of(rows), EXTENDED).rank == 1


@pytest.mark.parametrize(("loss", "dimension"), [("mse", 26), ("projected_mse", 16)])
def test_a_constant_second_layer_hides_the_first_where_means_of_outputs_do_not_count(loss, dimension):
    """Two neurons on Z5, one with equal entries of c: a and b of it have no slope, c has n - 1 directions."""
    rng = np.random.default_rng(5)
    a, b, c = (rng.normal(size=(5, 2)) for _ in range(3))
    c[:, 1] = 0.7
    p = RawProblem((5,), a, b, c, 1.0, "square", loss)
    (complement,) = dense_references(p, space="complement")
    assert complement.rank == dimension
    assert dense_references(p, space="span")[0].rank == dimension


def test_a_tiny_neuron_leaves_the_rank_open_where_digits_do_not_reach():
    """Two neurons of 3e-8 beside one of 1: their gradients are 1e-15 of the largest."""
    rng = np.random.default_rng(21)
    a, b, c = (rng.normal(size=(3, 3)) * np.r_[1, 3e-8, 3e-8] for _ in range(3))
    p = RawProblem((3,), a, b, c, 1.0, "square", "mse")
    (fixed,), (extended,) = (dense_references(p, space="span", numbers=kind) for kind in (FIXED, EXTENDED))
    assert (fixed.rank, fixed.rank_certain) == (21, True)
    assert graded_rank(extended.parts.jacobian) == 21
    assert extended.rank == 7
    assert not extended.rank_certain


def test_lanczos_brackets_the_ends_of_the_dense_reference():
    p = problem("square", orders=(5,), q=6)
    ends = lanczos_ends(p, span=True, seed=1)
    (dense,) = dense_references(p, space="complement")
    assert ends.values[0] == pytest.approx(float(dense.eigenvalues.values[0]), abs=1e-10)
    assert ends.values[-1] == pytest.approx(float(dense.eigenvalues.values[-1]), abs=1e-10)


def test_the_referee_shares_nothing_with_the_engine():
    folder = Path(analyses.verification.__file__).parent
    files = sorted(folder.rglob("*.py"))
    assert len(files) > 8
    for file in files:
        names = {name.split(".")[0] for name in imported(file.read_text("utf-8"))}
        assert not names & {"spectra", "torch"}, file.name
        if file.name not in {"referee.py"}:
            assert "manifold" not in names, file.name
