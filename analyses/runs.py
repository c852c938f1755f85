"""Runs: folders of checkpoints of one training, our own (with ``run.json``) or anyone's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analyses.checkpoints import MAX_BYTES, Checkpoint, CheckpointReader, read_checkpoint, step_in_name
from analyses.exports import EXPORT_SUFFIXES, state_bytes
from analyses.layouts import Layout, stored_layout
from analyses.reading.folders import is_checkpoint_folder
from analyses.reading.text import shown
from analyses.studies import SCHEMA_VERSION, atomic_path, plain
from manifold.errors import CheckpointError, InputError, OutputExistsError

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
CONFIG_BYTES = 16 << 20
MAY_CHANGE = ("schema_version", "steps", "save_every", "versions", "provenance", "device")
_LEFTOVER = re.compile(r"\.(run\.json|resume\.pt|step_[0-9]+\.\w+)\..*\.part")  # of a write that was killed
_OWN_NAME = re.compile(r"step_([0-9]{1,18})\.(pt|safetensors)")


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
        Files left out, each with the reason.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[int, Path] = field(default_factory=dict)
    skipped: tuple[tuple[Path, str], ...] = ()
    step_pattern: str | None = None

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
            _remove(path / "checkpoints", _OWN_NAME)
        for folder in (path, path / "checkpoints"):
            _remove(folder, _LEFTOVER)
        with atomic_path(path / "run.json", force=True) as temporary:
            temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")
        return cls(path, document, _own_files(path) if resume else {})

    @classmethod
    def open(cls, path: str | Path, *, step_pattern: str | None = None) -> Run:
        """Open a run directory of ours, or a folder of checkpoints of another trainer.

        Parameters
        ----------
        path : str or Path
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
        path = Path(path)
        if not path.is_dir():
            what = "no folder" if path.exists() else "not there"
            raise CheckpointError(f"{path}: is {what}; expected a run directory or a folder of checkpoints")
        config = _read_config(path) if (path / "run.json").exists() else {}
        files, skipped = _step_files(path, step_pattern)
        return cls(path, config, files, tuple(skipped), step_pattern)

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps with a checkpoint, ascending."""
        return tuple(self.files)

    @property
    def layout(self) -> Layout | None:
        """The layout in ``run.json``, if any."""
        document = self.config.get("layout")
        if not isinstance(document, dict):
            return None
        return Layout.from_dict(document, origin=str(self.path / "run.json"))

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
            raise InputError(f"{self.path}: no checkpoint of step {step}; near ones: {sorted(near)}")
        read = reader.read if reader is not None else read_checkpoint
        return replace(read(self.files[step]), step=step)

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
    try:
        if file.stat().st_size > CONFIG_BYTES:
            raise CheckpointError(f"{file}: larger than {CONFIG_BYTES} bytes")
        document = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: no JSON ({shown(error)})") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{file}: expected a JSON object")
    version = document.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise CheckpointError(f"{file}: written by a newer rhoscope; update rhoscope to read it")
    return document


def _own_files(path: Path) -> dict[int, Path]:
    return _step_files(path, None, empty=True)[0]


def _candidates(path: Path) -> list[Path]:
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = [
        item
        for item in folder.iterdir()
        if not item.name.startswith(".")
        and ((item.suffix in SUFFIXES and item.is_file()) or (item.is_dir() and is_checkpoint_folder(item)))
    ]
    return sorted(found)


def _step_files(
    path: Path, pattern: str | None, *, empty: bool = False
) -> tuple[dict[int, Path], list[tuple[Path, str]]]:
    candidates = _candidates(path) if path.is_dir() else []
    if not candidates and not empty:
        raise CheckpointError(
            f"{path}: holds no checkpoint; expected files {', '.join(SUFFIXES)} in it "
            "or in its folder checkpoints"
        )
    steps: list[tuple[int | None, Path]] = []
    for file in candidates:
        try:
            steps.append((step_in_name(file.name, pattern), file))
        except CheckpointError:
            steps.append((None, file))
    if pattern is None and candidates and all(step is None for step, _ in steps):
        steps = [(read_checkpoint(file).step, file) for file in candidates]  # the names say nothing
    if candidates and all(step is None for step, _ in steps):
        raise CheckpointError(
            f"{path}: neither names nor contents tell the training step "
            f"(first file: {shown(candidates[0].name)}); "
            "give --step-pattern with a group that matches the number"
        )
    files: dict[int, Path] = {}
    skipped = []
    for step, file in sorted(steps, key=lambda pair: (pair[0] is None, pair[0] or 0)):
        if step is None:
            skipped.append((file, "no step in its name"))
        elif step in files:
            raise CheckpointError(
                f"{path}: step {step} is there twice, {shown(files[step].name)} and {shown(file.name)}; "
                "move one away or give --step-pattern"
            )
        else:
            files[step] = file
    return files, skipped


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
    parent = Path(file).resolve().parent
    for folder in (parent, parent.parent):
        if (folder / "run.json").is_file():
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
        A file, a folder that is one checkpoint, or a run directory.
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
    path = Path(path)
    if path.is_dir() and not ((not (path / "run.json").exists()) and is_checkpoint_folder(path)):
        run = Run.open(path, step_pattern=step_pattern)
        with CheckpointReader(max_bytes=max_bytes) as reader:
            return run.read(run.steps[-1] if step is None else step, reader), run
    checkpoint = read_checkpoint(path, step_pattern=step_pattern, max_bytes=max_bytes)
    if step is not None and checkpoint.step != step:
        raise InputError(f"--step {step}: {path} is one checkpoint (of step {checkpoint.step}), not a run")
    return checkpoint, run_of(path)


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
