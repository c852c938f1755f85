"""``rhoscope claims``: the ledger of claims, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyses.commands.options.common import (
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
from analyses.commands.options.values import MOST_WORKERS, expected, whole
from manifold.errors import InputError

EPILOG = """
Examples:

  rhoscope claims --quick --report ledger.html

  rhoscope claims --only displacement-convexity --json

  rhoscope claims --published-table runs/published
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("claims", epilog=EPILOG)
    def claims(
        only: Annotated[str | None, typer.Option(help="One claim by its id.")] = None,
        quick: Annotated[
            bool, typer.Option("--quick", help="Small sizes: minutes instead of an hour.")
        ] = False,
        published_table: Annotated[
            Path | None,
            typer.Option(help="Train the networks of the published table here (about an hour), and stop."),
        ] = None,
        workers: Annotated[
            int,
            typer.Option(
                help="--published-table: networks trained at the same time.", **whole(1, MOST_WORKERS)
            ),
        ] = 1,
        out: Out = None,
        report: Report = None,
        json: Json = False,
        force: Force = False,
        figure_format: FigureFormat = "svg",
        seed: Seed = 0,
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Every formal claim of the theory with its hypotheses measured, evidence and a verdict.

        With --published-table the folder keeps every finished network; a second call goes on where the first
        one stopped.
        """
        check_outputs(out, force=force, report=report, figure_format=figure_format)
        if published_table is not None:
            if only or quick or out or report:
                raise InputError(
                    "--published-table: trains networks only; leave out --only, --quick, --out, --report"
                )
            _published_table(published_table, workers, json=json, quiet=quiet, dry_run=dry_run)
            return
        from analyses.studies.claims.ledger import CLAIMS, examine

        if only is not None and only not in CLAIMS:
            raise InputError(f"--only: {expected(only, CLAIMS)}")
        chosen = CLAIMS if only is None else (only,)
        say(f"plan: {len(chosen)} claims ({', '.join(chosen)}), {'quick' if quick else 'full'}", quiet=quiet)
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            ledger = examine(only=only, quick=quick, seed=seed, progress=progress)
        deliver(
            ledger.document, study=ledger.dataset, out=out, csv=None, json=json, force=force,
            summary=ledger.summary, quiet=quiet, report=report, figure_format=figure_format,
            title="rhoscope: the ledger of claims",
        )  # fmt: skip


def _published_table(folder: Path, workers: int, *, json: bool, quiet: bool, dry_run: bool) -> None:
    from analyses.training.family_table import gather, table_lines, write_table
    from analyses.training.published import GROUPS, SEEDS, train_table

    say(
        f"plan: {', '.join(GROUPS)}, {len(SEEDS)} seeds each, 10,000 steps at 512 neurons, in {folder}",
        quiet=quiet,
    )
    if dry_run:
        return
    with progress_bar(quiet=quiet) as progress:
        train_table(folder, workers=workers, progress=progress)
    document = gather(folder)
    say(f"table written to {write_table(document, folder / 'table.json')}", quiet=quiet)
    deliver(
        document, study=None, out=None, csv=None, json=json, force=True,
        summary="\n".join(table_lines(document)), quiet=quiet,
    )  # fmt: skip
