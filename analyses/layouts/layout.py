"""Layouts: which tensors of a state dict are the weights of a network on a group."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.checkpoints.reading.statedicts import METADATA_KEY
from analyses.checkpoints.reading.text import shown
from analyses.layouts.activation_names import known_activation
from analyses.layouts.elements import element_order, inverse, read_elements
from analyses.layouts.origins import Origin
from analyses.layouts.tensor_expressions import Expression, parse_expression
from analyses.layouts.weights import Weights
from manifold.errors import CheckpointError, InputError, LayoutError
from manifold.groups.abelian import FiniteAbelianGroup

if TYPE_CHECKING:
    from torch import Tensor

    from analyses.checkpoints.reader import Checkpoint
    from spectra.networks.group_network import GroupNetwork

LOSSES = ("projected_mse", "mse", "cross_entropy")
TENSORS = ("w_a", "w_b", "w_c", "bias", "output_bias")


@dataclass(frozen=True)
class Layout:
    """Where the weights of ``o(x, y) = s sum_j c_j sigma(a_j[x] + b_j[y] + bias_j) + output_bias`` lie.

    Parameters
    ----------
    group : str
        Such as ``Z23``.
    w_a, w_c : str
        Expressions over the state dict (see `analyses.layouts.tensor_expressions`), each n x q or q x n.
    w_b : str, optional
        None: tied weights, b = a.
    bias : str, optional
        First-layer bias, q numbers. Exactly one entry of each one-hot input is 1, so adding half of it
        to every row of a and of b is exact.
    output_bias : str, optional
        n numbers. Carried exactly by one more neuron with ``sigma(a[x] + b[y]) = sigma(t)`` constant.
    loss : str
        One of `LOSSES`.
    activation : str
        ``square``, ``relu``, ``gelu``, ``tanh``, ``abs``, or a polynomial in x such as ``x^3 - 0.5*x``.
    output_scale : float
        The factor s.
    elements : tuple of int, optional
        ``elements[i]`` is the group element that row i of the stored tensors stands for (for outputs
        too); None: stored in C order.
    origin : Origin
        How this layout became known; not part of what is written down or compared.

    Raises
    ------
    LayoutError
        If a field does not make sense; expressions are parsed at once.
    """

    group: str
    w_a: str
    w_c: str
    w_b: str | None = None
    bias: str | None = None
    output_bias: str | None = None
    loss: str = "projected_mse"
    activation: str = "square"
    output_scale: float = 1.0
    elements: tuple[int, ...] | None = None
    origin: Origin = field(default=Origin(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in TENSORS:
            text = getattr(self, name)
            if text is None and name not in ("w_a", "w_c"):
                continue
            if not isinstance(text, str) or not text.strip():
                raise LayoutError(f"{name}: expected an expression over the state dict, got {text!r}")
            parse_expression(text)
        if self.loss not in LOSSES:
            raise LayoutError(f"loss: expected one of {', '.join(LOSSES)}, got {shown(self.loss)}")
        object.__setattr__(self, "activation", self._parsed_activation())
        scale = self.output_scale
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise LayoutError(f"output_scale: expected a positive number, got {shown(scale)}")
        object.__setattr__(self, "output_scale", float(scale))
        object.__setattr__(self, "group", self._parsed_group().name)
        if self.elements is not None:
            object.__setattr__(self, "elements", element_order(self.elements, self._parsed_group()))

    def _parsed_activation(self) -> str:
        if not isinstance(self.activation, str):
            raise LayoutError(f"activation: expected a name, got {shown(self.activation)}")
        try:
            return known_activation(self.activation)
        except InputError as error:
            raise LayoutError(shown(error, limit=300)) from None

    def _parsed_group(self) -> FiniteAbelianGroup:
        if not isinstance(self.group, str):
            raise LayoutError(f"group: expected a name like Z23, got {shown(self.group)}")
        try:
            return FiniteAbelianGroup.parse(self.group)
        except InputError as error:
            raise LayoutError(str(error)) from None

    # -- reading and writing -----------------------------------------------------------------------
    @classmethod
    def written_fields(cls) -> tuple[str, ...]:
        """Names of the fields that a layout file may hold."""
        return tuple(one.name for one in fields(cls) if one.name != "origin")

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], *, origin: str = "layout") -> Layout:
        """A layout from a table such as the one in a TOML file; ``[tensors]`` may be a table of its own.

        Parameters
        ----------
        document : mapping
            Keys as the parameters of this class.
        origin : str
            Named in errors.

        Returns
        -------
        Layout

        Raises
        ------
        LayoutError
            If a key is unknown or missing, or a value does not make sense.
        """
        values = dict(document)
        tensors = values.pop("tensors", {})
        if not isinstance(tensors, Mapping):
            raise LayoutError(f"{origin}: tensors: expected a table, got {shown(tensors)}")
        values.update(tensors)
        values = {key: value for key, value in values.items() if value is not None}
        known = set(cls.written_fields())
        unknown = [shown(key) for key in values if key not in known]
        if unknown:
            raise LayoutError(f"{origin}: unknown key {unknown[0]}; known are {', '.join(sorted(known))}")
        missing = [key for key in ("group", "w_a", "w_c") if key not in values]
        if missing:
            raise LayoutError(f"{origin}: {missing[0]} is missing")
        if "elements" in values:
            if not isinstance(values["elements"], Sequence) or isinstance(values["elements"], str):
                raise LayoutError(f"{origin}: elements: expected a list of elements")
            values["elements"] = tuple(values["elements"])
        assumed = tuple(name for name in ("activation", "loss") if name not in values)
        try:
            return cls(**values, origin=Origin(assumed=assumed))
        except LayoutError as error:
            raise LayoutError(f"{origin}: {error}") from None

    @classmethod
    def from_toml(cls, path: str | Path) -> Layout:
        """Read a layout file (``elements_file`` may name a file beside it with the order of elements).

        Parameters
        ----------
        path : str or Path

        Returns
        -------
        Layout

        Raises
        ------
        LayoutError
            If the file is missing, no TOML, or describes no layout.
        """
        try:
            document = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise LayoutError(f"{path}: cannot be read ({error.strerror})") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise LayoutError(f"{path}: no TOML file ({shown(error)})") from error
        if "elements_file" in document:
            document["elements"] = read_elements(Path(path).parent / str(document.pop("elements_file")))
        return cls.from_dict(document, origin=str(path))

    @classmethod
    def from_options(
        cls, base: Layout | None = None, *, tensors: Sequence[str] = (), **options: Any
    ) -> Layout:
        """A layout from command-line options, over a base layout where there is one.

        Parameters
        ----------
        base : Layout, optional
            What the options change; without it group, w_a and w_c must be given.
        tensors : sequence of str
            ``NAME=EXPR`` with NAME one of `TENSORS`; an empty EXPR removes an entry. Giving w_a without
            w_b means tied weights.
        **options
            Fields of `Layout`; None means not given.

        Returns
        -------
        Layout

        Raises
        ------
        LayoutError
            If an option does not make sense.
        """
        given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        named: dict[str, str | None] = {}
        for text in tensors:
            name, equals, expression = text.partition("=")
            if not equals or name.strip() not in TENSORS:
                raise LayoutError(f"--tensor {shown(text)}: expected NAME=EXPR, NAME in {', '.join(TENSORS)}")
            named[name.strip()] = expression.strip() or None
        if "w_a" in named:
            named.setdefault("w_b", None)
        if base is None:
            return cls.from_dict(given | named, origin="options")
        return replace(base, **given, **named)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, as JSON types."""
        values = {name: getattr(self, name) for name in self.written_fields()}
        if self.elements is not None:
            values["elements"] = list(self.elements)
        return {key: value for key, value in values.items() if value is not None}

    def to_toml(self) -> str:
        """The layout as a file that `from_toml` reads."""
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.to_dict().items())

    # -- use ---------------------------------------------------------------------------------------
    def weights(self, checkpoint: Checkpoint) -> Weights:
        """Effective weights of the network in a checkpoint, biases carried exactly.

        Parameters
        ----------
        checkpoint : Checkpoint

        Returns
        -------
        Weights

        Raises
        ------
        LayoutError
            If a key is not there or a shape fits neither n x q nor q x n.
        """
        return self.parts(checkpoint).carried(self.activation, self.output_scale)

    def parts(self, checkpoint: Checkpoint) -> Weights:
        """As `weights`, with the output bias apart: the same for every activation.

        Parameters
        ----------
        checkpoint : Checkpoint

        Returns
        -------
        Weights

        Raises
        ------
        LayoutError
            If a key is not there or a shape fits neither n x q nor q x n.
        """
        n = self._parsed_group().order
        a, b, c = (self._matrix(name, checkpoint, n) for name in ("w_a", "w_b", "w_c"))
        widths = {name: m.shape[1] for name, m in (("w_a", a), ("w_b", b), ("w_c", c)) if m is not None}
        if len(set(widths.values())) > 1:
            raise LayoutError(f"{checkpoint.path}: the widths q disagree: {widths}; check the layout")
        notes = [
            f"{name} is a product of stored tensors: the spectrum is that of the effective weights"
            for name, expression in self.expressions.items()
            if name in ("w_a", "w_b", "w_c") and expression.factored
        ]
        if self.bias is not None:
            half = self._vector("bias", checkpoint, a.shape[1]) / 2
            a, b = a + half, None if b is None else b + half
            notes.append("first-layer bias carried exactly: half added to every row of a, half to b")
        constant = None
        if self.output_bias is not None:
            constant = self._vector("output_bias", checkpoint, n)
        if self.elements is not None:
            place = inverse(self.elements)
            a, c, b = a[place], c[place], None if b is None else b[place]
            constant = None if constant is None else constant[place]
            notes.append("group elements reordered as the layout says")
        return Weights(a, b, c, constant, tuple(notes))

    @property
    def expressions(self) -> dict[str, Expression]:
        """The expressions that are there, parsed, by the names in `TENSORS`."""
        texts = {name: getattr(self, name) for name in TENSORS}
        return {name: parse_expression(text) for name, text in texts.items() if text is not None}

    def network(self, checkpoint: Checkpoint, *, quadratic: bool = True) -> GroupNetwork:
        """The network of a checkpoint.

        Parameters
        ----------
        checkpoint : Checkpoint
        quadratic : bool
            Refuse activations other than the square.

        Returns
        -------
        GroupNetwork

        Raises
        ------
        LayoutError
            If the tensors do not fit, or the activation is not the square where that is asked for.
        CheckpointError
            If the loss overflows with weights as large.
        """
        from spectra.networks.activations import parse_activation  # late: spectra imports torch
        from spectra.networks.group_network import GroupNetwork

        if quadratic and self.activation != "square":
            raise LayoutError(
                f"activation {self.activation}: expected the square, whose potentials determine the loss; "
                "other activations have a spectrum (rhoscope analyze, crossings)"
            )
        weights = self.weights(checkpoint)
        network = GroupNetwork(
            self._parsed_group(), weights.a, weights.b, weights.c, self.output_scale,
            parse_activation(self.activation),
        )  # fmt: skip
        if (size := network.largest) > network.overflow:
            raise CheckpointError(
                f"{checkpoint.path}: weights as large as {size:.1e}, with which the loss overflows double "
                "precision: this training has diverged"
            )
        return network

    def _matrix(self, name: str, checkpoint: Checkpoint, n: int) -> Tensor | None:
        text = getattr(self, name)
        if text is None:
            return None
        value = self._value(name, checkpoint)
        if value.ndim == 2 and value.shape[0] == n and value.shape[1]:
            return value
        if value.ndim == 2 and value.shape[1] == n and value.shape[0]:
            return value.mT
        raise LayoutError(
            f"{checkpoint.path}: {name} = {shown(text)} has shape {tuple(value.shape)}; expected {n} x q or "
            f"q x {n} for the group {self.group}: check --group, or slice it in the layout"
        )

    def _vector(self, name: str, checkpoint: Checkpoint, size: int) -> Tensor:
        value = self._value(name, checkpoint)
        if value.numel() != size or value.ndim > 2:
            raise LayoutError(
                f"{checkpoint.path}: {name} has shape {tuple(value.shape)}; expected {size} numbers"
            )
        return value.reshape(-1)

    def _value(self, name: str, checkpoint: Checkpoint) -> Tensor:
        expression = parse_expression(getattr(self, name))
        checkpoint.require(expression.keys)
        try:
            return expression.evaluate(checkpoint.tensors)
        except LayoutError as error:
            raise LayoutError(f"{checkpoint.path}: {name} = {error}") from None


def stored_layout(checkpoint: Checkpoint) -> Layout | None:
    """The layout that rhoscope stored with a composed, constructed or converted checkpoint, if any.

    Parameters
    ----------
    checkpoint : Checkpoint

    Returns
    -------
    Layout or None

    Raises
    ------
    LayoutError
        If there is one but it does not make sense.
    """
    text = checkpoint.metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        document = json.loads(text)["layout"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LayoutError(f"{checkpoint.path}: the layout stored in it is damaged") from error
    if document is None:
        return None
    if not isinstance(document, dict):
        raise LayoutError(f"{checkpoint.path}: the layout stored in it is damaged")
    return Layout.from_dict(document, origin=f"{checkpoint.path}: stored layout")
