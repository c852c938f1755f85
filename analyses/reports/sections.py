"""A section of a report: what one study has to say, in words, numbers and figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import xarray as xr
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure with its caption, drawn when it is asked for.

    Parameters
    ----------
    name : str
        Part of a file name.
    draw : callable
        Returns the `matplotlib.figure.Figure`.
    caption : Markup
    alternative : str
        For who cannot see it.
    """

    name: str
    draw: Callable[[], Figure]
    caption: Markup
    alternative: str

    @cached_property
    def figure(self) -> Figure:
        """The figure, in the style of the house."""
        from analyses.common.drawing import house_style

        with house_style():
            return self.draw()


@dataclass(frozen=True)
class Fact:
    """One number of the study: what it is called, its value with error, what it means."""

    name: str | Markup
    value: str
    meaning: str | Markup = ""


@dataclass(frozen=True, eq=False)
class Section:
    """What one study contributes to a page.

    Parameters
    ----------
    title : str
        Heading.
    story : list of str or Markup
        Paragraphs in plain words; plain strings are escaped by the template.
    facts : list of Fact
        The table of numbers.
    pictures : list of Picture
        Figures with captions.
    provenance : dict
        Where the numbers come from.
    document : dict
        The JSON document of the study.
    background : str
        Which explanation the page opens with: ``group`` (networks that learn a group) or none.
    """

    title: str
    story: list[str | Markup]
    facts: list[Fact] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    background: str = ""


def document_of(study: xr.Dataset) -> dict[str, Any]:
    """The JSON document that a study carries as its ``summary``."""
    return json.loads(study.attrs.get("summary", "{}"))


def warned(story: list[str | Markup], document: dict[str, Any]) -> list[str | Markup]:
    """A story with the warnings of its document before it and the other notes after it."""
    warnings = document.get("warnings", [])
    return [*warnings, *story, *(note for note in document.get("notes", []) if note not in warnings)]


def scientific(value: float | None, digits: int = 3) -> str:
    """A number for reading: plain near one, with a power of ten elsewhere, a dash for nothing."""
    if value is None:
        return "–"
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}\u00a0×\u00a010{raised}"  # kept on one line


def percent(share: float | None) -> str:
    """A share as a percentage with at most one decimal."""
    return "–" if share is None else f"{100 * share:.1f}".removesuffix(".0") + "\u00a0%"


def measured(value: float, error: float) -> str:
    """A value with its absolute error bound."""
    return f"{value:.6g} ± {scientific(error, 2)}"
