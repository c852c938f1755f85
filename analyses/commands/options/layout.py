"""Options that say where a network's weights are, shared by every command that reads checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from analyses.checkpoints.reader import Checkpoint
from analyses.checkpoints.reading.text import shown
from analyses.commands.options.common import say
from analyses.commands.options.values import converted, group_name, real
from analyses.layouts.activation_names import ACTIVATIONS
from analyses.layouts.elements import read_elements
from analyses.layouts.guesses import VERIFIED, Guess, guess_layout, guess_of
from analyses.layouts.layout import Layout
from analyses.layouts.leftovers import unused_numbers, unused_tensors
from analyses.layouts.origins import Confidence, Origin
from analyses.layouts.rivals import judge
from analyses.runs.run import Run, known_layout
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


class UncertainLayoutError(LayoutError):
    """A guessed layout that is not certain enough for what a command does with it."""


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
    certain: bool = False,
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
    certain : bool
        Refuse a guess that is not verified, unless the activation is given: for commands that write it down.
    quiet : bool
        Do not say which layout was guessed.

    Returns
    -------
    Layout
        With its origin: what was guessed or assumed, rivals, unused tensors, notes.

    Raises
    ------
    LayoutError
        If nothing tells the layout and no guess is usable.
    UncertainLayoutError
        If it must be certain and is not.
    """
    base = Layout.from_toml(layout) if layout is not None else None
    guess = None
    if base is None and not _complete(tensor, group):
        base = known_layout(checkpoint, run)
        if base is None:
            guess = _usable(checkpoint, tensor, group, activation, loss)
            base = guess.layout
    given: dict[str, Any] = {"group": group, "loss": loss, "activation": activation}
    given |= {"output_scale": output_scale, "elements": tuple(read_elements(elements)) if elements else None}
    chosen = Layout.from_options(base, tensors=tensor or (), **given)
    if guess is not None and (tensor or elements or output_scale is not None):
        fixed = {"activation": activation, "loss": loss, "fixed_scale": output_scale is not None}
        guess = guess_of(judge(chosen, checkpoint, **fixed), checkpoint)  # the options changed the network
        chosen = guess.layout
    if guess is not None:
        origin = _origin_of_guess(guess, activation)
        if certain and activation is None and guess.confidence is not Confidence.VERIFIED:
            raise UncertainLayoutError(
                f"{checkpoint.path}: {origin.notes[0]}: give --activation ({', '.join(ACTIVATIONS)}) "
                "to accept it"
            )
    else:
        origin = _origin_of_known(
            chosen, checkpoint, {key for key, value in given.items() if value is not None}
        )
    for note in origin.notes if guess is not None else ():
        say(note, quiet=quiet)
    return replace(chosen, origin=origin)


def _complete(tensor: list[str] | None, group: str | None) -> bool:
    named = {text.partition("=")[0].strip() for text in tensor or ()}
    return group is not None and {"w_a", "w_c"} <= named


def _usable(
    checkpoint: Checkpoint, tensor: list[str] | None, group: str | None, activation: str | None,
    loss: str | None,
) -> Guess:  # fmt: skip
    guess = guess_layout(checkpoint, group, activation=activation, loss=loss)
    if guess is not None and guess.usable:
        return guess
    if tensor and guess is None:
        raise LayoutError(f"{checkpoint.path}: give --group, and --tensor for both w_a and w_c")
    why = guess.reason if guess else "no tensors of fitting shapes"
    raise LayoutError(
        f"{checkpoint.path}: no layout is stored with it and none can be guessed ({why}); give --layout "
        "FILE, or --group and --tensor w_a=EXPR --tensor w_c=EXPR (rhoscope inspect lists the tensors)"
    )


def _origin_of_guess(guess: Guess, activation: str | None) -> Origin:
    notes = [f"layout guessed ({guess.confidence}): {guess.reason}"]
    if guess.rivals and activation is None:
        notes[0] += (
            f"; {', '.join(guess.rivals)} {'fits' if len(guess.rivals) == 1 else 'fit'} as well "
            "(--activation decides)"
        )
    if guess.doubts:
        notes[0] += "; not certain: " + "; ".join(guess.doubts)
    return Origin(True, guess.confidence, guess.rivals, guess.unused, (), (*notes, *guess.remarks))


def _origin_of_known(layout: Layout, checkpoint: Checkpoint, given: set[str]) -> Origin:
    """Of a layout that was written down or told: what it leaves out, and what nobody told."""
    unused, parts = unused_tensors(layout, checkpoint), unused_numbers(layout, checkpoint)
    assumed = tuple(name for name in layout.origin.assumed if name not in given)
    notes = []
    if unused:
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        are = "is" if len(unused) == 1 else "are"
        notes.append(f"{', '.join(shown(key) for key in unused[:5])}{more} {are} not used by the layout")
    if parts:
        told = ", ".join(f"{left:,} of {size:,} of {shown(key)}" for key, (left, size) in parts.items())
        notes.append(f"numbers that the slices of the layout leave out: {told}")
    rivals: tuple[str, ...] = ()
    if "activation" in assumed:
        rivals, told = _rivals_of_default(layout, checkpoint)
        notes.append(told)
    if "loss" in assumed:
        notes.append(f"no loss was given: {layout.loss} is assumed (--loss)")
    return Origin(False, None, rivals, unused, assumed, tuple(notes))


def _rivals_of_default(layout: Layout, checkpoint: Checkpoint) -> tuple[tuple[str, ...], str]:
    """Other activations that the numbers of a network allow, where the default one was taken."""
    told = f"no activation was given: {layout.activation} is assumed (--activation)"
    verdict = judge(layout, checkpoint, loss=layout.loss, fixed_scale=True)
    fitting = dict.fromkeys((verdict.layout.activation, *verdict.rivals))
    rivals = tuple(name for name in fitting if name != layout.activation)
    if rivals and verdict.accuracy >= VERIFIED:
        better = layout.activation not in fitting
        told += f"; {' and '.join(rivals)} {'fits better' if better else 'would fit as well'}"
        return rivals, told
    return (), told
