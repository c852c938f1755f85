"""Rivals: no wrong guess is called verified, and what is open is said everywhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xarray as xr

from analyses.checkpoints.reader import Checkpoint
from analyses.layouts.candidates import candidates
from analyses.layouts.guesses import _best, _trials, guess_layout
from analyses.layouts.layout import Layout
from analyses.layouts.rivals import judge
from tests.analyses.commands.test_checkpoint_commands import rhoscope
from tests.analyses.layouts import strangers


def guess_of(script: strangers.Script):
    network, accuracy = script.run()
    return guess_layout(Checkpoint(Path("memory"), "test", "0", None, network.state_dict())), accuracy


def wrong(guess, script: strangers.Script) -> list[str]:
    """What a guess has wrong about a script."""
    found = guess.layout
    told = {
        "activation": found.activation == script.sigma,
        "loss": (found.loss == "cross_entropy") == (script.loss == "cross_entropy"),
        "tied": (found.w_b is None) == script.tied,
        "group": found.group == f"Z{script.n}",
    }
    return [name for name, right in told.items() if not right]


SHORT = [
    strangers.Script("relu", "biased", 7, 64, steps=400),
    strangers.Script("abs", "separate", 7, 32, steps=300),
    strangers.Script("square", "tied", 7, 32, steps=300),
    strangers.Script("gelu", "concatenated", 5, 64, optimiser="adamw", decay=1.0, steps=300),
    strangers.Script("relu", "tied", 7, 64, loss="mse", steps=300),
    strangers.Script("tanh", "joined_embedding", 5, 64, loss="mse", steps=400),
]


@pytest.mark.parametrize("script", SHORT, ids=lambda script: f"{script.sigma}-{script.first}-{script.loss}")
def test_a_wrong_guess_is_not_called_verified(script):
    guess, accuracy = guess_of(script)
    mistakes = wrong(guess, script)
    assert guess.confidence != "verified" or not mistakes
    if accuracy > 0.99:
        assert "tied" not in mistakes
        assert "group" not in mistakes
        assert script.sigma in (guess.layout.activation, *guess.rivals)


@pytest.mark.slow
def test_no_wrong_guess_is_verified_among_a_hundred_scripts():
    verified = learned = first = 0
    for script in strangers.scripts(100):
        guess, accuracy = guess_of(script)
        mistakes = wrong(guess, script)
        assert guess.confidence != "verified" or not mistakes, (script, mistakes, guess)
        if accuracy > 0.99:
            learned += 1
            verified += guess.confidence == "verified"
            first += "activation" not in mistakes
            assert script.sigma in (guess.layout.activation, *guess.rivals), (script, guess)
            assert not {"tied", "group"} & set(mistakes), (script, guess)
    assert learned >= 40, "too few of the scripts learned the task"
    assert verified >= learned / 4, "a test that calls everything ambiguous would be empty"
    assert first >= 0.75 * learned


# -- what is written down beside a network ---------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A ReLU network by cross-entropy whose numbers other activations fit as well."""
    network, accuracy = strangers.Script("relu", "biased", 7, 64, steps=600).run()
    assert accuracy == 1.0
    path = tmp_path_factory.mktemp("relu") / "model.pt"
    torch.save(network.state_dict(), path)
    return path, network


def test_a_word_beside_it_decides(trained, tmp_path):
    path, network = trained
    copy = Path(shutil.copy(path, tmp_path))
    state = Checkpoint(copy, "test", "0", None, network.state_dict())
    assert guess_layout(state).confidence == "ambiguous"
    assert {"square", "abs"} <= set(guess_layout(state).rivals)
    (tmp_path / "cfg.json").write_text('{"act_fn": "ReLU"}')
    guess = guess_layout(state)
    assert (guess.confidence, guess.layout.activation, guess.rivals) == ("verified", "relu", ())
    assert "cfg.json says act_fn = ReLU" in guess.reason
    (tmp_path / "cfg.json").write_text('{"act_fn": "leaky_relu"}')
    guess = guess_layout(state)
    assert guess.confidence == "ambiguous"
    assert "leaky_relu" in guess.doubts[0]
    (tmp_path / "cfg.json").write_text('{"act_fn": "tanh"}')  # the words of another network
    guess = guess_layout(state)
    assert guess.confidence == "ambiguous"
    assert "does not do the task" in guess.doubts[0]


