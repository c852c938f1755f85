"""``rhoscope demo``: from nothing to a page, on networks trained on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyses.commands.options.common import (
    Device,
    DryRun,
    FigureFormat,
    Force,
    Json,
    Quiet,
    Seed,
    check_folder,
    deliver,
    progress_bar,
    say,
)
from analyses.studies.demonstration import PARTS, Stage, demonstrate, refuse_full

EPILOG = """
Examples:

  rhoscope demo

  rhoscope demo --out /tmp/demo --figure-format png --json
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("demo", epilog=EPILOG)
    def command(
        out: Annotated[Path, typer.Option(help="Folder for runs, studies and report.html.")] = Path(
            "rhoscope-demo"
        ),
        figure_format: FigureFormat = "svg",
        json: Json = False,
        force: Force = False,
        seed: Seed = 0,
        device: Device = "cpu",
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Train small networks, analyse them and write a page that explains what they learned.

        Takes under two minutes on two cores and needs no network.
        """
        refuse_full(out, force)
        check_folder(out)
        for part in PARTS:
            say(f"plan: {part.plan}", quiet=quiet)
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            found = demonstrate(Stage(out, seed, device, force, progress), figure_format=figure_format)
        document = {
            "report": str(found.report),
            "studies": {name: str(path) for name, path in found.studies.items()},
            "documents": found.documents,
            "timing": {"seconds": found.seconds},
        }
        lines = [*found.lines, f"report: {found.report} ({found.seconds:.0f} s)"]
        deliver(
            document, study=None, out=None, csv=None, json=json, force=force, summary="\n".join(lines),
            quiet=quiet,
        )  # fmt: skip
