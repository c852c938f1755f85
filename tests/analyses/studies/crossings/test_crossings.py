"""`rhoscope crossings`: contract, cache, bad input, brackets that shrink."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import analyses.studies.crossings.records as spectral_steps
from analyses.commands.options.application import build_app
from analyses.common.study_files import read_study
from analyses.common.user_cache import cache_folder
from analyses.reports.sections import scientific
from analyses.runs.exports import write_checkpoint
from analyses.runs.run import Run
from analyses.studies.crossings import fixed_points, insertion
from analyses.subjects.subject import subject_of
from analyses.training.flow_time import advance, flow_times, training_plan
from analyses.training.trainer import TrainingPlan, train
from manifold.errors import RhoscopeError
from spectra.branches.tracking import SpectralStep
from spectra.methods import plan
from spectra.operators.variation import DeflatedVariation, SecondVariation
from spectra.solvers import spectrum as eigen


def call(*arguments):
    result = CliRunner().invoke(build_app(), [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The user's cache folder, as this module's studies find and leave it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield cache_folder("crossings")


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
    violations = document["monotone"]["violations"]
    assert sum(part["moves"] for part in violations.values()) <= document["monotone"]["moves"]
    for part in violations.values():
        assert part["by_gram"] + part["by_local"] == pytest.approx(1)
        assert part["by_curvature"] == 0
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
    parts = study.move_by_gram + study.move_by_curvature + study.move_by_local
    assert parts.to_numpy() == pytest.approx(np.diff(study.branch_eigenvalue.to_numpy(), axis=0), nan_ok=True)


def test_finished_steps_are_not_computed_again(flow_run, cache, document, monkeypatch):
    computed = []
    original = spectral_steps.compute_record

    def counted(subject, question, *, step, **options):
        computed.append(step)
        return original(subject, question, step=step, **options)

    monkeypatch.setattr(spectral_steps, "compute_record", counted)
    files = sorted(cache.iterdir())
    assert sorted(item.name for item in flow_run.iterdir()) == ["checkpoints", "run.json"]
    assert len(files) == 21
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:1000])  # cut off by a full disk
    again = json.loads(call("crossings", flow_run, "--json", "--quiet").stdout)
    assert len(computed) == 2
    assert again["crossings"] == document["crossings"]


def test_more_time_computes_only_what_had_not_converged(flow_run, tmp_path, monkeypatch):
    given, original = [], spectral_steps.compute_record

    def slow(subject, question, *, step):
        given.append(question.max_seconds)
        record = original(subject, question, step=step)
        record.facts["converged"] = question.max_seconds >= 60
        return record

    monkeypatch.setattr(spectral_steps, "compute_record", slow)
    run = Run.open(flow_run)
    subject = subject_of(run.read(0), run.layout, run)
    for seconds, expected in ((10, [10]), (5, [10]), (60, [10, 60]), (90, [10, 60]), (5, [10, 60])):
        question = spectral_steps.SpectralQuestion(max_seconds=seconds)
        spectral_steps.cached_record(subject, question, step=0, cache=tmp_path)
        assert given == expected


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


def test_a_step_of_another_task_is_named(flow_run, tmp_path):
    path = damaged(flow_run, tmp_path / "mixed", lambda w: w)
    run = Run.open(path)
    other = dataclasses.replace(run.layout, loss="cross_entropy")
    write_checkpoint(run.files[20], run.read(20).tensors, layout=other, provenance={}, force=True)
    with pytest.raises(RhoscopeError, match=r"step 20: .*another task, Z3 with cross_entropy"):
        call("crossings", path, "--quiet")
    found = json.loads(call("crossings", path, "--quiet", "--skip-bad", "--json").stdout)
    assert (found["steps"], list(found["skipped"])) == ([0, 40], ["20"])


def test_missing_and_duplicated_steps_are_named(flow_run, tmp_path):
    path = damaged(flow_run, tmp_path / "holes", lambda w: w)
    run = Run.open(path)
    run.files[20].unlink()
    result = call("crossings", path, "--quiet")
    assert "missing checkpoints (their brackets are wider): 20" in result.stdout
    Run.open(path).save(40, dict(run.read(40).tensors), suffix=".safetensors")
    with pytest.raises(RhoscopeError, match="step 40 is there twice"):
        call("crossings", path, "--quiet")


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


def test_null_controls_have_no_transition(flow_run, cache, document):
    arguments = ("crossings", flow_run, "--control", "random", "--control", "labels", "--json", "--quiet")
    found = json.loads(call(*arguments).stdout)
    assert found["negative"] == document["negative"]
    random, labels = found["controls"]["random"], found["controls"]["labels"]
    assert random["negative"][-1] > 0 == document["negative"][-1]
    assert random["loss"][-1] > 100 * document["loss"][-1]
    assert labels["steps"] == document["steps"]
    assert labels["accuracy"][-1] < 1 == document["accuracy"][-1]  # 40 neurons learn nine pairs by heart
    assert labels["ones"][-1] == 0 < document["ones"][-1] == 1
    (folder,) = cache.glob("labels_*")
    control = Run.open(folder)
    assert training_plan(control) == dataclasses.replace(training_plan(Run.open(flow_run)), labels=0)
    before = {file: file.stat().st_mtime_ns for file in control.files.values()}
    assert json.loads(call(*arguments).stdout)["controls"]["labels"]["loss"] == labels["loss"]
    assert before == {file: file.stat().st_mtime_ns for file in control.files.values()}
    with pytest.raises(RhoscopeError, match="--control"):
        call("crossings", flow_run, "--control", "lables", "--quiet")


def test_a_killed_study_loses_no_finished_step(tmp_path, monkeypatch):
    train(TrainingPlan("Z5", width=96, optimizer="sgd", steps=24), tmp_path / "run", save_every=1)
    cache = tmp_path / "cache"
    command = [
        sys.executable,
        "-m",
        "analyses.cli",
        "crossings",
        str(tmp_path / "run"),
        "--cache",
        str(cache),
    ]
    study = subprocess.Popen([*command, "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while study.poll() is None and len(list(cache.glob("step_*.npz"))) < 3:
            time.sleep(0.005)
    finally:
        study.send_signal(signal.SIGKILL)
        study.wait()
    assert study.returncode == -signal.SIGKILL, study.stderr.read().decode()
    finished = {file: file.stat().st_mtime_ns for file in cache.glob("step_*.npz")}
    assert 3 <= len(finished) < 25
    computed = []
    original = spectral_steps.compute_record
    monkeypatch.setattr(
        spectral_steps, "compute_record", lambda *a, **k: computed.append(k["step"]) or original(*a, **k)
    )
    found = json.loads(call(*command[3:], "--json", "--quiet").stdout)
    assert found["steps"] == list(range(25))
    assert len(computed) == 25 - len(finished)
    assert finished == {file: file.stat().st_mtime_ns for file in finished}


def test_a_dask_cluster_finds_the_same(flow_run, document, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path / "scratch"
    ) as cluster:
        found = json.loads(
            call(
                "crossings", flow_run, "--dask", cluster.scheduler_address, "--cache", tmp_path / "cache",
                "--json", "--quiet",
            ).stdout
        )  # fmt: skip
    assert found["crossings"] == document["crossings"]
    assert np.allclose(found["loss"], document["loss"], rtol=1e-12)
    assert len(list((tmp_path / "cache").glob("step_*.npz"))) == 21
    with pytest.raises(RhoscopeError, match="no scheduler answers"):
        call("crossings", flow_run, "--dask", "tcp://127.0.0.1:9", "--cache", tmp_path / "none", "--quiet")


def test_saved_checkpoints_are_inserted_where_branches_need_them(flow_run, document):
    found = json.loads(call("crossings", flow_run, "--coarse", 4, "--json", "--quiet").stdout)
    steps = found["steps"]
    assert 4 < len(steps) < 21
    assert set(steps) <= set(document["steps"])
    known = dict(zip(document["steps"], document["negative"], strict=True))
    assert found["negative"] == [known[step] for step in steps]
    for event in found["crossings"]:
        assert event["step_high"] - event["step_low"] == 20  # no saved step is left inside a bracket


def test_a_link_that_may_have_lost_its_branch_asks_for_a_step():
    def record(vectors):
        return SimpleNamespace(spectral=SpectralStep([1.0, 2.0], [0.0, 0.0], vectors))

    turn = np.array([[0.8, 0.6], [-0.6, 0.8]])
    assert insertion._weights([record(v) for v in (np.eye(2), np.eye(2), turn)]).tolist() == [0, 0]
    (gone,) = insertion._weights([record(np.eye(4)[:, :2]), record(np.eye(4)[:, 2:])])
    assert gone == pytest.approx(2 * insertion.POOR_LINK)


def test_fixed_points_near_every_step(flow_run, tmp_path):
    run = Run.open(flow_run)
    few = Run.create(tmp_path / "few", run.config)
    for step in (0, 100, 400):
        few.save(step, dict(run.read(step).tensors))
    command = ("crossings", tmp_path / "few", "--refine", "--quiet")
    out = tmp_path / "few.nc"
    found = json.loads(call(*command, "--json", "--out", out, "--report", tmp_path / "few.html").stdout)
    points = {point["step"]: point for point in found["fixed_points"]}
    assert list(points) == [0, 100, 400]
    last = points[400]
    assert (last["converged"], last["kind"], last["same_basin"]) == (True, "mp-critical", True)
    assert last["spectrum"]["leak"] < 1e-6
    assert last["spectrum"]["positive"] == 18
    for point in points.values():
        if point["converged"]:
            assert point["gradient_norm_after"] <= 1e-8 < max(point["gradient_norm"], 1e-7)
        else:
            assert "wanted 1.0e-08" in point["reason"]
    assert read_study(out).fixed_moved.shape == (3,)
    assert "Where would the flow stand still?" in (tmp_path / "few.html").read_text()
    assert "fixed point from step 400: mp-critical" in call(*command).stdout


def test_a_fixed_point_that_is_not_reached_is_reported_and_the_study_goes_on(flow_run, tmp_path, monkeypatch):
    monkeypatch.setattr(fixed_points, "SADDLE_STEPS", 0)
    monkeypatch.setattr(fixed_points, "DESCENT_STEPS", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the same checkpoints were refined before
    path = damaged(flow_run, tmp_path / "short", lambda w: w)
    result = call("crossings", path, "--refine", "--quiet")
    assert result.exit_code == 0
    assert "fixed point from step 0: none reached: refine: max_j |grad V(z_j)|" in result.stdout
    assert "visits to zero" in result.stdout


def test_cross_entropy_moves_the_curvature_too(tmp_path):
    train(TrainingPlan("Z3", width=12, loss="cross_entropy", optimizer="sgd", steps=200), tmp_path / "ce",
          save_every=50)  # fmt: skip
    out = tmp_path / "ce.nc"
    found = json.loads(call("crossings", tmp_path / "ce", "--json", "--quiet", "--out", out).stdout)
    motion, study = found["monotone"], read_study(out)
    assert all(low < 0 < high for low, high in motion["condition_D3L"][1:])
    assert not motion["operators"]["chart"]["constant"]
    assert motion["operators"]["chart"]["moves"] == 4 * 27
    assert motion["operators"]["flat"]["violations"] is None
    parts = [study[f"move_by_{name}"].to_numpy() for name in ("gram", "curvature", "local")]
    assert sum(parts) == pytest.approx(np.diff(study.branch_eigenvalue.to_numpy(), axis=0), nan_ok=True)
    assert np.nanmax(np.abs(parts[1])) > 1e-3
    flat = json.loads(call("crossings", tmp_path / "ce", "--operator", "flat", "--json", "--quiet").stdout)
    assert flat["monotone"]["violations"]["hessian"]["by_local"] == 0


def test_monotone_tells_all_three_operators(document):
    operators = document["monotone"]["operators"]
    assert operators["chart"]["constant"]
    assert operators["chart"]["violations"]["hessian"]["moves"] == 0
    assert operators["flat"]["violations"]["hessian"]["by_gram"] == 1
    assert 0 < operators["flat"]["fraction_nonincreasing_hessian"] < 1
    assert document["monotone"]["condition_holds"] == 1


def test_complete_counts_at_some_steps(flow_run, cache, document):
    found = json.loads(call("crossings", flow_run, "--certify", 3, "--json", "--quiet").stdout)
    counts = {row["step"]: row for row in found["certified_counts"]}
    assert list(counts) == [0, 200, 400]
    assert counts[0]["dimension"] == 40 * 6 - 40
    for i, row in ((0, counts[0]), (20, counts[400])):
        assert row["negative"][1] >= document["negative"][i]  # a subspace has no more
        assert row["positive"][0] <= row["positive"][1] <= row["dimension"] - row["negative"][0]
    run = Run.open(flow_run)
    subject = subject_of(run.read(0), run.layout, run)
    apart = DeflatedVariation(SecondVariation(subject.task.linearise(subject.measure)))
    values = torch.linalg.eigvalsh(apart.dense())
    for name, sign in (("negative", -1), ("positive", 1)):  # the 40 directions taken out are zero here
        low, high = counts[0][name]
        assert low <= int((sign * values > 1e-9).sum()) <= high
    text = call("crossings", flow_run, "--certify", 2, "--quiet").stdout
    assert "complete counts of step 0: " in text
    assert len(list(cache.glob("counts_0_*.json"))) == 1


def test_ends_alone_with_complete_counts_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "DENSE_LIMIT", 10)
    run = tmp_path / "run"
    train(TrainingPlan("Z3", width=30, optimizer="flow", steps=200), run, save_every=100)
    out, page = tmp_path / "study.nc", tmp_path / "page.html"
    found = json.loads(call(
        "crossings", run, "--subspace", "full", "--eigenvalues", 4, "--certify", 2, "--json", "--quiet",
        "--out", out, "--report", page,
    ).stdout)  # fmt: skip
    assert not found["complete"]
    study = read_study(out)
    assert study.certified_step.to_numpy().tolist() == [0, 200]
    opened = Run.open(run)
    for place, step in ((0, 0), (2, 200)):
        subject = subject_of(opened.read(step), opened.layout, opened)
        values = torch.linalg.eigvalsh(SecondVariation(subject.task.linearise(subject.measure)).dense())
        negative = int((values < -1e-9).sum())
        low, high = study.certified_negative.sel(certified=place // 2).to_numpy()
        assert low <= negative <= high == low + int((values.abs() <= 1e-9).sum())
        low, high = found["count_bounds"]["negative"][place]
        assert low <= negative <= high
    assert "All signs were counted at 2 of the steps" in page.read_text()


def test_a_set_of_potentials_spans_a_smaller_space(flow_run, document):
    found = json.loads(call("crossings", flow_run, "--potentials", "R_g", "--json", "--quiet").stdout)
    assert set(found["rank"]) == {2}  # Re and Im of rho_111
    for i in range(21):  # Cauchy interlacing with the spectrum on all of span(R)
        assert found["smallest"][i][0] > document["smallest"][i][0] - 1e-9
        assert found["largest"][i][0] < document["largest"][i][0] + 1e-9
        assert found["negative"][i] <= document["negative"][i]


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


def test_complete_counts_without_eigenvectors(flow_run, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "DENSE_WORK", 0.0)  # so that sums over neurons are used,
    monkeypatch.setattr(eigen, "VECTORS_LIMIT", 0)  # and only the values computed
    page = tmp_path / "page.html"
    found = call(
        "crossings", flow_run, "--eigenvalues", "all", "--json", "--quiet", "--cache", tmp_path / "cache",
        "--report", page, "--out", tmp_path / "study.nc",
    )  # fmt: skip
    found = json.loads(found.stdout)
    assert found["branches"] == found["crossings"] == []
    assert set(found["rank"]) == {18}
    assert all(found["count_certified"])
    assert max(found["negative"]) > 0 == found["negative"][-1]
    text = page.read_text()
    assert "no branch was followed" in text
    assert "certain crossings" not in text
    assert "certain rises" not in text
    call("report", tmp_path / "study.nc", "--out", tmp_path / "again.html")
