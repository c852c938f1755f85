"""The maximum-entropy study as one Dataset."""

from __future__ import annotations

from json import dumps
from typing import Any

import numpy as np
import xarray as xr

from analyses.common.study_files import plain, provenance
from analyses.studies.maxent.runs import add_trajectory


def study_of(document: dict[str, Any], *, seed: int) -> xr.Dataset:
    """The finished study: `to_dataset`, its trajectory, provenance and the document itself as summary."""
    document["provenance"] = provenance(seed=seed)
    study = to_dataset(document)
    study.attrs |= {"study": "maxent", "summary": dumps(plain(document))}
    return add_trajectory(study, document["trajectory"]) if "trajectory" in document else study


def to_dataset(document: dict[str, Any]) -> xr.Dataset:
    """The study as one Dataset: per fit and monomial."""
    fits = document.get("fits", [document])
    count = max(len(f["monomials"]) for f in fits)

    def table(key: str) -> np.ndarray:
        values = np.full((len(fits), count), np.nan)
        for i, f in enumerate(fits):
            row = f.get(key)
            if row is not None:
                values[i, : len(row)] = [np.nan if v is None else v for v in row]
        return values

    study = xr.Dataset(
        {
            "moments": (
                ("fit", "monomial"),
                table("moments"),
                {"units": "1", "definition": "E r under the measure"},
            ),
            "lambda": (
                ("fit", "monomial"),
                table("lambda"),
                {"units": "1", "definition": "exponent exp(lambda . r)"},
            ),
            "lambda_error": (
                ("fit", "monomial"),
                table("lambda_error"),
                {
                    "units": "1",
                    "definition": "bound of the error of lambda, or its standard error if sampled",
                },
            ),
        },
        attrs={"reference": "uniform probability measure", "monomials": "; ".join(fits[0]["monomials"])},
    )
    units = {
        "entropy": "nats, against the uniform probability measure", "log_partition": "nats",
        "log_partition_error": "nats", "entropy_error": "nats",
        "moment_error": "uniform standard deviations", "condition": "1", "fisher_rank": "1",
        "boundary_ratio": "1",
        "empirical_entropy": "nats, Kozachenko-Leonenko, bias not removed", "entropy_bias": "nats",
        "entropy_gap": "nats, bias removed", "entropy_gap_error": "nats, scatter of one sample",
        "mass": "1", "intrinsic_dimension": "1",
    }  # fmt: skip
    for key, unit in units.items():
        if key in fits[0]:
            values = [np.nan if f.get(key) is None else float(f[key]) for f in fits]
            study[key] = ("fit", values, {"units": unit, "definition": key.replace("_", " ")})
    if len(fits[0].get("neuron_phases", ())):
        study = _with_neurons(study, fits)
    if "k" in fits[0]:
        study = study.assign_coords(frequency=("fit", ["x".join(map(str, f["k"])) or "all" for f in fits]))
    return study


def _with_neurons(study: xr.Dataset, fits: list[dict[str, Any]]) -> xr.Dataset:
    most = max(len(f["neuron_weights"]) for f in fits)
    phases, weights = np.full((len(fits), most, 3), np.nan), np.full((len(fits), most), np.nan)
    for i, f in enumerate(fits):
        weights[i, : len(f["neuron_weights"])] = f["neuron_weights"]
        if len(f["neuron_phases"]):
            phases[i, : len(f["neuron_phases"])] = f["neuron_phases"]
    study["neuron_phase"] = (
        ("fit", "neuron", "layer"), phases,
        {"units": "rad", "definition": "phases of z_a, z_b, z_c of heavy neurons"},
    )  # fmt: skip
    study["neuron_weight"] = (("fit", "neuron"), weights, {"units": "1", "definition": "share of |z|^3"})
    return study.assign_coords(layer=["a", "b", "c"])