def test_a_stored_training_loss_decides(trained):
    _, network = trained
    pairs, sums = strangers.pairs_and_sums((7,))
    loss = float(torch.nn.functional.cross_entropy(network(pairs), sums).detach())
    words = {"rhoscope.words": json.dumps({"train_loss": 1.1 * loss})}
    guess = guess_layout(Checkpoint(Path("memory"), "test", "0", None, network.state_dict(), metadata=words))
    assert guess.layout.activation == "relu"
    assert not {"square", "abs"} & set(guess.rivals)
    assert "stored training loss" in guess.reason


def test_a_bias_and_two_first_layers_are_all_used():
    torch.manual_seed(0)
    network = strangers.TwoLayers(7, 32, first="separate", sigma="square")
    state = {
        "w_a": network.left.weight.data.T,
        "w_b": network.right.weight.data.T,
        "w_c": network.fc2.weight.data,
    }
    state = {key: tensor.contiguous() for key, tensor in state.items()} | {"bias": 0.1 * torch.randn(32)}
    guess = guess_layout(Checkpoint(Path("memory"), "test", "0", None, state))
    assert (guess.layout.w_a, guess.layout.w_b, guess.layout.bias) == ("w_a", "w_b", "bias")
    assert guess.unused == ()
    state["extra"] = torch.randn(3, 3)
    state["copy"] = state["w_a"].clone()
    guess = guess_layout(Checkpoint(Path("memory"), "test", "0", None, state))
    assert guess.unused == ("extra",), "a copy of a used tensor is no unused one"


def test_a_reading_that_leaves_a_tensor_out_loses_to_one_that_uses_it():
    """Both do the task: the two embeddings are equal up to a constant, and the names speak for neither."""
    torch.manual_seed(0)
    network = strangers.SummedEmbedding(7, 32)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    network.emb_y = network.emb_x
    assert strangers.train(network, (7,), loss="mse", optimiser=optimiser, steps=500) == 1.0
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state["emb_y.weight"] += 1e-4
    guess = guess_layout(Checkpoint(Path("memory"), "test", "0", None, state))
    assert guess.layout.w_b is not None
    assert guess.unused == ()
    (trial,) = _trials_of(state, tied=True)[:1]
    assert trial.accuracy == 1.0, "the tied reading does the task as well"
    assert trial.unused == 1
    liked = replace(trial, candidate=replace(trial.candidate, prior=100.0))
    assert _best([liked, *_trials_of(state, tied=False)]).unused == 0


def _trials_of(state, *, tied: bool):
    checkpoint = Checkpoint(Path("memory"), "test", "0", None, state)
    found = [one for one in candidates(checkpoint, 7) if (one.second is None) is tied]
    trials = [trial for one in found for trial in _trials(one, "Z7", ("square",), checkpoint)]
    return sorted(trials, key=lambda trial: -trial.accuracy)


def test_unused_tensors_count_against_a_guess():
    network, accuracy = SHORT[2].run()
    assert accuracy == 1.0
    state = network.state_dict()
    assert guess_layout(Checkpoint(Path("memory"), "test", "0", None, state)).confidence == "verified"
    state["scale"] = torch.tensor([0.5])
    guess = guess_layout(Checkpoint(Path("memory"), "test", "0", None, state))
    assert guess.confidence == "ambiguous"
    assert guess.unused == ("scale",)
    assert any("scale is not used" in doubt for doubt in guess.doubts)


