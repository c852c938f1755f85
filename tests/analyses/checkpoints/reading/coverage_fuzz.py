"""Fuzzing guided by coverage.

``python -m tests.analyses.checkpoints.reading.coverage_fuzz files|pickles|grammar CORPUS`` needs atheris,
which is no dependency of rhoscope; without it the fuzz tests with hypothesis remain. The reader runs in this
process, without its child, so that a crash or an import is seen and not merely survived.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["analyses.checkpoints.reading", "analyses.layouts"]):
    from analyses.checkpoints.reading.folders import open_checkpoint
    from analyses.checkpoints.reading.pickles import Interpreter
    from analyses.checkpoints.reading.statedicts import select_state
    from analyses.layouts.tensor_expressions import parse_expression

from manifold.errors import CheckpointError, LayoutError

FORBIDDEN = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
    "socket.connect", "ctypes.dlopen", "os.remove", "os.rename", "os.mkdir", "os.symlink",
}  # fmt: skip
MAX_BYTES = 1 << 22


def forbid(event: str, _: tuple) -> None:
    """Audit hook: code that a file wants to run ends the fuzzing at once."""
    if event in FORBIDDEN:
        sys.stderr.write(f"FORBIDDEN: {event}\n")
        os.abort()


def fuzz_files(data: bytes) -> None:
    """A whole file through the reader; only named errors, or what the child turns into one."""
    PATH.write_bytes(data)
    try:
        with open_checkpoint(PATH, MAX_BYTES) as opened:
            for tensor in select_state(opened.content()).tensors.values():
                if tensor.nbytes < MAX_BYTES:
                    tensor.load()
    except CheckpointError:
        pass
    except (RecursionError, MemoryError, SystemError):
        raise
    except Exception as error:  # the child answers with "it is damaged": allowed, but counted
        UNNAMED[type(error).__name__] = UNNAMED.get(type(error).__name__, 0) + 1


def fuzz_pickles(data: bytes) -> None:
    """A pickle as data: a value or a named error."""
    with contextlib.suppress(CheckpointError):
        Interpreter().run(data)


def fuzz_grammar(data: bytes) -> None:
    """An expression of a layout: parsed or refused."""
    with contextlib.suppress(LayoutError):
        parse_expression(data.decode("utf-8", "replace"))


UNNAMED: dict[str, int] = {}
PATH = Path(tempfile.mkdtemp(prefix="rhoscope-fuzz-")) / "file.pt"
TARGETS = {"files": fuzz_files, "pickles": fuzz_pickles, "grammar": fuzz_grammar}

if __name__ == "__main__":
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    sys.addaudithook(forbid)
    atheris.Fuzz()
