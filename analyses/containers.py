"""The containers of checkpoints, torch zip and safetensors, checked before anything is believed.

Both readers look only at the directory of a file first: which tensors it says it holds, of which dtype
and shape, and at which bytes. Numbers are read later, tensor by tensor. Neither imports torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analyses.pickles import Interpreter, TensorRef, named_globals, shown
from manifold.errors import CheckpointError, UntrustedCheckpointError

MAX_ENTRIES = 50_000
MAX_DIRECTORY_BYTES = 16 << 20
MAX_HEADER_BYTES = 16 << 20
SPARE_BYTES = 64 << 20

# numpy has no bfloat16: its bytes travel as uint16 and are given back their name by the reader.
NUMPY = {
    name: name
    for name in "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split()
} | {"bfloat16": "uint16", "complex64": "complex64", "complex128": "complex128"}
FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"})
SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


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
    """What a container holds: its format, a tree of dicts with `StoredTensor` leaves, text metadata."""

    format: str
    tree: Any
    metadata: dict[str, str] = field(default_factory=dict)


class SourceFile:
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
        self.path = path
        try:
            # A pipe or a device would block or never end: open without waiting, then look at the type.
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except FileNotFoundError as error:
            raise CheckpointError("there is no such file") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"it cannot be opened ({getattr(error, 'strerror', error)})") from error
        self.file = os.fdopen(handle, "rb")
        status = os.fstat(handle)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.file.close()
            raise CheckpointError("it is no regular file")
        if self.size > max_bytes:
            self.file.close()
            raise CheckpointError(
                f"it has {self.size} bytes, more than the limit of {max_bytes}; raise --max-bytes if you trust it"
            )
        if self.size == 0:
            self.file.close()
            raise CheckpointError("the file is empty")

    def __enter__(self) -> SourceFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, start: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``start``."""
        self.file.seek(start)
        data = self.file.read(count)
        if len(data) != count:
            raise CheckpointError(f"it is truncated: {count} bytes wanted at {start}, {len(data)} there")
        return data

    def sha256(self) -> str:
        """SHA-256 of the whole file, in hexadecimal."""
        self.file.seek(0)
        return hashlib.file_digest(self.file, "sha256").hexdigest()


def open_content(source: SourceFile, *, records: frozenset[str] = frozenset()) -> Content:
    """Recognise a container by its first bytes and read its directory.

    Parameters
    ----------
    source : SourceFile
    records : frozenset of str
        Further class names allowed in a pickle (see `analyses.pickles.Interpreter`).

    Returns
    -------
    Content

    Raises
    ------
    CheckpointError
        If it is neither a torch zip nor a safetensors file, or is damaged.
    UntrustedCheckpointError
        If it asks to run code.
    """
    begin = source.read(0, min(source.size, 16))
    if begin[:4] == b"PK\x03\x04":
        return _open_torch_zip(source, records)
    if begin[:1] == b"\x80" or (begin[:1] in b"(c}]" and begin[8:9] != b"{"):
        raise _bare_pickle(source)
    if begin[8:9] == b"{":
        return _open_safetensors(source)
    kinds = {b"\x89HDF": "HDF5", b"GGUF": "GGUF", b"\x93NUM": "numpy .npy", b"\x1f\x8b": "gzip"}
    kind = next((name for start, name in kinds.items() if begin.startswith(start)), "an unknown")
    raise CheckpointError(f"it is {kind} file; expected a file of torch.save (zip) or safetensors")


