"""The demonstration: small studies of networks trained on the spot, as a list of parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from analyses.common.figure_formats import check_format
from analyses.common.study_files import Progress, silent, write_study
from analyses.reports.sections import document_of, measured, percent, scientific
from analyses.runs.run import Run
from analyses.studies.crossings.document import dataset_of_study
from analyses.studies.crossings.records import SpectralQuestion
from analyses.studies.crossings.study import StudyPlan, follow_crossings
from analyses.studies.maxent.document import study_of
from analyses.studies.maxent.study import document_of_network
from analyses.studies.network.study import Question, analyze
from analyses.studies.trajectory import follow
from analyses.subjects.subject import subject_of
from analyses.training.trainer import TrainingPlan, train
from manifold.errors import OutputExistsError


@dataclass(frozen=True)
class Stage:
    """Where the demonstration plays: its folder, its seed, who is told the progress."""

    folder: Path
    seed: int = 0
    device: str = "cpu"
    force: bool = False
    progress: Progress = silent

    def run_folder(self, name: str) -> Path:
        """The folder of a run that a part trains, for itself and for later parts."""
        return self.folder / "runs" / name


@dataclass(frozen=True)
class Part:
    """One part: ``perform`` returns its studies by file name; ``tell`` turns their documents into lines."""

    plan: str
    perform: Callable[[Stage], dict[str, xr.Dataset]]
    tell: Callable[[dict[str, dict[str, Any]]], list[str]]


SMALL = {"group": "Z7", "width": 128, "optimizer": "sgd", "steps": 2000}
MODES = 6
LARGE = {"group": "Z23", "width": 256, "optimizer": "adam", "steps": 2000}


def small_network(stage: Stage) -> dict[str, xr.Dataset]:
    """Train a network small enough to know its whole spectrum at every step; refine and analyse its end."""
    plan = TrainingPlan(**SMALL, seed=stage.seed)
    run = train(
        plan, stage.run_folder("z7"), save_every=50, force=stage.force, device=stage.device,
        progress=stage.progress,
    )  # fmt: skip
    subject = subject_of(run.read(run.steps[-1]), plan.layout, run, device=stage.device)
    trajectory = follow(run, seed=stage.seed, device=stage.device, progress=stage.progress)
    question = Question(count=None, refine=True, seed=stage.seed)
    return {
        "z7-trajectory": trajectory,
        "z7-checkpoint": analyze(subject, question, progress=stage.progress).dataset,
    }


def large_network(stage: Stage) -> dict[str, xr.Dataset]:
    """Train a network of a more usual size and follow its potentials."""
    plan = TrainingPlan(**LARGE, seed=stage.seed)
    run = train(
        plan, stage.run_folder("z23"), force=stage.force, device=stage.device, progress=stage.progress
    )
    return {"z23-trajectory": follow(run, seed=stage.seed, device=stage.device, progress=stage.progress)}


def least_committed(stage: Stage) -> dict[str, xr.Dataset]:
    """The maximum-entropy measures with the symbols of the larger network's heaviest frequencies."""
    run = Run.open(stage.run_folder("z23"))
    checkpoint = run.read(run.steps[-1])
    document = document_of_network(
        run.layout.network(checkpoint), checkpoint, frequencies=3, seed=stage.seed, progress=stage.progress
    )
    return {"z23-maxent": study_of(document, seed=stage.seed)}


def crossings_of_the_small_network(stage: Stage) -> dict[str, xr.Dataset]:
    """Follow the eigenvalues of the small network, which an earlier part trained, through zero."""
    plan = TrainingPlan(**SMALL, seed=stage.seed)
    study = follow_crossings(
        Run.open(stage.run_folder("z7")), plan.layout, SpectralQuestion(seed=stage.seed, device=stage.device),
        StudyPlan(coarse=12, check_modes=MODES), progress=stage.progress,
    )  # fmt: skip
    return {"z7-crossings": dataset_of_study(study)}


def _tell_crossings(documents: dict[str, dict[str, Any]]) -> list[str]:
    document = documents["z7-crossings"]
    kinds, checked = document["kinds"], document["linearisation"]
    lines = [
        f"  eigenvalues through zero: {kinds['crossing']} crossings bracketed, {kinds['touch']} touches, "
        f"{kinds['unresolved']} unresolved; most unstable directions {max(document['negative'])} at step "
        f"{document['steps'][document['negative'].index(max(document['negative']))]:g}"
    ]
    if checked["checked_modes"]:
        error = scientific(checked["max_relative_rate_error"], 2)
        lines.append(f"  the true flow along {checked['checked_modes']} modes has their rates to {error}")
    return lines


