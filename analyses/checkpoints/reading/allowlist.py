"""What a checkpoint's pickle may mention: names that mean something here, and plain records for all others.

A name is never imported. It is one of three: *known* (torch's own ways to write tensors and containers),
*foreign* (any class or function: its instances become inert `Record` objects, and the reader says so), or
*unsafe* (what starts programs, opens files or evaluates text: no honest checkpoint needs it, so a file that
mentions it is refused, although mentioning it could do nothing here).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analyses.checkpoints.reading.text import shown

STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
DTYPES = frozenset(STORAGES.values()) | {"uint16", "uint32", "uint64"}

# Known to torch, harmless, but no dense matrix of numbers: left out, with this reason.
NOT_DENSE = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    **{f"torch.{name}Storage": "a quantised tensor" for name in ("QInt8", "QUInt8", "QInt32", "QUInt4x2")},
    **{
        f"torch.per_{axis}_{kind}": "a quantised tensor"
        for axis in ("tensor", "channel")
        for kind in ("affine", "symmetric", "affine_float_qparams")
    },
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without storage (meta device)",
    "torch._utils._rebuild_wrapper_subclass": "a tensor subclass",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of an unusual device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of an unusual device",
}

# An alarm, not the lock: nothing is imported or called whatever the name is.
UNSAFE_MODULES = frozenset(
    """os posix posixpath nt ntpath subprocess _posixsubprocess sys pty runpy importlib _frozen_importlib
    shutil socket _socket ctypes _ctypes codeop pdb bdb timeit cProfile webbrowser pickle _pickle marshal
    fcntl mmap tempfile urllib ftplib smtplib telnetlib socketserver pkgutil zipimport""".split()  # noqa: SIM905
)
UNSAFE_NAMES = frozenset(
    """builtins.eval builtins.exec builtins.compile builtins.__import__ builtins.open builtins.input
    builtins.breakpoint builtins.globals builtins.locals builtins.vars builtins.setattr builtins.delattr
    builtins.exit builtins.quit io.open io.open_code io.FileIO _io.open _io.open_code _io.FileIO
    operator.methodcaller _operator.methodcaller types.FunctionType types.CodeType torch.load torch.save
    torch.serialization.load torch.jit.load torch.package.PackageImporter numpy.load numpy.save
    numpy.testing._private.utils.runstring joblib.load pandas.read_pickle""".split()  # noqa: SIM905
)
_UNSAFE_PACKAGES = ("torch.hub.", "torch.utils.cpp_extension.", "torch.utils.model_zoo.", "multiprocessing.")
# Members of enumerations of torch: dtypes that are not read, layouts, memory formats.
_ENUMERATED = re.compile(
    r"torch\.(u?int|float|bfloat|complex|quint|qint|bits|sparse_|preserve_|channels_)\w*"
)


@dataclass(frozen=True)
class Global:
    """A name ``module.name`` that a pickle mentions; never imported."""

    name: str


class Record:
    """An inert object of a pickle: its class's name, arguments, state, and what was put into it."""

    __slots__ = ("arguments", "elements", "entries", "name", "state")

    def __init__(self, name: str, arguments: Any = ()):
        self.name, self.arguments, self.state = name, arguments, None
        self.elements: list[Any] = []
        self.entries: dict[Any, Any] = {}


@dataclass(frozen=True)
class Unread:
    """Something that torch knows as a tensor but that is no dense matrix of numbers."""

    reason: str


@dataclass(frozen=True)
class StorageRef:
    """A flat run of ``count`` numbers kept outside the pickle under ``key``."""

    key: str
    dtype: str | None  # None: untyped, counted in bytes
    count: int


@dataclass(frozen=True)
class TensorRef:
    """A strided view of a storage; offset, sizes and strides count elements."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Malformed(Exception):
    """The opcodes do not describe data in the way torch writes it."""


def _integers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or any(type(item) is not int or item < 0 for item in value):
        raise Malformed("a shape or stride that is no tuple of non-negative integers")
    if len(value) > 16:
        raise Malformed(f"a tensor with {len(value)} axes")
    return tuple(value)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorRef | Unread:
    if not isinstance(storage, StorageRef) or type(offset) is not int or offset < 0:
        raise Malformed("a tensor without a storage or with a bad offset")
    dtype = storage.dtype
    if len(rest) >= 3 and isinstance(rest[2], Global):  # _rebuild_tensor_v3 names the dtype itself
        dtype = rest[2].name.removeprefix("torch.")
    if dtype not in DTYPES:
        return Unread(f"dtype {shown(dtype)}")
    shape, stride = _integers(shape), _integers(stride)
    if len(shape) != len(stride):
        raise Malformed("a tensor whose shape and stride disagree")
    return TensorRef(storage, dtype, offset, shape, stride)


def _first(data: Any, *_: Any) -> Any:
    return data


def _from_type(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    if not isinstance(function, Global) or function.name not in BUILDERS or not isinstance(arguments, tuple):
        raise Malformed("a tensor rebuilt by something unknown")
    return BUILDERS[function.name](*arguments)


def _empty_dict() -> dict[Any, Any]:  # not dict itself, which would copy an argument
    return {}


def _empty_default_dict(_factory: Any = None) -> dict[Any, Any]:
    return {}


def _items(items: Any = (), *_: Any) -> Any:
    return items


def _opaque(*_: Any) -> None:
    return None


def _short_bytes(text: Any = "", *_: Any) -> bytes | None:
    """Bytes as protocol 2 writes them; only those of a number are of use here."""
    short = isinstance(text, str) and len(text) <= 16 and all(ord(letter) < 256 for letter in text)
    return text.encode("latin-1") if short else None


# What a "call" may build. Nothing here copies its arguments, so a small pickle cannot grow large.
BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.nn.parameter.Parameter": _first,
    "torch.Size": _first,
    "torch.device": _opaque,
    "torch.serialization._get_layout": _opaque,
    "collections.OrderedDict": _empty_dict,
    "collections.defaultdict": _empty_default_dict,
    "collections.Counter": _opaque,
    "builtins.set": _items,
    "builtins.frozenset": _items,
    "builtins.bytearray": _opaque,
    "builtins.complex": _opaque,
    "_codecs.encode": _short_bytes,
}
ALLOWED = (
    frozenset(BUILDERS)
    | {f"torch.{name}" for name in STORAGES}
    | {f"torch.{name}" for name in DTYPES}
    | {"torch.Tensor", "torch.storage.UntypedStorage", "torch.UntypedStorage", "torch.strided"}
)


def canonical(dotted: str) -> str:
    """A name with the modules of Python 2, which protocol 2 writes, called as today."""
    for old, new in (("__builtin__.", "builtins."), ("copy_reg.", "copyreg.")):
        if dotted.startswith(old):
            return new + dotted.removeprefix(old)
    return dotted


def is_known(name: str) -> bool:
    """Whether a canonical name means something to this reader."""
    return name in ALLOWED or name in NOT_DENSE or _ENUMERATED.fullmatch(name) is not None


def is_unsafe(name: str) -> bool:
    """Whether a canonical name stands for running programs, opening files or evaluating text.

    Also names that walk through attributes with double underscores, which no class has.
    """
    first, *rest = name.split(".")
    hidden = any(part.startswith("__") and part not in ("__main__", "__mp_main__") for part in rest)
    return first in UNSAFE_MODULES or name in UNSAFE_NAMES or hidden or name.startswith(_UNSAFE_PACKAGES)
