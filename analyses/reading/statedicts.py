"""Find the model's tensors in whatever a trainer saved: nesting, prefixes, optimiser state, step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from analyses.reading.sources import FLOATING, Content, StoredTensor
from analyses.reading.text import shown
from manifold.errors import CheckpointError

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
STEP_NAMES = ("step", "global_step", "iteration", "iter", "iter_num", "num_steps", "steps")
EPOCH_NAMES = ("epoch", "current_epoch")
PREFIXES = ("module.", "_orig_mod.")
OTHER_STATE = ("optim", "lr_sched", "sched", "scaler", "rng", "callbacks", "loops", "amp")
METADATA_KEY = "rhoscope"
MAX_ITEMS = 50_000
MAX_DEPTH = 6


@dataclass(frozen=True)
class State:
    """The floating tensors of a model by key, what was left out and why, and the step stored inside."""

    tensors: dict[str, StoredTensor]
    ignored: dict[str, str]
    step: int | None
    epoch: int | None
    metadata: dict[str, str]


def select_state(content: Content) -> State:
    """The state dict of a model inside a container.

    Parameters
    ----------
    content : Content
        Its tree may be the state dict itself, or hold it under one of `STATE_NAMES`, also nested;
        nested modules are joined with dots. Prefixes ``module.`` and ``_orig_mod.`` are stripped.

    Returns
    -------
    State

    Raises
    ------
    CheckpointError
        If there is no dictionary, no floating tensor, too many tensors, or two keys become equal.
    """
    root = content.tree
    if isinstance(root, StoredTensor):
        root = {"tensor": root}
    if not isinstance(root, dict):
        raise CheckpointError(f"it holds a {type(root).__name__}, no dictionary of tensors")
    chosen = _find(_unflatten(root))
    found, ignored = _flatten(chosen)
    tensors: dict[str, StoredTensor] = {}
    for key, tensor in found.items():
        if tensor.dtype not in FLOATING:
            ignored[shown(key)] = f"dtype {tensor.dtype}"
            continue
        if tensor.nbytes == 0:
            ignored[shown(key)] = "empty"
            continue
        short = _strip(key)
        if short in tensors:
            raise CheckpointError(f"two tensors have the key {shown(short)} once prefixes are stripped")
        tensors[short] = tensor
    if not tensors:
        names = ", ".join(shown(key, limit=30) for key in list(root)[:8]) or "nothing"
        raise CheckpointError(f"it holds no floating tensor in a state dict (top level: {names})")
    numbers = [_number(root, STEP_NAMES), _number(root, EPOCH_NAMES)]
    note = root.get(METADATA_KEY)
    metadata = {METADATA_KEY: note} if isinstance(note, str) and len(note) < 1 << 20 else {}
    return State(tensors, ignored, numbers[0], numbers[1], metadata)


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, (StoredTensor, dict)) for item in value.values())


def _find(root: dict[Any, Any], depth: int = 0) -> dict[Any, Any]:
    for name in STATE_NAMES:
        if depth < MAX_DEPTH and _is_state(root.get(name)):
            return _find(root[name], depth + 1)
    return root


def _unflatten(root: dict[Any, Any]) -> dict[Any, Any]:
    """Group flat keys ``model.x`` and ``optimizer.y`` when a file keeps both side by side.

    Containers without nesting (safetensors, distributed folders) join the levels with dots; without
    a step or optimiser state beside it, ``model.`` is simply part of the keys and stays.
    """
    keys = [key for key in root if isinstance(key, str)]
    beside = (
        key in (*STEP_NAMES, *EPOCH_NAMES) or ("." in key and key.startswith(OTHER_STATE)) for key in keys
    )
    if not any(beside):
        return root
    grouped: dict[Any, Any] = {}
    for key, item in root.items():
        head, dot, rest = key.partition(".") if isinstance(key, str) else (key, "", "")
        if dot and head in STATE_NAMES and isinstance(grouped.setdefault(head, {}), dict):
            grouped[head][rest] = item
        else:
            grouped[key] = item
    return grouped


def _walk(tree: dict[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Names and values of a nested dict, dicts included (before what they hold)."""
    for key, item in tree.items():
        name = f"{prefix}{key}" if isinstance(key, (str, int)) else f"{prefix}<{type(key).__name__}>"
        yield name, item
        other = str(key).lower().startswith(OTHER_STATE)
        if isinstance(item, dict) and depth < MAX_DEPTH and not other:
            yield from _walk(item, f"{name}.", depth + 1)


def _flatten(tree: dict[Any, Any]) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    found: dict[str, StoredTensor] = {}
    ignored: dict[str, str] = {}
    for count, (name, item) in enumerate(_walk(tree)):
        if count >= MAX_ITEMS:
            raise CheckpointError(f"its dictionaries hold more than {MAX_ITEMS} items")
        if name.rpartition(".")[2].lower().startswith(OTHER_STATE):
            if isinstance(item, (dict, StoredTensor)):
                ignored[shown(name)] = "optimiser or trainer state"
        elif isinstance(item, StoredTensor):
            found[name] = item
    return found, ignored


def _strip(key: str) -> str:
    for _ in range(4):
        for prefix in PREFIXES:
            key = key.removeprefix(prefix)
    return key.replace("._orig_mod.", ".")


def _number(root: dict[Any, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = root.get(name)
        if isinstance(value, StoredTensor) and value.shape in ((), (1,)) and value.dtype.startswith("int"):
            value = int(value.load().reshape(()))
        if type(value) is int and 0 <= value < 1 << 62:
            return value
    return None
