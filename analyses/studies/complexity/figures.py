"""Figures of a sample-complexity study, sized for a paper's column."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from analyses.common.drawing import Figure, LogLocator, NullFormatter
from analyses.studies.complexity import statistics as st

# Okabe-Ito: distinguishable for colour-blind readers and in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _figure(width: float = 5.2, height: float = 3.7) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes


def _finish(axes: Any, x: str, y: str, title: str, legend: str = "best") -> None:
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.legend(fontsize=7.5, frameon=False, loc=legend)


def _decimal_ticks(axis: Any) -> None:
    """Plain decimals on a short logarithmic axis, where powers of ten alone would leave it bare."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    axis.set_major_formatter("{x:.9g}")
    axis.set_minor_formatter(NullFormatter())


def learning_curves(document: dict[str, Any], *, collapsed: bool = False) -> Figure:
    """Mean risk against n (or against n / vol(M/G)), prediction overlaid, asymptotic points filled."""
    figure, axes = _figure()
    volume = document["groups"][0]["quotient_volume"]
    for color, group in zip(COLORS, document["groups"], strict=False):
        scale = volume / group["quotient_volume"] if collapsed else 1.0
        x = np.asarray(group["n"]) * scale
        label = group["name"] if collapsed else _curve_label(group)
        error = 1.96 * group["risk_stderr"]
        axes.errorbar(x, group["risk_mean"], error, fmt="none", ecolor=color, elinewidth=1)
        valid = np.asarray(group["asymptotic"])
        axes.plot(x[valid], group["risk_mean"][valid], "o", color=color, ms=4.5, label=label)
        axes.plot(x[~valid], group["risk_mean"][~valid], "o", mfc="white", color=color, ms=4.5)
        axes.plot(x, group["risk_predicted"], "-", color=color, lw=0.9)
        if not collapsed and group["nyquist"] is not None:
            axes.axvline(group["nyquist"], color=color, lw=0.7, ls=":")
    axes.set_xscale("log")
    axes.set_yscale("log")
    x_label = "n vol(M) / vol(M/G)  (n|H| for finite groups)" if collapsed else "sample size n"
    title = (
        "Collapse against n|H|" if collapsed else "Filled: asymptotic; line: predicted; dotted: Nyquist rate"
    )
    _finish(axes, x_label, "excess risk (target variance 1)", title)
    return figure


def _curve_label(group: dict[str, Any]) -> str:
    slope = group["slope"]
    if slope["value"] is None:
        return group["name"]
    return f"{group['name']}: slope {slope['value']:.3f} (theory {slope['theory']:.3f})"


def gain_figure(document: dict[str, Any]) -> Figure | None:
    """Gain n_1(eps) / n_H(eps), over |H| where that is the theory; None without gains."""
    records = [g for g in document["gain"] if g["epsilon"] is not None]
    if not records:
        return None
    figure, axes = _figure()
    relative = all(g["theory"] is not None for g in records)
    names = list(dict.fromkeys(g["group"] for g in records))
    for offset, (color, name) in enumerate(zip(COLORS[1:], names, strict=False)):
        rows = [g for g in records if g["group"] == name]
        scale = np.array([g["theory"] if relative else 1.0 for g in rows])
        # Shifted a little sideways, or the intervals would lie on one another.
        eps = np.array([g["epsilon"] for g in rows]) * (1 + 0.012 * (offset - (len(names) - 1) / 2))
        ratio = np.array([g["ratio"] for g in rows]) / scale
        low, high = np.array([g["ci"] for g in rows]).T / scale
        label = f"{name}: |H| = {rows[0]['theory']:g}" if relative else name
        axes.errorbar(eps, ratio, [ratio - low, high - ratio], fmt="o", ms=4, color=color, label=label)
    if relative:
        axes.axhspan(0.97, 1.03, color="grey", alpha=0.12, lw=0)
        axes.axhline(1.0, color="grey", lw=0.8)
        axes.set_ylim(0.94, 1.06)
    axes.set_xscale("log")
    _decimal_ticks(axes.xaxis)
    axes.invert_xaxis()
    y_label = "gain in samples / |H|" if relative else "gain in samples"
    _finish(axes, "risk eps", y_label, "Gain on the fixed target" + ("; band: 3 %" if relative else ""))
    return figure


