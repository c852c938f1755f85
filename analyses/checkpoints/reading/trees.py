"""What a trainer saved, as a tree of named containers: dicts, lists, modules and other objects alike.

A file may hold a state dict directly, in a dict of a trainer, in a list with one per epoch, or inside a whole
pickled module. `tree_of` gives all of them one form, visits every container once (a small file may refer to
one so often that it describes more leaves than atoms), and never recurses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from analyses.checkpoints.reading.allowlist import Record, TensorRef, Unread
from analyses.checkpoints.reading.sources import FLOATING, StoredTensor
from analyses.checkpoints.reading.text import shown

STEP_NAMES = ("global_step", "step", "iteration", "iter", "iter_num", "num_steps", "steps")
EPOCH_NAMES = ("epoch", "current_epoch", "epochs")
_LEAVES = (StoredTensor, TensorRef, Unread)
_CONTAINERS = (dict, list, tuple, Record)
_WORTH = frozenset((*_LEAVES, *_CONTAINERS))
_OPTIMISERS = ("torch.optim.", "torch.amp.", "torch.cuda.amp.")


class Kind(Enum):
    """What a container is."""

    DICT = "dict"
    LIST = "list"  # or tuple
    MODULE = "module"  # a torch module, pickled whole: its children are those of its state dict
    OBJECT = "object"  # of any other class
    TRAINER = "trainer"  # state of an optimiser


@dataclass(eq=False, slots=True)
class Node:
    """A container of a file.

    Parameters
    ----------
    kind : Kind
    children : dict of str to (Node or tensor)
        What it holds by label, numbers and text left out; a tensor is a `StoredTensor`, `TensorRef` or
        `Unread`.
    numbers : dict of str to int
        Natural numbers under the names of steps and epochs.
    rank : int
        3 if a floating matrix is in it at any depth, 2 for floating vectors, 1 for numbers, 0 for none.
    shape : int
        Hash of the labels and shapes of its floating tensors: equal for two states of one model.
    """

    kind: Kind
    children: dict[str, Node | StoredTensor | TensorRef | Unread] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    rank: int = 0
    shape: int = 0

    def bearing(self, rank: int) -> dict[str, Node]:
        """Containers in it that hold tensors of a rank, no optimisers."""
        return {
            label: child
            for label, child in self.children.items()
            if isinstance(child, Node) and child.kind is not Kind.TRAINER and child.rank >= rank
        }


def tree_of(value: Any, resolve: Callable[[Any], StoredTensor]) -> Node:
    """The tree of anything that a container holds.

    Parameters
    ----------
    value : Any
        Of `analyses.checkpoints.reading.sources.Content`.
    resolve : callable
        See there; used for steps that are stored as tensors.

    Returns
    -------
    Node
        A single tensor is put into one under the label ``tensor``.
    """
    if not isinstance(value, _CONTAINERS):
        value = {"tensor": value}
    nodes: dict[int, Node] = {}
    root = _new(value, nodes)
    waiting: list[Any] = [value]  # containers, and nodes whose containers have been seen
    after: list[Any] = []
    while waiting:
        container = waiting.pop()
        if isinstance(container, Node):
            _measure(container)
            continue
        node = nodes[id(container)]
        waiting.append(node)
        for label, child in _parts(container):
            if isinstance(child, _LEAVES):
                node.children[label] = child
            elif isinstance(child, _CONTAINERS) and _may_hold(child):
                if id(child) not in nodes:
                    _new(child, nodes)
                    after.append(child)
                node.children[label] = nodes[id(child)]
            if label in STEP_NAMES or label in EPOCH_NAMES:
                number = _natural(child, resolve)
                if number is not None:
                    node.numbers[label] = number
        waiting += reversed(after)
        after.clear()
    return root


def _may_hold(value: Any) -> bool:
    """Whether a container is worth a node: logs are long, and hold numbers only."""
    if isinstance(value, Record):
        return True
    return not _WORTH.isdisjoint(map(type, value.values() if isinstance(value, dict) else value))


def _new(value: Any, nodes: dict[int, Node]) -> Node:
    return nodes.setdefault(id(value), Node(_kind(value)))


def _kind(value: Any) -> Kind:
    if isinstance(value, (list, tuple)):
        return Kind.LIST
    inside = _attributes(value) if isinstance(value, Record) else value
    if "param_groups" in inside or (isinstance(value, Record) and value.name.startswith(_OPTIMISERS)):
        return Kind.TRAINER
    if not isinstance(value, Record):
        return Kind.DICT
    return Kind.MODULE if _is_module(inside) else Kind.OBJECT


def attributes_of(value: Any) -> dict[Any, Any]:
    """Entries of a dict, or what a record's ``__dict__``, slots and own entries hold; empty for all else."""
    if isinstance(value, Record):
        return {**value.entries, **_attributes(value)} if value.entries else _attributes(value)
    return value if isinstance(value, dict) else {}


