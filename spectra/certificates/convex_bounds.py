"""Certified counts of signs from the local part, for convex losses.

The interaction part of a convex L is positive semi-definite, so by Weyl's monotonicity the i-th eigenvalue of
the second variation is at least the i-th of its local part, which is block-diagonal per neuron and cheap.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from spectra.functionals.base import Linearisation
from spectra.operators.complement import Complement
from spectra.rounding import arithmetic
from spectra.solvers.spectrum import Spectrum

LOCAL_BYTES = 3 * 2**30


def local_eigenvalues(at: Linearisation, space: Complement | None = None) -> Tensor | None:
    """Eigenvalues of ``Hess V(z_j)`` of every neuron, or None where they do not fit.

    Parameters
    ----------
    at : Linearisation
    space : Complement, optional
        Compress the blocks to what it leaves of each neuron.

    Returns
    -------
    Tensor or None
        Shape (q D,), or as many as the complement has dimensions, in any order.
    """
    q, dimension = at.measure.points.shape
    if 4 * 8 * q * dimension**2 > LOCAL_BYTES:
        return None
    blocks = at.local_blocks()
    if space is None:
        return torch.linalg.eigvalsh(blocks).reshape(-1)
    return space.block_eigenvalues(blocks)


def with_local_bounds(found: Spectrum, local: Tensor, *, uncertainty: float = 0.0) -> Spectrum:
    """A spectrum with what the local part proves about the eigenvalues that were not computed.

    Parameters
    ----------
    found : Spectrum
        Of the second variation of a functional with convex L, or of its compression to a subspace.
    local : Tensor, shape (N,)
        Eigenvalues of the local part in the same space, see `local_eigenvalues`.
    uncertainty : float
        What the local part is known to.

    Returns
    -------
    Spectrum
        At most as many negative eigenvalues as the local part, at least as many positive ones, and the
        smallest one is not below the local one. Local eigenvalues within rounding of zero may have either
        sign, but for those that are exactly zero as those of the spectrum are.
    """
    scale = max(found.norm, float(local.abs().max())) if len(local) else found.norm
    rounding = arithmetic(found.dimension, scale) + uncertainty
    negative = int((local < rounding).sum()) - found.null
    positive = int((local > rounding).sum())
    return dataclasses.replace(
        found,
        at_least=(found.at_least[0], max(found.at_least[1], positive)),
        at_most=(max(negative, 0), found.at_most[1]),
        lowest=float(local.min()) - rounding if len(local) else None,
    )
