"""Names from files, made safe to print."""

from __future__ import annotations


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
