"""Figures of studies: each function takes a Dataset and returns a matplotlib Figure (no global state)."""

from __future__ import annotations

import io

import numpy as np
import xarray as xr

from analyses.common.drawing import (
    Axes,
    Figure,
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    house_style,
)
from analyses.common.figure_formats import check_format
from analyses.common.study_files import complex_variable
from analyses.reports.density import DENSITY_BAND

# Okabe and Ito's palette: told apart with every common colour blindness, and in grey.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9",
)  # fmt: skip
GREY = "#6b6b6b"
SIGN_COLOURS = {"negative": VERMILION, "marginal": GREY, "positive": BLUE, "undetermined": ORANGE}
SIGN_WORDS = {
    "negative": "unstable (negative)",
    "marginal": "marginal (zero by a symmetry)",
    "positive": "contracting (positive)",
    "undetermined": "undetermined (within its bound of 0)",
}


def figure_bytes(figure: Figure, figure_format: str) -> bytes:
    """A figure as the content of a file; the same figure gives the same bytes.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    figure_format : str
        ``svg``, ``png`` or ``pdf``.

    Returns
    -------
    bytes

    Raises
    ------
    InputError
        For another format.
    """
    check_format(figure_format)
    buffer = io.BytesIO()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    with house_style():
        figure.savefig(buffer, format=figure_format, dpi=160, metadata=dates[figure_format])
    return buffer.getvalue()


def new_figure(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (7.2, 3.8), **options
) -> tuple[Figure, np.ndarray]:
    """An empty figure in the style of the house, with its axes as an array (rows, columns)."""
    with house_style():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def add_legend(axes: Axes, **options) -> None:
    """A legend in the style of the house."""
    with house_style():
        axes.legend(**options)


def step_axis(axes: Axes, steps: np.ndarray) -> None:
    """A logarithmic step axis on which step 0 has its own place at the left."""
    steps = np.asarray(steps)
    positive = steps[steps > 0]
    if len(positive) > 1:
        first, last = positive.min(), positive.max()
        ticks = 10.0 ** np.arange(np.ceil(np.log10(first)), np.floor(np.log10(last)) + 1)
        ends = [tick for tick in (first, last) if np.all(np.abs(np.log10(ticks / tick)) > 0.35)]
        ticks = sorted([*ticks, *ends])
        if steps.min() == 0:
            axes.set_xscale("symlog", linthresh=first, linscale=0.4)
            ticks = [0, *ticks]
        else:
            axes.set_xscale("log")
        axes.set_xticks(ticks)
        minor = np.outer(10.0 ** np.arange(-1, 19), np.arange(2, 10)).ravel()
        axes.set_xticks(minor[(minor > first) & (minor < last)], minor=True)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
    axes.set_xlim(steps.min(), steps.max() if steps.max() > steps.min() else steps.min() + 1)
    zero_apart = axes.get_xscale() == "symlog"
    axes.set_xlabel("training step" + (" (logarithmic, 0 at the left)" if zero_apart else ""))


def _thousands(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u2009")


def loss_figure(study: xr.Dataset) -> Figure:
    """Loss (logarithmic) and accuracy against step, from a trajectory."""
    figure, axes = new_figure(2, 1, size=(7.2, 4.6), sharex=True, height_ratios=[2.2, 1])
    (upper,), (lower,) = axes
    steps = study.step.to_numpy()
    upper.plot(steps, study.loss, color=BLUE, marker="o", markersize=3.5, label="loss $H$")
    if not np.allclose(study.loss, study.objective, rtol=1e-12):
        upper.plot(steps, study.objective, color=ORANGE, ls="--", label="objective ($H$ + decay)")
        add_legend(upper, loc="lower left")
    upper.set_yscale("log")
    upper.set_ylabel("loss $H$ (mean over pairs)")
    lower.plot(steps, 100 * study.accuracy, color=GREEN, marker="o", markersize=3.5)
    lower.set_ylabel("accuracy (%)")
    lower.set_ylim(-4, 104)
    step_axis(lower, steps)
    figure.align_ylabels()
    return figure


def potentials_figure(study: xr.Dataset) -> Figure:
    """Potentials against step: the targets go to 1, everything that must vanish goes to 0."""
    figure, ((axes,),) = new_figure(size=(7.2, 4.2))
    steps = study.step.to_numpy()
    targets = complex_variable(study, "target_potential").real
    axes.axhline(1, color=BLUE, lw=0.8, ls=":")
    axes.axhline(0, color=GREY, lw=0.8, ls=":")
    for k, line in enumerate(targets.T):
        label = r"targets Re $\rho_{kkk}$, one line per $k$" if k == 0 else None
        axes.plot(steps, line, color=BLUE, lw=1.1, alpha=0.75, label=label)
    largest = study.largest_potential
    axes.plot(steps, largest.sel(set="R_c"), color=VERMILION, lw=1.8, label=r"largest $|\rho|$ in $R_c$")
    axes.plot(
        steps, study.largest_sum, color=ORANGE, lw=1.8, ls="--", label=r"largest sum $|S|$ over $R_n$, $R_*$"
    )
    axes.set_ylabel(r"potential $\rho$ (dimensionless)")
    step_axis(axes, steps)
    add_legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.2)
    return figure


