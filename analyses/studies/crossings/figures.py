"""Figures of a crossing study."""

from __future__ import annotations

import numpy as np
import xarray as xr

from analyses.common.drawing import Figure
from analyses.common.study_files import complex_variable
from analyses.reports.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SIGN_COLOURS,
    SIGN_WORDS,
    VERMILION,
    add_legend,
    new_figure,
    step_axis,
)
from analyses.studies.crossings.controls import CONTROL_WORDS

MARKS = {
    ("crossing", "up"): ("^", GREEN, "crosses zero upwards"),
    ("crossing", "down"): ("v", VERMILION, "crosses zero downwards"),
    ("touch", "none"): ("o", GREY, "touches zero"),
    ("unresolved", None): ("x", ORANGE, "unresolved"),
}
FLOOR = 1e-16  # losses below are rounding; they are drawn here
LINEAR_SHARE = 0.05  # of the eigenvalues in the linear part of the axis


def fan_figure(study: xr.Dataset) -> Figure:
    """Every branch against step on a symmetric-log axis, crossings marked at the middle of brackets."""
    figure, ((axes,),) = new_figure(size=(7.2, 4.6))
    steps, values = study.step.to_numpy(), study.branch_eigenvalue.to_numpy()
    sizes = np.abs(values)
    top = np.nanmax(sizes)
    linear = np.clip(np.nanquantile(sizes, LINEAR_SHARE), 1e-5 * top, 1e-2 * top)
    linear = 10.0 ** np.round(np.log10(linear))  # else ticks crowd at zero
    for line in values.T:
        axes.plot(steps, line, color=BLUE, lw=0.6, alpha=0.45)
    axes.set_yscale("symlog", linthresh=linear, linscale=1.0)
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
        if axes.get_legend_handles_labels()[0]:
            add_legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=1.2)
    axes.set_ylabel(r"eigenvalue $\lambda$ (loss per $|z|^2$)")
    step_axis(axes, steps)
    return figure


def freedom_figure(study: xr.Dataset) -> Figure:
    """Degrees of freedom beside loss and potentials: three panels over one step axis."""
    figure, axes = new_figure(3, 1, size=(7.2, 7.0), sharex=True, height_ratios=[1.4, 1, 1])
    (upper,), (middle,), (lower,) = axes
    steps = study.step.to_numpy()
    for name in ("negative", "positive"):
        if f"{name}_bounds" not in study:  # a study of the first version
            continue
        low, high = study[f"{name}_bounds"].to_numpy().T
        if (low < high).any():  # not every sign is known
            upper.fill_between(steps, low, high, color=SIGN_COLOURS[name], alpha=0.15, lw=0)
    for name, colour in SIGN_COLOURS.items():
        if study[name].any():
            upper.plot(steps, study[name], color=colour, marker="o", markersize=3, label=SIGN_WORDS[name])
        if f"certified_{name}" in study:
            upper.plot(
                study.certified_step, study[f"certified_{name}"].to_numpy().mean(axis=1), "D", color=colour,
                markersize=6, markerfacecolor="white", clip_on=False,
                label="all signs counted" if name == "negative" else None,
            )  # fmt: skip
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


def control_figure(study: xr.Dataset, controls: list[str]) -> Figure:
    """Unstable directions and loss of the run beside its null controls."""
    figure, axes = new_figure(2, 1, size=(7.2, 5.0), sharex=True)
    (upper,), (lower,) = axes
    upper.plot(study.step, study.negative, color=VERMILION, marker="o", markersize=3, label="this run")
    lower.plot(study.step, study.loss, color=VERMILION, marker="o", markersize=3)
    for name, colour, line in zip(controls, (GREY, BLUE), ("--", "-."), strict=False):
        steps = study[f"step_{name}"]
        upper.plot(steps, study[f"{name}_negative"], color=colour, ls=line, label=CONTROL_WORDS[name])
        lower.plot(steps, study[f"{name}_loss"], color=colour, ls=line)
    upper.set_ylabel("unstable directions")
    upper.set_ylim(bottom=0)
    add_legend(upper, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    lower.set_yscale("log")
    lower.set_ylabel("loss $H$")
    step_axis(lower, study.step.to_numpy())
    figure.align_ylabels()
    return figure


def fixed_point_figure(study: xr.Dataset) -> Figure:
    """How far every step is from the fixed point reached from it, and the loss there."""
    figure, axes = new_figure(2, 1, size=(7.2, 5.2), sharex=True)
    (upper,), (lower,) = axes
    steps, reached = study.fixed_step.to_numpy(), study.fixed_converged.to_numpy() > 0
    near = reached & (study.fixed_same_basin.to_numpy() > 0) if "fixed_same_basin" in study else reached
    moved, loss = study.fixed_moved.to_numpy(), np.maximum(study.fixed_loss_after.to_numpy(), FLOOR)
    points = {"color": PURPLE, "marker": "o", "ls": "none", "markersize": 4.5, "clip_on": False}
    for mask, face, label in (
        (near, PURPLE, "fixed point in the same basin"),
        (reached & ~near, "white", "in another basin"),
    ):
        if mask.any():
            upper.plot(steps[mask], moved[mask], **points, markerfacecolor=face, label=label)
            lower.plot(steps[mask], loss[mask], **points, markerfacecolor=face)
    if (~reached).any():
        upper.plot(
            steps[~reached], np.zeros((~reached).sum()), "x", color=ORANGE, label="no fixed point reached"
        )
    upper.set_ylabel("distance moved\n(r.m.s. of $z$)")
    upper.set_ylim(bottom=0)
    add_legend(upper, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.2)
    lower.plot(study.step, np.maximum(study.loss, FLOOR), color=BLUE, label="at the step")
    lower.set_yscale("log")
    lower.set_ylim(bottom=FLOOR)
    lower.set_ylabel("loss $H$")
    lower.annotate(
        "at the step", (study.step[0], study.loss[0]), xytext=(6, -12), textcoords="offset points",
        color=BLUE,
    )  # fmt: skip
    step_axis(lower, study.step.to_numpy())
    figure.align_ylabels()
    return figure
