"""`rhoscope analyze` from the command line: contract, figures of the theory, bad input."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from analyses.cli import main
from analyses.commands.options.application import build_app
from analyses.common.study_files import read_study
from analyses.training.trainer import TrainingPlan, train
from manifold.errors import RhoscopeError


def call(*arguments):
    result = CliRunner().invoke(build_app(), [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def flow_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "flow3"
    train(TrainingPlan("Z3", width=40, optimizer="flow", steps=200), path)
    return path


def test_document_of_a_refined_flow_run(flow_run, tmp_path):
    out = tmp_path / "study.nc"
    result = call("analyze", flow_run, "--refine", "--eigenvalues", "all", "--json", "--out", out, "--quiet")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    spectrum = document["spectrum"]
    assert spectrum["rank"] == 18 == spectrum["positive"] == document["dof"]["contracted"]
    assert spectrum["negative"] == spectrum["undetermined"] == 0
    assert spectrum["count_certified"]
    assert spectrum["side"] == "potentials"
    assert spectrum["gauge_null"] == 40
    assert document["fixed_point"]["kind"] == "mp-critical"
    assert document["fixed_point"]["gradient_norm_after"] < 1e-9
    assert document["loss_identity_error"] < 1e-10
    assert document["accuracy"] == 1.0
    assert len(document["potentials"]["targets"]) == 2
    assert max(spectrum["largest_error"]) < 1e-10
    assert document["schema_version"] == 1
    study = read_study(out)
    assert np.allclose(study.eigenvalue[::-1], spectrum["largest"])
    assert {"units", "definition"} <= set(study.eigenvalue.attrs)
    assert json.loads(study.attrs["summary"])["checkpoint"]["sha256"] == study.attrs["sha256"]


def test_existing_outputs_are_kept_without_force(flow_run, tmp_path):
    out = tmp_path / "study.nc"
    out.write_text("mine")
    with pytest.raises(RhoscopeError, match="--force"):
        call("analyze", flow_run, "--out", out, "--quiet")
    assert out.read_text() == "mine"
    call("analyze", flow_run, "--out", out, "--quiet", "--force")
    assert read_study(out).attrs["study"] == "checkpoint"


@pytest.mark.parametrize("operator", ["wasserstein", "flat"])
@pytest.mark.parametrize("subspace", ["span", "full"])
def test_operators_and_subspaces(flow_run, operator, subspace):
    found = call("analyze", flow_run, "--operator", operator, "--subspace", subspace, "--json", "--quiet")
    spectrum = json.loads(found.stdout)["spectrum"]
    assert (spectrum["operator"], spectrum["count_certified"]) == (operator, True)
    if operator == "wasserstein" and subspace == "full":
        assert spectrum["dimension"] == 240
    if operator == "flat":
        assert spectrum["dimension"] == 40


def test_a_split_decayed_run_is_analysed_on_its_own_objective(tmp_path):
    plan = TrainingPlan("Z4", width=16, steps=300, weight_decay=1e-3, train_fraction=0.8, centred=False)
    train(plan, tmp_path / "run")
    document = json.loads(call("analyze", tmp_path / "run", "--json", "--quiet").stdout)
    assert document["task"]["pairs"] == "train"
    assert document["task"]["weight_decay"] == 1e-3
    assert document["task"]["dimension"] == 12
    assert document["objective"] > document["loss"]
    assert document["loss_identity_error"] < 1e-10
    whole = json.loads(
        call("analyze", tmp_path / "run", "--json", "--quiet", "--pairs", "all", "--weight-decay", "0").stdout
    )
    assert whole["task"]["pairs"] == "all"
    assert whole["objective"] == whole["loss"]


def test_decoupled_decay_is_said_to_be_no_flow(tmp_path):
    train(TrainingPlan("Z3", width=6, steps=20, optimizer="adamw", weight_decay=0.1), tmp_path / "run")
    document = json.loads(call("analyze", tmp_path / "run", "--json", "--quiet").stdout)
    assert document["task"]["weight_decay"] == 0.0
    assert any("decoupled" in note for note in document["notes"])


def test_dry_run_prints_the_plan_only(flow_run, capsys):
    result = call("analyze", flow_run, "--dry-run")
    assert result.stdout == ""
    assert "potentials side" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--eigenvalues", "ten"], "eigenvalues"),
        (["--operator", "heat"], "operator"),
        (["--potentials", "R_x"], "potentials"),
        (["--weight-decay", "some"], "weight-decay"),
        (["--pairs", "some"], "pairs"),
        (["--step", "123456"], "step"),
        (["--tensor", "w_a=w_x", "--tensor", "w_c=w_c", "--group", "Z3"], "w_a"),
        (["--group", "Z7"], "Z7"),
    ],
)
def test_bad_input_is_one_clear_line(flow_run, arguments, match):
    with pytest.raises(RhoscopeError, match=match) as caught:
        call("analyze", flow_run, *arguments, "--quiet")
    assert caught.value.exit_code == 2


def test_exit_codes_of_the_program(monkeypatch, tmp_path, capsys):
    torch.save({"w_a": torch.full((3, 4), float("nan")), "w_c": torch.ones(3, 4)}, tmp_path / "bad.pt")
    monkeypatch.setattr("sys.argv", ["rhoscope", "analyze", str(tmp_path / "bad.pt"), "--group", "Z3"])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert "w_a" in error
    assert len(error.splitlines()) == 1


def test_unconverged_refinement_is_partial_and_exits_with_three(tmp_path):
    train(TrainingPlan("Z5", width=2, steps=5), tmp_path / "run")
    result = call("analyze", tmp_path / "run", "--refine", "--tolerance", "1e-30", "--json", "--quiet")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert document["fixed_point"]["kind"] == "none"
    assert any("refine" in note for note in document["notes"])


def test_a_fallback_to_the_full_space_is_said(flow_run, monkeypatch):
    monkeypatch.setattr("spectra.methods.plan.DENSE_WORK", 0.0)
    document = json.loads(call("analyze", flow_run, "--json", "--quiet").stdout)
    assert document["spectrum"]["subspace"] == "full"
    assert any("span does not fit" in note for note in document["notes"])
