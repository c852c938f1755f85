"""Pieces of hostile and broken checkpoints: containers around any bytes, edits of honest files."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as save_safetensors

Writer = Callable[[Path], None]


def text(value: str) -> bytes:
    """Opcode that pushes a string."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def touch(marker: Path) -> str:
    return f"touch {marker}"


def live_pickles(marker: Path) -> dict[str, bytes]:
    """Pickles that create the marker when Python's own unpickler reads them."""
    command = touch(marker)
    python = f"open({str(marker)!r}, 'w').close()"
    call = text(command) + b"\x85R."
    return {
        "reduce": b"\x80\x02cposix\nsystem\n" + call,
        "reduce_protocol_0": b"cposix\nsystem\n(S" + repr(command).encode() + b"\ntR.",
        "stack_global": b"\x80\x04" + text("posix") + text("system") + b"\x93" + call,
        "memo_hidden_names": b"\x80\x04"
        + text("system")
        + b"\x94"
        + text("posix")
        + b"\x94(h\x01h\x00\x93"
        + text(command)
        + b"\x85R1"
        + b"}.",
        "inst": b"\x80\x02(" + text(command) + b"iposix\nsystem\n.",
        "obj": b"\x80\x02(cposix\nsystem\n" + text(command) + b"o.",
        "eval": b"\x80\x02c__builtin__\neval\n" + text(python) + b"\x85R.",
        "exec": b"\x80\x02c__builtin__\nexec\n" + text(python) + b"\x85R.",
        "getattr_chain": b"\x80\x02c__builtin__\ngetattr\nc__builtin__\n__import__\n"
        + text("os")
        + b"\x85R"
        + text("system")
        + b"\x86R"
        + call,
        "partial": b"\x80\x02cfunctools\npartial\ncposix\nsystem\n" + text(command) + b"\x86R)R.",
        "map_list": b"\x80\x02c__builtin__\nlist\nc__builtin__\nmap\ncposix\nsystem\n("
        + text(command)
        + b"l\x86R\x85R.",
        "among_tensors": b"\x80\x02}("
        + text("w")
        + b"K\x01"
        + text("x")
        + b"cposix\nsystem\n"
        + text(command)
        + b"\x85Ru.",
        "before_damage": b"\x80\x02cposix\nsystem\n" + text(command) + b"\x85R\xff",
        "through_rebuild": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nctorch\nTensor\n"
        + text(command)
        + b"\x85NtR.",
        "setstate": b"\x80\x02c__builtin__\neval\n"
        + text(f"type('X', (), {{'__setstate__': lambda s, x: {python}}})")
        + b"\x85R)\x81}b.",
        "runpy": b"\x80\x02crunpy\n_run_code\n" + text(python) + b"}\x86R.",
    }  # fmt: skip


