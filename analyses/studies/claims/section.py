"""The section of the ledger of claims in a report."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup, escape

from analyses.common.drawing import Figure
from analyses.reports.figures import BLUE, GREEN, ORANGE, VERMILION, add_legend, new_figure
from analyses.reports.sections import Fact, Picture, Section, document_of
from analyses.studies.claims.entries import Verdict

MEANINGS = {
    Verdict.HOLDS: "true as stated, on everything measured",
    Verdict.CORRECTED: "true after a correction that the entry states",
    Verdict.FAILS: "a counterexample was found",
    Verdict.VACUOUS: "its hypotheses allow nothing to be said about a learning network",
    Verdict.UNDECIDED: "the measurement does not settle it at this size",
}
SHARES = (
    "Families of the solutions that gradient descent finds, per cent of the frequencies whose neurons "
    "factor: measured with 95 % intervals (dots), and as published (crosses)."
)
UNSTABLE = (
    "Unstable directions (certainly negative eigenvalues of the second variation) and loss along the run of "
    "the entries on spectra: the number first rises, then falls to zero."
)


def claims_section(study: xr.Dataset) -> Section:
    """Every claim with its verdict, its hypotheses as measured, and figures of the evidence."""
    document = document_of(study)
    claims = document["claims"]
    counts = {v: sum(claim["verdict"] == v.value for claim in claims) for v in Verdict}
    size = "small sizes (quick)" if document["quick"] else "full sizes"
    story = [
        Markup(
            "Each formal claim is stated as tested, its hypotheses are measured on the runs used, and the "
            "verdict follows from numbers alone; all evidence is in the JSON at the end of the page ({}, "
            "{:.0f} s)."
        ).format(size, document["timing"]["seconds"]),
        *[_paragraph(claim) for claim in claims],
    ]
    facts = [Fact(v.value, str(counts[v]), MEANINGS[v]) for v in Verdict]
    evidence = {claim["id"]: claim["evidence"] for claim in claims}
    pictures = []
    if "factorable-solutions" in evidence:
        pictures.append(
            Picture(
                "families",
                partial(shares_figure, evidence["factorable-solutions"]["rows"]),
                Markup(SHARES),
                SHARES,
            )
        )
    if "zero-crossings" in evidence:
        draw = partial(unstable_figure, evidence["zero-crossings"])
        pictures.append(Picture("unstable", draw, Markup(UNSTABLE), UNSTABLE))
    return Section("The ledger of claims", story, facts, pictures, document["provenance"], document)


def _paragraph(claim: dict[str, Any]) -> Markup:
    hypotheses = Markup("; ").join(
        Markup("{}: {} ({})").format(
            one["name"], _short(one["measured"]), "holds" if one["holds"] else "does not hold"
        )
        for one in claim["hypotheses"]
    )
    return Markup("<b>{}</b> &mdash; <b>{}</b>.<br><i>{}</i><br>{}{}").format(
        claim["id"], claim["verdict"], claim["statement"], claim["note"],
        Markup("<br><small>Hypotheses: {}.</small>").format(hypotheses) if hypotheses else "",
    )  # fmt: skip


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(escape(value))


def shares_figure(rows: list[dict[str, Any]]) -> Figure:
    """Shares of the families with intervals beside the published ones, one panel per group."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    figure, axes = new_figure(1, len(groups), size=(7.2, 3.1), sharey=True)
    for ax, group in zip(axes[0], groups, strict=True):
        own = [row for row in rows if row["group"] == group]
        places = np.arange(len(own))[::-1]
        share = np.array([row["share"] for row in own])
        spread = np.abs(np.array([[row["low"], row["high"]] for row in own]).T - share)
        ax.errorbar(share, places, xerr=spread, fmt="o", color=BLUE, capsize=3, label="measured")
        for inside, colour in ((True, GREEN), (False, VERMILION)):
            chosen = [
                (row["published"], y) for row, y in zip(own, places, strict=True) if row["inside"] is inside
            ]
            if chosen:
                label = f"published, {'inside' if inside else 'outside'}"
                ax.plot(*zip(*chosen, strict=True), "x", color=colour, ms=8, mew=2, label=label)
        ax.set_yticks(places, [row["family"] for row in own])
        ax.set_title(f"{group}\n{own[0]['of']} frequencies")
        ax.set_xlim(-4, 104)
        ax.set_xlabel("share, %")
    handles = {
        label: handle for ax in axes[0] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def unstable_figure(evidence: dict[str, Any]) -> Figure:
    """Number of unstable directions and loss against flow time."""
    figure, ((axes,),) = new_figure(size=(7.2, 3.2))
    times = np.array(evidence["flow_time"])
    axes.plot(times, evidence["negative"], "o-", color=VERMILION, ms=3.5, label="unstable directions")
    axes.set_xlabel("flow time")
    axes.set_ylabel("unstable directions")
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=0)
    other = axes.twinx()
    other.plot(times, evidence["loss"], color=ORANGE, label="loss H")
    other.set_ylabel("loss H (projected MSE)")
    other.set_ylim(bottom=0)
    other.grid(False)
    other.spines["right"].set_visible(True)
    axes.plot([], [], color=ORANGE, label="loss H")
    add_legend(axes, loc="upper right")
    return figure