def signs(values: np.ndarray, errors: np.ndarray) -> dict[str, np.ndarray]:
    """Masks of eigenvalues by sign, claimed only beyond the error bound.

    A number within its bound of zero is undetermined: that it is zero would take a symmetry to prove, which
    the numbers alone do not show.
    """
    return {
        "negative": values < -errors,
        "positive": values > errors,
        "undetermined": np.abs(values) <= errors,
    }


def spectrum_figure(study: xr.Dataset, *, dimension: int | None = None) -> Figure:
    """The eigenvalues of one checkpoint, sorted, with error bounds and signs.

    Parameters
    ----------
    study : xarray.Dataset
        Of one checkpoint, with ``eigenvalue`` and ``eigenvalue_error``.
    dimension : int, optional
        Of the operator's space; more than there are eigenvalues: the middle was not computed.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, ((axes,),) = new_figure(size=(7.2, 4.2))
    values, errors = study.eigenvalue.to_numpy(), study.eigenvalue_error.to_numpy()
    place = np.arange(1, len(values) + 1)
    for name, mask in signs(values, errors).items():
        if mask.any():
            axes.errorbar(
                place[mask], values[mask], yerr=errors[mask], fmt="o", markersize=3, elinewidth=1,
                color=SIGN_COLOURS[name], label=f"{SIGN_WORDS[name]}: {mask.sum():,}",
            )  # fmt: skip
    _value_scale(axes, values, errors)
    missing = (dimension or len(values)) - len(values)
    note = f"; {_thousands(missing)} between the ends not computed" if missing > 0 else ""
    axes.set_xlabel(f"eigenvalue number, ascending{note}")
    axes.set_ylabel(r"eigenvalue $\lambda$ (loss per $|z|^2$)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(values):
        add_legend(axes, loc="best", title="error bars: absolute bound")
    return figure


def density_figure(study: xr.Dataset) -> Figure:
    """The density of a spectrum: a histogram and the cumulative count, with both errors.

    Parameters
    ----------
    study : xarray.Dataset
        Of one checkpoint, with the ``density_*`` variables.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, ((above,), (below,)) = new_figure(2, 1, size=(7.2, 5.6))
    edges, counts = study.density_edge_value.to_numpy(), study.density_count.to_numpy()
    threshold = edges[edges > 0].min()
    for axes in (above, below):
        axes.set_xscale("symlog", linthresh=threshold, linscale=0.4)
        axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_major_locator(_decades(edges[-1], threshold))
        axes.axvline(0, color=GREY, lw=0.8)
    band = edges[edges >= DENSITY_BAND * edges[-1]].min()
    below_zero, above_zero = edges[1:] <= -band * (1 - 1e-9), edges[:-1] >= band * (1 - 1e-9)
    for mask, colour, words in (
        (below_zero, "negative", SIGN_WORDS["negative"]),
        (above_zero, "positive", SIGN_WORDS["positive"]),
        (~below_zero & ~above_zero, "undetermined", f"within ±{band:.1g}, too near 0 for a sign"),
    ):
        above.bar(
            edges[:-1][mask], counts[mask], np.diff(edges)[mask], align="edge", color=SIGN_COLOURS[colour],
            label=f"{words}: about {counts[mask].sum():,.0f}",
        )  # fmt: skip
    above.set_yscale("symlog", linthresh=10)
    above.set_ylim(0, 300 * max(10.0, counts.max()))  # room for the legend
    above.set_ylabel("eigenvalues per bin")
    add_legend(above, loc="upper left")
    error = study.density_standard_error.to_numpy()
    low, high = study.density_low.to_numpy() - error, study.density_high.to_numpy() + error
    below.fill_between(edges, low, high, color=SKY, alpha=0.4, lw=0, label="standard error and steps")
    below.plot(edges, study.density_cumulative.to_numpy(), color=BLUE, lw=1.4, label="estimate")
    below.set_xlabel(r"eigenvalue $\lambda$ (loss per $|z|^2$)")
    below.set_ylabel(r"eigenvalues up to $\lambda$")
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _thousands(value)))
    add_legend(below, loc="upper left")
    return figure


