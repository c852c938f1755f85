"""Benchmark: risk curves over many ridges, against scikit-learn with the averaged kernel in closed form."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import sklearn
from scipy.linalg import eigh
from sklearn.kernel_ridge import KernelRidge

from analyses.common.study_files import Progress, rhoscope_version, silent
from manifold.errors import InputError
from manifold.groups.named import named_action
from manifold.invariants.kernel_ridge import SampleFactor
from manifold.invariants.weyl import invariant_basis
from manifold.spaces.homogeneous import SpectralSpace

CASES = ("circle-Z16", "circle-Z4")
QUANTITY = "excess risk of 30 ridges x {trials} designs, n = {samples}, kernel construction included"


@dataclass(frozen=True)
class CircleCase:
    """Ridge regression on the circle under Z_m, s = 2, target with a power-law spectrum.

    Attributes
    ----------
    name : str
    order : int
        m.
    samples, trials : int
    radius : int
        Frequencies of our truncated basis; the closed-form kernel of the other tools has all of them.
    """

    name: str
    order: int
    samples: int
    trials: int
    radius: int = 1600

    @property
    def ridges(self) -> np.ndarray:
        """The 30 ridges, loss (1/n) sum residual^2 + ridge |f|_K^2."""
        return np.geomspace(1e-6, 1e-1, 30)

    def problem(self, seed: int) -> tuple:
        """Basis, coefficients, and (points, observations) of every trial."""
        action = named_action(SpectralSpace.parse("T1"), f"Z{self.order}")
        basis = invariant_basis(action, cutoff=float(self.radius**2))
        rng = np.random.default_rng(seed)
        c = rng.choice([-1.0, 1.0], len(basis)) * (1 + basis.eigenvalues) ** -1.25
        c /= np.linalg.norm(c)
        data = []
        for _ in range(self.trials):
            x = rng.uniform(0, 2 * np.pi, (self.samples, 1))
            data.append((x, basis.evaluate(x, c) + 0.3 * rng.standard_normal(self.samples)))
        return basis, c, data


def averaged_kernel(x: np.ndarray, y: np.ndarray, order: int) -> np.ndarray:
    """Z_m-average of the circle's Sobolev kernel with s = 2, in closed form, shape (n, m).

    ``sum_k cos(k u) / (k^2 + a^2)^2`` with u = m (x - y) and a = 1/m, times m^-4.
    """
    a, u = 1.0 / order, np.mod(order * (x[:, None] - y[None]), 2 * np.pi) - np.pi
    sinh, coth = np.sinh(np.pi * a), 1 / np.tanh(np.pi * a)
    cosh_u = np.cosh(a * u)
    value = np.pi / (2 * a**3 * sinh) * (cosh_u * (1 + np.pi * a * coth) - a * u * np.sinh(a * u))
    return value / order**4


def spectral_risks(case: CircleCase, basis, c: np.ndarray, data: Sequence[tuple]) -> np.ndarray:
    """Ours: one small eigen-solve per trial, exact risks by Parseval, shape (trials, ridges)."""
    rows = []
    for x, y in data:
        fitted = SampleFactor.of(basis, 2.0, x, y).coefficients(case.ridges)
        rows.append(((fitted - c[:, None]) ** 2).sum(axis=0))
    return np.stack(rows)


def kernel_ridge_duals(case: CircleCase, data: Sequence[tuple]) -> list[np.ndarray]:
    """scikit-learn: the kernel once per trial, one `KernelRidge` fit per ridge."""
    found = []
    for x, y in data:
        kernel = averaged_kernel(x[:, 0], x[:, 0], case.order)
        found.append(
            np.stack(
                [
                    KernelRidge(alpha=case.samples * ridge, kernel="precomputed").fit(kernel, y).dual_coef_
                    for ridge in case.ridges
                ],
                axis=1,
            )
        )
    return found


def one_eigendecomposition_duals(case: CircleCase, data: Sequence[tuple]) -> list[np.ndarray]:
    """What an expert writes with SciPy: the same kernel, one n x n eigen-solve for all ridges."""
    found = []
    for x, y in data:
        values, vectors = eigh(averaged_kernel(x[:, 0], x[:, 0], case.order), driver="evd")
        shrink = 1 / (values[:, None] + case.samples * case.ridges)
        found.append(vectors @ (shrink * (vectors.T @ y)[:, None]))
    return found


def risks_of_duals(case: CircleCase, basis, c: np.ndarray, data, duals: list[np.ndarray]) -> np.ndarray:
    """Risks of dual solutions by a quadrature that is exact to rounding (not part of the timing)."""
    # The difference has period 2 pi / m: a grid over one period resolves m times more frequencies.
    grid = 2 * np.pi * np.arange(4096) / 4096 / case.order
    truth = basis.evaluate(grid[:, None], c)
    rows = []
    for (x, _), dual in zip(data, duals, strict=True):
        fit = averaged_kernel(grid, x[:, 0], case.order) @ dual
        rows.append(((fit - truth[:, None]) ** 2).mean(axis=0))
    return np.stack(rows)


def _measure(work: Callable[[], Any]) -> tuple[Any, float, float]:
    tracemalloc.start()
    begin = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return result, seconds, peak


def _cases(quick: bool) -> list[CircleCase]:
    trials = 2 if quick else 20
    return [CircleCase(name, int(name.removeprefix("circle-Z")), 2048, trials) for name in CASES]


def run(
    *,
    quick: bool = False,
    cases: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Time every tool on every case in the same process; risks are compared with ours.

    Parameters
    ----------
    quick : bool
        2 designs instead of 20.
    cases : sequence of str, optional
        Names to run; default all.
    seed : int
    progress : Progress

    Returns
    -------
    list of dict
        Keys case, tool, version, quantity, seconds (wall), peak_mib (Python allocations), error (largest
        relative difference of the risks to ours, or a sentence), ratio (other time over ours).

    Raises
    ------
    InputError
        If a case is unknown.
    """
    known = {case.name: case for case in _cases(quick)}
    if unknown := set(cases or ()) - set(known):
        raise InputError(f"--cases: unknown {sorted(unknown)}; expected some of {sorted(known)}")
    chosen = [known[name] for name in (cases or known)]
    others = {
        "scikit-learn KernelRidge": (sklearn.__version__, kernel_ridge_duals),
        "SciPy, one eigen-solve": (scipy.__version__, one_eigendecomposition_duals),
    }
    rows, done, total = [], 0, 3 * len(chosen)
    for case in chosen:
        basis, c, data = case.problem(seed)
        spectral_risks(case, basis, c, data[:1])  # warm up libraries and caches
        quantity = QUANTITY.format(trials=case.trials, samples=case.samples)
        ours, seconds, peak = _measure(lambda case=case: spectral_risks(case, *case.problem(seed)))
        rows.append(_row(case, "rhoscope", rhoscope_version(), quantity, seconds, peak, 0.0, 1.0))
        progress(done := done + 1, total, case.name)
        for tool, (version, solve) in others.items():
            duals, other, peak = _measure(lambda solve=solve, case=case, data=data: solve(case, data))
            risks = risks_of_duals(case, basis, c, data, duals)
            error = float(np.abs(risks / ours - 1).max())
            rows.append(_row(case, tool, version, quantity, other, peak, error, other / seconds))
            progress(done := done + 1, total, f"{case.name}: {tool}")
    return rows


def _row(case, tool, version, quantity, seconds, peak, error, ratio) -> dict[str, Any]:
    return {
        "case": case.name,
        "tool": tool,
        "version": version,
        "quantity": quantity,
        "seconds": seconds,
        "peak_mib": peak,
        "error": error,
        "ratio": ratio,
    }
