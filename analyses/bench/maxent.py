"""Bench of maximum-entropy fits: ours against generic tools at equal accuracy."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from analyses.bench.timing import median_seconds
from analyses.common.study_files import Progress, rhoscope_version, silent
from manifold.integration.rules import product_rule
from manifold.maxent.family import MaxEntFamily
from manifold.maxent.fitting import fit
from manifold.monomials import Monomials
from manifold.spaces.embedded import parse_space

CASES = ("S2", "T2", "S2xS1", "S3", "T3", "S5")
MONTE_CARLO = 4_000_000
SAMPLER_SECONDS = 20.0
WANTED = 1e-6
REPEATS = 5


def run(*, quick: bool, cases: list[str], seed: int, progress: Progress = silent) -> list[dict[str, Any]]:
    """Fit the same random moments (8 monomials of degree up to 3, lambda ~ N(0, 2^2)) with every tool.

    Parameters
    ----------
    quick : bool
        One repeat, fewer Monte-Carlo points and a shorter time for the sampler.
    cases : list of str
        Spaces.
    seed : int
    progress : Progress

    Returns
    -------
    list of dict
        Rows of the contract. ``error`` of a tool is the largest ``|E r - rho|`` in uniform standard
        deviations of r at the lambda it found, by a quadrature rule with more nodes than our fit used. Ours
        is near rounding error, so a ratio against a less accurate tool is a lower bound of the ratio
        at equal accuracy. Monte-Carlo errors fall with the root of the number of points: rows
        "projected" are the measured time times (error / 1e-6)^2, not measurements, and
        say so. ``peak_mib`` is the largest memory of the process so far.
    """
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(cases):
        progress(number, len(cases), name)
        rows += _case(name, seed, quick)
    return rows


def _problem(name: str, seed: int) -> tuple[MaxEntFamily, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    space = parse_space(name)
    found: set[tuple] = set()
    while len(found) < 8:
        exponents = np.zeros(space.ambient, int)
        for k in rng.integers(0, space.ambient, int(rng.integers(1, 4))):
            exponents[k] += 1
        found.add(tuple(exponents))
    family = MaxEntFamily(space, Monomials(np.array(sorted(found))))
    lam = np.zeros(len(family))
    lam[family.independent] = 2 * rng.normal(size=family.rank)
    return family, lam, family.mean(lam)


def _row(
    case: str, tool: str, tool_version: str, seconds: float | None, error: Any, ratio: float | None
) -> dict:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "case": case, "tool": tool, "version": tool_version, "quantity": "fit", "seconds": seconds,
        "peak_mib": peak, "error": error, "ratio": ratio,
    }  # fmt: skip


def _case(name: str, seed: int, quick: bool) -> list[dict]:
    family, _, rho = _problem(name, seed)

    def miss(lam: np.ndarray) -> float:
        mean = family.evaluate(lam, extra=4).mean
        return float(np.max(np.abs(mean - rho)[family.independent] / family.scale[family.independent]))

    def ours() -> np.ndarray:
        return fit(MaxEntFamily(family.space, family.monomials), rho).lam

    own = median_seconds(ours, 1 if quick else REPEATS)
    rows = [_row(name, "rhoscope", rhoscope_version(), own, miss(ours()), 1.0)]

    def timed(tool: str, package: str, work: Callable[[], np.ndarray]) -> None:
        begin = time.perf_counter()
        lam = work()
        seconds, error = time.perf_counter() - begin, miss(lam)
        rows.append(_row(name, tool, f"{package} {version(package)}", seconds, error, seconds / own))

    def project() -> None:
        last = rows[-1]
        seconds = last["seconds"] * max(1.0, last["error"] / WANTED) ** 2
        told = f"{WANTED:g} by extrapolation, not measured"
        rows.append(_row(name, "the same, projected", last["version"], seconds, told, seconds / own))

    points = MONTE_CARLO // (20 if quick else 1)
    timed(
        f"scipy minimize, {points:.0e} random points",
        "scipy",
        lambda: _monte_carlo(family, rho, points, seed),
    )
    project()
    try:
        budget = SAMPLER_SECONDS / (10 if quick else 1)
        timed("emcee in a Newton fit", "emcee", lambda: _emcee_fit(family, rho, budget, seed))
        project()
    except ImportError:
        rows.append(
            _row(name, "emcee in a Newton fit", "-", None, "missing: pip install rhoscope[bench]", None)
        )
    if family.space.dimension <= 3:
        timed("scipy minimize, product rule", "scipy", lambda: _plain_rule(family, rho))
    return rows


def _monte_carlo(family: MaxEntFamily, rho: np.ndarray, count: int, seed: int) -> np.ndarray:
    points = family.space.uniform(count, generator=torch.Generator().manual_seed(seed)).numpy()
    return _scipy_fit(family, rho, points, None)


def _plain_rule(family: MaxEntFamily, rho: np.ndarray) -> np.ndarray:
    nodes, weights = product_rule(family.space, 64 if family.space.dimension < 3 else 40)
    return _scipy_fit(family, rho, nodes, weights)


def _table(family: MaxEntFamily, points: np.ndarray) -> np.ndarray:
    """Independent monomials by plain powers, shape (q, rank)."""
    columns = []
    for exponents in family.monomials.exponents[family.independent]:
        column = np.ones(len(points))
        for axis, power in enumerate(exponents):
            for _ in range(power):
                column = column * points[:, axis]
        columns.append(column)
    return np.stack(columns, axis=1)


def _full(family: MaxEntFamily, values: np.ndarray) -> np.ndarray:
    lam = np.zeros(len(family))
    lam[family.independent] = values
    return lam


def _scipy_fit(
    family: MaxEntFamily, rho: np.ndarray, points: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    """Minimise log-mean-exp over fixed points with BFGS: what a user would write in ten lines."""
    values, target = _table(family, points), rho[family.independent]
    log_weights = -np.log(len(values)) if weights is None else np.log(weights)

    def dual(lam: np.ndarray) -> tuple[float, np.ndarray]:
        exponent = values @ lam + log_weights
        peak = exponent.max()
        density = np.exp(exponent - peak)
        total = density.sum()
        return float(peak + np.log(total) - lam @ target), density @ values / total - target

    outcome = minimize(dual, np.zeros(family.rank), jac=True, method="BFGS", options={"gtol": 1e-10})
    return _full(family, outcome.x)


def _emcee_fit(family: MaxEntFamily, rho: np.ndarray, budget: float, seed: int) -> np.ndarray:
    """Newton steps on moments that emcee estimates, each with twice the samples, until the budget is spent.

    The sampler works in the ambient space with a Gaussian radius on every factor, whose direction has the
    density wanted.
    """
    import emcee

    space, target = family.space, rho[family.independent]
    ends = np.cumsum([f.ambient for f in space.factors])
    blocks = [slice(end - f.ambient, end) for f, end in zip(space.factors, ends, strict=True)]

    def direction(z: np.ndarray) -> np.ndarray:
        return np.concatenate([z[:, b] / np.linalg.norm(z[:, b], axis=1, keepdims=True) for b in blocks], 1)

    walkers, lam = 64, np.zeros(family.rank)
    state = np.random.default_rng(seed).normal(size=(walkers, space.ambient))
    steps, begin, last = 100, time.perf_counter(), 0.0
    # Each round takes about twice as long as the one before: stop when the next would not fit.
    while time.perf_counter() - begin + 2 * last < budget:
        started, current = time.perf_counter(), lam.copy()
        sampler = emcee.EnsembleSampler(
            walkers, space.ambient, vectorize=True,
            log_prob_fn=lambda z: _table(family, direction(z)) @ current - (z**2).sum(1) / 2,  # noqa: B023
        )  # fmt: skip
        state = sampler.run_mcmc(state, steps).coords
        values = _table(family, direction(sampler.get_chain(discard=steps // 5, flat=True)))
        step = np.linalg.solve(np.cov(values.T), target - values.mean(0))
        size = np.sqrt(max(step @ (target - values.mean(0)), 0.0))
        lam = current + step * min(1.0, 1.5 / max(size, 1e-300))
        steps, last = 2 * steps, time.perf_counter() - started
    return _full(family, lam)
