"""The child process that opens strangers' files: how it is started, and the frames that it sends."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import numpy

from analyses.checkpoints.reading.text import shown
from manifold.errors import CheckpointError, UntrustedCheckpointError

HEADER_LIMIT = 64 << 20
START_SECONDS = 60.0  # Python and numpy from a slow disk
_START = "import sys; sys.path += {roots!r}; from analyses.checkpoints.reader_worker import serve; serve()"
_ERRORS = {"CheckpointError": CheckpointError, "UntrustedCheckpointError": UntrustedCheckpointError}


def start_child() -> subprocess.Popen[bytes]:
    """Start the process that reads, and wait until it is ready.

    It is isolated from the user's environment (``-I``) and from `site` (``-S``): no sitecustomize, no
    ``.pth`` files. The folders of our packages and of numpy come after the standard library, whatever else is
    in them.

    Returns
    -------
    Popen
        With pipes for requests and frames.

    Raises
    ------
    CheckpointError
        If it does not start; the message says why, as far as Python does.
    """
    roots = [str(Path(__file__).resolve().parents[2]), str(Path(numpy.__file__).parent.parent)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryFile() as complaints:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START.format(roots=roots)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            bufsize=0,
            env=os.environ | threads,
        )
        try:
            Pipe(child, time.monotonic() + START_SECONDS).frame(b"R", exactly=0)
        except (Broken, OSError):
            child.kill()
            child.stdin.close()
            child.stdout.close()
            child.wait()
            raise CheckpointError(_why(complaints)) from None
        except BaseException:
            child.kill()
            raise
    return child


def _why(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    lines = complaints.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
    reason = shown(lines[-1], limit=200) if lines else "no reason given"
    return f"the process that reads checkpoints does not start, whatever the file ({reason})"


class Refused(Exception):
    """The child refused the file in order; it can read the next one."""

    def __init__(self, error: CheckpointError):
        self.error = error


class Broken(Exception):
    """The child died, took too long, or broke the protocol."""


class Pipe:
    """Frames from the child, each wait bounded by the deadline."""

    def __init__(self, child: subprocess.Popen[bytes], deadline: float):
        self.child, self.deadline = child, deadline

    def frame(self, kind: bytes, *, exactly: int | None = None, limit: int | None = None) -> bytearray:
        """Payload of the next frame, which must be of this kind; an E frame raises `Refused`."""
        return self._next({kind: (exactly, limit)})[1]

    def either(self, kind: bytes, other: bytes, *, exactly: int) -> tuple[bytes, bytearray]:
        """The next frame, of one kind and length or of another, short one."""
        return self._next({kind: (exactly, None), other: (None, 200)})

    def _next(self, kinds: dict[bytes, tuple[int | None, int | None]]) -> tuple[bytes, bytearray]:
        head = self._bytes(9)
        length = int.from_bytes(head[1:], "little")
        if head[:1] == b"E" and length <= HEADER_LIMIT:
            told = json.loads(self._bytes(length))
            raise Refused(_ERRORS.get(told["error"], CheckpointError)(told["message"]))
        kind = bytes(head[:1])
        exactly, limit = kinds.get(kind, (-1, None))
        wrong = length != exactly if exactly is not None else length > limit
        if wrong:
            raise Broken("the reading process answered out of order; the file is damaged or hostile")
        return kind, self._bytes(length)

    def _bytes(self, count: int) -> bytearray:
        data = bytearray(count)
        view, got = memoryview(data), 0
        with selectors.DefaultSelector() as selector:
            selector.register(self.child.stdout, selectors.EVENT_READ)
            while got < count:
                left = self.deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise Broken("reading it took longer than the time limit; it is too large or hostile")
                read = self.child.stdout.readinto(view[got:])
                if not read:
                    raise Broken("the reading process ended unexpectedly; the file is damaged or hostile")
                got += read
        return data
