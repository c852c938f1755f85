"""Read anyone's checkpoint as plain tensors, in a separate process that can run nothing from the file.

What is accepted: files of ``torch.save`` (zip format), safetensors, shards of either with an index.
What is kept: dense, finite, floating tensors of the model's state dict. There is no ``torch.load`` at
all here, hence no switch that could weaken it: the child process interprets the pickle as data (see
`analyses.reading.pickles`), checks every size before it reads, and sends plain numbers through a pipe. It has
no torch, so it starts in a tenth of a second, and one child reads many files.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import selectors
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.reading.statedicts import METADATA_KEY
from manifold.errors import CheckpointError, InputError, UntrustedCheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 1 << 30
TIMEOUT = 60.0
_HEADER_LIMIT = 64 << 20
_START = "import sys; sys.path.insert(0, {root!r}); from analyses.reading.worker import serve; serve()"
_ERRORS = {"CheckpointError": CheckpointError, "UntrustedCheckpointError": UntrustedCheckpointError}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of one checkpoint and where they came from.

    Parameters
    ----------
    path : Path
        As given.
    format : str
        ``torch-zip``, ``safetensors``, ``sharded ...``.
    sha256 : str
        Hash of the file (of several: see `analyses.reading.folders.Opened.sha256`).
    step : int or None
        Training step, from the pattern, the file name or the file itself.
    tensors : dict of str to Tensor
        Dense, finite, contiguous, at the dtype stored; prefixes of wrappers stripped.
    ignored : dict of str to str
        Keys left out, each with the reason.
    metadata : dict of str to str
        Text stored with the tensors; ``rhoscope`` holds a layout as JSON where one was stored.
    """

    path: Path
    format: str
    sha256: str
    step: int | None
    tensors: dict[str, Tensor]
    ignored: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


