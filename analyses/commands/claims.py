"""``rhoscope claims``: the ledger of claims, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyses.commands.options import DryRun, Json, Quiet, Seed, deliver, progress_bar, say

EPILOG = """
Examples:

  rhoscope claims --quick

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
            int, typer.Option(help="--published-table: networks trained at the same time.", min=1)
        ] = 1,
        json: Json = False,
        seed: Seed = 0,
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Every formal claim of the theory with its hypotheses measured, evidence and a verdict.

        With --published-table the folder keeps every finished network; a second call goes on where the first
        one stopped.
        """
        if published_table is not None:
            _published_table(published_table, workers, json=json, quiet=quiet, dry_run=dry_run)
            return
        from analyses.claims import CLAIMS, examine

        chosen = CLAIMS if only is None else (only,)
        say(f"plan: {len(chosen)} claims ({', '.join(chosen)}), {'quick' if quick else 'full'}", quiet=quiet)
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            ledger = examine(only=only, quick=quick, seed=seed, progress=progress)
        deliver(
            ledger.document, study=None, out=None, csv=None, json=json, force=False, summary=ledger.summary
        )


def _published_table(folder: Path, workers: int, *, json: bool, quiet: bool, dry_run: bool) -> None:
    from analyses.published import GROUPS, train_table

    say(
        f"plan: {', '.join(GROUPS)}, 5 seeds each, 10,000 steps of Adam at 512 neurons, in {folder}",
        quiet=quiet,
    )
    if dry_run:
        return
    with progress_bar(quiet=quiet) as progress:
        train_table(folder, workers=workers, progress=progress)
