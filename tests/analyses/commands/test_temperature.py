"""`rhoscope temperature`: contract, dataset, page, bad input."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from analyses.commands.options.application import build_app
from analyses.common.study_files import read_study
from analyses.studies.temperature import parse_grid
from manifold.errors import InputError

CIRCLE = ("--space", "S1", "--monomials", "x1;x2", "--loss-expr", "-(J/2)*(rho1**2+rho2**2)", "--quiet")


def call(*arguments):
    result = CliRunner().invoke(build_app("temperature"), ["temperature", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_document_dataset_and_page(tmp_path):
    out, page = tmp_path / "t.nc", tmp_path / "t.html"
    result = call(
        *CIRCLE, "--param", "J=1", "--t-grid", "0.2:0.7:6", "--json", "--out", out, "--report", page,
        "--figure-format", "png",
    )  # fmt: skip
    document = json.loads(result.stdout)
    assert document["T"] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    kinds = {branch["kind"]: branch for branch in document["branches"]}
    assert set(kinds) == {"uniform", "ordered"}
    (critical,) = [one for one in document["critical"] if one["kind"] == "uniform"]
    assert critical["T_low"] == pytest.approx(0.5, abs=1e-6)
    assert critical["T_high"] == pytest.approx(0.5, abs=1e-6)
    assert critical["direction"] == "up"
    ordered = kinds["ordered"]
    assert ordered["rho"][-1] is None
    assert ordered["symmetry_zeros"][:3] == [1, 1, 1]
    assert ordered["second_variation"][2][1] == pytest.approx(0.148, abs=5e-4)
    assert ordered["rates"][0][1] == pytest.approx(0.710, abs=5e-4)
    study = read_study(out)
    assert study.rho.dims == ("branch", "T", "monomial")
    assert np.isnan(study.rho.sel(branch="ordered").to_numpy()[-1]).all()
    assert all({"units", "definition"} <= set(v.attrs) for v in study.data_vars.values())
    assert "Temperature on S1" in page.read_text()


def test_plan_only():
    assert (
        "plan: 2 temperatures on S1"
        in call(*CIRCLE[:-1], "--param", "J=1", "--t-grid", "0.2:0.7:2", "--dry-run").output
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--t-grid", "0.2:0.7"), "LOW:HIGH:N"), (("--t-grid", "0.7:0.2:5"), "LOW:HIGH:N"),
        (("--t-grid", "0.2:0.7:5"), "--param J"), (("--t-grid", "0.2:0.7:5", "--param", "J"), "NAME=VALUE"),
        (("--t-grid", "0.2:0.7:5", "--param", "J=nan"), "finite"),
    ],
)  # fmt: skip
def test_bad_input(more, message):
    with pytest.raises(InputError, match=message):
        call(*CIRCLE, *more)


def test_grids():
    assert parse_grid("0.5:1:2") == (0.5, 1.0)


def test_states_without_a_bound_are_said_to_be_undetermined():
    """At T = 1e-4 the density is too narrow for the rule; at 1/2 the ordered state is at its transition."""
    result = call(*CIRCLE, "--param", "J=1", "--t-grid", "0.0001:0.5:3")
    (ordered,) = [line for line in result.stdout.splitlines() if line.startswith("ordered")]
    assert "but for 1 undetermined" in ordered
    document = json.loads(call(*CIRCLE, "--param", "J=1", "--t-grid", "0.0001:0.5:3", "--json").stdout)
    branch = next(one for one in document["branches"] if one["kind"] == "ordered")
    assert branch["error"][0] is branch["stable"][0] is None
    assert branch["stable"][1] is True


def test_a_first_order_transition_is_listed_with_its_spinodals(tmp_path):
    """``L = -|rho|^2 / 2 - 2 |rho|^4``: between them the grid has a single temperature."""
    page = tmp_path / "first.html"
    loss = "-(rho1^2+rho2^2)/2-2*(rho1^2+rho2^2)^2"
    arguments = ("--space", "S1", "--monomials", "x1;x2", "--loss-expr", loss,
                 "--t-grid", "0.4:1.9:4", "--quiet")  # fmt: skip
    document = json.loads(call(*arguments, "--json", "--report", page).stdout)
    assert [(one["kind"], one["transition"], one["direction"]) for one in document["critical"]] == [
        ("uniform", "stability", "up"), ("first-order", "first-order", "down"), ("ordered", "fold", "down")
    ]  # fmt: skip
    assert document["critical"][1]["between"] == ["ordered", "uniform"]
    curves = {one["kind"]: one["curve"] for one in document["branches"]}
    assert curves["ordered"] == curves["ordered-2"] != curves["uniform"]
    for word in ("First-order transition", "Spinodal of the ordered state"):
        assert word in page.read_text()
