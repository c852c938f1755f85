"""Hints: words for activation and loss in checkpoints and beside them."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from analyses.checkpoints.reader import read_checkpoint
from analyses.layouts.hints import hints_of

STATE = {"w": torch.randn(3, 4)}


def words(path):
    found = hints_of(read_checkpoint(path))
    activation, loss = found.activation(), found.loss()
    return activation and activation.name, loss and loss.name


@pytest.fixture
def model(tmp_path):
    torch.save(STATE, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"act_fn": "ReLU"}, ("relu", None)),
        ({"activation": "torch.nn.modules.activation.GELU"}, ("gelu", None)),
        ({"model": {"mlp": {"act": "nn.Tanh()"}}}, ("tanh", None)),
        ({"act_type": "Quad"}, ("square", None)),
        ({"activation_fn": "lambda x: x**2"}, ("square", None)),
        ({"nonlinearity": "abs", "loss": "MSELoss"}, ("abs", "mse")),
        ({"loss_fn": "CrossEntropyLoss()", "hidden_act": "relu"}, ("relu", "cross_entropy")),
        ({"criterion": "cross-entropy"}, (None, "cross_entropy")),
        ({"activation": "leaky_relu"}, (None, None)),
        ({"act_fn": "silu"}, (None, None)),
        ({"act_fn": "relu", "activation": "gelu"}, (None, None)),
        ({"name": "relu net", "active": "relu", "lossy": "mse"}, (None, None)),
        ({"act_fn": 3, "loss": None}, (None, None)),
    ],
)
def test_words_in_a_configuration(model, entry, expected):
    (model.parent / "cfg.json").write_text(json.dumps(entry))
    assert words(model) == expected


def test_a_word_for_an_unknown_activation_is_kept(model):
    (model.parent / "config.json").write_text('{"act_fn": "leaky_relu"}')
    (word,) = hints_of(read_checkpoint(model)).activations
    assert (word.name, word.place) == (None, "config.json")
    assert "leaky_relu" in word.text


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("run.json", True), ("args.json", True), ("hparams.json", True), ("config.json", True),
        ("config_7r4.json", True), ("config_other.json", False), ("notes.json", False),
        ("train_config.json", True), ("hyperparameters.json", True),
    ],
)  # fmt: skip
def test_files_that_count(tmp_path, name, counts):
    torch.save(STATE, tmp_path / "model_7r4.pt")
    (tmp_path / name).write_text('{"activation": "relu"}')
    assert words(tmp_path / "model_7r4.pt") == ("relu" if counts else None, None)


def test_yaml_and_the_folder_above(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save(STATE, folder / "last.ckpt")
    (tmp_path / "hparams.yaml").write_text("model:\n  act_fn: relu  # of the block\nloss: 'mse'\n")
    assert words(folder / "last.ckpt") == ("relu", "mse")
    other = tmp_path / "epochs_of_today"
    other.mkdir()
    torch.save(STATE, other / "last.ckpt")
    assert words(other / "last.ckpt") == (None, None)


@pytest.mark.parametrize("text", ["{", "[" * 50_000, "\x00", '{"act_fn": ["relu", 3]}', "[]", '"relu"'])
def test_damaged_configurations_say_nothing(model, text):
    (model.parent / "cfg.json").write_text(text)
    assert words(model) == (None, None)


def test_words_and_losses_inside_a_checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    config = {"act_fn": "gelu", "deep": {"loss": "mse"}}
    torch.save({"model": STATE, "config": config, "train_losses": [0.5, 0.25], "loss": float("nan")}, path)
    assert words(path) == ("gelu", "mse")
    assert hints_of(read_checkpoint(path)).values == (0.25,)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(STATE, path, metadata={"activation": "relu"})
    assert words(path) == ("relu", None)
