"""The report section of a crossing study."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from analyses.reports.sections import Fact, Picture, Section, document_of, percent, scientific, warned
from analyses.studies.crossings.controls import CONTROL_WORDS
from analyses.studies.crossings.figures import control_figure, fan_figure, fixed_point_figure, freedom_figure


def crossings_section(study: xr.Dataset) -> Section:
    """How the degrees of freedom of a run fell."""
    document = _completed(document_of(study))
    group = document.get("group") or "its group"
    return Section(
        title=f"Eigenvalue crossings while training on {group}",
        story=warned([
            _story(document), *_controls(document), *_motion(document), *_fixed(document), *_linear(document),
        ], document),
        facts=_facts(document),
        pictures=_pictures(study, document),
        provenance={"run": document["run"], **document["provenance"]},
        document=document,
        background="group" if document.get("activation", "square") == "square" else "outputs",
    )  # fmt: skip


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    """A document with the keys that studies of the first version lack."""
    undecided = zip(document["negative"], document["undetermined"], strict=True)
    bounds = {"negative": [[low, low + rest] for low, rest in undecided]}
    return {"count_bounds": bounds, "controls": {}, "fixed_points": None, **document}


def _pictures(study: xr.Dataset, document: dict[str, Any]) -> list[Picture]:
    pictures = [
        Picture(
            "degrees-of-freedom",
            partial(freedom_figure, study),
            Markup(
                "Above: how many directions in which the potentials can move are unstable, marginal and "
                "contracting; a sign is claimed only beyond its error bound. Middle: the loss. Below: "
                "the potentials ρ<sub>kkk</sub>{}."
            ).format("" if document.get("ones", [None])[-1] is None else ", which are 1 at a solution"),
            "Degrees of freedom, loss and potentials against training step",
        ),
    ]
    if study.branch_eigenvalue.size:
        pictures.append(
            Picture(
                "spectrum-fan", partial(fan_figure, study),
                Markup(
                    "Every branch of eigenvalues (symmetric logarithmic scale; positive = contracting), "
                    "followed by the overlap of its eigenvectors. Marks: visits to zero, at the middle of "
                    "the bracket of steps that encloses them."
                ),
                "Branches of eigenvalues with zero crossings",
            )
        )  # fmt: skip
    if document["controls"]:
        pictures.append(
            Picture(
                "null-controls", partial(control_figure, study, list(document["controls"])),
                Markup(
                    "The run beside its null controls, studied in the same way: the number of unstable "
                    "directions, and the loss."
                ),
                "Unstable directions and loss of the run and of its null controls",
            )
        )  # fmt: skip
    if document["fixed_points"]:
        pictures.append(
            Picture(
                "fixed-points", partial(fixed_point_figure, study),
                Markup(
                    "The fixed point reached from every step. Above: how far the neurons had to move to it "
                    "(open: some potential moved by a half on the way). Below: the loss at the step (line) "
                    "and at its fixed point (points; below 10<sup>−16</sup> they are drawn at the edge)."
                ),
                "Distance to the fixed point reached from every step, and the loss there",
            )
        )  # fmt: skip
    return pictures


def _story(document: dict[str, Any]) -> Markup:
    meaning = Markup(
        "An unstable direction is a freedom that training can still use; one that contracts is used up. "
    )
    told = _counted(document) if document.get("complete", True) else _bounded(document)
    if document.get("branches") == []:
        return meaning + told + Markup(
            "So many eigenvalues come without their eigenvectors: no branch was followed. To follow some, "
            "ask for a number of eigenvalues at each end, or for a subset of the potentials."
        )  # fmt: skip
    return meaning + told + _visits(document["kinds"])


def _visits(kinds: dict[str, int]) -> Markup:
    told = Markup("On the way {:,} visits to zero are certain crossings and {:,} are touches").format(
        kinds["crossing"], kinds["touch"]
    )
    if not kinds["unresolved"]:
        return told + Markup("; none is left unresolved.")
    return told + Markup(
        "; {:,} stay unresolved: two directions moved through zero in opposite senses between the same two "
        "steps and may have avoided each other, or an error bound is too wide."
    ).format(kinds["unresolved"])


def _counted(document: dict[str, Any]) -> Markup:
    """Where every eigenvalue is known."""
    steps, negative, rank = document["steps"], document["negative"], document["rank"]
    peak = int(np.argmax(negative))
    story = Markup("At step {}, {} of the {} directions are unstable; at step {}, {} of {}. ").format(
        _step(steps[0]), _number(document, 0), rank[0], _step(steps[-1]), _number(document, -1), rank[-1]
    )
    if peak:
        story += Markup("The number is not monotone: it rises to {} at step {} first. ").format(
            _number(document, peak), _step(steps[peak])
        )
    half = next((i for i in range(peak + 1, len(steps)) if 2 * negative[i] <= negative[peak]), None)
    if half is None:
        return story
    return story + Markup(
        "Half of the unstable directions are gone at step {}, where the loss is {} after {} at first. "
    ).format(_step(steps[half]), scientific(document["loss"][half]), scientific(document["loss"][0]))


def _bounded(document: dict[str, Any]) -> Markup:
    """Where only the ends are known: bounds, and complete counts at the steps that have them."""
    steps, smallest, largest = (document[name] for name in ("steps", "smallest", "largest"))
    story = Markup(
        "There are {:,} directions, too many to compute every eigenvalue at every step: both ends of the "
        "spectrum were followed. From step {} to step {} the most unstable eigenvalue goes from {} to {}, "
        "and the largest from {} to {}. What is proved about the number of unstable directions: {} at the "
        "first step, {} at the last. "
    ).format(
        sum(document[name][-1] for name in ("negative", "marginal", "positive", "undetermined")),
        _step(steps[0]), _step(steps[-1]),
        *(scientific(end[place][0], 2) for end in (smallest, largest) for place in (0, -1)),
        _number(document, 0), _number(document, -1),
    )  # fmt: skip
    counted = [found for found in document.get("certified_counts") or () if "reason" not in found]
    if not counted:
        return story
    numbers = ", ".join(f"{_range(*found['negative'])} at step {_step(found['step'])}" for found in counted)
    return story + Markup("All signs were counted at {} of the steps: {} are unstable. ").format(
        len(counted), numbers
    )


def _number(document: dict[str, Any], place: int) -> str:
    """How many unstable directions a step has, or proved bounds."""
    return _range(*document["count_bounds"]["negative"][place])


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"between {low:,} and {high:,}"


def _step(value: float) -> str:
    return f"{value:,.6g}"


def _motion(document: dict[str, Any]) -> list[Markup]:
    motion = document["monotone"]
    if "violations" not in motion:  # a study of the first version
        shares = (percent(motion[f"fraction_nonincreasing_{name}"]) for name in ("hessian", "jacobian"))
        return [Markup("Of the moves of eigenvalues {} do not go up, {} do not go down.").format(*shares)]
    rises, falls = motion["violations"]["hessian"], motion["violations"]["jacobian"]
    paragraph = Markup(
        "Is the motion one-way? Of the moves of eigenvalues from step to step {} do not go up, {} do not go "
        "down. "
    ).format(
        percent(motion["fraction_nonincreasing_hessian"]), percent(motion["fraction_nonincreasing_jacobian"])
    )  # fmt: skip
    if rises["moves"] + falls["moves"]:  # of branches, which not every study can follow
        paragraph += Markup(
            "Three things can move an eigenvalue: the Gram matrix of the potentials (how strongly neurons "
            "can move each symbol), the curvature L″ of the loss, and the local part (how each neuron is "
            "held in place). Of {} certain rises {} are led by the Gram matrix, {} by L″ and {} by the local "
            "part; of {} certain falls {}, {} and {}. "
        ).format(rises["moves"], *_led(rises), falls["moves"], *_led(falls))
    return [paragraph + _condition(motion), _operators(motion)]


def _led(part: dict[str, Any]) -> list[str]:
    return [percent(part[name]) for name in ("by_gram", "by_curvature", "by_local")]


def _condition(motion: dict[str, Any]) -> Markup:
    conditions = [pair for pair in motion["condition_D3L"] if pair is not None]
    low, high = min(pair[0] for pair in conditions), max(pair[1] for pair in conditions)
    if low == high == 0:
        return Markup(
            "The condition D³L·∇L ≥ 0, said to make eigenvalues monotone, holds here as an equality, because "
            "the loss is quadratic in the potentials: it cannot explain any of this motion."
        )
    return Markup(
        "The matrix D³L·∇L, whose sign is said to make eigenvalues monotone, has eigenvalues from {} to {} "
        "along the run; it is positive semidefinite at {} of the steps and negative semidefinite at {}."
    ).format(
        scientific(low), scientific(high), percent(motion["condition_holds"]),
        percent(motion["condition_reversed"]),
    )  # fmt: skip


def _operators(motion: dict[str, Any]) -> Markup:
    told = {
        "wasserstein": "of the flow of neurons (Wasserstein)",
        "flat": "of changes of density (flat)",
        "chart": "of the loss in the potentials alone (L″)",
    }
    words = []
    for name, found in motion["operators"].items():
        if found is None:
            continue
        if found["constant"]:
            words.append(Markup("that {} never moves").format(told[name]))
        else:
            words.append(
                Markup("that {}: {} do not go up, {} do not go down").format(
                    told[name], percent(found["fraction_nonincreasing_hessian"]),
                    percent(found["fraction_nonincreasing_jacobian"]),
                )
            )  # fmt: skip
    return Markup("The same question to all three spectra: {}.").format(Markup("; ").join(words))


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


def _fixed(document: dict[str, Any]) -> list[Markup]:
    points = document.get("fixed_points")
    if not points:
        return []
    reached = [point for point in points if point["converged"]]
    kept = [point for point in reached if point["same_basin"]]
    critical = sum(point["kind"] == "mp-critical" for point in reached)
    leaks = [point["spectrum"]["leak"] for point in reached if point["spectrum"]["leak"] is not None]
    sentences = [
        Markup(
            "Where would the flow stand still? From each of {} steps the network was moved to a fixed "
            "point near it: {} reached one to the tolerance, {} of them without moving any potential by a "
            "half (the same basin). {} are critical for the potentials themselves (L has no slope left), "
            "{} are merely stationary: saddles or lesser minima where the neurons stand still although "
            "the loss still has a slope. "
        ).format(len(points), len(reached), len(kept), critical, len(reached) - critical)
    ]
    if leaks:
        sentences.append(
            Markup(
                "Eigenvectors leak out of the span of the potentials by at most {} at these points "
                "(exactly zero in theory where L has no slope). "
            ).format(scientific(max(leaks), 2))
        )
    failed = [_step(point["step"]) for point in points if not point["converged"]]
    if failed:
        sentences.append(Markup("No fixed point was reached from step {}.").format(", ".join(failed)))
    return [Markup("").join(sentences)]


def _controls(document: dict[str, Any]) -> list[Markup]:
    if not document["controls"]:
        return []
    told = [("the run itself", document)] + [
        (CONTROL_WORDS[name], control) for name, control in document["controls"].items()
    ]
    rows = [
        Markup(
            "<i>{}</i>: unstable directions {} to {} of {}, loss {} to {}{}, {} of the "
            "true answers right"
        ).format(
            name, one["negative"][0], one["negative"][-1], one["rank"][-1], scientific(one["loss"][0]),
            scientific(one["loss"][-1]), _at_one(one["ones"][-1]), percent(one["accuracy"][-1]),
        )
        for name, one in told
    ]  # fmt: skip
    fitted = document["controls"].get("labels")
    lesson = Markup("")
    if fitted and fitted["negative"][-1] == 0 == document["negative"][-1]:
        lesson = Markup(
            "A network wide enough to learn shuffled answers by heart ends without unstable directions "
            "too: their fall to zero says that the loss has been fitted, not that a law was found. The "
            "law shows in the potentials."
        )
    return [
        Markup(
            "Would any network show this? Null controls of the same size, studied in the same way, tell."
            "<br>{}.<br>"
        ).format(Markup(";<br>").join(rows))
        + lesson
    ]


def _at_one(share: float | None) -> str:
    return "" if share is None else f", {percent(share)} of the target potentials at 1"


def _certified(document: dict[str, Any]) -> list[Fact]:
    """Complete counts, one line per step."""
    facts = []
    for found in document.get("certified_counts") or ():
        if "reason" in found:
            facts.append(Fact(f"all signs, step {_step(found['step'])}", "–", found["reason"]))
            continue
        apart = f", {found['symmetries']:,} symmetries apart" if found["symmetries"] else ""
        facts.append(
            Fact(
                f"all signs, step {_step(found['step'])}",
                f"{_range(*found['negative'])} unstable",
                f"of all {found['dimension']:,} moves of the neurons{apart}; signs are certain beyond "
                f"±{scientific(2 * found['shift'], 2)}",
            )
        )
    return facts


def _most(document: dict[str, Any], certain: str) -> list[Fact]:
    """The highest count, where counts rather than bounds are known."""
    if not document.get("complete", True):
        return [Fact("computed at every step", "both ends", document["plan"])]
    peak = int(np.argmax(document["negative"]))
    return [Fact("most unstable directions", _number(document, peak), certain)]


def _facts(document: dict[str, Any]) -> list[Fact]:
    kinds = document["kinds"]
    certain = "every count is exact" if all(document["count_certified"]) else "some counts are bounds only"
    return [
        Fact("steps", str(len(document["steps"])), f"left out: {len(document['skipped'])}"),
        Fact("operator", f"{document['operator']}, {document['subspace']}", document["sign"]),
        Fact("unstable directions, first step", _number(document, 0), certain),
        Fact("unstable directions, last step", _number(document, -1), certain),
        *_most(document, certain),
        *_certified(document),
        Fact("crossings / touches / unresolved",
             f"{kinds['crossing']} / {kinds['touch']} / {kinds['unresolved']}", f"time: {document['time']}"),
        Fact("smallest overlap of a link", scientific(document["smallest_link_overlap"], 2),
             "above 0.5 the branch is certainly the same one"),
    ]  # fmt: skip
