"""The density of a spectrum in documents, datasets and summaries."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectra.solvers.density import SpectralDensity

DENSITY_BAND = 1e-3  # of the norm: quadrature nodes nearer to zero stand for eigenvalues of both signs


def density_document(density: SpectralDensity) -> dict[str, Any]:
    """The part of the JSON document of ``rhoscope analyze`` that holds the density.

    Parameters
    ----------
    density : SpectralDensity

    Returns
    -------
    dict
        ``cumulative`` numbers of eigenvalues up to every edge with ``cumulative_standard_error`` over the
        starts and ``cumulative_low, cumulative_high`` (what the Lanczos steps leave open); ``counts`` between
        neighbouring edges; trace and trace of the square with standard errors.
    """
    counted = density.cumulative(density.edges())
    trace, square = density.moment(1), density.moment(2)
    return {
        "probes": len(density.nodes),
        "steps": density.nodes.shape[1],
        "edges": counted.thresholds,
        "counts": np.diff(counted.count),
        "cumulative": counted.count,
        "cumulative_standard_error": counted.standard_error,
        "cumulative_low": counted.low,
        "cumulative_high": counted.high,
        "trace": trace[0],
        "trace_standard_error": trace[1],
        "trace_of_square": square[0],
        "trace_of_square_standard_error": square[1],
    }


def density_variables(density: SpectralDensity) -> dict[str, tuple]:
    """The same as variables of a Dataset, over ``density_edge`` and ``density_bin``."""
    found = density_document(density)
    unit = "1 (loss per squared unit of z)"
    definitions = {
        "density_edge_value": ("edges", "density_edge", unit, "symmetric-logarithmic edges, Hessian sign"),
        "density_count": ("counts", "density_bin", "eigenvalues", "estimate between neighbouring edges"),
        "density_cumulative": ("cumulative", "density_edge", "eigenvalues", "estimate, lambda <= edge"),
        "density_standard_error": (
            "cumulative_standard_error", "density_edge", "eigenvalues", "of the count, over the starts"
        ),
        "density_low": ("cumulative_low", "density_edge", "eigenvalues", "least that the steps allow"),
        "density_high": ("cumulative_high", "density_edge", "eigenvalues", "most that the steps allow"),
    }  # fmt: skip
    return {
        name: ((dim,), found[key], {"units": units, "definition": definition})
        for name, (key, dim, units, definition) in definitions.items()
    }


def density_sentence(density: SpectralDensity) -> str:
    """One line for the terminal: how many eigenvalues lie where."""
    if density.norm == 0.0:
        return f"all {density.dimension:,} eigenvalues are 0: every random start is mapped to 0"
    band = DENSITY_BAND * density.norm
    counted = density.cumulative(np.array([-band, band]))
    errors = counted.standard_error
    least = max(0.0, counted.low[1] - counted.high[0])
    most = min(float(density.dimension), counted.high[1] - counted.low[0])
    inside = counted.count[1] - counted.count[0]
    return (
        f"about {counted.count[0]:,.0f} eigenvalues below {-band:.2g}, {inside:,.0f} within +-{band:.2g} "
        f"({least:,.0f} .. {most:,.0f} by {density.nodes.shape[1]} Lanczos steps, standard error "
        f"{float(np.hypot(*errors)):,.0f} over {len(density.nodes)} starts), "
        f"{density.dimension - counted.count[1]:,.0f} above"
    )
