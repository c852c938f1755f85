"""The command ``rhoscope``: gathers the commands and turns errors into one clear line."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from manifold.errors import OutputError, RhoscopeError

# One module of analyses.commands per entry; each offers ``register(app)``.
COMMANDS: tuple[str, ...] = (
    "train", "analyze", "crossings", "temperature", "maxent", "complexity", "compose", "construct", "claims",
    "verify", "inspect", "convert", "report", "demo", "bench",
)  # fmt: skip


def build_app(only: str | None = None) -> typer.Typer:
    """The typer application with every command, or with the one asked for (much faster to start)."""
    app = typer.Typer(
        name="rhoscope",
        cls=_Commands,
        help="See a neural network learn symbols: potentials, spectra and entropy of trained networks.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    @app.callback()
    def _main() -> None:
        pass

    for name in (only,) if only in COMMANDS else COMMANDS:
        importlib.import_module(f"analyses.commands.{name}").register(app)
    return app


def main() -> None:
    """Entry point: exit code 0 done, 1 a check failed, 2 bad input, 3 not converged, 130 interrupted."""
    try:
        build_app(sys.argv[1] if len(sys.argv) > 1 else None)()
    except RhoscopeError as error:
        sys.stderr.write(f"rhoscope: {' '.join(str(error).split())}\n")
        if isinstance(error, OutputError):
            _silence_output()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _interrupted()


class _Commands(TyperGroup):
    """Interruptions and closed pipes end in our way, before the library below takes them for its own."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _interrupted()
        except BrokenPipeError:
            _silence_output()
            sys.exit(141)


def _interrupted() -> NoReturn:
    sys.stderr.write("rhoscope: interrupted; files already written are complete\n")
    sys.exit(130)


def _silence_output() -> None:
    """What is still buffered for standard output goes nowhere, instead of failing once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
