"""The origin of a layout: written down, told by options, or guessed, and what then is not certain."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Confidence(StrEnum):
    """How much a guessed layout is to be believed."""

    VERIFIED = "verified"
    AMBIGUOUS = "ambiguous"
    WEAK = "weak"


@dataclass(frozen=True)
class Origin:
    """How the layout of a network became known.

    Parameters
    ----------
    guessed : bool
        Whether tensors, activation or loss were guessed from the numbers.
    confidence : Confidence or None
        Of the guess; None where nothing was guessed.
    rivals : tuple of str
        Other readings that the numbers do not rule out, mostly activations.
    unused : tuple of str
        Floating tensors of the checkpoint that no expression of the layout uses.
    assumed : tuple of str
        Fields that nobody gave and that are at their defaults.
    notes : tuple of str
        What a reader of the study must know about it, one sentence each.
    """

    guessed: bool = False
    confidence: Confidence | None = None
    rivals: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def document(self) -> dict[str, Any]:
        """The entry ``layout`` of every study, as JSON types."""
        return {
            "guessed": self.guessed,
            "confidence": None if self.confidence is None else self.confidence.value,
            "rivals": list(self.rivals),
            "unused": list(self.unused),
            "assumed": list(self.assumed),
        }