def _bare_pickle(source: SourceFile) -> CheckpointError:
    """The refusal of a pickle outside a zip: old torch files and files that were never torch's."""
    data = source.read(0, min(source.size, 1 << 20))
    names = []
    for start in _pickle_starts(data):
        for name in named_globals(data[start:]):
            try:
                Interpreter().run(b"c" + name.replace(".", "\n", 1).encode() + b"\n.")
            except UntrustedCheckpointError:
                names.append(shown(name))
            except CheckpointError:
                pass
    if names:
        return UntrustedCheckpointError(
            f"it is a bare pickle that wants to import {', '.join(dict.fromkeys(names[:5]))}; nothing was executed"
        )
    return CheckpointError(
        "it is a bare pickle, no zip (torch before 1.6 wrote those); load it where you trust it and "
        "save it again with torch.save(model.state_dict(), path) or safetensors"
    )


def _pickle_starts(data: bytes) -> list[int]:
    """Where pickles begin in a legacy torch file: at 0 and after each STOP followed by a PROTO."""
    starts, at = [0], data.find(b".\x80", 0)
    while at >= 0 and len(starts) < 8:
        starts.append(at + 1)
        at = data.find(b".\x80", at + 1)
    return starts


# -- torch zip -------------------------------------------------------------------------------------


@contextmanager
def _zip_damage():
    try:
        yield
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, ValueError, RuntimeError) as e:
        raise CheckpointError(f"its zip archive is damaged or truncated ({shown(e)})") from e


def _check_directory_size(source: SourceFile) -> None:
    """Bound the zip directory before parsing it: the end records say how large it claims to be."""
    # torch writes the end record last, without comment, and its 64-bit twin (56 bytes, then a locator of
    # 20) right before; anything else would let two parsers see two different archives.
    tail = source.read(max(0, source.size - 98), min(source.size, 98))
    if len(tail) < 22 or tail[-22:-18] != b"PK\x05\x06":
        raise CheckpointError("its zip archive is truncated or has something after its end record")
    entries, size = struct.unpack_from("<HI", tail, len(tail) - 12)
    if len(tail) == 98 and tail[56:60] == b"PK\x06\x07":
        if tail[:4] != b"PK\x06\x06":
            raise CheckpointError("its zip archive is damaged (64-bit end record)")
        entries, size = struct.unpack_from("<QQ", tail, 32)
    if entries > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise CheckpointError(f"its zip archive claims {entries} entries, more than {MAX_ENTRIES}")


def _check_entry(info: zipfile.ZipInfo, source: SourceFile) -> None:
    name = info.orig_filename
    parts = name.split("/")
    if "\0" in name or "\\" in name or ":" in name or name.startswith("/") or ".." in parts:
        raise UntrustedCheckpointError(f"its zip archive has an entry with the unsafe name {shown(name)}")
    if info.flag_bits & 0x1:
        raise CheckpointError(f"zip entry {shown(name)} is encrypted")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise UntrustedCheckpointError(
            f"zip entry {shown(name)} is compressed ({info.compress_size} to {info.file_size} bytes); "
            "torch.save never compresses"
        )
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UntrustedCheckpointError(f"zip entry {shown(name)} is no plain file")
    if info.header_offset + info.file_size > source.size:
        raise CheckpointError(f"zip entry {shown(name)} reaches beyond the end of the file")


def _check_entries(archive: zipfile.ZipFile, source: SourceFile) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    if len(archive.infolist()) > MAX_ENTRIES:
        raise CheckpointError(f"its zip archive has more than {MAX_ENTRIES} entries")
    for info in archive.infolist():
        _check_entry(info, source)
        if info.filename in entries:
            raise UntrustedCheckpointError(f"zip entry {shown(info.filename)} is there twice")
        entries[info.filename] = info
    ordered = sorted(entries.values(), key=lambda info: info.header_offset)
    for first, second in zip(ordered, ordered[1:], strict=False):
        if first.header_offset + 30 + first.file_size > second.header_offset:
            raise UntrustedCheckpointError(
                f"zip entries {shown(first.filename)} and {shown(second.filename)} overlap"
            )
    for info in entries.values():  # reading to the end is what compares the CRC
        with archive.open(info) as member:
            while member.read(1 << 20):
                pass
    return entries


