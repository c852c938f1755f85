"""``rhoscope verify``: right studies pass, every claim that is changed fails, bad input is told."""

import copy
import json

import numpy as np
import pytest
import torch

from analyses.training.trainer import TrainingPlan, train
from manifold.errors import RhoscopeError
from tests.analyses.commands.test_analyze import call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("verify")


@pytest.fixture(scope="module")
def network(folder):
    rng = np.random.default_rng(0)
    weights = {f"w_{name}": torch.tensor(rng.normal(size=(4, 3)).astype(np.float32)) for name in "abc"}
    torch.save(weights, folder / "net.pt")
    return folder / "net.pt"


OPTIONS = (
    "--group", "Z4", "--loss", "mse", "--tensor", "w_a=w_a", "--tensor", "w_b=w_b", "--tensor", "w_c=w_c",
    "--output-scale", "0.5", "--activation", "square",
)  # fmt: skip


@pytest.fixture(scope="module")
def document(network):
    return json.loads(call("analyze", network, *OPTIONS, "--eigenvalues", "all", "--json", "--quiet").stdout)


def verified(path, *arguments):
    result = call("verify", path, *arguments, "--json", "--quiet")
    return result.exit_code, json.loads(result.stdout)


def test_a_checkpoint_passes_by_the_contract(network):
    code, found = verified(network, *OPTIONS)
    assert (code, found["passed"]) == (0, True)
    for check in found["checks"]:
        assert set(check) == {"claim", "value", "bound", "reference", "method", "passed"}
        assert check["passed"] is not False
        if check["passed"] is None:
            assert check["method"].startswith("not checked: ")
    claims = {check["claim"].partition("[")[0] for check in found["checks"] if check["passed"]}
    assert {
        "loss", "objective", "accuracy", "potentials.targets", "fixed_point.gradient_norm",
        "spectrum.rank", "spectrum.smallest", "spectrum.largest", "spectrum.negative",
        "spectrum.positive", "spectrum.span_leak",
    } <= claims  # fmt: skip


def test_the_screen_tells_every_claim_in_one_line(network):
    result = call("verify", network, *OPTIONS, "--quiet", "--subspace", "full", "--eigenvalues", "2")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert any(line.startswith("pass  spectrum.largest[") for line in lines)
    assert " 0 failed" in lines[-1]


CHANGES = {
    "loss": lambda d: d.update(loss=d["loss"] * (1 + 1e-9)),
    "objective": lambda d: d.update(objective=d["objective"] + 1e-6),
    "accuracy": lambda d: d.update(accuracy=d["accuracy"] + 1 / 16),
    "task.raw_scale": lambda d: d["task"].update(raw_scale=d["task"]["raw_scale"] * 1.001),
    "task.alive": lambda d: d["task"].update(alive=2),
    "potentials.targets": lambda d: d["potentials"]["targets"][0].update(re=0.5),
    "potentials.ones": lambda d: d["potentials"].update(ones=1.0),
    "potentials.zeros.R_n": lambda d: d["potentials"]["zeros"].update(R_n=0.99),
    "neurons.purity_mean": lambda d: d["neurons"].update(purity_mean=0.9999),
    "fixed_point.gradient_norm": lambda d: d["fixed_point"].update(gradient_norm=1e-9),
    "spectrum.rank": lambda d: d["spectrum"].update(rank=d["spectrum"]["rank"] + 1),
    "spectrum.largest": lambda d: _moved(d["spectrum"], "largest", 3, 1e-9),
    "spectrum.smallest": lambda d: _moved(d["spectrum"], "smallest", 0, 1e-9),
    "spectrum.negative": lambda d: d["spectrum"].update(negative=d["spectrum"]["negative"] + 1),
    "spectrum.positive": lambda d: d["spectrum"].update(positive=d["spectrum"]["positive"] - 1),
    "spectrum.marginal": lambda d: d["spectrum"].update(marginal=1),
    "spectrum.count_bounds.negative": lambda d: d["spectrum"]["count_bounds"].update(negative=[0, 1]),
    "spectrum.smallest_enclosure": lambda d: d["spectrum"].update(smallest_enclosure=[-1e-3, 0.0]),
    "spectrum.span_leak": lambda d: d["spectrum"].update(span_leak=1e-9),
    "dof": lambda d: d["dof"].update(unstable=d["dof"]["unstable"] + 1),
    "checkpoint.sha256": lambda d: d["checkpoint"].update(sha256="0" * 64),
}


def _moved(spectrum, name, place, by):
    spectrum[name][place] += by


@pytest.mark.parametrize("claim", CHANGES)
def test_a_changed_claim_fails_alone_or_with_its_kin(document, network, claim, tmp_path):
    changed = copy.deepcopy(document)
    CHANGES[claim](changed)
    path = tmp_path / "study.json"
    path.write_text(json.dumps(changed))
    code, found = verified(path, *OPTIONS, "--checkpoint", network)
    failed = {check["claim"].partition("[")[0] for check in found["checks"] if check["passed"] is False}
    assert code == 1
    assert not found["passed"]
    assert claim in failed


def test_a_study_finds_its_network_again_by_its_own_command_line(network, tmp_path, monkeypatch):
    out = tmp_path / "study.nc"
    words = ["analyze", network, *OPTIONS, "--out", out, "--quiet"]
    monkeypatch.setattr("sys.argv", ["rhoscope", *map(str, words)])
    call(*words)
    code, found = verified(out)
    assert (code, found["passed"]) == (0, True)
    assert found["checks"][0]["claim"] == "checkpoint.sha256"


