"""Reports: studies as one self-contained HTML page."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined

from analyses.common.figure_formats import check_format
from analyses.common.study_files import atomic_path, check_free, readable
from analyses.reports.figures import figure_bytes
from analyses.reports.sections import Picture, Section
from analyses.studies.claims.section import claims_section
from analyses.studies.complexity.section import complexity_section
from analyses.studies.crossings.section import crossings_section
from analyses.studies.maxent.section import maxent_section
from analyses.studies.network.section import checkpoint_section, trajectory_section
from analyses.studies.temperature import temperature_section
from manifold.errors import InputError

# attrs["study"] -> the function that makes its section; a new kind of study is one more line.
SECTIONS: dict[str, Callable[[xr.Dataset], Section]] = {
    "trajectory": trajectory_section,
    "checkpoint": checkpoint_section,
    "maxent": maxent_section,
    "crossings": crossings_section,
    "temperature": temperature_section,
    "claims": claims_section,
    "complexity": complexity_section,
}
MEDIA = {"svg": "image/svg+xml", "png": "image/png"}


@dataclass(frozen=True)
class Shown:
    """A picture as the template needs it: an address (or why there is none), a caption, a file beside it."""

    source: str | None
    caption: str
    alternative: str
    file: str | None
    problem: str = ""


def _log(problem: str) -> None:
    logging.getLogger(__name__).warning("%s", problem)


def write_report(
    datasets: Sequence[xr.Dataset], path: str | Path, *, force: bool = False, figure_format: str = "svg",
    title: str = "rhoscope report", warn: Callable[[str], None] = _log,
) -> Path:  # fmt: skip
    """Write studies as one HTML page that needs nothing else: no network, no scripts, figures inside.

    A figure that cannot be drawn costs neither the page nor the other figures: the page says so in its place.

    Parameters
    ----------
    datasets : sequence of xarray.Dataset
        Studies in the order of the story; ``attrs["study"]`` chooses the section.
    path : str or Path
        The page.
    force : bool
        Replace existing files.
    figure_format : str
        ``svg`` or ``png`` inside the page; ``pdf``: PNG inside, and every figure as a PDF beside it.
    title : str
        Of the page.
    warn : callable
        Told of every figure that could not be drawn; default: a warning in the log.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        If there is no study, a study is of a kind without a section, or the format is unknown.
    OutputExistsError
        If a file exists and ``force`` is false; nothing is written then.
    """
    path = Path(path)
    check_format(figure_format)
    sections = [section_of(study) for study in datasets]
    if not sections:
        raise InputError("report: expected at least one study, got none")
    files = _figure_files(sections, path) if figure_format == "pdf" else {}
    for file in (path, *files.values()):
        check_free(file, force)
    shown = [
        (one, [_shown(picture, figure_format, files.get(id(picture)), warn) for picture in one.pictures])
        for one in sections
    ]
    page = _environment().get_template("report.html").render(
        title=title,
        backgrounds={section.background for section in sections},
        sections=shown,
        documents=[json.dumps(section.document, indent=1, ensure_ascii=False) for section in sections],
    )  # fmt: skip
    with atomic_path(path, force=force) as temporary:
        temporary.write_text(readable(page), "utf-8")
    return path


def section_of(study: xr.Dataset) -> Section:
    """The section of a study.

    Raises
    ------
    InputError
        If no section is known for its kind.
    """
    kind = study.attrs.get("study")
    if kind is None and "squared_bias" in study:  # complexity studies of the first version have no kind
        kind = "complexity"
    if kind not in SECTIONS:
        raise InputError(f"report: expected a study of kind {', '.join(SECTIONS)}, got {kind!r}")
    return SECTIONS[kind](study)


def figure_file(path: Path, section: int | str, name: str) -> Path:
    """The file of a figure beside a page; ``*`` for both makes the pattern of all of them."""
    return path.with_name(f"{path.stem}-{section}-{name}.pdf")


def _figure_files(sections: Sequence[Section], path: Path) -> dict[int, Path]:
    return {
        id(picture): figure_file(path, number, picture.name)
        for number, section in enumerate(sections, start=1)
        for picture in section.pictures
    }


def _shown(picture: Picture, figure_format: str, beside: Path | None, warn: Callable[[str], None]) -> Shown:
    inside = "png" if figure_format == "pdf" else figure_format
    try:
        image = figure_bytes(picture.figure, inside)
        printed = None if beside is None else figure_bytes(picture.figure, "pdf")
    except Exception as error:  # whatever stops a drawing library: the numbers are worth more
        problem = f"figure {picture.name} cannot be drawn: {type(error).__name__}: {error}"
        warn(" ".join(problem.split()))
        return Shown(None, picture.caption, picture.alternative, None, problem)
    if printed is not None:
        with atomic_path(beside, force=True) as temporary:
            temporary.write_bytes(printed)
    # Data addresses keep the identifiers inside each SVG apart, and images run no scripts.
    source = f"data:{MEDIA[inside]};base64,{base64.b64encode(image).decode('ascii')}"
    return Shown(source, picture.caption, picture.alternative, None if beside is None else beside.name)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("analyses"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
