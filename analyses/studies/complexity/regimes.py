"""Further regimes: exponent table, saturation, no noise, kappa = 0, infinite groups, tori and spheres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analyses.common.study_files import Progress, silent
from analyses.studies.complexity import statistics as st
from analyses.studies.complexity.curve_results import fit_slope, gain_records
from analyses.studies.complexity.curves import run_curves
from analyses.studies.complexity.plan import SCHEDULE, CurvePlan, make_plan
from manifold.spaces.homogeneous import SpectralSpace

# Degrees of freedom per sample at the largest n: small enough to be asymptotic, large enough to average.
FINAL_LOAD = 0.003


@dataclass(frozen=True)
class Runner:
    """How to run a regime: processes, seed, number of designs, progress.

    Attributes
    ----------
    workers, seed, trials : int
    progress : Progress
    parts : Path or None
        Folder of finished parts, to resume from.
    """

    workers: int = 1
    seed: int = 0
    trials: int = 12
    progress: Progress = field(default=silent)
    parts: Path | None = None

    def curves(self, plan: CurvePlan):
        """The study of one plan."""
        return run_curves(plan, workers=self.workers, parts=self.parts, progress=self.progress)

    def plan(self, space: str, groups: Sequence[str], **options: Any) -> CurvePlan:
        """A plan with this runner's seed and trials."""
        defaults = {"trials": self.trials, "draws": 1, "seed": self.seed, "max_functions": 4000}
        return make_plan(SpectralSpace.parse(space), list(groups), **{**defaults, **options})


def balanced_noise(make: Callable[[float], CurvePlan], load: float = FINAL_LOAD) -> float:
    """Sigma for which the first group's last sample has this many degrees of freedom per sample.

    The theorem holds for every sigma > 0; which n are asymptotic depends on it, and this choice brings
    them within reach of the smooth and of the rough cells alike.

    Parameters
    ----------
    make : callable
        Builds the plan for a given sigma (truncation does not matter).
    load : float

    Returns
    -------
    float
    """
    low, high = 1e-3, 30.0
    for _ in range(12):
        middle = np.sqrt(low * high)
        plan = make(float(middle))
        samples = int(plan.samples[0, -1])
        dof = plan.forecasts[0].predict(samples, plan.ridge(0, samples)).degrees_of_freedom
        low, high = (middle, high) if dof / samples > load else (low, middle)
    return float(f"{np.sqrt(low * high):.2g}")


def exponent_table(thetas: Sequence[float], kappas: Sequence[float], run: Runner) -> list[dict[str, Any]]:
    """Measured against predicted exponents on the circle, one record per (theta, kappa).

    Every cell has its own target on the edge of F^{theta s}, s = (1 + kappa) / 2, its own noise (stated)
    and the sizes 2048 .. 32768, of which the asymptotic ones are used.

    Parameters
    ----------
    thetas, kappas : sequence of float
    run : Runner

    Returns
    -------
    list of dict
    """
    sizes = [2**k for k in range(11, 16)]
    rows = []
    for theta in thetas:
        for kappa in kappas:

            def make(noise: float, theta=theta, kappa=kappa, **more) -> CurvePlan:
                return run.plan(
                    "T1", ["trivial"], samples=sizes, theta=theta, kappa=kappa, noise=noise, **more
                )

            noise = balanced_noise(lambda sigma, make=make: make(sigma, cutoff=64.0, diagnostic=True))
            plan = make(noise)
            fitted = fit_slope(plan, run.curves(plan), 0)
            rows.append(
                {
                    "theta": theta,
                    "kappa": kappa,
                    "s": plan.s,
                    "noise": noise,
                    "second_term_would_dominate": theta * (kappa + 1) > 1,
                    **(
                        fitted.record()
                        if fitted
                        else {"value": None, "judgement": "no asymptotic range", "verdict": "undecided"}
                    ),
                }
            )
    return rows


