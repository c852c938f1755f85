"""Expressions over a state dict: ``embed.weight[0:23] @ fc1.weight[:, 0:64].T``, parsed by hand.

Grammar (no names are looked up anywhere but in the state dict, nothing is evaluated by Python)::

    sum     = product ("+" product)*
    product = factor ("@" factor)*
    factor  = key (".T" | "[" slice ("," slice)* "]")*
    slice   = [integer] ":" [integer]
    key     = dotted name (fc1.weight, 0.weight), or any text in double quotes
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from analyses.checkpoints.reading.text import shown
from manifold.errors import LayoutError

if TYPE_CHECKING:
    from torch import Tensor

MAX_LENGTH = 2000
_KEY = r"(?:[A-Za-z_][\w\-/]*|[0-9]+(?=\.[\w\-/]))(?:\.[\w\-/]+)*"
_TOKEN = re.compile(
    rf"""\s*(?:(?P<quoted>"[^"]*") | (?P<key>{_KEY}) | (?P<dotT>\.T\b)
        | (?P<number>-?[0-9]{{1,9}}) | (?P<mark>[\[\]:,@+]))""",
    re.VERBOSE,
)


def quoted(key: str) -> str:
    """A key of a state dict as an expression: in double quotes where the grammar needs them."""
    plain = re.fullmatch(_KEY, key) and not key.endswith(".T")
    return key if plain else f'"{key}"'


@dataclass(frozen=True)
class Factor:
    """A key of the state dict with slices and transpositions, applied from left to right."""

    key: str
    operations: tuple[str | tuple[slice, ...], ...] = ()


@dataclass(frozen=True)
class Expression:
    """A sum of matrix products of factors; ``text`` is what the user wrote."""

    text: str
    products: tuple[tuple[Factor, ...], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys used, in order of appearance."""
        return tuple(dict.fromkeys(factor.key for product in self.products for factor in product))

    @property
    def factored(self) -> bool:
        """Whether a matrix product of stored tensors is in it."""
        return any(len(product) > 1 for product in self.products)

    def evaluate(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Value in float64.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            A state dict.

        Returns
        -------
        Tensor

        Raises
        ------
        LayoutError
            If a key is not there (near ones are named) or shapes do not fit.
        """
        total = None
        for product in self.products:
            value = self._factor(product[0], tensors)
            for factor in product[1:]:
                value = self._multiply(value, self._factor(factor, tensors))
            total = value if total is None else self._add(total, value)
        return total

    def remainders(self) -> Iterator[Expression]:
        """What slices that begin at 0 leave out: the same product with one of them from its end on.

        Yields
        ------
        Expression
            Not always one whose shapes fit; none for sums.
        """
        if len(self.products) > 1:
            return
        (product,) = self.products
        for i, factor in enumerate(product):
            for j, operation in enumerate(factor.operations):
                for k, part in enumerate(operation if isinstance(operation, tuple) else ()):
                    if part.start in (None, 0) and part.stop is not None:
                        rest = (*operation[:k], slice(part.stop, None), *operation[k + 1 :])
                        operations = (*factor.operations[:j], rest, *factor.operations[j + 1 :])
                        other = replace(factor, operations=operations)
                        yield Expression(self.text, ((*product[:i], other, *product[i + 1 :]),))

    def _factor(self, factor: Factor, tensors: Mapping[str, Tensor]) -> Tensor:
        if factor.key not in tensors:
            raise LayoutError(f"{self.text}: {missing_key(factor.key, tensors)}")
        return self._operated(factor, tensors[factor.key].double())

    def entries(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which numbers of each tensor the expression reads.

        Parameters
        ----------
        tensors : mapping of str to Tensor

        Returns
        -------
        dict of str to Tensor of bool
            Of the shape of the tensor.

        Raises
        ------
        LayoutError
            If a key is not there or has too few axes.
        """
        import torch

        found: dict[str, Tensor] = {}
        for factor in (factor for product in self.products for factor in product):
            if factor.key not in tensors:
                raise LayoutError(f"{self.text}: {missing_key(factor.key, tensors)}")
            shape = tensors[factor.key].shape
            mask = found.setdefault(factor.key, torch.zeros(shape, dtype=torch.bool))
            numbers = torch.arange(mask.numel()).reshape(shape)
            mask.view(-1)[self._operated(factor, numbers).reshape(-1)] = True
        return found

    def _operated(self, factor: Factor, value: Tensor) -> Tensor:
        for operation in factor.operations:
            if operation == "T":
                value = value.mT if value.ndim >= 2 else value
            elif len(operation) > value.ndim:
                raise LayoutError(
                    f"{self.text}: {len(operation)} slices for {shown(factor.key)} "
                    f"of shape {tuple(value.shape)}"
                )
            else:
                value = value[operation]
        return value

    def _multiply(self, left: Tensor, right: Tensor) -> Tensor:
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
            raise LayoutError(
                f"{self.text}: @ cannot multiply shapes {tuple(left.shape)} and {tuple(right.shape)}; "
                "use .T or slices so that the inner sizes agree"
            )
        return left @ right

    def _add(self, left: Tensor, right: Tensor) -> Tensor:
        shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
        if left.ndim and right.ndim and left.shape[-1] == right.shape[-1]:
            rows = {tensor.shape[0] if tensor.ndim == 2 else 1 for tensor in (left, right)} - {1}
            if len(rows) <= 1 and max(left.ndim, right.ndim) <= 2:
                return left + right
        raise LayoutError(f"{self.text}: + cannot add shapes {shapes}")


def missing_key(key: str, tensors: Mapping[str, Tensor]) -> str:
    """One sentence for a key that is not there, naming near ones."""
    near = difflib.get_close_matches(key, list(tensors)[:5000], n=3, cutoff=0.4)
    near += [name for name in tensors if name.endswith(f".{key}") and name not in near][:3]
    hint = (
        f"near ones: {', '.join(shown(name) for name in near)}" if near else "rhoscope inspect lists the keys"
    )
    return f"the checkpoint has no tensor {shown(key)}; {hint}"


def parse_expression(text: str) -> Expression:
    """Parse an expression over a state dict.

    Parameters
    ----------
    text : str
        See the grammar of this module.

    Returns
    -------
    Expression

    Raises
    ------
    LayoutError
        If the text does not follow the grammar; the place is named.
    """
    return _Parser(text).parse()


class _Parser:
    """Recursive descent over tokens; every loop consumes, so it always ends."""

    def __init__(self, text: str):
        if len(text) > MAX_LENGTH:
            raise LayoutError(f"expression: expected at most {MAX_LENGTH} characters, got {len(text)}")
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        stripped = text.rstrip()
        while at < len(stripped):
            match = _TOKEN.match(stripped, at)
            if match is None:
                raise self._error("unexpected character", at)
            self.tokens.append((match.lastgroup, match.group(match.lastgroup), match.start(match.lastgroup)))
            at = match.end()
        self.tokens.append(("end", "", len(stripped)))
        self.next = 0

    def _error(self, what: str, at: int) -> LayoutError:
        return LayoutError(
            f"expression {shown(self.text, limit=120)!r}: {what} at character {at + 1}; expected for example "
            "embed.weight[0:23] @ fc1.weight[:, 0:64].T"
        )

    def _take(self, *wanted: str) -> str | None:
        kind, value, _ = self.tokens[self.next]
        if kind in wanted or (kind == "mark" and value in wanted):
            self.next += 1
            return value
        return None

    def _need(self, what: str, *wanted: str) -> str:
        value = self._take(*wanted)
        if value is None:
            raise self._error(f"expected {what}", self.tokens[self.next][2])
        return value

    def parse(self) -> Expression:
        products = [self._product()]
        while self._take("+"):
            products.append(self._product())
        self._need("@, + or the end", "end")
        return Expression(self.text, tuple(products))

    def _product(self) -> tuple[Factor, ...]:
        factors = [self._factor()]
        while self._take("@"):
            factors.append(self._factor())
        return tuple(factors)

    def _factor(self) -> Factor:
        token = self._need("a key", "key", "quoted")
        operations: list[str | tuple[slice, ...]] = []
        if token.startswith('"'):
            key = token[1:-1]
        else:
            key = token
            while key.endswith(".T"):  # "w.T" is a transposition; a key that ends so is written in quotes
                key = key.removesuffix(".T")
                operations.append("T")
        while True:
            if self._take("dotT"):
                operations.append("T")
            elif self._take("["):
                operations.append(self._slices())
            else:
                return Factor(key, tuple(operations))

    def _slices(self) -> tuple[slice, ...]:
        slices = [self._slice()]
        while self._take(","):
            slices.append(self._slice())
        self._need("]", "]")
        return tuple(slices)

    def _slice(self) -> slice:
        start = self._take("number")
        self._need("a slice such as 0:23", ":")
        stop = self._take("number")
        return slice(None if start is None else int(start), None if stop is None else int(stop))
