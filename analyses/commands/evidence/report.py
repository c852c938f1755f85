"""``rhoscope report``: a run as one page, its training and its last network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import xarray as xr

from analyses.commands.options.common import (
    Device,
    DryRun,
    FigureFormat,
    Force,
    Json,
    Quiet,
    Seed,
    check_outputs,
    deliver,
    progress_bar,
    say,
)
from analyses.commands.options.layout import (
    ActivationOption,
    ElementsOption,
    GroupOption,
    LayoutFile,
    LossOption,
    OutputScaleOption,
    StepPattern,
    TensorOptions,
)
from analyses.commands.studies.crossings import last_usable
from analyses.common.study_files import read_study
from analyses.reports.sections import document_of
from analyses.runs.run import Run, left_out_lines
from analyses.studies.network.study import Question, analyze, unfinished
from analyses.studies.trajectory import follow
from manifold.errors import InputError

EPILOG = """
Examples:

  rhoscope report runs/mod23

  rhoscope report runs/flow5 --refine --out flow5.html --figure-format pdf

  rhoscope report crossings.nc --out crossings.html
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("report", epilog=EPILOG)
    def command(
        path: Annotated[
            Path,
            typer.Argument(metavar="RUN_DIR", help="Run directory, folder of checkpoints, or study (.nc)."),
        ],
        out: Annotated[
            Path | None, typer.Option(help="The page. (default: RUN_DIR/report.html, or beside the study)")
        ] = None,
        layout: LayoutFile = None,
        tensor: TensorOptions = None,
        group: GroupOption = None,
        loss: LossOption = None,
        activation: ActivationOption = None,
        output_scale: OutputScaleOption = None,
        elements: ElementsOption = None,
        step_pattern: StepPattern = None,
        refine: Annotated[
            bool, typer.Option("--refine", help="Move the last network to a fixed point first.")
        ] = False,
        skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out damaged steps.")] = False,
        figure_format: FigureFormat = "svg",
        json: Json = False,
        force: Force = False,
        seed: Seed = 0,
        device: Device = "cpu",
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Write one HTML page about a run: how its symbols formed, and what its last network is.

        A study that another command wrote with --out becomes a page too, whatever version wrote it.

        The page needs no network and no scripts; figures are inside. Eigenvalues have the Hessian sign
        (positive = contracting) and carry absolute error bounds.
        """
        if path.is_file():
            page = out if out is not None else path.with_suffix(".html")
            check_outputs(force=force, report=page, figure_format=figure_format)
            study = read_study(path)
            say(f"plan: read {path}, write {page}", quiet=quiet)
            if not dry_run:
                _reopen(study, path, page, force=force, figure_format=figure_format, json=json, quiet=quiet)
            return
        run = Run.open(path, step_pattern=step_pattern)
        page = out if out is not None else path / "report.html"
        check_outputs(force=force, report=page, figure_format=figure_format)
        told = {
            "layout": layout, "tensor": tensor, "group": group, "loss": loss, "activation": activation,
            "output_scale": output_scale, "elements": elements, "quiet": quiet,
        }  # fmt: skip
        chosen, subject = last_usable(run, told, skip_bad=skip_bad, device=device)
        question = Question(refine=refine, seed=seed)
        say(f"plan: {len(run.steps)} checkpoints; last: {question.plan(subject).sentence}", quiet=quiet)
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            trajectory = follow(run, chosen, seed=seed, device=device, skip_bad=skip_bad, progress=progress)
            found = analyze(subject, question, progress=progress)
        document = {"report": str(page), "steps": list(run.steps), "checkpoint": found.document}
        skipped = document_of(trajectory)["skipped"]
        document |= {"steps": trajectory.step.values.tolist(), "skipped": skipped}
        warnings = [f"warning: {warning}" for warning in found.document["warnings"]]
        summary = "\n".join([*warnings, f"report: {page}", *left_out_lines(skipped)])
        deliver(
            document, study=None, out=None, csv=None, json=json, force=force, summary=summary,
            quiet=quiet, report=page, pages=[trajectory, found.dataset], figure_format=figure_format,
            title=f"rhoscope: {path.resolve().name}", unfinished=unfinished(found),
        )  # fmt: skip


def _reopen(
    study: xr.Dataset, path: Path, page: Path, *, force: bool, figure_format: str, json: bool, quiet: bool
) -> None:
    """The page of a study that is on disk."""
    from analyses.studies.page import section_of

    kind = study.attrs.get("study")
    try:
        section_of(study)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: says that it is a study of kind {kind!r}, but lacks parts of one ({error})"
        ) from error
    document = {"report": str(page), "study": kind, "summary": document_of(study)}
    deliver(
        document, study=None, out=None, csv=None, json=json, force=force, summary=f"report: {page}",
        quiet=quiet, report=page, pages=[study], figure_format=figure_format, title=f"rhoscope: {path.name}",
    )  # fmt: skip
