"""``rhoscope inspect`` and ``rhoscope convert`` from the command line alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from analyses import cli
from analyses.checkpoints.reader import read_checkpoint
from analyses.layouts.layout import Layout, stored_layout
from analyses.runs.run import Run
from tests.analyses.checkpoints.reading.hostile import live_pickles, torch_zip
from tests.analyses.layouts import strangers


def rhoscope(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    monkeypatch.setattr(sys, "argv", ["rhoscope", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *arguments: rhoscope(monkeypatch, capsys, *arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A stranger's checkpoint, trained by the stranger's script."""
    torch.manual_seed(0)
    network = strangers.ConcatenatedQuadratic(7, 48)
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.01)
    assert strangers.train(network, (7,), loss="mse", optimiser=optimiser, steps=800) == 1.0
    path = tmp_path_factory.mktemp("trained") / "stranger.pt"
    torch.save({"model": network.state_dict(), "optimizer": optimiser.state_dict(), "step": 800}, path)
    return path


class TestInspect:
    def test_json_document(self, command, trained):
        code, out, _ = command("inspect", trained, "--json")
        document = json.loads(out)
        assert code == 0
        assert out.count("\n") == 1
        assert document["format"] == "torch-zip"
        assert document["step"] == 800
        assert {"key": "fc1.weight", "shape": [48, 14], "dtype": "float32"} in document["tensors"]
        assert document["sha256"] == read_checkpoint(trained).sha256
        assert document["guess"]["group"] == "Z7"
        assert document["guess_confidence"] == "verified"
        Layout.from_dict(document["guess"]["layout"])

    def test_the_printed_layout_is_a_layout_file(self, command, trained, tmp_path):
        _, out, _ = command("inspect", trained, "--quiet")
        printed = out[out.index("guessed layout") :].splitlines()[1:]
        file = tmp_path / "layout.toml"
        file.write_text("\n".join(printed))
        Layout.from_toml(file).network(read_checkpoint(trained))

    def test_a_run_shows_its_own_layout(self, command, tmp_path):
        layout = Layout(group="Z5", w_a="w_a", w_b="w_b", w_c="w_c", loss="mse")
        run = Run.create(tmp_path / "run", {"layout": layout.to_dict()})
        for step in (2, 10):
            run.save(step, {name: torch.randn(5, 8) for name in ("w_a", "w_b", "w_c")})
        document = json.loads(command("inspect", tmp_path / "run", "--json")[1])
        assert document["step"] == 10
        assert document["layout"] == layout.to_dict()
        assert json.loads(command("inspect", tmp_path / "run", "--step", 2, "--json")[1])["step"] == 2

    def test_dry_run_reads_nothing(self, command, tmp_path):
        code, out, err = command("inspect", tmp_path / "missing.pt", "--dry-run")
        assert (code, out) == (0, "")
        assert "plan" in err

    def test_names_from_the_file_cannot_drive_the_terminal(self, command, tmp_path):
        path = tmp_path / "m.pt"
        torch.save({"w\x1b[2Jx": torch.ones(2, 2), "[bold]y": torch.ones(2, 2)}, path)
        code, out, _ = command("inspect", path)
        assert code == 0
        assert "\x1b" not in out
        assert "[bold]y" in out

    def test_an_unsafe_pickle_is_one_line_and_code_2(self, command, tmp_path):
        path = tmp_path / "evil.pt"
        path.write_bytes(torch_zip(live_pickles(tmp_path / "marker")["reduce"]))
        code, out, err = command("inspect", path, "--quiet", "--json")
        assert (code, out) == (2, "")
        assert "posix.system" in err
        assert err.count("\n") == 1
        assert not (tmp_path / "marker").exists()

    @pytest.mark.parametrize(
        ("name", "data", "what"),
        [("missing.pt", None, "no such file"), ("cut.pt", b"PK\3\4cut", "truncated"), ("x.pt", b"", "empty")],
    )
    def test_bad_files_are_one_line_and_code_2(self, command, tmp_path, name, data, what):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        code, out, err = command("inspect", tmp_path / name, "--quiet")
        assert (code, out) == (2, "")
        assert what in err
        assert err.count("\n") == 1


