"""The section of the maximum-entropy study in a report."""

from __future__ import annotations

import re
from typing import Any

import xarray as xr
from markupsafe import Markup

from analyses.reports.sections import Fact, Picture, Section, document_of, scientific, warned
from analyses.studies.maxent.figures import maxent_figures
from analyses.studies.maxent.summary import GLOSSARY

CAPTIONS = {
    "entropies": "Left: entropy of the maximum-entropy measure with the network's symbols, and of "
    "its neurons. Middle: how far the symbols are from the largest that any measure can have (the "
    "face). Right: size of λ.",
    "torus": "Neurons that carry 99 % of the weight, by the phases of their coefficients; area = weight, "
    "colour = misalignment of the three phases (0: exactly on the face).",
    "path": "The run as a path of maximum-entropy measures: entropy, distance to the face and "
    "size of λ against the step.",
}


def maxent_section(study: xr.Dataset) -> Section:
    """What the maximum-entropy study says, in words, numbers and figures."""
    document = document_of(study)
    fits = document.get("fits")
    title = "The least committed measure" if fits is None else "How committed is the network?"
    pictures = [
        Picture(name, draw, Markup(CAPTIONS[name]), CAPTIONS[name])
        for name, draw in maxent_figures(study).items()
    ]
    return Section(
        title=title,
        story=_given(document) if fits is None else _network(document),
        facts=_facts(document) if fits is None else _fit_facts(fits),
        pictures=pictures,
        provenance=document.get("provenance", {}),
        document=document,
        background="" if fits is None else "group",
    )


def _given(document: dict[str, Any]) -> list[str]:
    story = [
        f"Among all measures on {document['space']} with the given moments, this is the one of "
        f"largest entropy: "
        "its density is exp(λ·r)/Z against the uniform probability measure.",
        GLOSSARY["entropy"],
    ]
    return story if document["face"] is None else [*story, GLOSSARY["face"], GLOSSARY["singular"]]


def _facts(document: dict[str, Any]) -> list[Fact]:
    columns = (document[key] for key in ("monomials", "moments", "lambda", "lambda_error"))
    facts = [
        Fact(name, f"λ = {scientific(lam, 8)}{_within(error)}", f"moment {scientific(rho, 8)}")
        for name, rho, lam, error in zip(*columns, strict=True)
    ]
    kind = {"bound": "errors are bounds", "standard error": "errors are standard errors"}[
        document["error_kind"]
    ]
    return [
        *facts,
        Fact("entropy", f"{scientific(document['entropy'], 8)}{_within(document['entropy_error'])} nats",
             f"against the uniform measure; {kind}"),
        Fact("log partition",
             f"{scientific(document['log_partition'], 8)}{_within(document['log_partition_error'])}",
             "log of the integral of exp(λ·r)"),
        Fact("moment error", scientific(document["moment_error"], 2), "standard deviations, on a finer rule"),
    ]  # fmt: skip


def _within(error: float | None) -> str:
    return "" if error is None else f" ± {scientific(error, 2)}"


def _network(document: dict[str, Any]) -> list[str]:
    fits = [f for f in document["fits"] if f["converged"]]
    story = [
        "Given the symbols of the network, frequency by frequency: which measure is the least committed, "
        "and how far is the network from it?"
    ]
    if fits:
        top = max(f["boundary_ratio"] for f in fits)
        heavy = [f["effective_neurons"] for f in fits]
        story.append(
            f"The symbols reach up to {100 * top:.2f} % of the largest value that any measure can have "
            f"(100 %: on the face). Effectively {min(heavy):.1f} to {max(heavy):.1f} neurons carry each one."
        )
        if any(_constant_on_face(f) for f in fits):
            story.append(
                "On the face itself these symbols are constant: the least committed measure there is uniform "
                "on the two-torus, and where the neurons sit on it says nothing about these symbols."
            )
    return warned([*story, *(re.sub(r"\bmu\b", "μ", text) for text in GLOSSARY.values())], document)


def _constant_on_face(fit: dict[str, Any]) -> bool:
    near = fit.get("near_face")
    return near is not None and near.get("free") == []


def _fit_facts(fits: list[dict[str, Any]]) -> list[Fact]:
    facts = []
    for fit in fits:
        name = "frequency " + "x".join(map(str, fit["k"])) if fit["k"] else "all frequencies together"
        if not fit["converged"]:
            facts.append(Fact(name, "not fitted", fit["reason"]))
            continue
        value = f"entropy {fit['entropy']:.2f} nats" if fit["face"] is None else "on a face"
        parts = [_gap(fit), f"ρ/h {fit['boundary_ratio']:.5f}", f"dimension {fit['dimension']}"]
        if fit["k"]:
            singular = {True: "yes", False: "no", None: "too few neurons"}[fit["singular"]]
            parts.append(f"singular: {singular}")
        facts.append(Fact(name, value, "; ".join(parts)))
    return facts


def _gap(fit: dict[str, Any]) -> str:
    if fit.get("entropy_gap") is None:
        return "gap not measured"
    error = fit.get("entropy_gap_error")
    return f"gap {fit['entropy_gap']:.2f}" + ("" if error is None else f" ± {error:.2f}") + " nats"
