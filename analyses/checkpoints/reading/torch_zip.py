"""Files of ``torch.save``: a zip archive, stored without compression, around a pickle and raw storages."""

from __future__ import annotations

import itertools
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from analyses.checkpoints.reading.allowlist import TensorRef
from analyses.checkpoints.reading.pickles import MAX_PICKLE_BYTES, Interpreter
from analyses.checkpoints.reading.sources import NUMPY, Content, Source, StoredTensor
from analyses.checkpoints.reading.text import shown
from manifold.errors import CheckpointError, UntrustedCheckpointError

CHECK_BYTES = 1 << 20  # read at once
ENTRY_BYTES = 100  # the least that an entry takes: local and central header with a name
MAX_DIRECTORY_BYTES = 64 << 20  # what is parsed at once, about half a million tensors


@contextmanager
def _zip_damage() -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, ValueError, RuntimeError) as e:
        raise CheckpointError(f"its zip archive is damaged or truncated ({shown(e)})") from e


def _check_directory_size(source: Source) -> None:
    # Before zipfile parses the directory: the end records say how large it claims to be.
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
    if entries > source.size // ENTRY_BYTES + 1 or size > min(source.size, MAX_DIRECTORY_BYTES):
        raise CheckpointError(
            f"its zip archive claims {entries} entries in {size} bytes of directory, more than fit"
        )


def _check_entry(info: zipfile.ZipInfo, source: Source) -> None:
    name = info.orig_filename
    parts = name.split("/")
    drive = name[1:2] == ":" and name[:1].isalpha()  # other colons are times in the file's name
    if "\0" in name or "\\" in name or drive or name.startswith("/") or ".." in parts:
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


def _check_entries(archive: zipfile.ZipFile, source: Source) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        _check_entry(info, source)
        if info.filename in entries:
            raise UntrustedCheckpointError(f"zip entry {shown(info.filename)} is there twice")
        entries[info.filename] = info
    ordered = sorted(entries.values(), key=lambda info: info.header_offset)
    for first, second in itertools.pairwise(ordered):
        if first.header_offset + 30 + first.file_size > second.header_offset:
            raise UntrustedCheckpointError(
                f"zip entries {shown(first.filename)} and {shown(second.filename)} overlap"
            )
    return entries


def open_torch_zip(source: Source, *, check: bool = True) -> Content:
    """Read the directory and the pickle of a torch zip file.

    Parameters
    ----------
    source : Source
    check : bool
        Compare the checksums of all entries, not only of the pickle.

    Returns
    -------
    Content
        Its tree is what was saved, tensors as `TensorRef`.

    Raises
    ------
    CheckpointError
        If the archive or its pickle is damaged, or it is another kind of archive.
    UntrustedCheckpointError
        If it asks to run code, or is packed in a way that torch never does.
    """
    with _zip_damage():
        _check_directory_size(source)
        with zipfile.ZipFile(source.file) as archive:
            _refuse_other_archives(set(archive.namelist()))
            entries = _check_entries(archive, source)
            if check:
                for info in entries.values():
                    _check_numbers(source, info)
            root = _root_folder(set(entries))
            order = archive.read(f"{root}/byteorder") if f"{root}/byteorder" in entries else b"little"
            if order not in (b"little", b"big"):
                raise CheckpointError(f"it has an unknown byte order {shown(order)}")
            if entries[f"{root}/data.pkl"].file_size > MAX_PICKLE_BYTES:
                raise CheckpointError(f"its pickle is larger than {MAX_PICKLE_BYTES} bytes")
            interpreter = Interpreter()
            value = interpreter.run(archive.read(f"{root}/data.pkl"))
    reader = _TorchStorages(source, f"{root}/data/", entries, "<" if order == b"little" else ">")
    return Content("torch-zip", value, {}, reader.tensor, tuple(interpreter.foreign))


def _refuse_other_archives(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    for root in tops:
        if f"{root}/constants.pkl" in names or any(name.startswith(f"{root}/code/") for name in names):
            raise CheckpointError("it is a TorchScript archive; only state dicts are read")
    exported = {"archive_format", "archive_version"} | {f"{root}/archive_format" for root in tops}
    if exported & names or "models" in tops:
        raise CheckpointError("it is a torch.export archive (.pt2); only state dicts are read")


def _root_folder(names: set[str]) -> str:
    roots = {name.rpartition("/")[0] for name in names if name.endswith("/data.pkl") and name.count("/") == 1}
    if len(roots) != 1 or {name.partition("/")[0] for name in names} != roots:
        raise CheckpointError("it is a zip archive but not one that torch.save writes (no single data.pkl)")
    return roots.pop()


def _data_offset(source: Source, info: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin.

    Raises
    ------
    CheckpointError
        If its local header names it otherwise than the directory.
    """
    header = source.read(info.header_offset, 30)
    name, extra = struct.unpack_from("<HH", header, 26)
    there = source.read(info.header_offset + 30, name)
    if header[:4] != b"PK\x03\x04" or there.decode("utf-8" if info.flag_bits & 0x800 else "cp437") != (
        info.orig_filename
    ):
        raise CheckpointError(f"its zip archive is damaged (the header of {shown(info.filename)})")
    return info.header_offset + 30 + name + extra


def _check_numbers(source: Source, info: zipfile.ZipInfo) -> None:
    start, found = _data_offset(source, info), 0
    for at in range(0, info.file_size, CHECK_BYTES):
        found = zlib.crc32(source.read(start + at, min(CHECK_BYTES, info.file_size - at)), found)
    if found != info.CRC:
        raise CheckpointError(f"its zip archive is damaged (the checksum of {shown(info.filename)})")


@dataclass(frozen=True)
class _TorchStorages:
    source: Source
    prefix: str
    entries: dict[str, zipfile.ZipInfo]
    order: str

    def tensor(self, ref: TensorRef) -> StoredTensor:
        # A strided view must lie inside its storage, and the storage must be as large as the pickle says.
        name = self.prefix + ref.storage.key
        if name not in self.entries:
            raise CheckpointError(f"the storage {shown(ref.storage.key)} is missing")
        item = np.dtype(NUMPY[ref.dtype])
        held = self.entries[name].file_size
        unit = 1 if ref.storage.dtype is None else np.dtype(NUMPY[ref.storage.dtype]).itemsize
        if ref.storage.count * unit != held:
            raise CheckpointError(
                f"the storage {shown(ref.storage.key)} has {held} bytes, "
                f"its pickle says {ref.storage.count * unit}"
            )
        empty = 0 in ref.shape
        reach = 0 if empty else 1 + sum((n - 1) * s for n, s in zip(ref.shape, ref.stride, strict=True))
        if (ref.offset + reach) * item.itemsize > held:
            raise CheckpointError(f"a tensor of shape {ref.shape} reaches beyond its storage of {held} bytes")

        def load() -> np.ndarray:
            start = _data_offset(self.source, self.entries[name]) + ref.offset * item.itemsize
            data = self.source.read(start, reach * item.itemsize)
            flat = np.frombuffer(data, dtype=item.newbyteorder(self.order)).astype(item, copy=False)
            strides = tuple(s * item.itemsize for s in ref.stride)
            view = np.lib.stride_tricks.as_strided(flat, ref.shape, strides, writeable=False)
            return np.ascontiguousarray(view)

        return StoredTensor(ref.dtype, ref.shape, load)
