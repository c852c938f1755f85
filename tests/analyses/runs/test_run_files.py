"""Which files of a folder are a run, of which step, and what is said about the others."""

from __future__ import annotations

import json
import os
import re

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings

from analyses.runs.run import Run, read_target
from manifold.errors import CheckpointError


def network(value: float = 0.0) -> dict:
    return {name: torch.full((5, 8), float(value)) for name in ("w_a", "w_b", "w_c")}


def fill(folder, files: dict[str, dict | None]) -> None:
    """Checkpoints by name with what is stored beside the network; None: an empty file."""
    for number, (name, beside) in enumerate(files.items()):
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        if beside is None:
            path.write_bytes(b"")
        elif name.endswith(".safetensors"):
            safetensors.torch.save_file(network(number), path)
        else:
            torch.save({"model": network(number), **beside}, path)


def steps_by_name(folder) -> dict[str, int]:
    return {path.name: step for step, path in Run.open(folder).files.items()}


FOLDERS = {
    "lightning_versions": (
        {
            "epoch=0-step=100.ckpt": {"global_step": 100, "epoch": 0},
            "epoch=1-step=200.ckpt": {"global_step": 200, "epoch": 1},
            "epoch=1-step=200-v1.ckpt": {"global_step": 200, "epoch": 1},
            "last.ckpt": {"global_step": 200, "epoch": 1},
            "last-v1.ckpt": {"global_step": 450, "epoch": 3},
        },
        {"epoch=0-step=100.ckpt": 100, "epoch=1-step=200-v1.ckpt": 200, "last-v1.ckpt": 450},
        {"epoch=1-step=200.ckpt": "older version", "last.ckpt": "same step"},
    ),
    "tar_and_links": (
        {"step_10.pt": {}, "step_20.pth.tar": {}, "step_30.pt.tar": {}, "step_40.PT": {}, "step_50.tar": {}},
        {"step_10.pt": 10, "step_20.pth.tar": 20, "step_30.pt.tar": 30, "step_40.PT": 40, "step_50.tar": 50},
        {},
    ),
    "final_with_a_step": (
        {"200.pth": {}, "1000.pth": {}, "final.pth": {"epoch": 5000}},
        {"200.pth": 200, "1000.pth": 1000, "final.pth": 5000},
        {},
    ),
    "final_best_last_without": (
        {"step_1.pt": {}, "step_2.pt": {}, "final.pth": {}, "best.pt": {}, "last.ckpt": {}},
        {"step_1.pt": 1, "step_2.pt": 2},
        dict.fromkeys(("final.pth", "best.pt", "last.ckpt"), "neither its name nor its content"),
    ),
    "ids": (
        {"model_dy65ktpiij.pt": {"epoch": 30}, "model_7734.pt": {"epoch": 20}},
        {"model_dy65ktpiij.pt": 30, "model_7734.pt": 20},
        {},
    ),
    "stored_beats_name": (
        {"epoch_1.pt": {"global_step": 500}, "epoch_2.pt": {"global_step": 1000}},
        {"epoch_1.pt": 500, "epoch_2.pt": 1000},
        {},
    ),
    "stored_is_constant": (  # "steps" of a configuration, the same in every file
        {"net_10.pt": {"steps": 9000}, "net_20.pt": {"steps": 9000}},
        {"net_10.pt": 10, "net_20.pt": 20},
        {},
    ),
    "stored_epoch_counts_otherwise": (
        {"step_100.pt": {"epoch": 1}, "step_200.pt": {"epoch": 2}},
        {"step_100.pt": 100, "step_200.pt": 200},
        {},
    ),
    "some_have_other_units": (
        {"epoch_1.pt": {"step": 500}, "epoch_2.pt": {"step": 1000}, "epoch_3.pt": {}},
        {"epoch_1.pt": 500, "epoch_2.pt": 1000},
        {"epoch_3.pt": "no stored step"},
    ),
    "one_number_changes": (
        {"net_113_512_40.pt": {}, "net_113_512_80.pt": {}, "net_113_512_best.pt": {}},
        {"net_113_512_40.pt": 40, "net_113_512_80.pt": 80},
        {"net_113_512_best.pt": "neither"},
    ),
    "optimiser_files": (
        {"model_100.pt": {}, "optimizer_100.pt": {}, "model_200.pt": {}, "scheduler_200.pt": {}},
        {"model_100.pt": 100, "model_200.pt": 200},
        {"optimizer_100.pt": "optimiser", "scheduler_200.pt": "optimiser"},
    ),
    "empty_files": (
        {"step_1.pt": {}, "step_2.pt": {}, "step_3.pt": None},
        {"step_1.pt": 1, "step_2.pt": 2},
        {"step_3.pt": "empty"},
    ),
    "beside_the_folder_checkpoints": (
        {"checkpoints/step_1.pt": {}, "checkpoints/step_2.pt": {}, "final.pt": {"step": 9}, "best.pt": {}},
        {"step_1.pt": 1, "step_2.pt": 2, "final.pt": 9},
        {"best.pt": "neither"},
    ),
    "other_formats": (
        {
            "step_1.pt": {}, "step_2.safetensors": {}, "step_3.npz": None, "model_4.pt.gz": None,
            "log.zip": None,
        },
        {"step_1.pt": 1, "step_2.safetensors": 2},
        {"step_3.npz": "not a format", "model_4.pt.gz": "not a format"},
    ),
    "no_suffix": ({"checkpoint_7": {}, "checkpoint_8": {}}, {"checkpoint_7": 7, "checkpoint_8": 8}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder(tmp_path, name):
    files, steps, skipped = FOLDERS[name]
    fill(tmp_path, files)
    run = Run.open(tmp_path)
    assert {path.name: step for step, path in run.files.items()} == steps
    assert list(run.steps) == sorted(run.steps)
    assert set(run.left_out) == set(skipped)
    for file, reason in skipped.items():
        assert reason in run.left_out[file]
    for step in run.steps:
        assert run.read(step).step == step


def test_links_to_nothing_and_files_of_others(tmp_path):
    fill(tmp_path, {"step_10.pt": {}, "step_20.pt": {}})
    (tmp_path / "step_30.pt").symlink_to("/nowhere/step_30.pt")
    (tmp_path / "step_40").symlink_to(tmp_path / "step_40")
    os.mkfifo(tmp_path / "step_50.pt")
    run = Run.open(tmp_path)
    assert run.steps == (10, 20)
    assert set(run.left_out) == {"step_30.pt", "step_40", "step_50.pt"}
    assert "/nowhere/step_30.pt" in run.left_out["step_30.pt"]


def test_damaged_files_stay_if_their_names_tell_a_step(tmp_path):
    """A study refuses them, or leaves them out with --skip-bad; others are named at once."""
    fill(tmp_path, {"step_1.pt": {}, "step_2.pt": {}})
    for name in ("step_3.pt", "notes.bin"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 cut")
    run = Run.open(tmp_path)
    assert run.steps == (1, 2, 3)
    assert "truncated" in run.left_out["notes.bin"]
    with pytest.raises(CheckpointError, match="truncated"):
        run.read(3)


def test_a_folder_of_one_checkpoint(tmp_path):
    fill(tmp_path, {"model.pt": {}})
    (tmp_path / "cfg.json").write_text("{}")
    checkpoint, run = read_target(tmp_path)
    assert checkpoint.step is None
    assert run.steps == (0,)
    fill(tmp_path, {"optimizer.pt": None})
    assert set(Run.open(tmp_path).left_out) == {"optimizer.pt"}


def test_a_folder_of_nothing_names_what_it_saw(tmp_path):
    fill(tmp_path, {"step_3.npz": None, "step_1.pt": None})
    with pytest.raises(CheckpointError, match=r"step_1\.pt: empty.*step_3\.npz: not a format"):
        Run.open(tmp_path)


def test_every_file_of_a_run_holds_several_networks(tmp_path):
    for step in (1, 2):
        torch.save({"student": [network(step), network(10 * step)]}, tmp_path / f"step_{step}.pt")
    with pytest.raises(CheckpointError, match=r"step_2\.pt::student\.1"):
        read_target(tmp_path)
    checkpoint, run = read_target(f"{tmp_path}::student.1")
    assert (checkpoint.step, run.path) == (2, tmp_path)
    assert checkpoint.tensors["w_a"].eq(20).all()
    assert run.read(1).tensors["w_a"].eq(10).all()


def test_our_own_runs_are_not_opened_to_find_steps(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run", {"group": "Z5"})
    for step in (1, 20):
        run.save(step, network())
    (tmp_path / "run" / "resume.pt").write_bytes(b"x")
    torch.save(network(), tmp_path / "run" / "mine.pt")
    monkeypatch.setattr("analyses.runs.run_files.CheckpointReader", None)  # would raise
    again = Run.open(tmp_path / "run")
    assert again.steps == (1, 20)
    assert again.left_out == {"mine.pt": "outside the folder checkpoints"}


_PARTS = st.sampled_from(["step", "epoch", "model", "net", "best", "last", "v1", "seed", "10k", "0.5", "x9y"])
_NAMES = st.lists(_PARTS | st.integers(0, 999).map(str), min_size=1, max_size=4)
_FILES = st.dictionaries(
    st.builds(
        lambda parts, mark, suffix: mark.join(parts) + suffix,
        _NAMES,
        st.sampled_from(["_", "-", "=", "."]),
        st.sampled_from([".pt", ".pth", ".ckpt", ".pth.tar", ".npz", ".bin"]),
    ),
    st.sampled_from([{}, {"step": 5}, {"epoch": 3}, {"global_step": 40, "epoch": 2}, None]),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(_FILES)
def test_no_file_is_dropped_without_a_word(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("folder")
    fill(folder, files)
    try:
        run = Run.open(folder)
    except CheckpointError:
        return
    seen = {path.name for path in run.files.values()} | set(run.left_out)
    speaking = {name for name in files if not name.endswith(".npz")}
    assert speaking <= seen <= set(files)
    assert all(run.left_out.values())
    for step, path in run.files.items():
        stored = files[path.name] or {}
        alone = {int(part) for part in re.split(r"[-=._]", path.name) if part.isdigit()}
        assert step in {*stored.values(), *alone, *([] if run.numbered else [0])}


def test_a_run_json_of_another_trainer_is_no_layout(tmp_path):
    fill(tmp_path, {"step_1.pt": {}})
    (tmp_path / "run.json").write_text(json.dumps({"layout": {"rows": 3}, "schema_version": "2.0"}))
    assert Run.open(tmp_path).layout is None
