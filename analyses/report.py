"""Reports: studies as one self-contained HTML page."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined

from analyses.claims_section import claims_section
from analyses.crossings_section import crossings_section
from analyses.figures import check_format, figure_bytes
from analyses.maxent_section import maxent_section
from analyses.network_sections import checkpoint_section, trajectory_section
from analyses.sections import Picture, Section
from analyses.studies import atomic_path, check_free
from analyses.temperature import temperature_section
from manifold.errors import InputError

# attrs["study"] -> the function that makes its section; a new kind of study is one more line.
SECTIONS: dict[str, Callable[[xr.Dataset], Section]] = {
    "trajectory": trajectory_section,
    "checkpoint": checkpoint_section,
    "maxent": maxent_section,
    "crossings": crossings_section,
    "temperature": temperature_section,
    "claims": claims_section,
}
MEDIA = {"svg": "image/svg+xml", "png": "image/png"}


@dataclass(frozen=True)
class Shown:
    """A picture as the template needs it: an address, a caption, a file beside the page."""

    source: str
    caption: str
    alternative: str
    file: str | None


def write_report(
    datasets: Sequence[xr.Dataset], path: str | Path, *, force: bool = False, figure_format: str = "svg",
    title: str = "rhoscope report",
) -> Path:  # fmt: skip
    """Write studies as one HTML page that needs nothing else: no network, no scripts, figures inside.

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
    for file in (path, *files):
        check_free(file, force)
    for file, picture in files.items():
        with atomic_path(file, force=force) as temporary:
            temporary.write_bytes(figure_bytes(picture.figure, "pdf"))
    inside = "png" if figure_format == "pdf" else figure_format
    names = {id(picture): file.name for file, picture in files.items()}
    page = _environment().get_template("report.html").render(
        title=title,
        backgrounds={section.background for section in sections},
        sections=[(one, [_shown(picture, inside, names) for picture in one.pictures]) for one in sections],
        documents=[json.dumps(section.document, indent=1, ensure_ascii=False) for section in sections],
    )  # fmt: skip
    with atomic_path(path, force=force) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def section_of(study: xr.Dataset) -> Section:
    """The section of a study.

    Raises
    ------
    InputError
        If no section is known for its kind.
    """
    kind = study.attrs.get("study")
    if kind not in SECTIONS:
        raise InputError(f"report: expected a study of kind {', '.join(SECTIONS)}, got {kind!r}")
    return SECTIONS[kind](study)


def _figure_files(sections: Sequence[Section], path: Path) -> dict[Path, Picture]:
    return {
        path.with_name(f"{path.stem}-{number}-{picture.name}.pdf"): picture
        for number, section in enumerate(sections, start=1)
        for picture in section.pictures
    }


def _shown(picture: Picture, figure_format: str, names: dict[int, str]) -> Shown:
    # Data addresses keep the identifiers inside each SVG apart, and images run no scripts.
    data = base64.b64encode(figure_bytes(picture.figure, figure_format)).decode("ascii")
    source = f"data:{MEDIA[figure_format]};base64,{data}"
    return Shown(source, picture.caption, picture.alternative, names.get(id(picture)))


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("analyses"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