def torch_zip(
    pickled: bytes, storages: dict[str, bytes] | None = None, *, root: str = "archive", **extra: bytes
) -> bytes:
    """A zip as torch.save writes it, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        archive.writestr(f"{root}/byteorder", b"little")
        for key, data in (storages or {}).items():
            archive.writestr(f"{root}/data/{key}", data)
        archive.writestr(f"{root}/version", b"3\n")
        for name, data in extra.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tensor_pickle(
    shape: tuple[int, ...] = (2,),
    stride: tuple[int, ...] = (1,),
    *,
    offset: int = 0,
    count: int = 2,
    kind: str = "FloatStorage",
    key: str = "0",
) -> bytes:
    """Pickle of ``{"w": tensor}`` with any claim about its storage."""

    def number(value: int) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    tensor = storage + number(count) + b"tQ" + number(offset) + numbers(shape) + numbers(stride)
    tensor += b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + tensor + b"tRs."


def among(pickled: bytes) -> bytes:
    """Any pickle as the value ``x`` of a dict beside an honest tensor ``w`` in storage 0."""
    return b"\x80\x02}" + text("x") + pickled[2:-1] + b"s" + text("w") + tensor_pickle()[9:-2] + b"s."


def stub_laughs() -> bytes:
    """Objects of a foreign class that hold one another ten times, 30 deep; the first is in the memo."""
    data = b""
    for level in range(30):
        items = b"".join(text(f"k{i}") + b"h" + bytes([level]) for i in range(10))
        data += b"0cmy\nC\n)R}(" + items + b"ubq" + bytes([level + 1])
    return data + b"."


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def header_file(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with any header (an object for JSON, or bytes)."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape: list, begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HONEST_ZIP = saved({"w_a": torch.arange(35.0).reshape(5, 7), "w_c": torch.ones(5, 7)})
HONEST_SAFETENSORS = save_safetensors({"w_a": torch.arange(35.0).reshape(5, 7), "w_c": torch.ones(5, 7)})


def edited_zip(edit: Callable[[bytearray], None], source: bytes | None = None) -> bytes:
    data = bytearray(HONEST_ZIP if source is None else source)
    edit(data)
    return bytes(data)


def flip(data: bytearray, needle: bytes, by: int = 0) -> None:
    data[data.index(needle) + by] ^= 0xFF


def directory_field(data: bytearray, offset: int, value: bytes) -> None:
    """Change a field of the second entry of the central directory."""
    first = data.index(b"PK\x01\x02")
    at = data.index(b"PK\x01\x02", first + 4) + offset
    data[at : at + len(value)] = value


def write(data: bytearray, *, at: int, value: bytes) -> None:
    data[at : at + len(value)] = value


def named_entry(name: str) -> bytes:
    return torch_zip(tensor_pickle(), {"0": bytes(8)}, **{name: b"x"})


def nul_name() -> bytes:
    return named_entry("archive/aXb").replace(b"archive/aXb", b"archive/a\0b")


def twice() -> bytes:
    data = named_entry("archive/datb.pkl")
    return data.replace(b"archive/datb.pkl", b"archive/data.pkl")


def compressed(size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle((size // 4,), count=size // 4))
        with archive.open("archive/data/0", "w") as member:
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))
    return buffer.getvalue()


def overlapping() -> bytes:
    data = bytearray(HONEST_ZIP)
    first = data.index(b"PK\x01\x02")
    directory_field(data, 42, bytes(data[first + 42 : first + 46]))
    return bytes(data)


def many_entries(count: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i in range(count):
            archive.writestr(f"archive/data/{i}", b"")
    return buffer.getvalue()


def symlink_entry() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", tensor_pickle())
        link = zipfile.ZipInfo("archive/data/0")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, b"/etc/hos")
    return buffer.getvalue()


def laughs() -> bytes:
    """A dictionary with 10^30 leaves in a few hundred bytes."""
    data = b"\x80\x02}" + text("x") + b"K\x01sq\x00"
    for level in range(30):
        items = b"".join(text(f"k{i}") + b"h" + bytes([level]) for i in range(10))
        data += b"}(" + items + b"uq" + bytes([level + 1])
    return data + b"."


def narrow_laughs() -> bytes:
    """As `laughs`, but within the depth that is looked at: 60^6 leaves."""
    data = b"\x80\x02}" + text("x") + b"K\x01sq\x00"
    for level in range(6):
        items = b"".join(text(f"k{i}") + b"h" + bytes([level]) for i in range(60))
        data += b"}(" + items + b"uq" + bytes([level + 1])
    return data + b"."


def flood() -> bytes:
    """Integer keys that all have the same hash."""
    keys = b"".join(pickle.dumps(i * (2**61 - 1), protocol=2)[2:-1] + b"N" for i in range(1, 20_000))
    return b"\x80\x02}(" + keys + b"u."


def sparse_bad_indices() -> bytes:
    good = torch.sparse_coo_tensor(torch.tensor([[0, 1]]), torch.ones(2), (2,))
    return saved({"w": good}).replace(struct.pack("<qq", 0, 1), struct.pack("<qq", 0, 1 << 40))


def script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 4)


def parent_keys() -> bytes:
    return saved({"module.w": torch.ones(2, 2), "w": torch.ones(2, 2)})


def bf16_nan() -> torch.Tensor:
    return torch.tensor([1.0, float("nan")]).bfloat16()


def bytes_writer(data: bytes | Callable[[], bytes]) -> Writer:
    return lambda path: path.write_bytes(data() if callable(data) else data) and None


def folder_writer(files: dict[str, bytes]) -> Writer:
    def write(path: Path) -> None:
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)

    return write


def numpy_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.ones(3))
    return buffer.getvalue()


def legacy() -> bytes:
    buffer = io.BytesIO()
    torch.save(OrderedDict(w=torch.ones(3)), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def giant(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(8 << 30)


def save_distributed(path: Path, state: dict) -> None:

    import torch.distributed.checkpoint as distributed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributed.save(state, checkpoint_id=str(path), no_dist=True)


def distributed(path: Path, old: bytes, new: bytes) -> None:
    save_distributed(path, {"model": {"w": torch.ones(3, 3)}})
    metadata = (path / ".metadata").read_bytes()
    assert old in metadata
    assert len(old) == len(new)
    (path / ".metadata").write_bytes(metadata.replace(old, new))


def cut_distributed(path: Path) -> None:
    save_distributed(path, {"model": {"w": torch.ones(3, 3)}})
    data = path / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-300])


def distributed_without_data(path: Path) -> None:
    save_distributed(path, {"model": {"w": torch.ones(3, 3)}})
    (path / "__0_0.distcp").unlink()
