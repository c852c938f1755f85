"""``rhoscope bench``: our time against other tools, in the same run."""

from __future__ import annotations

import importlib
import platform
from typing import Annotated

import typer

from analyses.commands.options.common import DryRun, Json, Quiet, Seed, deliver, progress_bar, say
from analyses.commands.options.values import expected, one_of
from manifold.errors import InputError

# One module per bench; each offers ``CASES`` (names) and ``run(*, quick, cases, seed, progress) -> rows``.
BENCHES = {
    "train": "analyses.bench.training",
    "spectrum": "analyses.bench.spectrum",
    "maxent": "analyses.bench.maxent",
    "complexity": "analyses.bench.complexity",
}
EPILOG = """
Examples:

  rhoscope bench train --quick

  rhoscope bench train --cases Z113 --json

  rhoscope bench spectrum --quick
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("bench", epilog=EPILOG)
    def command(
        name: Annotated[str, typer.Argument(help=" | ".join(BENCHES), **one_of(tuple(BENCHES)))],
        quick: Annotated[bool, typer.Option("--quick", help="Fewer and smaller cases.")] = False,
        cases: Annotated[str | None, typer.Option(help="Only these cases, separated by commas.")] = None,
        json: Json = False,
        seed: Seed = 0,
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Time and accuracy of our solvers against other tools; ratio = their time over ours."""
        module = importlib.import_module(BENCHES[name])
        chosen = list(module.CASES) if cases is None else [word.strip() for word in cases.split(",")]
        for case in chosen:
            if case not in module.CASES:
                raise InputError(f"--cases: {expected(case, module.CASES)}")
        say(
            f"plan: bench {name}, cases {', '.join(chosen)}{', quick' if quick else ''}, seed {seed}",
            quiet=quiet,
        )
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            rows = module.run(quick=quick, cases=chosen, seed=seed, progress=progress)
        document = {"machine": _machine(), "rows": rows}
        deliver(document, study=None, out=None, csv=None, json=json, force=False, summary=_table(rows))


def _machine() -> dict:
    import torch

    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def _table(rows: list[dict]) -> str:
    lines = [f"{'case':<18} {'tool':<34} {'quantity':<30} {'seconds':>10} {'ratio':>8} {'MiB':>7}  error"]
    for row in rows:
        seconds, ratio, memory = (
            "-" if row[key] is None else format(row[key], form)
            for key, form in (("seconds", ".4g"), ("ratio", ".3g"), ("peak_mib", ".0f"))
        )
        lines.append(
            f"{row['case']:<18} {row['tool']:<34} {row['quantity']:<30} "
            f"{seconds:>10} {ratio:>8} {memory:>7}  {row['error']}"
        )
    return "\n".join(lines)
