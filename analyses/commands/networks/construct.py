"""``rhoscope construct``: networks from formulas."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from analyses.commands.options.common import DryRun, Force, Json, Quiet, Seed, check_outputs, deliver, say
from analyses.commands.options.values import converted, group_name, whole
from analyses.common.study_files import provenance
from analyses.runs.exports import check_export_name, write_network
from analyses.subjects.order_parameters import plain_projected_mse
from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.constructions import CONSTRUCTIONS
from spectra.networks.partial_solutions import partial_solution

EPILOG = """
Examples:

  rhoscope construct F6 --group Z23 --out f6.pt

  rhoscope construct cosine --group Z4xZ6 --neurons 4096 --seed 3 --out cosine.safetensors

  rhoscope construct partial --zeros R_n,R_* --group Z5 --out quiet.pt
"""

Construction = Enum("Construction", {name: name for name in (*CONSTRUCTIONS, "partial")}, type=str)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("construct", epilog=EPILOG)
    def constructing(
        name: Annotated[Construction, typer.Argument(help="Which formula.")],
        out: Annotated[Path, typer.Option(help="File to write: .pt or .safetensors.")],
        group: Annotated[str, typer.Option(help="Such as Z23 or Z3xZ5.", **converted(group_name, "GROUP"))],
        neurons: Annotated[
            int | None,
            typer.Option(help="Width of cosine (default: 512) and partial (default: 8).", **whole(1)),
        ] = None,
        zeros: Annotated[
            str | None, typer.Option(help="partial: sets to make 0, some of R_c,R_n,R_*; R_g is 1.")
        ] = None,
        json: Json = False,
        force: Force = False,
        seed: Seed = 0,
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Write a network from a formula: F6, F4_6, memorise, cosine (any group); or solve for partial.

        On groups of even order F6 and F4_6 have two neurons at every character of order two.
        """
        check_export_name(out)
        check_outputs(out, force=force)
        kind, options = name.value, {}
        if kind == "cosine":
            options = {"neurons": 512 if neurons is None else neurons, "seed": seed}
        elif kind == "partial":
            names = [name.strip() for name in (zeros or "").split(",") if name.strip()]
            options = {"neurons": 8 if neurons is None else neurons, "seed": seed, "zeros": names}
        elif neurons is not None:
            raise InputError(f"--neurons: only cosine and partial have a free width, {kind} has not")
        if zeros is not None and kind != "partial":
            raise InputError(f"--zeros: only partial asks for sets, {kind} does not; leave it out")
        target = FiniteAbelianGroup.parse(group)
        say(f"plan: {kind} on {target.name} (n = {target.order}){_real_note(kind, target)}", quiet=quiet)
        if dry_run:
            return
        network = (CONSTRUCTIONS | {"partial": partial_solution})[kind](target, **options)
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


def _real_note(kind: str, group: FiniteAbelianGroup) -> str:
    """What the single-frequency families become at characters of order two, where z is real."""
    count = sum(group.negatives[k] == k for k in group.conjugate_pairs)
    if kind not in {"F6", "F4_6"} or not count:
        return ""
    return f"; {count} of its characters have order two and get 2^(-1/3) ([1,1,1] + [1,-1,-1]) each"
