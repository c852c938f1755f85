"""Which files of a folder are the checkpoints of a run, of which step, and which are left out and why."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from analyses.checkpoints.reader import NOTHING_STORED, CheckpointReader, StoredSteps, at_place
from analyses.checkpoints.reading.folders import is_checkpoint_folder
from analyses.checkpoints.reading.statedicts import OTHER_STATE
from analyses.checkpoints.reading.text import path_text, shown
from analyses.checkpoints.step_names import epoch_word, lone_numbers, stem, step_in_name, step_word
from manifold.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar")
# Formats and leftovers that are not read, named when the rest of the name speaks of a checkpoint.
OTHER_SUFFIXES = (
    ".pkl", ".pickle", ".npz", ".npy", ".h5", ".hdf5", ".msgpack", ".onnx", ".gguf", ".joblib", ".gz", ".bz2",
    ".xz", ".zip", ".zst", ".7z", ".part", ".tmp", ".bak", ".orbax",
)  # fmt: skip
OWN_NAME = re.compile(r"step_([0-9]{1,18})\.(pt|safetensors)")
OWN_OTHER = ("resume.pt",)  # what rhoscope train keeps beside its checkpoints while it runs
_SPEAKS = re.compile(
    r"(step|epoch|iter|ckpt|checkpoint|model|weights|state|net|final|best|last)", re.IGNORECASE
)
_VERSION = re.compile(r"-v([0-9]{1,9})$")  # Lightning's, when a name was taken already
_MAGIC = (b"PK\x03\x04",)


@dataclass
class RunFiles:
    """The checkpoints of a folder.

    Parameters
    ----------
    files : dict of int to Path
        Checkpoint of each step, ascending.
    skipped : list of (Path, str)
        What looks like a checkpoint and is left out, each with the reason.
    numbered : bool
        False for a single checkpoint whose step nothing tells; it stands under 0.
    """

    files: dict[int, Path] = field(default_factory=dict)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    numbered: bool = True


@dataclass(frozen=True)
class _Found:
    """One candidate and everything that may tell its step."""

    path: Path
    stored: StoredSteps = NOTHING_STORED
    problem: str = ""  # of reading it

    @property
    def numbers(self) -> dict[str, int]:
        told = {
            "stored step": self.stored.step,
            "step in the name": step_word(self.path.name),
            "stored epoch": self.stored.epoch,
            "epoch in the name": epoch_word(self.path.name),
        }
        return {source: number for source, number in told.items() if number is not None}


SOURCES = ("stored step", "step in the name", "stored epoch", "epoch in the name", "number in the name")


def own_files(path: Path) -> dict[int, Path]:
    """Checkpoints that rhoscope wrote into a run directory, by step; nothing is opened."""
    folder = path / "checkpoints"
    named = [(OWN_NAME.fullmatch(name), name) for name in _listing(folder)] if os.path.isdir(folder) else []
    return dict(sorted((int(match.group(1)), folder / name) for match, name in named if match))


def run_files(
    path: Path, *, pattern: str | None = None, own: bool = False, selector: str | None = None
) -> RunFiles:
    """Find the checkpoints of a folder and their steps.

    Parameters
    ----------
    path : Path
        The folder; its folder ``checkpoints`` is looked into as well.
    pattern : str, optional
        Regular expression whose first group is the step in a file name; the only source then.
    own : bool
        Written by rhoscope: names tell the step, files are not opened.
    selector : str, optional
        Place of the state dict in every file.

    Returns
    -------
    RunFiles

    Raises
    ------
    CheckpointError
        If there is no checkpoint, several whose step nothing tells, or two names give the same step.
    """
    found = RunFiles()
    candidates = _candidates(path, found.skipped, own)
    if not candidates:
        named = "".join(f"; {shown(file.name)}: {why}" for file, why in found.skipped[:3])
        raise CheckpointError(
            f"{path_text(path)}: holds no checkpoint; expected files {', '.join(SUFFIXES)} in it "
            f"or in its folder checkpoints{named}"
        )
    if pattern is not None:
        steps = {file: _matched(file, pattern, found.skipped) for file in candidates}
    elif own and all(OWN_NAME.fullmatch(file.name) for file in candidates):
        steps = {file: step_in_name(file.name) for file in candidates}
    else:
        steps = _steps(path, _opened(candidates, found.skipped, selector), found)
    _place(path, {file: step for file, step in steps.items() if step is not None}, found)
    if not found.files:
        raise CheckpointError(
            f"{path_text(path)}: no checkpoint in it can be used: "
            + "; ".join(f"{shown(file.name)}: {why}" for file, why in found.skipped[:3])
        )
    return found


# -- which files -------------------------------------------------------------------------------------


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"{path_text(folder)}: cannot be listed ({error.strerror})") from error


def _candidates(path: Path, skipped: list[tuple[Path, str]], own: bool) -> list[Path]:
    inner, there = path / "checkpoints", os.path.isdir(path / "checkpoints")
    found = []
    for folder in [inner, path] if there else [path]:
        for name in _listing(folder):
            file = folder / name
            if name.startswith(".") or file == inner or (own and folder == path and name in OWN_OTHER):
                continue
            if not _looks(file):
                continue
            outside = own and there and folder == path
            problem = "outside the folder checkpoints" if outside else _problem(file)
            if problem:
                skipped.append((file, problem))
            else:
                found.append(file)
    return found


def _looks(file: Path) -> bool:
    """Whether something is, or seems meant to be, a checkpoint."""
    name = file.name.lower()
    if os.path.isdir(file):
        return is_checkpoint_folder(file)
    if name.endswith(SUFFIXES):
        return True
    if name.endswith(OTHER_SUFFIXES):
        return _SPEAKS.search(name) is not None or any(suffix in name for suffix in SUFFIXES)
    return "." not in name and (
        _begins_as_zip(file) or (os.path.islink(file) and _SPEAKS.search(name) is not None)
    )


def _begins_as_zip(file: Path) -> bool:
    if not os.path.isfile(file):
        return False
    try:
        with open(file, "rb") as opened:
            return opened.read(4) in _MAGIC
    except OSError:
        return False


def _problem(file: Path) -> str:
    """Why something that looks like a checkpoint cannot be one, without opening it as one."""
    if not os.path.exists(file):
        return (
            f"a link to {shown(os.readlink(file))}, which is not there"
            if os.path.islink(file)
            else "not there"
        )
    if os.path.isdir(file):
        return ""
    if not os.path.isfile(file):
        return "no regular file"
    if file.name.lower().endswith(OTHER_SUFFIXES):
        return "not a format that is read (files of torch.save, safetensors)"
    if os.path.getsize(file) == 0:
        return "empty"
    return "" if os.access(file, os.R_OK) else "no right to read it"


def _opened(
    candidates: Iterable[Path], skipped: list[tuple[Path, str]], selector: str | None
) -> list[_Found]:
    """What each candidate says about its step; damaged ones stay if their names tell a step."""
    found = []
    with CheckpointReader() as reader:
        for file in candidates:
            try:
                found.append(_Found(file, reader.stored_steps(at_place(file, selector))))
            except CheckpointError as error:
                reason = str(error).removeprefix(f"{path_text(file)}: ")
                if step_in_name(file.name) is None or OTHER_STATE.match(file.name):
                    skipped.append((file, reason))
                else:
                    found.append(_Found(file, problem=reason))
    return found


# -- of which step -----------------------------------------------------------------------------------


def _matched(file: Path, pattern: str, skipped: list[tuple[Path, str]]) -> int | None:
    try:
        return step_in_name(file.name, pattern)
    except CheckpointError:
        skipped.append((file, "its name does not match the step pattern"))
        return None


def _steps(path: Path, candidates: list[_Found], found: RunFiles) -> dict[Path, int | None]:
    """Step of each candidate by the best source that numbers the folder consistently."""
    numbers = {one.path: dict(one.numbers) for one in candidates}
    for file, number in _lone([one.path for one in candidates]).items():
        numbers[file].setdefault("number in the name", number)
    source = next((s for s in SOURCES if _consistent(s, numbers)), None)
    if source is None:
        return _unnumbered(path, candidates, found)
    counted = [s for s in SOURCES if _agree(s, source, numbers)]  # the chosen one is among them
    steps: dict[Path, int | None] = {}
    for one in candidates:
        told = numbers[one.path]
        order = [source, *counted]
        steps[one.path] = next((told[s] for s in order if s in told), None)
        if steps[one.path] is None:
            what = (
                f"it has no {source}, which numbers the others"
                if told
                else ("neither its name nor its content tells the step")
            )
            found.skipped.append((one.path, one.problem or what))
    return steps


def _consistent(source: str, numbers: dict[Path, dict[str, int]]) -> bool:
    """Whether a source numbers files, and no two whose names carry different numbers alike."""
    have = {file: told for file, told in numbers.items() if source in told}
    names = ("step in the name", "epoch in the name", "number in the name")
    for name in names:
        pairs = {(told[name], told[source]) for told in have.values() if name in told}
        if max(Counter(number for _, number in pairs).values(), default=0) > 1 and source.startswith(
            "stored"
        ):
            return False
    return bool(have)


def _agree(one: str, other: str, numbers: dict[Path, dict[str, int]]) -> bool:
    """Whether two sources count the same: equal wherever both speak."""
    both = [(told[one], told[other]) for told in numbers.values() if one in told and other in told]
    return all(a == b for a, b in both)


def _lone(files: list[Path]) -> dict[Path, int]:
    """Numbers that stand alone in the names and change from file to file at one place only."""
    found = {file: lone_numbers(file.name) for file in files}
    if any(len(numbers) > 1 for numbers in found.values()):
        found = _the_one_that_changes(found)
    single = {file: numbers[0] for file, numbers in found.items() if len(numbers) == 1}
    ids = [stem(file.name) for file in files if file not in single and re.search(r"[0-9]", stem(file.name))]
    # model_7734.pt beside model_dy65.pt: the numbers are ids.
    return {
        file: number
        for file, (around, number) in single.items()
        if not any(_same_but_for_id(around, name) for name in ids)
    }


def _same_but_for_id(around: str, name: str) -> bool:
    before, _, after = around.partition("#")
    middle = name[len(before) : len(name) - len(after)]
    return (
        name.startswith(before) and name.endswith(after) and re.fullmatch(r"\w*[0-9]\w*", middle) is not None
    )


def _the_one_that_changes(found: dict[Path, list[tuple[str, int]]]) -> dict[Path, list[tuple[str, int]]]:
    """Of several numbers in a name the one that is another in every file of the same pattern."""
    longest = max(len(numbers) for numbers in found.values())
    alike = {file: numbers for file, numbers in found.items() if len(numbers) == longest}
    columns = [{numbers[place][1] for numbers in alike.values()} for place in range(longest)]
    moving = [place for place, values in enumerate(columns) if len(values) > 1]
    if len(moving) != 1 or len(columns[moving[0]]) != len(alike):
        return {file: numbers if len(numbers) == 1 else [] for file, numbers in found.items()}
    chosen = {file: [numbers[moving[0]]] for file, numbers in alike.items()}
    return {file: chosen.get(file, numbers if len(numbers) == 1 else []) for file, numbers in found.items()}


def _unnumbered(path: Path, candidates: list[_Found], found: RunFiles) -> dict[Path, int | None]:
    """No step at all: fine for a single checkpoint, which stands under 0.

    Raises
    ------
    CheckpointError
        If there are several.
    """
    if len(candidates) == 1:
        found.numbered = False
        return {candidates[0].path: 0}
    if not candidates:
        return {}
    names = [shown(one.path.name) for one in candidates]
    listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    raise CheckpointError(
        f"{path_text(path)}: neither names nor contents tell the training step of {listed}; name one of the "
        "files, or give --step-pattern with a group that matches the number"
    )


def _place(path: Path, steps: dict[Path, int], found: RunFiles) -> None:
    """One file for each step; of copies without a number of their own, and of versions, the best stays.

    Raises
    ------
    CheckpointError
        If two names give one step.
    """
    by_step: dict[int, list[Path]] = {}
    for file, step in steps.items():
        by_step.setdefault(step, []).append(file)
    for step in sorted(by_step):
        files = by_step[step]
        kept, reason = _the_one(files)
        if kept is None:
            raise CheckpointError(
                f"{path_text(path)}: step {step} is there twice, {shown(files[0].name)} and "
                f"{shown(files[1].name)}; move one away or give --step-pattern"
            )
        found.files[step] = kept
        found.skipped += [(file, reason(file)) for file in files if file != kept]


def _the_one(files: list[Path]) -> tuple[Path | None, Callable[[Path], str]]:
    """Which of several files of one step stands for it, and why each of the others does not."""
    models = [file for file in files if not OTHER_STATE.match(file.name)] or files
    told = [file for file in models if step_in_name(file.name) is not None]
    rivals = told or models
    kept = max(rivals, key=_version) if len({_base(file) for file in rivals}) == 1 else rivals[0]
    stems = {stem(file.name) for file in rivals}
    if len(stems) < len(rivals) or (len(told) > 1 and len({_base(file) for file in told}) > 1):
        return None, lambda _: ""

    def reason(file: Path) -> str:
        if file not in models:
            return "optimiser or trainer state, by its name"
        if _base(file) == _base(kept):
            return f"an older version of {shown(kept.name)}"
        return f"the same step as {shown(kept.name)}"

    return kept, reason


def _base(file: Path) -> str:
    return _VERSION.sub("", stem(file.name))


def _version(file: Path) -> int:
    found = _VERSION.search(stem(file.name))
    return int(found.group(1)) if found else 0
