"""``rhoscope report``: a run as one page, its training and its last network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyses.checkpoint import Question, analyze, reached
from analyses.commands.layout_options import (
    ActivationOption,
    ElementsOption,
    GroupOption,
    LayoutFile,
    LossOption,
    OutputScaleOption,
    StepPattern,
    TensorOptions,
    choose_layout,
)
from analyses.commands.options import (
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
from analyses.figures import check_format
from analyses.report import write_report
from analyses.runs import Run
from analyses.sections import document_of
from analyses.studies import read_study
from analyses.subjects import subject_of
from analyses.trajectory import follow

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
            Path | None, typer.Option(help="The page. [default: RUN_DIR/report.html, or beside the study]")
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
        check_format(figure_format)
        if path.is_file():
            page = out if out is not None else path.with_suffix(".html")
            check_outputs(page, force=force)
            say(f"plan: read {path}, write {page}", quiet=quiet)
            if not dry_run:
                _reopen(path, page, force=force, figure_format=figure_format, json=json, quiet=quiet)
            return
        run = Run.open(path, step_pattern=step_pattern)
        page = out if out is not None else path / "report.html"
        check_outputs(page, force=force)
        last = run.read(run.steps[-1])
        chosen = choose_layout(
            last, run, layout=layout, tensor=tensor, group=group, loss=loss, activation=activation,
            output_scale=output_scale, elements=elements, quiet=quiet,
        )  # fmt: skip
        subject = subject_of(last, chosen, run, device=device)
        question = Question(refine=refine, seed=seed)
        say(f"plan: {len(run.steps)} checkpoints; last: {question.plan(subject).sentence}", quiet=quiet)
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            trajectory = follow(run, chosen, seed=seed, device=device, progress=progress)
            found = analyze(subject, question, progress=progress)
        title = f"rhoscope: {path.resolve().name}"
        write_report([trajectory, found.dataset], page, force=force, figure_format=figure_format, title=title)
        document = {"report": str(page), "steps": list(run.steps), "checkpoint": found.document}
        deliver(
            document, study=None, out=None, csv=None, json=json, force=force,
            summary="\n".join([
                *(f"warning: {warning}" for warning in found.document["warnings"]), f"report: {page}",
            ]),
            quiet=quiet,
        )  # fmt: skip
        if not reached(found):
            say(f"not converged: {found.problem or found.result.spectrum.reason.value}")
            raise typer.Exit(3)


def _reopen(path: Path, page: Path, *, force: bool, figure_format: str, json: bool, quiet: bool) -> None:
    study = read_study(path)
    write_report([study], page, force=force, figure_format=figure_format, title=f"rhoscope: {path.name}")
    document = {"report": str(page), "study": study.attrs.get("study"), "summary": document_of(study)}
    deliver(
        document, study=None, out=None, csv=None, json=json, force=force, summary=f"report: {page}",
        quiet=quiet,
    )  # fmt: skip
