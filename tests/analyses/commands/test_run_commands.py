"""Commands over runs: what is left out is said, bad steps can be skipped, users' folders stay as they are."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch

from analyses.common.user_cache import cache_folder, why_unwritable
from tests.analyses.commands.test_checkpoint_commands import rhoscope
from tests.analyses.runs.test_recipes import WEIGHTS, network


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *arguments: rhoscope(monkeypatch, capsys, *arguments, "--quiet")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    for step in (10, 20, 30):
        torch.save(network(step), path / f"step_{step}.pt")
    return path


@pytest.fixture
def with_leftovers(folder):
    torch.save(network(1), folder / "final.pth")
    (folder / "step_40.pt").symlink_to("/nowhere/at/all.pt")
    (folder / "step_50.pt").write_bytes(b"")
    return folder


COMMANDS = {
    "inspect": ["inspect"],
    "analyze": ["analyze", *WEIGHTS],
    "crossings": ["crossings", *WEIGHTS],
    "maxent": ["maxent", *WEIGHTS, "--frequencies", 1],
    "maxent_steps": ["maxent", *WEIGHTS, "--frequencies", 1, "--all-steps", "--base", "torus"],
    "convert": ["convert", *WEIGHTS, "--out"],
    "report": ["report", *WEIGHTS, "--out"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_left_out_is_said_on_both_ways_out(with_leftovers, tmp_path, command, name):
    words = COMMANDS[name]
    out = [tmp_path / ("page.html" if name == "report" else "net.pt")] if words[-1] == "--out" else []
    arguments = [words[0], with_leftovers, *words[1:], *out]
    code, text, err = command(*arguments)
    assert code == 0, err
    for file, reason in (("final.pth", "neither"), ("step_40.pt", "/nowhere"), ("step_50.pt", "empty")):
        (line,) = [line for line in text.splitlines() if line.startswith(f"left out: {file}: ")]
        assert reason in line
    code, text, err = command(*arguments, "--json", *(["--force"] if out else []))
    assert code == 0, err
    assert {"final.pth", "step_40.pt", "step_50.pt"} <= set(json.loads(text)["skipped"])


@pytest.mark.parametrize("name", ["crossings", "maxent_steps", "report"])
@pytest.mark.parametrize(("where", "whole"), [(20, True), (30, False)])
def test_one_bad_step_of_many(folder, tmp_path, command, name, where, whole):
    """NaN in every tensor, or in one that is used; in the middle, or at the end."""
    bad = network(where)
    for key in list(bad) if whole else ["w_b"]:
        bad[key][0, 0] = torch.nan
    torch.save(bad, folder / f"step_{where}.pt")
    words = COMMANDS[name]
    out = [tmp_path / "page.html"] if name == "report" else []
    arguments = [words[0], folder, *words[1:], *out, "--json"]
    code, text, err = command(*arguments)
    assert (code, text) == (2, "")
    assert "--skip-bad" in err
    assert f"step {where}" in err
    assert err.count("\n") == 1
    code, text, err = command(*arguments, "--skip-bad")
    assert code == 0, err
    document = json.loads(text)
    left = [step for step in (10, 20, 30) if step != where]
    steps = document["trajectory"]["steps"] if name == "maxent_steps" else document["steps"]
    assert steps == left
    assert "NaN" in document["skipped"][str(where)]


def test_skip_bad_without_all_steps_is_refused(folder, command):
    code, _, err = command("maxent", folder, *WEIGHTS, "--skip-bad")
    assert code == 2
    assert "--all-steps" in err


def test_no_usable_step_says_why(folder, command):
    for step in (10, 20, 30):
        torch.save({key: w * torch.nan for key, w in network(1).items()}, folder / f"step_{step}.pt")
    for name in ("crossings", "maxent_steps"):
        code, text, err = command(COMMANDS[name][0], folder, *COMMANDS[name][1:], "--skip-bad")
        assert (code, text) == (2, "")
        assert "NaN" in err


class TestCache:
    def listing(self, folder):
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

    def test_nothing_is_written_with_the_checkpoints(self, folder, command, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache home"))
        before = self.listing(folder)
        assert command("crossings", folder, *WEIGHTS)[0] == 0
        assert self.listing(folder) == before
        assert len(list(cache_folder("crossings").glob("step_*.npz"))) == 3
        assert cache_folder("crossings").is_relative_to(tmp_path / "cache home")

    def test_a_copy_of_a_run_uses_what_is_known(self, folder, command, tmp_path, monkeypatch):
        """The key is the content; what is said about the place and the recipe is that of the run at hand."""
        cache = tmp_path / "cache"
        first = json.loads(command("crossings", folder, *WEIGHTS, "--cache", cache, "--json")[1])
        files = self.listing(cache)
        copy = tmp_path / "copy"
        folder.rename(copy)
        (copy / "run.json").write_text(json.dumps({"optimizer": "AdamW", "weight_decay": 0.5}))
        again = json.loads(command("crossings", copy, *WEIGHTS, "--cache", cache, "--json")[1])
        assert self.listing(cache) == files
        assert again["branches"] == first["branches"]
        assert again["run"] == str(copy)
        assert "0.5 of run.json is not in the objective" in " ".join(again["notes"])
        assert "none is told" in " ".join(first["notes"])

    @pytest.mark.parametrize("extra", [[], ["--certify", 1], ["--refine"]])
    def test_a_cache_that_cannot_be_written_is_said_once(self, folder, command, tmp_path, extra):
        blocked = tmp_path / "file" / "cache"
        (tmp_path / "file").write_text("in the way")
        code, text, err = command("crossings", folder, *WEIGHTS, "--cache", blocked, *extra)
        assert code in (0, 3), err
        assert (text + err).count("not kept") == 1
        assert "--cache DIR" in text
        plain = command("crossings", folder, *WEIGHTS, "--cache", tmp_path / "good", "--json")[1]
        found = command("crossings", folder, *WEIGHTS, "--cache", blocked, "--json")[1]
        assert json.loads(found)["branches"] == json.loads(plain)["branches"]

    def test_a_program_that_changed_takes_nothing_from_before(self, folder, command, tmp_path, monkeypatch):
        cache = tmp_path / "cache"
        command("crossings", folder, *WEIGHTS, "--cache", cache)
        before = self.listing(cache)
        monkeypatch.setattr("analyses.studies.crossings.records.program", lambda: "another")
        command("crossings", folder, *WEIGHTS, "--cache", cache)
        assert len(self.listing(cache)) == 2 * len(before)

    def test_where_it_is(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setattr("sys.platform", "linux")
        assert cache_folder("x") == tmp_path / ".cache" / "rhoscope" / "x"
        monkeypatch.setattr("sys.platform", "darwin")
        assert cache_folder("x") == tmp_path / "Library" / "Caches" / "rhoscope" / "x"
        assert why_unwritable(tmp_path / "new") is None
        (tmp_path / "file").touch()
        assert why_unwritable(tmp_path / "file" / "x") == "Not a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_rights_is_one_line(folder, command):
    folder.chmod(0)
    try:
        code, _, err = command("analyze", folder / "step_10.pt", *WEIGHTS)
    finally:
        folder.chmod(stat.S_IRWXU)
    assert code == 2
    assert "Permission denied" in err


def test_names_that_are_no_utf8(folder, command, tmp_path):
    odd = tmp_path / b"bad\xff".decode("utf-8", "surrogateescape")
    folder.rename(odd)
    (odd / b"step_\xfe40.pt".decode("utf-8", "surrogateescape")).write_bytes(b"")
    for name in ("inspect", "analyze", "crossings"):
        code, text, err = command(COMMANDS[name][0], odd, *COMMANDS[name][1:], "--json")
        assert code == 0, err
        document = json.loads(text)
        assert list(document["skipped"]) == ["step_\\xfe40.pt"]
        place = {"inspect": "path", "crossings": "run"}.get(name)
        told = document[place] if place else document["checkpoint"]["path"]
        assert "bad\\xff" in told
