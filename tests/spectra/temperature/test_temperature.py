"""Phase transitions, ordered branches and rates against independently solved equations."""

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import ive

from manifold.errors import InputError, NotConvergedError
from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import parse_monomials
from spectra.functionals.loss_expressions import parse_loss
from spectra.temperature.curves import End, trace_sheets
from spectra.temperature.free_energy import FreeEnergy
from spectra.temperature.noisy_flow import polynomial_basis
from spectra.temperature.transitions import Cause, find_transitions, follow_branches


def magnet(d, coupling=1.0):
    """``L = -(J/2) |rho|^2`` with r the coordinates of ``S^(d-1)``."""
    space = parse_space(f"S{d - 1}")
    names = ";".join(f"x{i + 1}" for i in range(d))
    squares = "+".join(f"rho{i + 1}**2" for i in range(d))
    loss = parse_loss(f"-(J/2)*({squares})", d, {"J": coupling})
    return FreeEnergy(space, parse_monomials(names, space), loss)


def magnetisation(d, temperature, coupling=1.0):
    """Solution of ``m = I_(d/2)(J m / T) / I_(d/2 - 1)(J m / T)``: ratio of Bessel functions."""

    def gap(m):
        return ive(d / 2, coupling * m / temperature) / ive(d / 2 - 1, coupling * m / temperature) - m

    return brentq(gap, 1e-3, 1, xtol=1e-14)


@pytest.mark.parametrize("d", [2, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_uniform_state_ordered_branch_and_transition(d):
    energy, coupling = magnet(d, 1.3), 1.3
    critical = coupling / d
    grid = critical * np.array([0.6, 0.97, 1.05])
    sheets = trace_sheets(energy, grid)
    branches = [[sheet.at(energy, temperature) for temperature in grid] for sheet in sheets]
    uniform, ordered = sorted(branches, key=lambda branch: branch[-1] is None)
    assert all(np.abs(natural).max() < 1e-12 for natural in uniform)
    (found,) = find_transitions(energy, sheets)
    assert found.low < critical < found.high
    assert found.high - found.low < 2e-8
    assert found.direction == "up"
    assert found.cause is Cause.STABILITY
    assert sorted((sheet.low.name, sheet.high.name) for sheet in sheets) == [
        ("RANGE", "BRANCH_POINT"), ("RANGE", "RANGE")
    ]  # fmt: skip
    assert ordered[2] is None
    for temperature, natural in zip(grid[:2], ordered[:2], strict=True):
        state = energy.state(temperature, natural)
        assert np.linalg.norm(state.rho) == pytest.approx(magnetisation(d, temperature, coupling), abs=1e-8)
        assert state.symmetry_zeros == d - 1
        assert np.abs(state.second_variation[: d - 1]).max() < 1e-9
        assert state.second_variation[d - 1] > 0
        assert state.error < 1e-9
        assert not state.uniform


@pytest.mark.parametrize("d", [2, 3, 5])
def test_rates_at_the_uniform_state(d):
    temperature, critical = 0.7, 1 / d
    state = magnet(d).state(temperature, np.zeros(d))
    first = (d - 1) * (temperature - critical)
    assert state.uniform
    assert state.rates == pytest.approx(_degrees(d, temperature)[:8], abs=1e-9)
    assert state.rates[:d] == pytest.approx([first] * d, abs=1e-10)
    assert state.second_variation == pytest.approx([temperature - critical] * d, abs=1e-12)


def _degrees(d, temperature):
    """Rates ``(d-1)(T - 1/d)`` of degree 1 and ``T l (l+d-2)`` of degree l with their multiplicities."""
    from math import comb

    rates = [(d - 1) * (temperature - 1 / d)] * d
    for degree in range(2, 8):
        count = comb(degree + d - 1, d - 1) - comb(degree + d - 3, d - 1)
        rates += [temperature * degree * (degree + d - 2)] * count
    return sorted(rates)


@pytest.mark.parametrize(("temperature", "stiffness", "rate"), [(0.4, 0.148, 0.208), (0.2, 0.169, 0.710)])
def test_circle_below_the_transition(temperature, stiffness, rate):
    """Published digits, and the rate again from a finite-difference operator on the circle."""
    energy = magnet(2)
    natural = energy.solve(temperature, np.array([2.0, 0.0]))
    state = energy.state(temperature, natural)
    assert state.second_variation[0] == pytest.approx(0, abs=1e-10)
    assert state.second_variation[1] == pytest.approx(stiffness, abs=5e-4)
    assert state.rates[0] == pytest.approx(0, abs=1e-9)
    assert state.rates[1] == pytest.approx(rate, abs=5e-4)
    assert state.rate_errors[:2].max() < 1e-6
    assert state.rates[:3] == pytest.approx(_circle_rates(temperature, natural)[:3], abs=2e-3)


def _circle_rates(temperature, natural, n=800):
    """Rates by finite differences: ``d_t (mu f) = div(mu grad(T f + V[f]))`` on a periodic grid."""
    theta = 2 * np.pi * np.arange(n) / n
    density = np.exp(natural @ [np.cos(theta), np.sin(theta)])
    mu = density / density.sum()
    between = (mu + np.roll(mu, -1)) / 2 * (n / (2 * np.pi)) ** 2
    step = np.roll(np.eye(n), 1, axis=1) - np.eye(n)
    generator = step.T @ (between[:, None] * step) / mu[:, None]
    r = np.stack([np.cos(theta), np.sin(theta)])
    r -= (r @ mu)[:, None]
    bracket = temperature * np.eye(n) - r.T @ (r * mu)
    rates = np.sort(np.linalg.eigvals(generator @ bracket).real)
    zero = np.abs(rates).argsort()[:2]  # constants, and the rotation
    return np.sort(np.append(np.delete(rates, zero[0]), []))


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-4, 2.5e-5, 1e-6])
def test_bounds_hold_the_condition_of_the_equation_near_a_transition(gap):
    """The circle below T = 1/2 to 40 digits: the equation loses its condition like 1 / (T_c - T)."""
    energy, temperature = magnet(2), 0.5 - gap
    with mpmath.workdps(40):
        t = mpmath.mpf(temperature)
        m = mpmath.findroot(
            lambda m: mpmath.besseli(1, m / t) / mpmath.besseli(0, m / t) - m, 2 * mpmath.sqrt(1 - 2 * t)
        )
        ratio = mpmath.besseli(1, m / t) / mpmath.besseli(0, m / t)
        stiffness = t - (1 - ratio * t / m - ratio**2)
        state = energy.state(temperature, energy.solve(temperature, np.array([float(m / t) * 1.01, 0.0])))
        off = abs(mpmath.norm([mpmath.mpf(x) for x in state.rho]) - m)
        assert off <= state.rho_error
        assert abs(state.second_variation[1] - stiffness) <= state.second_variation_error
        assert abs(state.second_variation[0]) <= state.second_variation_error
        assert abs(state.rates[0]) <= state.rate_errors[0]
    assert state.condition == pytest.approx(temperature / float(stiffness), rel=1e-3)
    assert state.symmetry_zeros == 1
    assert state.stable
    assert state.error < 1e-10 * state.condition
    # A measure off by a millionth is bounded by its residual times the condition, or not at all.
    moved = energy.state(temperature, state.natural * (1 + 1e-6))
    off = abs(np.linalg.norm(moved.rho) - float(m))
    assert state.rho_error < off <= moved.rho_error


