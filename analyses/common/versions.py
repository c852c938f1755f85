"""The version of the program, without loading anything."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def rhoscope_version() -> str:
    """The installed version of rhoscope, or ``"unknown"`` from a bare source tree."""
    try:
        return version("rhoscope")
    except PackageNotFoundError:
        return "unknown"
