"""``rhoscope crossings``: how the spectrum of a run moves, and which eigenvalue crosses zero when."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from analyses.checkpoints.reading.text import path_text
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
from analyses.commands.options.values import MOST_STEP, MOST_WORKERS, converted, filled, one_of, real, whole
from analyses.commands.studies.analyze import count_of, count_text
from analyses.common.jobs import Crew
from analyses.layouts.layout import Layout
from analyses.runs.run import Run, left_out_lines
from analyses.studies.crossings.controls import CONTROL_WORDS, CONTROLS
from analyses.studies.crossings.document import dataset_of_study, document_of_study
from analyses.studies.crossings.records import SpectralQuestion
from analyses.studies.crossings.study import StudyPlan, follow_crossings
from analyses.subjects.potential_sets import POTENTIAL_SETS
from analyses.subjects.subject import Subject, subject_of
from manifold.errors import CheckpointError, InputError
from spectra.methods.plan import MAX_SECONDS, SUBSPACES

EPILOG = """
Examples:

  rhoscope crossings runs/flow5 --out crossings.nc --report crossings.html

  rhoscope crossings runs/flow5 --refine-time --check-modes 20 --json

  rhoscope crossings runs/flow5 --control random --control labels --refine --report crossings.html

  rhoscope crossings runs/mod23 --eigenvalues 20 --workers 2 --coarse 12 --skip-bad