class TestConvert:
    def test_with_the_guessed_layout(self, command, trained, tmp_path):
        out = tmp_path / "out.safetensors"
        code, text, _ = command("convert", trained, "--out", out, "--json")
        document = json.loads(text)
        assert code == 0
        old, new = read_checkpoint(trained), read_checkpoint(out)
        assert set(new.tensors) == set(old.tensors)
        assert all(torch.equal(new.tensors[key], old.tensors[key]) for key in old.tensors)
        assert new.step == 800
        assert stored_layout(new).to_dict() == document["layout"]
        note = json.loads(safetensors.safe_open(out, "pt").metadata()["rhoscope"])
        assert note["provenance"]["source"]["sha256"] == old.sha256

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_effective_weights(self, command, trained, tmp_path, suffix):
        out = tmp_path / f"out{suffix}"
        assert command("convert", trained, "--out", out, "--effective")[0] == 0
        new = read_checkpoint(out)
        assert {tuple(tensor.shape) for tensor in new.tensors.values()} == {(7, 49)}
        module = strangers.ConcatenatedQuadratic(7, 48).double()
        module.load_state_dict(torch.load(trained, weights_only=True)["model"])
        pairs, _ = strangers.pairs_and_sums((7,))
        outputs = stored_layout(new).network(new).outputs().reshape(49, 7)
        assert torch.allclose(outputs, module(pairs), rtol=0, atol=1e-12)

    def test_options_decide(self, command, trained, tmp_path):
        out = tmp_path / "out.safetensors"
        options = [
            "--group",
            "Z7",
            "--tensor",
            "w_a=fc1.weight[:, 0:7]",
            "--tensor",
            "w_b=fc1.weight[:, 7:14]",
        ]
        options += ["--tensor", "w_c=fc2.weight", "--loss", "cross_entropy", "--output-scale", "2"]
        assert command("convert", trained, "--out", out, *options)[0] == 0
        layout = stored_layout(read_checkpoint(out))
        assert (layout.loss, layout.output_scale, layout.bias) == ("cross_entropy", 2.0, None)

    def test_tensors_without_a_layout(self, command, tmp_path):
        path = tmp_path / "m.pt"
        torch.save({"w": torch.ones(2, 3)}, path)
        assert command("convert", path, "--out", tmp_path / "out.safetensors")[0] == 0
        assert stored_layout(read_checkpoint(tmp_path / "out.safetensors")) is None
        code, _, err = command("convert", path, "--out", tmp_path / "other.pt", "--effective", "--quiet")
        assert code == 2
        assert "--tensor" in err

    def test_nothing_is_written_over(self, command, trained, tmp_path):
        out = tmp_path / "out.safetensors"
        out.write_text("mine")
        code, _, err = command("convert", trained, "--out", out, "--quiet")
        assert (code, out.read_text()) == (2, "mine")
        assert "--force" in err
        assert command("convert", trained, "--out", out, "--force")[0] == 0

    @pytest.mark.parametrize(
        ("options", "what"),
        [
            (["--tensor", "w_a=fc1.wieght", "--tensor", "w_c=fc2.weight", "--group", "Z7"], "fc1.weight"),
            (["--tensor", "w_a=fc1.weight", "--tensor", "w_c=fc2.weight", "--group", "Z9"], "Z9"),
            (["--tensor", "w_a=fc1.weight["], "character"),
            (["--layout", "missing.toml"], "missing.toml"),
            (["--loss", "hinge"], "hinge"),
            (["--group", "S3"], "S3"),
            (["--step", "3"], "--step 3"),
        ],
    )
    def test_bad_options_are_one_line_and_leave_nothing(self, command, trained, tmp_path, options, what):
        out = tmp_path / "out.safetensors"
        code, text, err = command("convert", trained, "--out", out, "--quiet", *options)
        assert (code, text) == (2, "")
        assert what in err
        assert err.count("\n") == 1
        assert not out.exists()


def test_help_has_examples(command):
    for name in ("inspect", "convert"):
        code, out, _ = command(name, "--help")
        assert code == 0
        assert f"rhoscope {name}" in out


def test_as_a_process(trained):
    """The whole path a user takes, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "analyses.cli", "inspect", str(trained), "--json"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert json.loads(done.stdout)["guess_accuracy"] == 1.0
