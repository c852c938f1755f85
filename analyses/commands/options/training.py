"""Options that say how a network was trained, where its run does not: decay and trained pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from analyses.commands.options.values import converted, one_of, real
from analyses.runs.pair_files import read_pairs
from analyses.runs.recipes import DECAY_KINDS, Told
from analyses.runs.run import Run

_PANEL = "Training"
FROM_RUN = "from-run"


def _decay(text: str) -> str:
    return text if text == FROM_RUN else repr(real(least=0)["parser"](text))


WeightDecay = Annotated[
    str,
    typer.Option(
        help=f"Weight decay of the training: a number, or {FROM_RUN}.",
        rich_help_panel=_PANEL,
        **converted(_decay, "NUMBER"),
    ),
]
DecayKind = Annotated[
    str | None,
    typer.Option(
        help="l2: in the objective | decoupled (AdamW): not in it. (default: as the optimiser, else l2)",
        rich_help_panel=_PANEL,
        **one_of(DECAY_KINDS),
    ),
]
TrainPairs = Annotated[
    Path | None,
    typer.Option(
        help="File of the trained pairs: two rows x y a line, or a JSON list, or .npy.",
        rich_help_panel=_PANEL,
    ),
]


def with_told(
    run: Run | None, weight_decay: str, decay_kind: str | None, train_pairs: Path | None
) -> Run | None:
    """A run with what the command line says about its training.

    Parameters
    ----------
    run : Run or None
        None: a checkpoint without a run.
    weight_decay, decay_kind, train_pairs
        The options.

    Returns
    -------
    Run or None
        None if there was none and nothing is said.
    """
    told = Told(
        None if weight_decay == FROM_RUN else float(weight_decay),
        decay_kind,
        None if train_pairs is None else read_pairs(train_pairs),
    )
    if run is None:
        return None if told == Told() and told.pairs is None else Run(Path(), told=told)
    return replace(run, told=told)
