"""Read the pickle inside a checkpoint without running anything: an interpreter that only knows data.

Python's own unpickler imports and calls whatever a file names. `Interpreter` instead walks the opcodes
(decoded by `pickletools`) and keeps plain containers, numbers and strings; a global is only ever
compared with a table of names, never imported, and a "call" only ever builds one of the records of
`analyses.checkpoints.reading.allowlist`: for a class that is not known there, an inert `Record`.
Every instruction takes at least one byte and constant work, so a pickle takes time in proportion to its size.
That is stricter than ``torch.load(weights_only=True)`` (which does import torch and call its rebuild
functions) and needs no torch, so the process that reads strangers' files starts in a tenth of a second.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from analyses.checkpoints.reading.allowlist import (
    BUILDERS,
    NOT_DENSE,
    STORAGES,
    Global,
    Malformed,
    Record,
    StorageRef,
    TensorRef,
    Unread,
    canonical,
    is_known,
    is_unsafe,
)
from analyses.checkpoints.reading.text import shown
from manifold.errors import CheckpointError, UntrustedCheckpointError

MAX_PICKLE_BYTES = 64 << 20  # a minute of work and a gigabyte at the very worst, seven million logged numbers
MAX_NAMED = 5
KEY_ITEMS = 8  # longest tuple that is shown as a key

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUSHES = frozenset(
    """INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8""".split()  # noqa: SIM905
)


def _plain_key(key: Any, place: int) -> Any:
    """A key that is cheap to hash: numbers can be made to collide, nested tuples to exhaust the C stack.

    Keys that cannot be shown in few letters get the number of their place, so that no two become one.
    """
    if isinstance(key, (str, Record)):
        return key
    if _simple(key):
        return str(key)
    if isinstance(key, tuple) and len(key) <= KEY_ITEMS and all(_simple(k) or _short(k) for k in key):
        return f"({', '.join(map(str, key))})"
    return f"<{type(key).__name__} {place}>"


def _simple(key: Any) -> bool:
    return key is None or isinstance(key, float) or (isinstance(key, int) and abs(key) < 1 << 63)


def _short(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= 80


class Interpreter:
    """Runs the opcodes of one pickle over plain data.

    Parameters
    ----------
    records : frozenset of str
        Class names that the caller expects; like all others their instances become `Record`.

    Attributes
    ----------
    foreign : dict of str to None
        Names that are neither known nor expected, in order of appearance.
    """

    def __init__(self, records: frozenset[str] = frozenset()):
        self.records = records
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.foreign: dict[str, None] = {}

    def run(self, data: bytes) -> Any:
        """Value described by a pickle.

        Parameters
        ----------
        data : bytes
            The whole pickle.

        Returns
        -------
        Any
            Nested dicts, lists, tuples, numbers, strings, `TensorRef`, `Unread`, `Record`, `Global`.

        Raises
        ------
        UntrustedCheckpointError
            If it mentions what runs programs, opens files or evaluates text; those names are in the message.
        CheckpointError
            If it is damaged or too long.
        """
        damage = ""
        try:
            value = self._run(data)
        except Exception as error:  # hostile bytes: whatever goes wrong is the file's fault
            if isinstance(error, MemoryError):
                raise
            value, damage = None, f"{error}" if isinstance(error, Malformed) else type(error).__name__
            for name in named_globals(data):
                self._global(name)
        unsafe = [name for name in self.foreign if is_unsafe(name)]
        if unsafe:
            raise UntrustedCheckpointError(wanted(unsafe))
        if damage:
            raise CheckpointError(f"its pickle is damaged or not one that torch.save writes ({damage})")
        return value

    def _run(self, data: bytes) -> Any:
        if len(data) > MAX_PICKLE_BYTES:
            raise Malformed(f"{len(data)} bytes of pickle, more than {MAX_PICKLE_BYTES}")
        file = io.BytesIO(data)
        handlers = self._handlers()
        while True:
            code = file.read(1)
            if code == b".":
                return self.stack.pop()
            if code not in handlers:
                raise Malformed(f"opcode {code!r}" if code else "no end")
            handle, read = handlers[code]
            handle(read(file) if read is not None else None)

    def _handlers(self) -> dict[bytes, tuple[Callable[[Any], None], Callable[[BinaryIO], Any] | None]]:
        """What to do at each opcode, and how to read its argument."""
        found = {}
        for opcode in pickletools.opcodes:
            handle = getattr(self, f"_op_{opcode.name.lower()}", None)
            if opcode.name in _PUSHES:
                handle = self._push
            elif opcode.name in _CONSTANTS:
                handle = self._pusher(_CONSTANTS[opcode.name])
            if handle is not None:
                read = opcode.arg.reader if opcode.arg is not None else None
                found[opcode.code.encode("latin-1")] = handle, read
        return found

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _pusher(self, constant: Any) -> Callable[[Any], None]:
        return lambda _: self.stack.append(constant)

    def _op_proto(self, _: int) -> None:
        pass

    _op_frame = _op_proto

    # -- names and calls ---------------------------------------------------------------------------
    def _global(self, dotted: str) -> Global:
        name = canonical(dotted)
        if not is_known(name) and name not in self.records:
            self.foreign.setdefault(name)
        return Global(name)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise Malformed("a call without a tuple of arguments")
        if isinstance(function, Record):  # of what another call returned: a nested class, a bound method
            return Record(function.name, arguments)
        if not isinstance(function, Global):
            raise Malformed("a call of something that is no name")
        if function.name in NOT_DENSE:
            return Unread(NOT_DENSE[function.name])
        if function.name in BUILDERS:
            try:
                return BUILDERS[function.name](*arguments)
            except TypeError as error:
                raise Malformed(f"bad arguments for {function.name}") from error
        first = arguments[0] if arguments else None
        if function.name == "copyreg._reconstructor" and isinstance(first, Global):
            return Record(first.name)
        return Record(function.name, arguments)

    def _op_global(self, argument: str) -> None:
        self.stack.append(self._global(argument.replace(" ", ".", 1)))

    def _op_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Malformed("a global whose name is no string")
        self.stack.append(self._global(f"{module}.{name}"))

    def _op_inst(self, argument: str) -> None:
        arguments = tuple(self._pop_mark())
        self.stack.append(self._call(self._global(argument.replace(" ", ".", 1)), arguments))

    def _op_obj(self, _: None) -> None:
        function, *arguments = self._pop_mark()
        self.stack.append(self._call(function, tuple(arguments)))

    def _op_reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(function, arguments))

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, _: None) -> None:
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(function, (*arguments, keywords)))

    def _op_build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, (dict, TensorRef, Unread, type(None))):
            # What else an object carries (``_metadata`` of a state dict, attributes of a tensor) is dropped.
            raise Malformed("state for something that has none")

    def _extension(self, argument: int) -> None:
        self.stack.append(self._global(f"copyreg.extension.{argument}"))

    _op_ext1 = _op_ext2 = _op_ext4 = _extension

    def _op_binpersid(self, _: None) -> None:
        match self.stack.pop():
            case ("storage", Global(name), str(key), str(), int(count)) if count >= 0:
                kind = name.rpartition(".")[2]
                self.stack.append(StorageRef(key, STORAGES.get(kind), count))
            case _:
                raise Malformed("a persistent id that is no torch storage")

    # -- containers --------------------------------------------------------------------------------
    def _pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def _op_mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _op_pop(self, _: None) -> None:
        self.stack.pop() if self.stack else self._pop_mark()

    def _op_pop_mark(self, _: None) -> None:
        self._pop_mark()

    def _op_dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def _op_empty_dict(self, _: None) -> None:
        self.stack.append({})

    def _op_empty_list(self, _: None) -> None:
        self.stack.append([])

    _op_empty_set = _op_empty_list

    def _op_empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def _op_tuple(self, _: None) -> None:
        items = self._pop_mark()
        self.stack.append(tuple(items))

    _op_frozenset = _op_tuple

    def _op_list(self, _: None) -> None:
        items = self._pop_mark()
        self.stack.append(items)

    def _op_dict(self, _: None) -> None:
        items = self._pop_mark()
        self.stack.append({})
        self._set_items(items)

    def _tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise Malformed("an empty stack")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def _op_tuple1(self, _: None) -> None:
        self._tuple_of(1)

    def _op_tuple2(self, _: None) -> None:
        self._tuple_of(2)

    def _op_tuple3(self, _: None) -> None:
        self._tuple_of(3)

    def _op_append(self, _: None) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _op_appends(self, _: None) -> None:
        self._extend(self._pop_mark())

    _op_additems = _op_appends

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, (list, Record)):
            (target if isinstance(target, list) else target.elements).extend(items)
        elif target is not None:
            raise Malformed("items for something that is no list")

    def _op_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _op_setitems(self, _: None) -> None:
        self._set_items(self._pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise Malformed("a key without a value")
        if target is None:
            return
        entries = target.entries if isinstance(target, Record) else target
        if not isinstance(entries, dict):
            raise Malformed("entries for something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[_plain_key(key, len(entries))] = value

    # -- memo --------------------------------------------------------------------------------------
    def _op_put(self, index: int) -> None:
        if not 0 <= index < 1 << 32:
            raise Malformed("a memo beyond what pickle writes")
        self.memo[index] = self.stack[-1]

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _op_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _op_binget = _op_long_binget = _op_get


def wanted(names: list[str]) -> str:
    """The sentence of a refusal that names what a pickle mentions."""
    listed = [shown(name) for name in names[:MAX_NAMED]]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return (
        f"its pickle wants to import {', '.join(listed)}{more}; nothing was executed. "
        "Save plain tensors instead: torch.save(model.state_dict(), path) or safetensors"
    )


def named_globals(data: bytes) -> Iterator[str]:
    """Names that the readable part of a (possibly damaged) pickle imports, without interpreting it.

    Parameters
    ----------
    data : bytes
        A pickle, or the beginning of one.

    Yields
    ------
    str
        ``module.name``; for names taken from the stack, the last two values pushed (if strings).
    """
    pushed: tuple[Any, Any] = (None, None)
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("GLOBAL", "INST"):
                yield argument.replace(" ", ".", 1)
            elif opcode.name == "STACK_GLOBAL" and all(isinstance(item, str) for item in pushed):
                yield ".".join(pushed)
            if opcode.name == "MEMOIZE":
                memo[len(memo)] = pushed[1]
            elif opcode.name.endswith("PUT"):
                memo[argument] = pushed[1]
            elif opcode.name.endswith("GET"):
                pushed = (pushed[1], memo.get(argument))
            elif opcode.stack_after:
                pushed = (pushed[1], argument if isinstance(argument, str) else None)
    except Exception:  # the damage itself is reported by the interpreter
        return