def _tell_small(documents: dict[str, dict[str, Any]]) -> list[str]:
    course, end = documents["z7-trajectory"], documents["z7-checkpoint"]
    spectrum = end["spectrum"]
    smallest = measured(spectrum["smallest"][0], spectrum["smallest_error"][0])
    return [
        _tell_training(course),
        f"  unstable directions: {course['negative'][0]} of {course['rank'][0]} at step 0, "
        f"{course['negative'][-1]} of {course['rank'][-1]} at the end (Hessian sign, beyond error bounds)",
        f"  refined to max |grad V| = {scientific(end['fixed_point']['gradient_norm_after'], 2)}: "
        f"rank {spectrum['rank']}, smallest eigenvalue {smallest} "
        f"(counts {'certified' if spectrum['count_certified'] else 'not certified'})",
    ]


def _tell_large(documents: dict[str, dict[str, Any]]) -> list[str]:
    return [_tell_training(documents["z23-trajectory"])]


def _tell_maxent(documents: dict[str, dict[str, Any]]) -> list[str]:
    fits = [f for f in documents["z23-maxent"]["fits"] if f["converged"]]
    told = ", ".join(f"k = {'x'.join(map(str, f['k']))}: {100 * f['boundary_ratio']:.1f} %" for f in fits)
    return [f"symbols of the heaviest frequencies against the largest that any measure has: {told}"]


def _tell_training(course: dict[str, Any]) -> str:
    task = course["task"]
    return (
        f"{task['group']}, {task['neurons']} neurons: loss {scientific(course['loss'][0])} to "
        f"{scientific(course['loss'][-1])}, accuracy {percent(course['accuracy'][-1])}, "
        f"{percent(course['ones'][-1])} of the target potentials at 1; the potentials rebuild the loss to "
        f"{scientific(max(course['loss_identity_error']), 2)}"
    )


def _describe(sizes: dict[str, Any]) -> str:
    return "train {group}, width {width}, {optimizer}, {steps} steps".format(**sizes)


# A new part is one more line.
PARTS: tuple[Part, ...] = (
    Part(f"{_describe(SMALL)}; potentials and complete spectrum at 41 steps", small_network, _tell_small),
    Part("its eigenvalues through zero", crossings_of_the_small_network, _tell_crossings),
    Part(f"{_describe(LARGE)}; potentials", large_network, _tell_large),
    Part("its least committed measures, 3 frequencies", least_committed, _tell_maxent),
)


@dataclass(frozen=True, eq=False)
class Demonstration:
    """What the demonstration found: documents of the studies by name, files, seconds, lines to read."""

    report: Path
    studies: dict[str, Path]
    documents: dict[str, dict[str, Any]]
    lines: list[str]
    seconds: float


def refuse_full(folder: Path, force: bool) -> None:
    """Refuse a folder that holds anything.

    Raises
    ------
    OutputExistsError
        If it is a file, or not empty and ``force`` is false.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; name a folder for the demonstration")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise OutputExistsError(f"{folder} is not empty; give --force to write into it, or another folder")


def demonstrate(stage: Stage, *, parts: Sequence[Part] = PARTS, figure_format: str = "svg") -> Demonstration:
    """Perform the parts, write their studies and one report about all of them.

    Parameters
    ----------
    stage : Stage
        Folder, seed, device.
    parts : sequence of Part
        In the order of the page.
    figure_format : str
        ``svg``, ``png`` or ``pdf``.

    Returns
    -------
    Demonstration
    """
    from analyses.studies.page import write_report  # late: it loads what draws

    begin = time.perf_counter()
    check_format(figure_format)
    refuse_full(stage.folder, stage.force)
    studies: dict[str, xr.Dataset] = {}
    files: dict[str, Path] = {}
    lines: list[str] = []
    for part in parts:
        found = part.perform(stage)
        studies |= found
        for name, study in found.items():  # at once: who interrupts keeps what is finished
            files[name] = write_study(study, stage.folder / f"{name}.nc", force=stage.force)
        lines += part.tell({name: document_of(study) for name, study in found.items()})
    page = write_report(
        list(studies.values()), stage.folder / "report.html", force=stage.force, figure_format=figure_format,
        title="rhoscope: symbols inside a neural network",
    )  # fmt: skip
    documents = {name: document_of(study) for name, study in studies.items()}
    return Demonstration(page, files, documents, lines, time.perf_counter() - begin)
