"""Networks of strangers from the command line alone: trained by plain torch, then inspected and analysed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from spectra.networks.activations import parse_activation
from tests.analyses.commands.test_checkpoint_commands import rhoscope
from tests.analyses.layouts import strangers
from tests.oracles import dense_hessian

N, Q = 7, 24
CASES = {
    "tied_sgd_cross_entropy": (
        strangers.TiedQuadratic, lambda p: torch.optim.SGD(p, lr=0.2), "cross_entropy", 4000, {},
    ),
    "concatenated_adamw_mse": (
        strangers.ConcatenatedQuadratic, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-3), "mse",
        1000, {},
    ),
    "embedding_relu_cross_entropy": (
        strangers.EmbeddedRelu, lambda p: torch.optim.Adam(p, lr=0.01), "cross_entropy", 400, {"d": 8},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def stranger(request, tmp_path_factory):
    """Name of the case, the network with float64 weights, and its checkpoint file."""
    kind, optimiser, loss, steps, options = CASES[request.param]
    torch.manual_seed(0)
    network = kind(N, Q, **options)
    accuracy = strangers.train(
        network, (N,), loss=loss, optimiser=optimiser(network.parameters()), steps=steps
    )
    assert accuracy == 1.0, "the script itself must have learned"
    path = tmp_path_factory.mktemp("stranger") / "model.pt"
    torch.save({"model": network.state_dict(), "step": steps}, path)
    return request.param, network.double(), path


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        code, out, err = rhoscope(monkeypatch, capsys, *arguments, "--json")
        assert code in (0, 3), err
        return json.loads(out), err

    return run


def own_loss(network, name):
    """The stranger's own loss on all pairs."""
    pairs, sums = strangers.pairs_and_sums((N,))
    outputs = network(pairs)[:, :N]
    if "cross_entropy" in name:
        return torch.nn.functional.cross_entropy(outputs, sums)
    return (outputs - torch.nn.functional.one_hot(sums, N)).square().sum(1).mean()


def test_inspect_and_analyze_without_options(stranger, command):
    name, network, path = stranger
    document, _ = command("inspect", path)
    relu = "relu" in name  # whose numbers gelu and others fit as well
    confidence = "ambiguous" if relu else "verified"
    assert document["guess_confidence"] == document["guess"]["confidence"] == confidence
    assert document["guess"]["unused"] == []
    assert bool(document["guess"]["rivals"]) is relu
    assert document["guess"]["layout"].items() <= document["guess"].items()
    assert document["guess_accuracy"] == 1.0
    assert document["guess"]["group"] == f"Z{N}"
    assert document["guess"]["loss"] == ("mse" if "mse" in name else "cross_entropy")
    found, err = command("analyze", path)
    assert f"layout guessed ({confidence})" in err
    assert f"layout guessed ({confidence})" in " ".join(found["notes"])
    assert found["layout"] == {
        "guessed": True, "confidence": confidence, "rivals": document["guess"]["rivals"], "unused": [],
        "assumed": [],
    }  # fmt: skip
    assert found["accuracy"] == 1.0
    assert found["loss"] == pytest.approx(own_loss(network, name).item(), rel=1e-9)
    assert found["task"]["activation"] == ("relu" if relu else "square")
    assert found["potentials"]["determine_loss"] is not relu
    assert (found["loss_identity_error"] is None) is relu
    assert (found["potentials"]["ones"] is None) is (relu or found["task"]["loss"] == "cross_entropy")
    assert len(found["potentials"]["targets"]) == len(found["potentials"]["alignment"]) == N - 1
    spectrum = found["spectrum"]
    assert spectrum["converged"]
    assert spectrum["count_certified"]
    assert sum(found["dof"].values()) == spectrum["rank"]
    notes = " ".join(found["notes"])
    assert ("kink" in notes) is relu
    assert ("effective weights" in notes) is relu
    assert ("order parameters only" in notes) is relu


def test_the_spectrum_is_that_of_the_strangers_own_parameters(stranger, command):
    """Where the parameters are the effective weights: the Hessian of the stranger's module itself."""
    name, network, path = stranger
    if name != "tied_sgd_cross_entropy":
        pytest.skip("products and biases: the effective weights are not the parameters")
    found, _ = command("analyze", path, "--subspace", "full", "--eigenvalues", "all")
    parameters = dict(network.named_parameters())
    pairs, sums = strangers.pairs_and_sums((N,))

    def scalar(*weights):
        outputs = torch.func.functional_call(network, dict(zip(parameters, weights, strict=True)), pairs)
        return torch.nn.functional.cross_entropy(outputs, sums)

    hessian = dense_hessian(scalar, *(weight.detach() for weight in parameters.values()))
    expected = found["task"]["raw_scale"] * np.linalg.eigvalsh(hessian.numpy())[::-1]
    assert found["task"]["raw_scale"] == pytest.approx(Q * N * (2 * N * Q) ** (-2 / 3))
    assert np.abs(np.array(found["spectrum"]["largest"]) - expected).max() < 1e-11 * expected[0]


def test_options_decide_the_activation(stranger, command):
    name, _, path = stranger
    if name != "embedding_relu_cross_entropy":
        pytest.skip("one case is enough")
    found, _ = command("analyze", path, "--activation", "gelu", "--operator", "flat")
    assert found["task"]["activation"] == "gelu"
    assert found["task"]["tau"] == 1.0
    assert found["task"]["raw_scale"] == found["task"]["neurons"] * N
    assert "not homogeneous" in " ".join(found["notes"])
    found, _ = command("inspect", path, "--activation", "x^3 - x")  # a guess that cannot be right
    assert found["guess"]["activation"] == "- x + x^3"
    assert found["guess_accuracy"] < 0.9


