"""``rhoscope claims``: the ledger of claims, measured."""

from __future__ import annotations

from typing import Annotated

import typer

from analyses.commands.options import DryRun, Json, Quiet, Seed, deliver, progress_bar, say

EPILOG = """
Examples:

  rhoscope claims --quick

  rhoscope claims --only displacement-convexity --json
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("claims", epilog=EPILOG)
    def claims(
        only: Annotated[str | None, typer.Option(help="One claim by its id.")] = None,
        quick: Annotated[
            bool, typer.Option("--quick", help="Small sizes: minutes instead of an hour.")
        ] = False,
        json: Json = False,
        seed: Seed = 0,
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Every formal claim of the theory with its hypotheses measured, evidence and a verdict."""
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
