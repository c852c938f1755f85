"""A training run as a path on the manifold of maximum-entropy measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr


def trajectory_document(trajectory: list[dict[str, Any]]) -> dict[str, Any]:
    """Follow every frequency that is fitted at the last step through all steps.

    Parameters
    ----------
    trajectory : list of dict
        ``{"step", "fits"}`` with the fits of `analyses.studies.maxent.study.analyse_lift`.

    Returns
    -------
    dict
        ``steps`` and per frequency ``lambda``, ``entropy``, ``entropy_gap``, ``boundary_ratio`` (None
        where a step was not fitted) and ``fisher_rao_length``: the sum over neighbouring steps of
        ``sqrt((lambda' - lambda) . (rho' - rho))``, the root of the symmetrised relative entropy, which is
        the Fisher-Rao length as steps get close.
    """
    steps = [entry["step"] for entry in trajectory]
    paths = []
    for last in trajectory[-1]["fits"]:
        rows = [next((f for f in entry["fits"] if f["k"] == last["k"]), None) for entry in trajectory]
        path: dict[str, Any] = {"k": last["k"], "monomials": last["monomials"]}
        for key in ("lambda", "entropy", "entropy_gap", "empirical_entropy", "boundary_ratio", "moments"):
            path[key] = [None if row is None else row.get(key) for row in rows]
        path["fisher_rao_length"] = _length(path["lambda"], path["moments"])
        paths.append(path)
    return {"steps": steps, "paths": paths}


def _length(lambdas: list, moments: list) -> float:
    total, previous = 0.0, None
    for lam, rho in zip(lambdas, moments, strict=True):
        if lam is None or rho is None or any(v is None for v in lam):
            continue
        current = np.asarray(lam, float), np.asarray(rho, float)
        if previous is not None:
            total += float(np.sqrt(max((current[0] - previous[0]) @ (current[1] - previous[1]), 0.0)))
        previous = current
    return total


def add_trajectory(study: xr.Dataset, document: dict[str, Any]) -> xr.Dataset:
    """The trajectory as variables over ``step`` and ``path``."""
    paths = document["paths"]
    study = study.assign_coords(step=("step", document["steps"]))
    units = {
        "entropy": "nats, uniform reference", "empirical_entropy": "nats, bias not removed",
        "entropy_gap": "nats, bias not removed", "boundary_ratio": "1",
    }  # fmt: skip
    for key, unit in units.items():
        values = np.array([[np.nan if v is None else float(v) for v in path[key]] for path in paths])
        study[f"path_{key}"] = (
            ("path", "step"),
            values,
            {"units": unit, "definition": f"{key} along the run"},
        )
    sizes = [
        [
            np.nan if v is None or any(x is None for x in v) else float(np.linalg.norm(v))
            for v in path["lambda"]
        ]
        for path in paths
    ]
    study["path_lambda_norm"] = (("path", "step"), np.array(sizes), {"units": "1", "definition": "|lambda|"})
    lengths = np.array([path["fisher_rao_length"] for path in paths])
    study["path_length"] = (
        "path",
        lengths,
        {"units": "1", "definition": "Fisher-Rao length of the trajectory"},
    )
    return study.assign_coords(path_frequency=("path", ["x".join(map(str, path["k"])) for path in paths]))