def _open_torch_zip(source: SourceFile, records: frozenset[str]) -> Content:
    with _zip_damage():
        _check_directory_size(source)
        with zipfile.ZipFile(source.file) as archive:
            entries = _check_entries(archive, source)
            root = _root_folder(entries)
            order = archive.read(f"{root}/byteorder") if f"{root}/byteorder" in entries else b"little"
            if order not in (b"little", b"big"):
                raise CheckpointError(f"it has an unknown byte order {shown(order)}")
            if entries[f"{root}/data.pkl"].file_size > (64 << 20):
                raise CheckpointError("its pickle is larger than 64 MiB")
            value = Interpreter(records).run(archive.read(f"{root}/data.pkl"))
    offsets = {name: _data_offset(source, info) for name, info in entries.items()}
    reader = _TorchStorages(source, f"{root}/data/", entries, offsets, "<" if order == b"little" else ">")
    return Content("torch-zip", _replace_tensors(value, reader), {})


def _root_folder(entries: dict[str, zipfile.ZipInfo]) -> str:
    names = set(entries)
    roots = [n.rpartition("/")[0] for n in names if n.endswith("/data.pkl") and n.count("/") == 1]
    tops = {name.partition("/")[0] for name in names}
    for root in tops:
        if f"{root}/constants.pkl" in names or any(n.startswith(f"{root}/code/") for n in names):
            raise CheckpointError("it is a TorchScript archive; only state dicts are read")
        if f"{root}/archive_format" in names or f"{root}/archive_version" in names:
            raise CheckpointError("it is a torch.export archive (.pt2); only state dicts are read")
    if {"archive_format", "archive_version"} & names or any(n.startswith("models/") for n in names):
        raise CheckpointError("it is a torch.export archive (.pt2); only state dicts are read")
    if len(roots) != 1 or tops != set(roots):
        raise CheckpointError("it is a zip archive but not one that torch.save writes (no single data.pkl)")
    return roots[0]


def _data_offset(source: SourceFile, info: zipfile.ZipInfo) -> int:
    name, extra = struct.unpack_from("<HH", source.read(info.header_offset, 30), 26)
    return info.header_offset + 30 + name + extra


@dataclass(frozen=True)
class _TorchStorages:
    source: SourceFile
    prefix: str
    entries: dict[str, zipfile.ZipInfo]
    offsets: dict[str, int]
    order: str

    def tensor(self, ref: TensorRef) -> StoredTensor:
        """Check that a strided view lies inside its storage, and describe it."""
        name = self.prefix + ref.storage.key
        if name not in self.entries:
            raise CheckpointError(f"the storage {shown(ref.storage.key)} is missing")
        item = np.dtype(NUMPY[ref.dtype])
        held = self.entries[name].file_size
        unit = 1 if ref.storage.dtype is None else np.dtype(NUMPY[ref.storage.dtype]).itemsize
        if ref.storage.count * unit != held:
            raise CheckpointError(
                f"the storage {shown(ref.storage.key)} has {held} bytes, its pickle says {ref.storage.count * unit}"
            )
        empty = 0 in ref.shape
        reach = 0 if empty else 1 + sum((n - 1) * s for n, s in zip(ref.shape, ref.stride, strict=True))
        if (ref.offset + reach) * item.itemsize > held:
            raise CheckpointError(f"a tensor of shape {ref.shape} reaches beyond its storage of {held} bytes")

        def load() -> np.ndarray:
            start = self.offsets[name] + ref.offset * item.itemsize
            data = self.source.read(start, reach * item.itemsize)
            flat = np.frombuffer(data, dtype=item.newbyteorder(self.order)).astype(item, copy=False)
            strides = tuple(s * item.itemsize for s in ref.stride)
            view = np.lib.stride_tricks.as_strided(flat, ref.shape, strides, writeable=False)
            return np.ascontiguousarray(view)

        return StoredTensor(ref.dtype, ref.shape, load)


