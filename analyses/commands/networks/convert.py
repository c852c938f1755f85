"""``rhoscope convert``: any accepted checkpoint to safetensors, with its layout and provenance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from analyses.checkpoints.reader import MAX_BYTES, Checkpoint
from analyses.checkpoints.reading.text import path_text
from analyses.commands.options.common import (
    Device,
    DryRun,
    Force,
    Json,
    Quiet,
    Seed,
    check_outputs,
    cpu_only,
    deliver,
    say,
)
from analyses.commands.options.layout import (
    ActivationOption,
    ElementsOption,
    GroupOption,
    LayoutFile,
    LossOption,
    OutputScaleOption,
    StepPattern,
    TensorOptions,
    UncertainLayoutError,
    choose_layout,
)
from analyses.commands.options.values import MOST_STEP, whole
from analyses.common.study_files import provenance
from analyses.layouts.layout import Layout
from analyses.layouts.weights import Weights
from analyses.runs.exports import check_export_name, write_checkpoint
from analyses.runs.run import Run, left_out_lines, read_target
from manifold.errors import LayoutError

EPILOG = """
Examples:

  rhoscope convert model.ckpt --out model.safetensors

  rhoscope convert runs/mod23 --step 1000 --out step_1000.safetensors

  rhoscope convert model.pt --effective --out plain.safetensors
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command(epilog=EPILOG)
    def convert(
        path: Annotated[Path, typer.Argument(help="Checkpoint file or folder, or a run directory.")],
        out: Annotated[Path, typer.Option(help="File to write: .safetensors or .pt.")],
        step: Annotated[
            int | None, typer.Option(help="Which step of a run (default: the last).", **whole(0, MOST_STEP))
        ] = None,
        effective: Annotated[
            bool, typer.Option("--effective", help="Write w_a, w_b, w_c (n x q, float64), biases carried.")
        ] = False,
        layout: LayoutFile = None,
        tensor: TensorOptions = None,
        group: GroupOption = None,
        loss: LossOption = None,
        activation: ActivationOption = None,
        output_scale: OutputScaleOption = None,
        elements: ElementsOption = None,
        step_pattern: StepPattern = None,
        max_bytes: Annotated[
            int, typer.Option(help="Largest file that is read.", **whole(1, MOST_STEP))
        ] = MAX_BYTES,
        json: Json = False,
        force: Force = False,
        seed: Seed = 0,
        device: Device = "cpu",
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Rewrite any accepted checkpoint with its layout inside; only floating model tensors are kept."""
        check_export_name(out)
        check_outputs(out, force=force)
        cpu_only("convert", device)
        say(f"plan: read {path} in a confined process, write {out}", quiet=quiet)
        if dry_run:
            return
        checkpoint, run = read_target(path, step=step, step_pattern=step_pattern, max_bytes=max_bytes)
        options = {"layout": layout, "tensor": tensor, "group": group, "loss": loss, "activation": activation}
        options |= {"output_scale": output_scale, "elements": elements}
        needed = effective or any(value is not None for value in options.values())
        chosen, weights = _layout_and_weights(checkpoint, run, options, needed=needed, quiet=quiet)
        tensors = dict(checkpoint.tensors)
        notes = list(weights.notes) if weights is not None else []
        if effective:
            chosen, tensors = _effective(chosen, weights)
        source = {
            "path": path_text(checkpoint.path),
            "sha256": checkpoint.sha256,
            "format": checkpoint.format,
        }
        write_checkpoint(
            out,
            tensors,
            layout=chosen,
            provenance=provenance(seed=seed) | {"source": source, "notes": notes},
            step=checkpoint.step,
            force=force,
        )
        document = {
            "out": str(out),
            "source": source,
            "step": checkpoint.step,
            "layout": chosen.to_dict() if chosen is not None else None,
            "tensors": sorted(tensors),
            "ignored": checkpoint.ignored,
            "notes": [*notes, *checkpoint.notes],
            "skipped": run.left_out if run is not None else {},
        }
        lines = [f"{out}: {len(tensors)} tensors, {'layout stored' if chosen else 'no layout'}"]
        lines += [f"note: {note}" for note in checkpoint.notes] + left_out_lines(document["skipped"])
        summary = "\n".join(lines)
        deliver(document, study=None, out=None, csv=None, json=json, force=force, summary=summary)


def _layout_and_weights(
    checkpoint: Checkpoint, run: Run | None, options: dict[str, Any], *, needed: bool, quiet: bool
) -> tuple[Layout | None, Weights | None]:
    try:
        chosen = choose_layout(checkpoint, run, quiet=quiet, certain=True, **options)
        return chosen, chosen.weights(checkpoint)
    except UncertainLayoutError:
        raise
    except LayoutError:
        if needed:
            raise
    say("no layout is known for these tensors: written without one", quiet=quiet)
    return None, None


def _effective(layout: Layout, weights: Weights) -> tuple[Layout, dict[str, Tensor]]:
    names = {"w_a": weights.a, "w_b": weights.b, "w_c": weights.c}
    tensors = {name: tensor for name, tensor in names.items() if tensor is not None}
    expressions = {name: name if name in tensors else None for name in names}
    return replace(layout, **expressions, bias=None, output_bias=None, elements=None), tensors
