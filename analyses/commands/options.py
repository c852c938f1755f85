"""Options that every command shares, and the one way results leave a command."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from analyses.studies import Progress, check_free, silent, to_json, write_csv, write_study
from manifold.errors import OutputError

Seed = Annotated[int, typer.Option(help="Seed of every random number.", rich_help_panel="Common")]
Device = Annotated[str, typer.Option(help="torch device: cpu, cuda, ...", rich_help_panel="Common")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No plan, no progress.", rich_help_panel="Common")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.", rich_help_panel="Common")]
Out = Annotated[Path | None, typer.Option(help="Write the study (netCDF, .nc).", rich_help_panel="Output")]
Report = Annotated[Path | None, typer.Option(help="Write an HTML page.", rich_help_panel="Output")]
Csv = Annotated[Path | None, typer.Option(help="Write one CSV per variable here.", rich_help_panel="Output")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output.", rich_help_panel="Output")
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files.", rich_help_panel="Output")]
FigureFormat = Annotated[str, typer.Option(help="Figures: svg, png or pdf.", rich_help_panel="Output")]

console = Console(stderr=True, highlight=False)


def say(message: str, *, quiet: bool = False) -> None:
    """One line to standard error (standard output belongs to results)."""
    if not quiet:
        console.print(message, markup=False)


@contextmanager
def progress_bar(*, quiet: bool, delay: float = 2.0) -> Iterator[Progress]:
    """A `Progress` that shows a bar with the time left, once the work has lasted ``delay`` seconds."""
    if quiet:
        yield silent
        return
    columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    bar = RichProgress(*columns, console=console, transient=True)
    task = bar.add_task("")
    begin = time.monotonic()
    started = False

    def report(done: float, total: float, message: str = "") -> None:
        nonlocal started
        if not started and time.monotonic() - begin > delay:
            bar.start()
            started = True
        bar.update(task, completed=done, total=total, description=message)

    try:
        yield report
    finally:
        if started:
            bar.stop()


def deliver(
    document: dict[str, Any],
    *,
    study: xr.Dataset | None,
    out: Path | None,
    csv: Path | None,
    json: bool,
    force: bool,
    summary: str = "",
    quiet: bool = False,
) -> None:
    """Write what was asked for: study, CSV files, JSON or a short summary on standard output.

    Raises
    ------
    OutputError
        If standard output cannot be written; a closed pipe is left to the caller.
    """
    if out is not None and study is not None:
        say(f"study written to {write_study(study, out, force=force)}", quiet=quiet)
    if csv is not None and study is not None:
        write_csv(study, csv, force=force)
        say(f"tables written to {csv}", quiet=quiet)
    text = to_json(document) if json else summary.rstrip("\n")
    try:
        sys.stdout.write(text + "\n" if text else "")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write standard output: {error.strerror or error}") from error


def check_outputs(*paths: Path | None, force: bool) -> None:
    """Refuse outputs that exist before any work is done."""
    for path in paths:
        check_free(path, force)
