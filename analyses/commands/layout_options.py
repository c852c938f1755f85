"""Options that say where a network's weights are, shared by every command that reads checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyses.checkpoints import Checkpoint
from analyses.commands.options import say
from analyses.commands.values import converted, group_name, real
from analyses.elements import read_elements
from analyses.guesses import guess_layout
from analyses.layouts import Layout
from analyses.runs import Run, known_layout
from manifold.errors import LayoutError

_PANEL = "Layout"
LayoutFile = Annotated[
    Path | None, typer.Option("--layout", help="Layout file (TOML).", rich_help_panel=_PANEL)
]
TensorOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor",
        metavar="NAME=EXPR",
        help="w_a, w_b, w_c, bias or output_bias over the state dict: keys with slices, .T, @ and +.",
        rich_help_panel=_PANEL,
    ),
]
GroupOption = Annotated[
    str | None,
    typer.Option(
        "--group", help="Group: Z23, Z4xZ6.", rich_help_panel=_PANEL, **converted(group_name, "GROUP")
    ),
]
LossOption = Annotated[
    str | None,
    typer.Option("--loss", help="projected_mse, mse or cross_entropy.", rich_help_panel=_PANEL),
]
ActivationOption = Annotated[
    str | None,
    typer.Option(
        "--activation", help="square, relu, gelu, tanh, abs, or like x^3 - 0.5*x.", rich_help_panel=_PANEL
    ),
]
OutputScaleOption = Annotated[
    float | None,
    typer.Option(
        "--output-scale",
        help="The factor s before the sum over neurons.",
        rich_help_panel=_PANEL,
        **real(above=0),
    ),
]
ElementsOption = Annotated[
    Path | None,
    typer.Option(
        "--elements", help="File: which group element each stored row stands for.", rich_help_panel=_PANEL
    ),
]
StepPattern = Annotated[
    str | None,
    typer.Option(
        "--step-pattern",
        help="Regular expression; its group is the step in file names.",
        rich_help_panel=_PANEL,
    ),
]


def choose_layout(
    checkpoint: Checkpoint,
    run: Run | None = None,
    *,
    layout: Path | None = None,
    tensor: list[str] | None = None,
    group: str | None = None,
    loss: str | None = None,
    activation: str | None = None,
    output_scale: float | None = None,
    elements: Path | None = None,
    quiet: bool = False,
) -> Layout:
    """The layout to read a checkpoint with: options over a file, what was stored, or a guess.

    Parameters
    ----------
    checkpoint : Checkpoint
    run : Run, optional
        The run it belongs to.
    layout, tensor, group, loss, activation, output_scale, elements
        The options of the command line; None: not given.
    quiet : bool
        Do not say which layout was guessed.

    Returns
    -------
    Layout

    Raises
    ------
    LayoutError
        If nothing tells the layout and no guess is better than weak.
    """
    base = Layout.from_toml(layout) if layout is not None else None
    if base is None and not _complete(tensor, group):
        base = known_layout(checkpoint, run)
        if base is None:
            base = _guessed(checkpoint, tensor, group, activation, quiet)
    order = tuple(read_elements(elements)) if elements is not None else None
    return Layout.from_options(
        base,
        tensors=tensor or (),
        group=group,
        loss=loss,
        activation=activation,
        output_scale=output_scale,
        elements=order,
    )


def _complete(tensor: list[str] | None, group: str | None) -> bool:
    named = {text.partition("=")[0].strip() for text in tensor or ()}
    return group is not None and {"w_a", "w_c"} <= named


def _guessed(
    checkpoint: Checkpoint, tensor: list[str] | None, group: str | None, activation: str | None, quiet: bool
) -> Layout | None:
    guess = guess_layout(checkpoint, group, activation=activation)
    if guess is None or guess.confidence == "weak":
        if tensor and guess is None:
            raise LayoutError(f"{checkpoint.path}: give --group, and --tensor for both w_a and w_c")
        why = guess.reason if guess else "no tensors of fitting shapes"
        raise LayoutError(
            f"{checkpoint.path}: no layout is stored with it and none can be guessed ({why}); give --layout "
            "FILE, or --group and --tensor w_a=EXPR --tensor w_c=EXPR (rhoscope inspect lists the tensors)"
        )
    say(f"layout guessed ({guess.confidence}): {guess.reason}", quiet=quiet)
    return guess.layout
