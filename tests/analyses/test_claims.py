"""The ledger of claims: verdicts of the quick examinations, and that they can change."""

import json

import pytest
from typer.testing import CliRunner

from analyses import claims
from analyses.cli import build_app
from analyses.ledger import algebra
from analyses.ledger.entries import EXAMINATIONS, Verdict
from analyses.ledger.laboratory import Laboratory
from analyses.ledger.learning import share_table
from manifold.errors import InputError
from manifold.groups import FiniteAbelianGroup
from spectra.constructions import f4_6, f6
from spectra.families import factor

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


def test_shares_carry_intervals():
    group = FiniteAbelianGroup((23,))
    rows = {row["family"]: row for row in share_table([factor(f6(group)), factor(f4_6(group))])}
    assert (rows["z_nu*z_syn"]["count"], rows["z_{nu=i}*z_xi"]["count"], rows["other"]["count"]) == (
        12,
        10,
        0,
    )
    assert all(row["interval"][0] <= row["share"] <= row["interval"][1] for row in rows.values())


def test_command():
    result = CliRunner().invoke(build_app(), ["claims", "--only", "loss-decomposition", "--quick", "--json"])
    (claim,) = json.loads(result.stdout)["claims"]
    assert set(claim) == {"id", "statement", "hypotheses", "verdict", "evidence", "note"}
    assert claim["evidence"]["with_prefactor_1_over_n_minus_1"] == pytest.approx(-0.2)
    with pytest.raises(InputError, match="loss-decomposition"):
        claims.examine(only="nonsense")
