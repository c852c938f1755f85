"""Which tensors of a state dict could be the weights of a two-layer group network, by shape and name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analyses.layouts.tensor_expressions import quoted

if TYPE_CHECKING:
    from analyses.checkpoints.reader import Checkpoint

MAX_MATRICES = 12
MAX_ENTRIES = 1 << 23  # of one effective weight matrix, n x q
SPARE_TOKENS = 3  # a vocabulary may hold this many more tokens than the group has elements

_OUT = re.compile(
    r"(?:w_?c|c|out\w*|unembed\w*|lm_head|head|dec\w*|readout|w_?u|(?:fc|l|w|lin\w*|layer)_?2)\b", re.I
)
_FIRST = re.compile(r"(?:w_?a|a|left|lhs|emb\w*_?[ax1]|[xu])\b", re.I)
_SECOND = re.compile(r"(?:w_?b|b|right|rhs|emb\w*_?[by2]|[yv])\b", re.I)
_BIAS = re.compile(r"(?:^|[._/])b(?:ias)?[^.]{0,8}$", re.I)
_EMBEDDING = re.compile(r"emb|wte|tok", re.I)


@dataclass(frozen=True)
class Candidate:
    """One combination of tensors: expressions for a layout, and how much their names speak for it."""

    structure: str
    first: str
    second: str | None
    out: str
    bias: tuple[str, ...]
    output_bias: str | None
    order: int
    width: int
    prior: float


def candidates(checkpoint: Checkpoint, order: int | None) -> Iterator[Candidate]:
    """Every combination of tensors whose shapes fit a two-layer network on a group.

    Parameters
    ----------
    checkpoint : Checkpoint
    order : int or None
        Order of the group; None: what the outputs allow.

    Yields
    ------
    Candidate
    """
    shapes = {key: tuple(t.shape) for key, t in checkpoint.tensors.items() if '"' not in key}
    matrices = {key: shape for key, shape in shapes.items() if len(shape) == 2 and min(shape) >= 2}
    if not 2 <= len(matrices) <= MAX_MATRICES:
        return
    for out, transposed in itertools.product(matrices, (False, True)):
        rows, width = matrices[out][::-1] if transposed else matrices[out]
        sizes = [order] if order is not None else range(rows, max(rows - SPARE_TOKENS, 1), -1)
        for n in sizes:
            if n <= rows and n * width <= MAX_ENTRIES:
                yield from _with_out(shapes, matrices, out, transposed, n)


def _with_out(
    shapes: dict[str, tuple[int, ...]],
    matrices: dict[str, tuple[int, ...]],
    out: str,
    transposed: bool,
    n: int,
) -> Iterator[Candidate]:
    rows, width = matrices[out][::-1] if transposed else matrices[out]
    text = quoted(out) + (".T" if transposed else "")
    text += f"[0:{n}]" if n < rows else ""
    names = list(matrices)
    prior = 4.0 * bool(_OUT.search(out)) + names.index(out) / len(names) - 2.0 * (rows - n)
    prior -= 0.5 * transposed  # linear layers store (outputs, inputs)
    prior -= 1.0 * bool(_EMBEDDING.search(out) and "un" not in out.lower())
    output_bias = _vector_of(shapes, out, rows)
    rest = {key: shape for key, shape in matrices.items() if key != out}
    for structure, first, second, bias, bonus in _first_layers(rest, n, width):
        linear_bias = _vector_of(shapes, bias[0], width) if bias else None
        biases = tuple(bias[1:]) + ((quoted(linear_bias),) if linear_bias else ())
        trimmed = None
        if output_bias is not None and output_bias != linear_bias:
            trimmed = quoted(output_bias) + (f"[0:{n}]" if n < rows else "")
        yield Candidate(structure, first, second, text, biases, trimmed, n, width, prior + bonus)


def _vector_of(shapes: dict[str, tuple[int, ...]], key: str, size: int) -> str | None:
    """The bias that belongs to a weight by its name, else the only vector of its size that is called one."""
    stem, _, last = key.rpartition(".")
    stem = f"{stem}." if stem else ""
    partner = stem + re.sub(r"^[wW]", lambda first: "b" if first[0] == "w" else "B", last)
    small = stem + re.sub(r"^[wW]", "b", last)
    for name in (
        f"{stem}bias", f"{key}_bias", f"{key}.bias", stem + last.replace("weight", "bias"), partner, small,
    ):  # fmt: skip
        if name != key and shapes.get(name) == (size,):
            return name
    called = [name for name, shape in shapes.items() if shape == (size,) and _BIAS.search(name)]
    return called[0] if len(called) == 1 else None


def _oriented(key: str, shape: tuple[int, ...], width: int) -> Iterator[tuple[str, int]]:
    """Expressions for a matrix as (rows x width), with the number of rows."""
    if shape[1] == width:
        yield quoted(key), shape[0]
    if shape[0] == width:
        yield quoted(key) + ".T", shape[1]


def _first_layers(
    rest: dict[str, tuple[int, ...]], n: int, width: int
) -> Iterator[tuple[str, str, str | None, list[str], float]]:
    """Structures of the first layer: (name, w_a, w_b, [key of the linear map, extra bias terms..], prior)."""
    direct = [
        (key, text, rows)
        for key, shape in rest.items()
        for text, rows in _oriented(key, shape, width)
        if n <= rows <= n + SPARE_TOKENS
    ]
    cut = {text: f"[0:{n}]" if rows > n else "" for _, text, rows in direct}
    for (key_a, a, _), (key_b, b, _) in itertools.permutations(direct, 2):
        if key_a != key_b:
            bonus = 2.0 * bool(_FIRST.search(key_a)) + 2.0 * bool(_SECOND.search(key_b)) + 0.5
            in_order = list(rest).index(key_a) < list(rest).index(key_b)
            yield "separate first layers", a + cut[a], b + cut[b], [key_a], bonus + in_order
    for key, a, _ in direct:
        yield "tied first layer", a + cut[a], None, [key], 1.0
    for key, shape in rest.items():
        for text, rows in _oriented(key, shape, width):
            yield from _concatenated(key, text, rows, n)
    for embedding, (vocabulary, d) in rest.items():
        if n <= vocabulary <= n + SPARE_TOKENS:
            others = {key: shape for key, shape in rest.items() if key != embedding}
            yield from _embedded(embedding, vocabulary, d, others, n, width)


def _concatenated(
    key: str, text: str, rows: int, n: int
) -> Iterator[tuple[str, str, str | None, list[str], float]]:
    for parts, vocabulary in ((2, rows // 2), (3, rows // 3)):
        if rows != parts * vocabulary or not n <= vocabulary <= n + SPARE_TOKENS:
            continue
        if parts == 2:
            extra = [key]
        elif vocabulary > n:  # the third input is a constant token: a bias
            extra = [key, f"{text}[{2 * vocabulary + n}:{2 * vocabulary + n + 1}]"]
        else:
            continue
        yield (
            "concatenated first layer",
            f"{text}[0:{n}]",
            f"{text}[{vocabulary}:{vocabulary + n}]",
            extra,
            2.0,
        )


def _embedded(
    embedding: str, vocabulary: int, d: int, others: dict[str, tuple[int, ...]], n: int, width: int
) -> Iterator[tuple[str, str, str | None, list[str], float]]:
    table = quoted(embedding)
    rows = f"{table}[0:{n}]" if vocabulary > n else table
    bonus = 1.0 + 2.0 * bool(_EMBEDDING.search(embedding))
    for key, shape in others.items():
        for text, inputs in _oriented(key, shape, width):
            if inputs == d:
                yield "embedding, linear map of the sum", f"{rows} @ {text}", None, [key], bonus
                for second, (size, e) in others.items():
                    if second != key and e == d and n <= size <= n + SPARE_TOKENS:
                        other = quoted(second) + (f"[0:{n}]" if size > n else "")
                        yield (
                            "two embeddings, linear map of the sum",
                            f"{rows} @ {text}",
                            f"{other} @ {text}",
                            [key],
                            bonus + 1.0,
                        )
            if inputs == 2 * d:
                for second, (size, e) in others.items():
                    if second != key and e == d and n <= size <= n + SPARE_TOKENS:
                        other = quoted(second) + (f"[0:{n}]" if size > n else "")
                        yield (
                            "two embeddings, linear map of the concatenation",
                            f"{rows} @ {text}[0:{d}]",
                            f"{other} @ {text}[{d}:{2 * d}]",
                            [key],
                            bonus + 1.5,
                        )
            for parts in (2, 3):
                if inputs == parts * d and (parts == 2 or vocabulary > n):
                    extra = [key]
                    if parts == 3:
                        extra.append(f"{table}[{n}:{n + 1}] @ {text}[{2 * d}:{3 * d}]")
                    yield (
                        "embedding, linear map of the concatenation",
                        f"{rows} @ {text}[0:{d}]",
                        f"{rows} @ {text}[{d}:{2 * d}]",
                        extra,
                        bonus + 1.0,
                    )
