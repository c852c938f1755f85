"""Studies written by the first version of rhoscope reopen: committed files, never written again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from analyses.common.study_files import read_study
from analyses.reports.sections import document_of
from manifold.errors import InputError
from tests.analyses.commands.test_checkpoint_commands import rhoscope

DATA = Path(__file__).resolve().parents[2] / "data"
STUDIES = {"checkpoint": DATA / "checkpoint_v1.nc", "crossings": DATA / "crossings_v1.nc"}


@pytest.mark.parametrize("kind", STUDIES)
def test_the_file_opens_and_agrees_with_its_own_summary(kind):
    study = read_study(STUDIES[kind])
    document = document_of(study)
    assert int(study.attrs["schema_version"]) == 1
    assert study.attrs["study"] == kind
    for values in study.data_vars.values():
        assert values.attrs["units"]
        assert values.attrs["definition"]
    if kind == "checkpoint":
        spectrum = document["spectrum"]
        assert spectrum["largest"][0] == study.eigenvalue.to_numpy().max()
        assert spectrum["rank"] == study.sizes["eigen"]
        assert document["loss"] == float(study.loss)
    else:
        assert document["steps"] == study.step.to_numpy().tolist()
        assert document["positive"] == study.positive.to_numpy().tolist()
        rows = np.array([branch["eigenvalues"] for branch in document["branches"]], float).T
        assert np.array_equal(rows, study.branch_eigenvalue.to_numpy(), equal_nan=True)


@pytest.mark.parametrize("kind", STUDIES)
def test_report_makes_a_page_of_it(kind, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.html"
    code, out, err = rhoscope(
        monkeypatch, capsys, "report", STUDIES[kind], "--out", page, "--json", "--quiet"
    )
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["study"] == kind
    assert document["summary"] == document_of(read_study(STUDIES[kind]))
    text = page.read_text("utf-8")
    assert "Z3" in text
    assert text.count("<svg") + text.count("data:image/svg") >= 2
    assert rhoscope(monkeypatch, capsys, "report", STUDIES[kind], "--out", page, "--quiet")[0] == 2


def test_the_committed_files_are_small():
    assert all(path.stat().st_size < 60 << 10 for path in STUDIES.values())


def test_a_study_of_a_later_version_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    study = read_study(STUDIES["checkpoint"]).assign_attrs(schema_version=2)
    path = tmp_path / "later.nc"
    study.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(InputError, match="newer"):
        read_study(path)
    code, out, err = rhoscope(monkeypatch, capsys, "report", path, "--quiet")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


@pytest.mark.parametrize("content", ["foreign", "text", "empty"])
def test_other_files_are_refused_in_one_line(tmp_path, monkeypatch, capsys, content):
    path = tmp_path / "other.nc"
    if content == "foreign":
        xr.Dataset({"x": ("t", [1.0, 2.0])}).to_netcdf(path, engine="h5netcdf")
    else:
        path.write_text({"text": "no study", "empty": ""}[content])
    code, out, err = rhoscope(monkeypatch, capsys, "report", path, "--quiet")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert not path.with_suffix(".html").exists()
