"""Find the model's tensors in whatever a trainer saved: nesting, prefixes, optimiser state, step."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from analyses.checkpoints.reading.allowlist import TensorRef, Unread
from analyses.checkpoints.reading.pickles import wanted
from analyses.checkpoints.reading.sources import FLOATING, Content, StoredTensor
from analyses.checkpoints.reading.text import shown
from analyses.checkpoints.reading.trees import EPOCH_NAMES, STEP_NAMES, Kind, Node, tree_of
from analyses.checkpoints.reading.words import WORDS_KEY, words_beside
from manifold.errors import CheckpointError, UntrustedCheckpointError

# Where trainers put the state dict, in the order they are tried.
STATE_NAMES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
)
PREFIXES = ("module.", "_orig_mod.")
OTHER_STATE = re.compile(
    r"(optim\w*|(lr_?)?sched\w*|(grad_?)?scaler\w*|rng\w*|callbacks|loops|amp(_\w+)?)(\.|$)", re.IGNORECASE
)
METADATA_KEY = "rhoscope"
WHOLE = "*"  # the selector for everything, joined with dots
MAX_LISTED = 1000  # tensors that are named as left out
MAX_CHOICES = 4  # named in an error


@dataclass(frozen=True)
class State:
    """The floating tensors of a model by key, what was left out and why, and the step stored inside."""

    tensors: dict[str, StoredTensor]
    ignored: dict[str, str]
    step: int | None
    epoch: int | None
    metadata: dict[str, str] = field(default_factory=dict)


def select_state(content: Content, selector: str | None = None) -> State:
    """The state dict of a model inside a container.

    Parameters
    ----------
    content : Content
        Its tree may be the state dict itself, or hold it under one of `STATE_NAMES`, in a list, under the
        number of an epoch, in an object or a whole module, also nested; nested modules are joined with dots.
        Prefixes ``module.`` and ``_orig_mod.`` are stripped.
    selector : str, optional
        The place of the state dict, labels joined with dots, or `WHOLE`; needed where there are several.

    Returns
    -------
    State

    Raises
    ------
    CheckpointError
        If there is no floating tensor, several state dicts of one shape, none at the selector, or two keys
        become equal.
    UntrustedCheckpointError
        If there is no tensor at all and the file mentions classes or functions.
    """
    raw = content.tree
    root = tree_of(_unflatten(raw) if isinstance(raw, dict) else raw, content.resolve)
    if not root.rank:
        error = _why_nothing(content, root)
        raise error
    path = [("", root)]
    ignored: dict[str, str] = {}
    if selector and selector != WHOLE:
        path += _at(root, selector)
    if selector != WHOLE:
        _descend(path, root.rank, ignored)
    tensors = _named(_flatten(path[-1][1], ignored), content, ignored)
    if not tensors:
        raise CheckpointError(f"it holds no floating tensor at {shown(_place(path) or 'its top level')}")
    note = raw.get(METADATA_KEY) if isinstance(raw, dict) else None
    metadata = {METADATA_KEY: note} if isinstance(note, str) and len(note) < 1 << 20 else {}
    step, epoch = _number(path, STEP_NAMES), _number(path, EPOCH_NAMES)
    if step is None and epoch is None:
        step = _numbered(path)
    words = words_beside(raw, METADATA_KEY)
    if words:
        metadata[WORDS_KEY] = json.dumps(words)
    return State(tensors, _bounded(ignored), step, epoch, metadata)


def _why_nothing(content: Content, root: Node) -> CheckpointError:
    if content.foreign:
        return UntrustedCheckpointError(f"no tensor is in it, and {wanted(list(content.foreign))}")
    tree = content.tree
    if not isinstance(tree, (dict, list, tuple, StoredTensor, TensorRef)):
        return CheckpointError(f"it holds a {type(tree).__name__}, no dictionary of tensors")
    reasons = {child.reason for child in root.children.values() if isinstance(child, Unread)}
    names = ", ".join(shown(key, limit=30) for key in (list(tree)[:8] if isinstance(tree, dict) else ()))
    held = f"{', '.join(sorted(reasons))}; only dense tensors are read; " if reasons else ""
    return CheckpointError(
        f"it holds no floating tensor in a state dict ({held}top level: {names or 'nothing'})"
    )


# -- where the state dict is -------------------------------------------------------------------------


def _place(path: list[tuple[str, Any]]) -> str:
    return ".".join(label for label, _ in path[1:])


def _descend(path: list[tuple[str, Node]], rank: int, ignored: dict[str, str]) -> None:
    """Follow the containers of a trainer down to the state dict; what lies beside the way is ignored."""
    seen = {id(path[-1][1])}
    while True:
        node = path[-1][1]
        label = _next(node, path, rank)
        if label is None or id(node.children[label]) in seen:
            return
        for other, child in node.children.items():
            if other != label and len(ignored) <= MAX_LISTED:
                trainer = isinstance(child, Node) and child.kind is Kind.TRAINER
                key = shown(_place([*path, (other, child)]))
                if trainer or not isinstance(child, Node) or child.rank:
                    ignored[key] = "beside the state dict"
        seen.add(id(node.children[label]))
        path.append((label, node.children[label]))


def _next(node: Node, path: list[tuple[str, Node]], rank: int) -> str | None:
    """The label of the container to go into; None where the node is the state dict itself.

    Raises
    ------
    CheckpointError
        If several could be meant.
    """
    if node.kind is Kind.MODULE:
        return None
    inside = node.bearing(min(rank, node.rank))
    inside = {label: child for label, child in inside.items() if not OTHER_STATE.match(label)} or inside
    named = (
        next((name for name in STATE_NAMES if name in inside), None) if node.kind is not Kind.LIST else None
    )
    # Inside a state dict, a layer may have such a name: then it is not alone.
    if named is not None and (len(inside) == 1 or not any(label in STATE_NAMES for label, _ in path)):
        return named
    if not inside or _has_direct(node, rank):
        return None
    counted = node.kind is Kind.LIST or all(_is_number(label) for label in inside)
    modules = all(child.kind is Kind.MODULE for child in inside.values())
    if len(inside) > 1 and (counted or modules) and len({child.shape for child in inside.values()}) == 1:
        raise CheckpointError(_several(path, list(inside)))
    if len(inside) > 1:
        return None
    (label,) = inside
    return label if counted or _wraps(node, label, rank) else None


def _has_direct(node: Node, rank: int) -> bool:
    """Whether a container holds tensors of a rank itself, not in containers."""
    return any(
        not isinstance(child, (Node, Unread)) and child.dtype in FLOATING and len(child.shape) >= rank - 1
        for child in node.children.values()
    )


def _wraps(node: Node, label: str, rank: int) -> bool:
    """Whether the only child is a trainer's wrapping, not the layer of a network of one layer.

    So it is if a state dict's usual name, a list, a number or an object follows before anything branches.
    """
    seen: set[int] = set()
    while id(node) not in seen:
        seen.add(id(node))
        child = node.children[label]
        inside = child.bearing(rank)
        plain = node.kind is Kind.DICT and child.kind is Kind.DICT and label not in STATE_NAMES
        if not plain or any(_is_number(name) for name in inside):
            return True
        if len(inside) != 1 or _has_direct(child, rank):
            return False
        node, (label,) = child, inside
    return False


def _is_number(label: str) -> bool:
    """``100``, ``0.5``, ``step_100``: a label that counts, no name of a layer."""
    words = r"(epochs?|steps?|iter(ation)?s?|ckpt|checkpoint|snapshot|seed|fold|run|trial|round)"
    return re.fullmatch(rf"({words}[-_=. ]?)?[0-9]+(\.[0-9]+)?", label, re.IGNORECASE) is not None


def _several(path: list[tuple[str, Node]], labels: list[str]) -> str:
    places = [_place([*path, (label, None)]) for label in labels]
    named = [shown(place, limit=60) for place in places]
    few = named if len(named) <= MAX_CHOICES else [*named[: MAX_CHOICES - 1], "..", named[-1]]
    return (
        f"it holds {len(places)} state dicts of the same shapes ({', '.join(few)}); choose one by its place "
        f"after the path, as in FILE::{named[-1]} (FILE::{WHOLE}: all of them, joined with dots)"
    )


def _at(root: Node, selector: str) -> list[tuple[str, Node]]:
    path: list[tuple[str, Node]] = []
    node, rest = root, selector
    while rest:
        inside = node.children if isinstance(node, Node) else {}
        fitting = [label for label in inside if rest == label or rest.startswith(f"{label}.")]
        if not fitting:
            there = [label for label, child in inside.items() if not isinstance(child, Node) or child.rank]
            few = ", ".join(shown(label, limit=30) for label in there[:8]) or "no tensors"
            raise CheckpointError(f"it has nothing at ::{shown(selector)}; there is {few}")
        label = max(fitting, key=len)
        node, rest = inside[label], rest[len(label) + 1 :]
        path.append((label, node))
    if not isinstance(node, Node):
        path[-1] = (path[-1][0], Node(Kind.DICT, {path[-1][0]: node}))
    return path


def _unflatten(root: dict[Any, Any]) -> dict[Any, Any]:
    """Group flat keys ``model.x`` when everything else is trainer state (``optimizer.y``, ``step``).

    Containers without nesting (safetensors, distributed folders) join the levels with dots; where nothing
    of a trainer lies beside it, ``model.`` is simply part of the keys and stays.
    """
    inside: dict[str, dict[str, Any]] = {}
    beside: dict[Any, Any] = {}
    for key, item in root.items():
        head, dot, rest = str(key).partition(".")
        if dot and head in STATE_NAMES:
            inside.setdefault(head, {})[rest] = item
        else:
            beside[key] = item
    numbers = (*STEP_NAMES, *EPOCH_NAMES)
    of_trainer = all(key in numbers or OTHER_STATE.match(str(key)) for key in beside)
    return {**inside, **beside} if inside and beside and of_trainer else root


# -- what is in it -----------------------------------------------------------------------------------


def _flatten(root: Node, ignored: dict[str, str]) -> dict[str, Any]:
    """Every tensor below a node by its name; a container that is there twice is named once."""
    found: dict[str, Any] = {}
    first = {id(root): ""}
    waiting = [("", iter(root.children.items()))]
    while waiting:
        prefix, items = waiting[-1]
        for label, child in items:
            name = f"{prefix}{label}"
            other = OTHER_STATE.match(name) and (not prefix if isinstance(child, Node) else "." in name)
            if other or (isinstance(child, Node) and child.kind is Kind.TRAINER):
                ignored[shown(name)] = "optimiser or trainer state"
            elif not isinstance(child, Node):
                found[name] = child
            elif id(child) in first:
                if child.rank:
                    ignored[shown(name)] = f"the same object as {shown(first[id(child)]) or 'the whole'}"
            else:
                first[id(child)] = name
                waiting.append((f"{name}.", iter(child.children.items())))
                break
        else:
            waiting.pop()
    return found


def _named(found: dict[str, Any], content: Content, ignored: dict[str, str]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for key, leaf in found.items():
        if isinstance(leaf, Unread) or leaf.dtype not in FLOATING:
            ignored[shown(key)] = leaf.reason if isinstance(leaf, Unread) else f"dtype {leaf.dtype}"
            continue
        tensor = content.resolve(leaf)
        if tensor.nbytes == 0:
            ignored[shown(key)] = "empty"
            continue
        short = _strip(key)
        if short in tensors:
            raise CheckpointError(f"two tensors have the key {shown(short)} once prefixes are stripped")
        tensors[short] = tensor
    return tensors


def _bounded(ignored: dict[str, str]) -> dict[str, str]:
    if len(ignored) <= MAX_LISTED:
        return ignored
    kept = dict(list(ignored.items())[:MAX_LISTED])
    return kept | {"..": f"{len(ignored) - MAX_LISTED} more are left out"}


def _strip(key: str) -> str:
    for _ in range(4):
        for prefix in PREFIXES:
            key = key.removeprefix(prefix)
    return key.replace("._orig_mod.", ".")


def _number(path: list[tuple[str, Node]], names: tuple[str, ...]) -> int | None:
    """The number stored nearest to the state dict."""
    for _, node in reversed(path):
        for name in names:
            if name in node.numbers:
                return node.numbers[name]
    return None


def _numbered(path: list[tuple[str, Node]]) -> int | None:
    """The number under which the state dict is kept, unless it is its place in a list."""
    for (_, parent), (label, _) in zip(path[-2::-1], path[:0:-1], strict=False):
        digits = re.search(r"[0-9]{1,18}$", label)
        if digits and parent.kind is not Kind.LIST and _is_number(label) and "." not in label:
            return int(digits.group())
    return None
