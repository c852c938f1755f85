"""Run the trials of a plan, in parallel and resumable, into one Dataset of risks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from analyses.common.study_files import Progress, atomic_path, silent
from analyses.studies.complexity.plan import MULTIPLIERS, SCHEDULE, CurvePlan
from manifold.invariants.kernel_ridge import SampleFactor
from manifold.invariants.weyl import InvariantBasis, invariant_basis


@dataclass(frozen=True)
class _Task:
    """Some trials at one point (group, size) of the curves."""

    group: int
    size: int
    trials: range

    @property
    def name(self) -> str:
        return f"g{self.group}_n{self.size}_t{self.trials.start}.npz"


def run_curves(
    plan: CurvePlan, *, workers: int = 1, parts: Path | None = None, progress: Progress = silent
) -> xr.Dataset:
    """Excess risks of every group, size, design and ridge of a plan.

    A trial is one design, or the mean of up to 16 where n < 1024. For each design the mean over the
    noise is taken exactly: squared bias plus sigma^2 times the variance of the fit. ``noisy_risk``
    holds the excess risks of individual noise vectors at the
    schedule's ridge, for quantiles.

    Parameters
    ----------
    plan : CurvePlan
    workers : int
        Parallel processes of joblib (a Dask cluster through `joblib.parallel_config`).
    parts : Path, optional
        Folder for finished parts; a run that was interrupted resumes from them.
    progress : Progress

    Returns
    -------
    xarray.Dataset
        Dimensions group, size, trial, multiplier, draw; see `annotate`.
    """
    folder = None if parts is None else Path(parts) / plan.digest()
    arrays = _empty(plan)
    done, total = 0.0, sum(_cost(plan, task) * len(task.trials) for task in _tasks(plan))
    waiting = []
    for task in _tasks(plan):
        if folder is not None and (folder / task.name).exists():
            _place(arrays, task, dict(np.load(folder / task.name)))
            done += _cost(plan, task) * len(task.trials)
        else:
            waiting.append(task)
    # Long tasks first, so that no worker is left with one at the end.
    waiting.sort(key=lambda task: -_cost(plan, task))
    inputs = _Inputs.of(plan)
    runner = Parallel(n_jobs=workers, return_as="generator_unordered", max_nbytes="1M")
    slim = replace(plan, forecasts=())  # the workers need no spectra
    for task, result in runner(delayed(_run)(slim, inputs.at(plan, task), task) for task in waiting):
        _place(arrays, task, result)
        if folder is not None:
            with atomic_path(folder / task.name, force=True) as path, open(path, "wb") as file:
                np.savez(file, **result)
        done += _cost(plan, task) * len(task.trials)
        progress(done, total, f"{plan.actions[task.group].name}, n = {plan.samples[task.group, task.size]}")
    return annotate(plan, arrays)


def clear_parts(parts: Path | None) -> None:
    """Remove the folder of finished parts once the study is on disk."""
    if parts is not None:
        shutil.rmtree(parts, ignore_errors=True)


@dataclass(frozen=True)
class _Inputs:
    """Bases that several tasks share: the target's, and every group's."""

    target: InvariantBasis
    coefficients: np.ndarray
    groups: tuple[InvariantBasis, ...]

    @classmethod
    def of(cls, plan: CurvePlan) -> _Inputs:
        target = invariant_basis(plan.target.action, cutoff=plan.target.cutoff)
        bases = tuple(
            invariant_basis(a, cutoff=float(c.max())) for a, c in zip(plan.actions, plan.cutoffs, strict=True)
        )
        return cls(target, plan.target.coefficients(target.eigenvalues), bases)

    def at(self, plan: CurvePlan, task: _Task) -> tuple:
        basis = self.groups[task.group].head(float(plan.cutoffs[task.group, task.size]))
        return self.target, self.coefficients, basis, basis.transfer(self.target, self.coefficients)


def _run(plan: CurvePlan, inputs: tuple, task: _Task) -> tuple[_Task, dict[str, np.ndarray]]:
    target, target_coefficients, basis, coefficients = inputs
    samples = int(plan.samples[task.group, task.size])
    ridge = plan.ridge(task.group, samples)
    unlearnable = float((target_coefficients**2).sum() - (coefficients**2).sum())
    results: dict[str, list] = {"squared_bias": [], "noise_variance": [], "noisy_risk": []}
    with threadpool_limits(1):
        for trial in task.trials:
            # One stream per trial and point, whatever the order or the number of workers.
            key = np.random.SeedSequence(plan.seed, spawn_key=(task.group, task.size, trial))
            rng = np.random.default_rng(key)
            rows: dict[str, list] = {name: [] for name in results}
            for draws in _draws_per_design(samples, plan.draws):
                points = basis.action.space.sample(samples, rng)
                values = target.evaluate(points, target_coefficients)
                factor = SampleFactor.of(basis, plan.s, points, values)
                bias = factor.squared_bias(ridge * MULTIPLIERS, coefficients) + unlearnable
                noisy = factor.noisy_risks(ridge, coefficients, noise=plan.noise, draws=draws, rng=rng)
                rows["squared_bias"].append(bias)
                rows["noise_variance"].append(plan.noise**2 * factor.variance(ridge * MULTIPLIERS))
                rows["noisy_risk"].append(noisy + unlearnable)
            results["squared_bias"].append(np.mean(rows["squared_bias"], axis=0))
            results["noise_variance"].append(np.mean(rows["noise_variance"], axis=0))
            results["noisy_risk"].append(np.concatenate(rows["noisy_risk"]))
    return task, {name: np.stack(rows) for name, rows in results.items()}


def _draws_per_design(samples: int, draws: int) -> list[int]:
    """Noise draws of each design of a trial: small samples scatter more, so a trial has several designs."""
    designs = int(np.clip(1024 // samples, 1, min(16, draws)))
    return [len(part) for part in np.array_split(np.arange(draws), designs)]


def _tasks(plan: CurvePlan) -> Iterator[_Task]:
    for group, size in np.ndindex(*plan.samples.shape):
        block = int(np.clip(4e9 / _cost(plan, _Task(group, size, range(0))), 1, 50))
        for start in range(0, plan.trials, block):
            yield _Task(group, size, range(start, min(start + block, plan.trials)))


def _cost(plan: CurvePlan, task: _Task) -> float:
    """Rough operation count of one trial."""
    p, n = plan.functions(task.group, task.size), float(plan.samples[task.group, task.size])
    wave = 1.0 if plan.actions[0].space.kind == "torus" else p
    designs = len(_draws_per_design(int(n), plan.draws))
    return designs * (10 * min(p, n) ** 3 + 8 * n * p * wave + 1e7)


def _empty(plan: CurvePlan) -> dict[str, np.ndarray]:
    shape = (*plan.samples.shape, plan.trials)
    return {
        "squared_bias": np.full((*shape, len(MULTIPLIERS)), np.nan),
        "noise_variance": np.full((*shape, len(MULTIPLIERS)), np.nan),
        "noisy_risk": np.full((*shape, plan.draws), np.nan),
    }


def _place(arrays: dict[str, np.ndarray], task: _Task, result: dict[str, np.ndarray]) -> None:
    for name, values in result.items():
        arrays[name][task.group, task.size, task.trials.start : task.trials.stop] = values


def annotate(plan: CurvePlan, arrays: dict[str, np.ndarray]) -> xr.Dataset:
    """The Dataset of a study: measured arrays, predictions, and what each variable means."""
    dims = ("group", "size", "trial", "multiplier")
    risk = "excess risk E_x (fit - f)^2, uniform probability, target variance 1"
    shape = plan.samples.shape
    predicted = np.zeros((*shape, len(MULTIPLIERS)))
    dof, resolved = np.zeros(shape), np.zeros(shape)
    for (h, i), n in np.ndenumerate(plan.samples):
        forecast, ridge, cutoff = plan.forecasts[h], plan.ridge(h, n), plan.cutoffs[h, i]
        points = [forecast.predict(n, ridge * m, cutoff) for m in MULTIPLIERS]
        predicted[h, i] = [p.risk for p in points]
        dof[h, i] = points[SCHEDULE].degrees_of_freedom
        resolved[h, i] = forecast.resolved(n, ridge, cutoff)
    per_point = {
        "samples": (plan.samples, "1", "sample size n"),
        "schedule_ridge": (
            np.array([[plan.ridge(h, n) for n in row] for h, row in enumerate(plan.samples)]),
            "1",
            "eta of the theorem's schedule, loss (1/n) sum residual^2 + eta |f|_K^2",
        ),
        "cutoff": (plan.cutoffs, "1", "largest Laplace eigenvalue of the truncated kernel"),
        "functions": (
            np.array([[plan.functions(h, i) for i in range(shape[1])] for h in range(shape[0])]),
            "1",
            "number of eigenfunctions of the truncated kernel",
        ),
        "truncation_error": (plan.truncation_error, "1", "relative change of the predicted risk it causes"),
        "degrees_of_freedom": (dof, "1", "sum (l / (l + chi))^2 at the schedule's ridge"),
        "resolved": (resolved, "1", "Laplace eigenvalue with (1 + lambda)^-s = chi"),
    }
    study = xr.Dataset(
        {
            "squared_bias": (
                dims,
                arrays["squared_bias"],
                {"units": "1", "definition": f"{risk}; no noise"},
            ),
            "noise_variance": (
                dims,
                arrays["noise_variance"],
                {
                    "units": "1",
                    "definition": "mean of |fitted noise|^2 over the noise, exact per design",
                },
            ),
            "noisy_risk": (
                ("group", "size", "trial", "draw"),
                arrays["noisy_risk"],
                {"units": "1", "definition": f"{risk}; single noise vectors, schedule's ridge"},
            ),
            "risk_predicted": (
                ("group", "size", "multiplier"),
                predicted,
                {"units": "1", "definition": "deterministic equivalent of the mean excess risk"},
            ),
            **{
                name: (("group", "size"), values, {"units": unit, "definition": text})
                for name, (values, unit, text) in per_point.items()
            },
        },
        coords={"group": [a.name for a in plan.actions], "multiplier": MULTIPLIERS},
        attrs={
            "space": plan.actions[0].space.name,
            "s": plan.s,
            "theta": plan.theta,
            "noise": plan.noise,
            "trials": plan.trials,
            "target_smoothness": plan.target.smoothness,
            "schedule_constant": plan.constant,
        },
    )
    return study
