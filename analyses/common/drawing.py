"""Matplotlib as this house uses it: imported here only, without a window, in one style.

Figures are `matplotlib.figure.Figure` objects saved through their own canvas, so no backend is ever chosen. A
backend that the environment names but that is not installed (every Jupyter kernel sets one for its children)
must not stop the import, and nothing in a user's ``matplotlibrc`` (LaTeX, fonts, sizes) may change a figure.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "legend.fontsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "rhoscope",  # the same study gives the same bytes
}
# Settings of windows, which a figure without one has no use for and a context must not reset.
_OF_WINDOWS = ("backend", "interactive", "toolbar", "webagg", "keymap", "date.epoch", "docstring")


def _import_matplotlib() -> ModuleType:
    """Matplotlib, imported whatever ``MPLBACKEND`` says; for pyplot the user's choice is kept if it works."""
    wanted = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if wanted is not None:
            os.environ["MPLBACKEND"] = wanted
    if wanted:
        with contextlib.suppress(ValueError):  # not installed: pyplot will say so to whoever uses it
            matplotlib.rcParams["backend"] = wanted
    return matplotlib


matplotlib = _import_matplotlib()

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Circle  # noqa: E402
from matplotlib.ticker import (  # noqa: E402
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

__all__ = [
    "STYLE", "Axes", "Circle", "Figure", "FixedLocator", "FuncFormatter", "LogLocator", "MaxNLocator",
    "NullFormatter", "house_style", "matplotlib",
]  # fmt: skip

_DEFAULTS = {
    key: matplotlib.rcParamsDefault[key]
    for key in matplotlib.rcParamsDefault
    if not key.startswith(_OF_WINDOWS)
}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's own defaults and the style of the house, whatever was configured; restored at the end.

    Works as a decorator too. Text takes its settings when it is made and when it is drawn, so both belong
    inside.
    """
    with matplotlib.rc_context(_DEFAULTS | STYLE):
        yield
