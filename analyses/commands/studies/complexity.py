"""``rhoscope complexity``: learning curves under a chain of symmetries, gains, exponents, verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from analyses.commands.options.values import MOST_WORKERS, converted, filled, group_name, real, whole
from manifold.errors import InputError

MOST_TRIALS = 10**6  # risks of all of them are kept
MOST_FUNCTIONS = 10**5  # the eigen-solves are dense
MOST_EIGENVALUE = 1e9  # of the Laplacian: lists of eigenfunctions below it must fit
EPILOG = """
[bold]Examples[/bold]

  rhoscope complexity                                   # circle, Z1 < Z2 < Z4 < Z8\n
  rhoscope complexity --space S2 --symmetry SO2 --s 1.5 --n-grid 2048,4096,8192,16384\n
  rhoscope complexity --space T2 --symmetry swap --trials 40 --report swap.html\n
  rhoscope complexity --regimes --workers 2 --json      # exponent table, saturation, no noise, ...\n
  rhoscope complexity --network --group Z11             # the network's own curve over pairs
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("complexity", epilog=EPILOG)(complexity)


def numbers(text: str, name: str, kind: type = float) -> list:
    """Comma-separated numbers of an option.

    Raises
    ------
    InputError
        If an entry is not a number of this kind, or there is none.
    """
    try:
        values = [kind(part) for part in text.split(",") if part.strip()]
        if not np.isfinite(np.asarray(values, float)).all():
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise InputError(f"--{name}: expected comma-separated finite numbers, got {text[:60]!r}") from error
    if not values:
        raise InputError(f"--{name}: expected at least one number, got {text!r}")
    return values


def complexity(
    space: Annotated[
        str, typer.Option(help="T1, T2, .. (tori) or S2, S3, .. (spheres).", **filled("a space such as T1"))
    ] = "T1",
    symmetry: Annotated[
        str,
        typer.Option(help="Z8, Z4xZ4, D8, swap, perm, antipode, SO2, ...", **filled("a symmetry such as Z8")),
    ] = "Z8",
    chain: Annotated[str, typer.Option(help="Subgroups, smallest first, joined by commas or <.")] = "",
    matrices: Annotated[
        Path | None,
        typer.Option(
            help="Your own finite group: .npy of generators (g, N, N), or .npz with matrices, shifts."
        ),
    ] = None,
    s: Annotated[
        float | None, typer.Option("--s", help="Sobolev exponent of the kernel.", **real(above=0))
    ] = None,
    kappa: Annotated[str | None, typer.Option(help="s = (1 + kappa) d'/2; a list for the table.")] = None,
    theta: Annotated[str, typer.Option(help="Source exponent in (0, 1]; a list for the table.")] = "1",
    noise: Annotated[
        float, typer.Option(help="sigma; the target has variance 1.", **real(least=0, most=1e6))
    ] = 1.0,
    delta: Annotated[
        float, typer.Option(help="Risks are reported at the (1 - delta)-quantile.", **real(above=0, below=1))
    ] = 0.1,
    n_grid: Annotated[str | None, typer.Option(help="Sample sizes of the largest group.")] = None,
    trials: Annotated[int, typer.Option(help="Independent designs per point.", **whole(2, MOST_TRIALS))] = 64,
    draws: Annotated[
        int, typer.Option(help="Noise vectors per design, for the quantiles.", **whole(1, MOST_TRIALS))
    ] = 100,
    band: Annotated[
        float | None,
        typer.Option(help="Band-limited target, eigenvalues <= BAND.", **real(above=0, most=MOST_EIGENVALUE)),
    ] = None,
    accuracy: Annotated[
        float, typer.Option(help="Allowed relative effect of the kernel truncation.", **real(above=0))
    ] = 2e-3,
    cutoff: Annotated[
        float | None,
        typer.Option(help="Kernel truncation (eigenvalue) by hand.", **real(above=0, most=MOST_EIGENVALUE)),
    ] = None,
    max_functions: Annotated[
        int, typer.Option(help="Most eigenfunctions.", **whole(1, MOST_FUNCTIONS))
    ] = 3000,
    diagnostic: Annotated[bool, typer.Option(help="Allow s <= d'/2, as a truncated diagnostic.")] = False,
    regimes: Annotated[bool, typer.Option("--regimes", help="Also the other regimes (minutes).")] = False,
    network: Annotated[bool, typer.Option("--network", help="Also the network's own curve.")] = False,
    group: Annotated[
        str, typer.Option(help="Group of the network's task.", **converted(group_name, "GROUP"))
    ] = "Z11",
    workers: Annotated[int, typer.Option(help="Parallel processes.", **whole(1, MOST_WORKERS))] = 1,
    dask: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler.", **filled("HOST:PORT"))
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
    dry_run: DryRun = False,
    out: Out = None,
    report: Report = None,
    csv: Csv = None,
    json: Json = False,
    force: Force = False,
    figure_format: FigureFormat = "svg",
) -> None:
    """Sample complexity of learning a G-invariant function: curves, gains, exponents, verdict."""
    from analyses.studies.complexity.study import ComplexityOptions, plan_study, run_study, summary

    check_outputs(out, force=force, csv=csv, report=report, figure_format=figure_format)
    options = ComplexityOptions(
        space=space,
        symmetry=symmetry,
        chain=tuple(part.strip() for part in chain.replace("<", ",").split(",") if part.strip()),
        matrices=None if matrices is None else load_matrices(matrices),
        s=s,
        kappas=() if kappa is None else tuple(numbers(kappa, "kappa")),
        thetas=tuple(numbers(theta, "theta")),
        noise=noise,
        delta=delta,
        sizes=() if n_grid is None else tuple(numbers(n_grid, "n-grid", int)),
        trials=trials,
        draws=draws,
        band=band,
        accuracy=accuracy,
        cutoff=cutoff,
        max_functions=max_functions,
        diagnostic=diagnostic,
        regimes=regimes,
        network=group if network else None,
        workers=workers,
        dask=dask,
        seed=seed,
        device=device,
    )
    if not network:
        cpu_only("complexity without --network", device)
    plan = plan_study(options)
    for line in plan.lines():
        say(line, quiet=quiet and not dry_run)
    if dry_run:
        return
    parts = None if out is None else out.with_name(f".{out.name}.parts")
    with progress_bar(quiet=quiet) as progress:
        study, document = run_study(plan, parts=parts, progress=progress)
    deliver(
        document,
        study=study,
        out=out,
        csv=csv,
        json=json,
        force=force,
        summary=summary(document),
        quiet=quiet,
        report=report,
        figure_format=figure_format,
        title=f"rhoscope: sample complexity on {document['space']}",
    )
    if parts is not None:
        from analyses.studies.complexity.curves import clear_parts

        clear_parts(parts)


def load_matrices(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Generators from an .npy file, or matrices and shifts from an .npz file (never unpickled).

    Raises
    ------
    InputError
        If the file is missing, holds no plain arrays, or lacks ``matrices``.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found, None
        with found:
            return found["matrices"], found.get("shifts")
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            f"--matrices {path}: expected .npy with generators, or .npz with matrices, shifts; {error}"
        ) from error
