"""The space orthogonal to directions known particle by particle, in coordinates of its own.

Reflections turn the known directions of every particle to coordinate axes; the other coordinates are those
of the complement. So an operator is compressed to it exactly, and no vector of it can touch what was removed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectra.functionals.base import Linearisation
from spectra.rounding import EPS

DEPENDENT = 1e-12  # of a direction left beside the others: below, what is left is mostly rounding
TILT_UNITS = 8  # units in the last place, of the size of a direction, that its remainder is known to


@dataclass(frozen=True, eq=False)
class Complement:
    """An isometry from R^M to half-densities on q particles of dimension D, N = q D.

    Parameters
    ----------
    reflectors : Tensor, shape (g, q, D)
        Vectors v of reflections ``1 - v v^T`` (``|v|^2 = 2``, or v = 0 for none), applied last to first.
    inside : Tensor of int, shape (M,)
        Flat positions in (q, D) of the coordinates that remain.
    tilt : float
        Bound of the angle by which rounding of the directions turns the space.
    """

    reflectors: Tensor
    inside: Tensor
    tilt: float

    @property
    def dimension(self) -> int:
        """M."""
        return len(self.inside)

    def to(self, dtype: torch.dtype) -> Complement:
        """The same in another precision."""
        return replace(self, reflectors=self.reflectors.to(dtype))

    def lift(self, block: Tensor) -> Tensor:
        """Coordinates to half-densities, (M, k) to (N, k)."""
        _, q, dimension = self.reflectors.shape
        out = torch.zeros(q * dimension, block.shape[1], dtype=block.dtype, device=block.device)
        out[self.inside] = block
        return self._reflected(out, tuple(reversed(self.reflectors)))

    def project(self, block: Tensor) -> Tensor:
        """Half-densities to coordinates, (N, k) to (M, k)."""
        return self._reflected(block, tuple(self.reflectors))[self.inside]

    def block_eigenvalues(self, blocks: Tensor) -> Tensor:
        """Eigenvalues of a block-diagonal operator compressed to the space, blocks (q, D, D), to (M,)."""
        q, dimension, _ = blocks.shape
        for v in self.reflectors:
            for _ in range(2):  # from the left and, transposed, from the right
                blocks = (blocks - v[:, :, None] * (v[:, None, :] @ blocks)).mT
        inside = torch.zeros(q * dimension, dtype=torch.bool, device=blocks.device)
        inside[self.inside] = True
        found = []
        for block, kept in zip(blocks, inside.reshape(q, dimension), strict=True):
            found.append(torch.linalg.eigvalsh(block[kept][:, kept]))
        return torch.cat(found)

    def _reflected(self, block: Tensor, reflectors: tuple[Tensor, ...]) -> Tensor:
        if not reflectors:
            return block
        shaped = block.reshape(*reflectors[0].shape, -1)
        for v in reflectors:
            shaped = shaped - v[:, :, None] * (v[:, None, :] @ shaped)
        return shaped.reshape(block.shape)


def complement(fields: Tensor, *, keep: Tensor, sizes: Tensor | None = None) -> Complement:
    """The complement of some directions at every particle.

    Parameters
    ----------
    fields : Tensor, shape (q, g, D)
        Directions; zero ones, and those that depend on earlier ones, take nothing away. A direction must be
        zero on coordinates that are not kept.
    keep : Tensor of bool, shape (q, D)
        Coordinates that may be used at all.
    sizes : Tensor, shape (q,), optional
        What each particle's directions are rounded at, beside their own size.

    Returns
    -------
    Complement
    """
    q, count, dimension = fields.shape
    inside, reflectors, tilt = keep.clone(), [], 0.0
    rows = torch.arange(q, device=fields.device)
    found = torch.zeros(q, 0, dimension, dtype=fields.dtype, device=fields.device)
    for i in range(count):
        direction, length = _cleared(fields[:, i], found)
        whole = fields[:, i].norm(dim=1)
        fresh = length > DEPENDENT * whole
        direction = torch.where(fresh[:, None], direction / length[:, None], 0.0)
        found = torch.cat([found, direction[:, None]], dim=1)
        if bool(fresh.any()):
            rounded = whole if sizes is None else torch.maximum(whole, sizes)
            tilt = max(tilt, float((TILT_UNITS * EPS * rounded / length)[fresh].max()))
        turned = direction
        for v in reflectors:
            turned = turned - v * (v * turned).sum(1, keepdim=True)
        pivot = torch.where(inside, turned.abs(), -1.0).argmax(1)  # the largest entry: no cancellation
        reflector = turned.clone()
        reflector[rows, pivot] += torch.where(turned[rows, pivot] < 0, -1.0, 1.0)
        reflector *= 2**0.5 / reflector.norm(dim=1, keepdim=True)
        reflectors.append(torch.where(fresh[:, None], reflector, 0.0))
        inside[rows[fresh], pivot[fresh]] = False
    stacked = torch.stack(reflectors) if reflectors else fields.new_zeros(0, q, dimension)
    return Complement(stacked, inside.reshape(-1).nonzero().flatten(), tilt)


def _cleared(vectors: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (q, D) without their parts along orthonormal or zero ones (q, i, D), and their lengths (q,)."""
    for _ in range(2):  # twice is enough (Kahan)
        vectors = vectors - ((known @ vectors[:, :, None]) * known).sum(1)
    return vectors, vectors.norm(dim=1)


def complement_of_symmetries(at: Linearisation) -> Complement:
    """What the symmetries of R leave of the vector fields along the particles: T_R lies in it.

    Parameters
    ----------
    at : Linearisation

    Returns
    -------
    Complement
        Without coordinates in which no function of R has a slope (all of a neuron at zero).
    """
    reached = at.reached()
    fields = at.symmetry_fields() * reached[:, None, :]
    return complement(fields, keep=reached, sizes=at.measure.points.norm(dim=1))
