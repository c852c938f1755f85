"""Read anyone's checkpoint as plain tensors, in a separate process that can run nothing from the file.

What is accepted: files of ``torch.save`` (zip format), safetensors, shards of either with an index.
What is kept: dense, finite, floating tensors of the model's state dict; what is left out is told.
There is no ``torch.load`` at all here, hence no switch that could weaken it: the child process
(`analyses.checkpoints.reader_process`) interprets the pickle as data (see
`analyses.checkpoints.reading.pickles`), checks every size before it reads, and sends plain numbers through a
pipe. It has no torch, so it starts in a tenth of a second, and one child reads many files.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.checkpoints.reader_process import HEADER_LIMIT, Broken, Pipe, Refused, start_child
from analyses.checkpoints.reading.statedicts import METADATA_KEY
from analyses.checkpoints.reading.text import path_text, shown
from analyses.checkpoints.step_names import step_in_name, step_word
from manifold.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 1 << 30
TIMEOUT = 60.0
SELECTOR = "::"  # PATH::PLACE, where a file holds several state dicts


@dataclass(frozen=True)
class NonFinite:
    """A tensor whose numbers are not all finite: what it would have been, and how many are not."""

    dtype: str
    shape: tuple[int, ...]
    nan: int
    infinite: int

    def __str__(self) -> str:
        return f"{self.nan:,} NaN and {self.infinite:,} infinite values"


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
        Hash of the file (of several: see `analyses.checkpoints.reading.folders.Opened.sha256`).
    step : int or None
        Training step, from the pattern, the file name or the file itself.
    tensors : dict of str to Tensor
        Dense, finite, contiguous, at the dtype stored; prefixes of wrappers stripped.
    ignored : dict of str to str
        Keys left out, each with the reason.
    metadata : dict of str to str
        Text stored with the tensors; ``rhoscope`` holds a layout as JSON where one was stored.
    non_finite : dict of str to NonFinite
        Tensors with NaN or infinite numbers; whoever needs one calls `require`.
    stubs : tuple of str
        Classes and functions that the file mentions: not imported, their objects read as plain data.
    """

    path: Path
    format: str
    sha256: str
    step: int | None
    tensors: dict[str, Tensor]
    ignored: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    non_finite: dict[str, NonFinite] = field(default_factory=dict)
    stubs: tuple[str, ...] = ()

    def require(self, keys: Iterable[str]) -> None:
        """Refuse a use of tensors that are not finite, or that were left out for another reason.

        Raises
        ------
        CheckpointError
            If one of the keys is such a tensor; unknown keys are no concern of this method.
        """
        for key in keys:
            if key in self.non_finite:
                many = self.non_finite[key]
                raise CheckpointError(
                    f"{path_text(self.path)}: tensor {shown(key)} has NaN or infinite values ({many})"
                )
            if key in self.ignored and key not in self.tensors:
                raise CheckpointError(
                    f"{path_text(self.path)}: tensor {shown(key)} was left out: {self.ignored[key]}"
                )

    @property
    def listing(self) -> list[dict[str, Any]]:
        """Key, shape, dtype of every floating tensor; where not all finite, how many numbers are not."""
        finite = [
            {"key": key, "shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
            for key, t in self.tensors.items()
        ]
        return finite + [
            {"key": key, "shape": list(odd.shape), "dtype": odd.dtype, "finite": False, "nan": odd.nan,
             "infinite": odd.infinite}
            for key, odd in self.non_finite.items()
        ]  # fmt: skip

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of results from this file must know, one sentence each."""
        told = []
        if self.stubs:
            named = ", ".join(self.stubs[:5]) + (f" and {len(self.stubs) - 5} more" * (len(self.stubs) > 5))
            told.append(f"the file mentions {named}: not imported, only its tensors were read")
        if self.non_finite:
            named = ", ".join(f"{shown(key)} ({odd})" for key, odd in list(self.non_finite.items())[:3])
            more = f" and {len(self.non_finite) - 3} more" * (len(self.non_finite) > 3)
            told.append(f"tensors that are not finite were not used: {named}{more}")
        return tuple(told)


@dataclass(frozen=True)
class StoredSteps:
    """What a checkpoint says itself about when it was saved; None where it says nothing."""

    step: int | None
    epoch: int | None


NOTHING_STORED = StoredSteps(None, None)


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
        path, selector = split_selector(path)
        named = step_in_name(path.name, step_pattern) if step_pattern else None
        header, tensors, odd = self._answer(path, selector, look=False)
        stored = _stored(header)
        # What a file says about itself beats its name; a step beats an epoch.
        candidates = (named, stored.step, step_word(path.name), stored.epoch, step_in_name(path.name))
        return Checkpoint(
            path=path,
            format=header["format"],
            sha256=header["sha256"],
            step=next((step for step in candidates if step is not None), None),
            tensors=tensors,
            ignored=header["ignored"],
            metadata=header["metadata"],
            non_finite=odd,
            stubs=tuple(header["stubs"]),
        )

    def stored_steps(self, path: str | Path) -> StoredSteps:
        """When a checkpoint was saved by its own account, without reading its numbers.

        Parameters
        ----------
        path : str or Path

        Returns
        -------
        StoredSteps

        Raises
        ------
        CheckpointError
            As `read`.
        """
        path, selector = split_selector(path)
        return _stored(self._answer(path, selector, look=True)[0])

    def _answer(self, path: Path, selector: str | None, *, look: bool) -> tuple[dict, dict, dict]:
        with self._lock:
            try:
                return self._ask(path, selector, look)
            except CheckpointError as error:
                place = f"{SELECTOR}{selector}" if selector else ""
                message = str(error).replace(f"FILE{SELECTOR}", f"{path_text(path)}{SELECTOR}")
                raise type(error)(f"{path_text(path)}{place}: {message}") from None
            except BaseException:
                self.close()  # an interrupted answer would be taken for the next one
                raise

    # -- the conversation with the child ------------------------------------------------------------
    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            self._child, self._owner = start_child(), os.getpid()
        return self._child

    def _ask(
        self, path: Path, selector: str | None, look: bool
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, NonFinite]]:
        child = self._start()
        pipe = Pipe(child, time.monotonic() + self.timeout)
        place = os.fsencode(os.path.abspath(path)).hex()
        request = {"path": place, "max_bytes": self.max_bytes, "selector": selector, "look": look}
        tensors: dict[str, Tensor] = {}
        odd: dict[str, NonFinite] = {}
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            header = json.loads(pipe.frame(b"H", limit=HEADER_LIMIT))
            for entry in () if look else header["tensors"]:
                kind, data = pipe.either(b"D", b"N", exactly=entry["nbytes"])
                if kind == b"D":
                    tensors[entry["key"]] = _tensor(data, entry["dtype"], entry["shape"])
                else:
                    odd[entry["key"]] = NonFinite(entry["dtype"], tuple(entry["shape"]), **json.loads(data))
            pipe.frame(b"F", exactly=0)
        except Refused as refused:
            raise refused.error from None  # the child lives on
        except Broken as broken:
            self.close()
            raise CheckpointError(str(broken)) from None
        except OSError:
            self.close()
            raise CheckpointError("the reading process ended; the file is damaged or hostile") from None
        return header, tensors, odd


def split_selector(path: str | Path) -> tuple[Path, str | None]:
    """``PATH::PLACE`` as path and place; a path that exists as it is has no place.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    tuple of (Path, str or None)
    """
    text = os.fspath(path)
    if os.path.lexists(text):
        return Path(path), None
    cuts = [found.start() for found in re.finditer(SELECTOR, text)]
    cuts = [cut for cut in cuts if 0 < cut < len(text) - len(SELECTOR)]
    cut = next((cut for cut in cuts if os.path.lexists(text[:cut])), cuts[0] if cuts else None)
    return (Path(path), None) if cut is None else (Path(text[:cut]), text[cut + len(SELECTOR) :])


def at_place(path: Path, selector: str | None) -> Path:
    """The path that `split_selector` takes apart again."""
    return path if selector is None else Path(f"{path}{SELECTOR}{selector}")


def _stored(header: dict[str, Any]) -> StoredSteps:
    step = header["step"] if header["step"] is not None else _noted_step(header["metadata"])
    return StoredSteps(step, header["epoch"])


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
