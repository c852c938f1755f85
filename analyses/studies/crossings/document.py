"""A crossing study as the JSON of its command and as a Dataset."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import xarray as xr

from analyses.checkpoints.reading.text import path_text
from analyses.common.study_files import plain, provenance
from analyses.layouts.origins import Origin
from analyses.studies.crossings.monotone import monotone_document, moves_of
from analyses.studies.crossings.records import StepRecord
from analyses.studies.crossings.study import CrossingStudy, missing_steps
from analyses.subjects.order_parameters import TOLERANCE
from spectra.branches.crossings import Crossing, CrossingKind
from spectra.networks.activations import SQUARE

COUNTS = {
    "negative": "certainly negative: unstable directions",
    "marginal": "zero because a symmetry makes it zero",
    "positive": "certainly positive: contracting directions",
    "undetermined": "not computed, or the error bound is too wide to tell the sign",
}
UNIT = "1 (loss per squared unit of z)"
EVENT_COLUMNS = {
    "branch": "number of the branch",
    "t_low": "last certain sign before",
    "t_high": "first certain sign after",
    "step_low": "last certain sign before",
    "step_high": "first certain sign after",
    "direction": "up: an unstable direction becomes contracting; down; none",
    "kind": "crossing, touch or unresolved",
    "overlap": "smallest squared overlap of the links inside the bracket",
}
FIXED_COLUMNS = {
    "gradient_norm": ("loss per unit of z", "max_j |grad V(z_j)| at the step"),
    "gradient_norm_after": ("loss per unit of z", "max_j |grad V(z_j)| at the fixed point near it"),
    "moved": ("unit of z", "root mean square distance of the particles to that fixed point"),
    "loss_after": ("loss", "H at the fixed point"),
    "same_basin": ("1", "1: no potential moved by a half on the way"),
}


def _event(study: CrossingStudy, event: Crossing) -> dict[str, Any]:
    low, high = study.steps[event.low], study.steps[event.high]
    times = study.times
    return {
        "branch": event.branch,
        "t_low": low if times is None else times[event.low],
        "t_high": high if times is None else times[event.high],
        "step_low": low,
        "step_high": high,
        "direction": event.direction,
        "kind": event.kind.value,
        "overlap": event.overlap,
    }


def net_changes(study: CrossingStudy) -> list[dict[str, Any]]:
    """Per bracket of neighbouring steps: crossings up minus down beside the change of the counts."""
    rows = []
    for i, (before, after) in enumerate(itertools.pairwise(study.records)):
        inside = [
            e for e in study.crossings if e.kind is CrossingKind.CROSSING and (e.low, e.high) == (i, i + 1)
        ]
        up, down = (sum(e.direction == d for e in inside) for d in ("up", "down"))
        change = after.facts["negative"] - before.facts["negative"]
        if up or down or change:
            rows.append({"step_low": study.steps[i], "step_high": study.steps[i + 1], "up": up, "down": down,
                         "change_of_negative": change})  # fmt: skip
    return rows


def _series(study: CrossingStudy) -> dict[str, Any]:
    """What a study says per step, shared by a run and its null controls."""
    names = ("loss", "objective", "accuracy", "rank", *COUNTS, "leak", "kind", "gradient_norm")
    kinds = [event.kind.value for event in study.crossings]
    return {
        "steps": study.steps,
        **{name: study.fact(name) for name in names},
        "ones": [_ones(record) for record in study.records],
        "count_bounds": {
            name: [bounds[name] for bounds in study.fact("count_bounds")]
            for name in ("negative", "marginal", "positive")
        },
        "count_certified": study.fact("certified"),
        "converged": study.fact("converged"),
        "complete": study.complete,
        "smallest": [_end(record.eigenvalues, record.errors, 0) for record in study.records],
        "largest": [_end(record.eigenvalues, record.errors, -1) for record in study.records],
        "smallest_enclosure": study.fact("smallest_enclosure"),
        "kinds": {kind.value: kinds.count(kind.value) for kind in CrossingKind},
        "monotone": monotone_document(study),
        "skipped": {str(step): reason for step, reason in study.skipped.items()},
    }


def _ones(record: StepRecord) -> float | None:
    """Share of rho_kkk at 1; None where 1 is no value of its own, as in `order_parameters`."""
    facts = record.facts
    if facts["activation"] != SQUARE.name or facts["loss_name"] == "cross_entropy" or not len(record.targets):
        return None
    return float((np.abs(record.targets - 1) <= TOLERANCE).mean())


def _end(values: np.ndarray, errors: np.ndarray, place: int) -> list[float] | None:
    """An end of the computed spectrum with its error bound."""
    return [float(values[place]), float(errors[place])] if len(values) else None


def document_of_study(study: CrossingStudy) -> dict[str, Any]:
    """The JSON of ``rhoscope crossings``.

    Parameters
    ----------
    study : CrossingStudy

    Returns
    -------
    dict
    """
    branches = [
        {"id": b, "eigenvalues": study.branches.eigenvalues[:, b], "errors": study.branches.errors[:, b]}
        for b in range(study.branches.index.shape[1])
    ]
    return {
        "run": path_text(study.run.path),
        "operator": study.question.operator,
        "subspace": study.question.subspace,
        "potentials": study.question.potentials,
        "sign": "Hessian: positive = contracting",
        "group": study.run.config.get("group"),
        "optimizer": study.run.config.get("optimizer"),
        "activation": study.records[-1].facts["activation"],
        "labels": "shuffled" if study.run.config.get("labels") is not None else "true",
        "plan": study.records[-1].facts["plan"],
        "flow_time": study.times,
        "time": "flow time" if study.times is not None else "training step",
        **_series(study),
        "skipped": {str(step): reason for step, reason in study.skipped.items()} | study.run.left_out,
        "branches": branches,
        "crossings": [_event(study, event) for event in study.crossings],
        "net_changes": net_changes(study) if study.complete else None,
        "smallest_link_overlap": _smallest(study.branches.overlaps),
        "linearisation": study.linearisation,
        "fixed_points": _fixed_points(study),
        "certified_counts": study.certified,
        "controls": {name: _series(control) for name, control in study.controls.items()},
        "missing_steps": missing_steps(study.run),
        "seconds_per_step": study.fact("seconds"),
        "layout": _origin(study).document,
        "warnings": (warnings := study.records[-1].facts.get("warnings", [])),
        "notes": [
            *warnings,
            *_origin(study).notes,
            *study.records[-1].facts["notes"],
            *study.notes,
        ],
        "provenance": provenance(seed=study.question.seed, device=study.question.device),
    }


def _origin(study: CrossingStudy) -> Origin:
    return Origin() if study.layout is None else study.layout.origin


def _fixed_points(study: CrossingStudy) -> list[dict[str, Any]] | None:
    if study.fixed_points is None:
        return None
    return [
        {"step": step, "converged": False, "reason": found} if isinstance(found, str) else found
        for step, found in study.fixed_points.items()
    ]


def _smallest(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.min()) if len(known) else None


def _variable(dims: tuple[str, ...], values: Any, units: str, definition: str) -> tuple:
    return dims, np.asarray(values), {"units": units, "definition": definition}


def dataset_of_study(study: CrossingStudy) -> xr.Dataset:
    """The study for netCDF; the whole document is its ``summary`` attribute.

    Parameters
    ----------
    study : CrossingStudy

    Returns
    -------
    xarray.Dataset
    """
    document = plain(document_of_study(study))
    data = _step_variables(study, document) | _branch_variables(study) | _event_variables(study)
    data |= _certified_variables(document) | _fixed_variables(document) | _control_variables(study)
    return xr.Dataset(
        data,
        coords={"step": study.steps},
        attrs={
            "study": "crossings",
            "summary": json.dumps(document),
            **provenance(seed=study.question.seed, device=study.question.device),
        },
    )


def _step_variables(study: CrossingStudy, document: dict[str, Any]) -> dict[str, tuple]:
    data = {
        name: _variable(("step",), study.fact(name), "eigenvalues", text) for name, text in COUNTS.items()
    }
    data |= {
        f"{name}_bounds": _variable(
            ("step", "side"), bounds, "eigenvalues", "proved lower and upper bound of the number"
        )
        for name, bounds in document["count_bounds"].items()
    }
    data |= {
        "loss": _variable(("step",), study.fact("loss"), "loss", "H over the pairs, mean over pairs"),
        "accuracy": _variable(("step",), study.fact("accuracy"), "1", "share of all n^2 pairs, true labels"),
        "rank": _variable(("step",), study.fact("rank"), "1", "dimension of the space of the spectrum"),
        "target_potential": _variable(
            ("step", "frequency"), [record.targets for record in study.records], "1", "rho_kkk"
        ),
        "flat_eigenvalue": _variable(
            ("step", "neuron"), [record.flat for record in study.records], UNIT,
            "flat (L2) second variation, ascending",
        ),
    }  # fmt: skip
    if study.times is not None:
        data["flow_time"] = _variable(("step",), study.times, "flow time", "t of d mu/dt = div(mu grad V)")
    return data


def _branch_variables(study: CrossingStudy) -> dict[str, tuple]:
    branches, moves = study.branches, moves_of(study)
    parts = {"gram": "the Gram matrix of the potentials", "curvature": "L''", "local": "the local part"}
    return {
        "branch_eigenvalue": _variable(
            ("step", "branch"), branches.eigenvalues, UNIT,
            "second variation, Hessian sign: positive = contracting; NaN where the branch is not there",
        ),
        "branch_error": _variable(("step", "branch"), branches.errors, UNIT, "absolute error bound"),
        "link_overlap": _variable(
            ("link", "branch"), branches.overlaps, "1", "squared overlap with the next cluster"
        ),
        **{
            f"move_by_{name}": _variable(
                ("link", "branch"), getattr(moves, name), UNIT, f"change by the motion of {what}"
            )
            for name, what in parts.items()
        },
    }  # fmt: skip


def _event_variables(study: CrossingStudy) -> dict[str, tuple]:
    events = [_event(study, event) for event in study.crossings]
    time = "flow time" if study.times is not None else "training step"
    units = {"t_low": time, "t_high": time, "step_low": "training step", "step_high": "training step"}
    kinds = {"branch": int, "direction": str, "kind": str}
    return {
        f"crossing_{name}": _variable(
            ("crossing",), np.array([event[name] for event in events], kinds.get(name, float)),
            units.get(name, "1"), definition,
        )
        for name, definition in EVENT_COLUMNS.items()
    }  # fmt: skip


def _certified_variables(document: dict[str, Any]) -> dict[str, tuple]:
    # Beside a study of span(R) alone, counts of all moves of the neurons are another quantity.
    size = sum(document[name][-1] for name in COUNTS)
    counted = [found for found in document["certified_counts"] or () if found.get("dimension") == size]
    if not counted:
        return {}
    steps = [found["step"] for found in counted]
    return {
        "certified_step": _variable(("certified",), steps, "training step", "where all signs were counted"),
        **{
            f"certified_{name}": _variable(
                ("certified", "side"), [found[name] for found in counted], "eigenvalues",
                "lower and upper bound of the complete count",
            )
            for name in ("negative", "positive")
        },
    }  # fmt: skip


def _fixed_variables(document: dict[str, Any]) -> dict[str, tuple]:
    points = document["fixed_points"]
    if points is None:
        return {}

    def column(name: str) -> np.ndarray:
        return np.array([point.get(name) for point in points], float)

    return {
        "fixed_step": _variable(("fixed",), column("step"), "training step", "where the search started"),
        "fixed_converged": _variable(("fixed",), column("converged"), "1", "1: the tolerance was met"),
        **{
            f"fixed_{name}": _variable(("fixed",), column(name), *told)
            for name, told in FIXED_COLUMNS.items()
        },
    }


def _control_variables(study: CrossingStudy) -> dict[str, tuple]:
    data = {}
    for name, control in study.controls.items():
        dims = (f"step_{name}",)
        data[f"step_{name}"] = _variable(dims, control.steps, "training step", f"steps of the control {name}")
        for fact in ("loss", "rank", *COUNTS):
            units = "loss" if fact == "loss" else "eigenvalues"
            data[f"{name}_{fact}"] = _variable(
                dims, control.fact(fact), units, f"{fact} of the control {name}"
            )
    return data
