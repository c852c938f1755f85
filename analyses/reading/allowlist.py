"""What a checkpoint's pickle may mention: the allow-list of names, and the plain records they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analyses.reading.text import shown

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

# Known to torch, harmless, but no dense matrix of numbers: named in the refusal.
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


@dataclass(frozen=True)
class Global:
    """A name ``module.name`` that a pickle mentions; never imported."""

    name: str


class Record:
    """An object that a pickle describes: the name of its class, its arguments and its state."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: Any = ()):
        self.name, self.arguments, self.state = name, arguments, None


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


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorRef:
    if not isinstance(storage, StorageRef) or type(offset) is not int or offset < 0:
        raise Malformed("a tensor without a storage or with a bad offset")
    dtype = storage.dtype
    if len(rest) >= 3 and isinstance(rest[2], Global):  # _rebuild_tensor_v3 names the dtype itself
        dtype = rest[2].name.removeprefix("torch.")
    if dtype not in DTYPES:
        raise Malformed(f"a tensor of dtype {shown(dtype)}")
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


def _opaque(*_: Any) -> None:
    return None


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
    "collections.Counter": _opaque,
    "builtins.set": _opaque,
    "builtins.bytearray": _opaque,
    "builtins.complex": _opaque,
    "_codecs.encode": _opaque,
}
ALLOWED = (
    frozenset(BUILDERS)
    | {f"torch.{name}" for name in STORAGES}
    | {f"torch.{name}" for name in DTYPES}
    | {"torch.Tensor", "torch.storage.UntypedStorage", "torch.UntypedStorage", "torch.strided"}
)
