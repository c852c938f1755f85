"""Hints: the words for an activation and a loss that a trainer left in a checkpoint or beside it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.checkpoints.reading.text import shown
from analyses.checkpoints.reading.words import WORDS_KEY

if TYPE_CHECKING:
    from analyses.checkpoints.reader import Checkpoint

MAX_BYTES = 1 << 20  # a configuration; larger files of these names are logs
MAX_DEPTH = 4
MAX_VALUES = 2000
LARGEST = 1e300  # integers beyond do not fit into a float

_NAMES = re.compile(
    r"(?:run|cfg|conf|(?:(?:train(?:ing)?|model|run)_)?config|args|arguments|(?:h|hyper_?)param(?:eter)?s|params"
    r"|settings|options)(?:[_-](\w+))?\.(?:json|ya?ml)",
    re.IGNORECASE,
)
_INNER = re.compile(r"(checkpoint|ckpt|weight|model|save|state)s?", re.IGNORECASE)
_ACTIVATION = re.compile(
    r"(act|activ|activation|nonlin|non_?linearity)(_?(fn|fun|func|function|type|name|class|mlp|hidden))?"
    r"|(hidden|mlp|ff|ffn)_(act|activation|act_fn)|sigma"
)
_LOSS = re.compile(r"(loss|criterion|objective)(_?(fn|fun|func|function|type|name|kind))?")
_LOSS_VALUE = re.compile(r"(train(ing)?_?)?(loss|losses)")

# Words of other programs for the activations that layouts know; a word of the second table names another.
_WORDS = {
    "relu": "relu", "square": "square", "squared": "square", "quad": "square", "quadratic": "square",
    "x**2": "square", "x^2": "square", "pow2": "square", "gelu": "gelu", "tanh": "tanh", "abs": "abs",
    "absolute": "abs", "absval": "abs",
}  # fmt: skip
_FOREIGN = (
    "silu", "swish", "sigmoid", "leaky_relu", "leakyrelu", "elu", "selu", "celu", "prelu", "rrelu", "relu6",
    "softplus", "sin", "sine", "cos", "cube", "cubic", "mish", "identity", "linear", "gelu_new", "gelu_fast",
    "gelu_tanh", "gelu_pytorch_tanh", "quick_gelu", "crelu", "hardtanh", "softsign", "glu", "swiglu", "geglu",
    "reglu", "x**3", "x^3", "relu2", "relu_squared",
)  # fmt: skip
_LOSSES = {
    "cross_entropy": "cross_entropy", "crossentropy": "cross_entropy", "crossentropyloss": "cross_entropy",
    "ce": "cross_entropy", "xent": "cross_entropy", "nll": "cross_entropy", "nllloss": "cross_entropy",
    "nll_loss": "cross_entropy", "cross_entropy_loss": "cross_entropy", "mse": "mse", "mseloss": "mse",
    "mse_loss": "mse", "l2": "mse", "squared_error": "mse", "projected_mse": "projected_mse",
}  # fmt: skip
_TOKEN = re.compile(r"[a-z][a-z0-9_]*(?:\*\*|\^)?[0-9]?|[0-9]+", re.IGNORECASE)


@dataclass(frozen=True)
class Word:
    """One word: what it names in our terms, as it was written, and where.

    ``name`` is None where the word names something that layouts do not know.
    """

    name: str | None
    text: str
    place: str


@dataclass(frozen=True)
class Hints:
    """What was written down about a network.

    Parameters
    ----------
    activations, losses : tuple of Word
        Every word found, contradictions included.
    values : tuple of float
        Training losses stored as numbers.
    """

    activations: tuple[Word, ...] = ()
    losses: tuple[Word, ...] = ()
    values: tuple[float, ...] = ()

    def activation(self) -> Word | None:
        """The activation, if all words about it agree."""
        return _agreed(self.activations)

    def loss(self) -> Word | None:
        """The loss, if all words about it agree."""
        return _agreed(self.losses)


def hints_of(checkpoint: Checkpoint) -> Hints:
    """What a checkpoint and the configurations beside it say about activation and loss.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its metadata, the plain values stored beside its tensors, and JSON or YAML files in its folder (of
        a folder such as ``checkpoints`` also the one above) with names such as ``run.json``, ``cfg.json``,
        ``hparams.yaml``; ``config_7r4.json`` only for checkpoints with 7r4 in their name.

    Returns
    -------
    Hints
        Files that cannot be read say nothing.
    """
    activations: list[Word] = []
    losses: list[Word] = []
    values: list[float] = []
    for place, document in _documents(checkpoint):
        for key, value in _entries(document):
            name = key.lower().replace("-", "_")
            if isinstance(value, str) and _ACTIVATION.fullmatch(name):
                activations += _activation_word(key, value, place)
            elif isinstance(value, str) and _LOSS.fullmatch(name):
                losses += _loss_word(key, value, place)
            elif isinstance(value, float) and _LOSS_VALUE.fullmatch(name) and 0 < value < math.inf:
                values.append(value)
    return Hints(tuple(activations), tuple(losses), tuple(values))


def _agreed(words: tuple[Word, ...]) -> Word | None:
    return words[0] if len({word.name for word in words}) == 1 else None


def _activation_word(key: str, text: str, place: str) -> Iterator[Word]:
    tokens = {token.lower() for token in _TOKEN.findall(text)}
    known = {_WORDS[token] for token in tokens if token in _WORDS}
    foreign = tokens & set(_FOREIGN)
    if foreign or known:
        name = known.pop() if len(known) == 1 and not foreign else None
        yield Word(name, f"{shown(key, limit=30)} = {shown(text, limit=40)}", place)


def _loss_word(key: str, text: str, place: str) -> Iterator[Word]:
    tokens = [token.lower() for token in _TOKEN.findall(text)]
    known = {_LOSSES[token] for token in (*tokens, "_".join(tokens)) if token in _LOSSES}
    if known:
        name = known.pop() if len(known) == 1 else None
        yield Word(name, f"{shown(key, limit=30)} = {shown(text, limit=40)}", place)


# -- where words are ---------------------------------------------------------------------------------


def _documents(checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    if WORDS_KEY in checkpoint.metadata:
        yield "the checkpoint", _json(checkpoint.metadata[WORDS_KEY])
    yield "the checkpoint", {key: text for key, text in checkpoint.metadata.items() if key != WORDS_KEY}
    path = Path(checkpoint.path)
    if not path.exists():
        return
    own = (path if path.is_dir() else path.parent).resolve()
    for folder in (own, own.parent) if _INNER.fullmatch(own.name) else (own,):
        for file in _configurations(folder, path.stem):
            document = _read(file)
            if document is not None:
                yield file.name, document


def _configurations(folder: Path, stem: str) -> list[Path]:
    """Configurations in a folder that are not those of another checkpoint."""
    try:
        found = [(item, _NAMES.fullmatch(item.name)) for item in sorted(folder.iterdir()) if item.is_file()]
    except OSError:
        return []
    return [item for item, name in found if name and (name[1] is None or name[1] in stem)]


def _read(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_BYTES:
            return None
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return _json(text) if file.suffix.lower() == ".json" else _flat_yaml(text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _flat_yaml(text: str) -> dict[str, Any]:
    """The ``key: value`` lines of a YAML file, nesting ignored."""
    pairs = re.findall(r"^[ \t]*([\w\-]{1,60})[ \t]*:[ \t]+([^#\n]{1,200})", text, re.MULTILINE)
    return {key: value.strip().strip("'\"") for key, value in pairs[:MAX_VALUES]}


def _entries(document: Any) -> Iterator[tuple[str, str | float]]:
    """Keys with their text or number; of a list of numbers the last one; nested at most `MAX_DEPTH` deep."""
    left = [(document, 0)]
    for _ in range(MAX_VALUES):
        if not left:
            return
        tree, depth = left.pop(0)
        if not isinstance(tree, Mapping):
            continue
        for key, value in list(tree.items())[:MAX_VALUES]:
            last = value[-1] if isinstance(value, list) and value else value
            if isinstance(last, str):
                yield str(key), last
            elif isinstance(last, (int, float)) and not isinstance(last, bool):
                yield str(key), float(last) if abs(last) < LARGEST else math.inf
            elif depth < MAX_DEPTH:
                left.append((value, depth + 1))
