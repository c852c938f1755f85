"""The command ``rhoscope``: gathers the commands and turns errors into one clear line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from manifold.errors import InputError, OutputError, RhoscopeError

# One module of analyses.commands per entry; each offers ``register(app)``.
COMMANDS: tuple[str, ...] = (
    "train", "analyze", "crossings", "temperature", "maxent", "complexity", "compose", "construct", "claims",
    "verify", "inspect", "convert", "report", "demo", "bench",
)  # fmt: skip


USAGE_ERROR: type[Exception] = typer.BadParameter.__base__  # wherever typer keeps its click


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
    """Entry point: exit code 0 done, 1 a check failed, 2 bad input, 3 partial result, 130 interrupted.

    Raises
    ------
    Exception
        Only a fault of the program itself, with its traceback.
    """
    _prepare_streams()
    os.environ["MPLBACKEND"] = "agg"  # nobody sees a window of ours; a Jupyter kernel's choice may be missing
    try:
        build_app(sys.argv[1] if len(sys.argv) > 1 else None)()
    except RhoscopeError as error:
        _complain(str(error))
        if isinstance(error, OutputError):
            _silence_output()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _interrupted()
    except BrokenPipeError:
        _silence_output()
        sys.exit(141)
    except Exception as error:
        if (sentence := _of_the_machine(error)) is None:
            raise
        _complain(sentence)
        sys.exit(2)


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
            _interrupted()
        except BrokenPipeError:
            _silence_output()
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


def _prepare_streams() -> None:
    """Streams that take any text and may be missing: some daemons start programs without them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _of_the_machine(error: Exception) -> str | None:
    """One line for what the machine refuses (disk, rights, memory); None for a fault of the program."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "can't allocate" in text or "out of memory" in text:
        return f"not enough memory ({str(error)[:200]}); a smaller problem, or a machine with more, is needed"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return None


def _complain(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody can read it: the exit code tells
        sys.stderr.write(f"rhoscope: {' '.join(text.split())}\n")
        sys.stderr.flush()


def _interrupted() -> NoReturn:
    _complain("interrupted; files already written are complete")
    sys.exit(130)


def _silence_output() -> None:
    """What is still buffered for standard output goes nowhere, instead of failing once more at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
