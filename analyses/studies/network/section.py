"""The sections of the two studies of a trained network: one checkpoint, and its whole training."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from analyses.reports.figures import (
    density_figure,
    loss_figure,
    neurons_figure,
    potentials_figure,
    spectrum_figure,
    spectrum_steps_figure,
)
from analyses.reports.sections import (
    Fact,
    Picture,
    Section,
    document_of,
    measured,
    percent,
    scientific,
    warned,
)

IDENTITY = Markup(
    "<i>H</i> computed by running the network minus <i>H</i> rebuilt from the potentials alone; "
    "rounding level means that the potentials say everything about the loss"
)

LOSS_WORDS = {
    "projected_mse": "the projected squared error",
    "mse": "the squared error, summed over outputs",
    "cross_entropy": "cross-entropy",
}
OPTIMIZER_WORDS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "flow": "gradient flow"}


def trajectory_section(study: xr.Dataset) -> Section:
    """What happened during training."""
    document = document_of(study)
    task, steps, loss = document["task"], document["steps"], document["loss"]
    story = [
        _trained(task, document.get("training", {})),
        Markup(
            "At step {} the loss was {}; at step {} it is {}, and the network answers {} of all {} pairs "
            "correctly."
        ).format(
            steps[0], scientific(loss[0]), f"{steps[-1]:,}", scientific(loss[-1]),
            percent(document["accuracy"][-1]), f"{task['order'] ** 2:,}",
        ),
        _symbols_appear(document),
    ]  # fmt: skip
    pictures = [
        Picture(
            "loss", partial(loss_figure, study),
            Markup("Loss <i>H</i> and accuracy on all pairs against the training step."),
            "Loss and accuracy against training step",
        ),
        Picture(
            "potentials", partial(potentials_figure, study),
            Markup(
                "The symbols form. Blue: the potentials ρ<sub>kkk</sub> that must become 1 (real part; the "
                "imaginary part must vanish). Red: the largest of those that must become 0 "
                "(<i>R</i><sub>c</sub>). Orange, dashed: the largest of the sums over <i>R</i><sub>n</sub> "
                "and <i>R</i><sub>*</sub>; only these sums, not their single terms, must become 0."
            ),
            "Potentials against training step",
        ),
    ]  # fmt: skip
    if "eigenvalue" in study:
        story.append(_freedom(document))
        pictures.append(
            Picture(
                "spectrum-steps", partial(spectrum_steps_figure, study),
                Markup(
                    "Above: every eigenvalue λ of the second variation at every saved step (symmetric "
                    "logarithmic scale; positive = contracting). Below: how many have which sign; a sign is "
                    "claimed only beyond the error bound of that eigenvalue (at most {})."
                ).format(scientific(float(np.nanmax(study.eigenvalue_error)), 2)),
                "Eigenvalues and their signs against training step",
            )
        )  # fmt: skip
    else:
        story.append(
            "Its spectrum is not followed here: at this size a complete one at every step would take too "
            "long. The command rhoscope analyze computes the ends of the spectrum at one step."
        )
    return Section(
        title=f"Training on {task['group']}",
        story=[*document.get("warnings", []), *story],
        facts=_trajectory_facts(document),
        pictures=pictures,
        provenance={"run": document["run"], **document["provenance"]},
        document=document,
        background=_background(document["task"]),
    )


def _background(task: dict[str, Any]) -> str:
    return "group" if task.get("activation", "square") == "square" else "outputs"


def _trained(task: dict[str, Any], training: dict[str, Any]) -> Markup:
    how = Markup("")
    if training.get("optimizer"):
        how = Markup(" with {} for {} full-batch steps").format(
            OPTIMIZER_WORDS.get(training["optimizer"], training["optimizer"]), training.get("steps", "?")
        )
        if training.get("weight_decay"):
            how += Markup(" and weight decay {}").format(training["weight_decay"])
        if training.get("train_fraction", 1) < 1:
            how += Markup(" on {} of the pairs").format(percent(training["train_fraction"]))
    return Markup(
        "A two-layer network of {} neurons was trained on {}{}: given two elements x and y of the group "
        "(for Z<sub>n</sub>: two numbers), it must name x + y. Its loss is {}."
    ).format(task["neurons"], task["group"], how, LOSS_WORDS.get(task["loss"], task["loss"]))


def _symbols_appear(document: dict[str, Any]) -> Markup:
    ones, steps = document["ones"], document["steps"]
    if ones[-1] is None and document["task"].get("activation", "square") == "square":
        return Markup(
            "Cross-entropy falls as long as the outputs grow, so the target potentials ρ<sub>kkk</sub> have "
            "no fixed value to reach: they only have to stand out from all others."
        )
    if ones[-1] is None:
        return Markup(
            "The potentials of the group task are order parameters here: with this activation they do not "
            "determine the loss, and their targets have no fixed value."
        )
    done = next((step for step, share in zip(steps, ones, strict=True) if share == 1), None)
    last = Markup(
        " At the end the largest of the others in <i>R</i><sub>c</sub> is {} and the largest sum {}."
    )
    last = last.format(
        scientific(document["largest"]["R_c"][-1], 2), scientific(document["largest_sum"][-1], 2)
    )
    if done is None:
        return (
            Markup("At the end {} of the target potentials are within 0.05 of 1.").format(percent(ones[-1]))
            + last
        )
    return Markup("From step {} on, all target potentials are within 0.05 of 1.").format(f"{done:,}") + last


def _freedom(document: dict[str, Any]) -> Markup:
    negative, rank = document["negative"], document["rank"]
    return Markup(
        "The spectrum tells which directions training can still use. At step {} there are {} unstable "
        "directions among the {} in which the potentials can move; at step {} there are {} among {}. Each "
        "direction that changes from unstable to contracting is a degree of freedom used up."
    ).format(document["steps"][0], negative[0], rank[0], f"{document['steps'][-1]:,}", negative[-1], rank[-1])


def _targets_fact(share: float | None) -> list[Fact]:
    if share is None:
        return []
    return [Fact("targets at 1", percent(share), Markup("share of ρ<sub>kkk</sub> within 0.05 of 1"))]


def _trajectory_facts(document: dict[str, Any]) -> list[Fact]:
    facts = [
        Fact(
            "checkpoints",
            str(len(document["steps"])),
            f"steps {document['steps'][0]} to {document['steps'][-1]:,}",
        ),
        *(Fact(f"left out: step {step}", "–", why) for step, why in document.get("skipped", {}).items()),
        Fact(Markup("last loss <i>H</i>"), scientific(document["loss"][-1]), "mean over the trained pairs"),
        Fact("accuracy", percent(document["accuracy"][-1]), "on all pairs"),
        Fact(
            "largest loss identity error",
            scientific(max((e for e in document["loss_identity_error"] if e is not None), default=None), 2),
            IDENTITY,
        ),
        *_targets_fact(document["ones"][-1]),
        Fact("neurons alive", str(document["alive"][-1]), "not shrunk to a thousandth of the largest"),
        Fact(
            "median purity",
            scientific(document["purity_median"][-1]),
            "1: every neuron knows one frequency only",
        ),
    ]
    if document["negative"] is not None:
        facts.append(
            Fact(
                "unstable / marginal / contracting",
                " / ".join(str(document[name][-1]) for name in ("negative", "marginal", "positive")),
                f"at the last step; undetermined {document['undetermined'][-1]}",
            )
        )
    return facts


def checkpoint_section(study: xr.Dataset) -> Section:
    """What one network is."""
    document = document_of(study)
    task, spectrum = document["task"], document["spectrum"]
    step = document["checkpoint"]["step"]
    at = "" if step is None else f", step {step:,}"
    return Section(
        title=f"One network on {task['group']}{at}",
        story=warned([_state(document), _stability(document)], document),
        facts=_checkpoint_facts(document),
        pictures=[
            _spectrum_picture(study, spectrum),
            Picture(
                "neurons", partial(neurons_figure, study),
                Markup(
                    "Left: purity of the {} living neurons, the share of a neuron's Fourier power in its "
                    "strongest frequency. Right: how many neurons prefer each frequency."
                ).format(task["alive"]),
                "Purity and preferred frequency of the neurons",
            ),
        ],
        provenance={**document["checkpoint"], **document["provenance"]},
        document=document,
        background=_background(document["task"]),
    )  # fmt: skip


def _spectrum_picture(study: xr.Dataset, spectrum: dict[str, Any]) -> Picture:
    if spectrum.get("density"):
        density = spectrum["density"]
        return Picture(
            "density", partial(density_figure, study),
            Markup(
                "The density of the spectrum of the second variation on symmetric logarithmic axes, positive "
                "= contracting: how many of the {} eigenvalues lie in each bin (above) and up to each value "
                "(below). Estimated from {} random starts of {} Lanczos steps. The band holds what the steps "
                "leave open, widened by one standard error over the starts. Trace {} ± {}."
            ).format(
                f"{spectrum['dimension']:,}", density["probes"], density["steps"],
                scientific(density["trace"], 4), scientific(density["trace_standard_error"], 2),
            ),
            "Histogram and cumulative count of the eigenvalues of the second variation",
        )  # fmt: skip
    return Picture(
        "spectrum", partial(spectrum_figure, study, dimension=spectrum["dimension"]),
        Markup(
            "Eigenvalues of the second variation ({} operator), sorted. {}. Largest error bound: {}, "
            "below the size of the dots unless a bar is drawn."
        ).format(spectrum["operator"], _sentence(spectrum["reason"]), _largest_error(study)),
        "Sorted eigenvalues of the second variation",
    )  # fmt: skip


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".")


def _largest_error(study: xr.Dataset) -> str:
    errors = study.eigenvalue_error.to_numpy()
    return scientific(float(errors.max()), 2) if len(errors) else "–"


def _state(document: dict[str, Any]) -> Markup:
    point, potentials = document["fixed_point"], document["potentials"]
    words = {
        "mp-critical": "a fixed point at which the loss is stationary in the potentials themselves",
        "stationary": "a fixed point of training",
        "none": "not a fixed point, so the signs below say how training moves on from here",
    }
    sets = Markup(", ").join(
        Markup("{} of <i>R</i><sub>{}</sub>").format(percent(share), name.removeprefix("R_"))
        for name, share in potentials["zeros"].items()
    )
    moved = ""
    if point["refined"]:
        moved = (
            f"The neurons were then moved to the nearest fixed point (by {scientific(point['moved'], 2)}, "
            "root mean square), where the spectrum was computed. "
        )
    if potentials["ones"] is not None:
        state = Markup(
            "Of the potentials, {} of the targets are within {} of 1; within {} of 0 are {} (of the last two "
            "only sums must vanish). "
        ).format(percent(potentials["ones"]), potentials["tol"], potentials["tol"], sets)
    else:
        why = (
            "Cross-entropy gives the target potentials no fixed value"
            if potentials.get("determine_loss", True)
            else "The potentials of the group task are order parameters here, they do not determine the loss"
        )
        state = Markup(
            "{}: the phases of the neurons at a frequency agree to {} (1: all alike), and within {} of the "
            "largest target are {}. "
        ).format(why, _span(potentials["alignment"]), potentials["tol"], sets)
    return state + Markup("{}The largest force on a neuron is max |∇V| = {}: it is {}.").format(
        moved, scientific(point["gradient_norm_after"], 2), words.get(point["kind"], point["kind"])
    )


def _span(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}" if values else "–"


def _stability(document: dict[str, Any]) -> Markup:
    spectrum = document["spectrum"]
    certain = "every count is exact" if spectrum["count_certified"] else "the counts are bounds only"
    text = Markup(
        "The second variation has {} unstable, {} marginal and {} contracting directions, {} undetermined "
        "({}). "
    ).format(*(f"{spectrum[k]:,}" for k in ("negative", "marginal", "positive", "undetermined")), certain)
    if spectrum["gauge_null"]:
        text += Markup(
            "A further {} directions change no potential at all (rescaling a, b against c, neuron by "
            "neuron); they carry no information and are kept apart."
        ).format(f"{spectrum['gauge_null']:,}")
    return text


def _checkpoint_facts(document: dict[str, Any]) -> list[Fact]:
    task, spectrum, coupling = document["task"], document["spectrum"], document["decoupling"]
    facts = [
        Fact(
            Markup("loss <i>H</i>"),
            scientific(document["loss"]),
            f"{LOSS_WORDS.get(task['loss'], task['loss'])}, mean over pairs",
        ),
        Fact(
            "objective",
            scientific(document["objective"]),
            f"with weight decay {task['weight_decay']}" if task["weight_decay"] else "no weight decay",
        ),
        Fact("accuracy", percent(document["accuracy"]), "on all pairs"),
        Fact("loss identity error", scientific(document["loss_identity_error"], 2), IDENTITY),
        Fact("neurons", f"{task['alive']:,} of {task['neurons']:,}", "alive"),
        Fact(
            "coordinates of a neuron, D",
            str(task["dimension"]),
            "centred" if task["centred"] else "with means",
        ),
        Fact("independent potentials, m", f"{task['potential_count']:,}", "symbols that the loss depends on"),
    ]
    if spectrum["rank"] is not None:
        facts.append(Fact("rank", f"{spectrum['rank']:,}", "directions in which the potentials can move"))
    for name, word in (("smallest", "smallest eigenvalue"), ("largest", "largest eigenvalue")):
        if spectrum[name]:
            value = measured(spectrum[name][0], spectrum[f"{name}_error"][0])
            facts.append(Fact(word, value, "loss per |z|²; Hessian sign: positive = contracting"))
    return [
        *facts,
        Fact(
            "method",
            spectrum["method"],
            f"{spectrum['operator']}, {spectrum['subspace']}, {spectrum['side']} side",
        ),
        Fact(
            "coupling of potentials",
            percent(coupling["offdiagonal_share"]),
            "off-diagonal share of the Gram matrix; 0: decoupled",
        ),
        Fact(
            "equivariance defect",
            percent(coupling["equivariance_defect"]),
            "share of the force that is not radial",
        ),
    ]
