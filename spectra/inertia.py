"""Certified counts of signs from the local part, for convex losses.

The interaction part of a convex L is positive semi-definite, so by Weyl's monotonicity the i-th eigenvalue of
the second variation is at least the i-th of its local part, which is block-diagonal per neuron and cheap.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from spectra.eigen import EPS, Spectrum
from spectra.functionals import Linearisation

LOCAL_BYTES = 3 * 2**30


def local_eigenvalues(at: Linearisation) -> Tensor | None:
    """Eigenvalues of ``Hess V(z_j)`` of every neuron, shape (q, D), or None where they do not fit.

    Parameters
    ----------
    at : Linearisation

    Returns
    -------
    Tensor or None
    """
    q, dimension = at.measure.points.shape
    if 4 * 8 * q * dimension**2 > LOCAL_BYTES:
        return None
    return torch.linalg.eigvalsh(at.local_blocks())


def with_local_bounds(found: Spectrum, local: Tensor, *, removed: int = 0) -> Spectrum:
    """A spectrum with what the local part proves about the eigenvalues that were not computed.

    Parameters
    ----------
    found : Spectrum
        Of the second variation of a functional with convex L, or of its compression to a subspace.
    local : Tensor, shape (q, D)
        From `local_eigenvalues` of the same functional at the same measure.
    removed : int
        Dimensions that the compression took away.

    Returns
    -------
    Spectrum
        At most as many negative eigenvalues as the local part (interlacing keeps this in a subspace), at
        least as many positive ones (less those removed), and the smallest one is not below the local one.
        Signs are counted beyond rounding.
    """
    scale = max(found.norm, float(local.abs().max()))
    rounding = 16 * EPS * found.dimension**0.5 * scale
    negative = int((local < -rounding).sum())
    positive = max(0, int((local > rounding).sum()) - removed)
    return dataclasses.replace(
        found,
        at_least=(found.at_least[0], max(found.at_least[1], positive)),
        at_most=(negative, found.at_most[1]),
        lowest=float(local.min()) - rounding,
    )
