"""The study of one checkpoint in a dozen lines for the terminal."""

from __future__ import annotations

from typing import Any

from analyses.common.study_files import plain
from analyses.reports.density import density_sentence
from analyses.runs.run import left_out_lines
from analyses.studies.network.study import CheckpointAnalysis
from analyses.subjects.order_parameters import TOLERANCE


def summary(found: CheckpointAnalysis) -> str:
    """A dozen lines for the terminal."""
    document, point = plain(found.document), found.fixed_point
    task = document["task"]
    spectrum, counts = document["spectrum"], found.result.spectrum.counts
    low, low_error = found.result.spectrum.smallest(1)
    high, high_error = found.result.spectrum.largest(1)
    warnings = document["warnings"]
    lines = [
        *(f"warning: {warning}" for warning in warnings),
        f"{task['group']}, {task['alive']} of {task['neurons']} neurons alive, step {found.subject.step}",
        f"loss ({task['loss']}) {document['loss']:.3e}, accuracy {100 * document['accuracy']:.2f} %"
        + _rebuilt(document["loss_identity_error"]),
        _potential_words(document["potentials"]),
        f"purity: median {document['neurons']['purity_median'] or 0:.4f}",
        *_family_words(document["solutions"]),
        f"fixed point: {point.kind.value}, max |grad V| {point.gradient_norm_after:.1e}"
        + (f", moved {point.moved:.1e}" if point.refined else ""),
        f"second variation ({spectrum['operator']}, {spectrum['subspace']}, {spectrum['side']} side): "
        f"rank {spectrum['rank']}, symmetry null directions {spectrum['gauge_null']}",
    ]
    if len(low):
        lines.append(
            f"  from {low[0]:.6g} +- {low_error[0]:.1e} to {high[0]:.6g} +- {high_error[0]:.1e} "
            "(Hessian sign: positive = contracting)"
        )
    if found.result.density is not None:
        lines.append("  " + density_sentence(found.result.density))
    lines.append(
        f"  unstable {counts.negative}, marginal {counts.marginal}, contracted {counts.positive}, "
        f"undetermined {counts.undetermined} ({'certified' if counts.certified else 'not certified'})"
    )
    lines += left_out_lines(document["skipped"])
    lines += [f"note: {note}" for note in document["notes"] if note not in warnings]
    return "\n".join(lines)


def _rebuilt(error: float | None) -> str:
    return "" if error is None else f", potentials rebuild projected MSE to {error:.1e}"


def _potential_words(potentials: dict[str, Any]) -> str:
    zeros = ", ".join(f"{name} {100 * share:.0f} % at 0" for name, share in potentials["zeros"].items())
    if potentials["ones"] is not None:
        return f"potentials: {100 * potentials['ones']:.0f} % of rho_kkk within {TOLERANCE} of 1; {zeros}"
    low, high = min(potentials["alignment"]), max(potentials["alignment"])
    only = "" if potentials["determine_loss"] else " (order parameters only)"
    return (
        f"potentials{only}: phases of rho_kkk aligned {low:.2f} to {high:.2f}; "
        f"within {TOLERANCE} of the largest: {zeros}"
    )


def _family_words(solutions: dict[str, Any] | None) -> list[str]:
    if solutions is None:
        return []
    there = (f"{family['count']} {family['name']}" for family in solutions["families"] if family["count"])
    return ["families of frequencies: " + ", ".join(there)]
