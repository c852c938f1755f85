"""The process that opens strangers' files: no torch, limited memory, unable to write a file.

It says ``R`` when it is ready, reads one JSON request per line on standard input and answers on standard
output in frames (one letter, a length in 8 bytes, the payload): ``H`` a JSON header that lists the tensors,
then per tensor one ``D`` with its plain contiguous bytes or, where numbers are not finite, one ``N`` with how
many; or ``E`` with the name of an error and its message.
Run only by `analyses.checkpoints.reader.CheckpointReader`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from analyses.checkpoints.reading.folders import open_checkpoint
from analyses.checkpoints.reading.sources import Content
from analyses.checkpoints.reading.statedicts import State, select_state
from analyses.checkpoints.reading.text import shown
from manifold.errors import CheckpointError

try:
    import resource
except ImportError:  # Windows: the time limit and the size caps remain
    resource = None

MEMORY_BASE = 768 << 20
SPARE_BYTES = 64 << 20
MAX_STUBS = 100  # names of classes that are told


def _limit(name: str, soft: int, hard: int | None = None) -> None:
    """Lower one resource limit where the platform has it."""
    kind = getattr(resource, name, None)
    if kind is not None:
        ceiling = resource.getrlimit(kind)[1] if hard is None else hard
        # Some platforms refuse; the parent still limits time and what it accepts.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (soft, ceiling))


def confine() -> None:
    """Give up what reading never needs: writing files, starting processes, core dumps."""
    _limit("RLIMIT_FSIZE", 0, 0)
    _limit("RLIMIT_NPROC", 0, 0)
    _limit("RLIMIT_CORE", 0, 0)


def not_finite(values: np.ndarray, dtype: str) -> dict[str, int]:
    """How many numbers are NaN and how many infinite, empty if none; bfloat16 comes as its bits in uint16."""
    if dtype == "bfloat16":
        odd = (values & np.uint16(0x7F80)) == 0x7F80
        infinite = odd & ((values & np.uint16(0x007F)) == 0)
    else:
        odd = ~np.isfinite(values)
        infinite = np.isinf(values) if odd.any() else odd
    if not odd.any():
        return {}
    return {"nan": int(odd.sum() - infinite.sum()), "infinite": int(infinite.sum())}


def _header(state: State, content: Content, sha256: str | None) -> dict[str, Any]:
    return {
        "format": content.format,
        "sha256": sha256,
        "step": state.step,
        "epoch": state.epoch,
        "ignored": state.ignored,
        "metadata": content.metadata | state.metadata,
        "stubs": [shown(name) for name in content.foreign[:MAX_STUBS]],
        "tensors": [
            {"key": key, "dtype": tensor.dtype, "shape": tensor.shape, "nbytes": tensor.nbytes}
            for key, tensor in state.tensors.items()
        ],
    }


def answer(
    path: Path, max_bytes: int, *, selector: str | None = None, look: bool = False
) -> Iterator[tuple[bytes, bytes | memoryview]]:
    """Frames of one checkpoint: the header, then the numbers of each tensor.

    Parameters
    ----------
    path : Path
        A file or folder.
    max_bytes : int
        Largest total size on disk that is read.
    selector : str, optional
        See `analyses.checkpoints.reading.statedicts.select_state`.
    look : bool
        The header alone, without hash and checksums of the numbers: what tells the step.

    Yields
    ------
    tuple of (bytes, bytes)
        Kind and payload of a frame.

    Raises
    ------
    CheckpointError
        If the checkpoint is refused: no tensor, or none whose numbers are finite.
    """
    with open_checkpoint(path, max_bytes) as opened:
        _limit("RLIMIT_AS", MEMORY_BASE + 3 * opened.size)
        content = opened.content(check=not look)
        state = select_state(content, selector)
        dense = sum(tensor.nbytes for tensor in state.tensors.values())
        if dense > 4 * opened.size + SPARE_BYTES:
            raise CheckpointError(
                f"its tensors would expand from {opened.size} bytes on disk to {dense}; "
                "save them without expand()"
            )
        header = _header(state, content, None if look else opened.sha256())
        yield b"H", json.dumps(header).encode()
        bad = [] if look else (yield from _numbers(state))
        if bad and len(bad) == len(state.tensors):
            others = ", and so have all others" if len(bad) > 1 else ""
            raise CheckpointError(f"tensor {shown(bad[0])} has NaN or infinite values{others}")


def _numbers(state: State) -> Generator[tuple[bytes, bytes | memoryview], None, list[str]]:
    """A frame per tensor; returns the keys of those that are not finite."""
    bad = []
    for key, tensor in state.tensors.items():
        values = tensor.load()
        odd = not_finite(values, tensor.dtype)
        if odd:
            bad.append(key)
            yield b"N", json.dumps(odd).encode()
        else:
            yield b"D", memoryview(values.reshape(-1).view(np.uint8))
    return bad


def _send(out: BinaryIO, kind: bytes, payload: bytes | memoryview) -> None:
    out.write(kind + len(payload).to_bytes(8, "little"))
    out.write(payload)


def _error(error: Exception) -> bytes:
    name, message = "CheckpointError", str(error)
    if isinstance(error, CheckpointError):
        name = type(error).__name__
    elif isinstance(error, MemoryError):
        message = "reading it needs more memory than the limit; it is damaged or hostile"
    else:  # hostile bytes may break any assumption; the worker lives on and the caller gets one line
        message = f"it is damaged ({type(error).__name__}: {shown(error)})"
    return json.dumps({"error": name, "message": message}).encode()


def serve() -> None:
    """Answer requests until standard input closes."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but frames reaches the pipe
    confine()
    gc.disable()  # long logs make it search again and again; once after every answer is enough
    _send(out, b"R", b"")
    out.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        path = Path(os.fsdecode(bytes.fromhex(request.pop("path"))))  # any name, whatever its encoding
        try:
            for kind, payload in answer(path, request.pop("max_bytes"), **request):
                _send(out, kind, payload)
            _send(out, b"F", b"")
        except Exception as error:
            _send(out, b"E", _error(error))
        out.flush()
        gc.collect()
