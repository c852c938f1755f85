"""``rhoscope crossings``: how the spectrum of a run moves, and which eigenvalue crosses zero when."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
    Csv,
    Device,
    DryRun,
    FigureFormat,
    Force,
    Json,
    Out,
    Quiet,
    Report,
    Seed,
    check_outputs,
    deliver,
    progress_bar,
    say,
)
from analyses.crossings import follow_crossings
from analyses.report import write_report
from analyses.runs import Run
from analyses.spectral_steps import SpectralQuestion
from analyses.subjects import subject_of
from manifold.errors import CheckpointError, InputError
from spectra.plan import SUBSPACES

EPILOG = """
Examples:

  rhoscope crossings runs/flow5 --out crossings.nc --report crossings.html

  rhoscope crossings runs/flow5 --refine-time --check-modes 20 --json

  rhoscope crossings runs/mod23 --subspace full --eigenvalues 20 --workers 2 --skip-bad
"""
PANEL = "Study"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("crossings", epilog=EPILOG)
    def command(
        run_dir: Annotated[Path, typer.Argument(help="Run directory, or a folder of checkpoints.")],
        layout: LayoutFile = None,
        tensor: TensorOptions = None,
        group: GroupOption = None,
        loss: LossOption = None,
        activation: ActivationOption = None,
        output_scale: OutputScaleOption = None,
        elements: ElementsOption = None,
        step_pattern: StepPattern = None,
        operator: Annotated[str, typer.Option(help="wasserstein | flat", rich_help_panel=PANEL)] = (
            "wasserstein"
        ),
        subspace: Annotated[str, typer.Option(help=" | ".join(SUBSPACES), rich_help_panel=PANEL)] = "span",
        centred: Annotated[
            bool | None,
            typer.Option(
                "--centred/--uncentred",
                help="Compress to D = 3(n-1), without means. [default: as trained]",
                rich_help_panel=PANEL,
            ),
        ] = None,
        eigenvalues: Annotated[
            int, typer.Option(min=1, help="At each end, where not all fit.", rich_help_panel=PANEL)
        ] = 10,
        refine_time: Annotated[
            bool,
            typer.Option("--refine-time", help="Bisect brackets by training again.", rich_help_panel=PANEL),
        ] = False,
        check_modes: Annotated[
            int,
            typer.Option(min=0, help="Modes compared with the true flow at the end.", rich_help_panel=PANEL),
        ] = 0,
        control: Annotated[
            str,
            typer.Option(
                help="none | random: the null control with every step's weights shuffled.",
                rich_help_panel=PANEL,
            ),
        ] = "none",
        skip_bad: Annotated[
            bool, typer.Option("--skip-bad", help="Leave out damaged steps.", rich_help_panel=PANEL)
        ] = False,
        workers: Annotated[int, typer.Option(min=1, help="Processes.", rich_help_panel=PANEL)] = 1,
        dask: Annotated[
            str | None, typer.Option(help="Address of a Dask scheduler.", rich_help_panel=PANEL)
        ] = None,
        cache: Annotated[
            Path | None,
            typer.Option(help="Finished steps. [default: RUN_DIR/crossings_cache]", rich_help_panel=PANEL),
        ] = None,
        out: Out = None,
        report: Report = None,
        csv: Csv = None,
        json: Json = False,
        force: Force = False,
        figure_format: FigureFormat = "svg",
        seed: Seed = 0,
        device: Device = "cpu",
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Follow the eigenvalues of the second variation through a run: branches, crossings, freedoms.

        Eigenvalues have the Hessian sign (positive = contracting). A crossing needs certain signs on both
        sides; its time is a bracket. Finished steps are kept: a killed study goes on where it was.
        """
        check_outputs(out, report, force=force)
        if workers > 1 and dask is not None:
            raise InputError("--workers and --dask: give one of them")
        run = Run.open(run_dir, step_pattern=step_pattern)
        question = SpectralQuestion(operator, subspace, eigenvalues, centred, seed, device, control)
        checkpoint = _readable(run, skip_bad)
        chosen = choose_layout(
            checkpoint, run, layout=layout, tensor=tensor, group=group, loss=loss, activation=activation,
            output_scale=output_scale, elements=elements, quiet=quiet,
        )  # fmt: skip
        subject = subject_of(checkpoint, chosen, run, centred=centred, device=device)
        say(
            f"plan: {len(run.steps)} checkpoints on {workers} worker(s), each: "
            f"{question.plan(subject).sentence}",
            quiet=quiet,
        )
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            study = follow_crossings(
                run, chosen, question, cache=cache, workers=workers, dask=dask, skip_bad=skip_bad,
                refine_time=refine_time, check_modes=check_modes, progress=progress,
            )  # fmt: skip
        document, dataset = study.document, study.dataset
        if report is not None:
            write_report([dataset], report, force=force, figure_format=figure_format)
            say(f"report written to {report}", quiet=quiet)
        deliver(
            document, study=dataset, out=out, csv=csv, json=json, force=force, summary=_summary(document),
            quiet=quiet,
        )  # fmt: skip


def _readable(run: Run, skip_bad: bool):
    """The last checkpoint that can be read (with ``skip_bad``), to tell layout and plan."""
    for step in reversed(run.steps):
        try:
            return run.read(step)
        except CheckpointError as error:
            if not skip_bad:
                raise CheckpointError(f"step {step}: {error}; --skip-bad leaves such steps out") from error
    raise CheckpointError(f"{run.path}: no checkpoint can be read")


def _summary(document: dict[str, Any]) -> str:
    names = ["loss", "rank", "negative", "marginal", "positive", "undetermined"]
    lines = ["{:>10} {:>11} {:>6} {:>9} {:>9} {:>12} {:>13}".format(
        "step", "loss", "rank", "unstable", "marginal", "contracting", "undetermined"
    )]  # fmt: skip
    for step, loss, *counts in zip(document["steps"], *(document[name] for name in names), strict=True):
        lines.append("{:>10.6g} {:>11.4e} {:>6} {:>9} {:>9} {:>12} {:>13}".format(step, loss, *counts))
    if any(document["undetermined"]):
        lines.append("counts are lower bounds: the undetermined ones may have any sign")
    kinds, motion = document["kinds"], document["monotone"]
    lines += [
        f"visits to zero: {kinds['crossing']} crossings, {kinds['touch']} touches, "
        f"{kinds['unresolved']} unresolved (Hessian sign: positive = contracting)",
        f"moves that do not increase: {motion['fraction_nonincreasing_hessian']:.3f} of Hessian, "
        f"{motion['fraction_nonincreasing_jacobian']:.3f} of Jacobian eigenvalues",
    ]
    checked = document["linearisation"]
    if checked and checked["checked_modes"]:
        lines.append(
            f"linearisation: {checked['checked_modes']} modes, largest relative error of a rate "
            f"{checked['max_relative_rate_error']:.2e}"
        )
    elif checked:
        lines.append(f"linearisation not checked: {checked['reason']}")
    lines += [f"left out: step {step}: {reason}" for step, reason in document["skipped"].items()]
    return "\n".join(lines)