def saturation(run: Runner) -> list[dict[str, Any]]:
    """Targets smoother than theta = 1: faster than the theorem until ridge regression saturates.

    On the circle with s = 1 the theorem's worst case is n^(-2/3); a band-limited target and one with
    energy decay 3 s reach the saturation exponent ``-4 s / (4 s + d')`` = -0.8, a target between
    (1.5 s) the exponent of its own smoothness, and none is faster.
    """
    rows = []
    cases = [
        ("edge of F^s (theta = 1)", {}, 1.0),
        ("power law, energy decay 1.5 s", {"smoothness": 1.5}, 1.5),
        ("power law, energy decay 3 s", {"smoothness": 3.0, "saturated": True}, 2.0),
        ("band-limited, |k| <= 3", {"band": 9.0, "saturated": True}, 2.0),
    ]
    for name, options, effective in cases:

        def make(noise: float, options=options, **more) -> CurvePlan:
            sizes = [2**k for k in range(11, 16)]
            return run.plan("T1", ["trivial"], samples=sizes, s=1.0, noise=noise, **options, **more)

        plan = make(balanced_noise(lambda sigma, make=make: make(sigma, cutoff=64.0, diagnostic=True)))
        study = run.curves(plan)
        valid = st.asymptotic_range(plan, study)[0]
        samples = plan.samples[0][valid]
        # The oracle's ridge: with a smoother target the theorem's schedule is no longer the best one.
        risks = (study.squared_bias + study.noise_variance).values[0][valid]
        measured = st.bootstrap(
            lambda t, samples=samples, risks=risks: st.log_slope(
                samples, risks[:, t].mean(axis=1).min(axis=1)
            ),
            plan.trials,
            seed=run.seed,
        )[0]
        finite = st.log_slope(samples, study.risk_predicted.values[0, valid].min(axis=1))
        rows.append(
            {
                "target": name,
                "noise": plan.noise,
                "value": measured.value,
                "ci": measured.ci,
                "expected": -effective * plan.s / (effective * plan.s + 0.5),
                "theorem": -plan.s / (plan.s + 0.5),
                "finite_n_prediction": finite,
                "range": [int(samples[0]), int(samples[-1])],
            }
        )
    return rows


def noiseless(run: Runner) -> dict[str, Any]:
    """The exponent without noise, which is another one: about ``-2 theta s / d'`` instead of -2/3."""
    plan = run.plan(
        "T1", ["trivial"], samples=[16, 32, 64, 128, 256], s=1.0, noise=0.0, accuracy=3e-2, trials=100
    )
    study = run.curves(plan)
    risks = st.scheduled_risk(study)[0]
    kept, samples = risks[1:], plan.samples[0][1:]
    measured = st.slope(samples, kept, seed=run.seed)
    # A design with a large gap dominates a mean; the median is the steadier witness.
    median = st.bootstrap(
        lambda t: st.log_slope(samples, np.median(kept[:, t], axis=1)), plan.trials, seed=run.seed
    )[0]
    return {
        "n": plan.samples[0],
        "risk_mean": risks.mean(axis=1),
        "risk_median": np.median(risks, axis=1),
        "risk_predicted": study.risk_predicted.values[0, :, SCHEDULE],
        "value": measured.value,
        "ci": measured.ci,
        "median": {"value": median.value, "ci": median.ci},
        "expected": -2.0,
        "theorem_with_noise": -plan.s / (plan.s + 0.5),
        "range": [int(samples[0]), int(samples[-1])],
    }


def vanishing_kappa(run: Runner) -> dict[str, Any]:
    """Kappa = 0, i.e. s = d'/2: the kernel exists only truncated, and the truncation decides the result."""
    rows = []
    for cutoff in (64, 256, 1024):
        plan = run.plan(
            "T1", ["trivial"], samples=[1024], kappa=0.0, cutoff=float(cutoff**2), diagnostic=True
        )
        study = run.curves(plan)
        risk = st.scheduled_risk(study)[0, 0]
        spectrum = plan.forecasts[0].spectrum[: plan.functions(0, 0)]
        rows.append(
            {
                "frequencies": cutoff,
                "trace": float(((1 + spectrum) ** -plan.s).sum()),
                "risk_mean": float(risk.mean()),
                "risk_stderr": float(risk.std(ddof=1) / np.sqrt(len(risk))),
                "risk_predicted": float(study.risk_predicted.values[0, 0, SCHEDULE]),
                "truncated_diagnostic": True,
            }
        )
    steps = np.diff([r["trace"] for r in rows]) / np.log(4)
    return {
        "samples": 1024,
        "rows": rows,
        "trace_growth_per_log_cutoff": float(steps[-1]),
        "expected_growth": 2.0,
    }


