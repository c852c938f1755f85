"""The training step in the name of a checkpoint: a number that stands alone, or after a word like step."""

from __future__ import annotations

import re

from manifold.errors import CheckpointError, InputError

_WORDS = {
    "step": r"global_?step|steps?|iteration|iters?|it|updates?|checkpoint|ckpt",
    "epoch": r"epochs?|ep",
}
# A number ends where no letter, digit or decimal follows: 10 in step_10.pt, none in step_10k or loss_0.35.
_ALONE = r"[0-9]{1,18}(?![0-9A-Za-z]|[.,][0-9])"
_AFTER = {
    kind: re.compile(rf"(?<![A-Za-z])(?:{words})[-_=. ]{{0,2}}({_ALONE})", re.IGNORECASE)
    for kind, words in _WORDS.items()
}
_LONE = re.compile(rf"(?<![0-9A-Za-z])(?<![0-9][.,]){_ALONE}")
# Words whose number says which, not when.
_OTHER = re.compile(
    r"(?<![A-Za-z])(seed|fold|runs?|trial|ver|version|rank|shard|part|mp|layer|head|lr|wd|id|uid|exp|experiment|"
    r"job|replica|worker|gpu|rep|width|dim|mod|group|task|variant|config|cfg)s?[-_=. ]{0,2}$",
    re.IGNORECASE,
)
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar", ".distcp", ".index.json")


def stem(name: str) -> str:
    """A file name without the endings of checkpoints, also ``.pth.tar``."""
    while True:
        short = next(
            (name[: -len(s)] for s in SUFFIXES if name.lower().endswith(s) and len(name) > len(s)), name
        )
        if short == name:
            return name
        name = short


def step_word(name: str) -> int | None:
    """The number after the last word for a step in a name (``step=1200``, ``ckpt_77``); None without one."""
    found = _AFTER["step"].findall(stem(name))
    return int(found[-1]) if found else None


def epoch_word(name: str) -> int | None:
    """The number after the last word for an epoch in a file name; None without one."""
    found = _AFTER["epoch"].findall(stem(name))
    return int(found[-1]) if found else None


def lone_numbers(name: str) -> list[tuple[str, int]]:
    """Numbers in a file name that stand alone, each with all that surrounds it (the number as ``#``).

    Numbers after a word that says which network it is, not when (``seed_3``), are left out.
    """
    text = stem(name)
    return [
        (f"{text[: found.start()]}#{text[found.end() :]}", int(found.group()))
        for found in _LONE.finditer(text)
        if not _OTHER.search(text[: found.start()])
    ]


def step_in_name(name: str, pattern: str | None = None) -> int | None:
    """Training step in a file name.

    Parameters
    ----------
    name : str
        Such as ``step_100.pt``, ``epoch=3-step=1200.ckpt``, ``checkpoint-500``, ``001000.pth.tar``.
    pattern : str, optional
        Regular expression whose first group (or whole match) is the number.

    Returns
    -------
    int or None
        Without a pattern: the number after a word for steps, else after one for epochs, else the only number
        that stands alone; None if there is none of them. Letters or decimals beside a number
        (``dy65ktpiij``, ``step_10k``, ``v1``, ``loss_0.35``) make it no step.

    Raises
    ------
    InputError
        If the pattern is no regular expression, or its group is no number.
    CheckpointError
        If the pattern does not match the name.
    """
    if pattern is not None:
        return _by_pattern(name, pattern)
    for found in (step_word(name), epoch_word(name)):
        if found is not None:
            return found
    alone = lone_numbers(name)
    return alone[0][1] if len(alone) == 1 else None


def _by_pattern(name: str, pattern: str) -> int:
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise InputError(f"step_pattern {pattern!r}: not a regular expression ({error})") from error
    if found is None:
        raise CheckpointError(f"{name}: step_pattern {pattern!r} does not match this name")
    text = found.group(1) if found.re.groups else found.group(0)
    if text is None or not re.fullmatch(r"[0-9]{1,18}", text):
        raise InputError(f"step_pattern {pattern!r}: matched {text!r} in {name}, expected a number")
    return int(text)
