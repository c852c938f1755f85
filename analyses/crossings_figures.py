"""Figures of a crossing study."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from analyses.controls import CONTROL_WORDS
from analyses.figures import (
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
from analyses.studies import complex_variable

MARKS = {
    ("crossing", "up"): ("^", GREEN, "crosses zero upwards"),
    ("crossing", "down"): ("v", VERMILION, "crosses zero downwards"),
    ("touch", "none"): ("o", GREY, "touches zero"),
    ("unresolved", None): ("x", ORANGE, "unresolved"),
}


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
    for name in ("negative", "positive"):
        if f"{name}_bounds" not in study:  # a study of the first version
            continue
        low, high = study[f"{name}_bounds"].to_numpy().T
        if (low < high).any():  # not every sign is known
            upper.fill_between(steps, low, high, color=SIGN_COLOURS[name], alpha=0.15, lw=0)
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
    figure, axes = new_figure(2, 1, size=(7.2, 4.6), sharex=True)
    (upper,), (lower,) = axes
    steps, reached = study.fixed_step.to_numpy(), study.fixed_converged.to_numpy() > 0
    upper.plot(
        steps[reached], study.fixed_moved.to_numpy()[reached], color=PURPLE, marker="o", markersize=3.5
    )
    upper.plot(steps[~reached], np.zeros((~reached).sum()), "x", color=ORANGE, label="no fixed point reached")
    upper.set_ylabel("distance moved\n(r.m.s. of $z$)")
    if (~reached).any():
        add_legend(upper)
    lower.plot(study.step, study.loss, color=BLUE, label="at the step")
    lower.plot(
        steps[reached], study.fixed_loss_after.to_numpy()[reached], color=PURPLE, marker="o", ls="none",
        markersize=3.5, label="at its fixed point",
    )  # fmt: skip
    lower.set_yscale("symlog", linthresh=1e-6)
    lower.set_ylim(bottom=0)
    lower.set_ylabel("loss $H$")
    add_legend(lower)
    step_axis(lower, study.step.to_numpy())
    figure.align_ylabels()
    return figure
