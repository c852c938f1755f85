"""What a set of learning curves says: one record per group, the gains, the test of the second term."""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from analyses.studies.complexity import statistics as st
from analyses.studies.complexity.plan import SCHEDULE, CurvePlan
from manifold.invariants.weyl import invariant_basis, weyl_counts


class Verdict(enum.Enum):
    """What an interval says about a prediction."""

    HOLDS = "holds"  # the interval covers it, and does not cover what would be so without it
    UNDECIDED = "undecided"  # the interval is too wide, or the miss is within the prediction's own error
    DIFFERS = "differs"  # the interval excludes it, and its own error does not explain that


@dataclass(frozen=True)
class SlopeResult:
    """A measured exponent beside the theorem's and the finite-n prediction.

    Attributes
    ----------
    measured : Estimate
    theory : float
        ``-theta s / (theta s + d'/2)``.
    corrected : Estimate
        Slope against ``n sigma^2 / (sigma^2 + risk)``.
    finite : float
        Slope of the deterministic equivalent over the same points: what finite n should show.
    sizes : tuple of int
        First and last n used.
    curvature : Estimate
    """

    measured: st.Estimate
    theory: float
    corrected: st.Estimate
    finite: float
    sizes: tuple[int, int]
    curvature: st.Estimate

    @property
    def verdict(self) -> Verdict:
        """What the intervals say about the theorem's exponent."""
        if self.measured.covers(self.theory) or self.corrected.covers(self.theory):
            return Verdict.HOLDS
        return Verdict.UNDECIDED if self.measured.covers(self.finite) else Verdict.DIFFERS

    @property
    def judgement(self) -> str:
        """How the intervals stand to the theorem's exponent, in words."""
        if self.measured.covers(self.theory):
            return "covers the theorem's exponent"
        if self.corrected.covers(self.theory):
            return (
                "covers the theorem's exponent once unlearned signal is counted as noise: "
                f"{self.corrected.value:.4f} [{self.corrected.low:.4f}, {self.corrected.high:.4f}]"
            )
        if self.measured.covers(self.finite):
            return (
                "undecided: the interval excludes it, and covers the slope "
                f"{self.finite:.4f} that the deterministic equivalent has over these finite n"
            )
        return "differs from the theorem's exponent and from the finite-n prediction"

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "value": self.measured.value,
            "ci": self.measured.ci,
            "theory": self.theory,
            "corrected": {"value": self.corrected.value, "ci": self.corrected.ci},
            "finite_n_prediction": self.finite,
            "range": list(self.sizes),
            "curvature": {"value": self.curvature.value, "ci": self.curvature.ci},
            "judgement": self.judgement,
            "verdict": self.verdict.value,
        }


def gain_verdict(ci: list[float], theory: float, predicted: float) -> Verdict:
    """What the interval of a gain says about the predicted |H|.

    ``|H|`` is the limit as eps -> 0; its systematic error at the eps measured is stated by the exact spectra,
    whose gain there is ``predicted``. An interval that covers |H| and also 1 tells nothing; one that misses
    |H| by no more than that error, and towards the prediction, decides nothing.

    Parameters
    ----------
    ci : list of float
        Ends of the interval.
    theory : float
        |H|.
    predicted : float
        Gain of the deterministic equivalent at the same eps.

    Returns
    -------
    Verdict
    """
    low, high = ci
    if not (math.isfinite(low) and math.isfinite(high)):
        return Verdict.UNDECIDED
    if low <= theory <= high:
        return Verdict.UNDECIDED if low <= 1.0 <= high else Verdict.HOLDS
    foreseen = math.isfinite(predicted) and low <= max(theory, predicted) and high >= min(theory, predicted)
    return Verdict.UNDECIDED if foreseen else Verdict.DIFFERS


def fit_slope(plan: CurvePlan, study: xr.Dataset, group: int) -> SlopeResult | None:
    """The exponent of one group over its asymptotic range; None with fewer than three sizes there."""
    valid = st.asymptotic_range(plan, study)[group]
    if valid.sum() < 3 or plan.noise == 0:
        return None
    samples = plan.samples[group][valid]
    risks = st.scheduled_risk(study)[group][valid]
    predicted = study.risk_predicted.values[group, valid, SCHEDULE]
    return SlopeResult(
        st.slope(samples, risks, seed=plan.seed),
        plan.exponent(group),
        st.corrected_slope(samples, risks, noise=plan.noise, seed=plan.seed),
        st.log_slope(samples, predicted),
        (int(samples[0]), int(samples[-1])),
        st.curvature(samples, risks, seed=plan.seed),
    )


def group_records(plan: CurvePlan, study: xr.Dataset, *, delta: float) -> list[dict[str, Any]]:
    """The ``groups`` of the JSON document, one record per group of the chain."""
    risks, (oracle, multiplier) = st.scheduled_risk(study), st.oracle_risk(study)
    upper = st.quantiles(study, delta)
    predicted = study.risk_predicted.values[..., SCHEDULE]
    valid, nyquist = st.asymptotic_range(plan, study), st.nyquist_sizes(plan)
    records = []
    for h, action in enumerate(plan.actions):
        mean = risks[h].mean(axis=1)
        fitted = fit_slope(plan, study, h)
        records.append(
            {
                "name": action.name,
                "order": action.order,
                "quotient_dim": action.quotient_dim,
                "quotient_volume": action.quotient_volume,
                "quotient_volume_error": action.quotient_volume_error,
                "kappa": 2 * plan.s / action.quotient_dim - 1,
                "n": plan.samples[h],
                "risk_mean": mean,
                "risk_stderr": risks[h].std(axis=1, ddof=1) / math.sqrt(risks.shape[2]),
                "risk_quantile": upper[h],
                "risk_predicted": predicted[h],
                "prediction_error": predicted[h] / mean - 1,
                "risk_oracle": oracle[h],
                "oracle_multiplier": multiplier[h],
                "functions": study.functions.values[h],
                "truncation_error": plan.truncation_error[h],
                "asymptotic": valid[h],
                "nyquist": int(nyquist[h]),
                "above_nyquist": plan.samples[h] >= nyquist[h],
                "slope": {
                    "value": None,
                    "ci": [None, None],
                    "theory": plan.exponent(h),
                    "range": [None, None],
                    "judgement": "fewer than three sample sizes in the asymptotic range; extend --n-grid",
                    "verdict": Verdict.UNDECIDED.value,
                }
                if fitted is None
                else fitted.record(),
            }
        )
    return records


