import pytest

from analyses.bench import maxent as bench_maxent


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.setattr(bench_maxent, "MONTE_CARLO", 400_000)
    monkeypatch.setattr(bench_maxent, "SAMPLER_SECONDS", 3.0)
    return {row["tool"]: row for row in bench_maxent.run(quick=True, cases=["S2"], seed=0)}


def test_errors_are_measured_and_projections_are_marked(rows):
    assert rows["rhoscope"]["error"] < 1e-10
    assert 1e-4 < rows["scipy minimize, 2e+04 random points"]["error"] < 0.1
    assert rows["scipy minimize, product rule"]["error"] < 1e-6
    assert "not measured" in rows["the same, projected"]["error"]


def test_the_sampler_is_used_or_missing_in_words(rows):
    row = rows["emcee in a Newton fit"]
    assert "missing" in row["error"] if row["seconds"] is None else row["error"] < 0.5


def test_a_missing_sampler_is_a_row(monkeypatch):
    monkeypatch.setattr(bench_maxent, "MONTE_CARLO", 40_000)
    monkeypatch.setitem(__import__("sys").modules, "emcee", None)
    rows = {row["tool"]: row for row in bench_maxent.run(quick=True, cases=["S2"], seed=0)}
    assert rows["emcee in a Newton fit"]["seconds"] is None
    assert "pip install" in rows["emcee in a Newton fit"]["error"]
