"""The process that opens strangers' files: no torch, limited memory, unable to write a file.

It reads one JSON request per line on standard input and answers on standard output in frames (one
letter, a length in 8 bytes, the payload): ``H`` a JSON header that lists the tensors, then one ``D`` per
tensor with its plain contiguous bytes; or ``E`` with the name of an error and its message.
Run only by `analyses.checkpoints.CheckpointReader`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from analyses.reading.folders import open_checkpoint
from analyses.reading.statedicts import State, select_state
from analyses.reading.text import shown
from manifold.errors import CheckpointError

try:
    import resource
except ImportError:  # Windows: the time limit and the size caps remain
    resource = None

MEMORY_BASE = 768 << 20
SPARE_BYTES = 64 << 20


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


def finite(values: np.ndarray, dtype: str) -> bool:
    """Whether every number is finite; bfloat16 comes as its bits in uint16."""
    if dtype == "bfloat16":
        return not bool(((values & np.uint16(0x7F80)) == 0x7F80).any())
    return bool(np.isfinite(values).all())


def _header(state: State, sha256: str, form: str, metadata: dict[str, str]) -> dict[str, Any]:
    return {
        "format": form,
        "sha256": sha256,
        "step": state.step,
        "epoch": state.epoch,
        "ignored": state.ignored,
        "metadata": metadata,
        "tensors": [
            {"key": key, "dtype": tensor.dtype, "shape": tensor.shape, "nbytes": tensor.nbytes}
            for key, tensor in state.tensors.items()
        ],
    }


def answer(path: Path, max_bytes: int) -> Iterator[tuple[bytes, bytes | memoryview]]:
    """Frames of one checkpoint: the header, then the numbers of each tensor.

    Parameters
    ----------
    path : Path
        A file or folder.
    max_bytes : int
        Largest total size on disk that is read.

    Yields
    ------
    tuple of (bytes, bytes)
        Kind and payload of a frame.

    Raises
    ------
    CheckpointError
        If the checkpoint is refused.
    """
    with open_checkpoint(path, max_bytes) as opened:
        _limit("RLIMIT_AS", MEMORY_BASE + 3 * opened.size)
        content = opened.content()
        state = select_state(content)
        dense = sum(tensor.nbytes for tensor in state.tensors.values())
        if dense > 4 * opened.size + SPARE_BYTES:
            raise CheckpointError(
                f"its tensors would expand from {opened.size} bytes on disk to {dense}; "
                "save them without expand()"
            )
        metadata = content.metadata | state.metadata
        yield b"H", json.dumps(_header(state, opened.sha256(), content.format, metadata)).encode()
        for key, tensor in state.tensors.items():
            values = tensor.load()
            if not finite(values, tensor.dtype):
                raise CheckpointError(f"tensor {shown(key)} has NaN or infinite values")
            yield b"D", memoryview(values.reshape(-1).view(np.uint8))


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
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            for kind, payload in answer(Path(request["path"]), request["max_bytes"]):
                _send(out, kind, payload)
            _send(out, b"F", b"")
        except Exception as error:
            _send(out, b"E", _error(error))
        out.flush()