"""
PANEL = "Study"
FOLLOWED = ("wasserstein", "flat")  # L'' alone is that of a convex loss and cannot cross zero


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
        operator: Annotated[
            str, typer.Option(help=" | ".join(FOLLOWED), rich_help_panel=PANEL, **one_of(FOLLOWED))
        ] = "wasserstein",
        subspace: Annotated[
            str, typer.Option(help=" | ".join(SUBSPACES), rich_help_panel=PANEL, **one_of(SUBSPACES))
        ] = "span",
        centred: Annotated[
            bool | None,
            typer.Option(
                "--centred/--uncentred",
                help="Compress to D = 3(n-1), without means. (default: as trained)",
                rich_help_panel=PANEL,
            ),
        ] = None,
        potentials: Annotated[
            str, typer.Option(help=" | ".join(POTENTIAL_SETS) + " | k=3", rich_help_panel=PANEL)
        ] = "all",
        eigenvalues: Annotated[
            str,
            typer.Option(
                help="At each end, where not all fit; or all.",
                rich_help_panel=PANEL,
                **converted(count_text(("all",)), "NUMBER|all"),
            ),
        ] = "10",
        max_seconds: Annotated[
            float,
            typer.Option(help="Of the iteration at one step.", rich_help_panel=PANEL, **real(least=0)),
        ] = MAX_SECONDS,
        refine_time: Annotated[
            bool,
            typer.Option("--refine-time", help="Bisect brackets by training again.", rich_help_panel=PANEL),
        ] = False,
        check_modes: Annotated[
            int,
            typer.Option(
                help="Modes compared with the true flow at the end.", rich_help_panel=PANEL, **whole(0)
            ),
        ] = 0,
        refine: Annotated[
            bool,
            typer.Option("--refine", help="Move every step to a fixed point.", rich_help_panel=PANEL),
        ] = False,
        certify: Annotated[
            int,
            typer.Option(
                help="Count all signs at so many steps by factorising the full matrix.",
                rich_help_panel=PANEL,
                **whole(0),
            ),
        ] = 0,
        coarse: Annotated[
            int | None,
            typer.Option(
                help="Start with so many saved steps; insert others where branches need them.",
                rich_help_panel=PANEL,
                **whole(2, MOST_STEP),
            ),
        ] = None,
        control: Annotated[
            list[str] | None,
            typer.Option(
                help="random (weights shuffled) | labels (trained on shuffled labels): a null control "
                "beside the run; may be given twice.",
                rich_help_panel=PANEL,
                **one_of(CONTROLS),
            ),
        ] = None,
        weight_decay: WeightDecay = "from-run",
        decay_kind: DecayKind = None,
        train_pairs: TrainPairs = None,
        skip_bad: Annotated[
            bool, typer.Option("--skip-bad", help="Leave out damaged steps.", rich_help_panel=PANEL)
        ] = False,
        workers: Annotated[
            int, typer.Option(help="Processes.", rich_help_panel=PANEL, **whole(1, MOST_WORKERS))
        ] = 1,
        dask: Annotated[
            str | None,
            typer.Option(help="Address of a Dask scheduler.", rich_help_panel=PANEL, **filled("HOST:PORT")),
        ] = None,
        cache: Annotated[
            Path | None,
            typer.Option(
                help="Folder of finished steps. (default: in the user's cache folder)", rich_help_panel=PANEL
            ),
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
        check_outputs(out, force=force, csv=csv, report=report, figure_format=figure_format)
        if workers > 1 and dask is not None:
            raise InputError("--workers and --dask: give one of them")
        run = with_told(Run.open(run_dir, step_pattern=step_pattern), weight_decay, decay_kind, train_pairs)
        question = SpectralQuestion(
            operator, subspace, count_of(eigenvalues), centred, seed, device, potentials=potentials,
            max_seconds=max_seconds,
        )  # fmt: skip
        extras = StudyPlan(
            coarse, refine_time, check_modes, refine, certify, tuple(control or ()), skip_bad, cache,
            Crew(workers, dask),
        )  # fmt: skip
        told = {
            "layout": layout, "tensor": tensor, "group": group, "loss": loss, "activation": activation,
            "output_scale": output_scale, "elements": elements, "quiet": quiet,
        }  # fmt: skip
        chosen, subject = last_usable(run, told, skip_bad=skip_bad, centred=centred, device=device)
        say(_plan(run, question, extras, subject), quiet=quiet)
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            study = follow_crossings(run, chosen, question, extras, progress=progress)
        document, dataset = document_of_study(study), dataset_of_study(study)
        deliver(
            document, study=dataset, out=out, csv=csv, json=json, force=force, summary=_summary(document),
            quiet=quiet, report=report, figure_format=figure_format, unfinished=_unfinished(document),
        )  # fmt: skip


def last_usable(run: Run, told: dict[str, Any], *, skip_bad: bool, **options: Any) -> tuple[Layout, Subject]:
    """Layout and subject of the last checkpoint that can be used (with ``skip_bad``), to tell the plan.

    Parameters
    ----------
    run : Run
    told : dict
        What the command line says about the layout.
    skip_bad : bool
    **options
        For `subject_of`.
    """
    for step in reversed(run.steps):
        try:
            checkpoint = run.read(step)
            chosen = choose_layout(checkpoint, run, **told)
            return chosen, subject_of(checkpoint, chosen, run, **options)
        except CheckpointError as error:
            if not skip_bad:
                raise CheckpointError(f"step {step}: {error}; --skip-bad leaves such steps out") from error
            why = f"step {step}: {error}"
    raise CheckpointError(f"{path_text(run.path)}: no checkpoint can be used; {why}")


def _plan(run: Run, question: SpectralQuestion, extras: StudyPlan, subject: Subject) -> str:
    crew = extras.crew
    who = f"Dask at {crew.dask}" if crew.dask else f"{crew.workers} worker(s)"
    steps = len(run.steps) if extras.coarse is None else f"{min(extras.coarse, len(run.steps))} or more"
    more = [f"null control {name} ({CONTROL_WORDS[name]})" for name in extras.controls]
    more += ["a fixed point from every step"] if extras.refine else []
    also = f"; also {', '.join(more)}" if more else ""
    return f"plan: {steps} checkpoints on {who}, each: {question.plan(subject).sentence}{also}"


def _summary(document: dict[str, Any]) -> str:
    lines = [*_notes(document), *_table(document)]
    kinds, motion = document["kinds"], document["monotone"]
    lines += [
        f"visits to zero: {kinds['crossing']} crossings, {kinds['touch']} touches, "
        f"{kinds['unresolved']} unresolved (Hessian sign: positive = contracting)",
        *(_motion_line(name, found) for name, found in motion["operators"].items() if found),
    ]
    checked = document["linearisation"]
    if checked and checked["checked_modes"]:
        lines.append(
            f"linearisation: {checked['checked_modes']} modes, largest relative error of a rate "
            f"{checked['max_relative_rate_error']:.2e}"
        )
    elif checked:
        lines.append(f"linearisation not checked: {checked['reason']}")
    lines += [_certified_line(found) for found in document["certified_counts"] or ()]
    lines += [_fixed_line(point) for point in document["fixed_points"] or ()]
    for name, control in document["controls"].items():
        ones = control["ones"][-1]
        told = "" if ones is None else f", {100 * ones:.0f} % of rho_kkk at 1"
        lines.append(
            f"null control {name} ({CONTROL_WORDS[name]}): unstable {control['negative'][0]} to "
            f"{control['negative'][-1]} of {control['rank'][-1]}, loss {control['loss'][0]:.3e} to "
            f"{control['loss'][-1]:.3e}, {control['kinds']['crossing']} crossings{told}"
        )
    if document["missing_steps"]:
        missing = ", ".join(map(str, document["missing_steps"]))
        lines.append(f"missing checkpoints (their brackets are wider): {missing}")
    lines += left_out_lines(document["skipped"])
    return "\n".join(lines)


def _notes(document: dict[str, Any]) -> list[str]:
    """Warnings and notes before the table."""
    warnings = document["warnings"]
    rest = [f"note: {note}" for note in document["notes"] if note not in warnings]
    return [*(f"warning: {warning}" for warning in warnings), *rest]


def _table(document: dict[str, Any]) -> list[str]:
    """Counts per step; two-sided bounds where not every sign is known."""
    row = "{:>10} {:>11} {:>7} {:>13} {:>9} {:>13}"
    lines = [row.format("step", "loss", "rank", "unstable", "marginal", "contracting")]
    bounds = document["count_bounds"]
    for i, step in enumerate(document["steps"]):
        negative, positive = (_bounded(*bounds[name][i]) for name in ("negative", "positive"))
        lines.append(row.format(
            f"{step:.6g}", f"{document['loss'][i]:.4e}", document["rank"][i], negative,
            document["marginal"][i], positive,
        ))  # fmt: skip
    if any(document["undetermined"]):
        lines.append("a..b: proved bounds; the eigenvalues between were not computed")
    return lines


def _motion_line(name: str, found: dict[str, Any]) -> str:
    if found["constant"]:
        return f"{name}: constant (the loss is quadratic in the potentials)"
    if not np.isfinite(found["fraction_nonincreasing_hessian"]):
        return f"{name}: no move to follow"
    return (
        f"{name}: {found['fraction_nonincreasing_hessian']:.3f} of the moves do not increase Hessian, "
        f"{found['fraction_nonincreasing_jacobian']:.3f} not Jacobian eigenvalues"
    )


def _certified_line(found: dict[str, Any]) -> str:
    if "reason" in found:
        return f"complete counts of step {found['step']}: {found['reason']}"
    negative, positive = (_bounded(*found[name]) for name in ("negative", "positive"))
    apart = f"{found['symmetries']} symmetries apart; " if found["symmetries"] else ""
    return (
        f"complete counts of step {found['step']}: {negative} unstable, {positive} contracting among "
        f"{found['dimension']} moves of the neurons "
        f"({apart}signs are certain beyond +-{2 * found['shift']:.1e})"
    )


def _bounded(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}..{high}"


def _fixed_line(point: dict[str, Any]) -> str:
    if not point["converged"]:
        return f"fixed point from step {point['step']}: none reached: {point['reason']}"
    spectrum = point["spectrum"]
    basin = "same basin" if point["same_basin"] else "another basin"
    leak = "" if spectrum["leak"] is None else f", leak {spectrum['leak']:.1e}"
    return (
        f"fixed point from step {point['step']}: {point['kind']}, max |grad V| "
        f"{point['gradient_norm']:.1e} to {point['gradient_norm_after']:.1e}, moved {point['moved']:.2g}, "
        f"{basin}, loss {point['loss_after']:.3e}, unstable {spectrum['negative']}{leak}"
    )


def _unfinished(document: dict[str, Any]) -> str | None:
    late = [
        f"{step:g}" for step, good in zip(document["steps"], document["converged"], strict=True) if not good
    ]
    if not late:
        return None
    shown = ", ".join(late[:5]) + (f" and {len(late) - 5} more" if len(late) > 5 else "")
    return f"not converged at step {shown}: what was reached is listed with its bounds; raise --max-seconds"
