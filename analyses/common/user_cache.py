"""The user's cache folder: finished work that may be deleted at any time, apart from the user's files."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
from pathlib import Path

PACKAGES = ("manifold", "spectra", "analyses")


def cache_folder(study: str) -> Path:
    """Where finished work of a study is kept.

    Parameters
    ----------
    study : str
        Such as ``crossings``.

    Returns
    -------
    Path
        ``rhoscope/STUDY`` in ``XDG_CACHE_HOME`` where that is an absolute path, else in the platform's
        folder for caches. It need not exist.
    """
    return _caches() / "rhoscope" / study


def _caches() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given)
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    return home / ".cache"


def why_unwritable(folder: Path) -> str | None:
    """Why nothing can be kept in a folder (it is made if it is not there); None if it can.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    str or None
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


@functools.cache
def program() -> str:
    """Hash of the program's own sources: results of another version are never taken for its own."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(f"{file.relative_to(root)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
