"""The section of a sample-complexity study in a report."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from analyses.common.study_files import plain
from analyses.reports.sections import Fact, Picture, Section, document_of, scientific
from analyses.studies.complexity.figures import (
    exponent_figure,
    gain_figure,
    learning_curves,
    network_figure,
    second_term_figure,
)

VERDICTS = {
    "holds": "What holds",
    "undecided": "What these samples do not decide",
    "slack": "Where the second term is slack",
    "excluded": "What the data exclude",
    "notes": "Notes",
}
CURVES = ("n", "risk_mean", "risk_stderr", "risk_predicted", "asymptotic")
CAPTIONS = {
    "learning-curves": "Learning curves: mean excess risk against the sample size, one colour per group. "
    "Filled points are asymptotic; lines are the deterministic equivalent, dotted lines the Nyquist rate of "
    "the target.",
    "collapse": "The same curves against n |H|: what the symmetry saves in samples makes them coincide.",
    "gains": "Samples without the symmetry over samples with it, for the same risk on the same target.",
    "second-term": "Samples against the risk reached with probability 1 − δ, beside the powers of both "
    "terms.",
    "exponents": "Measured exponents minus the predicted ones; bars: the deterministic equivalent at these "
    "n.",
    "network": "Accuracy of the group network on unseen pairs against the share of pairs in training.",
}


def complexity_section(study: xr.Dataset) -> Section:
    """What a sample-complexity study says, in words, numbers and figures."""
    document = document_of(study) or _first_version(study)
    verdict = document["verdict"]
    story: list[str | Markup] = [
        Markup(
            "How many samples does learning an invariant function on {} take? The claim under test: "
            "<code>{}</code>, with s = {:.4g}, θ = {:.4g}, σ = {:.4g} and {} independent designs per point. "
            "{}. Intervals are 95 % bootstrap intervals over designs."
        ).format(
            document["space"], verdict["statement"], document["s"], document["theta"], document["noise"],
            document["trials"], document["convention"],
        )
    ]  # fmt: skip
    story += [
        Markup("<b>{}</b><br>{}").format(title, Markup("<br>").join(verdict[kind]))
        for kind, title in VERDICTS.items()
        if verdict.get(kind)
    ]
    return Section(
        title=f"Sample complexity on {document['space']}",
        story=story,
        facts=[*_group_facts(document), *_exponent_facts(document)],
        pictures=_pictures(document, study),
        provenance=document["provenance"],
        document=document,
    )


def _first_version(study: xr.Dataset) -> dict[str, Any]:
    """The document of a study whose file holds the curves and the verdict, but not the whole document."""
    parts = {
        name: json.loads(study.attrs.get(name, "null"))
        for name in ("verdict", "regimes", "network", "provenance")
    }
    place = int(np.abs(study.multiplier.to_numpy() - 1.0).argmin())  # the schedule's own ridge
    risks = (study.squared_bias + study.noise_variance).isel(multiplier=place)
    predicted = study.risk_predicted.isel(multiplier=place)
    trials = risks.sizes["trial"]
    groups = [
        {
            "name": str(name), "order": None, "n": study.samples[h].to_numpy(),
            "risk_mean": risks[h].mean("trial").to_numpy(),
            "risk_stderr": risks[h].std("trial", ddof=1).to_numpy() / trials**0.5,
            "risk_predicted": predicted[h].to_numpy(), "asymptotic": np.ones(study.sizes["size"], bool),
            "nyquist": None, "quotient_volume": None, "slope": {"value": None},
        }
        for h, name in enumerate(study.group.to_numpy())
    ]  # fmt: skip
    return plain({
        **{name: study.attrs[name] for name in ("space", "s", "theta", "noise", "trials")},
        "convention": "Excess risk under the uniform probability measure, target variance 1",
        "groups": groups, "gain": [], **parts,
    })  # fmt: skip


def _pictures(document: dict[str, Any], study: xr.Dataset) -> list[Picture]:
    groups = [one | {name: _array(one[name]) for name in CURVES} for one in document["groups"]]
    data = document | {"groups": groups}
    drawn = {"learning-curves": partial(learning_curves, data)}
    if all(one["quotient_volume"] for one in groups):
        drawn["collapse"] = partial(learning_curves, data, collapsed=True)
    if any(one["epsilon"] is not None for one in data["gain"]):
        drawn["gains"] = partial(gain_figure, data)
    if data.get("second_term"):
        drawn["second-term"] = partial(second_term_figure, data, study)
    if any(one["value"] is not None for one in (data.get("regimes") or {}).get("exponents", [])):
        drawn["exponents"] = partial(exponent_figure, data)
    if data.get("network"):
        drawn["network"] = partial(network_figure, data)
    return [Picture(name, draw, Markup(CAPTIONS[name]), CAPTIONS[name]) for name, draw in drawn.items()]


def _array(values: Any) -> np.ndarray:
    """A row of the document, null as NaN."""
    row = np.asarray(values)
    return row.astype(float) if row.dtype == object else row


def _group_facts(document: dict[str, Any]) -> list[Fact]:
    facts = []
    for one in document["groups"]:
        slope = one["slope"]
        facts.append(Fact(one["name"], _interval(slope), "; ".join(_group_words(one))))
    return facts


def _group_words(one: dict[str, Any]) -> list[str]:
    if not one["quotient_volume"]:
        return []
    slope, error = one["slope"], one.get("quotient_volume_error")
    estimate = f" ± {scientific(error, 1)} (estimate)" if error else ""
    words = [
        f"order {one['order'] or 'infinite'}",
        f"d′ = {one['quotient_dim']}",
        f"vol(M/G) = {one['quotient_volume']:.5g}{estimate}",
    ]
    if slope["value"] is not None:
        first, last = slope["range"]
        words.append(
            f"theory {slope['theory']:.4f}, at these finite n {slope['finite_n_prediction']:.4f}, "
            f"n from {first:,} to {last:,}"
        )
    return [*words, slope["judgement"]] if slope.get("judgement") else words


def _exponent_facts(document: dict[str, Any]) -> list[Fact]:
    return [
        Fact(
            Markup("θ = {:g}, κ = {:g}, σ = {:g}").format(one["theta"], one["kappa"], one["noise"]),
            _interval(one),
            one["judgement"] if one["value"] is None else f"theory {one['theory']:.4f}; {one['judgement']}",
        )
        for one in (document.get("regimes") or {}).get("exponents", [])
    ]


def _interval(one: dict[str, Any]) -> str:
    if one["value"] is None:
        return "–"
    return f"exponent {one['value']:.4f} [{one['ci'][0]:.4f}, {one['ci'][1]:.4f}]"
