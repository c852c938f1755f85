"""One checkpoint in one file, in shards with an index, or in a folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyses.checkpoints.reading.allowlist import TensorRef
from analyses.checkpoints.reading.containers import open_content
from analyses.checkpoints.reading.distributed import open_distributed, read_index
from analyses.checkpoints.reading.sources import Content, SourceFile
from analyses.checkpoints.reading.text import shown
from manifold.errors import CheckpointError, UntrustedCheckpointError

MAX_SHARDS = 1000
INDEX_BYTES = 16 << 20
# What Hugging Face and others call the one checkpoint of a folder, in the order they are tried.
FOLDER_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    ".metadata",
)


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose files are open, and how to read their directories."""

    sources: dict[str, SourceFile]
    content: Callable[..., Content]  # of ``check``: whether to compare the checksums of the numbers

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(source.size for source in self.sources.values())

    def sha256(self) -> str:
        """SHA-256 of the file; of several, the hash of ``<sha256> <name>`` lines sorted by name."""
        digests = {name: source.sha256() for name, source in self.sources.items()}
        if len(digests) == 1:
            return next(iter(digests.values()))
        lines = "".join(f"{digests[name]} {name}\n" for name in sorted(digests))
        return hashlib.sha256(lines.encode()).hexdigest()


@contextmanager
def open_checkpoint(path: Path, max_bytes: int) -> Iterator[Opened]:
    """Open every file of a checkpoint, sizes checked before anything is read.

    Parameters
    ----------
    path : Path
        A file, an index of shards (``*.index.json``), a folder with one of `FOLDER_NAMES`, or a folder
        of torch.distributed.checkpoint.
    max_bytes : int
        Largest total size.

    Yields
    ------
    Opened

    Raises
    ------
    CheckpointError
        If a file is missing or too large, or the folder holds no checkpoint that is known.
    """
    with ExitStack() as stack:
        if os.path.isdir(path):  # says no, not an error, where rights are missing
            path = _inside(path)
        first = stack.enter_context(SourceFile(path, max_bytes))
        if path.name == ".metadata":
            index = read_index(first)
            data = _open_all(stack, path.parent, index.files, max_bytes - first.size)
            yield Opened({path.name: first, **data}, lambda check=True: open_distributed(index, data))
        elif path.name.endswith(".index.json"):
            weights = _read_index(first)
            shards = _open_all(stack, path.parent, set(weights.values()), max_bytes - first.size)
            yield Opened({path.name: first, **shards}, lambda check=True: _merge(weights, shards, check))
        else:
            yield Opened({path.name: first}, lambda check=True: open_content(first, check=check))


def _open_all(stack: ExitStack, folder: Path, names: set[str], max_bytes: int) -> dict[str, SourceFile]:
    for name in names:
        if Path(name).name != name or "\\" in name or name in ("", ".", "..") or "\0" in name:
            raise UntrustedCheckpointError(f"its index points outside its folder: {shown(name)}")
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"its index names {len(names)} files, more than {MAX_SHARDS}")
    sources: dict[str, SourceFile] = {}
    for name in sorted(names):
        try:
            sources[name] = stack.enter_context(SourceFile(folder / name, max_bytes))
        except CheckpointError as error:
            raise type(error)(f"its part {shown(name)}: {error}") from error
        max_bytes -= sources[name].size
    return sources


def _merge(weights: dict[str, str], shards: dict[str, SourceFile], check: bool) -> Content:
    contents = {name: open_content(source, check=check) for name, source in shards.items()}
    tree: dict[str, Any] = {}
    for key, shard in weights.items():
        held = contents[shard].tree
        if not isinstance(held, dict) or key not in held:
            raise CheckpointError(f"its index names {shown(key)}, which {shown(shard)} does not hold")
        tree[key] = _resolved(held[key], contents[shard])
    foreign = tuple(dict.fromkeys(name for content in contents.values() for name in content.foreign))
    return Content(f"sharded {next(iter(contents.values())).format}", tree, foreign=foreign)


def _resolved(leaf: Any, content: Content) -> Any:
    return content.resolve(leaf) if isinstance(leaf, TensorRef) else leaf


def is_checkpoint_folder(folder: Path) -> bool:
    """Whether a folder is one checkpoint (not a collection of them)."""
    return any(os.path.isfile(folder / name) for name in FOLDER_NAMES)


def _inside(folder: Path) -> Path:
    for name in FOLDER_NAMES:
        if os.path.isfile(folder / name):
            return folder / name
    raise CheckpointError(
        f"it is a folder without a checkpoint of a known name ({', '.join(FOLDER_NAMES)}); name a file in it"
    )


def _read_index(source: SourceFile) -> dict[str, str]:
    if source.size > INDEX_BYTES:
        raise CheckpointError(f"the index of shards has {source.size} bytes, more than {INDEX_BYTES}")
    try:
        document = json.loads(source.read(0, source.size).decode("utf-8"))
        items = dict(document["weight_map"])
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise CheckpointError(f"the index of shards is damaged ({type(error).__name__})") from error
    if not items or not all(isinstance(shard, str) for shard in items.values()):
        raise CheckpointError("the index of shards names no file")
    return items
