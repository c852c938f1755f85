"""The formats that figures are written in; known without loading what draws them."""

from __future__ import annotations

from manifold.errors import InputError

FIGURE_FORMATS = ("svg", "png", "pdf")


def check_format(figure_format: str) -> None:
    """Refuse an unknown figure format.

    Raises
    ------
    InputError
        If it is not one of `FIGURE_FORMATS`.
    """
    if figure_format not in FIGURE_FORMATS:
        raise InputError(f"figure_format: expected one of {', '.join(FIGURE_FORMATS)}, got {figure_format!r}")
