"""``rhoscope verify``: what a study claims, computed again by independent means."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from analyses.commands.options.common import DryRun, Json, Quiet, Seed, deliver, progress_bar, say
from analyses.commands.options.layout import (
    ActivationOption,
    ElementsOption,
    GroupOption,
    LayoutFile,
    LossOption,
    OutputScaleOption,
    StepPattern,
    TensorOptions,
    choose_layout,
)
from analyses.commands.options.values import MOST_STEP, converted, one_of, whole
from analyses.commands.studies.analyze import count_of, count_text
from analyses.common.study_files import plain
from analyses.layouts.layout import Layout
from analyses.runs.run import Run, read_target
from analyses.subjects.subject import Subject, subject_of
from manifold.errors import InputError
from spectra.methods.plan import SUBSPACES

EPILOG = """
Examples:

  rhoscope verify model.pt --group Z7

  rhoscope analyze runs/mod23 --eigenvalues all --out mod23.nc && rhoscope verify mod23.nc

  rhoscope verify crossings.nc --checkpoint runs/flow5 --json
"""
LAYOUT = ("layout", "tensor", "group", "loss", "activation", "output_scale", "elements")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("verify", epilog=EPILOG)
    def command(
        path: Annotated[
            Path, typer.Argument(metavar="STUDY|CHECKPOINT", help="A study (.nc, .json), checkpoint or run.")
        ],
        checkpoint: Annotated[
            Path | None,
            typer.Option(help="Checkpoint or run of the study, where it is not at its old place."),
        ] = None,
        step: Annotated[int | None, typer.Option(help="Which step of a run.", **whole(0, MOST_STEP))] = None,
        layout: LayoutFile = None,
        tensor: TensorOptions = None,
        group: GroupOption = None,
        loss: LossOption = None,
        activation: ActivationOption = None,
        output_scale: OutputScaleOption = None,
        elements: ElementsOption = None,
        step_pattern: StepPattern = None,
        subspace: Annotated[
            str, typer.Option(help=" | ".join(SUBSPACES) + ", of a checkpoint.", **one_of(SUBSPACES))
        ] = "span",
        eigenvalues: Annotated[
            str,
            typer.Option(
                help="At each end, or all, of a checkpoint.", **converted(count_text(("all",)), "NUMBER|all")
            ),
        ] = "10",
        json: Json = False,
        seed: Seed = 0,
        quiet: Quiet = False,
        dry_run: DryRun = False,
    ) -> None:
        """Check every claim of a study (or of analyze on a checkpoint) by other means; exit 1 if one fails.

        The network is read again and its Hessian written out in extended or 72-digit arithmetic, by code that
        shares nothing with the engine; where it does not fit, Ritz values from another start are the witness.
        Claims that cannot be checked are listed with the reason. Options of the layout are taken from the
        study's own command line where they are not given.
        """
        given = {
            "layout": layout, "tensor": tensor, "group": group, "loss": loss, "activation": activation,
            "output_scale": output_scale, "elements": elements, "step_pattern": step_pattern, "step": step,
        }  # fmt: skip
        is_study = path.is_file() and path.suffix in {".nc", ".json"}
        if is_study:
            job = _StudyJob(path, checkpoint, given, seed, quiet)
        else:
            if checkpoint is not None:
                raise InputError(
                    "--checkpoint: belongs to a study; give the checkpoint itself as the argument"
                )
            job = _CheckpointJob(path, given, subspace, eigenvalues, seed, quiet)
        say(f"plan: {job.plan}", quiet=quiet)
        if dry_run:
            return
        with progress_bar(quiet=quiet) as progress:
            verdict = job.verdict(progress)
        deliver(
            verdict.document, study=None, out=None, csv=None, json=json, force=False, summary=verdict.summary,
            quiet=quiet,
        )  # fmt: skip
        if not verdict.passed:
            raise typer.Exit(1)


class _CheckpointJob:
    """Analyse a checkpoint, then check the analysis."""

    def __init__(
        self, path: Path, given: dict[str, Any], subspace: str, eigenvalues: str, seed: int, quiet: bool
    ):
        from analyses.studies.network.study import Question

        self.subject = _subject(path, given, quiet)
        self.question = Question(subspace=subspace, count=count_of(eigenvalues), seed=seed)
        self.plan = f"analyze {path}: {self.question.plan(self.subject).sentence}; then check every claim"

    def verdict(self, progress: Any):
        """Analyse and judge."""
        from analyses.studies.network.study import analyze
        from analyses.verification.network import network_checks
        from analyses.verification.referee import Verdict, problem_of

        found = analyze(self.subject, self.question, progress=progress)
        checks = network_checks(plain(found.document), problem_of(self.subject), seed=self.question.seed)
        return Verdict(tuple(checks))


class _StudyJob:
    """Find the network of a study again, then check what the study says."""

    def __init__(self, path: Path, checkpoint: Path | None, given: dict[str, Any], seed: int, quiet: bool):
        from analyses.verification.referee import read_claims

        self.kind, self.document = read_claims(path)
        self.seed, self.quiet = seed, quiet
        self.options = _recorded(self.document, self.kind) | {k: v for k, v in given.items() if v is not None}
        self.target = checkpoint or self._place()
        what = {"checkpoint": "one checkpoint", "crossings": "a run", "maxent": "maximum-entropy fits"}[
            self.kind
        ]
        self.plan = f"check every claim of {path} about {what}" + (f", {self.target}" if self.target else "")

    def _place(self) -> Path | None:
        told = self.options.get("path") or self.options.get("run_dir") or self.document.get("run")
        told = told or (self.document.get("checkpoint") or {}).get("path")
        return None if told is None else Path(told)

    def verdict(self, progress: Any):
        """Judge by the kind of study."""
        from analyses.verification.measures import maxent_checks
        from analyses.verification.referee import Verdict

        if self.kind == "maxent":
            return Verdict(tuple(maxent_checks(self.document, seed=self.seed)))
        if self.target is None or not self.target.exists():
            raise InputError(
                f"{self.target}: the network of the study is not there; name it with --checkpoint"
            )
        return Verdict(tuple(self._of_network() if self.kind == "checkpoint" else self._of_run(progress)))

    def _of_network(self):
        from analyses.verification.network import network_checks
        from analyses.verification.referee import digest_check, problem_of, same_question

        options = dict(self.options)
        if self.target.is_dir() and options.get("step") is None:
            options["step"] = self.document["checkpoint"]["step"]
        subject = _subject(self.target, options, self.quiet)
        same = [digest_check(self.document, Path(subject.path))] if Path(subject.path).is_file() else []
        problem = problem_of(same_question(subject, self.document["task"]))
        return same + network_checks(self.document, problem, seed=self.seed)

    def _of_run(self, progress: Any):
        from analyses.verification.referee import problem_of
        from analyses.verification.runs import run_checks

        run = Run.open(self.target, step_pattern=self.options.get("step_pattern"))
        last = run.read(run.steps[-1])
        layout = _layout(last, run, self.options, self.quiet)

        def problem_at(step: int):
            subject = subject_of(run.read(step), layout, run, centred=self.options.get("centred"))
            return problem_of(subject)

        return run_checks(self.document, problem_at, progress=progress)


def _layout(checkpoint: Any, run: Run | None, options: dict[str, Any], quiet: bool) -> Layout:
    return choose_layout(checkpoint, run, quiet=quiet, **{name: options.get(name) for name in LAYOUT})


def _subject(path: Path, options: dict[str, Any], quiet: bool) -> Subject:
    checkpoint, run = read_target(path, step=options.get("step"), step_pattern=options.get("step_pattern"))
    layout = _layout(checkpoint, run, options, quiet)
    subject = subject_of(checkpoint, layout, run, centred=options.get("centred"), pairs=options.get("pairs"))
    return dataclasses.replace(subject, path=str(checkpoint.path))


def _recorded(document: dict[str, Any], kind: str) -> dict[str, Any]:
    """Options of the command line that made the study; none where it was made from Python."""
    import click

    from analyses.commands.options.application import build_app
    from analyses.verification.referee import recorded_arguments

    name = {"checkpoint": "analyze"}.get(kind, kind)
    words = recorded_arguments(document, name)
    if words is None:
        return {}
    command = typer.main.get_command(build_app(name))
    try:
        context = command.commands[name].make_context(name, words, resilient_parsing=False)
    except click.ClickException:
        return {}
    return {key: value for key, value in context.params.items() if value is not None}
