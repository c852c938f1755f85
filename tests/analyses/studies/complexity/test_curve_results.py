"""Records of learning curves that are power laws by construction: every number is known."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from analyses.studies.complexity import statistics as st
from analyses.studies.complexity.curve_results import (
    SlopeResult,
    Verdict,
    fit_slope,
    gain_records,
    gain_verdict,
    group_records,
    second_term,
    weyl_records,
)
from analyses.studies.complexity.plan import MULTIPLIERS, SCHEDULE, CurvePlan, make_plan
from analyses.studies.complexity.statistics import Estimate
from manifold.spaces.homogeneous import SpectralSpace

SIZES, TRIALS, DRAWS = 5, 4, 100
POWER = 2 / 3
SPREAD = np.array([0.8, 0.9, 1.1, 1.2])  # of the trials around the mean


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Power laws with a spread that is the same at every n have the same statistics in every resample."""
    monkeypatch.setitem(st.bootstrap.__kwdefaults__, "resamples", 20)


def plan_of(orders, *, dims=None, noise=1.0, samples=None, nyquist=300.0, s=1.0):
    """A plan of power laws; ``risk = 5 (order n)^(-2/3)``, so that the gain of a group is its order."""
    dims = dims or [1] * len(orders)
    actions = tuple(
        SimpleNamespace(
            name=f"Z{m}", order=m, quotient_dim=d, quotient_volume=6.0 / m, quotient_volume_error=0.1 * m
        )
        for m, d in zip(orders, dims, strict=True)
    )  # fmt: skip
    shape = (len(orders), SIZES)
    if samples is None:
        samples = np.stack([2048 // m * 2 ** np.arange(SIZES) for m in orders])
    target = SimpleNamespace(first=1.0, cutoff=1e6, band=None, nyquist=lambda: nyquist)
    forecasts = tuple(SimpleNamespace(count=lambda edge, m=m: edge // m) for m in orders)
    return CurvePlan(
        actions, s, 1.0, noise, np.asarray(samples), target, 1.0, TRIALS, DRAWS, 3, forecasts,
        np.full(shape, 50.0), np.arange(np.prod(shape)).reshape(shape) * 1e-4,
    )  # fmt: skip


def study_of(plan, *, power=POWER, forecast=1.03, load=0.001, resolved=100.0):
    """Bias a quarter of the risk, variance the rest; other multipliers are worse but for one."""
    orders = np.array([action.order for action in plan.actions])
    mean = 5.0 * (orders[:, None] * plan.samples) ** -power
    table = mean[:, :, None, None] * SPREAD[:, None] * np.ones(len(MULTIPLIERS))
    table[..., np.arange(len(MULTIPLIERS)) != SCHEDULE] *= 2
    table[..., SCHEDULE + 2] *= 0.45
    noisy = np.linspace(0.5, 1.5, DRAWS) * mean[:, :, None, None] * SPREAD[:, None]
    shape = plan.samples.shape
    dims = ("group", "size", "trial", "multiplier")
    predicted = forecast * mean[:, :, None] * np.where(np.arange(len(MULTIPLIERS)) == SCHEDULE, 1.0, 7.0)
    return xr.Dataset(
        {
            "squared_bias": (dims, table / 4), "noise_variance": (dims, 3 * table / 4),
            "noisy_risk": (("group", "size", "trial", "draw"), noisy),
            "risk_predicted": (("group", "size", "multiplier"), predicted),
            "functions": (("group", "size"), np.arange(np.prod(shape)).reshape(shape)),
            "resolved": (("group", "size"), np.broadcast_to(resolved, shape).astype(float)),
            "degrees_of_freedom": (("group", "size"), np.broadcast_to(load, shape) * plan.samples),
            "samples": (("group", "size"), plan.samples),
        },
        coords={"multiplier": MULTIPLIERS},
    )  # fmt: skip


def risk(order, samples, power=POWER):
    return 5.0 * (order * np.asarray(samples, float)) ** -power


def test_records_of_a_group_are_its_curve():
    plan = plan_of([1, 4])
    study = study_of(plan)
    for h, record in enumerate(group_records(plan, study, delta=0.25)):
        order, samples = plan.actions[h].order, plan.samples[h]
        mean = risk(order, samples)
        assert (record["name"], record["order"], record["quotient_dim"]) == (f"Z{order}", order, 1)
        assert (record["quotient_volume"], record["quotient_volume_error"]) == (6 / order, 0.1 * order)
        assert record["kappa"] == 1.0
        assert record["n"].tolist() == samples.tolist()
        assert record["risk_mean"] == pytest.approx(mean)
        scatter = math.sqrt(sum((SPREAD - 1) ** 2) / 3 / 4)
        assert record["risk_stderr"] == pytest.approx(mean * scatter)
        draws = np.outer(SPREAD, np.linspace(0.5, 1.5, DRAWS)).ravel()
        assert record["risk_quantile"] == pytest.approx(mean * np.quantile(draws, 0.75))
        assert record["risk_predicted"] == pytest.approx(1.03 * mean)
        assert record["prediction_error"] == pytest.approx([0.03] * SIZES)
        assert record["risk_oracle"] == pytest.approx(0.9 * mean)
        assert record["oracle_multiplier"] == pytest.approx([MULTIPLIERS[SCHEDULE + 2]] * SIZES)
        assert record["functions"].tolist() == study.functions.values[h].tolist()
        assert record["truncation_error"].tolist() == plan.truncation_error[h].tolist()
        assert record["asymptotic"].all()
        assert record["nyquist"] == 300 // order
        assert record["above_nyquist"].tolist() == (samples >= 300 // order).tolist()
        slope = record["slope"]
        assert slope["value"] == pytest.approx(-POWER)
        assert slope["ci"] == pytest.approx([-POWER, -POWER], abs=1e-9)
        assert slope["theory"] == pytest.approx(-2 / 3)
        assert slope["finite_n_prediction"] == pytest.approx(-POWER)
        assert slope["range"] == [samples[0], samples[-1]]
        assert slope["curvature"]["value"] == pytest.approx(0, abs=1e-9)
        x = np.log(samples * 1.0 / (1.0 + mean))
        assert slope["corrected"]["value"] == pytest.approx(np.polyfit(x, np.log(mean), 1)[0])


def test_kappa_is_that_of_the_sobolev_exponent():
    plan = plan_of([1], dims=[2], s=3.0)
    assert group_records(plan, study_of(plan), delta=0.1)[0]["kappa"] == 2.0


def test_sizes_at_the_nyquist_number_are_above_it():
    plan = plan_of([1], nyquist=4096)
    (record,) = group_records(plan, study_of(plan), delta=0.1)
    assert record["above_nyquist"].tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(("valid", "fitted"), [(5, True), (3, True), (2, False), (0, False)])
def test_an_exponent_needs_three_sizes_in_the_asymptotic_range_and_noise(valid, fitted):
    plan = plan_of([2])
    load = np.where(np.arange(SIZES) < SIZES - valid, 0.02, 0.001)
    study = study_of(plan, load=load, power=0.5)
    found = fit_slope(plan, study, 0)
    (record,) = group_records(plan, study, delta=0.1)
    assert (found is not None) == fitted
    assert record["asymptotic"].sum() == valid
    if fitted:
        assert found.sizes == (plan.samples[0, SIZES - valid], plan.samples[0, -1])
        assert found.measured.value == pytest.approx(-0.5)
        assert record["slope"] == found.record()
    else:
        assert record["slope"]["value"] is None
        assert record["slope"]["ci"] == record["slope"]["range"] == [None, None]
        assert record["slope"]["theory"] == pytest.approx(-2 / 3)
        assert record["slope"]["verdict"] == "undecided"
        assert "fewer than three" in record["slope"]["judgement"]
    assert fit_slope(plan_of([2], noise=0.0), study, 0) is None


def test_the_interval_of_a_slope_decides_in_turn():
    def result(measured, corrected, finite):
        return SlopeResult(
            Estimate(-0.7, *measured),
            -0.65,
            Estimate(-0.6, *corrected),
            finite,
            (8, 64),
            Estimate(0.1, -1, 1),
        )

    away, around, near = (-0.75, -0.7), (-0.7, -0.6), -0.72
    for found, expected, words in (
        (result(around, away, 0.0), Verdict.HOLDS, "covers the theorem's exponent"),
        (result(away, around, near), Verdict.HOLDS, "counted as noise: -0.6000 [-0.7000, -0.6000]"),
        (result(away, away, near), Verdict.UNDECIDED, "covers the slope -0.7200"),
        (result(away, away, -0.5), Verdict.DIFFERS, "differs"),
    ):
        assert found.verdict is expected
        assert words in found.judgement
        assert found.record() == {
            "value": -0.7, "ci": found.measured.ci, "theory": -0.65,
            "corrected": {"value": -0.6, "ci": found.corrected.ci}, "finite_n_prediction": found.finite,
            "range": [8, 64], "curvature": {"value": 0.1, "ci": [-1, 1]}, "judgement": found.judgement,
            "verdict": expected.value,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("ci", "theory", "predicted", "expected"),
    [
        ([2.0, 2.1], 2.0, 2.05, Verdict.HOLDS), ([1.9, 2.0], 2.0, 1.95, Verdict.HOLDS),  # an end covers
        ([1.0, 2.5], 2.0, 1.5, Verdict.UNDECIDED), ([0.5, 1.0], 1.0, 0.8, Verdict.UNDECIDED),
        ([1.7, 1.8], 2.0, 1.8, Verdict.UNDECIDED), ([1.7, 1.8], 2.0, 1.81, Verdict.DIFFERS),
        ([2.2, 2.3], 2.0, 2.2, Verdict.UNDECIDED), ([2.2, 2.3], 2.0, 2.19, Verdict.DIFFERS),
        ([1.7, 1.8], 2.0, math.nan, Verdict.DIFFERS), ([2.0, math.inf], 2.0, 2.0, Verdict.UNDECIDED),
        ([-math.inf, 3.0], 2.0, 2.0, Verdict.UNDECIDED), ([math.nan, math.nan], 2.0, 2.0, Verdict.UNDECIDED),
    ],
)  # fmt: skip
def test_ends_of_an_interval_belong_to_it(ci, theory, predicted, expected):
    assert gain_verdict(ci, theory, predicted) is expected


@pytest.mark.parametrize("dims", [[1, 1, 2], [2, 1, 2]])
def test_gains_are_ratios_of_sizes_at_equal_risk(dims):
    plan = plan_of([1, 2, 4], dims=dims)
    study = study_of(plan)
    found = gain_records(plan, study)
    levels = [one["epsilon"] for one in found if one["group"] == "Z2"]
    assert len(found) == 2 * 7
    assert levels[-1] is None
    top, bottom = 0.97 * risk(1, 2048), 1.03 * risk(1, 32768)
    assert levels[:-1] == pytest.approx(np.geomspace(top, bottom, 6))
    for one in found:
        order = int(one["group"][1:])
        assert one["ratio"] == pytest.approx(order, rel=1e-9)
        assert one["ci"] == pytest.approx([order, order], rel=1e-9)
        assert one["predicted"] == pytest.approx(order, rel=1e-9)
        if dims[order // 2] == dims[0]:
            assert one["theory"] == order
            assert one["verdict"] == gain_verdict(one["ci"], order, one["predicted"]).value
        else:  # another dimension: no fixed gain
            assert (one["theory"], one["verdict"]) == (None, None)


def test_predicted_gains_are_those_of_the_predicted_curves():
    """Forecasts a tenth larger for the smaller group need 1.1^(3/2) times the samples at every level."""
    plan = plan_of([1, 2])
    study = study_of(plan, forecast=1.0)
    study["risk_predicted"] = study.risk_predicted * xr.DataArray([1.02, 1.0], dims="group")
    for one in gain_records(plan, study):
        assert one["predicted"] == pytest.approx(2 * 1.02**1.5, rel=1e-9)
        assert one["ratio"] == pytest.approx(2.0, rel=1e-9)


@pytest.mark.parametrize(
    ("loads", "known"),
    [([0.001, 0.001], True), ([0.02, 0.001], True), ([0.02, 0.02], True), ([0.001, 0.1], False)],
)
def test_gains_are_compared_in_the_wider_range_where_the_asymptotic_one_is_too_short(loads, known):
    plan = plan_of([1, 2])
    found = gain_records(plan, study_of(plan, load=np.array(loads)[:, None]))
    assert bool(found) == known


def test_two_asymptotic_sizes_are_enough_for_gains():
    plan = plan_of([1, 2])
    short = np.where(np.arange(SIZES) < SIZES - 2, 0.02, 0.001)
    inside = gain_records(plan, study_of(plan, load=short))[0]["epsilon"]
    assert inside == pytest.approx(0.97 * risk(1, plan.samples[0, 3]))
    single = np.where(np.arange(SIZES) < SIZES - 1, 0.02, 0.001)
    inside = gain_records(plan, study_of(plan, load=single))[0]["epsilon"]
    assert inside == pytest.approx(0.97 * risk(1, plan.samples[0, 0]))
    assert gain_records(plan_of([1]), study_of(plan_of([1]))) == []


def test_the_second_term_is_measured_on_the_last_group():
    """Noisy risks are the mean times one spread at every n: every statistic is a closed form."""
    plan = plan_of([1, 2], noise=2.0)
    study = study_of(plan)
    deltas = [0.2, 0.025, 0.02]  # 400 values: 0.02 of them are 8, too few
    found = second_term(plan, study, deltas)
    assert (found["group"], found["second_term_power"]) == ("Z2", 2.0)
    assert found["first_term_power"] == pytest.approx(1.5)
    assert found["second_term_dominates_as_eps_to_0"] is True
    assert [row["delta"] for row in found["rows"]] == deltas[:2]
    samples = plan.samples[1].astype(float)
    mean = risk(2, samples)
    draws = np.outer(SPREAD, np.linspace(0.5, 1.5, DRAWS)).ravel()
    for row in found["rows"]:
        log, ratio = math.log(1 / row["delta"]), np.quantile(draws, 1 - row["delta"])
        assert row["epsilon_range"] == pytest.approx([mean[0], mean[-1]])
        assert row["power"]["value"] == pytest.approx(1.5)
        assert row["largest_constant"]["value"] == pytest.approx(samples[-1] * (ratio * mean[-1]) ** 2 / log)
        assert row["fall"]["value"] == pytest.approx(16 * 16 ** (-4 / 3))
        assert row["quantile_over_mean"]["value"] == pytest.approx(ratio)
        excess = (ratio - 1) * mean[-1] * samples[-1] / 4
        assert row["excess_times_n_over_sigma2"]["value"] == pytest.approx(excess)
        dof = 0.001 * samples[-1]
        assert row["chi_square_bound"] == pytest.approx(2 * math.sqrt(dof * log) + 2 * log)
        for name in ("power", "largest_constant", "fall", "quantile_over_mean"):
            assert row[name]["low"] <= row[name]["value"] * (1 + 1e-12)


def test_the_second_term_in_bounds_of_its_test():
    plan = plan_of([1])
    assert second_term(plan, study_of(plan), [0.02]) is None  # ten values at least
    assert second_term(plan, study_of(plan), [0.025]) is not None
    for valid, known in ((3, True), (2, False)):
        load = np.where(np.arange(SIZES) < SIZES - valid, 0.02, 0.001)
        found = second_term(plan, study_of(plan, load=load), [0.1])
        assert (found is not None) == known
        if known:
            start = risk(1, plan.samples[0, 2])
            assert found["rows"][0]["epsilon_range"][0] == pytest.approx(start)
    silent = plan_of([1], noise=0.0)  # sigma = 1 stands in
    (row,) = second_term(silent, study_of(silent), [0.1])["rows"]
    (same,) = second_term(plan, study_of(plan), [0.1])["rows"]
    assert row["excess_times_n_over_sigma2"] == same["excess_times_n_over_sigma2"]
    equal = plan_of([1], dims=[2])  # both powers are 2: nothing dominates
    found = second_term(equal, study_of(equal), [0.1])
    assert found["first_term_power"] == 2.0
    assert found["second_term_dominates_as_eps_to_0"] is False


@pytest.mark.parametrize("cutoff", [None, 36.0])
def test_weyl_counts_of_the_circle(cutoff):
    """Functions with frequency up to f: 1 + 2 floor(f / m) beside the main term 2 f / m."""
    plan = make_plan(SpectralSpace.parse("T1"), ["trivial", "Z3"], samples=[64, 128], trials=2, draws=2)
    if cutoff is not None:
        plan = replace(plan, cutoffs=np.full((2, 2), cutoff))
    found = weyl_records(plan)
    assert len(found) == 8
    for place, one in enumerate(found):
        order, cutoff = (
            (1, 3)[place // 4],
            min(plan.cutoffs[place // 4].max(), plan.forecasts[place // 4].finest),
        )
        values = np.geomspace(max(cutoff / 64, 1.0), cutoff, 4)
        assert one["eigenvalue"] == pytest.approx(values[place % 4])
        frequency = math.sqrt(one["eigenvalue"]) * (1 + 1e-12)
        assert one["count"] == 1 + 2 * math.floor(frequency / order)
        assert one["remainder"] == pytest.approx(one["count"] - 2 * frequency / order)
        assert one["within_bound"] is True
