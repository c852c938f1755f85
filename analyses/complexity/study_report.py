"""The HTML page of a sample-complexity study."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import xarray as xr
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from analyses.complexity.figures import all_figures
from analyses.studies import atomic_path
from manifold.errors import InputError

FORMATS = {"svg": "image/svg+xml", "png": "image/png"}


def data_uri(figure: Figure, kind: str) -> str:
    """A figure as a data URI, so that the page is one file.

    Raises
    ------
    InputError
        If the format cannot be shown in a page.
    """
    if kind not in FORMATS:
        raise InputError(f"--figure-format: expected one of {', '.join(FORMATS)} for a report, got {kind!r}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return f"data:{FORMATS[kind]};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_report(
    document: dict[str, Any],
    study: xr.Dataset,
    path: Path,
    *,
    figure_format: str = "svg",
    force: bool = False,
) -> Path:
    """Write the page, atomically.

    Parameters
    ----------
    document : dict
        The JSON document of the study.
    study : xarray.Dataset
    path : Path
    figure_format : {"svg", "png"}
    force : bool

    Returns
    -------
    Path
    """
    figures = {name: data_uri(f, figure_format) for name, f in all_figures(document, study).items()}
    environment = Environment(loader=PackageLoader("analyses"), autoescape=select_autoescape())
    page = environment.get_template("complexity.html").render(document=document, figures=figures)
    with atomic_path(Path(path), force=force) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)
