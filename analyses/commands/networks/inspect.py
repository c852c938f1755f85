"""``rhoscope inspect``: what a checkpoint holds, and which layout it seems to have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from analyses.checkpoints.reader import MAX_BYTES, Checkpoint
from analyses.checkpoints.reading.text import path_text, shown
from analyses.commands.options.common import Device, DryRun, Json, Quiet, Seed, cpu_only, deliver, say
from analyses.commands.options.layout import ActivationOption, GroupOption, StepPattern
from analyses.commands.options.values import MOST_STEP, whole
from analyses.layouts.guesses import Guess, guess_layout
from analyses.layouts.layout import Layout
from analyses.runs.run import known_layout, left_out_lines, read_target

EPILOG = """
Examples:

  rhoscope inspect model.pt

  rhoscope inspect runs/mod23 --step 1000 --json

  rhoscope inspect someone/checkpoint-500 --group Z113
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command(epilog=EPILOG)
    def inspect(
        path: Annotated[Path, typer.Argument(help="Checkpoint file or folder, or a run directory.")],
        step: Annotated[
            int | None, typer.Option(help="Which step of a run (default: the last).", **whole(0, MOST_STEP))
        ] = None,
        group: GroupOption = None,
        activation: ActivationOption = None,
        step_pattern: StepPattern = None,
        max_bytes: Annotated[
            int, typer.Option(help="Largest file that is read.", **whole(1, MOST_STEP))
        ] = MAX_BYTES,
        json: Json = False,
        seed: Seed = 0,
        device: Device = "cpu",
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """List the tensors of a checkpoint and guess its layout; never runs anything from the file."""
        cpu_only("inspect", device)
        say(f"plan: read {path} in a confined process, try layouts on all pairs", quiet=quiet)
        if dry_run:
            return
        checkpoint, run = read_target(path, step=step, step_pattern=step_pattern, max_bytes=max_bytes)
        known = known_layout(checkpoint, run)
        guess = guess_layout(
            checkpoint,
            known.group if known and group is None else group,
            activation=known.activation if known and activation is None else activation,
            loss=known.loss if known else None,
        )
        document = _document(checkpoint, known, guess)
        document["skipped"] = run.left_out if run is not None else {}
        deliver(
            document,
            study=None,
            out=None,
            csv=None,
            json=json,
            force=False,
            summary="\n".join([_summary(checkpoint, known, guess), *left_out_lines(document["skipped"])]),
        )


def _document(checkpoint: Checkpoint, known: Layout | None, guess: Guess | None) -> dict[str, Any]:
    return {
        "path": path_text(checkpoint.path),
        "format": checkpoint.format,
        "sha256": checkpoint.sha256,
        "step": checkpoint.step,
        "tensors": checkpoint.listing,
        "ignored": checkpoint.ignored,
        "notes": list(checkpoint.notes),
        "layout": known.to_dict() if known else None,
        "guess": _guess(guess) if guess else None,
        "guess_confidence": guess.confidence.value if guess else None,
        "guess_accuracy": guess.accuracy if guess else None,
        "guess_reason": guess.reason if guess else None,
    }


def _guess(guess: Guess) -> dict[str, Any]:
    """The guess: its layout, once as an entry and once (as in the first version) field by field."""
    layout = guess.layout.to_dict()
    return {
        **layout,
        "layout": layout,
        "confidence": guess.confidence.value,
        "rivals": list(guess.rivals),
        "unused": list(guess.unused),
        "notes": [*guess.doubts, *guess.remarks],
    }


def _summary(checkpoint: Checkpoint, known: Layout | None, guess: Guess | None) -> str:
    listing = checkpoint.listing
    width = max(len(shown(entry["key"])) for entry in listing)
    lines = [
        f"{path_text(checkpoint.path)}: {checkpoint.format}, step {checkpoint.step}, "
        f"sha256 {checkpoint.sha256}"
    ]
    for entry in listing:
        shape = " x ".join(map(str, entry["shape"])) or "scalar"
        odd = ""
        if not entry.get("finite", True):
            odd = f"  not finite: {entry['nan']:,} NaN, {entry['infinite']:,} infinite"
        lines.append(f"  {shown(entry['key']):{width}}  {shape:>14}  {entry['dtype']}{odd}")
    for key, why in list(checkpoint.ignored.items())[:5]:
        lines.append(f"  {shown(key):{width}}  not read: {why}")
    if len(checkpoint.ignored) > 5:
        lines.append(f"  and {len(checkpoint.ignored) - 5} more not read")
    lines += [f"note: {note}" for note in checkpoint.notes]
    if known is not None:
        lines += ["layout written with it:", _indented(known)]
    if guess is None:
        lines.append(
            "no layout guessed: no combination of tensors has the shapes of a two-layer group network"
        )
    else:
        lines += [f"guessed layout ({guess.confidence}: {guess.reason}):", _indented(guess.layout)]
        if guess.rivals:
            lines.append(f"fit as well: {', '.join(guess.rivals)} (--activation decides)")
        lines += [f"not certain: {doubt}" for doubt in guess.doubts]
        lines += [f"note: {remark}" for remark in guess.remarks]
    return "\n".join(lines)


def _indented(layout: Layout) -> str:
    return "\n".join(f"  {line}" for line in layout.to_toml().splitlines())
