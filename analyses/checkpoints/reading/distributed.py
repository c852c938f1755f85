"""Folders of ``torch.distributed.checkpoint``: a ``.metadata`` pickle and files of small torch zips.

The metadata names its own classes; they become `Record` (name and state), never objects. Each chunk of a
tensor is a torch zip of its own inside a ``.distcp`` file and passes the same checks as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyses.checkpoints.reading.allowlist import DTYPES, Global, Record, TensorRef, Unread
from analyses.checkpoints.reading.pickles import Interpreter
from analyses.checkpoints.reading.sources import NUMPY, Content, Source, StoredTensor
from analyses.checkpoints.reading.text import shown
from analyses.checkpoints.reading.torch_zip import open_torch_zip
from analyses.checkpoints.reading.trees import EPOCH_NAMES, STEP_NAMES
from manifold.errors import CheckpointError

_METADATA = "torch.distributed.checkpoint.metadata"
RECORDS = frozenset(
    f"{_METADATA}.{name}"
    for name in (
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    )
) | {
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
}
MAX_CHUNKS = 20_000


@dataclass(frozen=True)
class Piece:
    """Where one chunk lies: a file, and bytes in it."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class DistributedIndex:
    """The ``.metadata`` of a distributed checkpoint: what is stored, and where each chunk lies."""

    entries: dict[str, Record]
    pieces: dict[tuple[str, tuple[int, ...]], Piece]
    foreign: tuple[str, ...] = ()

    @property
    def files(self) -> set[str]:
        """Names of the data files."""
        return {piece.file for piece in self.pieces.values()}


def _fields(record: Any, kind: str) -> Mapping[str, Any]:
    if not isinstance(record, Record) or not record.name.endswith(f".{kind}"):
        raise CheckpointError(f"its .metadata is damaged (expected a {kind})")
    if not isinstance(record.state, dict):
        raise CheckpointError(f"its .metadata is damaged ({kind} without content)")
    return record.state


def _naturals(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > 16 or any(type(n) is not int or n < 0 for n in value):
        raise CheckpointError("its .metadata is damaged (a size that is no tuple of natural numbers)")
    return value


def read_index(source: Source) -> DistributedIndex:
    """Read the ``.metadata`` file of a distributed checkpoint.

    Parameters
    ----------
    source : Source

    Returns
    -------
    DistributedIndex

    Raises
    ------
    CheckpointError
        If it is damaged.
    UntrustedCheckpointError
        If it asks to run code.
    """
    interpreter = Interpreter(RECORDS)
    metadata = _fields(interpreter.run(source.read(0, source.size)), "Metadata")
    entries, stored = metadata.get("state_dict_metadata"), metadata.get("storage_data")
    if not isinstance(entries, dict) or not isinstance(stored, dict) or len(stored) > MAX_CHUNKS:
        raise CheckpointError("its .metadata is damaged (no table of tensors, or too many chunks)")
    pieces = {}
    for index, info in stored.items():
        where, what = _fields(index, "MetadataIndex"), _fields(info, "_StorageInfo")
        offset = where.get("offset")
        match where.get("fqn"), what.get("relative_path"), what.get("offset"), what.get("length"):
            case str(name), str(file), int(begin), int(length) if begin >= 0 and length > 0:
                place = _naturals(offset) if offset is not None else ()
                pieces[name, place] = Piece(file, begin, length)
            case _:
                raise CheckpointError("its .metadata is damaged (a chunk without a place)")
    named = {str(key): entry for key, entry in entries.items()}
    return DistributedIndex(named, pieces, tuple(interpreter.foreign))


def open_distributed(index: DistributedIndex, sources: Mapping[str, Source]) -> Content:
    """The tensors of a distributed checkpoint, chunks put together when they are loaded.

    Parameters
    ----------
    index : DistributedIndex
    sources : mapping of str to Source
        The data files by name.

    Returns
    -------
    Content

    Raises
    ------
    CheckpointError
        If a chunk is missing or sizes disagree.
    """
    tree: dict[str, Any] = {}
    for key, record in index.entries.items():
        if isinstance(record, Record) and record.name.endswith(".TensorStorageMetadata"):
            tree[key] = _tensor(key, record, index, sources)
        elif key in (*STEP_NAMES, *EPOCH_NAMES) and (key, ()) in index.pieces:
            content = _open_piece(index.pieces[key, ()], sources)
            leaf = content.tree
            tree[key] = content.resolve(leaf) if isinstance(leaf, TensorRef) else leaf
    return Content("torch-distributed", tree, foreign=index.foreign)


def _open_piece(piece: Piece, sources: Mapping[str, Source]) -> Content:
    return open_torch_zip(Source.of_bytes(sources[piece.file].read(piece.offset, piece.length)))


def _tensor(
    key: str, record: Record, index: DistributedIndex, sources: Mapping[str, Source]
) -> StoredTensor | Unread:
    state = _fields(record, "TensorStorageMetadata")
    properties = state.get("properties")
    dtype = properties.state[0] if isinstance(properties, Record) and properties.state else None
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else None
    if name not in DTYPES:
        return Unread(f"dtype {shown(name)}")
    shape = _naturals(state.get("size"))
    chunks = state.get("chunks")
    if not isinstance(chunks, list) or not chunks:
        raise CheckpointError(f"tensor {shown(key)} has no chunks")
    places = []
    for chunk in chunks:
        fields = _fields(chunk, "ChunkStorageMetadata")
        offsets, sizes = _naturals(fields.get("offsets")), _naturals(fields.get("sizes"))
        inside = len(offsets) == len(sizes) == len(shape)
        if not inside or any(o + s > n for o, s, n in zip(offsets, sizes, shape, strict=True)):
            raise CheckpointError(f"a chunk of tensor {shown(key)} lies outside its shape {shape}")
        if (key, offsets) not in index.pieces:
            raise CheckpointError(f"a chunk of tensor {shown(key)} is missing")
        places.append((offsets, sizes, index.pieces[key, offsets]))
    return StoredTensor(name, shape, _loader(key, name, shape, places, sources))


def _loader(
    key: str,
    dtype: str,
    shape: tuple[int, ...],
    places: list[tuple[tuple[int, ...], tuple[int, ...], Piece]],
    sources: Mapping[str, Source],
) -> Callable[[], np.ndarray]:
    def chunks() -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
        for offsets, sizes, piece in places:
            content = _open_piece(piece, sources)
            if not isinstance(content.tree, TensorRef):
                raise CheckpointError(f"a chunk of tensor {shown(key)} is no tensor")
            held = content.resolve(content.tree)
            if (held.dtype, held.shape) != (dtype, sizes):
                raise CheckpointError(f"a chunk of tensor {shown(key)} is not what .metadata says")
            yield tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True)), held.load()

    def load() -> np.ndarray:
        whole = np.zeros(shape, NUMPY[dtype])
        covered = np.zeros(shape, bool)
        for region, values in chunks():
            if covered[region].any():
                raise CheckpointError(f"the chunks of tensor {shown(key)} overlap")
            whole[region], covered[region] = values, True
        if not covered.all():
            raise CheckpointError(f"the chunks of tensor {shown(key)} leave a gap")
        return whole

    return load
