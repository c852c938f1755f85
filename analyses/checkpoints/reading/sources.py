"""Open files and the dense tensors that they say they hold; neither torch nor pickle in sight."""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from manifold.errors import CheckpointError

# numpy has no bfloat16: its bytes travel as uint16 and are given back their name by the reader.
_NATIVE = ("float16", "float32", "float64", "bool", "complex64", "complex128")
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMPY = {name: name for name in (*_NATIVE, *_INTEGERS)} | {"bfloat16": "uint16"}
FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True)
class StoredTensor:
    """A dense tensor that a file says it holds; `load` brings its numbers."""

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense, contiguous tensor."""
        return math.prod(self.shape) * np.dtype(NUMPY[self.dtype]).itemsize


@dataclass(frozen=True)
class Content:
    """What a container holds.

    Parameters
    ----------
    format : str
    tree : Any
        Nested containers and records whose leaves are tensors: `StoredTensor`, or what ``resolve`` turns
        into one.
    metadata : dict of str to str
        Text stored with it.
    resolve : callable
        A leaf as a `StoredTensor`, checked against the file.
    foreign : tuple of str
        Classes and functions that the file mentions and that stayed inert.
    """

    format: str
    tree: Any
    metadata: dict[str, str] = field(default_factory=dict)
    resolve: Callable[[Any], StoredTensor] = lambda leaf: leaf
    foreign: tuple[str, ...] = ()


class Source:
    """Bytes to read from: an open file or memory.

    Parameters
    ----------
    file : binary file object
    size : int
        Bytes in it.
    """

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size

    @classmethod
    def of_bytes(cls, data: bytes) -> Source:
        """A source over bytes in memory."""
        return cls(io.BytesIO(data), len(data))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, start: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``start``.

        Parameters
        ----------
        start, count : int

        Returns
        -------
        bytes

        Raises
        ------
        CheckpointError
            If the source ends before.
        """
        self.file.seek(start)
        data = self.file.read(count)
        if len(data) != count:
            raise CheckpointError(f"it is truncated: {count} bytes wanted at {start}, {len(data)} there")
        return data

    def sha256(self) -> str:
        """SHA-256 of everything, in hexadecimal."""
        self.file.seek(0)
        return hashlib.file_digest(self.file, "sha256").hexdigest()


class SourceFile(Source):
    """A regular file, opened once for reading: everything (hash included) comes from the same handle.

    Parameters
    ----------
    path : Path
    max_bytes : int
        Refuse a larger file before reading it.

    Raises
    ------
    CheckpointError
        If it is missing, unreadable, no regular file, empty or too large.
    """

    def __init__(self, path: Path, max_bytes: int):
        try:
            # A pipe or a device would block or never end: open without waiting, then look at the type.
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except FileNotFoundError as error:
            raise CheckpointError("there is no such file") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"it cannot be opened ({getattr(error, 'strerror', error)})") from error
        status = os.fstat(handle)
        problem = ""
        if not stat.S_ISREG(status.st_mode):
            problem = "it is no regular file"
        elif status.st_size > max_bytes:
            problem = f"it has {status.st_size} bytes, more than the limit of {max_bytes} (--max-bytes)"
        elif status.st_size == 0:
            problem = "the file is empty"
        if problem:
            os.close(handle)
            raise CheckpointError(problem)
        super().__init__(os.fdopen(handle, "rb"), status.st_size)
