"""Interrupted work and disks that refuse: the old file or the new one, nothing lost, one clear line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch

from analyses.training.trainer import TrainingPlan, train
from manifold.errors import CheckpointError
from tests.analyses.commands.durability import (
    TRAIN,
    Command,
    kill_crossings,
    kill_train,
    make_run,
    whole_cache,
    whole_run,
)
from tests.analyses.commands.test_checkpoint_commands import rhoscope

KILLS = int(os.environ.get("RHOSCOPE_KILLS", "50"))


def test_kills_of_train_lose_nothing(tmp_path):
    kill_train(tmp_path, 2, 0, signal.SIGKILL)


def test_kills_of_crossings_lose_nothing(tmp_path):
    kill_crossings(tmp_path, 2, 0, signal.SIGKILL)


@pytest.mark.slow
def test_many_kills_of_train(tmp_path):
    kill_train(tmp_path, KILLS, int(os.environ.get("RHOSCOPE_SEED", "1")), signal.SIGKILL)


@pytest.mark.slow
def test_many_kills_of_crossings(tmp_path):
    kill_crossings(tmp_path, KILLS, int(os.environ.get("RHOSCOPE_SEED", "1")), signal.SIGKILL)


def test_a_torn_file_would_be_seen(tmp_path):
    """Negative control: the checks after a kill fail on half-written files."""
    plan = TrainingPlan("Z3", width=4, steps=4)
    run = train(plan, tmp_path / "run", save_every=2)
    reference = {step: run.read(step).tensors for step in run.steps}
    assert whole_run(tmp_path / "run", reference) == {0, 2, 4}
    reference[2] = {key: tensor + 1e-16 for key, tensor in reference[4].items()}
    with pytest.raises(AssertionError):
        whole_run(tmp_path / "run", reference)
    torn = run.files[4]
    torn.write_bytes(torn.read_bytes()[:-7])
    reference[2] = run.read(2).tensors
    with pytest.raises(CheckpointError):
        whole_run(tmp_path / "run", reference)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "step_1_x.npz").write_bytes(b"PK\3\4half")
    with pytest.raises(AssertionError):
        whole_cache(tmp_path / "cache")


def test_a_damaged_state_of_an_interrupted_run_is_one_line(tmp_path, monkeypatch, capsys):
    train(TrainingPlan("Z3", width=8, steps=120, seed=4), tmp_path / "run", save_every=6)
    (tmp_path / "run" / "checkpoints" / "step_120.pt").unlink()
    (tmp_path / "run" / "resume.pt").write_bytes(b"PK\3\4half")
    code, out, err = rhoscope(monkeypatch, capsys, "train", tmp_path / "run", *TRAIN)
    assert (code, out) == (2, "")
    assert "resume.pt" in err
    assert err.count("\n") == 1


def test_ctrl_c_is_one_line_and_the_run_goes_on(tmp_path):
    options = [*TRAIN[:4], "--steps", "20000", *TRAIN[6:]]
    command = Command(tmp_path, "train", tmp_path / "run", *options)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("run/checkpoints/step_*.pt"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert command.signal(signal.SIGINT, 0.1)
    assert command.process.exitcode == 130
    assert command.err.read_text() == "rhoscope: interrupted; files already written are complete\n"
    assert command.out.read_text() == ""
    assert not list(tmp_path.rglob("*.part"))
    assert torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["step"] > 0


def test_ctrl_c_in_a_terminal_reaches_every_process(tmp_path):
    """The whole process group is interrupted, the reading child too; still one line."""
    run, cache = make_run(tmp_path), tmp_path / "cache"
    child = subprocess.Popen(
        [sys.executable, "-m", "analyses.cli", "crossings", str(run), "--cache", str(cache), "--quiet"],
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(whole_cache(cache)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, "")
    assert err == "rhoscope: interrupted; files already written are complete\n"


# -- disks that refuse -------------------------------------------------------------------------------

NAMESPACE = ["unshare", "-rm", "sh", "-c"]


def can_mount() -> bool:
    """Whether this system lets us mount a tiny disk in a namespace of our own."""
    if shutil.which("unshare") is None:
        return False
    probe = subprocess.run(
        [*NAMESPACE, "mount -t tmpfs -o size=64k none /mnt"], capture_output=True, check=False
    )
    return probe.returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="no mount namespaces here")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A finished run of 3 checkpoints."""
    path = tmp_path_factory.mktemp("network") / "run"
    train(TrainingPlan("Z5", width=300, steps=4), path, save_every=2)
    return path


RUNNER = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from analyses import cli
found = []
for arguments in json.load(sys.stdin):
    sys.argv, out, err, code = ["rhoscope", *arguments, "--quiet"], io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


@needs_mount
@pytest.mark.parametrize(
    ("options", "what"), [("size=16k", "No space left on device"), ("ro", "no right to write into")]
)
def test_full_and_read_only_disks_are_one_line(tmp_path, network, options, what):
    disk = tmp_path / "disk"
    disk.mkdir()
    commands = [
        ["train", disk / "run", "--group", "Z5", "--width", "300", "--steps", "4"],
        ["convert", network, "--out", disk / "out.safetensors"],
        ["analyze", network, "--operator", "flat", "--out", disk / "study.nc"],
        ["analyze", network, "--operator", "flat", "--report", disk / "page.html"],
        ["analyze", network, "--operator", "flat", "--csv", disk / "tables"],
        ["crossings", network, "--operator", "flat", "--cache", disk / "cache"],
    ]
    script = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
    done = subprocess.run(
        [*NAMESPACE, script, str(disk), sys.executable, "-c", RUNNER], check=False, text=True, timeout=300,
        input=json.dumps([[str(word) for word in command] for command in commands]), capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *refused, (code, out, err) = json.loads(done.stdout)
    assert (code, err) == (0, "")  # a cache is a convenience: the study goes on without it
    assert "finished steps are not kept" in out
    for command, (code, out, err) in zip(commands[:-1], refused, strict=True):
        assert code == 2, (command, code, out, err)
        found = command[0] == "analyze" and "second variation" in out  # what was found is not lost
        assert not out or found
        assert what in err, command
        assert str(disk) in err, command
        assert err.count("\n") == 1, err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_refuses_keeps_the_old_file(tmp_path, network, monkeypatch, capsys, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    out = tmp_path / "out.safetensors"
    assert rhoscope(monkeypatch, capsys, "convert", network, "--out", out)[0] == 0
    before = out.read_bytes()
    for place, name in ((os, "fsync"), (tempfile, "mkstemp")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, refuse)
            code, text, err = rhoscope(patch, capsys, "convert", network, "--out", out, "--force", "--quiet")
        assert (code, text) == (2, ""), name
        assert err == f"rhoscope: cannot write {out}: {os.strerror(number)}\n"
        assert out.read_bytes() == before
        assert [item.name for item in tmp_path.iterdir()] == [out.name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_behind_standard_output(network):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "analyses.cli", "inspect", str(network), "--quiet", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "rhoscope: cannot write standard output: No space left on device\n"


def test_a_closed_pipe_is_silent(network):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "analyses.cli", "inspect", str(network), "--quiet", "--json"],
        stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
