"""``rhoscope maxent``: the least committed measure with given symbols."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyses.checkpoints.reader import Checkpoint, split_selector
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
    cpu_only,
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
from analyses.commands.options.values import MOST_STEP, one_of, whole
from analyses.runs.run import Run, left_out_lines, read_target
from analyses.studies.maxent.document import study_of
from analyses.studies.maxent.lifts import BASES, SYMBOLS, lift_frequencies
from analyses.studies.maxent.runs import trajectory_document
from analyses.studies.maxent.study import analyse_lift, fit_moments, read_problem
from analyses.studies.maxent.summary import summary_of_fits, summary_of_moments
from analyses.subjects.subject import subject_of
from manifold.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from analyses.layouts.layout import Layout
    from spectra.networks.group_network import GroupNetwork

METHODS = ("newton", "trust-regions", "sampling")
EPILOG = """
Spaces: S<d> sphere, T<d> torus of d circles, products such as S2xS1. Coordinates: x1, x2, .. real;
z1 = x1 + i x2, z2 = x3 + i x4, .. complex (on a torus z_k = exp(i theta_k)). A monomial is a product of
powers, x1^2*x2, or the real or imaginary part of a complex product, Re(z1*z2*conj(z3)); several are
separated by ';'.

Examples:

  rhoscope maxent --space S5 --monomials "Re(z1*z2*conj(z3))" --moments 0.1

  rhoscope maxent --space S2 --monomials "x1^2; x2^2; x3" --moments 0.2,0.3,0.4 --json

  rhoscope maxent runs/mod23 --base frequency-sphere --report maxent.html

  rhoscope maxent runs/mod23 --all-steps --base torus --out trajectory.nc
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("maxent", epilog=EPILOG)
    def command(
        path: Annotated[
            Path | None, typer.Argument(help="Checkpoint or run directory; leave out with --space.")
        ] = None,
        space: Annotated[
            str | None, typer.Option(help="S5, T3, S2xS1, ..", rich_help_panel="Given moments")
        ] = None,
        monomials: Annotated[
            str | None,
            typer.Option(help="Expressions separated by ';'.", rich_help_panel="Given moments"),
        ] = None,
        moments: Annotated[
            str | None,
            typer.Option(
                help="One number per monomial, separated by commas.", rich_help_panel="Given moments"
            ),
        ] = None,
        method: Annotated[
            str, typer.Option(help=" | ".join(METHODS), rich_help_panel="Given moments", **one_of(METHODS))
        ] = "newton",
        base: Annotated[
            str, typer.Option(help=" | ".join(BASES), rich_help_panel="Checkpoint", **one_of(BASES))
        ] = "frequency-sphere",
        symbols: Annotated[
            str,
            typer.Option(
                help="target: Re, Im of z_a z_b z_c; all: every cubic monomial of the frequency.",
                rich_help_panel="Checkpoint",
                **one_of(SYMBOLS),
            ),
        ] = "target",
        frequencies: Annotated[
            int,
            typer.Option(
                help="Fit the heaviest so many frequencies.", rich_help_panel="Checkpoint", **whole(1)
            ),
        ] = 12,
        step: Annotated[
            int | None,
            typer.Option(
                help="Which step of a run (default: last).",
                rich_help_panel="Checkpoint",
                **whole(0, MOST_STEP),
            ),
        ] = None,
        all_steps: Annotated[
            bool,
            typer.Option(
                "--all-steps", help="Follow the run: lambda, entropy, gap.", rich_help_panel="Checkpoint"
            ),
        ] = False,
        skip_bad: Annotated[
            bool,
            typer.Option(
                "--skip-bad", help="With --all-steps: leave out damaged steps.", rich_help_panel="Checkpoint"
            ),
        ] = False,
        layout: LayoutFile = None,
        tensor: TensorOptions = None,
        group: GroupOption = None,
        loss: LossOption = None,
        activation: ActivationOption = None,
        output_scale: OutputScaleOption = None,
        elements: ElementsOption = None,
        step_pattern: StepPattern = None,
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
        """The measure of largest entropy among all with the same potentials (symbols).

        It has density exp(lambda . r) / Z against the uniform probability measure. Entropies are in nats,
        at most 0; the entropy gap of a network is its Kullback-Leibler distance from that measure.
        """
        check_outputs(out, force=force, csv=csv, report=report, figure_format=figure_format)
        cpu_only("maxent", device)
        _check(path, space, monomials, moments)
        output = {"out": out, "csv": csv, "json": json, "force": force, "quiet": quiet}
        output |= {"report": report, "figure_format": figure_format}
        if path is None:
            values = _numbers(moments)
            read_problem(space, monomials, values)
            say(
                f"plan: maximum entropy on {space}, {len(values)} moments, {method}, seed {seed}", quiet=quiet
            )
            if dry_run:
                return
            with progress_bar(quiet=quiet) as progress:
                document = fit_moments(space, monomials, values, method=method, seed=seed, progress=progress)
            text = summary_of_moments(document)
        else:
            options = {
                "layout": layout, "tensor": tensor, "group": group, "loss": loss, "activation": activation,
                "output_scale": output_scale, "elements": elements,
            }  # fmt: skip
            document = _of_path(
                path, options, step=step, all_steps=all_steps, skip_bad=skip_bad, step_pattern=step_pattern,
                base=base, symbols=symbols, frequencies=frequencies, seed=seed, quiet=quiet, dry_run=dry_run,
            )  # fmt: skip
            if document is None:
                return
            text = "\n".join([summary_of_fits(document), *left_out_lines(document["skipped"])])
        study = study_of(document, seed=seed)
        deliver(document, study=study, summary=text, **output)


def _check(path: Path | None, space: str | None, monomials: str | None, moments: str | None) -> None:
    given = [
        name
        for name, value in (("--space", space), ("--monomials", monomials), ("--moments", moments))
        if value
    ]
    if path is not None and given:
        raise InputError(f"maxent: give a PATH, or {', '.join(given)}, not both")
    if path is None and len(given) < 3:
        raise InputError(
            "maxent: give a checkpoint or run, or all of --space, --monomials and --moments (see --help)"
        )


def _numbers(text: str) -> list[float]:
    words = text.replace(";", ",").split(",")
    if len(words) > 1 and not words[-1].strip():  # a comma at the end
        words.pop()
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise InputError(f"--moments: expected numbers separated by commas, got {text!r}") from error


def _last_network(
    run: Run, options: dict[str, Any], *, skip_bad: bool, quiet: bool
) -> tuple[Checkpoint, Layout, GroupNetwork, dict[int, str]]:
    """The network of the last step of a run; with ``skip_bad`` of the last that can be used."""
    bad: dict[int, str] = {}
    for step in reversed(run.steps):
        try:
            checkpoint = run.read(step)
            chosen = choose_layout(checkpoint, run, quiet=quiet, **options)
            return checkpoint, chosen, chosen.network(checkpoint), bad
        except CheckpointError as error:
            _passed_over(step, error, bad, skip_bad)
    last = run.steps[-1]
    raise CheckpointError(f"{path_text(run.path)}: no checkpoint can be used; step {last}: {bad[last]}")


def _passed_over(step: int, error: CheckpointError, bad: dict[int, str], skip_bad: bool) -> None:
    if not skip_bad:
        raise CheckpointError(f"step {step}: {error}; --skip-bad leaves such steps out") from error
    bad[step] = str(error)


def _of_path(
    path: Path, options: dict[str, Any], *, step: int | None, all_steps: bool, skip_bad: bool,
    step_pattern: str | None, base: str, symbols: str, frequencies: int, seed: int, quiet: bool,
    dry_run: bool,
) -> dict[str, Any] | None:  # fmt: skip
    if skip_bad and not all_steps:
        raise InputError("--skip-bad: only with --all-steps; one step is used or refused")
    if all_steps and not os.path.isdir(split_selector(path)[0]):
        raise InputError(f"--all-steps: expected a run directory, got the checkpoint {path_text(path)}")
    bad: dict[int, str] = {}
    if all_steps and step is None:
        run = Run.open(path, step_pattern=step_pattern)
        checkpoint, chosen, network, bad = _last_network(run, options, skip_bad=skip_bad, quiet=quiet)
    else:
        checkpoint, run = read_target(path, step=step, step_pattern=step_pattern)
        chosen = choose_layout(checkpoint, run, quiet=quiet, **options)
        network = chosen.network(checkpoint)
    steps = [known for known in run.steps if known not in bad] if all_steps else [checkpoint.step]
    say(
        f"plan: {network.group.name}, q = {network.width}, {len(steps)} step(s), base {base}, "
        f"symbols {symbols}, at most {frequencies} frequencies, seed {seed}",
        quiet=quiet,
    )
    if dry_run:
        return None
    with progress_bar(quiet=quiet) as progress:
        trajectory: list[dict[str, Any]] = []
        chosen_k: set[tuple[int, ...]] = set()
        for current in reversed(steps):  # the last step says which frequencies are followed
            if all_steps:
                try:
                    network = chosen.network(run.read(current))
                except CheckpointError as error:
                    _passed_over(current, error, bad, skip_bad)
                    continue
            a, b, c = (z.numpy() for z in network.coefficients())
            try:
                lifts = lift_frequencies(network.group, a, b, c, base=base, symbols=symbols)
            except InputError:
                if current == steps[-1]:
                    raise
                lifts = []  # its place in the trajectory stays empty
                say(f"step {current}: no neuron has weight, nothing is fitted there")
            if not trajectory:
                chosen_k = {lift.k for lift in lifts[:frequencies]}
            found = []
            for lift in (x for x in lifts if x.k in chosen_k):
                done = len(trajectory) * len(chosen_k) + len(found)
                progress(done, len(steps) * len(chosen_k), f"step {current}, frequency {lift.k}")
                alone = {"progress": progress} if len(chosen_k) == len(steps) == 1 else {}
                found.append(analyse_lift(lift, seed=seed, replicates=0 if all_steps else 6, **alone))
            trajectory.append({"step": current, "fits": found})
    trajectory.reverse()
    fits = trajectory[-1]["fits"]
    warnings = subject_of(checkpoint, chosen, run).warnings(chosen.network(checkpoint).accuracy())
    document: dict[str, Any] = {
        "checkpoint": {
            "path": path_text(checkpoint.path), "step": checkpoint.step, "sha256": checkpoint.sha256,
        },
        "layout": chosen.origin.document,
        "warnings": warnings,
        "notes": [*warnings, *chosen.origin.notes],
        "base": base, "symbols": symbols, "fits": fits,
        "skipped": {str(at): bad[at] for at in sorted(bad)} | (run.left_out if run is not None else {}),
    }  # fmt: skip
    if all_steps:
        document["trajectory"] = trajectory_document(trajectory)
    return document
