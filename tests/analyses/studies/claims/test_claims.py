"""The ledger of claims: verdicts of the quick examinations, and that they can change."""

import json

import pytest
from typer.testing import CliRunner

from analyses.commands.options.application import build_app
from analyses.common.study_files import read_study
from analyses.reports.figures import figure_bytes
from analyses.studies.claims import algebra
from analyses.studies.claims import ledger as claims
from analyses.studies.claims.entries import EXAMINATIONS, Verdict
from analyses.studies.claims.laboratory import Laboratory
from analyses.studies.page import section_of
from manifold.errors import InputError
from spectra.networks.constructions import f4_6

EXPECTED = {
    "loss-decomposition": "holds-with-correction",
    "ring-homomorphism": "holds",
    "binary-solutions": "holds",
    "maxent-manifold": "holds-with-correction",
    "intrinsic-dimension": "holds-with-correction",
    "mean-field-limit": "holds",
    "decoupling": "vacuous",
    "monotone-spectrum": "holds-with-correction",
    "zero-crossings": "holds-with-correction",
    "displacement-convexity": "fails",
    "degrees-of-freedom": "holds-with-correction",
    "minimising-movement": "holds-with-correction",
}


@pytest.fixture(scope="module")
def laboratory():
    return Laboratory(quick=True, seed=0)


@pytest.mark.parametrize("name", EXPECTED)
def test_verdicts(laboratory, name):
    claim = EXAMINATIONS[name](laboratory)
    assert claim.verdict is Verdict(EXPECTED[name])
    assert claim.evidence
    assert claim.id == name


def test_every_row_of_the_theory_has_an_entry():
    more = {"exponential-potentials", "non-binary-endpoints", "factorable-solutions", "sample-complexity"}
    assert set(claims.CLAIMS) == set(EXPECTED) | more


def test_a_wrong_algebra_changes_the_verdict(laboratory, monkeypatch):
    right = algebra.predicted_potentials
    monkeypatch.setattr(algebra, "predicted_potentials", lambda operation, x, y: right("add", x, y))
    assert algebra.ring_homomorphism(laboratory).verdict is Verdict.FAILS
    monkeypatch.setattr(algebra, "f6", f4_6)
    assert algebra.binary_solutions(laboratory).verdict is Verdict.FAILS


def test_the_page_draws_the_evidence(laboratory):
    claims_ = tuple(EXAMINATIONS[name](laboratory) for name in ("zero-crossings", "factorable-solutions"))
    ledger = claims.Ledger(claims_, {one.id: 1.0 for one in claims_}, True, 0)
    section = section_of(ledger.dataset)
    assert [picture.name for picture in section.pictures] == ["families", "unstable"]
    assert claims_[1].evidence["trained_here"]["of"] > 0
    assert all(figure_bytes(picture.figure, "svg") for picture in section.pictures)


def test_command(tmp_path):
    page, study = tmp_path / "ledger.html", tmp_path / "ledger.nc"
    words = ["claims", "--only", "loss-decomposition", "--quick", "--json", "--report", page, "--out", study]
    result = CliRunner().invoke(build_app(), [str(word) for word in words])
    (claim,) = json.loads(result.stdout)["claims"]
    assert read_study(study).verdict.item() == "holds-with-correction"
    text = page.read_text()
    assert "loss-decomposition</b>" in text
    assert "negative. Means of the weights" in text
    assert set(claim) == {"id", "statement", "hypotheses", "verdict", "evidence", "note"}
    assert claim["evidence"]["with_prefactor_1_over_n_minus_1"] == pytest.approx(-0.2)
    with pytest.raises(InputError, match="loss-decomposition"):
        claims.examine(only="nonsense")
