"""Do eigenvalues describe the real flow? Perturb a fixed point, follow the flow, compare the rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from analyses.common.study_files import Progress, silent
from analyses.studies.crossings.records import SpectralQuestion
from analyses.subjects.subject import Subject
from manifold.errors import NotConvergedError
from manifold.measures import ParticleMeasure
from spectra.flow.gradient_flow import refine
from spectra.flow.rates_check import check_linearisation, choose_modes
from spectra.methods.compute import compute_spectrum


def linear_check(
    subject: Subject, question: SpectralQuestion, *, step: float, count: int, progress: Progress = silent
) -> dict[str, Any]:
    """Refine a network to a fixed point and compare rates of the true flow with eigenvalues there.

    Parameters
    ----------
    subject : Subject
    question : SpectralQuestion
        Of the Wasserstein operator.
    step : float
        Where the network is from.
    count : int
        Modes, from both ends of the spectrum.
    progress : Progress
        Told the stage.

    Returns
    -------
    dict
        ``linearisation`` of the contract; with zero modes and a reason where no fixed point was reached.
    """
    objective = subject.objective
    progress(0, 1, "refining the last step")
    try:
        point = refine(objective, subject.measure, tol=1e-8, progress=progress)
    except NotConvergedError as error:
        return {"step": step, "checked_modes": 0, "max_relative_rate_error": None, "reason": str(error)}
    result = compute_spectrum(question.plan(subject), objective, point.measure, seed=question.seed)
    found = result.spectrum
    modes = choose_modes(found.eigenvalues, found.errors, count)
    vectors = result.lift(found.vectors[:, torch.as_tensor(modes)])
    values = found.eigenvalues[modes]

    def check(part: slice, **options: Any) -> np.ndarray:
        measure: ParticleMeasure = point.measure
        return check_linearisation(
            objective, measure, values[part], vectors[:, part], progress=progress, **options
        ).relative_errors

    errors = check(slice(None))
    few = slice(0, min(3, len(modes)))
    sizes = [0.02, 0.01, 0.005]
    scaling = [float(np.median(check(few, size=size, centred=False))) for size in sizes] if len(modes) else []
    return {
        "step": step,
        "checked_modes": len(modes),
        "max_relative_rate_error": float(errors.max()) if len(modes) else None,
        "reason": None,
        "eigenvalues": values,
        "relative_rate_errors": errors,
        "perturbation": 1e-3,
        "fixed_point": {
            "moved": point.moved,
            "gradient_norm": point.gradient_norm,
            "gradient_norm_after": point.gradient_norm_after,
            "kind": point.kind.value,
            "loss_before": subject.task.value(subject.measure),
            "loss_after": subject.task.value(point.measure),
        },
        "scaling": {"size": sizes, "one_sided_error": scaling},
    }