def second_term_figure(document: dict[str, Any], study: xr.Dataset) -> Figure | None:
    """N against the risk reached with probability 1 - delta, with the powers of the two terms."""
    test = document.get("second_term")
    if not test:
        return None
    figure, axes = _figure()
    group = document["groups"][-1]
    valid = np.asarray(group["asymptotic"])
    samples = np.asarray(group["n"])[valid]
    axes.plot(group["risk_mean"][valid], samples, "o-", color=COLORS[6], ms=4, lw=1, label="mean risk")
    for color, row in zip(COLORS, test["rows"], strict=False):
        upper = st.quantiles(study, row["delta"])[-1][valid]
        label = f"delta = {row['delta']:g}: power {row['power']['value']:.2f}"
        axes.plot(upper, samples, "s-", color=color, ms=4, lw=1, label=label)
    eps = np.array([group["risk_mean"][valid].min(), group["risk_mean"][valid].max()])
    guide = samples.min() * 0.8
    for power, style in ((test["first_term_power"], "--"), (2.0, ":")):
        axes.plot(eps, guide * (eps[1] / eps) ** power, style, color="grey", label=f"eps^-{power:.3g}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _decimal_ticks(axes.xaxis)
    _decimal_ticks(axes.yaxis)
    _finish(axes, "risk eps reached with probability 1 - delta", "samples n", "Is the second term real?")
    return figure


def exponent_figure(document: dict[str, Any]) -> Figure | None:
    """Measured exponents of the table against the predicted ones; None without a table."""
    cells = [c for c in (document.get("regimes") or {}).get("exponents", []) if c["value"] is not None]
    if not cells:
        return None
    figure, axes = _figure()
    for offset, (kappa, color) in enumerate(zip(sorted({c["kappa"] for c in cells}), COLORS, strict=False)):
        rows = [c for c in cells if c["kappa"] == kappa]
        x = np.array([c["theta"] for c in rows]) + 0.012 * (offset - 1)
        value = np.array([c["value"] - c["theory"] for c in rows])
        low, high = (np.array([c["ci"] for c in rows]) - np.array([[c["theory"]] for c in rows])).T
        axes.errorbar(
            x, value, [value - low, high - value], fmt="o", ms=4, color=color, label=f"kappa = {kappa:g}"
        )
        finite = [c["finite_n_prediction"] - c["theory"] for c in rows]
        axes.plot(x, finite, "_", color=color, ms=12, mew=1.5)
    axes.axhline(0, color="grey", lw=0.8)
    axes.set_ylim(-0.02, 0.02)
    _finish(
        axes, "theta", "measured - predicted exponent", "Exponents; bars: deterministic equivalent at these n"
    )
    return figure


def network_figure(document: dict[str, Any]) -> Figure | None:
    """Test accuracy of the group network against the fraction of training pairs; None if not run."""
    network = document.get("network")
    if not network:
        return None
    figure, axes = _figure()
    for color, curve in zip(COLORS, network["curves"], strict=False):
        mean, low, high = (np.array([p[k] for p in curve["points"]]) for k in ("accuracy", "low", "high"))
        fraction = [p["fraction"] for p in curve["points"]]
        axes.errorbar(
            fraction, mean, [mean - low, high - mean], fmt="o-", ms=4, lw=1, color=color, label=curve["name"]
        )
    axes.set_ylim(-0.03, 1.03)
    _finish(
        axes,
        "fraction of all pairs seen in training",
        "accuracy on unseen pairs",
        f"{network['group']}, {network['seeds']} seeds",
    )
    return figure