def _decades(top: float, threshold: float) -> FixedLocator:
    """Ticks at zero and at every second power of ten of both signs."""
    powers = 10.0 ** np.arange(np.ceil(np.log10(threshold)), np.floor(np.log10(top)) + 1)[::-2]
    return FixedLocator(np.concatenate([-powers, [0.0], powers[::-1]]))


def _value_scale(axes: Axes, values: np.ndarray, errors: np.ndarray) -> None:
    """Logarithmic where all is positive, symmetric-logarithmic where signs mix; shows the band around 0."""
    values, errors = values[np.isfinite(values)], errors[np.isfinite(errors)]
    if not len(values):
        return
    top = np.abs(values).max()
    if values.min() > errors.max():
        if values.max() > 30 * values.min():
            axes.set_yscale("log")
        return
    axes.axhline(0, color=GREY, lw=0.8)
    nonzero = np.abs(values[np.abs(values) > errors])
    smallest = nonzero.min() if len(nonzero) else top
    if top > 100 * smallest > 0:
        threshold = max(smallest, 1e-4 * top)
        axes.set_yscale("symlog", linthresh=threshold, linscale=0.6)
        axes.axhspan(-threshold, threshold, color="#f0f0f0", zorder=0, lw=0)
    elif errors.max() > 0:
        axes.axhspan(-errors.max(), errors.max(), color="#f0f0f0", zorder=0, lw=0)


def spectrum_steps_figure(study: xr.Dataset) -> Figure:
    """Eigenvalues against step, and how many of them have which sign (the degrees of freedom)."""
    figure, axes = new_figure(2, 1, size=(7.2, 6.0), sharex=True, height_ratios=[1.7, 1])
    (upper,), (lower,) = axes
    steps = study.step.to_numpy()
    values, errors = study.eigenvalue.to_numpy(), study.eigenvalue_error.to_numpy()
    where = np.broadcast_to(steps[:, None], values.shape)
    for name, mask in signs(values, errors).items():
        if mask.any():
            upper.scatter(
                where[mask], values[mask], s=5, color=SIGN_COLOURS[name], alpha=0.5, lw=0, rasterized=True,
                clip_on=False,
            )  # fmt: skip
    top = np.nanmax(np.abs(values))
    upper.set_yscale("symlog", linthresh=1e-2 * top, linscale=0.6)
    upper.axhline(0, color=GREY, lw=0.8)
    upper.set_ylabel(r"eigenvalue $\lambda$ (loss per $|z|^2$)")
    for name, colour in SIGN_COLOURS.items():
        if study[name].any():
            lower.plot(steps, study[name], color=colour, marker="o", markersize=3, label=SIGN_WORDS[name])
    lower.plot(steps, study["rank"], color="black", lw=1, ls=":", label="rank of $T_R$")
    lower.set_ylabel("directions (count)")
    lower.set_ylim(bottom=0)
    add_legend(lower, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=1.2)
    step_axis(lower, steps)
    figure.align_ylabels()
    return figure


def neurons_figure(study: xr.Dataset) -> Figure:
    """How pure living neurons are, and which frequency each prefers."""
    figure, ((left, right),) = new_figure(1, 2, size=(7.2, 3.3))
    alive = study.alive.to_numpy().astype(bool)
    purity, frequency = study.purity.to_numpy()[alive], study.neuron_frequency.to_numpy()[alive]
    left.hist(purity, bins=np.linspace(0, 1, 26), color=BLUE, edgecolor="white", lw=0.5)
    left.set_xlabel("purity (power share of top frequency)")
    left.set_ylabel("neurons")
    left.set_xlim(0, 1)
    numbers, counts = np.unique(frequency, return_counts=True)
    names = study.frequency.to_numpy()
    labels = [str(names[number - 1]).strip("()").replace("$", r"\$") for number in numbers]  # no mathtext
    right.bar(range(len(numbers)), counts, color=GREEN, width=0.75)
    stride = max(1, -(-sum(len(label) + 1 for label in labels) // 32))
    right.set_xticks(range(0, len(numbers), stride), labels[::stride])
    right.set_xlabel("preferred frequency pair $\\pm k$")
    right.set_ylabel("neurons")
    for axes in (left, right):
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.grid(visible=False, axis="x")
    return figure
