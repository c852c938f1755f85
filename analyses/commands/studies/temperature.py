"""``rhoscope temperature``: phase transitions of a loss on a compact space."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import typer

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
from analyses.commands.options.values import filled, whole
from analyses.reports.sections import document_of
from analyses.studies.temperature import ThermalQuestion, heat, parse_grid, sentence
from manifold.errors import InputError

EPILOG = """
Examples:

  rhoscope temperature --space S2 --monomials "x1;x2;x3" --loss-expr "-(J/2)*(rho1**2+rho2**2+rho3**2)"
  --param J=1 --t-grid 0.1:0.6:26

  rhoscope temperature --space S1 --monomials "x1;x2" --loss-expr "-(rho1^2+rho2^2)/2" --t-grid 0.1:0.7:25
  --report circle.html
"""
PANEL = "Free energy"
MOST_RATES = 1000  # the matrix that they come from is dense


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("temperature", epilog=EPILOG)
    def command(
        space: Annotated[
            str,
            typer.Option(
                help="S1, S2, .., S2xS1; dimension 1 to 4.", rich_help_panel=PANEL, **filled("a space")
            ),
        ],
        monomials: Annotated[
            str,
            typer.Option(
                help="Expressions separated by ';'.", rich_help_panel=PANEL, **filled("x1;x2 or the like")
            ),
        ],
        loss_expr: Annotated[
            str,
            typer.Option(
                help="Formula of rho1, rho2, .. and parameters.", rich_help_panel=PANEL, **filled("a formula")
            ),
        ],
        t_grid: Annotated[
            str, typer.Option(help="LOW:HIGH:N", rich_help_panel=PANEL, **filled("LOW:HIGH:N"))
        ],
        param: Annotated[
            list[str] | None, typer.Option(help="NAME=VALUE; repeat.", rich_help_panel=PANEL)
        ] = None,
        rates: Annotated[
            int, typer.Option(help="Rates of each state.", rich_help_panel=PANEL, **whole(1, MOST_RATES))
        ] = 8,
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
        """Stationary measures of F = L(E r) + T E log(density), their stability, and where it changes.

        Densities are against the uniform probability measure. The second variation (negative = unstable) and
        the rates of the noisy flow (positive = decaying) are different spectra.
        """
        check_outputs(out, force=force, csv=csv, report=report, figure_format=figure_format)
        cpu_only("temperature", device)
        question = ThermalQuestion(
            space, monomials, loss_expr, _parameters(param), parse_grid(t_grid), rates, seed
        )
        energy = question.free_energy()
        say(
            f"plan: {len(question.temperatures)} temperatures on {energy.space.name}, "
            f"{len(energy.monomials)} monomials, {len(energy.points):,} quadrature points, seed {seed}",
            quiet=quiet,
        )
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            study = heat(question, progress=progress)
        document = document_of(study)
        deliver(
            document, study=study, out=out, csv=csv, json=json, force=force, summary=_summary(document),
            quiet=quiet, report=report, figure_format=figure_format,
        )  # fmt: skip


def _parameters(texts: list[str] | None) -> dict[str, float]:
    """The parameters ``NAME=VALUE``."""
    found = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise InputError(f"--param: expected NAME=VALUE, got {text!r}") from None
        if not name.strip().isidentifier() or not np.isfinite(found[name.strip()]):
            raise InputError(f"--param: expected NAME=VALUE with a finite number, got {text!r}")
    return found


def _summary(document: dict[str, Any]) -> str:
    lines = []
    for branch in document["branches"]:
        there = [i for i, rho in enumerate(branch["rho"]) if rho is not None]
        first, last = there[0], there[-1]
        errors = np.array([branch["error"][i] for i in there], float)
        proved = errors[np.isfinite(errors)]
        lines.append(
            f"{branch['kind']}: T = {document['T'][first]:.4g} .. {document['T'][last]:.4g}, "
            f"|rho| {_length(branch, first)} .. {_length(branch, last)}, "
            f"lowest second variation {branch['lowest'][first]:.4g} .. {branch['lowest'][last]:.4g}, "
            f"symmetry zeros {branch['symmetry_zeros'][first]}, error at most {proved.max(initial=0.0):.1e}"
            + (f" but for {len(errors) - len(proved)} undetermined" if len(proved) < len(errors) else "")
        )
    lines += [sentence(one) for one in document["critical"]] or [
        "no state changes its stability on this grid"
    ]
    return "\n".join(lines)


def _length(branch: dict[str, Any], place: int) -> str:
    """|rho| at a temperature, 0 where it is not more than its bound."""
    size = float(np.linalg.norm(branch["rho"][place]))
    error = branch["error"][place]
    return f"{size:.6g}" if error is None or size > error else "0"
