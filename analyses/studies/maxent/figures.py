"""Figures of the maximum-entropy study, from its Dataset alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import xarray as xr

from analyses.common.drawing import Circle, Figure, matplotlib

BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#718096"


def maxent_figures(study: xr.Dataset) -> dict[str, Callable[[], Figure]]:
    """What draws the figures that a study has data for, by name.

    Parameters
    ----------
    study : xarray.Dataset
        Written by ``rhoscope maxent`` on a checkpoint or run.

    Returns
    -------
    dict of str to callable
        Each returns its Figure.
    """
    known = {
        "entropies": ("empirical_entropy", frequency_figure),
        "torus": ("neuron_phase", torus_figure),
        "path": ("path_entropy", path_figure),
    }
    return {name: partial(draw, study) for name, (needed, draw) in known.items() if needed in study}


def _bare(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def frequency_figure(study: xr.Dataset) -> Figure:
    """Per frequency: entropies of the fitted and the empirical measure; distance to the face; lambda."""
    labels = [str(v) for v in study["frequency"].values]
    places = np.arange(len(labels))
    figure = Figure(figsize=(9.6, 3.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(places, study["entropy"], "o", color=BLUE, label="maximum entropy $h(\\mu^*)$")
    known = "entropy_bias" in study and bool(study["entropy_bias"].notnull().all())
    empirical = study["empirical_entropy"] - (study["entropy_bias"] if known else 0)
    label = "neurons $h(\\mu)$, bias " + ("removed" if known else "not removed")
    error = study["entropy_gap_error"] if known and "entropy_gap_error" in study else None
    left.errorbar(places, empirical, error, fmt="s", mfc="white", color=ORANGE, lw=1, capsize=2, label=label)
    left.set_ylabel("entropy [nats, uniform = 0]")
    low, high = left.get_ylim()
    left.set_ylim(low, max(high, 0) + 0.28 * (max(high, 0) - low))
    left.legend(frameon=False, fontsize=8, loc="upper left")
    distance = 1 - study["boundary_ratio"].values
    middle.plot(places, distance, "o", color=BLUE)
    middle.set_yscale("log")
    middle.set_ylim(
        10 ** np.floor(np.log10(distance.min()) - 0.1), 10 ** np.ceil(np.log10(distance.max()) + 0.1)
    )
    middle.minorticks_off()
    middle.set_ylabel(r"distance to the face, $1-\rho/h$")
    size = np.sqrt((study["lambda"] ** 2).sum("monomial"))
    right.bar(places, size, color=ORANGE, width=0.6)
    right.set_ylabel(r"$|\lambda|$")
    for axes in (left, middle, right):
        axes.set_xlim(-0.7, len(labels) - 0.3)
        axes.set_xticks(places, labels, fontsize=8)
        axes.set_xlabel("frequency $k$")
        _bare(axes)
    return figure


def torus_figure(study: xr.Dataset, *, most: int = 4) -> Figure:
    """Neurons of the heaviest frequencies by their phases (area = weight), coloured by misalignment."""
    count = min(most, study.sizes["fit"])
    figure = Figure(figsize=(2.5 * count + 0.9, 2.9), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    turn = np.pi
    sums = study["neuron_phase"][:count].sum("layer", skipna=False).values
    worst = max(0.02, float(np.nanmax(np.abs(np.angle(np.exp(1j * sums))))) / turn)
    for i, panel in enumerate(axes):
        phases, weights = study["neuron_phase"][i].values, study["neuron_weight"][i].values
        off = np.angle(np.exp(1j * phases.sum(1)))
        shown = panel.scatter(
            phases[:, 0] / turn, phases[:, 1] / turn, s=25 + 260 * weights / np.nanmax(weights), c=off / turn,
            cmap="coolwarm", vmin=-worst, vmax=worst, edgecolor="0.25", linewidth=0.6,
        )  # fmt: skip
        panel.set(
            xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1)
        )
        panel.set_title(f"$k$ = {study['frequency'].values[i]}", fontsize=10)
        panel.set_xlabel(r"$\theta_a/\pi$")
        panel.grid(color="0.93", linewidth=0.8)
        panel.set_axisbelow(True)
    axes[0].set_ylabel(r"$\theta_b/\pi$")
    figure.colorbar(shown, ax=axes, label=r"$(\theta_a+\theta_b+\theta_c)/\pi$", fraction=0.05)
    return figure


def path_figure(study: xr.Dataset) -> Figure:
    """Entropy, boundary distance and lambda against the step, one line per frequency."""
    figure = Figure(figsize=(9.6, 3.1), layout="constrained")
    panels = figure.subplots(1, 3)
    steps = study["step"].values
    rows = [
        ("path_entropy", r"entropy $h(\mu^*)$ [nats]", "linear"),
        ("path_boundary_ratio", r"distance to the face, $1-\rho/h$", "log"),
        ("path_lambda_norm", r"$|\lambda|$", "log"),
    ]
    colours = _colours(study.sizes["path"])
    for panel, (key, label, scale) in zip(panels, rows, strict=True):
        for path in range(study.sizes["path"]):
            values = study[key][path].values
            values = 1 - values if key == "path_boundary_ratio" else values
            name = f"k = {study['path_frequency'].values[path]}"
            panel.plot(steps, values, "-", marker=".", ms=4, lw=1.2, color=colours[path], label=name)
        panel.set_xscale("symlog", linthresh=max(1, steps[steps > 0].min() if (steps > 0).any() else 1))
        panel.set_xlim(left=0)
        panel.set_yscale(scale)
        panel.set_xlabel("training step")
        panel.set_ylabel(label)
        _bare(panel)
    if study.sizes["path"] <= 6:
        panels[0].legend(frameon=False, fontsize=8)
    return figure


def _colours(count: int) -> list:
    return [matplotlib.colormaps["viridis"](0.88 * i / max(count - 1, 1)) for i in range(count)]


def sphere_figure(density, *, points: np.ndarray | None = None, title: str = "") -> Figure:
    """A density on S^2 (two hemispheres, equal-area) with points over it.

    Parameters
    ----------
    density : callable
        Maps points (q, 3) to values (q,), against the uniform measure.
    points : ndarray, shape (q, 3), optional
    title : str
    """
    figure = Figure(figsize=(6.2, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    grid = np.linspace(-1, 1, 301) * np.sqrt(2)
    u, v = np.meshgrid(grid, grid)
    radius = u**2 + v**2
    inside = radius <= 2
    height = 1 - radius
    spread = np.sqrt(np.maximum(2 - radius, 0))  # equal-area: r^2 = 1 - x3
    values = []
    for sign in (1, -1):
        sphere = np.stack([u * spread, v * spread, sign * height], -1)
        field = np.full(u.shape, np.nan)
        upper = inside & (height >= 0)
        field[upper] = density(sphere[upper] / np.linalg.norm(sphere[upper], axis=1, keepdims=True))
        values.append(field)
    top = np.nanmax(values)
    for panel, field, sign in zip(panels, values, (1, -1), strict=True):
        shown = panel.imshow(
            field, origin="lower", extent=(-np.sqrt(2), np.sqrt(2)) * 2, cmap="magma_r", vmin=0, vmax=top
        )
        if points is not None:
            side = points[points[:, 2] * sign >= 0]
            scale = np.sqrt(1 / np.maximum(1 - np.abs(side[:, 2]), 1e-12))
            length = np.linalg.norm(side[:, :2], axis=1)
            scale = np.sqrt(1 - np.abs(side[:, 2])) / np.maximum(length, 1e-12)
            panel.plot(side[:, 0] * scale, side[:, 1] * scale, ".", ms=4, color=BLUE, mec="white", mew=0.4)
        panel.add_artist(Circle((0, 0), 1, fill=False, color="0.3"))
        panel.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
        panel.set_title(r"$x_3 \geq 0$" if sign > 0 else r"$x_3 \leq 0$", fontsize=10)
        panel.axis("off")
    figure.colorbar(shown, ax=panels, label="density (uniform = 1)", fraction=0.05)
    figure.suptitle(title, fontsize=11)
    return figure
