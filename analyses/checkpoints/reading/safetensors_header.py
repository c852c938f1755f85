"""Safetensors files: a JSON header with bounded size, then the numbers without gap or overlap.

The safetensors library would read the whole file to give what is wanted here tensor by tensor, and needs
torch for bfloat16; the tests hold this reader against it.
"""

from __future__ import annotations

import json
import math
import re
import struct
from typing import Any

import numpy as np

from analyses.checkpoints.reading.allowlist import Unread
from analyses.checkpoints.reading.sources import NUMPY, Content, Source, StoredTensor
from analyses.checkpoints.reading.text import shown
from manifold.errors import CheckpointError

MAX_HEADER_BYTES = 100 << 20  # as the safetensors library
DTYPES = {
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
OTHER_DTYPE = re.compile(r"[A-Z][A-Z0-9_]{0,15}")  # of a newer library: left out, its bytes not counted


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise CheckpointError("its safetensors header names a key twice")
    return dict(pairs)


def open_safetensors(source: Source) -> Content:
    """Read a safetensors header: 8 bytes of length, then JSON.

    Parameters
    ----------
    source : Source

    Returns
    -------
    Content

    Raises
    ------
    CheckpointError
        If the header is too large, damaged, or does not describe every byte of the file exactly once.
    """
    (length,) = struct.unpack("<Q", source.read(0, 8))
    if length > MAX_HEADER_BYTES or length + 8 > source.size:
        raise CheckpointError(
            f"its safetensors header claims {length} bytes "
            f"(the file has {source.size}, the limit is {MAX_HEADER_BYTES})"
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
            f"its header describes {data + at} bytes, the file has {source.size} (truncated?)"
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
    if len(shape) > 16:
        raise CheckpointError(f"tensor {shown(key)} has {len(shape)} axes")
    name = DTYPES.get(dtype, dtype)
    if dtype not in DTYPES:
        if not OTHER_DTYPE.fullmatch(dtype) or end < begin:
            raise CheckpointError(f"the header entry of tensor {shown(key)} is malformed")
        return begin, end, name, tuple(shape)
    if end - begin != math.prod(shape) * np.dtype(NUMPY[name]).itemsize:
        raise CheckpointError(
            f"tensor {shown(key)} of shape {tuple(shape)} does not fill its {end - begin} bytes"
        )
    return begin, end, name, tuple(shape)


def _safetensors_tensor(source: Source, data: int, entry: tuple) -> StoredTensor | Unread:
    begin, end, name, shape = entry
    if name not in NUMPY:
        return Unread(f"dtype {name}")

    def load() -> np.ndarray:
        item = np.dtype(NUMPY[name])
        flat = np.frombuffer(source.read(data + begin, end - begin), dtype=item.newbyteorder("<"))
        return flat.astype(item, copy=False).reshape(shape)

    return StoredTensor(name, shape, load)
