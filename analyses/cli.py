"""The command ``rhoscope``: gathers the commands and turns errors into one clear line."""

from __future__ import annotations

import os
import sys

from analyses.commands.options.application import build_app, complain, interrupted, silence_output
from manifold.errors import OutputError, RhoscopeError


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
        complain(str(error))
        if isinstance(error, OutputError):
            silence_output()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        interrupted()
    except BrokenPipeError:
        silence_output()
        sys.exit(141)
    except Exception as error:
        if (sentence := _of_the_machine(error)) is None:
            raise
        complain(sentence)
        sys.exit(2)


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


if __name__ == "__main__":
    main()
