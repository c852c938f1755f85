"""``rhoscope train``: the reference trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyses.commands.options.common import (
    Device,
    DryRun,
    Force,
    Json,
    Quiet,
    Seed,
    check_folder,
    deliver,
    progress_bar,
    say,
)
from analyses.commands.options.values import MOST_STEPS, converted, group_name, one_of, real, whole
from analyses.training.trainer import OPTIMIZERS, SCHEDULES, TrainingPlan, save_steps, train
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.group_network import GroupNetwork
from spectra.tasks.group_task import LOSSES

EPILOG = """
Examples:

  rhoscope train runs/mod23 --group Z23 --width 256

  rhoscope train runs/flow5 --group Z5 --width 512 --optimizer flow --steps 400

  rhoscope train runs/grok --group Z113 --width 512 --train-fraction 0.9 --weight-decay 5e-5
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("train", epilog=EPILOG)
    def command(
        run_dir: Annotated[Path, typer.Argument(help="Folder for run.json and checkpoints/.")],
        group: Annotated[
            str, typer.Option(help="Finite Abelian group: Z23, Z4xZ6.", **converted(group_name, "GROUP"))
        ],
        width: Annotated[int, typer.Option(help="Number q of neurons.", **whole(1))] = 256,
        loss: Annotated[str, typer.Option(help=" | ".join(LOSSES), **one_of(LOSSES))] = "projected_mse",
        optimizer: Annotated[str, typer.Option(help=" | ".join(OPTIMIZERS), **one_of(OPTIMIZERS))] = "adam",
        lr: Annotated[
            float | None,
            typer.Option(
                help="Learning rate (flow: time per step). (default: 0.01 Adam; see docs)", **real(above=0)
            ),
        ] = None,
        schedule: Annotated[
            str | None,
            typer.Option(help=" | ".join(SCHEDULES) + " (default: cosine for Adam)", **one_of(SCHEDULES)),
        ] = None,
        weight_decay: Annotated[
            float, typer.Option(help="L2 decay wd of (wd/2)|theta|^2.", **real(least=0))
        ] = 0.0,
        steps: Annotated[int, typer.Option(help="Full-batch steps.", **whole(1, MOST_STEPS))] = 2000,
        init_scale: Annotated[
            float | None,
            typer.Option(help="Std of raw weights at step 0. (default: 0.1; sgd, flow 0.6)", **real(above=0)),
        ] = None,
        output_scale: Annotated[
            float | None,
            typer.Option(help="Factor s of the output. (default: 1; sgd, flow 1/(2nq))", **real(above=0)),
        ] = None,
        train_fraction: Annotated[
            float, typer.Option(help="Share of the n^2 pairs trained on.", **real(above=0, most=1))
        ] = 1.0,
        tied: Annotated[bool, typer.Option("--tied", help="One first layer: b = a.")] = False,
        centred: Annotated[
            bool, typer.Option("--centred/--no-centred", help="Keep means of a, b, c at zero.")
        ] = True,
        shuffle_labels: Annotated[
            bool,
            typer.Option("--shuffle-labels", help="Null control: labels dealt out anew to the pairs."),
        ] = False,
        save_every: Annotated[
            int | None,
            typer.Option(
                help="Steps between checkpoints. (default: about 40, log-spaced)", **whole(1, MOST_STEPS)
            ),
        ] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
        force: Force = False,
        seed: Seed = 0,
        device: Device = "cpu",
        json: Json = False,
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Train a network on a finite Abelian group and write its checkpoints.

        The network is o(x, y) = s sum_j c_j (a_j[x] + b_j[y])^2, its target the one-hot vector of x + y.
        Checkpoints are ordinary torch state dicts with keys w_a, w_b, w_c (each n x q), float64.
        """
        plan = TrainingPlan(
            group=group, width=width, loss=loss, optimizer=optimizer, lr=lr, schedule=schedule,
            weight_decay=weight_decay, steps=steps, init_scale=init_scale, output_scale=output_scale,
            train_fraction=train_fraction, tied=tied, centred=centred, seed=seed,
            labels=seed if shuffle_labels else None,
        )  # fmt: skip
        say(describe(plan, save_every), quiet=quiet)
        check_folder(run_dir)
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            run = train(
                plan, run_dir, save_every=save_every, force=force, resume=resume, device=device,
                progress=progress,
            )  # fmt: skip
        document = outcome(plan, run.read(run.steps[-1]).tensors)
        document |= {"run": str(run.path), "steps": list(run.steps)}
        deliver(document, study=None, out=None, csv=None, json=json, force=force, summary=_summary(document))


def describe(plan: TrainingPlan, save_every: int | None) -> str:
    """The plan line: sizes, method, memory."""
    plan.check_memory()
    n, q = FiniteAbelianGroup.parse(plan.group).order, plan.width
    gram = plan.task().uses_gram_form(q)
    form = f"{q} x {q} Gram products" if gram else "outputs in chunks"
    mib = (8 * q * q * 9 if gram else 8 * n * n * min(q, 4096)) / 2**20
    return (
        f"plan: {plan.group} (n = {n}), q = {q}, {plan.loss}, {plan.optimizer}, {plan.steps} steps "
        f"by {form}, "
        f"about {mib + 24 * 6 * n * q / 2**20:.0f} MiB beside torch, "
        f"{len(save_steps(plan.steps, save_every))} checkpoints"
    )


def outcome(plan: TrainingPlan, tensors: dict) -> dict:
    """Loss and accuracy of the last checkpoint."""
    b = None if plan.tied else tensors["w_b"]
    net = GroupNetwork(
        FiniteAbelianGroup.parse(plan.group), tensors["w_a"], b, tensors["w_c"], plan.output_scale
    )
    return {
        "loss": plan.task().value(net.measure(centred=plan.centred)),
        "loss_name": plan.loss,
        "accuracy": net.accuracy(),
    }


def _summary(document: dict) -> str:
    return (
        f"{document['loss_name']} {document['loss']:.3e} on the training pairs, "
        f"accuracy {100 * document['accuracy']:.2f} % on all pairs\n"
        f"{len(document['steps'])} checkpoints in {document['run']}\n"
        f"next: rhoscope analyze {document['run']}"
    )
