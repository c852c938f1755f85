"""One claim and what was found about it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from analyses.studies.claims.laboratory import Laboratory


class Verdict(enum.Enum):
    """What a measurement says about a claim."""

    HOLDS = "holds"
    CORRECTED = "holds-with-correction"
    FAILS = "fails"
    VACUOUS = "vacuous"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Hypothesis:
    """One hypothesis of a claim on the runs that were used.

    Parameters
    ----------
    name : str
    measured : object
        A number or a short sentence.
    holds : bool
    """

    name: str
    measured: Any
    holds: bool


@dataclass(frozen=True)
class Claim:
    """A claim with its verdict.

    Parameters
    ----------
    id : str
        Short name, as for ``--only``.
    statement : str
        The claim as tested.
    verdict : Verdict
    evidence : dict
        Numbers, with sizes and seeds; a counterexample where the claim fails.
    note : str
        The verdict in a sentence.
    hypotheses : tuple of Hypothesis
    """

    id: str
    statement: str
    verdict: Verdict
    evidence: dict[str, Any]
    note: str
    hypotheses: tuple[Hypothesis, ...] = field(default=())

    @property
    def document(self) -> dict[str, Any]:
        """The entry of the claim in the JSON of ``rhoscope claims``."""
        return {
            "id": self.id,
            "statement": self.statement,
            "hypotheses": [vars(one) for one in self.hypotheses],
            "verdict": self.verdict.value,
            "evidence": self.evidence,
            "note": self.note,
        }


Examination = Callable[[Laboratory], Claim]
EXAMINATIONS: dict[str, Examination] = {}


def examines(name: str) -> Callable[[Examination], Examination]:
    """Enter a function into the ledger under the id of its claim; entries keep the order of import."""

    def enter(function: Examination) -> Examination:
        EXAMINATIONS[name] = function
        return function

    return enter
