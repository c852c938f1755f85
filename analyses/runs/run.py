"""Runs: folders of checkpoints of one training, our own (with ``run.json``) or anyone's."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analyses.checkpoints.reader import (
    MAX_BYTES,
    Checkpoint,
    CheckpointReader,
    at_place,
    read_checkpoint,
    split_selector,
)
from analyses.checkpoints.reading.folders import is_checkpoint_folder
from analyses.checkpoints.reading.text import path_text, shown
from analyses.common.study_files import SCHEMA_VERSION, atomic_path, plain
from analyses.layouts.layout import Layout, stored_layout
from analyses.runs.exports import EXPORT_SUFFIXES, state_bytes
from analyses.runs.recipes import NOTHING_TOLD, Told, is_own
from analyses.runs.run_files import OWN_NAME, own_files, run_files
from manifold.errors import (
    CheckpointError,
    InputError,
    LayoutError,
    OutputExistsError,
)

CONFIG_BYTES = 16 << 20
MAY_CHANGE = ("schema_version", "steps", "save_every", "versions", "provenance", "device")
_LEFTOVER = re.compile(r"\.(run\.json|resume\.pt|step_[0-9]+\.\w+)\..*\.part")  # of a write that was killed


@dataclass
class Run:
    """The checkpoints of one training in the order of their steps.

    Parameters
    ----------
    path : Path
        The run directory.
    config : dict
        Content of ``run.json`` (group, loss, layout, hyper-parameters, seed, versions); empty for
        folders of other trainers.
    files : dict of int to Path
        Checkpoint of each step, sorted as numbers.
    skipped : tuple of (Path, str)
        Files left out, each with the reason; see `left_out`.
    step_pattern : str, optional
        As given to `open`.
    selector : str, optional
        Place of the state dict in every file.
    numbered : bool
        False for a single checkpoint whose step nothing tells: it stands under 0 and is read without a step.
    told : Told
        What the user says about the training, over ``config``.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[int, Path] = field(default_factory=dict)
    skipped: tuple[tuple[Path, str], ...] = ()
    step_pattern: str | None = None
    selector: str | None = None
    numbered: bool = True
    told: Told = NOTHING_TOLD

    @classmethod
    def create(
        cls, path: str | Path, config: Mapping[str, Any], *, force: bool = False, resume: bool = False
    ) -> Run:
        """Start a run directory, or open one to go on with it.

        Parameters
        ----------
        path : str or Path
        config : mapping
            Written to ``run.json``; ``layout`` holds `Layout.to_dict`.
        force : bool
            Replace an earlier run: its ``run.json`` and ``checkpoints/step_*`` are removed, nothing else.
        resume : bool
            Keep the checkpoints of an earlier run with the same configuration (`MAY_CHANGE` aside).

        Returns
        -------
        Run

        Raises
        ------
        OutputExistsError
            If there is a run already and neither ``force`` nor ``resume`` is given.
        InputError
            If a run to be resumed was made with another configuration.
        """
        path = Path(path)
        document = plain({"schema_version": SCHEMA_VERSION, **config})
        exists = path.is_dir() and any(not _LEFTOVER.fullmatch(item.name) for item in path.iterdir())
        if path.exists() and not path.is_dir():
            raise OutputExistsError(f"{path} is a file; name a folder for the run")
        if resume and (path / "run.json").exists():
            _check_same(path, _read_config(path), document)
        elif exists and not force:
            raise OutputExistsError(f"{path} is not empty; give --force, --resume, or another folder")
        elif exists:
            _remove(path / "checkpoints", OWN_NAME)
        for folder in (path, path / "checkpoints"):
            _remove(folder, _LEFTOVER)
        with atomic_path(path / "run.json", force=True) as temporary:
            temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")
        return cls(path, document, own_files(path) if resume else {})

    @classmethod
    def open(cls, path: str | Path, *, step_pattern: str | None = None) -> Run:
        """Open a run directory of ours, or a folder of checkpoints of another trainer.

        Parameters
        ----------
        path : str or Path
            Of a folder; ``FOLDER::PLACE`` where every file holds several state dicts.
        step_pattern : str, optional
            Regular expression whose first group is the step in a file name; files that it does not
            match are skipped.

        Returns
        -------
        Run

        Raises
        ------
        CheckpointError
            If there is no such folder, no checkpoint in it, a step twice, or a step cannot be told.
        """
        path, selector = split_selector(path)
        if not os.path.isdir(path):
            what = "no folder" if os.path.exists(path) else "not there"
            raise CheckpointError(
                f"{path_text(path)}: is {what}; expected a run directory or a folder of checkpoints"
            )
        config = _read_config(path) if os.path.exists(path / "run.json") else {}
        found = run_files(path, pattern=step_pattern, own=is_own(config), selector=selector)
        return cls(
            path, config, found.files, tuple(found.skipped), step_pattern, selector, numbered=found.numbered
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps with a checkpoint, ascending."""
        return tuple(self.files)

    @property
    def left_out(self) -> dict[str, str]:
        """Files of the folder that look like checkpoints and are not used, by name, each with the reason."""
        return {
            path_text(file.relative_to(self.path) if file.is_relative_to(self.path) else file): reason
            for file, reason in self.skipped
        }

    @property
    def layout(self) -> Layout | None:
        """The layout in ``run.json``, if any; another trainer's field of that name is none.

        Raises
        ------
        LayoutError
            If rhoscope wrote the file and the layout makes no sense.
        """
        document = self.config.get("layout")
        if not isinstance(document, dict):
            return None
        try:
            return Layout.from_dict(document, origin=path_text(self.path / "run.json"))
        except LayoutError:
            if is_own(self.config):
                raise
            return None

    def read(self, step: int, reader: CheckpointReader | None = None) -> Checkpoint:
        """Read the checkpoint of one step.

        Parameters
        ----------
        step : int
            One of `steps`.
        reader : CheckpointReader, optional
            Default: the one that the program shares.

        Returns
        -------
        Checkpoint

        Raises
        ------
        InputError
            If the run has no such step.
        CheckpointError
            If the file is refused, or holds another step than its name says.
        """
        if step not in self.files:
            near = sorted(self.files, key=lambda known: abs(known - step))[:3]
            raise InputError(
                f"{path_text(self.path)}: no checkpoint of step {step}; near ones: {sorted(near)}"
            )
        read = reader.read if reader is not None else read_checkpoint
        found = read(at_place(self.files[step], self.selector))
        return replace(found, step=step if self.numbered else None)

    def save(self, step: int, state: Mapping[str, Any], *, suffix: str = ".pt") -> Path:
        """Write the checkpoint of a step, atomically; an existing one is replaced.

        Parameters
        ----------
        step : int
        state : mapping
            A state dict (or a nested dict of plain values and tensors, for ``.pt``).
        suffix : str
            ``.pt`` or ``.safetensors``.

        Returns
        -------
        Path

        Raises
        ------
        InputError
            If the step is negative or the suffix unknown.
        """
        if step < 0 or suffix not in EXPORT_SUFFIXES:
            raise InputError(
                f"checkpoint: expected a step >= 0 and .pt or .safetensors, got {step}, {suffix}"
            )
        path = self.path / "checkpoints" / f"step_{step}{suffix}"
        with atomic_path(path, force=True) as temporary:
            temporary.write_bytes(state_bytes(state, suffix))
        self.files = dict(sorted((self.files | {step: path}).items()))
        return path


def _remove(folder: Path, pattern: re.Pattern[str]) -> None:
    for item in folder.iterdir() if folder.is_dir() else ():
        if pattern.fullmatch(item.name):
            item.unlink()


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for key in sorted(set(old) | set(new)):
        if key not in MAY_CHANGE and old.get(key) != new.get(key):
            raise InputError(
                f"{path}: cannot resume, {key} was {shown(old.get(key))} and is now {shown(new.get(key))}; "
                "use the old value or another folder"
            )


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "run.json"
    name = path_text(file)
    try:
        if file.stat().st_size > CONFIG_BYTES:
            raise CheckpointError(f"{name}: larger than {CONFIG_BYTES} bytes")
        document = json.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: no JSON ({shown(error)})") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{name}: expected a JSON object")
    version = document.get("schema_version", SCHEMA_VERSION)
    ours = is_own(document) or len(document) == 1
    if ours and type(version) is int and version > SCHEMA_VERSION:
        raise CheckpointError(f"{name}: written by a newer rhoscope; update rhoscope to read it")
    return document


def left_out_lines(skipped: Mapping[str, str]) -> list[str]:
    """Lines for the terminal: what was left out and why.

    Parameters
    ----------
    skipped : mapping of str to str
        Reasons by file name, or by the number of a step.

    Returns
    -------
    list of str
    """
    return [
        f"left out: {'step ' * name.isdecimal()}{shown(name)}: {reason}" for name, reason in skipped.items()
    ]


def run_of(file: str | Path) -> Run | None:
    """The run that a checkpoint file belongs to: ``run.json`` beside it or one folder up.

    Parameters
    ----------
    file : str or Path

    Returns
    -------
    Run or None
        Without its list of files.
    """
    parent = Path(os.path.realpath(file)).parent
    for folder in (parent, parent.parent):
        if os.path.isfile(folder / "run.json"):
            return Run(folder, _read_config(folder))
    return None


def read_target(
    path: str | Path,
    *,
    step: int | None = None,
    step_pattern: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> tuple[Checkpoint, Run | None]:
    """What a command's PATH means: a checkpoint, or one step of a run (the last by default).

    Parameters
    ----------
    path : str or Path
        A file, a folder that is one checkpoint, or a run directory; with ``::PLACE`` after it, the state dict
        at a place of the file.
    step : int, optional
        Which step of a run.
    step_pattern : str, optional
        See `Run.open`.
    max_bytes : int
        Largest size on disk of the checkpoint.

    Returns
    -------
    tuple of (Checkpoint, Run or None)

    Raises
    ------
    InputError
        If a step is asked of a single file that is of another step.
    """
    folder, _ = split_selector(path)
    if os.path.isdir(folder) and (os.path.exists(folder / "run.json") or not is_checkpoint_folder(folder)):
        run = Run.open(path, step_pattern=step_pattern)
        with CheckpointReader(max_bytes=max_bytes) as reader:
            return run.read(run.steps[-1] if step is None else step, reader), run
    checkpoint = read_checkpoint(path, step_pattern=step_pattern, max_bytes=max_bytes)
    if step is not None and checkpoint.step != step:
        raise InputError(
            f"--step {step}: {path_text(path)} is one checkpoint (of step {checkpoint.step}), not a run"
        )
    return checkpoint, run_of(folder)


def known_layout(checkpoint: Checkpoint, run: Run | None) -> Layout | None:
    """The layout that was written down: in the checkpoint itself, else in its run.

    Parameters
    ----------
    checkpoint : Checkpoint
    run : Run or None

    Returns
    -------
    Layout or None
    """
    stored = stored_layout(checkpoint)
    return stored if stored is not None else (run.layout if run is not None else None)
