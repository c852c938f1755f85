"""All commands as one typer application: a new one is one word in ROOMS."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from analyses.common.versions import rhoscope_version
from manifold.errors import InputError

# Every command is a module in one of the rooms of analyses.commands, and offers ``register(app)``.
ROOMS: dict[str, tuple[str, ...]] = {
    "networks": ("train", "inspect", "convert", "construct", "compose"),
    "studies": ("analyze", "crossings", "temperature", "maxent", "complexity"),
    "evidence": ("claims", "verify", "report", "demo", "bench"),
}
COMMANDS = {command: f"analyses.commands.{room}.{command}" for room, own in ROOMS.items() for command in own}

USAGE_ERROR: type[Exception] = typer.BadParameter.__base__  # wherever typer keeps its click


def build_app(only: str | None = None) -> typer.Typer:
    """The typer application with all commands, or those that the first word asks for (faster to start)."""
    app = typer.Typer(
        name="rhoscope",
        cls=_Commands,
        help="See a neural network learn symbols: potentials, spectra and entropy of trained networks.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def _main(
        version: bool = typer.Option(
            False, "--version", callback=_say_version, is_eager=True, help="Print the version."
        ),
    ) -> None:
        pass

    needed = [] if only == "--version" else [only] if only in COMMANDS else COMMANDS
    for command in needed:
        importlib.import_module(COMMANDS[command]).register(app)
    return app


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rhoscope {rhoscope_version()}")
        raise typer.Exit


class _Commands(TyperGroup):
    """Bad usage, interruptions and closed pipes end in our way, before the library below ends them."""

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        """Read what stands before the command."""
        with _one_line_usage():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with _one_line_usage():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            interrupted()
        except BrokenPipeError:
            silence_output()
            sys.exit(141)


@contextmanager
def _one_line_usage() -> Iterator[None]:
    """A wrong command line is an `InputError` like any other bad input, not a box of several lines.

    Raises
    ------
    InputError
        For a wrong command line.
    """
    try:
        yield
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "rhoscope"
        raise InputError(f"{_plain(error)} ({command} --help lists what there is)") from error


def _plain(error: Any) -> str:
    """What a usage error says, beginning with the option it is about."""
    parameter = getattr(error, "param", None)
    text = error.format_message().rstrip(".")
    if parameter is None or not isinstance(error, typer.BadParameter) or not error.message:
        return text
    name = max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.name.upper()
    return f"{name}: {error.message.rstrip('.')}"


def complain(text: str) -> None:
    """One line on standard error, if anybody can read it."""
    with suppress(OSError, ValueError):  # nobody can read it: the exit code tells
        sys.stderr.write(f"rhoscope: {' '.join(text.split())}\n")
        sys.stderr.flush()


def interrupted() -> NoReturn:
    """End as a program that was interrupted, exit code 130."""
    complain("interrupted; files already written are complete")
    sys.exit(130)


def silence_output() -> None:
    """What is still buffered for standard output goes nowhere, instead of failing once more at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