def test_where_no_bound_can_be_proved_nothing_is_claimed():
    energy, temperature = magnet(2), 0.5 - 1e-10
    state = energy.state(temperature, energy.solve(temperature, np.array([4e-5, 0.0])))
    assert state.stable is None
    assert energy.sign(temperature, state.natural) == 0
    assert state.rho_error > 1e-5  # only that the uniform measure is near
    far = energy.state(0.3, np.array([1.0, 0.0]))  # not stationary at all
    assert far.error == np.inf
    assert far.stable is None
    assert np.isinf(far.rate_errors).all()


@pytest.mark.parametrize("anisotropy", [0.0, 1e-3, 1e-5])
def test_zeros_are_exact_only_where_the_loss_has_the_symmetry(anisotropy):
    """A loss that tells the axes apart by little has a small eigenvalue, not a symmetry."""
    space = parse_space("S1")
    loss = parse_loss("-(1/2)*((1 + e)*rho1**2 + rho2**2)", 2, {"e": anisotropy})
    energy = FreeEnergy(space, parse_monomials("x1;x2", space), loss)
    assert len(energy.symmetries) == (0 if anisotropy else 1)
    state = energy.state(0.3, energy.solve(0.3, np.array([2.5, 0.0])))
    assert state.symmetry_zeros == (0 if anisotropy else 1)
    if anisotropy:
        assert 0 < state.lowest < anisotropy
        assert state.stable


NEMATIC = "x1^2;x2^2;x3^2;x1*x2;x1*x3;x2*x3"
QUADRUPOLE = "-(J/2)*((rho1-1/3)**2 + (rho2-1/3)**2 + (rho3-1/3)**2 + 2*rho4**2 + 2*rho5**2 + 2*rho6**2)"


