"""Steps put between the steps of a study where a branch may have been lost, or a bracket is wide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analyses.common.jobs import ALONE, Crew
from analyses.common.study_files import Progress, silent
from analyses.layouts.layout import Layout
from analyses.runs.run import Run
from analyses.studies.crossings.records import SpectralQuestion, StepRecord, cached_record, records_of_run
from analyses.subjects.subject import subject_of
from analyses.training.flow_time import advance
from spectra.branches.crossings import Crossing, find_crossings
from spectra.branches.tracking import GOOD_OVERLAP, Branches, track

REFINED_SPECTRA = 12
POOR_LINK = 0.1  # weight of a link that may have lost its branch, beside 1 for an event


def follow_records(records: Sequence[StepRecord]) -> tuple[Branches, list[Crossing]]:
    """Branches through records and their visits to zero."""
    steps = [record.spectral for record in records]
    branches = track(steps)
    return branches, find_crossings(steps, branches)


def spread(steps: Sequence[int], count: int) -> list[int]:
    """The first, the last and others of the steps, evenly spread, ``count`` in all (at least two).

    Parameters
    ----------
    steps : sequence of int
        Ascending.
    count : int

    Returns
    -------
    list of int
    """
    places = np.linspace(0, len(steps) - 1, max(2, min(count, len(steps)))).round().astype(int)
    return [steps[i] for i in np.unique(places)]


def insert_saved(
    run: Run, layout: Layout, question: SpectralQuestion, records: Sequence[StepRecord], *, cache: Path,
    bad: dict[int, str], crew: Crew = ALONE, progress: Progress = silent,
) -> list[StepRecord]:  # fmt: skip
    """Insert saved checkpoints in the middle of every link with an event or a poor overlap, until none fits.

    Parameters
    ----------
    run : Run
    layout : Layout
    question : SpectralQuestion
    records : sequence of StepRecord
        Of some of the run's steps, ascending.
    cache : Path
    bad : dict of int to str
        Steps that cannot be used, with the reason; those found on the way are added.
    crew : Crew
    progress : Progress

    Returns
    -------
    list of StepRecord
        Ascending steps.
    """
    records = list(records)
    while True:
        known = [int(record.facts["step"]) for record in records]
        wanted = []
        for place in np.flatnonzero(_weights(records)):
            between = [s for s in run.steps if known[place] < s < known[place + 1] and s not in bad]
            wanted += between[len(between) // 2 :][:1]
        if not wanted:
            return records
        found = records_of_run(run, layout, question, cache=cache, steps=wanted, crew=crew, progress=progress)
        bad |= {step: record for step, record in found.items() if isinstance(record, str)}
        records += [record for record in found.values() if not isinstance(record, str)]
        records.sort(key=lambda record: record.facts["step"])


def insert_trained(
    run: Run, layout: Layout, question: SpectralQuestion, records: Sequence[StepRecord], *, cache: Path,
    count: int = REFINED_SPECTRA, progress: Progress = silent,
) -> list[StepRecord]:  # fmt: skip
    """Bisect brackets and links of poor overlap by training again from the checkpoint before.

    Parameters
    ----------
    run : Run
        Of the flow or of gradient descent.
    layout : Layout
    question : SpectralQuestion
    records : sequence of StepRecord
        Ascending steps.
    cache : Path
    count : int
        At most so many new spectra; brackets with the most events, and the widest, come first.
    progress : Progress

    Returns
    -------
    list of StepRecord
        Ascending steps; a fraction inside a step of a flow.

    Raises
    ------
    InputError
        If the run has an optimiser whose state is not in the checkpoints.
    """
    records = list(records)
    whole = run.config.get("optimizer") == "sgd"
    for done in range(count):
        progress(done, count, "bisecting brackets")
        steps = np.array([record.facts["step"] for record in records], float)
        # Events per bracket times its width on a logarithmic axis: wide crowded brackets first.
        weight = _weights(records) * (np.diff(steps) > (1.5 if whole else 1e-6))
        if not weight.any():
            break
        place = int(np.argmax(weight * np.log1p(np.diff(steps) / (steps[:-1] + 1))))
        low, high = steps[place], steps[place + 1]
        middle = (low + high) // 2 if whole else (low + high) / 2
        start = max(step for step in run.steps if step <= low)
        subject = subject_of(run.read(start), layout, run, centred=question.centred, device=question.device)
        later = advance(run, subject, start, middle)
        records.insert(place + 1, cached_record(later, question, step=middle, cache=cache))
    return records


def _weights(records: Sequence[StepRecord]) -> np.ndarray:
    """How much each link asks for a step in its middle, shape (T - 1,)."""
    branches, events = follow_records(records)
    weight = POOR_LINK * (branches.overlaps < GOOD_OVERLAP).sum(1)
    for event in events:
        weight[event.low : event.high] += 1
    return weight
