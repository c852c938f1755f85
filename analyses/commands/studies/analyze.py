"""``rhoscope analyze``: one checkpoint, from potentials to spectrum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from analyses.commands.options.common import (
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
from analyses.commands.options.layout import (
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
from analyses.commands.options.training import DecayKind, TrainPairs, WeightDecay, with_told
from analyses.commands.options.values import MOST_STEP, converted, expected, one_of, real, whole
from analyses.runs.run import read_target
from analyses.studies.network.study import Question, analyze, unfinished
from analyses.studies.network.summary import summary
from analyses.subjects.potential_sets import POTENTIAL_SETS
from analyses.subjects.subject import subject_of
from spectra.methods.plan import OPERATORS, SUBSPACES

EPILOG = """
Examples:

  rhoscope analyze runs/mod23

  rhoscope analyze runs/flow5 --refine --eigenvalues all --out flow5.nc --report flow5.html

  rhoscope analyze runs/mod113 --eigenvalues density --report density.html

  rhoscope analyze model.pt --group Z113 --loss cross_entropy --tensor w_a=fc1.weight[:,:113]
  --tensor w_b=fc1.weight[:,113:] --tensor w_c=fc2.weight --json
"""
PANEL = "Spectrum"


def count_text(words: tuple[str, ...]) -> Callable[[str], str]:
    """A check of ``--eigenvalues``: a number, or one of some words."""

    def count(text: str) -> str:
        if text not in words and not (text.isdecimal() and int(text) > 0):
            raise typer.BadParameter(expected(text, ("a positive number", *words)))
        return text

    return count


def count_of(text: str) -> int | None:
    """The number that ``--eigenvalues`` asks for; None for a word."""
    return int(text) if text.isdecimal() else None


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("analyze", epilog=EPILOG)
    def command(
        path: Annotated[Path, typer.Argument(help="Checkpoint, or run directory (its last step).")],
        step: Annotated[int | None, typer.Option(help="Which step of a run.", **whole(0, MOST_STEP))] = None,
        layout: LayoutFile = None,
        tensor: TensorOptions = None,
        group: GroupOption = None,
        loss: LossOption = None,
        activation: ActivationOption = None,
        output_scale: OutputScaleOption = None,
        elements: ElementsOption = None,
        step_pattern: StepPattern = None,
        weight_decay: WeightDecay = "from-run",
        decay_kind: DecayKind = None,
        train_pairs: TrainPairs = None,
        pairs: Annotated[
            str | None,
            typer.Option(
                help="all | train (default: train if the run has a split)",
                rich_help_panel=PANEL,
                **one_of(("all", "train")),
            ),
        ] = None,
        operator: Annotated[
            str, typer.Option(help=" | ".join(OPERATORS), rich_help_panel=PANEL, **one_of(OPERATORS))
        ] = "wasserstein",
        subspace: Annotated[
            str, typer.Option(help=" | ".join(SUBSPACES), rich_help_panel=PANEL, **one_of(SUBSPACES))
        ] = "span",
        potentials: Annotated[
            str,
            typer.Option(
                help=" | ".join(POTENTIAL_SETS) + " | k=3 (those of one output frequency)",
                rich_help_panel=PANEL,
            ),
        ] = "all",
        centred: Annotated[
            bool | None,
            typer.Option(
                "--centred/--uncentred",
                help="Compress to D = 3(n-1), without means. (default: as trained)",
                rich_help_panel=PANEL,
            ),
        ] = None,
        eigenvalues: Annotated[
            str,
            typer.Option(
                help="How many at each end, all, or density.",
                rich_help_panel=PANEL,
                **converted(count_text(("all", "density")), "NUMBER|all|density"),
            ),
        ] = "10",
        refine: Annotated[
            bool, typer.Option("--refine", help="Move to a fixed point first.", rich_help_panel=PANEL)
        ] = False,
        tolerance: Annotated[
            float,
            typer.Option(help="Gradient tolerance of fixed points.", rich_help_panel=PANEL, **real(above=0)),
        ] = 1e-9,
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
        """Potentials, loss identity, fixed point and certified spectrum of one network.

        Eigenvalues are those of the Hessian (positive = contracting) of the objective in the Wasserstein
        metric: the flow near a fixed point decays like exp(-lambda t).
        """
        check_outputs(out, force=force, csv=csv, report=report, figure_format=figure_format)
        checkpoint, run = read_target(path, step=step, step_pattern=step_pattern)
        run = with_told(run, weight_decay, decay_kind, train_pairs)
        chosen = choose_layout(
            checkpoint, run, layout=layout, tensor=tensor, group=group, loss=loss, activation=activation,
            output_scale=output_scale, elements=elements, quiet=quiet,
        )  # fmt: skip
        subject = subject_of(checkpoint, chosen, run, centred=centred, pairs=pairs, device=device)
        question = Question(
            operator, subspace, potentials, count_of(eigenvalues), refine, tolerance, seed,
            density=eigenvalues == "density",
        )  # fmt: skip
        net = subject.network
        say(
            f"plan: {net.group.name} (n = {net.group.order}), q = {net.width}, D = {subject.task.dimension}, "
            f"m = {subject.task.potential_count:,}; {question.plan(subject).sentence}",
            quiet=quiet,
        )
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            found = analyze(subject, question, progress=progress)
        deliver(
            found.document, study=found.dataset, out=out, csv=csv, json=json, force=force,
            summary=summary(found), quiet=quiet, report=report, figure_format=figure_format,
            unfinished=unfinished(found),
        )  # fmt: skip
