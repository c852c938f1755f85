"""The claims of one spectrum against dense references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyses.verification.checks import Check, equal, unchecked
from analyses.verification.exact.reference import DenseReference


@dataclass(frozen=True, eq=False)
class SpectrumClaim:
    """What a study says about a spectrum.

    Parameters
    ----------
    smallest, smallest_error : ndarray
        Ascending, with bounds.
    largest, largest_error : ndarray
        Descending, with bounds.
    dimension : int
        Of the space.
    rank : int or None
        Claimed rank of T_R.
    counts : dict
        ``negative``, ``marginal``, ``positive``, ``undetermined``.
    bounds : dict
        Two-sided bounds of the first three.
    certified : bool
        Whether the counts are claimed to be exact.
    enclosure : tuple of float, optional
        Of the smallest eigenvalue.
    leak : float, optional
        Largest distance of ``L v`` from T_R over eigenvectors v.
    leak_is_bound : bool
        Whether that is an upper bound only.
    converged : bool
        Whether the ends are claimed to be the ends; otherwise each value is only near some eigenvalue.
    """

    smallest: np.ndarray
    smallest_error: np.ndarray
    largest: np.ndarray
    largest_error: np.ndarray
    dimension: int
    rank: int | None
    counts: dict[str, int]
    bounds: dict[str, Sequence[int]]
    certified: bool
    enclosure: tuple[float, float] | None = None
    leak: float | None = None
    leak_is_bound: bool = False
    converged: bool = True

    @classmethod
    def of_document(cls, spectrum: dict[str, Any]) -> SpectrumClaim:
        """The ``spectrum`` part of the document of ``rhoscope analyze``."""
        lists = {
            name: np.array(spectrum[name], dtype=np.float64)
            for name in ("smallest", "smallest_error", "largest", "largest_error")
        }
        return cls(
            **lists, dimension=spectrum["dimension"], rank=spectrum["rank"],
            counts={name: spectrum[name] for name in ("negative", "marginal", "positive", "undetermined")},
            bounds=spectrum["count_bounds"], certified=spectrum["count_certified"],
            enclosure=spectrum.get("smallest_enclosure"), leak=spectrum.get("span_leak"),
            leak_is_bound="moments" in spectrum["method"] or "sums over neurons" in spectrum["reason"],
            converged=spectrum["converged"],
        )  # fmt: skip


def spectrum_checks(claim: SpectrumClaim, references: Sequence[DenseReference]) -> list[Check]:
    """Judge a spectrum against the reference at every choice of the slope at kinks; the worst one counts.

    Parameters
    ----------
    claim : SpectrumClaim
    references : sequence of DenseReference

    Returns
    -------
    list of Check
    """
    doubtful = [r for r in references if not r.rank_certain and r.rank != claim.dimension]
    if doubtful:
        why = f"the rank of T_R at the stored numbers is in doubt, least pivot {doubtful[0].least:.0e}"
        return [unchecked("spectrum", None, why)]
    each = [_against(claim, reference) for reference in references]
    return [max(same, key=gravity) for same in zip(*each, strict=True)]


def gravity(check: Check) -> tuple[bool, bool, float]:
    """Order of checks of one claim: failures first, by their excess; checked ones before unchecked."""
    return check.passed is False, check.passed is not None, check.excess


def _against(claim: SpectrumClaim, reference: DenseReference) -> list[Check]:
    method = reference.eigenvalues.method
    if reference.parts.kink or claim.dimension < 0:
        method += f", ReLU'(0) = {reference.parts.kink}"
    return [
        _rank(claim, reference, method),
        _ends("spectrum.smallest", claim.smallest, claim.smallest_error, reference, False, claim, method),
        _ends("spectrum.largest", claim.largest, claim.largest_error, reference, True, claim, method),
        *(_count(name, claim, reference, method) for name in ("negative", "positive", "marginal")),
        *(_bounds(name, claim, reference, method) for name in ("negative", "positive", "marginal")),
        _enclosure(claim, reference, method),
        _leak(claim, reference, method),
    ]


def _rank(claim: SpectrumClaim, reference: DenseReference, method: str) -> Check:
    if claim.rank is None:
        return equal("spectrum.dimension", claim.dimension, reference.rank, method)
    if not reference.rank_certain:
        return unchecked(
            "spectrum.rank", claim.rank, f"pivots leave it open, least kept {reference.least:.0e}"
        )
    if not claim.certified and claim.rank < reference.rank:
        reason = f"counts are not certified, and {reference.rank} dimensions are there at the stored numbers"
        return unchecked("spectrum.rank", claim.rank, reason)
    return equal("spectrum.rank", claim.rank, reference.rank, method)


def _ends(
    name: str, values: np.ndarray, errors: np.ndarray, reference: DenseReference, descending: bool,
    claim: SpectrumClaim, method: str,
) -> Check:  # fmt: skip
    """The worst of the listed eigenvalues, each against the one of its number."""
    true = reference.eigenvalues.values
    true = true[::-1] if descending else true
    if not len(values):
        return unchecked(name, [], "nothing is listed")
    if len(values) > min(len(true), claim.dimension):
        return Check(
            name, len(values), len(true), "more values are listed than the space has", method, False, np.inf
        )
    if not claim.converged:  # each is near some eigenvalue, whatever its number
        matched = true[np.abs(true[None, :] - values[:, None]).argmin(1)]
    else:  # of a subspace they interlace: the i-th lies between the i-th and the one so many further in
        inner = true[max(0, len(true) - claim.dimension) :][: len(values)]
        matched = np.clip(
            values, np.minimum(true[: len(values)], inner), np.maximum(true[: len(values)], inner)
        )
    off = np.abs(values - matched).astype(np.float64)
    bound = errors + reference.eigenvalues.error
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(off > 0, off / bound, 0.0)
    i = int(excess.argmax())
    return Check(
        f"{name}[{i}]", float(values[i]), float(bound[i]), float(matched[i]), method,
        bool(excess[i] <= 1), float(excess[i]),
    )  # fmt: skip


def _possible(name: str, reference: DenseReference) -> tuple[int, int]:
    """Fewest and most eigenvalues of a sign that the reference leaves open."""
    values, error = reference.eigenvalues.values, reference.eigenvalues.error
    if name == "marginal":
        return 0, int((np.abs(values) <= error).sum())
    signed = values if name == "positive" else -values
    return int((signed > error).sum()), int((signed > -error).sum())


def _count(name: str, claim: SpectrumClaim, reference: DenseReference, method: str) -> Check:
    """A claimed count is a number of certain signs: never more than there are; all of them if certified."""
    fewest, most = _possible(name, reference)
    value = claim.counts[name]
    least = fewest if claim.certified else 0
    passed = least <= value <= most
    excess = 0.0 if passed else float("inf")
    return Check(f"spectrum.{name}", value, [least, most], [fewest, most], method, passed, excess)


def _bounds(name: str, claim: SpectrumClaim, reference: DenseReference, method: str) -> Check:
    fewest, most = _possible(name, reference)
    low, high = claim.bounds[name]
    passed = low <= most and high >= fewest
    return Check(
        f"spectrum.count_bounds.{name}", [low, high], 0, [fewest, most], method, passed,
        0.0 if passed else float("inf"),
    )  # fmt: skip


def _enclosure(claim: SpectrumClaim, reference: DenseReference, method: str) -> Check:
    name = "spectrum.smallest_enclosure"
    true = reference.eigenvalues
    if claim.enclosure is None or not len(true.values):
        return unchecked(name, claim.enclosure, "none is claimed")
    low, high = claim.enclosure
    least = true.values[0]
    passed = bool(low - true.error <= least <= high + true.error)
    width = max(high - low, 1e-300)
    off = float(max(low - least, least - high, 0.0))
    return Check(
        name, [low, high], true.error, float(least), method, passed, 0.0 if passed else 1 + off / width
    )


def _leak(claim: SpectrumClaim, reference: DenseReference, method: str) -> Check:
    name, value = "spectrum.span_leak", claim.leak
    if value is None:
        return unchecked(name, None, "none is claimed")
    if claim.dimension != reference.rank:
        return unchecked(name, value, "the space has another dimension")
    low, high = reference.leak
    slack = 1e-6 * high + 1e-9 * float(np.abs(reference.eigenvalues.values).max(initial=0))
    passed = low - slack <= value and (claim.leak_is_bound or value <= high + slack)
    excess = 0.0 if passed else max(low / max(value, 1e-300), value / max(high, 1e-300))
    return Check(name, value, slack, [low, high], method, bool(passed), float(excess))
