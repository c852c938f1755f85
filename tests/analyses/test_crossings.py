"""`rhoscope crossings`: contract, cache, bad input, brackets that shrink."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import analyses.spectral_steps as spectral_steps
from analyses.cli import build_app
from analyses.flow_time import advance, flow_times
from analyses.runs import Run
from analyses.sections import scientific
from analyses.studies import read_study
from analyses.subjects import subject_of
from analyses.training import TrainingPlan, train
from manifold.errors import RhoscopeError
from spectra.variation import SecondVariation


def call(*arguments):
    result = CliRunner().invoke(build_app(), [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def flow_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "flow3"
    train(TrainingPlan("Z3", width=40, optimizer="flow", steps=400), path, save_every=20)
    return path


@pytest.fixture(scope="module")
def document(flow_run):
    out = flow_run.parent / "study.nc"
    result = call(
        "crossings", flow_run, "--check-modes", 4, "--json", "--quiet", "--out", out,
        "--report", flow_run.parent / "page.html", "--figure-format", "png",
    )  # fmt: skip
    return json.loads(result.stdout)


def test_document_of_a_flow_run(document, flow_run):
    assert document["steps"] == list(range(0, 401, 20))
    assert document["flow_time"] == pytest.approx(0.05 * np.arange(0, 401, 20))
    assert set(document["rank"]) == {18}
    assert document["undetermined"] == [0] * 21
    assert all(document["count_certified"])
    assert max(document["negative"]) > 0 == document["negative"][-1]
    assert document["positive"][-1] == 18
    for row in document["net_changes"]:
        assert row["down"] - row["up"] == row["change_of_negative"]
    for event in document["crossings"]:
        assert event["t_low"] < event["t_high"]
    branch = document["branches"][0]
    assert len(branch["eigenvalues"]) == len(branch["errors"]) == 21
    assert document["monotone"]["condition_D3L"] == [[0, 0]] * 21
    assert 0 < document["monotone"]["fraction_nonincreasing_hessian"] < 1
    causes = document["monotone"]["causes"]
    assert causes["rises"] + causes["falls"] <= document["monotone"]["moves"]
    assert 0 <= causes["rises_by_interaction"] <= 1
    assert document["linearisation"]["checked_modes"] == 4
    assert document["linearisation"]["max_relative_rate_error"] < 0.01


def test_dataset_and_page(document, flow_run):
    study = read_study(flow_run.parent / "study.nc")
    assert study.branch_eigenvalue.shape == (21, len(document["branches"]))
    assert all({"units", "definition"} <= set(v.attrs) for v in study.data_vars.values())
    assert json.loads(study.attrs["summary"])["crossings"] == document["crossings"]
    page = (flow_run.parent / "page.html").read_text()
    assert "Eigenvalue crossings" in page
    error = document["linearisation"]["max_relative_rate_error"]
    assert f"relative error of {scientific(error, 2)}" in page
    assert page.count("data:image/png") == 2


def test_finished_steps_are_not_computed_again(flow_run, document, monkeypatch):
    computed = []
    original = spectral_steps.compute_record

    def counted(subject, question, *, step, **options):
        computed.append(step)
        return original(subject, question, step=step, **options)

    monkeypatch.setattr(spectral_steps, "compute_record", counted)
    files = sorted((flow_run / "crossings_cache").iterdir())
    assert len(files) == 21
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:1000])  # cut off by a full disk
    again = json.loads(call("crossings", flow_run, "--json", "--quiet").stdout)
    assert len(computed) == 2
    assert again["crossings"] == document["crossings"]


def test_brackets_shrink_with_refine_time(flow_run, document):
    finer = json.loads(call("crossings", flow_run, "--refine-time", "--json", "--quiet").stdout)
    assert len(finer["steps"]) > 21
    assert finer["negative"][0] == document["negative"][0]

    def width(found):
        return np.mean([e["t_high"] - e["t_low"] for e in found["crossings"] if e["kind"] == "crossing"])

    assert width(finer) < 0.9 * width(document)


def test_training_again_reaches_the_saved_checkpoints(flow_run, tmp_path):
    train(TrainingPlan("Z3", width=10, optimizer="sgd", steps=40, weight_decay=1e-3), tmp_path / "sgd",
          save_every=20)  # fmt: skip
    for path, tolerance in ((flow_run, 1e-5), (tmp_path / "sgd", 1e-12)):
        run = Run.open(path)
        there = [subject_of(run.read(step), run.layout, run) for step in (20, 40)]
        reached = advance(run, there[0], 20, 40)
        assert torch.allclose(reached.measure.points, there[1].measure.points, atol=tolerance)
        assert not torch.allclose(there[0].measure.points, there[1].measure.points, atol=1e-3)


def test_flow_time_of_runs(tmp_path):
    plan = TrainingPlan("Z3", width=10, optimizer="sgd", steps=40)
    net = plan.initial()
    run = Run(tmp_path, plan.config())
    expected = plan.lr * net.tau**2 / (10 * 3) * np.array([0, 20, 40])
    assert flow_times(run, [0, 20, 40]) == pytest.approx(expected)
    assert flow_times(Run(tmp_path, TrainingPlan("Z3").config()), [0, 20]) is None
    assert flow_times(Run(tmp_path), [0]) is None


def damaged(flow_run, path, change):
    run, copy = Run.open(flow_run), Run.create(path, Run.open(flow_run).config)
    for step in (0, 20, 40):
        copy.save(step, dict(run.read(step).tensors))
    state = dict(run.read(20).tensors)
    state["w_a"] = change(state["w_a"].clone())
    copy.save(20, state)
    return path


def with_nan(tensor):
    tensor[0, 0] = float("nan")
    return tensor


@pytest.mark.parametrize("change", [with_nan, lambda w: w[:, :-1]])
def test_bad_steps_are_named_and_skipped_on_demand(flow_run, tmp_path, change):
    path = damaged(flow_run, tmp_path / "bad", change)
    with pytest.raises(RhoscopeError, match=r"step 20: .*--skip-bad"):
        call("crossings", path, "--quiet")
    found = json.loads(call("crossings", path, "--quiet", "--skip-bad", "--json").stdout)
    assert found["steps"] == [0, 40]
    assert list(found["skipped"]) == ["20"]


def test_other_refusals(flow_run, tmp_path):
    run = Run.open(flow_run)
    single = Run.create(tmp_path / "one", run.config)
    single.save(0, dict(run.read(0).tensors))
    with pytest.raises(RhoscopeError, match="at least two"):
        call("crossings", tmp_path / "one", "--quiet")
    with pytest.raises(RhoscopeError, match="chart"):
        call("crossings", flow_run, "--operator", "chart", "--quiet")
    train(TrainingPlan("Z3", width=6, steps=3), tmp_path / "adam")
    with pytest.raises(RhoscopeError, match="--optimizer flow or sgd"):
        call("crossings", tmp_path / "adam", "--refine-time", "--quiet")
    with pytest.raises(RhoscopeError, match="--workers and --dask"):
        call("crossings", flow_run, "--workers", 2, "--dask", "tcp://nowhere:1", "--quiet")


def test_dry_run_computes_nothing(flow_run, tmp_path):
    result = call("crossings", flow_run, "--dry-run", "--cache", tmp_path / "cache")
    assert "plan: 21 checkpoints" in result.output
    assert not (tmp_path / "cache").exists()


def test_flat_operator(flow_run):
    found = json.loads(call("crossings", flow_run, "--operator", "flat", "--json", "--quiet").stdout)
    assert min(min(row) for row in found["monotone"]["condition_D3L"]) == 0
    assert found["negative"] == [0] * 21  # the loss is convex in the potentials


def test_null_control_has_no_transition(flow_run, document):
    found = json.loads(call("crossings", flow_run, "--control", "random", "--json", "--quiet").stdout)
    assert found["control"] == "random"
    assert found["negative"][-1] > 0 == document["negative"][-1]
    assert found["loss"][-1] > 100 * document["loss"][-1]
    with pytest.raises(RhoscopeError, match="null control"):
        call("crossings", flow_run, "--control", "random", "--check-modes", 2, "--quiet")
    with pytest.raises(RhoscopeError, match="--control"):
        call("crossings", flow_run, "--control", "labels", "--quiet")


def test_two_workers_find_the_same(flow_run, document, tmp_path):
    found = json.loads(
        call("crossings", flow_run, "--workers", 2, "--cache", tmp_path, "--json", "--quiet").stdout
    )
    assert found["crossings"] == document["crossings"]
    assert np.allclose(found["loss"], document["loss"], rtol=1e-12)


def test_local_part_and_interaction_add_up(flow_run):
    """<v, L v> with the interaction alone, by another product, is the rest of the eigenvalue."""
    run = Run.open(flow_run)
    subject = subject_of(run.read(100), run.layout, run)
    record = spectral_steps.compute_record(subject, spectral_steps.SpectralQuestion(), step=100)
    vectors = torch.as_tensor(record.vectors, dtype=torch.float64)
    part = SecondVariation(subject.objective.linearise(subject.measure), parts=("interaction",))
    interaction = (vectors * part.apply(vectors)).sum(0).numpy()
    assert interaction + record.local == pytest.approx(record.eigenvalues, abs=1e-5)
    assert np.abs(record.local).max() > 1e-2
