"""Verdicts of the complexity study: what intervals say, and nothing else."""

import pytest

from analyses.studies.complexity.curve_results import SlopeResult, Verdict, gain_verdict
from analyses.studies.complexity.statistics import Estimate
from analyses.studies.complexity.verdict import verdict


@pytest.mark.parametrize(
    ("ci", "predicted", "expected"),
    [
        ([1.99, 2.01], 2.0, Verdict.HOLDS),
        ([1.985, 1.995], 2.0, Verdict.DIFFERS),  # within 3 %, and excluded all the same
        ([2.005, 2.02], 1.99, Verdict.DIFFERS),  # the prediction errs on the other side
        ([1.90, 1.95], 1.93, Verdict.UNDECIDED),  # what the exact spectra say of these eps
        ([1.90, 1.95], 1.97, Verdict.DIFFERS),  # farther off than they say
        ([1.90, 1.95], 1.85, Verdict.UNDECIDED),
        ([1.5, 2.5], 1.4, Verdict.HOLDS),  # wide, but it tells 2 from 1
        ([0.9, 2.5], 2.0, Verdict.UNDECIDED),  # covers no gain as well
        ([float("nan"), 2.5], 2.0, Verdict.UNDECIDED),
    ],
)
def test_gains(ci, predicted, expected):
    assert gain_verdict(ci, 2.0, predicted) is expected


def slope(measured, corrected=(-0.80, -0.79), finite=-0.5):
    middle, other = sum(measured) / 2, sum(corrected) / 2
    return SlopeResult(
        Estimate(middle, *measured), -2 / 3, Estimate(other, *corrected), finite, (8, 64), Estimate(0, -1, 1)
    )


@pytest.mark.parametrize(
    ("result", "expected", "words"),
    [
        (slope((-0.68, -0.66)), Verdict.HOLDS, "covers the theorem's exponent"),
        (slope((-0.69, -0.68), (-0.67, -0.66)), Verdict.HOLDS, "noise: -0.6650 [-0.6700, -0.6600]"),
        (slope((-0.69, -0.68), finite=-0.684), Verdict.UNDECIDED, "undecided"),
        (slope((-0.69, -0.68), finite=-0.6795), Verdict.DIFFERS, "differs"),  # near is not covered
    ],
)
def test_exponents(result, expected, words):
    assert result.verdict is expected
    assert words in result.judgement
    assert result.record()["verdict"] == expected.value


def document(gains, slopes=()):
    groups = [
        {
            "name": f"G{i}", "quotient_dim": 1, "prediction_error": [0.01], "above_nyquist": [True],
            "slope": one.record(),
        }
        for i, one in enumerate(slopes)
    ]  # fmt: skip
    found = [
        {
            "group": name, "epsilon": None, "ratio": sum(ci) / 2, "ci": ci, "theory": 2.0,
            "predicted": predicted,
            "verdict": gain_verdict(ci, 2.0, predicted).value,
        }
        for name, ci, predicted in gains
    ]  # fmt: skip
    return {"groups": groups, "gain": found, "weyl": [], "second_term": None}


def test_sentences_stand_where_the_intervals_put_them():
    found = verdict(
        document(
            [("Z2", [1.99, 2.01], 2.0), ("Z3", [1.985, 1.995], 2.0), ("Z4", [1.9, 1.95], 1.93)],
            [slope((-0.68, -0.66)), slope((-0.69, -0.68), finite=-0.684), slope((-0.6, -0.59), finite=-0.7)],
        )
    )
    where = {key: " ".join(found[key]) for key in ("holds", "undecided", "excluded")}
    assert "Gain of Z2" in where["holds"]
    assert "Gain of Z3" in where["excluded"]
    assert "Gain of Z4" in where["undecided"]
    assert "predict 1.930 at these eps" in where["undecided"]
    for name, key in (("G0", "holds"), ("G1", "undecided"), ("G2", "excluded")):
        assert f"Risk exponent of {name}" in where[key]


def test_tables_hold_only_if_all_their_cells_do():
    def cells(*results):
        return {"regimes": {"exponents": [one.record() for one in results]}}

    good, open_, bad = slope((-0.68, -0.66)), slope((-0.69, -0.68), finite=-0.684), slope((-0.6, -0.59))
    for results, key in (
        ((good, good), "holds"),
        ((good, open_), "undecided"),
        ((good, open_, bad), "excluded"),
    ):
        found = verdict(document([]) | cells(*results))
        assert any("Exponent table" in sentence for sentence in found[key])


@pytest.mark.parametrize(
    ("excess", "words"),
    [
        ((1.0, 2.0), "below the chi-square"),
        ((9.0, 12.0), "not told apart"),
        ((11.0, 12.0), "above the chi-square"),
    ],
)
def test_the_cost_of_delta_is_compared_by_its_interval(excess, words):
    estimate = {"value": sum(excess) / 2, "low": excess[0], "high": excess[1]}
    one = {"value": 1.4, "low": 1.3, "high": 1.5}
    row = {
        "delta": 0.1, "epsilon_range": [0.1, 0.01], "power": one, "largest_constant": one, "fall": one,
        "quantile_over_mean": one, "excess_times_n_over_sigma2": estimate, "chi_square_bound": 10.0,
    }  # fmt: skip
    found = verdict(document([]) | {"second_term": {"first_term_power": 1.5, "rows": [row]}})
    (sentence,) = [one for one in found["notes"] if "What delta costs" in one]
    assert words in sentence
    assert ("less than claimed" in sentence) == (words.startswith("below"))
