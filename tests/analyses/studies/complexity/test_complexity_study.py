"""The study: planning, resuming, statistics on known curves, verdict, command line."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from analyses.commands.options.application import build_app
from analyses.commands.studies.complexity import load_matrices
from analyses.common.study_files import read_study
from analyses.studies.complexity import statistics as st
from analyses.studies.complexity.curve_results import fit_slope, gain_records, second_term
from analyses.studies.complexity.curves import run_curves
from analyses.studies.complexity.plan import SCHEDULE, make_plan
from analyses.studies.complexity.study import ComplexityOptions, plan_study, run_study
from manifold.errors import InputError
from manifold.spaces.homogeneous import SpectralSpace

T1 = SpectralSpace.parse("T1")


@pytest.fixture(scope="module")
def circle():
    plan = make_plan(
        T1, ["Z1", "Z2", "Z4", "Z8"], samples=[512, 1024, 2048, 4096], trials=6, draws=40, noise=2.5
    )
    return plan, run_curves(plan)


def test_chain_on_the_circle_gives_the_orders(circle):
    pooled = [g for g in gain_records(*circle) if g["epsilon"] is None]
    assert [g["theory"] for g in pooled] == [2.0, 4.0, 8.0]
    for gain in pooled:
        assert gain["ratio"] == pytest.approx(gain["theory"], rel=0.05)
        assert gain["ci"][0] < gain["ratio"] < gain["ci"][1]


def test_risk_follows_the_prediction_and_the_theorem(circle):
    plan, study = circle
    mean = st.scheduled_risk(study).mean(axis=2)
    np.testing.assert_allclose(study.risk_predicted.values[..., SCHEDULE], mean, rtol=0.06)
    for h in range(4):
        found = fit_slope(plan, study, h)
        assert found.theory == pytest.approx(-2 / 3)
        assert found.measured.value == pytest.approx(found.finite, abs=0.03)


def test_mean_over_sampled_noise_is_the_exact_mean(circle):
    _, study = circle
    sampled = study.noisy_risk.values.mean(axis=(2, 3))
    np.testing.assert_allclose(sampled, st.scheduled_risk(study).mean(axis=2), rtol=0.1)


def test_results_do_not_depend_on_workers_and_resume_from_parts(tmp_path, circle):
    plan = make_plan(T1, ["Z1", "Z4"], samples=[16, 32], trials=4, draws=3, noise=2.0)
    whole = run_curves(plan)
    calls = []
    again = run_curves(plan, workers=2, parts=tmp_path, progress=lambda *a: calls.append(a))
    np.testing.assert_array_equal(whole.noisy_risk, again.noisy_risk)
    stored = sorted((tmp_path / plan.digest()).iterdir())
    assert len(stored) == len(calls) == 4
    stored[0].unlink()
    calls.clear()
    resumed = run_curves(plan, parts=tmp_path, progress=lambda *a: calls.append(a))
    np.testing.assert_array_equal(whole.squared_bias, resumed.squared_bias)
    assert len(calls) == 1
    assert plan.digest() != replace(plan, seed=1).digest()


def test_statistics_recover_known_powers():
    n = np.array([100, 200, 400, 800])
    rng = np.random.default_rng(0)
    risks = 3.0 * n[:, None] ** -0.7 * (1 + 0.01 * rng.standard_normal((4, 50)))
    found = st.slope(n, risks, seed=0)
    assert found.covers(-0.7)
    assert found.high - found.low < 0.01
    assert st.curvature(n, risks, seed=0).covers(0.0)
    levels = 3.0 * np.array([150.0, 600.0]) ** -0.7
    np.testing.assert_allclose(st.size_at(n, 3.0 * n**-0.7, levels), [150, 600], rtol=1e-9)
    assert np.isnan(st.size_at(n, 3.0 * n**-0.7, np.array([1e-9]))).all()
    table = st.gains(np.stack([n, n // 4]), np.stack([risks, risks]), levels, seed=0)
    assert table[1][-1].value == pytest.approx(4.0, rel=1e-9)
    # A curve that does not fall is not read backwards.
    assert np.isfinite(st.size_at(n, np.array([1.0, 0.5, 0.6, 0.1]), np.array([0.55]))).all()


def test_bootstrap_interval_has_about_its_level():
    hits = 0
    for seed in range(200):
        data = np.random.default_rng(seed).standard_normal(60)
        found = st.bootstrap(lambda t, data=data: data[t].mean(), 60, seed=seed, resamples=300)[0]
        hits += found.covers(0.0)
    assert 178 <= hits <= 199


def test_corrected_slope_removes_the_effect_of_unlearned_signal():
    n = np.geomspace(100, 3000, 6)
    risk = np.ones(6)
    for _ in range(200):  # risk = ((1 + risk) / n)^(2/3), solved by iteration
        risk = ((1 + risk) / n) ** (2 / 3)
    risks = np.repeat(risk[:, None], 5, axis=1)
    assert abs(st.log_slope(n, risk) + 2 / 3) > 5e-3
    assert st.corrected_slope(n, risks, noise=1.0, seed=0).value == pytest.approx(-2 / 3, abs=1e-9)


def test_second_term_is_called_slack_only_where_it_is(circle):
    test = second_term(*circle, [0.1])
    row = test["rows"][0]
    assert test["first_term_power"] == pytest.approx(1.5)
    assert row["power"]["high"] < 2.0
    assert row["quantile_over_mean"]["value"] > 1.0
    # With theta (kappa + 1) = 1 both powers are 2 and nothing can be called slack.
    plan = make_plan(T1, ["trivial"], samples=[512, 1024, 2048], theta=0.5, noise=4.0, trials=4, draws=60)
    assert second_term(plan, run_curves(plan), [0.1])["first_term_power"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thetas": (1.5,)}, "theta"),
        ({"thetas": (0.0,)}, "theta"),
        ({"s": 0.5}, "trace of the kernel diverges"),
        ({"s": 1.0, "kappas": (1.0,)}, "give one of them"),
        ({"sizes": (64, 32)}, "increasing"),
        ({"sizes": (0, 4)}, "n-grid"),
        ({"trials": 1}, "trials"),
        ({"noise": -1.0}, "noise"),
        ({"cutoff": 100.0, "sizes": (1024,)}, "a cutoff of .* is enough"),
        ({"max_functions": 50}, "--max-functions"),
        ({"space": "S2", "symmetry": "SO3"}, "d' = 0"),
        ({"space": "X3"}, "space"),
        ({"symmetry": "rubbish"}, "expected one of"),
        ({"chain": ("Z3", "Z8")}, "not a subgroup"),
        ({"space": "T2", "chain": ("signs", "swap")}, "not a subgroup"),
        ({"band": 1e-3}, "target"),
    ],
)
def test_bad_options_name_the_fix(options, message):
    with pytest.raises(InputError, match=message):
        plan_study(ComplexityOptions(**options))


def test_s_below_the_limit_is_allowed_as_a_marked_diagnostic():
    options = ComplexityOptions(
        chain=("trivial",), s=0.5, sizes=(64,), diagnostic=True, cutoff=400.0, trials=2, draws=12
    )
    _, document = run_study(plan_study(options))
    assert document["truncated_diagnostic"] is True


def test_enough_cutoff_in_the_message_is_enough():
    with pytest.raises(InputError) as caught:
        make_plan(T1, ["Z4"], samples=[256], cutoff=1000.0, accuracy=1e-3)
    enough = float(str(caught.value).split("a cutoff of ")[1].split(" is")[0])
    assert (
        make_plan(T1, ["Z4"], samples=[256], cutoff=1.01 * enough, accuracy=1e-3).truncation_error.max()
        <= 1e-3
    )


def test_command_writes_json_study_report_and_nothing_else(tmp_path):
    out, page = tmp_path / "c.nc", tmp_path / "c.html"
    arguments = [
        *(
            "complexity",
            "--symmetry",
            "Z4",
            "--n-grid",
            "512,1024,2048,4096",
            "--noise",
            "2",
            "--trials",
            "3",
        ),
        *("--draws", "40", "--json", "--out", str(out), "--report", str(page)),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "analyses.cli", *arguments], capture_output=True, text=True, check=True
    )
    document = json.loads(done.stdout)
    assert [g["name"] for g in document["groups"]] == ["Z1", "Z2", "Z4"]
    assert {"space", "dim", "groups", "gain", "weyl", "verdict", "schema_version"} <= set(document)
    group = document["groups"][0]
    keys = {"name", "order", "quotient_dim", "quotient_volume", "n", "risk_mean", "risk_stderr"}
    assert keys | {"risk_quantile", "risk_predicted", "slope"} <= set(group)
    assert {"value", "ci", "theory", "range"} <= set(group["slope"])
    assert {"group", "epsilon", "ratio", "ci", "theory"} == set(document["gain"][0]) - {
        "predicted",
        "verdict",
    }
    study = read_study(out)
    assert study.sizes["group"] == 3
    assert all({"units", "definition"} <= set(v.attrs) for v in study.data_vars.values())
    text = page.read_text()
    assert "What holds" in text
    assert "data:image/svg+xml" in text
    assert not list(tmp_path.glob("*.parts"))


def test_own_groups_from_files(tmp_path):
    np.save(tmp_path / "cyclic.npy", np.roll(np.eye(3), 1, axis=0)[None])
    found = plan_study(ComplexityOptions(space="S2", matrices=load_matrices(tmp_path / "cyclic.npy")))
    assert [a.order for a in found.curves.actions] == [1, 3]
    shift = np.array([[np.pi, 0.0]])
    np.savez(tmp_path / "glide.npz", matrices=np.array([[[0.0, 1.0], [1.0, 0.0]]]), shifts=shift)
    found = plan_study(ComplexityOptions(space="T2", matrices=load_matrices(tmp_path / "glide.npz")))
    assert [a.order for a in found.curves.actions] == [1, 4]
    (tmp_path / "bad.npy").write_text("no array")
    with pytest.raises(InputError, match=r"bad\.npy"):
        load_matrices(tmp_path / "bad.npy")


@pytest.mark.parametrize("option", ["--n-grid", "--kappa", "--theta"])
@pytest.mark.parametrize("text", ["", " , "])
def test_empty_lists_are_refused(option, text):
    result = CliRunner().invoke(build_app(), ["complexity", "--dry-run", option, text])
    assert isinstance(result.exception, InputError)
    assert option in str(result.exception)


def test_dry_run_and_errors_of_the_command(tmp_path):
    runner = CliRunner()
    dry = runner.invoke(build_app(), ["complexity", "--dry-run", "--n-grid", "64,128"])
    assert dry.exit_code == 0
    assert dry.stdout == ""
    done = subprocess.run(
        [sys.executable, "-m", "analyses.cli", "complexity", "--theta", "2"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "theta" in done.stderr
