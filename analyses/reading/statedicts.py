"""Find the model's tensors in whatever a trainer saved: nesting, prefixes, optimiser state, step."""

from __future__ import annotations

import itertools
import json
import re
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
OTHER_STATE = re.compile(
    r"(optim\w*|(lr_?)?sched\w*|(grad_?)?scaler\w*|rng\w*|callbacks|loops|amp(_\w+)?)(\.|$)", re.IGNORECASE
)
METADATA_KEY = "rhoscope"
WORDS_KEY = "rhoscope.words"  # plain values beside the tensors, as JSON
MAX_WORDS = 500
MAX_WORD_LENGTH = 200
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
    whole = _unflatten(root)
    chosen = _find(whole)
    found, ignored = _flatten(chosen)
    if chosen is not whole:
        for key, item in whole.items():
            if isinstance(item, (dict, StoredTensor)) and key not in STATE_NAMES:
                ignored[shown(key)] = "beside the state dict"
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
    words = _words(root)
    if words:
        metadata[WORDS_KEY] = json.dumps(words)
    return State(tensors, ignored, numbers[0], numbers[1], metadata)


def _is_state(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return any(isinstance(item, StoredTensor) for _, item in itertools.islice(_walk(value), MAX_ITEMS))


def _find(root: dict[Any, Any], depth: int = 0) -> dict[Any, Any]:
    for name in STATE_NAMES:
        if depth < MAX_DEPTH and _is_state(root.get(name)):
            return _find(root[name], depth + 1)
    return root


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


def _walk(tree: dict[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Names and values of a nested dict, dicts included (before what they hold); no trainer state."""
    for key, item in tree.items():
        name = f"{prefix}{key}" if isinstance(key, str) else f"{prefix}<{type(key).__name__}>"
        yield name, item
        if isinstance(item, dict) and depth < MAX_DEPTH and not (depth == 0 and OTHER_STATE.match(name)):
            yield from _walk(item, f"{name}.", depth + 1)


def _flatten(tree: dict[Any, Any]) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    found: dict[str, StoredTensor] = {}
    ignored: dict[str, str] = {}
    for count, (name, item) in enumerate(_walk(tree)):
        if count >= MAX_ITEMS:
            raise CheckpointError(f"its dictionaries hold more than {MAX_ITEMS} items")
        flat_state = "." in name and OTHER_STATE.match(name)
        if flat_state or (isinstance(item, dict) and OTHER_STATE.match(name)):
            ignored[shown(name)] = "optimiser or trainer state"
        elif isinstance(item, StoredTensor):
            found[name] = item
    return found, ignored


def _strip(key: str) -> str:
    for _ in range(4):
        for prefix in PREFIXES:
            key = key.removeprefix(prefix)
    return key.replace("._orig_mod.", ".")


def _words(root: dict[Any, Any]) -> dict[str, str | float]:
    """Short texts and numbers beside the tensors (of a list of numbers the last), by their last key."""
    found: dict[str, str | float] = {}
    for name, item in itertools.islice(_walk(root), MAX_ITEMS):
        key = name.rpartition(".")[2][:MAX_WORD_LENGTH]
        last = item[-1] if isinstance(item, (list, tuple)) and item else item
        plain = type(last) in (str, int, float) and len(found) < MAX_WORDS
        if plain and (not isinstance(last, str) or len(last) <= MAX_WORD_LENGTH) and key != METADATA_KEY:
            found.setdefault(key, last if isinstance(last, str) else float(min(max(last, -1e300), 1e300)))
    return found


def _number(root: dict[Any, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = root.get(name)
        if isinstance(value, StoredTensor) and value.shape in ((), (1,)) and value.dtype.startswith("int"):
            value = int(value.load().reshape(()))
        if type(value) is int and 0 <= value < 1 << 62:
            return value
    return None