ACTIVATED = {"relu": torch.relu, "tanh": torch.tanh, "abs": torch.abs, "x^3 - 0.5*x": lambda t: t**3 - t / 2}


def descent_folder(folder, sigma, *, steps=(0, 20, 60, 150), q=12, n=5):
    """A stranger's gradient descent on ``out(sigma(first(x, y)))``, one state dict per saved step."""
    torch.manual_seed(1)
    first, out = torch.nn.Linear(2 * n, q, bias=False), torch.nn.Linear(q, n, bias=False)
    module = torch.nn.ModuleDict({"first": first, "out": out}).double()
    pairs, sums = strangers.pairs_and_sums((n,))
    one_hot = torch.nn.functional.one_hot
    inputs, targets = one_hot(pairs, n).double().flatten(1), one_hot(sums, n).double()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)
    for step in range(max(steps) + 1):
        if step in steps:
            torch.save(module.state_dict(), folder / f"epoch{step}.pt")
        optimiser.zero_grad()
        (out(sigma(first(inputs))) - targets).square().sum(1).mean().backward()
        optimiser.step()
    return module


@pytest.mark.parametrize("name", ACTIVATED)
def test_crossings_of_a_folder_of_a_stranger(tmp_path, command, name):
    descent_folder(tmp_path, ACTIVATED[name])
    layout = [
        "--group", "Z5", "--loss", "mse", "--activation", name, "--tensor", "w_a=first.weight[:, :5]",
        "--tensor", "w_b=first.weight[:, 5:]", "--tensor", "w_c=out.weight",
    ]  # fmt: skip
    page = tmp_path / "page.html"
    found, _ = command("crossings", tmp_path, *layout, "--report", page)
    assert found["activation"] == parse_activation(name).name
    assert "with its activation" in page.read_text("utf-8")
    assert found["steps"] == [0, 20, 60, 150]
    assert found["loss"] == sorted(found["loss"], reverse=True)
    assert all(found["count_certified"])
    for kind in ("crossing", "touch", "unresolved"):
        assert found["kinds"][kind] == sum(event["kind"] == kind for event in found["crossings"])
    last, _ = command("analyze", tmp_path / "epoch150.pt", *layout)
    assert last["spectrum"]["negative"] == found["negative"][-1]
    assert last["loss"] == pytest.approx(found["loss"][-1], rel=1e-12)
    again, _ = command("crossings", tmp_path, *layout)  # from the cache
    assert again["branches"] == found["branches"]
    other, _ = command("crossings", tmp_path, *layout, "--activation", "gelu")  # not from the cache
    assert other["loss"] != found["loss"]


@pytest.mark.parametrize(("name", "known"), [("x^3 - 0.5*x", True), ("tanh", False)])
def test_the_loss_identity_holds_for_polynomials(tmp_path, command, name, known):
    descent_folder(tmp_path, ACTIVATED[name], steps=(0, 50))
    found, _ = command(
        "analyze", tmp_path, "--group", "Z5", "--loss", "projected_mse", "--activation", name, "--tensor",
        "w_a=first.weight[:, :5]", "--tensor", "w_b=first.weight[:, 5:]", "--tensor", "w_c=out.weight",
    )  # fmt: skip
    assert (found["loss_identity_error"] is not None) is known
    if known:
        assert found["loss_identity_error"] < 1e-12 * found["loss"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--potentials", "R_g"], "square activation only"),
        (["--centred"], "only quadratic networks"),
        (["--operator", "chart"], "chart spectrum"),
        (["--activation", "sine"], "polynomial in x"),
    ],
)
def test_what_other_activations_do_not_have_is_one_line(tmp_path, monkeypatch, capsys, options, what):
    descent_folder(tmp_path, torch.relu, steps=(0, 1))
    code, out, err = rhoscope(
        monkeypatch, capsys, "analyze", tmp_path, "--quiet", "--group", "Z5", "--loss", "mse", "--activation",
        "relu", "--tensor", "w_a=first.weight[:, :5]", "--tensor", "w_b=first.weight[:, 5:]", "--tensor",
        "w_c=out.weight", *options,
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert what in err
    assert err.count("\n") == 1


def test_maxent_and_compose_refuse_other_activations(tmp_path, monkeypatch, capsys):
    descent_folder(tmp_path, torch.relu, steps=(3,))
    path = tmp_path / "epoch3.pt"
    layout = [
        "--group", "Z5", "--activation", "relu", "--tensor", "w_a=first.weight[:, :5]", "--tensor",
        "w_b=first.weight[:, 5:]", "--tensor", "w_c=out.weight",
    ]  # fmt: skip
    out = tmp_path / "own.safetensors"
    assert rhoscope(monkeypatch, capsys, "convert", path, "--out", out, *layout)[0] == 0
    for arguments in (["maxent", out], ["compose", "add", out, out, "--out", tmp_path / "sum.pt"]):
        code, text, err = rhoscope(monkeypatch, capsys, *arguments, "--quiet")
        assert (code, text) == (2, ""), arguments
        assert "relu" in err
        assert err.count("\n") == 1
