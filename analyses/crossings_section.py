"""Figures and report section of a crossing study."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup
from matplotlib.figure import Figure

from analyses.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SIGN_COLOURS,
    SIGN_WORDS,
    VERMILION,
    add_legend,
    new_figure,
    step_axis,
)
from analyses.sections import Fact, Picture, Section, document_of, percent, scientific
from analyses.studies import complex_variable

MARKS = {
    ("crossing", "up"): ("^", GREEN, "crosses zero upwards"),
    ("crossing", "down"): ("v", VERMILION, "crosses zero downwards"),
    ("touch", "none"): ("o", GREY, "touches zero"),
    ("unresolved", None): ("x", ORANGE, "unresolved"),
}


CONTROLS = {"none": "E", "random": "Null control (weights shuffled): e"}


def fan_figure(study: xr.Dataset) -> Figure:
    """Every branch against step on a symmetric-log axis, crossings marked at the middle of brackets."""
    figure, ((axes,),) = new_figure(size=(7.2, 4.6))
    steps, values = study.step.to_numpy(), study.branch_eigenvalue.to_numpy()
    top = np.nanmax(np.abs(values))
    for line in values.T:
        axes.plot(steps, line, color=BLUE, lw=0.6, alpha=0.45)
    axes.set_yscale("symlog", linthresh=1e-2 * top, linscale=0.8)
    axes.axhline(0, color="black", lw=0.9)
    if "crossing_kind" in study:
        kinds, directions = study.crossing_kind.to_numpy(), study.crossing_direction.to_numpy()
        low, high = study.crossing_step_low.to_numpy(), study.crossing_step_high.to_numpy()
        middle = np.where(low > 0, np.sqrt(np.maximum(low, 1e-12) * high), high / 2)
        for (kind, direction), (marker, colour, label) in MARKS.items():
            mask = (kinds == kind) & ((directions == direction) | (direction is None))
            if mask.any():
                axes.plot(
                    middle[mask], np.zeros(mask.sum()), marker, color=colour, markersize=5, ls="none",
                    alpha=0.8, label=f"{label}: {mask.sum()}",
                )  # fmt: skip
        add_legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=1.2)
    axes.set_ylabel(r"eigenvalue $\lambda$ (loss per $|z|^2$)")
    step_axis(axes, steps)
    return figure


def freedom_figure(study: xr.Dataset) -> Figure:
    """Degrees of freedom beside loss and potentials: three panels over one step axis."""
    figure, axes = new_figure(3, 1, size=(7.2, 7.0), sharex=True, height_ratios=[1.4, 1, 1])
    (upper,), (middle,), (lower,) = axes
    steps = study.step.to_numpy()
    for name, colour in SIGN_COLOURS.items():
        if study[name].any():
            upper.plot(steps, study[name], color=colour, marker="o", markersize=3, label=SIGN_WORDS[name])
    upper.plot(steps, study["rank"], color="black", lw=1, ls=":", label="rank")
    upper.set_ylabel("directions (count)")
    upper.set_ylim(bottom=0)
    add_legend(upper, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=1.2)
    middle.plot(steps, study.loss, color=BLUE, marker="o", markersize=3)
    middle.set_yscale("log")
    middle.set_ylabel("loss $H$")
    for line in complex_variable(study, "target_potential").real.T:
        lower.plot(steps, line, color=GREEN, lw=1, alpha=0.7)
    lower.axhline(1, color=GREY, lw=0.8, ls=":")
    lower.set_ylabel(r"Re $\rho_{kkk}$")
    step_axis(lower, steps)
    figure.align_ylabels()
    return figure


def crossings_section(study: xr.Dataset) -> Section:
    """How the degrees of freedom of a run fell."""
    document = document_of(study)
    group = document.get("group") or "its group"
    return Section(
        title=f"{CONTROLS[document['control']]}igenvalue crossings while training on {group}",
        story=[_story(document), _motion(document), *_linear(document), *document.get("notes", [])],
        facts=_facts(document),
        pictures=[
            Picture(
                "degrees-of-freedom", freedom_figure(study),
                Markup(
                    "Above: how many directions in which the potentials can move are unstable, marginal and "
                    "contracting; a sign is claimed only beyond its error bound. Middle: the loss. Below: "
                    "the potentials ρ<sub>kkk</sub>, which are 1 at a solution."
                ),
                "Degrees of freedom, loss and potentials against training step",
            ),
            Picture(
                "spectrum-fan", fan_figure(study),
                Markup(
                    "Every branch of eigenvalues (symmetric logarithmic scale; positive = contracting), "
                    "followed by the overlap of its eigenvectors. Marks: visits to zero, at the middle of "
                    "the bracket of steps that encloses them."
                ),
                "Branches of eigenvalues with zero crossings",
            ),
        ],
        provenance={"run": document["run"], **document["provenance"]},
        document=document,
        background="group" if document.get("activation", "square") == "square" else "outputs",
    )  # fmt: skip


def _story(document: dict[str, Any]) -> Markup:
    steps, negative, rank = document["steps"], document["negative"], document["rank"]
    peak = int(np.argmax(negative))
    return Markup(
        "An unstable direction is a freedom that training can still use; one that contracts is used up. "
        "At step {} there are {} unstable directions among {}; their number is largest, {}, at step {}; at "
        "step {} it is {} among {}. In between, {} visits to zero are certain crossings, {} are touches and "
        "{} stay unresolved: two directions moved through zero in opposite senses between the same two steps "
        "and may have avoided each other, or an error bound is too wide."
    ).format(
        _step(steps[0]), negative[0], rank[0], negative[peak], _step(steps[peak]), _step(steps[-1]),
        negative[-1], rank[-1], document["kinds"]["crossing"], document["kinds"]["touch"],
        document["kinds"]["unresolved"],
    )  # fmt: skip


def _step(value: float) -> str:
    return f"{value:,.6g}"


def _motion(document: dict[str, Any]) -> Markup:
    motion = document["monotone"]
    conditions = [pair for pair in motion["condition_D3L"] if pair is not None]
    low, high = min(pair[0] for pair in conditions), max(pair[1] for pair in conditions)
    if low == high == 0:
        why = Markup(
            "The loss is quadratic in the potentials, so the condition D³L·∇L ≥ 0 that is said to make "
            "eigenvalues monotone holds as an equality and explains nothing: all motion comes from the "
            "Gram matrix of the potentials (interaction) and from the local part. Interaction leads in {} of "
            "the rises and {} of the falls."
        ).format(
            percent(motion["causes"]["rises_by_interaction"]),
            percent(motion["causes"]["falls_by_interaction"]),
        )
    else:
        sign = "positive" if low >= 0 else "negative" if high <= 0 else "of both signs"
        why = Markup("The matrix D³L·∇L is {} along the run (eigenvalues {} to {}).").format(
            sign, scientific(low), scientific(high)
        )
    return (
        Markup(
            "Not monotone in general: {} of the moves of Hessian eigenvalues from step to step do not "
            "increase, {} do not decrease. "
        ).format(
            percent(motion["fraction_nonincreasing_hessian"]),
            percent(motion["fraction_nonincreasing_jacobian"]),
        )
        + why
    )


def _linear(document: dict[str, Any]) -> list[Markup]:
    checked = document.get("linearisation")
    if not checked:
        return []
    if not checked["checked_modes"]:
        return [Markup("The linearisation was not checked: {}").format(checked["reason"])]
    return [
        Markup(
            "Do eigenvalues describe the real flow? The last network was moved to a fixed point, pushed "
            "along {} eigenvectors, and the full nonlinear flow was followed: fitted rates agree with the "
            "eigenvalues within a relative error of {}."
        ).format(checked["checked_modes"], scientific(checked["max_relative_rate_error"], 2))
    ]


def _facts(document: dict[str, Any]) -> list[Fact]:
    kinds = document["kinds"]
    certain = "every count is exact" if all(document["count_certified"]) else "some counts are bounds only"
    return [
        Fact("steps", str(len(document["steps"])), f"left out: {len(document['skipped'])}"),
        Fact("operator", f"{document['operator']}, {document['subspace']}", document["sign"]),
        Fact("unstable directions, first to last", f"{document['negative'][0]} to {document['negative'][-1]}",
             certain),
        Fact("most unstable directions", str(max(document["negative"])), ""),
        Fact("crossings / touches / unresolved",
             f"{kinds['crossing']} / {kinds['touch']} / {kinds['unresolved']}", f"time: {document['time']}"),
        Fact("smallest overlap of a link", scientific(document["smallest_link_overlap"], 2),
             "above 0.5 the branch is certainly the same one"),
    ]  # fmt: skip
