"""Phase transitions, ordered branches and rates against independently solved equations."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import ive

from manifold.errors import InputError, NotConvergedError
from manifold.expressions import parse_monomials
from manifold.spaces import parse_space
from spectra.loss_expressions import parse_loss
from spectra.noisy_flow import polynomial_basis
from spectra.temperature import FreeEnergy, find_transitions, follow_branches


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


@pytest.mark.parametrize("d", [2, 3, 5])
def test_uniform_state_ordered_branch_and_transition(d):
    energy, coupling = magnet(d, 1.3), 1.3
    critical = coupling / d
    grid = critical * np.array([0.6, 0.8, 0.97, 1.05, 1.3])
    branches = follow_branches(energy, grid)
    assert len(branches) == 2
    uniform, ordered = sorted(branches, key=lambda branch: branch[-1] is None)
    (found,) = find_transitions(energy, grid, uniform)
    assert found.low < critical + 1e-12
    assert found.high > critical - 1e-12
    assert found.high - found.low < 1e-6
    assert found.direction == "up"
    assert ordered[3] is None
    for temperature, natural in zip(grid[:3], ordered[:3], strict=True):
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


def test_first_order_and_several_branches():
    """A quadrupole on S2: the uniform state loses stability at the eigenvalue of L'' G."""
    space = parse_space("S2")
    loss = parse_loss("-(J/2)*(rho1 - 1/3)^2", 1, {"J": 4.0})
    energy = FreeEnergy(space, parse_monomials("x3^2", space), loss)
    variance = quad(lambda x: (x**2 - 1 / 3) ** 2 / 2, -1, 1)[0]
    grid = np.linspace(0.25, 0.5, 11)
    branches = follow_branches(energy, grid)
    uniform = next(branch for branch in branches if branch[-1] is not None)
    (found,) = find_transitions(energy, grid, uniform)
    assert (found.low + found.high) / 2 == pytest.approx(4 * variance, abs=1e-6)
    assert len(branches) > 1
    for branch in branches:
        for temperature, natural in zip(grid, branch, strict=True):
            if natural is not None:
                weights = energy.weights(natural)
                rho = weights @ energy.values
                assert natural == pytest.approx(4 * (rho - 1 / 3) / temperature, abs=1e-9)


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
