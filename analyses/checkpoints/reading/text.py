"""Names from files, made safe to print."""

from __future__ import annotations

import os


def shown(name: object, *, limit: int = 80) -> str:
    """A name from a file, safe to print: control characters escaped, long text cut.

    Parameters
    ----------
    name : object
        Its ``str`` is shown.
    limit : int
        Longest result in characters.

    Returns
    -------
    str
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name)[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def path_text(path: str | os.PathLike[str]) -> str:
    r"""A path as text that can be written anywhere: bytes that are no UTF-8 become ``\xff``.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    str
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")