def maier_saupe(coupling):
    """Temperatures of the transition and of the upper spinodal, 25 digits: ``L = -(J/3) S^2``, S = E P2.

    With u = (2J/3) S / T the self-consistency is ``S = E_u P2``, so T(u) = (2J/3) E_u P2 / u in closed form,
    and the free energy less that of the uniform state is ``-(J/3) S^2 + T (u S - log Z)``.
    """
    with mpmath.workdps(25):

        def moment(u, power):
            def weight(x):
                p2 = (3 * x**2 - 1) / 2
                return p2**power * mpmath.exp(u * p2)

            return mpmath.quad(weight, [0, 0.5, 1])

        def order(u):
            return moment(u, 1) / moment(u, 0)

        def temperature(u):
            return 2 * coupling / mpmath.mpf(3) * order(u) / u

        def excess(u):
            s, t = order(u), temperature(u)
            return -coupling * s**2 / 3 + t * (u * s - mpmath.log(moment(u, 0)))

        crossing = mpmath.findroot(excess, (1.8, 2.1), solver="anderson")
        fold = mpmath.findroot(lambda u: mpmath.diff(temperature, u), (1.3, 1.6), solver="anderson")
        return float(temperature(crossing)), float(order(crossing)), float(temperature(fold))


def test_a_first_order_transition_is_one_curve_with_its_spinodals():
    """Maier-Saupe: known T_NI / J' = 0.22019, S = 0.4290; spinodals at 0.2 and 0.22283 of J' = 2J/3."""
    coupling = 1.5
    crossing, jump, fold = maier_saupe(coupling)
    assert (crossing, jump, fold) == pytest.approx((0.220193, 0.42903, 0.222833), abs=2e-6)
    space = parse_space("S2")
    loss = parse_loss(QUADRUPOLE, 6, {"J": coupling})
    energy = FreeEnergy(space, parse_monomials(NEMATIC, space), loss)
    sheets = trace_sheets(energy, [0.18, 0.205, 0.24])
    assert sorted(sheet.curve for sheet in sheets) == [0, 1, 1]
    uniform = next(i for i, sheet in enumerate(sheets) if sheet.curve == 0)
    folded = [sheet for sheet in sheets if sheet.curve == 1]
    assert all(sheet.high is End.FOLD for sheet in folded)
    lower, first, upper = find_transitions(energy, sheets)
    assert (lower.cause, first.cause, upper.cause) == (Cause.STABILITY, Cause.FIRST_ORDER, Cause.FOLD)
    for found, exact in ((lower, 0.2), (first, crossing), (upper, fold)):
        assert found.low - 1e-13 <= exact <= found.high + 1e-13
        assert found.high - found.low < 3e-8
    assert (lower.direction, upper.direction) == ("up", "down")
    assert first.sheets[1] == uniform == lower.sheets[0]
    assert upper.sheets[0] == first.sheets[0]  # the branch that is stable is the one that ends
    natural = sheets[first.sheets[0]].at(energy, first.low)
    rho = energy.weights(natural) @ energy.values
    tensor = np.array([[rho[0], rho[3], rho[4]], [rho[3], rho[1], rho[5]], [rho[4], rho[5], rho[2]]])
    assert 1.5 * (np.linalg.eigvalsh(tensor)[-1] - 1 / 3) == pytest.approx(jump, abs=1e-6)


def test_a_spinodal_of_a_scalar_order_parameter():
    """A quadrupole along one axis: uniform spinodal at J Var, and the fold of ``T(u)`` in closed form."""
    space = parse_space("S2")
    loss = parse_loss("-(J/2)*(rho1 - 1/3)^2", 1, {"J": 4.0})
    energy = FreeEnergy(space, parse_monomials("x3^2", space), loss)
    variance = quad(lambda x: (x**2 - 1 / 3) ** 2 / 2, -1, 1)[0]
    grid = np.linspace(0.25, 0.5, 11)
    sheets = trace_sheets(energy, grid)
    found = find_transitions(energy, sheets)
    flat = [one for one in found if np.abs(sheets[one.sheets[0]].etas).max() < 1e-9]
    (spinodal,) = [one for one in flat if one.cause is Cause.STABILITY]
    assert spinodal.low - 1e-10 <= 4 * variance <= spinodal.high + 1e-10

    def temperature(u):
        weight = [quad(lambda x, k=k: x ** (2 * k) * np.exp(u * x**2), 0, 1)[0] for k in (0, 1)]
        return 4 * (weight[1] / weight[0] - 1 / 3) / u

    u = np.linspace(0.5, 6, 4001)
    best = max(map(temperature, u))
    (fold,) = [one for one in found if one.cause is Cause.FOLD]
    assert (fold.low + fold.high) / 2 == pytest.approx(best, abs=1e-6)
    assert any(one.cause is Cause.FIRST_ORDER for one in found)
    for sheet in sheets:
        for t in grid:
            natural = sheet.at(energy, t)
            if natural is not None:
                rho = energy.weights(natural) @ energy.values
                assert natural == pytest.approx(4 * (rho - 1 / 3) / t, abs=1e-9)


