import json

import pytest
from typer.testing import CliRunner

from analyses.commands.options.application import build_app
from analyses.common.study_files import read_study
from analyses.studies import demonstration
from analyses.studies.demonstration import PARTS, Stage, demonstrate
from manifold.errors import OutputExistsError


@pytest.fixture
def quick(monkeypatch):
    """The demonstration's own parts on networks that train in a moment."""
    monkeypatch.setattr(demonstration, "SMALL", {"group": "Z3", "width": 12, "optimizer": "sgd", "steps": 60})
    monkeypatch.setattr(demonstration, "LARGE", {"group": "Z5", "width": 16, "optimizer": "adam", "steps": 8})


def test_demo_writes_page_and_studies(quick, tmp_path):
    out = tmp_path / "demo"
    result = CliRunner().invoke(build_app(), ["demo", "--out", str(out), "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (out / "report.html").read_text("utf-8").count("<h2>Training on") == 2
    assert "Eigenvalue crossings while training on Z3" in (out / "report.html").read_text("utf-8")
    assert sorted(document["studies"]) == [
        "z23-maxent", "z23-trajectory", "z7-checkpoint", "z7-crossings", "z7-trajectory",
    ]  # fmt: skip
    for name, path in document["studies"].items():
        assert json.loads(read_study(path).attrs["summary"]) == document["documents"][name]
    assert document["documents"]["z7-checkpoint"]["fixed_point"]["refined"]


def test_summary_has_the_numbers_of_the_studies(quick, tmp_path):
    found = demonstrate(Stage(tmp_path / "demo"))
    course = found.documents["z7-trajectory"]
    assert f"{course['negative'][0]} of {course['rank'][0]} at step 0" in found.lines[1]
    assert len(found.lines) == 7


def test_full_folder_is_refused_before_any_work(quick, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = CliRunner().invoke(build_app(), ["demo", "--out", str(tmp_path)])
    assert isinstance(result.exception, OutputExistsError)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_force_replaces_its_own_files_only(quick, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for _ in range(2):
        demonstrate(Stage(tmp_path, force=True), parts=PARTS[2:])
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "report.html").exists()


def test_dry_run_writes_nothing(tmp_path):
    result = CliRunner().invoke(build_app(), ["demo", "--out", str(tmp_path / "demo"), "--dry-run"])
    assert result.exit_code == 0
    assert not result.stdout
    assert not list(tmp_path.iterdir())
