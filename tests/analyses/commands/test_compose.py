"""`rhoscope compose` and `construct` from the command line; results run in a plain torch network."""

import json

import pytest
import torch
from typer.testing import CliRunner

from analyses.commands.options.application import build_app
from analyses.training.trainer import TrainingPlan, train
from manifold.errors import InputError, NotConvergedError, OutputExistsError, TooLargeError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.partial_solutions import partial_solution
from tests import oracles


def call(*arguments):
    result = CliRunner().invoke(build_app(), [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_plain(path, n):
    """The ten-line network: nothing of rhoscope, its result the right pairs out of n^2."""
    stored = torch.load(path, weights_only=True)
    weights, note = stored["model"], json.loads(stored["rhoscope"])
    a, b, c = weights["w_a"], weights["w_b"], weights["w_c"]
    scale = note["layout"]["output_scale"]
    x, y = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    outputs = scale * (a[x] + b[y]).square() @ c.T
    accuracy = (outputs.argmax(-1) == (x + y) % n).double().mean()
    return float(accuracy), outputs


def test_products_of_trained_refined_networks(tmp_path):
    for seed in (0, 1):
        plan = TrainingPlan("Z11", width=64, steps=500, seed=seed)
        train(plan, tmp_path / f"run{seed}")
    out = tmp_path / "product.pt"
    arguments = (
        "compose",
        "multiply",
        tmp_path / "run0",
        tmp_path / "run1",
        "--refine",
        "--tolerance",
        "1e-9",
        "--out",
        out,
    )
    document = json.loads(call(*arguments, "--json", "--quiet").stdout)
    assert document["neurons"] == 64 * 64
    assert document["potentials"]["prediction_error"] < 1e-10
    assert document["sets"]["kept"]
    assert document["sets"]["predicted"]["ones"] >= 10  # every rho_kkk
    accuracy, _ = run_plain(out, 11)
    assert accuracy == document["accuracy"] == 1


def test_construct_compose_and_analyze_without_options(tmp_path):
    first, second, out = (tmp_path / name for name in ("f6.pt", "f46.safetensors", "both.pt"))
    told = json.loads(call("construct", "F6", "--group", "Z7", "--out", first, "--json", "--quiet").stdout)
    assert (told["neurons"], told["accuracy"]) == (18, 1.0)
    assert told["loss"] < 1e-25
    call("construct", "F4_6", "--group", "Z7", "--out", second, "--quiet")
    arguments = ("compose", "multiply", first, second, "--out", out, "--compress", "1e-9")
    document = json.loads(call(*arguments, "--json", "--quiet").stdout)
    assert document["loss"] < 1e-18
    assert document["sets"]["kept"]
    assert document["neurons"] < 18 * 14
    accuracy, outputs = run_plain(out, 7)
    assert accuracy == 1
    residual = outputs - torch.eye(7, dtype=torch.float64)[oracles.sum_table((7,))]
    assert (residual - residual.mean(-1, keepdim=True)).square().sum(-1).mean() < 1e-18
    found = json.loads(call("analyze", out, "--json", "--quiet", "--eigenvalues", "3").stdout)
    assert found["loss"] < 1e-18
    assert found["task"]["group"] == "Z7"
    assert found["potentials"]["ones"] == 1.0
    solved = json.loads(call("analyze", first, "--json", "--quiet", "--eigenvalues", "3").stdout)["solutions"]
    (family,) = [f for f in solved["families"] if f["count"]]
    assert (family["name"], family["count"], family["share"]) == ("z_nu*z_syn", 3, 1.0)
    assert family["residual"] < 1e-7
    assert "plan: 18 x 14 = 252 neurons" in call(*arguments, "--force", "--dry-run").stderr


def test_partial_solutions_multiply_to_a_solution(tmp_path):
    for name, zeros in (("cross", "R_c"), ("squares", "R_n,R_*")):
        told = call(
            "construct",
            "partial",
            "--group",
            "Z5",
            "--zeros",
            zeros,
            "--out",
            tmp_path / f"{name}.pt",
            "--json",
        )
        assert json.loads(told.stdout)["loss"] > 0.1
    parts = (tmp_path / "cross.pt", tmp_path / "squares.pt")
    told = call("compose", "multiply", *parts, "--out", tmp_path / "solved.pt", "--json", "--quiet")
    assert json.loads(told.stdout)["loss"] < 1e-24
    assert run_plain(tmp_path / "solved.pt", 5)[0] == 1
    with pytest.raises(NotConvergedError, match="more neurons"):
        partial_solution(FiniteAbelianGroup((5,)), ["R_c"], neurons=1, tries=1)
    with pytest.raises(InputError, match="R_x"):
        call("construct", "partial", "--group", "Z5", "--zeros", "R_x", "--out", tmp_path / "no.pt")


def test_even_order_says_what_is_different(tmp_path):
    told = call("construct", "F6", "--group", "Z4", "--out", tmp_path / "even.pt", "--json")
    assert "1 of its characters have order two" in told.stderr
    assert json.loads(told.stdout)["loss"] < 1e-25
    assert run_plain(tmp_path / "even.pt", 4)[0] == 1


def test_bad_input(tmp_path):
    paths = {name: tmp_path / f"{name}.pt" for name in ("Z3", "Z5", "Z11")}
    for name, path in paths.items():
        call("construct", "memorise", "--group", name, "--out", path, "--quiet")
    out = tmp_path / "out.pt"
    with pytest.raises(InputError, match="same group, got Z3 and Z5"):
        call("compose", "add", paths["Z3"], paths["Z5"], "--out", out)
    with pytest.raises(TooLargeError, match="--compress"):
        call("compose", "multiply", paths["Z11"], paths["Z11"], "--out", out, "--max-mib", "1")
    with pytest.raises(InputError, match="only cosine"):
        call("construct", "F6", "--group", "Z7", "--out", out, "--neurons", "7")
    with pytest.raises(InputError, match="safetensors"):
        call("construct", "F6", "--group", "Z7", "--out", tmp_path / "x.txt")
    with pytest.raises(OutputExistsError):
        call("construct", "F6", "--group", "Z7", "--out", paths["Z3"])
    assert not out.exists()