# -- logits of further tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_logits_of_further_tokens_are_not_dropped_in_silence(whole):
    torch.manual_seed(0)
    network = strangers.EmbeddedRelu(7, 48)
    pairs, sums = strangers.pairs_and_sums((7,))
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=1.0)
    for _ in range(500):
        optimiser.zero_grad()
        outputs = network(pairs) if whole else network(pairs)[:, :7]
        torch.nn.functional.cross_entropy(outputs, sums).backward()
        optimiser.step()
    layout = Layout(
        group="Z7", w_a="embed.weight[0:7] @ l1.weight[:, 0:16].T",
        w_b="embed.weight[0:7] @ l1.weight[:, 16:32].T", w_c="unembed.weight[0:7]",
        bias="l1.bias + embed.weight[7:8] @ l1.weight[:, 32:48].T",
    )  # fmt: skip
    state = Checkpoint(Path("memory"), "test", "0", None, network.state_dict())
    outputs = network.double()(pairs)
    values = [float(torch.nn.functional.cross_entropy(outputs[:, :k], sums).detach()) for k in (7, 8)]
    verdict = judge(layout, state, activation="relu")
    (said,) = verdict.doubts + verdict.remarks
    assert f"{values[0]:.4g} over the elements, {values[1]:.4g} with them" in said
    if whole:
        assert said in verdict.doubts
    for value, told in zip(values, ("were not in the softmax", "had the logits"), strict=True):
        words = {"rhoscope.words": json.dumps({"loss": value})}
        noted = Checkpoint(Path("memory"), "test", "0", None, state.tensors, metadata=words)
        verdict = judge(layout, noted, activation="relu")
        if max(values) > 1.3 * min(values):
            assert told in (verdict.doubts + verdict.remarks)[0]


# -- said everywhere ---------------------------------------------------------------------------------------


def test_an_ambiguous_guess_is_said_everywhere(trained, tmp_path, monkeypatch, capsys):
    path, _ = trained
    page, study = tmp_path / "page.html", tmp_path / "study.nc"
    arguments = ["analyze", path, "--eigenvalues", "1", "--report", page, "--out", study, "--quiet"]
    code, out, _ = rhoscope(monkeypatch, capsys, *arguments)
    assert code == 0
    (line,) = [line for line in out.splitlines() if "guessed (ambiguous)" in line]
    assert "square" in line
    assert "--activation decides" in line
    assert "guessed (ambiguous)" in page.read_text("utf-8")
    document = json.loads(xr.open_dataset(study, engine="h5netcdf").attrs["summary"])
    assert document["layout"]["guessed"] is True
    assert document["layout"]["confidence"] == "ambiguous"
    assert "square" in document["layout"]["rivals"]
    assert any("guessed (ambiguous)" in note for note in document["notes"])
    code, out, _ = rhoscope(monkeypatch, capsys, "analyze", path, "--activation", "relu", "--json", "--quiet")
    assert json.loads(out)["layout"]["rivals"] == []


def test_an_ambiguous_guess_is_not_written_down(trained, tmp_path, monkeypatch, capsys):
    path, _ = trained
    out = tmp_path / "own.safetensors"
    for arguments in (["convert", path], ["convert", path, "--effective"], ["compose", "add", path, path]):
        code, text, err = rhoscope(monkeypatch, capsys, *arguments, "--out", out, "--quiet")
        assert (code, text) == (2, "")
        assert "--activation" in err
        assert err.count("\n") == 1
        assert not out.exists()
    code, _, err = rhoscope(
        monkeypatch, capsys, "convert", path, "--out", out, "--activation", "relu", "--quiet"
    )
    assert code == 0, err


