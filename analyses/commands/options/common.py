"""Options that every command shares, and the one way results leave a command."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from analyses.commands.options.values import MOST_SEED, converted, device, one_of, whole
from analyses.common.figure_formats import FIGURE_FORMATS
from analyses.common.study_files import Progress, check_free, silent, to_json, write_csv, write_study
from manifold.errors import InputError, OutputError, OutputExistsError, RhoscopeError

Seed = Annotated[
    int, typer.Option(help="Seed of every random number.", rich_help_panel="Common", **whole(0, MOST_SEED))
]
Device = Annotated[
    str,
    typer.Option(
        help="torch device: cpu, cuda, ...", rich_help_panel="Common", **converted(device, "DEVICE")
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No plan, no progress.", rich_help_panel="Common")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.", rich_help_panel="Common")]
Out = Annotated[Path | None, typer.Option(help="Write the study (netCDF, .nc).", rich_help_panel="Output")]
Report = Annotated[Path | None, typer.Option(help="Write an HTML page.", rich_help_panel="Output")]
Csv = Annotated[Path | None, typer.Option(help="Write one CSV per variable here.", rich_help_panel="Output")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output.", rich_help_panel="Output")
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files.", rich_help_panel="Output")]
FigureFormat = Annotated[
    str,
    typer.Option(help="Figures: svg, png or pdf.", rich_help_panel="Output", **one_of(FIGURE_FORMATS)),
]

UNFINISHED = 3  # exit code of a result that is written and marked as partial

console = Console(stderr=True, highlight=False)


def say(message: str, *, quiet: bool = False) -> None:
    """One line to standard error (standard output belongs to results); lost if nobody can read it."""
    if not quiet:
        with suppress(OSError, ValueError):  # a closed or full standard error must not cost the work
            console.print(message, markup=False, soft_wrap=True)


def cpu_only(name: str, chosen: str) -> None:
    """Say that a command does not use the device it was given."""
    if chosen != "cpu":
        say(f"{name} works on the CPU only: --device {chosen} is not used")


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
    report: Path | None = None,
    pages: Sequence[xr.Dataset] = (),
    figure_format: str = "svg",
    title: str = "rhoscope report",
    unfinished: str | None = None,
) -> None:
    """Write what was asked for: numbers first, figures last; what fails costs nothing else.

    Parameters
    ----------
    document : dict
        For ``--json``.
    study : xarray.Dataset or None
        For ``--out``, ``--csv`` and the page.
    out, csv, report : Path or None
        The study, the folder of tables, the page.
    json : bool
        The document on standard output instead of the summary.
    force : bool
        Replace existing files.
    summary : str
        For standard output.
    quiet : bool
        Do not say what was written.
    pages : sequence of xarray.Dataset
        What the page shows; default: the study.
    figure_format, title : str
        Of the page.
    unfinished : str, optional
        What did not converge: said last, and the exit code is 3.

    Raises
    ------
    RhoscopeError
        The first output that could not be written, after all others were.
    Exit
        With code 3 if the result or a figure is only partial.
    """
    failed: list[Exception] = []
    missing: list[str] = []

    def attempt(what: str, write: Any) -> None:
        try:
            write()
        except (RhoscopeError, BrokenPipeError) as error:
            failed.append(error)
        else:
            say(what, quiet=quiet or not what)

    if out is not None and study is not None:
        attempt(f"study written to {out}", lambda: write_study(study, out, force=force))
    if csv is not None and study is not None:
        attempt(f"tables written to {csv}", lambda: write_csv(study, csv, force=force))
    attempt("", lambda: _print(to_json(document) if json else summary.rstrip("\n")))
    if report is not None:
        shown = pages or ([] if study is None else [study])
        page = _page(shown, report, missing, force=force, figure_format=figure_format, title=title)
        attempt(f"report written to {report}", page)
    for problem in (*missing, *([unfinished] if unfinished else [])):
        say(problem)
    if failed:
        raise failed[0]
    if missing or unfinished:
        raise typer.Exit(UNFINISHED)


def _page(studies: Sequence[xr.Dataset], path: Path, missing: list[str], **options: Any) -> Any:
    def write() -> None:
        try:
            from analyses.studies.page import write_report
        except Exception as error:  # a broken drawing library: the numbers are out already
            missing.append(f"no page: the drawing library does not load ({type(error).__name__}: {error})")
            return
        write_report(studies, path, warn=missing.append, **options)

    return write


def _print(text: str) -> None:
    """Results to standard output.

    Raises
    ------
    OutputError
        If it cannot be written; a closed pipe is left to the caller.
    """
    try:
        sys.stdout.write(text + "\n" if text else "")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write standard output: {error.strerror or error}") from error


def check_outputs(
    *paths: Path | None, force: bool, csv: Path | None = None, report: Path | None = None,
    figure_format: str = "svg",
) -> None:  # fmt: skip
    """Refuse outputs that exist or cannot be written, before any work is done.

    Parameters
    ----------
    *paths : Path or None
        Files.
    force : bool
        Existing files may be replaced.
    csv : Path, optional
        Folder of tables: none may be there.
    report : Path, optional
        A page; with PDF figures none of its figures may be there.
    figure_format : str
        Of the page.

    Raises
    ------
    OutputExistsError
        If something is there already and ``force`` is false.
    InputError
        If a name is a folder, or given twice.
    OutputError
        If a folder cannot be written.
    """
    files = [path for path in (*paths, report) if path is not None]
    for path in files:
        if path.is_dir():
            raise InputError(f"{path} is a folder: expected the name of a file to write")
        check_free(path, force)
        check_free(path.resolve(), force)
        _check_folder(path.parent, path)
    if len({path.resolve() for path in files}) < len(files):
        raise InputError(f"{files[-1]}: two outputs have the same name; give each its own")
    if csv is not None:
        _check_tables(csv, force)
    if report is not None and figure_format == "pdf" and not force:
        for figure in report.parent.glob(f"{_literal(report.stem)}-*-*.pdf"):
            raise OutputExistsError(f"{figure} exists already; give --force to replace it, or another name")


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _check_tables(folder: Path, force: bool) -> None:
    check_folder(folder)
    if folder.is_dir() and not force and any(folder.glob("*.csv")):
        raise OutputExistsError(
            f"{folder} holds tables already; give --force to replace them, or another folder"
        )


def check_folder(folder: Path) -> None:
    """Refuse, before any work, a folder for results that cannot be made or written.

    Raises
    ------
    OutputExistsError
        If it is a file.
    OutputError
        If it cannot be written.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; name a folder")
    _check_folder(folder, folder)


def _check_folder(folder: Path, output: Path) -> None:
    """Whether an output can be made in a folder: it, or the nearest one above that is there, takes files."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {output}: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {output}: no right to write into {folder}")
