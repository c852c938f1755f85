"""Values of options, checked while the command line is read: numbers in range, names that exist, devices."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import typer

from manifold.errors import InputError

MOST_SEED = 2**32 - 1  # what every library below takes
MOST_STEP = 10**18  # of training
MOST_STEPS = 10**9  # that anyone trains for
MOST_WORKERS = 4096  # processes of one machine
MOST_COUNT = 10**12  # of things held in memory; more is a slip of the finger


def whole(least: int = 0, most: int = MOST_COUNT) -> dict[str, Any]:
    """What `typer.Option` needs for a whole number between two bounds, both allowed."""

    def integer(text: Any) -> int:
        try:
            value = int(str(text))
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise typer.BadParameter(
                f"expected a whole number from {least:,} to {most:,}, got {str(text)[:60]!r}"
            )
        return value

    return {"parser": integer, "metavar": "INTEGER"}


def real(
    *, least: float | None = None, above: float | None = None, most: float | None = None,
    below: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What `typer.Option` needs for a finite number; ``above`` and ``below`` are not allowed themselves."""
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("at least", least), ("above", above), ("at most", most), ("below", below))
        if bound is not None
    ]
    expected = " and ".join(bounds) or "of any sign"

    def number(text: Any) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        fits = (
            math.isfinite(value)
            and (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )
        if not fits:
            raise typer.BadParameter(f"expected a finite number, {expected}, got {str(text)[:60]!r}")
        return value

    return {"parser": number, "metavar": "NUMBER"}


def one_of(names: Sequence[str]) -> dict[str, Any]:
    """What `typer.Option` needs for one of some names; a slip is answered with the nearest one."""

    def name(text: str) -> str:
        if text not in names:
            raise typer.BadParameter(expected(text, names))
        return text

    return {"parser": name, "metavar": "NAME"}


def expected(text: str, names: Sequence[str]) -> str:
    """The sentence for an unknown name: those that exist, and the one that was probably meant."""
    near = difflib.get_close_matches(str(text), names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"expected {', '.join(names)}; got {str(text)[:60]!r}{hint}"


def filled(what: str) -> dict[str, Any]:
    """What `typer.Option` needs for text that must not be empty."""

    def words(text: str) -> str:
        if not text.strip():
            raise typer.BadParameter(f"expected {what}, got nothing")
        return text

    return {"parser": words, "metavar": "TEXT"}


def group_name(text: str) -> str:
    """The name of a finite Abelian group, as it was given."""
    from manifold.groups.abelian import FiniteAbelianGroup

    try:
        FiniteAbelianGroup.parse(text)
    except InputError as error:
        raise typer.BadParameter(str(error).removeprefix("group: ")) from error
    return text


def device(text: str) -> str:
    """The name of a torch device that is there and computes in double precision.

    Parameters
    ----------
    text : str
        ``cpu``, or an accelerator such as ``cuda`` or ``cuda:1``.

    Returns
    -------
    str
        ``cpu``, or as given.
    """
    if text in {"cpu", "cpu:0"}:
        return "cpu"
    import torch

    there = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        there += [kind, *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))]
    if text not in there:
        raise typer.BadParameter(f"this machine has {', '.join(there)}; got {text[:60]!r}")
    try:
        torch.ones(1, dtype=torch.float64, device=text).sum().item()
    except Exception as error:  # drivers raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise typer.BadParameter(f"{text} cannot compute in double precision ({reason}); use cpu") from error
    return text


def converted(parser: Callable[[Any], Any], metavar: str) -> dict[str, Any]:
    """What `typer.Option` needs for any other check."""
    return {"parser": parser, "metavar": metavar}