def test_tensors_that_a_given_layout_leaves_out_are_named(trained, monkeypatch, capsys):
    path, _ = trained
    tensors = [
        "--tensor",
        "w_a=fc1.weight[:,:7]",
        "--tensor",
        "w_b=fc1.weight[:,7:]",
        "--tensor",
        "w_c=fc2.weight",
    ]
    arguments = ["analyze", path, "--group", "Z7", *tensors, "--eigenvalues", "1", "--quiet"]
    code, out, _ = rhoscope(
        monkeypatch, capsys, *arguments, "--loss", "cross_entropy", "--activation", "relu"
    )
    assert code == 0
    assert "note: fc1.bias, fc2.bias are not used by the layout" in out
    code, out, _ = rhoscope(monkeypatch, capsys, *arguments, "--json")
    found = json.loads(out)
    assert found["layout"]["guessed"] is False
    assert found["layout"]["unused"] == ["fc1.bias", "fc2.bias"]
    assert found["layout"]["assumed"] == ["activation", "loss"]
    assert "relu" in found["layout"]["rivals"], "nobody said that it is the square"
    assert any("square is assumed" in note and "relu" in note for note in found["notes"])


def test_numbers_that_slices_leave_out_are_counted(trained, monkeypatch, capsys):
    path, _ = trained
    arguments = ["analyze", path, "--group", "Z7", "--loss", "cross_entropy", "--activation", "relu"]
    arguments += ["--tensor", "w_a=fc1.weight[:,:7]", "--tensor", "w_c=fc2.weight", "--quiet"]  # no w_b: tied
    code, out, _ = rhoscope(monkeypatch, capsys, *arguments, "--eigenvalues", "1")
    assert code == 0
    assert "note: numbers that the slices of the layout leave out: 448 of 896 of fc1.weight" in out


# -- another task ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dihedral(tmp_path_factory):
    """A run of a network that learned D5, whose order is that of Z10."""
    folder = tmp_path_factory.mktemp("dihedral")
    torch.manual_seed(0)
    network = strangers.ConcatenatedQuadratic(10, 32)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for steps in (0, 400):
        accuracy = strangers.train(
            network, (10,), loss="mse", optimiser=optimiser, steps=steps, table=strangers.dihedral_table(5)
        )
        torch.save(network.state_dict(), folder / f"step_{steps}.pt")
    assert accuracy == 1.0, "the script itself must have learned"
    return folder


@pytest.mark.parametrize("command", ["analyze", "crossings", "maxent"])
def test_a_network_of_another_task_is_told_in_the_first_line(
    dihedral, tmp_path, command, monkeypatch, capsys
):
    layout = ["--group", "Z10", "--loss", "mse", "--activation", "square",
              "--tensor", "w_a=fc1.weight[:, :10]", "--tensor", "w_b=fc1.weight[:, 10:]",
              "--tensor", "w_c=fc2.weight", "--tensor", "bias=fc1.bias",
              "--tensor", "output_bias=fc2.bias"]  # fmt: skip
    more = {
        "analyze": ["--eigenvalues", "1"],
        "crossings": ["--cache", tmp_path],
        "maxent": ["--frequencies", "1"],
    }
    page = tmp_path / "page.html"
    arguments = [command, dihedral, *layout, *more[command], "--quiet"]
    code, out, _ = rhoscope(monkeypatch, capsys, *arguments, "--report", page)
    assert code == 0
    said = "the network does not do the task it is read as"
    assert out.splitlines()[0].startswith(f"warning: {said}")
    assert "of all pairs of Z10" in out.splitlines()[0]
    assert said in page.read_text("utf-8")
    code, out, _ = rhoscope(monkeypatch, capsys, *arguments, "--json")
    found = json.loads(out)
    assert found["notes"][0].startswith(said)
    assert found["warnings"] == found["notes"][:1]


def test_a_network_that_does_its_task_has_no_warning(trained, monkeypatch, capsys):
    path, _ = trained
    arguments = ["analyze", path, "--activation", "relu", "--eigenvalues", "1", "--quiet", "--json"]
    _, out, _ = rhoscope(monkeypatch, capsys, *arguments)
    assert json.loads(out)["warnings"] == []
