"""``rhoscope construct``: networks from formulas."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from analyses.commands.options import DryRun, Force, Json, Quiet, Seed, check_outputs, deliver, say
from analyses.exports import check_export_name, write_network
from analyses.order_parameters import plain_projected_mse
from analyses.studies import provenance
from manifold.errors import InputError
from manifold.groups import FiniteAbelianGroup
from spectra.constructions import CONSTRUCTIONS

EPILOG = """
Examples:

  rhoscope construct F6 --group Z23 --out f6.pt

  rhoscope construct cosine --group Z4xZ6 --neurons 4096 --seed 3 --out cosine.safetensors
"""

Construction = Enum("Construction", {name: name for name in CONSTRUCTIONS}, type=str)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("construct", epilog=EPILOG)
    def constructing(
        name: Annotated[Construction, typer.Argument(help="Which formula.")],
        out: Annotated[Path, typer.Option(help="File to write: .pt or .safetensors.")],
        group: Annotated[str, typer.Option(help="Such as Z23 or Z3xZ5.")],
        neurons: Annotated[int | None, typer.Option(help="Of the cosine circuit [default: 512].")] = None,
        json: Json = False,
        force: Force = False,
        seed: Seed = 0,
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Write a network from a formula: F6, F4_6 (odd order), memorise, cosine (every group)."""
        check_export_name(out)
        check_outputs(out, force=force)
        kind, options = name.value, {}
        if kind == "cosine":
            options = {"neurons": 512 if neurons is None else neurons, "seed": seed}
        elif neurons is not None:
            raise InputError(f"--neurons: only cosine has a free width, {kind} has not; leave it out")
        target = FiniteAbelianGroup.parse(group)
        say(f"plan: {kind} on {target.name} (n = {target.order})", quiet=quiet)
        if dry_run:
            return
        network = CONSTRUCTIONS[kind](target, **options)
        write_network(
            out, network, provenance=provenance(seed=seed) | {"construction": kind, **options}, force=force
        )
        loss, accuracy = plain_projected_mse(network), network.accuracy()
        document = {"out": str(out), "construction": kind, "group": target.name, "neurons": network.width}
        document |= {"loss": loss, "accuracy": accuracy}
        summary = (
            f"{out}: {kind} on {target.name}, {network.width} neurons, H = {loss:.2e} (projected MSE, mean "
            f"over pairs), accuracy {100 * accuracy:.2f} %"
        )
        deliver(document, study=None, out=None, csv=None, json=json, force=force, summary=summary)
