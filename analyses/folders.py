"""One checkpoint in one file, in shards with an index, or in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from analyses.containers import Content, SourceFile, open_content
from analyses.pickles import shown
from manifold.errors import CheckpointError, UntrustedCheckpointError

MAX_SHARDS = 1000
INDEX_BYTES = 16 << 20
# What Hugging Face and others call the one checkpoint of a folder, in the order they are tried.
FOLDER_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


class Opened:
    """A checkpoint whose files are open: total size, hash, content."""

    def __init__(self, sources: dict[str, SourceFile], index: dict[str, str] | None):
        self.sources, self.index = sources, index

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(source.size for source in self.sources.values())

    def sha256(self) -> str:
        """SHA-256 of the file; of several, the hash of ``<sha256> <name>`` lines sorted by name."""
        digests = {name: source.sha256() for name, source in self.sources.items()}
        if len(digests) == 1 and self.index is None:
            return next(iter(digests.values()))
        lines = "".join(f"{digests[name]} {name}\n" for name in sorted(digests))
        return hashlib.sha256(lines.encode()).hexdigest()

    def content(self) -> Content:
        """The directory of the checkpoint, shards merged."""
        if self.index is None:
            return open_content(next(iter(self.sources.values())))
        contents = {name: open_content(source) for name, source in self.sources.items()}
        tree: dict[str, Any] = {}
        for key, shard in self.index.items():
            held = contents[shard].tree
            if not isinstance(held, dict) or key not in held:
                raise CheckpointError(
                    f"the index names {shown(key)}, which shard {shown(shard)} does not hold"
                )
            tree[key] = held[key]
        return Content(f"sharded {next(iter(contents.values())).format}", tree)


@contextmanager
def open_checkpoint(path: Path, max_bytes: int) -> Iterator[Opened]:
    """Open every file of a checkpoint, sizes checked before anything is read.

    Parameters
    ----------
    path : Path
        A file, an index of shards (``*.index.json``), or a folder with one of `FOLDER_NAMES`.
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
    if path.is_dir():
        path = _inside(path)
    with ExitStack() as stack:
        if path.name.endswith(".index.json"):
            index = _read_index(path)
            sources, left = {}, max_bytes
            for shard in sorted(set(index.values())):
                try:
                    source = stack.enter_context(SourceFile(path.parent / shard, left))
                except CheckpointError as error:
                    raise type(error)(f"shard {shown(shard)}: {error}") from error
                sources[shard] = source
                left -= source.size
        else:
            index, sources = None, {path.name: stack.enter_context(SourceFile(path, max_bytes))}
        yield Opened(sources, index)


def is_checkpoint_folder(folder: Path) -> bool:
    """Whether a folder is one checkpoint (not a collection of them)."""
    return any((folder / name).is_file() for name in FOLDER_NAMES)


def _inside(folder: Path) -> Path:
    for name in FOLDER_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"it is a folder without a checkpoint of a known name ({', '.join(FOLDER_NAMES)}); name a file in it"
    )


def _read_index(path: Path) -> dict[str, str]:
    with SourceFile(path, INDEX_BYTES) as source:
        try:
            document = json.loads(source.read(0, source.size).decode("utf-8"))
            weight_map = document["weight_map"]
            items = list(weight_map.items())
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"the index of shards is damaged ({type(error).__name__})") from error
    if not items or not all(isinstance(shard, str) for _, shard in items):
        raise CheckpointError("the index of shards names no file")
    for _, shard in items:
        if Path(shard).name != shard or "\\" in shard or shard in ("", ".", "..") or "\0" in shard:
            raise UntrustedCheckpointError(f"the index of shards points outside its folder: {shown(shard)}")
    if len({shard for _, shard in items}) > MAX_SHARDS:
        raise CheckpointError(f"the index of shards names more than {MAX_SHARDS} files")
    return dict(items)
