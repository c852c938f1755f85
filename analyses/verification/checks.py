"""One claim and what became of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """A claim of a study against its reference.

    Parameters
    ----------
    claim : str
        Place in the document, such as ``spectrum.largest[3]``.
    value : Any
        What is claimed.
    bound : Any
        How far the reference may be from it: the claimed bound and the reference's own error.
    reference : Any
        What was found independently.
    method : str
        How; or why it was not checked.
    passed : bool or None
        None: not checked.
    excess : float
        Deviation over bound (below 1 where it passed); infinity for what has no size.
    """

    claim: str
    value: Any
    bound: Any
    reference: Any
    method: str
    passed: bool | None
    excess: float = 0.0

    @property
    def document(self) -> dict[str, Any]:
        """As the contract has it."""
        out = asdict(self)
        out.pop("excess")
        return out


def unchecked(claim: str, value: Any, reason: str) -> Check:
    """A claim that the referee cannot judge."""
    return Check(claim, value, None, None, f"not checked: {reason}", None)


def near(claim: str, value: float, bound: float, reference: float, method: str) -> Check:
    """A number that must lie within its bound of the reference."""
    off = abs(float(value) - float(reference))
    excess = off / bound if bound > 0 else (0.0 if off == 0 else float("inf"))
    return Check(claim, float(value), float(bound), float(reference), method, bool(off <= bound), excess)


def equal(claim: str, value: Any, reference: Any, method: str) -> Check:
    """Something that must be the same."""
    passed = value == reference
    return Check(claim, value, 0, reference, method, passed, 0.0 if passed else float("inf"))