def test_another_network_fails(document, network, folder, tmp_path):
    weights = torch.load(network)
    weights["w_a"][0, 0] += 1e-3
    torch.save(weights, folder / "other.pt")
    path = tmp_path / "study.json"
    path.write_text(json.dumps(document))
    code, found = verified(path, *OPTIONS, "--checkpoint", folder / "other.pt")
    failed = {check["claim"].partition("[")[0] for check in found["checks"] if check["passed"] is False}
    assert code == 1
    assert {"checkpoint.sha256", "spectrum.largest", "potentials.targets"} <= failed


def test_bad_input_is_told_in_one_line(network, tmp_path):
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    with pytest.raises(RhoscopeError, match="can be verified"):
        call("verify", empty)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(RhoscopeError, match="expected the JSON document"):
        call("verify", tmp_path / "broken.json")
    with pytest.raises(RhoscopeError, match="belongs to a study"):
        call("verify", network, "--checkpoint", network)
    lost = tmp_path / "lost.json"
    lost.write_text(
        json.dumps({"checkpoint": {"path": str(tmp_path / "gone.pt"), "step": None}, "spectrum": {}})
    )
    with pytest.raises(RhoscopeError, match="--checkpoint"):
        call("verify", lost)


# -- crossings ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(folder):
    train(TrainingPlan("Z3", width=4, optimizer="flow", steps=60), folder / "flow3")
    return folder / "flow3"


@pytest.fixture(scope="module")
def crossings(run):
    return json.loads(call("crossings", run, "--certify", "2", "--json", "--quiet").stdout)


def test_a_crossing_study_passes(crossings, run, tmp_path):
    path = tmp_path / "crossings.json"
    path.write_text(json.dumps(crossings))
    code, found = verified(path, "--checkpoint", run)
    assert (code, found["passed"]) == (0, True)
    claims = {check["claim"].partition(" at ")[0].partition("[")[0] for check in found["checks"]}
    assert {"loss", "branches", "spectrum.rank", "spectrum.negative", "certified_counts.negative"} <= claims


@pytest.mark.parametrize("claim", ["branches", "spectrum.negative", "loss", "certified_counts.negative"])
def test_a_changed_crossing_study_fails(crossings, run, claim, tmp_path):
    changed = copy.deepcopy(crossings)
    if claim == "branches":
        changed["branches"][1]["eigenvalues"][2] += 1e-3
    elif claim == "loss":
        changed["loss"][1] += 1e-9
    elif claim == "spectrum.negative":
        changed["negative"][0] += 1
    else:
        changed["certified_counts"][0]["negative"] = [0, 0]
    path = tmp_path / "crossings.json"
    path.write_text(json.dumps(changed))
    code, found = verified(path, "--checkpoint", run)
    failed = [check["claim"] for check in found["checks"] if check["passed"] is False]
    assert code == 1
    assert any(name.startswith(claim) for name in failed)


# -- maximum entropy ----------------------------------------------------------------------------------------

FITS = [
    ("S5", "Re(z1*z2*conj(z3))", "0.1"),
    ("S2", "x1;x2;x1^2", "0.1,0.2,0.4"),
    ("T2", "Re(z1);Im(z1);Re(z1*z2)", "0.3,0.1,0.2"),
]


@pytest.mark.parametrize(("space", "monomials", "moments"), FITS)
def test_a_maximum_entropy_fit_passes_and_a_changed_one_fails(space, monomials, moments, tmp_path):
    arguments = ("--space", space, "--monomials", monomials, "--moments", moments)
    document = json.loads(call("maxent", *arguments, "--json", "--quiet").stdout)
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(document))
    code, found = verified(path)
    assert (code, found["passed"]) == (0, True)
    assert {"log_partition", "entropy", "fisher_rank"} <= {check["claim"] for check in found["checks"]}
    for key, claim in (
        ("log_partition", "log_partition"),
        ("entropy", "entropy"),
        ("fisher_rank", "fisher_rank"),
    ):
        changed = document | {key: document[key] + (1 if key == "fisher_rank" else 1e-5)}
        path.write_text(json.dumps(changed))
        code, found = verified(path)
        assert code == 1
        assert [c["claim"] for c in found["checks"] if c["passed"] is False] == [claim]
    changed = document | {"lambda": [value + 0.01 for value in document["lambda"]]}
    path.write_text(json.dumps(changed))
    code, found = verified(path)
    assert code == 1


def test_case_04_a_matched_fit_with_a_wrong_lambda_fails(tmp_path):
    """S2, r = x1^2 x3^2 at lambda = -300: a rule that aliases matched the moment with -404."""
    fit = {
        "space": "S2", "monomials": ["x1^2*x3^2"], "moments": [0.0007655966], "lambda": [-404.0],
        "log_partition": -1.6, "entropy": -1.3, "moment_error": 1e-14, "fisher_rank": 1, "face": None,
        "method": "newton", "diagnostics": {},
    }  # fmt: skip
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(fit))
    code, found = verified(path)
    assert code == 1
    assert {c["claim"].partition("[")[0] for c in found["checks"] if c["passed"] is False} >= {
        "moments",
        "lambda",
    }
