"""Run directories: steps as numbers, resumable, atomic; folders of other trainers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from analyses.checkpoints.reader import read_checkpoint
from analyses.layouts.layout import Layout, stored_layout
from analyses.runs.exports import write_checkpoint, write_network
from analyses.runs.run import Run, known_layout, read_target, run_of
from manifold.errors import CheckpointError, InputError, OutputExistsError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.group_network import GroupNetwork

LAYOUT = Layout(group="Z5", w_a="w_a", w_b="w_b", w_c="w_c", output_scale=0.5)
CONFIG = {"group": "Z5", "loss": "projected_mse", "seed": 0, "layout": LAYOUT.to_dict()}


def state(value: float = 0.0) -> dict:
    return {name: torch.full((5, 8), float(value)) for name in ("w_a", "w_b", "w_c")}


class TestOwnRuns:
    def test_steps_are_sorted_as_numbers(self, tmp_path):
        run = Run.create(tmp_path / "run", CONFIG)
        for step in (1000, 9, 20, 0):
            run.save(step, state(step))
        assert run.steps == (0, 9, 20, 1000)
        again = Run.open(tmp_path / "run")
        assert again.steps == run.steps
        assert again.layout == LAYOUT
        assert again.config["seed"] == 0
        checkpoint = again.read(20)
        assert checkpoint.step == 20
        assert checkpoint.tensors["w_a"].eq(20).all()

    def test_plain_torch_reads_them(self, tmp_path):
        run = Run.create(tmp_path / "run", CONFIG)
        path = run.save(3, state(3))
        assert path == tmp_path / "run" / "checkpoints" / "step_3.pt"
        assert torch.load(path, weights_only=True)["w_a"].eq(3).all()
        path = run.save(4, state(4), suffix=".safetensors")
        assert safetensors.torch.load_file(path)["w_c"].eq(4).all()

    def test_the_same_state_gives_the_same_bytes(self, tmp_path):
        first, second = (Run.create(tmp_path / name, CONFIG).save(1, state(1)) for name in "ab")
        assert first.read_bytes() == second.read_bytes()

    def test_an_earlier_run_is_kept_without_force(self, tmp_path):
        run = Run.create(tmp_path / "run", CONFIG)
        run.save(1, state())
        with pytest.raises(OutputExistsError):
            Run.create(tmp_path / "run", CONFIG)
        assert Run.open(tmp_path / "run").steps == (1,)

    def test_force_removes_only_what_we_wrote(self, tmp_path):
        run = Run.create(tmp_path / "run", CONFIG)
        run.save(1, state())
        note = tmp_path / "run" / "checkpoints" / "notes.txt"
        note.write_text("mine")
        assert Run.create(tmp_path / "run", CONFIG | {"seed": 1}, force=True).steps == ()
        assert note.read_text() == "mine"
        assert json.loads((tmp_path / "run" / "run.json").read_text())["seed"] == 1

    def test_resume_needs_the_same_configuration(self, tmp_path):
        run = Run.create(tmp_path / "run", CONFIG | {"steps": 10})
        run.save(1, state())
        assert Run.create(tmp_path / "run", CONFIG | {"steps": 99}, resume=True).steps == (1,)
        with pytest.raises(InputError, match="seed was 0 and is now 1"):
            Run.create(tmp_path / "run", CONFIG | {"seed": 1}, resume=True)

    def test_resume_starts_a_run_where_there_is_none(self, tmp_path):
        assert Run.create(tmp_path / "run", CONFIG, resume=True).steps == ()

    def test_not_over_a_file_or_a_strangers_folder(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        for force in (False, True):
            with pytest.raises(OutputExistsError):
                Run.create(tmp_path / "file", CONFIG, force=force)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "thesis.tex").write_text("mine")
        with pytest.raises(OutputExistsError):
            Run.create(tmp_path / "folder", CONFIG, resume=True)

    def test_what_a_killed_write_left_is_cleared(self, tmp_path):
        left = tmp_path / "run" / ".run.json.abc.part"
        left.parent.mkdir()
        left.write_text("{")
        Run.create(tmp_path / "run", CONFIG)
        assert not left.exists()

    @pytest.mark.parametrize(("step", "suffix"), [(-1, ".pt"), (1, ".pkl")])
    def test_bad_saves(self, tmp_path, step, suffix):
        with pytest.raises(InputError):
            Run.create(tmp_path / "run", CONFIG).save(step, state(), suffix=suffix)

    def test_a_step_that_is_not_there(self, tmp_path):
        run = Run.create(tmp_path / "run", CONFIG)
        run.save(10, state())
        with pytest.raises(InputError, match=r"near ones: \[10\]"):
            run.read(11)

    @pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 100_000, '{"schema_version": 999}'])
    def test_damaged_run_json(self, tmp_path, text):
        run = Run.create(tmp_path / "run", CONFIG)
        run.save(1, state())
        (tmp_path / "run" / "run.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"run\.json"):
            Run.open(tmp_path / "run")


class TestStrangersFolders:
    @pytest.mark.parametrize(
        ("names", "steps"),
        [
            (["step_2.pt", "step_10.pt", "step_1.pt"], (1, 2, 10)),
            (["100.pth", "20.pth"], (20, 100)),
            (["epoch=1-step=10.ckpt", "epoch=2-step=20.ckpt", "last.ckpt"], (10, 20)),
            (["model_iter5.bin", "model_iter50.bin"], (5, 50)),
        ],
    )
    def test_steps_in_names(self, tmp_path, names, steps):
        for name in names:
            torch.save(state(), tmp_path / name)
        run = Run.open(tmp_path)
        assert run.steps == steps
        assert [path.name for path, _ in run.skipped] == [name for name in names if name == "last.ckpt"]

    def test_steps_inside(self, tmp_path):
        for name, step in (("a.pt", 30), ("b.pt", 4)):
            torch.save({"model": state(step), "step": step}, tmp_path / name)
        run = Run.open(tmp_path)
        assert run.steps == (4, 30)
        assert run.read(30).tensors["w_a"].eq(30).all()

    def test_steps_by_pattern(self, tmp_path):
        for name in ("p5_q8_t30.pt", "p5_q8_t4.pt", "p5_q8_final.pt"):
            torch.save(state(), tmp_path / name)
        run = Run.open(tmp_path, step_pattern=r"_t(\d+)")
        assert run.steps == (4, 30)
        assert [path.name for path, _ in run.skipped] == ["p5_q8_final.pt"]

    def test_folders_of_checkpoints(self, tmp_path):
        for step in (500, 1000):
            (tmp_path / f"checkpoint-{step}").mkdir()
            safetensors.torch.save_file(state(step), tmp_path / f"checkpoint-{step}" / "model.safetensors")
        run = Run.open(tmp_path)
        assert run.steps == (500, 1000)
        assert run.read(500).tensors["w_b"].eq(500).all()

    def test_the_same_step_twice(self, tmp_path):
        for name in ("step_1.pt", "step_01.pt"):
            torch.save(state(), tmp_path / name)
        with pytest.raises(CheckpointError, match=r"step 1 is there twice.*step_01\.pt.*step_1\.pt"):
            Run.open(tmp_path)

    def test_nothing_tells_the_step(self, tmp_path):
        for name in ("model_dy65ktpiij.pt", "model_7r4zst7evs.pt"):
            torch.save(state(), tmp_path / name)
        with pytest.raises(CheckpointError, match=r"--step-pattern") as caught:
            Run.open(tmp_path)
        assert "model_dy65ktpiij.pt" in str(caught.value)

    @pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
    def test_no_run_at_all(self, tmp_path, make):
        make(tmp_path / "run")
        with pytest.raises(CheckpointError):
            Run.open(tmp_path / "run")


class TestTargets:
    def test_a_file_of_a_run_finds_its_layout(self, tmp_path):
        run = Run.create(tmp_path / "run", CONFIG)
        path = run.save(7, state(7))
        checkpoint, found = read_target(path)
        assert checkpoint.step == 7
        assert known_layout(checkpoint, found) == LAYOUT
        assert run_of(path).path == (tmp_path / "run").resolve()
        assert run_of(tmp_path / "elsewhere.pt") is None

    def test_a_run_means_its_last_step(self, tmp_path):
        run = Run.create(tmp_path / "run", CONFIG)
        for step in (3, 20):
            run.save(step, state(step))
        assert read_target(tmp_path / "run")[0].step == 20
        assert read_target(tmp_path / "run", step=3)[0].step == 3

    def test_a_folder_that_is_one_checkpoint(self, tmp_path):
        safetensors.torch.save_file(state(2), tmp_path / "model.safetensors")
        checkpoint, run = read_target(tmp_path)
        assert run is None
        assert checkpoint.tensors["w_a"].eq(2).all()

    def test_another_step_of_a_single_file(self, tmp_path):
        torch.save(state(), tmp_path / "step_3.pt")
        assert read_target(tmp_path / "step_3.pt", step=3)[0].step == 3
        with pytest.raises(InputError, match="one checkpoint"):
            read_target(tmp_path / "step_3.pt", step=4)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("tied", [False, True])
def test_written_networks_carry_their_layout(tmp_path, suffix, tied):
    a, b, c = torch.randn(3, 6, 10, dtype=torch.float64)
    network = GroupNetwork(FiniteAbelianGroup.parse("Z2xZ3"), a, None if tied else b, c, 0.25)
    path = tmp_path / f"net{suffix}"
    write_network(path, network, loss="mse", provenance={"who": "test"}, step=12)
    checkpoint = read_checkpoint(path)
    layout = stored_layout(checkpoint)
    again = layout.network(checkpoint)
    assert checkpoint.step == 12
    assert layout.loss == "mse"
    assert json.loads(checkpoint.metadata["rhoscope"])["provenance"] == {"who": "test"}
    assert torch.equal(again.outputs(), network.outputs())
    if suffix == ".pt":
        assert torch.equal(torch.load(path, weights_only=True)["model"]["w_a"], a)
    else:
        assert torch.equal(safetensors.torch.load_file(path)["w_a"], a)


def test_an_export_is_never_written_over(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        write_checkpoint(path, state(), layout=LAYOUT, provenance={})
    assert path.read_text() == "mine"
    with pytest.raises(InputError, match=r"\.safetensors or \.pt"):
        write_checkpoint(tmp_path / "net.npz", state(), layout=LAYOUT, provenance={})


WRITER = """
import sys, torch
from analyses.runs.run import Run
run = Run.create(sys.argv[1], {"group": "Z5"}, resume=True)
step = max(run.steps, default=0)
print("ready", flush=True)
while True:
    step += 1
    run.save(step % 7, {"w_a": torch.full((40, 500), float(step))})
"""


def kill_at_random(folder, kills: int, seed: int) -> None:
    """Kill a writing process at random moments; after each, every checkpoint must be whole."""
    moments = random.Random(seed)
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        assert child.stdout.readline().strip() == b"ready"
        time.sleep(moments.uniform(0, 0.05))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        run = Run.open(folder)
        for step in run.steps:
            values = run.read(step).tensors["w_a"]
            assert values.eq(values[0, 0]).all()


def test_kills_leave_whole_checkpoints(tmp_path):
    Run.create(tmp_path / "run", {"group": "Z5"}).save(0, {"w_a": torch.zeros(40, 500)})
    kill_at_random(tmp_path / "run", 3, seed=0)


@pytest.mark.slow
def test_a_hundred_kills_leave_whole_checkpoints(tmp_path):
    Run.create(tmp_path / "run", {"group": "Z5"}).save(0, {"w_a": torch.zeros(40, 500)})
    kill_at_random(tmp_path / "run", 100, seed=1)
