"""Bench of maximum-entropy fits: ours against generic tools at equal accuracy."""

from __future__ import annotations

import resource
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from analyses.studies import Progress, rhoscope_version, silent
from manifold.fitting import fit
from manifold.maxent import MaxEntFamily
from manifold.monomials import Monomials
from manifold.quadrature import product_rule
from manifold.spaces import parse_space

CASES = ("S2", "S3", "T2", "S2xS1", "S5")
MONTE_CARLO = 1_000_000
REPEATS = 3


def run(*, quick: bool, cases: list[str], seed: int, progress: Progress = silent) -> list[dict[str, Any]]:
    """Fit the same random moments (8 monomials of degree up to 3, lambda ~ N(0, 2^2)) with every tool.

    Parameters
    ----------
    quick : bool
        One repeat and fewer Monte-Carlo points.
    cases : list of str
        Spaces.
    seed : int
    progress : Progress

    Returns
    -------
    list of dict
        Rows of the contract. ``error`` of a tool is the largest ``|E r - rho|`` in standard
        deviations of r at the lambda it found, by our quadrature. The Monte-Carlo error falls as the
        root of the number of points: the row
        "projected to 1e-6" is the measured time times (error / 1e-6)^2, a projection, not a measurement.
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
    unit = np.sqrt(np.diag(family.fisher_information(np.zeros(len(family)))))

    def miss(lam: np.ndarray) -> float:
        return float(np.max(np.abs(family.mean(lam) - rho)[family.independent] / unit[family.independent]))

    times = []
    for _ in range(1 if quick else REPEATS):
        fresh = MaxEntFamily(family.space, family.monomials)
        begin = time.perf_counter()
        ours = fit(fresh, rho)
        times.append(time.perf_counter() - begin)
    own = float(np.median(times))
    rows = [_row(name, "rhoscope", rhoscope_version(), own, miss(ours.lam), 1.0)]
    begin = time.perf_counter()
    points, weights = family.space.uniform(
        MONTE_CARLO // (10 if quick else 1), generator=torch.Generator().manual_seed(seed)
    ), None  # fmt: skip
    lam = _scipy_fit(family, rho, points, weights)
    seconds, error = time.perf_counter() - begin, miss(lam)
    scipy_version = f"scipy {version('scipy')}"
    rows.append(_row(name, "scipy minimize, Monte-Carlo", scipy_version, seconds, error, seconds / own))
    projected = seconds * max(1.0, error / 1e-6) ** 2
    rows.append(_row(name, "the same, projected to 1e-6", scipy_version, projected, 1e-6, projected / own))
    if name != "S5":
        begin = time.perf_counter()
        nodes, weights = product_rule(family.space, 40 if name == "S3" or name == "S2xS1" else 64)
        lam = _scipy_fit(family, rho, torch.as_tensor(nodes), weights)
        seconds = time.perf_counter() - begin
        rows.append(
            _row(name, "scipy minimize, plain product rule", scipy_version, seconds, miss(lam), seconds / own)
        )
    rows.append(_sampler_row(name, family, rho, own, seed))
    return rows


def _scipy_fit(
    family: MaxEntFamily, rho: np.ndarray, points: torch.Tensor, weights: np.ndarray | None
) -> np.ndarray:
    """Minimise log-mean-exp over fixed points with BFGS: what a user would write in ten lines."""
    values = family.monomials.values(points).numpy()[:, family.independent]
    target = rho[family.independent]
    log_weights = -np.log(len(values)) if weights is None else np.log(weights)

    def dual(lam: np.ndarray) -> tuple[float, np.ndarray]:
        exponent = values @ lam + log_weights
        peak = exponent.max()
        density = np.exp(exponent - peak)
        total = density.sum()
        return float(peak + np.log(total) - lam @ target), density @ values / total - target

    outcome = minimize(dual, np.zeros(family.rank), jac=True, method="BFGS", options={"gtol": 1e-10})
    lam = np.zeros(len(family))
    lam[family.independent] = outcome.x
    return lam


def _sampler_row(name: str, family: MaxEntFamily, rho: np.ndarray, own: float, seed: int) -> dict:
    """The best general sampler that happens to be installed (numpyro, blackjax, pymc or emcee)."""
    try:
        import emcee
    except ImportError:
        return _row(name, "emcee", "-", None, "missing: not installed", None)
    lam = fit(family, rho).lam
    walkers = 4 * family.space.ambient
    start = np.random.default_rng(seed).normal(size=(walkers, family.space.ambient))

    def log_density(z: np.ndarray) -> np.ndarray:
        size = np.linalg.norm(z, axis=1, keepdims=True)
        unit = family.space.project(torch.as_tensor(z / size))
        return family.monomials.values(unit).numpy() @ lam - size[:, 0] ** 2 / 2

    begin = time.perf_counter()
    sampler = emcee.EnsembleSampler(walkers, family.space.ambient, log_density, vectorize=True)
    sampler.run_mcmc(start, 2000)
    chain = sampler.get_chain(discard=500, flat=True)
    mean = family.monomials.values(family.space.project(torch.as_tensor(chain))).numpy().mean(0)
    seconds = time.perf_counter() - begin
    error = float(np.max(np.abs(mean - rho) / family.scale))
    return _row(name, "emcee (moments at known lambda)", version("emcee"), seconds, error, seconds / own)