def _attributes(record: Record) -> dict[Any, Any]:
    """The ``__dict__`` of an object, with its slots."""
    state = record.state
    if isinstance(state, dict):
        return state
    if isinstance(state, tuple) and len(state) == 2:  # with slots: (dict or None, dict of slots)
        return {key: item for part in state if isinstance(part, dict) for key, item in part.items()}
    return {}


def _is_module(attributes: dict[Any, Any]) -> bool:
    return all(isinstance(attributes.get(name), dict) for name in ("_parameters", "_modules"))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Label and content of everything in a container; of a module, what its state dict would hold."""
    if isinstance(value, dict):
        yield from ((_label(key), item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(place), item) for place, item in enumerate(value))
    else:
        attributes = _attributes(value)
        if _is_module(attributes):
            yield from _parts_of_module(attributes)
            return
        yield from _parts(attributes)
        yield from _parts(value.entries)
        yield from _parts(value.elements)
        for place, item in enumerate(value.arguments if isinstance(value.arguments, tuple) else ()):
            yield f"<argument {place}>", item


def _parts_of_module(attributes: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    passing = attributes.get("_non_persistent_buffers_set")
    passing = {name for name in passing if isinstance(name, str)} if isinstance(passing, list) else set()
    for name in ("_parameters", "_buffers", "_modules"):
        for label, item in _parts(attributes[name] if isinstance(attributes.get(name), dict) else {}):
            left_out = name == "_buffers" and label in passing and isinstance(item, _LEAVES)
            yield label, Unread("a buffer that the module's state dict leaves out") if left_out else item
    for label, item in _parts(attributes):
        if isinstance(item, _LEAVES):
            yield label, Unread("an attribute beside the module's state dict")


def _label(key: Any) -> str:
    return key if isinstance(key, str) else f"<{shown(getattr(key, 'name', type(key).__name__))}>"


def _measure(node: Node) -> None:
    """Rank and shape of a container whose containers are measured."""
    seen = []
    for label, child in node.children.items():
        if isinstance(child, Node):
            rank, shape = (0, 0) if child.kind is Kind.TRAINER else (child.rank, child.shape)
        elif isinstance(child, Unread) or child.dtype not in FLOATING:
            continue
        else:
            rank, shape = 1 + min(len(child.shape), 2), hash(tuple(child.shape))
        if rank:
            node.rank = max(node.rank, rank)
            seen.append((label, shape))
    if seen:
        node.shape = hash(tuple(sorted(seen)))


def _natural(value: Any, resolve: Callable[[Any], StoredTensor]) -> int | None:
    """A natural number, also of numpy or in a tensor of one integer."""
    if isinstance(value, Record) and value.name.endswith("multiarray.scalar"):
        value = _numpy_integer(value)
    single = isinstance(value, (StoredTensor, TensorRef)) and value.shape in ((), (1,))
    if single and value.dtype.startswith(("int", "uint")):
        value = int(resolve(value).load().reshape(()))
    return value if type(value) is int and 0 <= value < 1 << 62 else None


def _numpy_integer(record: Record) -> int | None:
    match record.arguments:
        case (Record(arguments=(str(kind), *_)), bytes(data)) if kind[:1] in "iu" and len(data) <= 8:
            return int.from_bytes(data, "little", signed=kind[0] == "i")
        case _:
            return None