def gain_records(plan: CurvePlan, study: xr.Dataset) -> list[dict[str, Any]]:
    """The ``gain`` list: n_1(eps) / n_H(eps) at several eps, and pooled over them (epsilon null)."""
    risks = st.scheduled_risk(study)
    valid = st.asymptotic_range(plan, study)
    if valid.sum(axis=1).min() < 2:
        valid = st.comparable_range(plan, study)
    levels = st.common_levels(risks.mean(axis=2), valid)
    if len(levels) == 0 or len(plan.actions) < 2:
        return []
    table = st.gains(plan.samples, risks, levels, seed=plan.seed)
    predicted = study.risk_predicted.values[..., SCHEDULE]
    sizes = np.array([st.size_at(n, r, levels) for n, r in zip(plan.samples, predicted, strict=True)])
    expected = sizes[0] / sizes
    expected = np.concatenate([expected, np.exp(np.log(expected).mean(axis=1, keepdims=True))], axis=1)
    records = []
    for h, action in enumerate(plan.actions[1:], start=1):
        same_dim = action.quotient_dim == plan.actions[0].quotient_dim
        theory = plan.actions[0].quotient_volume / action.quotient_volume if same_dim else None
        for level, estimate, finite in zip([*levels, None], table[h], expected[h], strict=True):
            records.append(
                {
                    "group": action.name,
                    "epsilon": level,
                    "ratio": estimate.value,
                    "ci": estimate.ci,
                    "theory": theory,
                    "predicted": finite,
                    "verdict": None if theory is None else gain_verdict(estimate.ci, theory, finite).value,
                }
            )
    return records


def second_term(plan: CurvePlan, study: xr.Dataset, deltas: list[float]) -> dict[str, Any] | None:
    """Test of ``n >= c log(1/delta) / eps^2`` on the last group; None without an asymptotic range.

    If the stated second term were real, ``n_delta(eps) eps^2 / log(1/delta)`` would be bounded below
    by some c > 0 as eps -> 0. Its slope in log eps says whether it falls to 0 instead.
    """
    h = len(plan.actions) - 1
    valid = st.asymptotic_range(plan, study)[h]
    if valid.sum() < 3:
        return None
    samples = plan.samples[h][valid]
    noisy = study.noisy_risk.values[h][valid]
    means = st.scheduled_risk(study)[h][valid].mean(axis=1)
    dof = float(study.degrees_of_freedom.values[h][valid][-1])
    rows = []
    for delta in deltas:
        if delta * noisy[0].size < 10:
            continue

        def statistic(t: np.ndarray, delta: float = delta) -> np.ndarray:
            upper = np.quantile(noisy[:, t].reshape(len(samples), -1), 1 - delta, axis=1)
            # n as a power of eps over the range: log n = a - b log eps.
            power = -np.polyfit(np.log(upper), np.log(samples), 1)[0]
            bound = samples[-1] * upper[-1] ** 2 / math.log(1 / delta)
            first = samples[0] * upper[0] ** 2 / math.log(1 / delta)
            excess = (upper[-1] - means[-1]) * samples[-1] / (plan.noise**2 or 1.0)
            return np.array([power, bound, bound / first, upper[-1] / means[-1], excess])

        power, bound, fall, ratio, excess = st.bootstrap(
            statistic, noisy.shape[1], seed=plan.seed, resamples=300
        )
        log = math.log(1 / delta)
        rows.append(
            {
                "delta": delta,
                "epsilon_range": [float(means[0]), float(means[-1])],
                "power": asdict(power),
                "largest_constant": asdict(bound),
                "fall": asdict(fall),
                "quantile_over_mean": asdict(ratio),
                "excess_times_n_over_sigma2": asdict(excess),
                "chi_square_bound": 2 * math.sqrt(dof * log) + 2 * log,
            }
        )
    if not rows:
        return None
    first = -1 / plan.exponent(h)
    return {
        "group": plan.actions[h].name,
        "first_term_power": first,
        "second_term_power": 2.0,
        "second_term_dominates_as_eps_to_0": bool(first < 2),
        "rows": rows,
    }


def weyl_records(plan: CurvePlan) -> list[dict[str, Any]]:
    """Weyl counts of every group of the chain at a few eigenvalues within its kernel's truncation."""
    records = []
    for forecast, cutoffs in zip(plan.forecasts, plan.cutoffs, strict=True):
        cutoff = float(min(cutoffs.max(), forecast.finest))
        basis = invariant_basis(forecast.action, cutoff=cutoff)
        for count in weyl_counts(basis, np.geomspace(max(cutoff / 64, 1.0), cutoff, 4)):
            records.append({**asdict(count), "remainder": count.remainder, "within_bound": count.within})
    return records