def fixed_s(space: str, groups: Sequence[str], s: float, run: Runner) -> dict[str, Any]:
    """Groups of different quotient dimension at one s: the exponents differ through d'."""
    sizes = [2048, 4096, 8192, 16384]

    def make(noise: float, **more) -> CurvePlan:
        options = {"accuracy": 1e-2, "same_samples": True, **more}
        return run.plan(space, groups, samples=sizes, s=s, noise=noise, **options)

    plan = make(balanced_noise(lambda sigma: make(sigma, cutoff=64.0, diagnostic=True)))
    study = run.curves(plan)
    rows = []
    for h, action in enumerate(plan.actions):
        fitted = fit_slope(plan, study, h)
        rows.append(
            {
                "group": action.name,
                "quotient_dim": action.quotient_dim,
                "quotient_volume": action.quotient_volume,
                "kappa": 2 * s / action.quotient_dim - 1,
                "n": plan.samples[h],
                "risk_mean": st.scheduled_risk(study)[h].mean(axis=1),
                "slope": fitted.record()
                if fitted
                else {"value": None, "theory": plan.exponent(h), "verdict": "undecided"},
            }
        )
    return {"space": space, "s": s, "noise": plan.noise, "groups": rows}


def chain_gains(
    space: str, groups: Sequence[str], sizes: Sequence[int], run: Runner, **options
) -> dict[str, Any]:
    """Gains of a chain on a fixed target, pooled over eps."""

    def make(noise: float, **more) -> CurvePlan:
        merged = {"accuracy": 1e-2, **options, **more}
        return run.plan(space, groups, samples=list(sizes), noise=noise, **merged)

    plan = make(balanced_noise(lambda sigma: make(sigma, cutoff=64.0, diagnostic=True), load=0.012))
    study = run.curves(plan)
    pooled = [g for g in gain_records(plan, study) if g["epsilon"] is None]
    return {"space": space, "chain": list(groups), "s": plan.s, "noise": plan.noise, "gain": pooled}


def below_nyquist(run: Runner) -> dict[str, Any]:
    """Where the deterministic equivalent fails: little noise, a band-limited target, n near its dimension."""
    plan = run.plan(
        "T1",
        ["trivial"],
        samples=[16, 24, 32, 48, 64, 96, 128, 192, 256, 512],
        s=2.0,
        noise=0.05,
        band=15.0**2,
        saturated=True,
        accuracy=1e-2,
        trials=200,
    )
    study = run.curves(plan)
    mean = st.scheduled_risk(study)[0].mean(axis=1)
    error = study.risk_predicted.values[0, :, SCHEDULE] / mean - 1
    return {
        "nyquist": 31,
        "n": plan.samples[0],
        "risk_mean": mean,
        "prediction_error": error,
        "worst_below_or_near": float(error[plan.samples[0] < 8 * 31].min()),
        "worst_above": float(np.abs(error[plan.samples[0] >= 8 * 31]).max()),
    }


def all_regimes(thetas: Sequence[float], kappas: Sequence[float], run: Runner) -> dict[str, Any]:
    """Every regime, as one nested record.

    Parameters
    ----------
    thetas, kappas : sequence of float
        The exponent table.
    run : Runner

    Returns
    -------
    dict
    """
    return {
        "exponents": exponent_table(thetas, kappas, run),
        "saturation": saturation(run),
        "noiseless": noiseless(run),
        "kappa_zero": vanishing_kappa(run),
        "fixed_s": [
            fixed_s("S2", ["trivial", "SO2"], 1.5, run),
            fixed_s("T2", ["trivial", "SO2"], 1.5, run),
        ],
        "gains": [
            chain_gains("T2", ["trivial", "swap"], [2048, 4096, 8192], run),
            chain_gains("T2", ["Z1xZ1", "Z2xZ2", "Z4xZ4"], [320, 640, 1280], run),
            chain_gains("S2", ["trivial", "antipode"], [2048, 4096, 8192], run),
            chain_gains("S2", ["SO2", "SO2xflip"], [1024, 2048, 4096, 8192], run),
        ],
        "below_nyquist": below_nyquist(run),
    }
