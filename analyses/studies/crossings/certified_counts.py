"""Complete counts of signs at some steps of a run, where no complete spectrum is at hand."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.common.jobs import kept_result
from analyses.common.study_files import Progress, silent
from analyses.layouts.layout import Layout
from analyses.runs.run import Run
from analyses.studies.crossings.records import SpectralQuestion, cache_name
from analyses.subjects.subject import Subject, subject_of
from manifold.errors import RhoscopeError
from spectra.certificates.inertia import count_signs
from spectra.certificates.uncertainty import operator_uncertainty
from spectra.operators.variation import DeflatedVariation, SecondVariation

COUNTS_VERSION = 3


def certified_counts_of_run(
    run: Run, layout: Layout, question: SpectralQuestion, *, cache: Path, steps: Sequence[int],
    progress: Progress = silent,
) -> list[dict[str, Any]]:  # fmt: skip
    """Complete counts at each step, without the symmetries where the study has none; kept in the cache.

    One step after the other, with all threads: the matrix fills the memory.

    Parameters
    ----------
    run : Run
    layout : Layout
    question : SpectralQuestion
    cache : Path
        Folder of finished steps.
    steps : sequence of int
    progress : Progress

    Returns
    -------
    list of dict
        ``step``, bounds ``negative`` and ``positive``, ``shift`` (eigenvalues beyond twice this have their
        sign), ``error``, ``dimension``, ``symmetries`` (directions taken out), ``seconds``; or
        ``step`` and ``reason``.
    """
    found = []
    for done, step in enumerate(steps):
        progress(done, len(steps), f"complete counts of step {step}")
        try:
            subject = subject_of(
                run.read(step), layout, run, centred=question.centred, device=question.device
            )
            key = hashlib.sha256(f"{cache_name(subject, question, step)} {COUNTS_VERSION}".encode())
            file = cache / f"counts_{step}_{key.hexdigest()[:16]}.json"
            found.append(kept_result(file, lambda s=subject, n=step: _counts(s, question, n)))
        except RhoscopeError as error:
            found.append({"step": step, "reason": str(error)})
    progress(len(steps), len(steps), "complete counts")
    return found


def _counts(subject: Subject, question: SpectralQuestion, step: int) -> dict[str, Any]:
    begin = time.perf_counter()
    operator, removed = SecondVariation(subject.objective.linearise(subject.measure)), 0
    null = operator.at.null_count
    if question.plan(subject).subspace != "full":
        operator, null = DeflatedVariation(operator), 0
        removed = operator.removed
    uncertainty = operator_uncertainty(subject.objective, subject.measure, seed=question.seed)
    counts = count_signs(operator, null=null, uncertainty=uncertainty, seed=question.seed)
    return {
        "step": step,
        "negative": counts.negative,
        "positive": counts.positive,
        "shift": counts.shift,
        "error": counts.error,
        "dimension": counts.dimension,
        "symmetries": removed,
        "method": "inertia of two factorisations of the second variation",
        "seconds": time.perf_counter() - begin,
    }
