"""How a network was trained, as far as its run tells: decay, optimiser, split, centring.

``run.json`` of ours is taken at its word. Another trainer's file of that name is understood where its fields
can mean one thing only; everything else in it is ignored, and the notes say so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analyses.checkpoints.reading.text import shown
from manifold.errors import InputError

DECAY_KINDS = ("l2", "decoupled")
# Weight decay inside the gradient (L2) or beside it, by the optimiser's name in small letters.
_DECOUPLED = re.compile(r"adamw|sgdw|lion|muon|sophia|adafactorw")
_L2 = frozenset("sgd gd adam adagrad adadelta adamax nadam radam rmsprop asgd rprop lbfgs flow".split())  # noqa: SIM905
_OPTIMIZER_KEYS = ("optimizer", "optimiser", "optim", "optimizername", "optimisername", "opt")
_DECAY_KEYS = ("weightdecay", "wd")
# Of `train`:
_PLAN_FIELDS = frozenset(("init_scale", "output_scale", "held_out", "layout", "centred", "tied"))
_NAME_KEYS = ("target", "name", "type", "class", "cls", "classname", "kind", "optimizer")
_FRACTION_KEYS = ("trainfraction", "fractrain", "trainfrac", "trainingfraction", "frac", "trainratio")
LONGEST_SHOWN = 40


@dataclass(frozen=True)
class Told:
    """What the user says about a training, over whatever its run says.

    Parameters
    ----------
    weight_decay : float, optional
        wd of ``(wd/2) |theta|^2``, or of a decoupled decay.
    decay_kind : str, optional
        One of `DECAY_KINDS`; default: as the run says, L2 for a decay given here.
    pairs : ndarray of int, shape (N, 2), optional
        The trained pairs, as rows of the stored tensors.

    Raises
    ------
    InputError
        If a value does not make sense.
    """

    weight_decay: float | None = None
    decay_kind: str | None = None
    pairs: np.ndarray | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        wd = self.weight_decay
        if wd is not None and not (isinstance(wd, (int, float)) and 0 <= wd < math.inf):
            raise InputError(f"weight decay: expected a finite number that is not negative, got {wd}")
        if self.decay_kind not in {None, *DECAY_KINDS}:
            raise InputError(
                f"decay kind: expected {' or '.join(DECAY_KINDS)}, got {shown(self.decay_kind, limit=40)}"
            )


NOTHING_TOLD = Told()


@dataclass(frozen=True)
class Recipe:
    """What a training minimised.

    Parameters
    ----------
    weight_decay : float
        wd of the L2 decay in the objective; 0 for none and for decoupled decay.
    held_out : ndarray of int, or None
        Numbers ``x n + y`` of the pairs left out; None: not told.
    centred : bool
        Whether its weights were kept without means.
    labels : int or None
        Seed of shuffled labels.
    notes : tuple of str
        Which decay is included, and which fields were not understood, one sentence each.
    """

    weight_decay: float = 0.0
    held_out: np.ndarray | None = None
    centred: bool = False
    labels: int | None = None
    notes: tuple[str, ...] = ()


def is_own(config: Mapping[str, Any]) -> bool:
    """Whether ``run.json`` was written by rhoscope."""
    # Others count the versions of their files too, but under other companions.
    named = isinstance(config.get("layout"), Mapping) or isinstance(config.get("group"), str)
    return named and (type(config.get("schema_version")) is int or set(config) >= _PLAN_FIELDS)


def recipe_of(config: Mapping[str, Any], order: int, told: Told = NOTHING_TOLD) -> Recipe:
    """The recipe that a run's configuration and the user tell.

    Parameters
    ----------
    config : mapping
        Content of ``run.json``, of any trainer; empty where there is none.
    order : int
        n, elements of the group.
    told : Told

    Returns
    -------
    Recipe

    Raises
    ------
    InputError
        If the user tells a kind of decay where there is no decay.
    """
    ignored: list[str] = []
    decay, note = _decay(config, told, ignored)
    held_out = _held_out(config, order, ignored)
    centred = _flag(config, "centred", ignored)
    notes = [note]
    if held_out is None and told.pairs is None:
        notes += _unknown_split(config)
    if ignored:
        notes.append(f"run.json: not understood and ignored: {'; '.join(ignored)}")
    return Recipe(decay, held_out, centred, _labels(config), tuple(notes))


def decay_kind_of(optimizer: Any) -> str | None:
    """Whether an optimiser's weight decay is ``l2`` or ``decoupled``; None for one that is not known.

    Parameters
    ----------
    optimizer : Any
        Its name in any of the usual spellings (``AdamW``, ``torch.optim.AdamW``, ``adamw_torch``), or a table
        that holds the name.

    Returns
    -------
    str or None
    """
    if isinstance(optimizer, Mapping):
        table = {_plain(key): value for key, value in optimizer.items()}
        if table.get("decoupledweightdecay") is True or table.get("decoupled") is True:
            return "decoupled"
        names = [table[key] for key in _NAME_KEYS if isinstance(table.get(key), str)]
        return decay_kind_of(names[0]) if names else None
    if not isinstance(optimizer, str):
        return None
    words = re.findall(r"[A-Za-z0-9_+-]+", optimizer.partition("(")[0][:200])
    name = _plain(words[-1]).removesuffix("optimizer") if words else ""
    if _DECOUPLED.search(name):
        return "decoupled"
    name = re.sub(r"^(fused|torch|apex|paged)|(torch|fused|hf|bnb|8bit|32bit|foreach)+$", "", name)
    return "l2" if name in _L2 else None


def _plain(key: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(key)[:80].lower())


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return shown(text, limit=LONGEST_SHOWN)


def _number(value: Any) -> float | None:
    """A finite number that is not negative, also as text (``"1e-4"``)."""
    if isinstance(value, str) and len(value) <= 30:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if 0 <= value < math.inf else None
    except OverflowError:
        return None


def _decay(config: Mapping[str, Any], told: Told, ignored: list[str]) -> tuple[float, str]:
    """Decay in the objective, and the sentence that says which.

    Raises
    ------
    InputError
        If a kind is told where there is no decay.
    """
    if told.weight_decay is not None:
        if told.decay_kind == "decoupled":
            return 0.0, _left_out(told.weight_decay, "as given")
        return told.weight_decay, _included(told.weight_decay, "as given")
    amount, kind = _stored_decay(config, ignored)
    kind = told.decay_kind or kind
    if amount is None and told.decay_kind is not None:
        raise InputError(
            "decay kind: there is no weight decay to which it could apply; give the decay as well"
        )
    if amount is None:
        return 0.0, "weight decay: none included, none is told"
    if amount == 0:
        return 0.0, "weight decay: none"
    if kind == "l2":
        return amount, _included(amount, "of run.json")
    if kind == "decoupled":
        return 0.0, _left_out(amount, "of run.json")
    return 0.0, (
        f"weight decay: {amount:g} of run.json is not included, because no optimiser is told whose decay is "
        "known to be L2 or decoupled; the spectrum is that of the loss alone (--decay-kind says it)"
    )


def _included(amount: float, origin: str) -> str:
    return f"weight decay: L2, {amount:g} {origin}, is in the objective as ({amount:g}/2)|theta|^2"


def _left_out(amount: float, origin: str) -> str:
    return (
        f"weight decay: {amount:g} {origin} is not in the objective; AdamW's decoupled decay is not a "
        "gradient flow: the spectrum is that of the loss alone"
    )


def _stored_decay(config: Mapping[str, Any], ignored: list[str]) -> tuple[float | None, str | None]:
    """The decay in a configuration and its kind, where it can be told."""
    table = {_plain(key): (key, value) for key, value in config.items()}
    optimizers = [table[key] for key in _OPTIMIZER_KEYS if key in table and table[key][1] is not None]
    places = [table[key] for key in _DECAY_KEYS if key in table]
    kinds = set()
    for key, value in optimizers:
        kinds.add(decay_kind_of(value))
        if isinstance(value, Mapping):
            inner = {_plain(name): (f"{key}.{name}", item) for name, item in value.items()}
            places += [inner[name] for name in _DECAY_KEYS if name in inner]
        elif not isinstance(value, str):
            ignored.append(f"{shown(key)} {_shown(value)}")
    if table.get("decoupledweightdecay", ("", None))[1] is True:
        kinds = {"decoupled"}
    amounts = []
    for key, value in places:
        amount = _number(value)
        if amount is not None:
            amounts.append(amount)
        elif value is not None:
            ignored.append(f"{shown(key)} {_shown(value)}")
    if len(set(amounts)) > 1:
        ignored.append(f"two weight decays ({', '.join(f'{amount:g}' for amount in amounts)})")
        return None, None
    return (amounts[0] if amounts else None), (kinds.pop() if len(kinds) == 1 else None)


def _held_out(config: Mapping[str, Any], order: int, ignored: list[str]) -> np.ndarray | None:
    value = config.get("held_out")
    if value is None:
        return None
    good = isinstance(value, list) and all(type(item) is int and 0 <= item < order**2 for item in value)
    if not good or len(set(value)) != len(value) or len(value) == order**2:
        ignored.append(f"held_out {_shown(value)} (expected the numbers x n + y of pairs, a list)")
        return None
    return np.array(sorted(value), dtype=int)


def _unknown_split(config: Mapping[str, Any]) -> list[str]:
    for key, value in config.items():
        share = _number(value) if _plain(key) in _FRACTION_KEYS else None
        if share is not None and 0 < share < 1:
            return [f"run.json says {shown(key)} = {share:g}, not which pairs: the loss is over all pairs"]
    return []


def _flag(config: Mapping[str, Any], name: str, ignored: list[str]) -> bool:
    value = config.get(name)
    if isinstance(value, bool) and is_own(config):
        return value
    if value:
        ignored.append(f"{name} {_shown(value)}")
    return False


def _labels(config: Mapping[str, Any]) -> int | None:
    labels = config.get("labels")
    return labels if is_own(config) and type(labels) is int and labels >= 0 else None