class CheckpointReader:
    """Reads checkpoints in one child process that is started when needed and reused.

    Use it as a context manager to read many files; `read_checkpoint` shares one for the whole program.

    Parameters
    ----------
    max_bytes : int
        Largest size on disk of a checkpoint.
    timeout : float
        Seconds one checkpoint may take.

    Raises
    ------
    InputError
        If a limit is not positive.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT):
        if max_bytes <= 0 or timeout <= 0:
            raise InputError(f"max_bytes and timeout: expected positive, got {max_bytes} and {timeout}")
        self.max_bytes, self.timeout = max_bytes, timeout
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child process; the next read starts another."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.stdin.close()
            child.stdout.close()
            child.wait()

    def read(self, path: str | Path, *, step_pattern: str | None = None) -> Checkpoint:
        """Read one checkpoint.

        Parameters
        ----------
        path : str or Path
            A file, an index of shards, or a folder that holds one checkpoint.
        step_pattern : str, optional
            Regular expression whose first group is the step in the file name.

        Returns
        -------
        Checkpoint

        Raises
        ------
        CheckpointError
            If it is missing, truncated, damaged, too large, too slow, not finite or not dense.
        UntrustedCheckpointError
            If it asks to run code or hides its content; nothing was executed.
        """
        path = Path(path)
        named = step_in_name(path.name, step_pattern) if step_pattern else None
        with self._lock:
            try:
                header, tensors = self._ask(path)
            except CheckpointError as error:
                raise type(error)(f"{path}: {error}") from None
            except BaseException:
                self.close()  # an interrupted answer would be taken for the next one
                raise
        # What a file says about itself beats the lone number of a name such as model_23.pt.
        candidates = (
            named,
            step_in_name(path.name) if _NAMED_STEP.search(path.name) else None,
            header["step"],
            _noted_step(header["metadata"]),
            step_in_name(path.name),
            header["epoch"],
        )
        return Checkpoint(
            path=path,
            format=header["format"],
            sha256=header["sha256"],
            step=next((step for step in candidates if step is not None), None),
            tensors=tensors,
            ignored=header["ignored"],
            metadata=header["metadata"],
        )

    # -- the conversation with the child ------------------------------------------------------------
    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            root = str(Path(__file__).resolve().parent.parent)
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-c", _START.format(root=root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=os.environ | threads,
            )
            self._owner = os.getpid()
        return self._child

    def _ask(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        child = self._start()
        pipe = _Pipe(child, time.monotonic() + self.timeout)
        request = {"path": os.path.abspath(path), "max_bytes": self.max_bytes}
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            header = json.loads(pipe.frame(b"H", limit=_HEADER_LIMIT))
            tensors = {}
            for entry in header["tensors"]:
                data = pipe.frame(b"D", exactly=entry["nbytes"])
                tensors[entry["key"]] = _tensor(data, entry["dtype"], entry["shape"])
            pipe.frame(b"F", exactly=0)
        except _Refused as refused:
            raise refused.error from None  # the child lives on
        except _Broken as broken:
            self.close()
            raise CheckpointError(str(broken)) from None
        except OSError:
            self.close()
            raise CheckpointError("the reading process ended; the file is damaged or hostile") from None
        return header, tensors


class _Refused(Exception):
    """The child refused the file in order; it can read the next one."""

    def __init__(self, error: CheckpointError):
        self.error = error


class _Broken(Exception):
    """The child died, took too long, or broke the protocol."""


class _Pipe:
    """Frames from the child, each wait bounded by the deadline."""

    def __init__(self, child: subprocess.Popen[bytes], deadline: float):
        self.child, self.deadline = child, deadline

    def frame(self, kind: bytes, *, exactly: int | None = None, limit: int | None = None) -> bytearray:
        # Payload of the next frame, which must be of this kind; an E frame raises its error.
        head = self._bytes(9)
        length = int.from_bytes(head[1:], "little")
        if head[:1] == b"E" and length <= _HEADER_LIMIT:
            told = json.loads(self._bytes(length))
            raise _Refused(_ERRORS.get(told["error"], CheckpointError)(told["message"]))
        wrong = length != exactly if exactly is not None else length > limit
        if head[:1] != kind or wrong:
            raise _Broken("the reading process answered out of order; the file is damaged or hostile")
        return self._bytes(length)

    def _bytes(self, count: int) -> bytearray:
        data = bytearray(count)
        view, got = memoryview(data), 0
        with selectors.DefaultSelector() as selector:
            selector.register(self.child.stdout, selectors.EVENT_READ)
            while got < count:
                left = self.deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise _Broken("reading it took longer than the time limit; it is too large or hostile")
                read = self.child.stdout.readinto(view[got:])
                if not read:
                    raise _Broken("the reading process ended unexpectedly; the file is damaged or hostile")
                got += read
        return data


def _tensor(data: bytearray, dtype: str, shape: list[int]) -> Tensor:
    import torch  # late: a file that is refused never waits for torch

    kind = {
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "float32": torch.float32,
        "float64": torch.float64,
    }[dtype]
    if not data:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(data, dtype=kind).reshape(shape)


def _noted_step(metadata: dict[str, str]) -> int | None:
    """The step that rhoscope noted when it wrote the file."""
    try:
        step = json.loads(metadata.get(METADATA_KEY, "null"))["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if type(step) is int and step >= 0 else None


_shared = CheckpointReader()
atexit.register(_shared.close)


def read_checkpoint(
    path: str | Path,
    *,
    step_pattern: str | None = None,
    max_bytes: int = MAX_BYTES,
    timeout: float = TIMEOUT,
) -> Checkpoint:
    """Read one checkpoint safely; see `CheckpointReader.read`.

    Parameters
    ----------
    path : str or Path
        A file, an index of shards, or a folder that holds one checkpoint.
    step_pattern : str, optional
        Regular expression whose first group is the step in the file name.
    max_bytes : int
        Largest size on disk.
    timeout : float
        Seconds it may take.

    Returns
    -------
    Checkpoint
    """
    if (max_bytes, timeout) == (MAX_BYTES, TIMEOUT):
        return _shared.read(path, step_pattern=step_pattern)
    with CheckpointReader(max_bytes=max_bytes, timeout=timeout) as reader:
        return reader.read(path, step_pattern=step_pattern)


_NAMED_STEP = re.compile(
    r"(?:global_?step|steps?|iteration|iter|checkpoint|ckpt)[-_=. ]{0,2}([0-9]{1,18})", re.I
)


def step_in_name(name: str, pattern: str | None = None) -> int | None:
    """Training step in a file name.

    Parameters
    ----------
    name : str
        Such as ``step_100.pt``, ``epoch=3-step=1200.ckpt``, ``checkpoint-500``, ``001000.pt``.
    pattern : str, optional
        Regular expression whose first group (or whole match) is the number.

    Returns
    -------
    int or None
        None without a pattern when the name has no number after a word such as step, and not exactly
        one number.

    Raises
    ------
    InputError
        If the pattern is no regular expression, or its group is no number.
    CheckpointError
        If the pattern does not match the name.
    """
    if pattern is not None:
        try:
            found = re.search(pattern, name)
        except re.error as error:
            raise InputError(f"--step-pattern {pattern!r}: not a regular expression ({error})") from error
        if found is None:
            raise CheckpointError(f"{name}: --step-pattern {pattern!r} does not match this name")
        text = found.group(1) if found.re.groups else found.group(0)
        if text is None or not re.fullmatch(r"[0-9]{1,18}", text):
            raise InputError(f"--step-pattern {pattern!r}: matched {text!r} in {name}, expected a number")
        return int(text)
    named = _NAMED_STEP.findall(name)
    if named:
        return int(named[-1])
    stem = re.sub(r"\.(pt|pth|ckpt|bin|safetensors|distcp|index\.json)$", "", name)
    numbers = re.findall(r"[0-9]{1,18}", stem)
    return int(numbers[0]) if len(numbers) == 1 else None
