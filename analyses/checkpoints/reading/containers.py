"""Recognise a container by its first bytes: torch zip or safetensors, everything else is refused.

Both readers look only at the directory of a file first: which tensors it says it holds, of which dtype
and shape, and at which bytes. Numbers are read later, tensor by tensor. Neither imports torch.
"""

from __future__ import annotations

from typing import NoReturn

from analyses.checkpoints.reading.allowlist import canonical, is_known
from analyses.checkpoints.reading.pickles import named_globals, wanted
from analyses.checkpoints.reading.safetensors_header import open_safetensors
from analyses.checkpoints.reading.sources import Content, Source
from analyses.checkpoints.reading.torch_zip import open_torch_zip
from manifold.errors import CheckpointError, UntrustedCheckpointError


def open_content(source: Source, *, check: bool = True) -> Content:
    """Recognise a container by its first bytes and read its directory.

    Parameters
    ----------
    source : Source
    check : bool
        Compare the checksums of the numbers too, which means to read them all.

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
        return open_torch_zip(source, check=check)
    if begin[4:9] == b"\0\0\0\0{":  # eight bytes of header length, then JSON
        return open_safetensors(source)
    if begin[:1] == b"\x80" or begin[:1] in b"(c}]":
        _refuse_bare_pickle(source)
    kinds = {b"\x89HDF": "HDF5", b"GGUF": "GGUF", b"\x93NUM": "numpy .npy", b"\x1f\x8b": "gzip"}
    kind = next((name for start, name in kinds.items() if begin.startswith(start)), "an unknown")
    raise CheckpointError(f"it is {kind} file; expected a file of torch.save (zip) or safetensors")


def _refuse_bare_pickle(source: Source) -> NoReturn:
    # Pickles outside a zip: torch before 1.6, and files that were never torch's.
    data = source.read(0, min(source.size, 1 << 20))
    found = (canonical(name) for start in _pickle_starts(data) for name in named_globals(data[start:]))
    names = list(dict.fromkeys(name for name in found if not is_known(name)))
    if names:
        raise UntrustedCheckpointError(f"it is a bare pickle, no zip: {wanted(names)}")
    raise CheckpointError(
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