def test_a_subcritical_magnet_has_a_fold_and_a_first_order_transition():
    """``L = -|rho|^2 / 2 - 2 |rho|^4`` on the circle: T(u) = (m + 8 m^3) / u, no quadratic loss."""
    space = parse_space("S1")
    loss = parse_loss("-(rho1^2+rho2^2)/2 - 2*(rho1^2+rho2^2)^2", 2, {})
    energy = FreeEnergy(space, parse_monomials("x1;x2", space), loss)
    sheets = trace_sheets(energy, np.linspace(0.4, 1.9, 6))
    found = find_transitions(energy, sheets)
    u = np.linspace(0.05, 20, 20001)
    m = ive(1, u) / ive(0, u)
    temperature = (m + 8 * m**3) / u
    free = -(m**2) / 2 - 2 * m**4 + temperature * (u * m - np.log(ive(0, u)) - u)
    stable = u > u[temperature.argmax()]
    crossing = np.interp(0, free[stable], temperature[stable])  # falls with u: interpolated on its own
    crossing = brentq(lambda t: np.interp(t, temperature[stable][::-1], free[stable][::-1]), crossing - 0.1,
                      temperature.max() - 1e-9)  # fmt: skip
    causes = {one.cause: one for one in found}
    assert set(causes) == set(Cause)
    assert causes[Cause.STABILITY].low <= 0.5 <= causes[Cause.STABILITY].high
    assert causes[Cause.FOLD].high == pytest.approx(temperature.max(), abs=1e-5)
    assert causes[Cause.FIRST_ORDER].low == pytest.approx(crossing, abs=1e-5)
    for sheet in sheets:
        for t in (0.45, 0.7, 0.95):
            natural = sheet.at(energy, t)
            if natural is not None and np.abs(natural).max() > 1e-6:
                state = energy.state(t, natural)
                length = np.linalg.norm(state.rho)
                assert np.linalg.norm(natural) * t == pytest.approx(length + 8 * length**3, abs=1e-12)
                assert state.error < 1e-8


def test_polynomials_are_tangential_and_complete():
    energy = magnet(3)
    values, gradients = polynomial_basis(energy.space, energy.points, 4)
    assert np.abs(np.einsum("npi,ni->np", gradients, energy.points)).max() < 1e-12
    assert np.linalg.matrix_rank(values) == values.shape[1] == 24  # harmonics 3 + 5 + 7 + 9


def test_a_failed_iteration_says_so():
    with pytest.raises(NotConvergedError, match="residual"):
        magnet(2).solve(0.3, np.array([2.0, 0.0]), iterations=1)
    with pytest.raises(InputError, match="ascending"):
        follow_branches(magnet(2), [0.3, 0.2])
    (branch,) = follow_branches(magnet(2), [0.6, 0.7])
    assert [natural.tolist() for natural in branch] == [[0, 0], [0, 0]]
    with pytest.raises(InputError, match="dimension"):
        magnet(8)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-(J/2)*(rho1**2+rho2**2)", -7.5), ("rho1^3 - 2e-1", 0.8), ("exp(-rho2)*J", 3 * np.exp(-2)),
        ("+sqrt(4) + log(1)", 2.0), ("rho2**-2 / J", 0.25 / 3), ("1.5", 1.5),
    ],
)  # fmt: skip
def test_formulas(text, value):
    rho = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert float(parse_loss(text, 2, {"J": 3.0})(rho)) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('ls')", "rho1.real", "rho3", "K*rho1", "rho1**rho2", "rho1**1000", "[rho1]",
        "lambda: 1", "exp(rho1, 2)", "open('x')", "rho1 if rho2 else 1", "(" * 5000, "'a'", "True", "1j", "",
        "rho1; rho2", "9**9**9**9", "rho0", "-" * 1900 + "1", "(" * 900 + "1" + ")" * 900,
    ],
)  # fmt: skip
def test_formulas_that_are_refused(text):
    with pytest.raises(InputError, match="loss-expr"):
        parse_loss(text, 2, {"J": 3.0})
