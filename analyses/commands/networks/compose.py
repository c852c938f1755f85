"""``rhoscope compose``: add or multiply two networks."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from analyses.commands.options.common import (
    Device,
    DryRun,
    Force,
    Json,
    Quiet,
    Seed,
    check_outputs,
    deliver,
    progress_bar,
    say,
)
from analyses.commands.options.layout import ActivationOption, GroupOption, choose_layout
from analyses.commands.options.values import real, whole
from analyses.common.study_files import provenance
from analyses.runs.exports import check_export_name, write_network
from analyses.runs.run import left_out_lines, read_target
from analyses.studies.composition import Composition, compose, refined
from analyses.subjects.subject import Subject, subject_of
from manifold.errors import LayoutError
from spectra.networks.semiring import MEMORY_LIMIT, product_bytes

EPILOG = """
Examples:

  rhoscope compose multiply f6.pt trained.pt --out product.pt

  rhoscope compose add first.pt second.pt --compress 1e-6 --out sum.safetensors --json

  rhoscope compose multiply runs/a runs/b --refine --out product.pt
"""


class Operation(StrEnum):
    """What `compose` does."""

    add = "add"
    multiply = "multiply"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("compose", epilog=EPILOG)
    def composing(
        operation: Annotated[Operation, typer.Argument(help="add: stack neurons; multiply: all pairs.")],
        first: Annotated[Path, typer.Argument(metavar="A", help="Checkpoint or run directory.")],
        second: Annotated[Path, typer.Argument(metavar="B", help="Checkpoint or run directory.")],
        out: Annotated[Path, typer.Option(help="File to write: .pt or .safetensors.")],
        refine: Annotated[bool, typer.Option("--refine", help="Move A and B to fixed points first.")] = False,
        tolerance: Annotated[
            float, typer.Option(help="Gradient tolerance of --refine.", **real(above=0))
        ] = 1e-9,
        compress: Annotated[
            float | None,
            typer.Option(help="Merge neurons whose (a, b) are parallel to this pitch.", **real(above=0)),
        ] = None,
        set_tol: Annotated[
            float, typer.Option(help="Tolerance of 0-sets and 1-sets.", **real(above=0))
        ] = 1e-6,
        max_mib: Annotated[
            int, typer.Option(help="Memory a product may take, MiB.", **whole(1))
        ] = MEMORY_LIMIT >> 20,
        group: GroupOption = None,
        activation: ActivationOption = None,
        json: Json = False,
        force: Force = False,
        seed: Seed = 0,
        device: Device = "cpu",
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Add (OR) or multiply (AND) two networks; potentials are predicted first, then measured.

        The product lives in complex Fourier coefficients: one neuron per pair of neurons, every potential
        the product of those of A and B. Exit code 1 if a predicted 0 or 1 is not found.
        """
        check_export_name(out)
        check_outputs(out, force=force)
        subjects = [_subject(path, group, activation, device, quiet) for path in (first, second)]
        say(_plan(operation.value, subjects), quiet=quiet)
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            parts = [
                refined(part, tolerance=tolerance, progress=progress) if refine else part.network
                for part in subjects
            ]
            found = compose(
                operation.value, *parts, set_tolerance=set_tol, compression=compress,
                memory_limit=max_mib << 20,
            )  # fmt: skip
        sources = [{"path": part.path, "sha256": part.sha256, "refined": refine} for part in subjects]
        losses = {part.loss for part in subjects}
        write_network(
            out, found.network, loss=losses.pop() if len(losses) == 1 else "projected_mse",
            force=force,
            provenance=provenance(seed=seed, device=device)
            | {"operation": operation.value, "parts": sources},
        )  # fmt: skip
        skipped = {f"{part.path}: {name}": why for part in subjects for name, why in part.left_out.items()}
        document = {"out": str(out), "parts": sources, "skipped": skipped, **found.document}
        deliver(
            document, study=None, out=None, csv=None, json=json, force=force,
            summary="\n".join([_summary(out, found), *left_out_lines(skipped)]),
        )  # fmt: skip
        if not found.kept:
            raise typer.Exit(1)


def _subject(path: Path, group: str | None, activation: str | None, device: str, quiet: bool) -> Subject:
    checkpoint, run = read_target(path)
    layout = choose_layout(checkpoint, run, group=group, activation=activation, certain=True, quiet=quiet)
    if layout.activation != "square":
        raise LayoutError(f"{path}: activation {layout.activation}; only quadratic networks add and multiply")
    return subject_of(checkpoint, layout, run, device=device)


def _plan(operation: str, subjects: list[Subject]) -> str:
    first, second = (part.network for part in subjects)
    if operation == "add":
        return f"plan: stack {first.width:,} and {second.width:,} neurons on {first.group.name}"
    return (
        f"plan: {first.width:,} x {second.width:,} = {first.width * second.width:,} neurons on "
        f"{first.group.name}, about {product_bytes(first, second) / 2**20:,.0f} MiB before compression"
    )


def _summary(out: Path, found: Composition) -> str:
    facts: dict[str, Any] = found.document
    sets = facts["sets"]
    lines = [
        f"{out}: {facts['operation']}, {facts['neurons']:,} neurons on {facts['group']}, "
        f"H = {facts['loss']:.3e} (projected MSE, mean over pairs), accuracy {100 * facts['accuracy']:.2f} %",
        f"potentials: {facts['potentials']['count']:,} predicted, off by at most "
        f"{facts['potentials']['prediction_error']:.1e} (largest {facts['potentials']['largest']:.3g})",
        f"sets at tolerance {sets['tol']:.0e}: predicted {sets['predicted']['zeros']:,} zeros and "
        f"{sets['predicted']['ones']:,} ones, {'all found' if found.kept else 'NOT all found'}; measured "
        f"{sets['measured']['zeros']:,} and {sets['measured']['ones']:,}",
    ]
    lines += [
        f"compression: {step['neurons']:,} neurons left ({step['merged']:,} merged, {step['dropped']:,} "
        f"dropped), outputs moved by at most {step['output_bound']:.1e} (root mean square)"
        for step in facts["compression"]
    ]
    return "\n".join(lines)
