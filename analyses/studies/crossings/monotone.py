"""What is monotone in a crossing study: directions of moves of the three operators, and what made them."""

from __future__ import annotations

from typing import Any

import numpy as np

from analyses.studies.crossings.study import CrossingStudy
from spectra.branches.motion import Moves, curvature_form, monotony, split_moves

OPERATORS = ("wasserstein", "flat", "chart")


def moves_of(study: CrossingStudy) -> Moves:
    """The moves of the branches, split into motion of the Gram matrix, of L'' and of the local part."""
    return split_moves(
        study.branches.eigenvalues, study.branches.errors, _along_branches(study, "local"), _curvature(study)
    )


def _along_branches(study: CrossingStudy, name: str) -> np.ndarray:
    rows = [np.append(getattr(record, name), np.nan) for record in study.records]  # -1 picks the NaN
    return np.stack([row[index] for row, index in zip(rows, study.branches.index, strict=True)])


def _curvature(study: CrossingStudy) -> np.ndarray | None:
    """By how much the motion of L'' moved each branch; None where L'' is constant."""
    if not study.records[0].outputs.size:
        return None
    rows = []
    for i, (before, after) in enumerate(zip(study.records[:-1], study.records[1:], strict=True)):
        moved = curvature_form(after.outputs, after.response) - curvature_form(before.outputs, after.response)
        place = study.branches.index[i + 1]
        there = (place >= 0) & (study.branches.index[i] >= 0)
        rows.append(np.where(there, np.append(moved, np.nan)[place], np.nan))
    return np.stack(rows)


def monotone_document(study: CrossingStudy) -> dict[str, Any]:
    """``monotone`` of the contract, with the same for every operator.

    A *violation* of "Hessian eigenvalues do not increase" is a certain rise, of "Jacobian eigenvalues do not
    increase" a certain fall; ``by_gram``, ``by_curvature`` and ``by_local`` are the shares of them led by the
    motion of K (or G), of L'', and of the local part.

    Parameters
    ----------
    study : CrossingStudy

    Returns
    -------
    dict
    """
    asked = _of_branches(study)
    operators: dict[str, Any] = dict.fromkeys(OPERATORS)
    operators[study.question.operator] = asked
    if study.question.operator != "flat":
        operators["flat"] = _of_flat(study)
    operators["chart"] = _of_chart(study)
    condition = study.fact("condition_D3L")
    rounding = 1e-12 * max((abs(value) for pair in condition for value in pair), default=0.0)
    return {
        **{name: asked[name] for name in asked if name != "violations"},
        "violations": asked["violations"],
        "condition_D3L": condition,
        "condition_holds": float(np.mean([low >= -rounding for low, _ in condition])),
        "condition_reversed": float(np.mean([high <= rounding for _, high in condition])),
        "operators": operators,
    }


def _shares(values: np.ndarray, errors: np.ndarray) -> dict[str, Any]:
    found = monotony(values, errors)
    return {
        "fraction_nonincreasing_hessian": found.hessian,
        "fraction_nonincreasing_jacobian": found.jacobian,
        "fraction_steps_hessian": found.hessian_steps,
        "fraction_steps_jacobian": found.jacobian_steps,
        "moves": found.moves,
        "constant": False,
    }


def _of_branches(study: CrossingStudy) -> dict[str, Any]:
    """Of sorted eigenvalues where spectra are complete, else of branches; explained along branches."""
    records = study.records
    if study.complete and len({len(record.eigenvalues) for record in records}) == 1:
        values = np.array([record.eigenvalues for record in records])
        shares = _shares(values, np.array([record.errors for record in records]))
    else:
        shares = _shares(study.branches.eigenvalues, study.branches.errors)
    moves = moves_of(study)
    return shares | {"violations": {"hessian": moves.leading(1), "jacobian": moves.leading(-1)}}


def _one_cause(shares: dict[str, Any], values: np.ndarray, errors: np.ndarray, cause: str) -> dict[str, Any]:
    """Violations where only one part can move."""
    change, bound = np.diff(values, axis=0), errors[1:] + errors[:-1]
    names = ("by_gram", "by_curvature", "by_local")

    def told(moved: np.ndarray) -> dict[str, Any]:
        return {"moves": int(moved.sum()), **{name: float(name == cause) for name in names}}

    return shares | {"violations": {"hessian": told(change > bound), "jacobian": told(-change > bound)}}


def _of_flat(study: CrossingStudy) -> dict[str, Any]:
    values = np.array([record.flat for record in study.records])
    errors = np.tile(np.array(study.fact("flat_error"))[:, None], values.shape[1])
    there = (np.abs(values) > errors).any(axis=0)  # most neurons add no dimension: zero throughout
    values, errors = values[:, there], errors[:, there]
    shares = _shares(values, errors)
    if study.records[0].outputs.size:  # G and L'' both move: only vectors can tell them apart
        return shares | {"violations": None}
    return _one_cause(shares, values, errors, "by_gram")


def _of_chart(study: CrossingStudy) -> dict[str, Any]:
    values = np.array([record.chart for record in study.records])
    if values.size:
        errors = np.full_like(values, 1e-14 * np.abs(values).max())
        return _one_cause(_shares(values, errors), values, errors, "by_curvature")
    zero = np.zeros((len(study.records), 1))
    return _one_cause(_shares(zero, zero), zero, zero, "by_curvature") | {"constant": True}