def _replace_tensors(value: Any, storages: _TorchStorages) -> Any:
    """The dicts of a pickle with their tensors described; other objects are kept as they are.

    Every dict is visited once, however often it is referred to: a small pickle may describe a tree with
    more leaves than atoms.
    """
    if isinstance(value, TensorRef):
        return storages.tensor(value)
    copies: dict[int, dict[Any, Any]] = {}
    waiting = [value] if isinstance(value, dict) else []
    while waiting:
        old = waiting.pop()
        if id(old) not in copies:
            copies[id(old)] = {}
            waiting += [item for item in old.values() if isinstance(item, dict)]
            copies[id(old)].update(old)
    for copy in copies.values():
        for key, item in copy.items():
            if isinstance(item, dict):
                copy[key] = copies[id(item)]
            elif isinstance(item, TensorRef):
                copy[key] = storages.tensor(item)
    return copies.get(id(value), value)


# -- safetensors -----------------------------------------------------------------------------------


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise CheckpointError("its safetensors header names a key twice")
    return dict(pairs)


def _open_safetensors(source: SourceFile) -> Content:
    """Read a safetensors header: 8 bytes of length, JSON, then the numbers without gap or overlap."""
    (length,) = struct.unpack("<Q", source.read(0, 8))
    if length > MAX_HEADER_BYTES or length + 8 > source.size:
        raise CheckpointError(
            f"its safetensors header claims {length} bytes (the file has {source.size}, the limit is {MAX_HEADER_BYTES})"
        )
    try:
        header = json.loads(source.read(8, length).decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its safetensors header is damaged ({type(error).__name__})") from error
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(item, str) for item in metadata.values()):
        raise CheckpointError("its safetensors header is no table of tensors and text")
    data = 8 + length
    entries = [(_safetensors_entry(key, entry), key) for key, entry in header.items()]
    at = 0
    for (begin, end, _, _), key in sorted(entries, key=lambda entry: entry[0][:2]):
        if begin != at:
            raise CheckpointError(f"the bytes of tensor {shown(key)} overlap another's or leave a gap")
        at = end
    if data + at != source.size:
        raise CheckpointError(
            f"its safetensors header describes {data + at} bytes, the file has {source.size} (truncated?)"
        )
    tree = {key: _safetensors_tensor(source, data, entry) for entry, key in entries}
    return Content("safetensors", tree, metadata)


def _safetensors_entry(key: str, entry: Any) -> tuple[int, int, str, tuple[int, ...]]:
    def naturals(value: Any) -> bool:
        return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)

    match entry:
        case {"dtype": str(dtype), "shape": shape, "data_offsets": [begin, end]} if naturals(
            shape
        ) and naturals([begin, end]):
            pass
        case _:
            raise CheckpointError(f"the header entry of tensor {shown(key)} is malformed")
    if dtype not in SAFETENSORS_DTYPES:
        raise CheckpointError(f"tensor {shown(key)} has the dtype {shown(dtype)}, which is not read")
    if len(shape) > 16:
        raise CheckpointError(f"tensor {shown(key)} has {len(shape)} axes")
    name = SAFETENSORS_DTYPES[dtype]
    if end - begin != math.prod(shape) * np.dtype(NUMPY[name]).itemsize:
        raise CheckpointError(
            f"tensor {shown(key)} of shape {tuple(shape)} does not fill its {end - begin} bytes"
        )
    return begin, end, name, tuple(shape)


def _safetensors_tensor(source: SourceFile, data: int, entry: tuple) -> StoredTensor:
    begin, end, name, shape = entry

    def load() -> np.ndarray:
        item = np.dtype(NUMPY[name])
        flat = np.frombuffer(source.read(data + begin, end - begin), dtype=item.newbyteorder("<"))
        return flat.astype(item, copy=False).reshape(shape)

    return StoredTensor(name, shape, load)
