"""Fewer neurons, the same function: merge parallel neurons, drop empty ones, bound the change of H."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError
from spectra.networks import GroupNetwork

_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Compression:
    """A smaller network and how far its outputs can be from those of the larger one.

    Parameters
    ----------
    network : GroupNetwork
        Unit mass, canonical weights (``s = 1/(2 n q)``).
    merged, dropped : int
        Neurons saved by merging, neurons left out.
    output_bound : float
        Upper bound of ``delta = (mean over pairs |f' - f|^2)^(1/2)`` for the predictions f = o/(2n) in
        canonical weights: the triangle inequality over the neurons, each term computed exactly.
    """

    network: GroupNetwork
    merged: int
    dropped: int
    output_bound: float

    def loss_bound(self, loss: float) -> float:
        """Bound of ``|H' - H|`` for a squared loss H over all pairs: ``delta (2 sqrt(H) + delta)``.

        The root of H is the distance of f from the targets in that norm, and projections do not increase it.
        """
        return self.output_bound * (2 * max(loss, 0.0) ** 0.5 + self.output_bound)


def compress(network: GroupNetwork, *, tol: float = 1e-9, drop: float = 1e-9, seed: int = 0) -> Compression:
    """Merge neurons whose (a, b) are parallel to ``tol`` and drop those without output.

    Neurons with ``(a_j, b_j) = t_j (a, b)`` add up exactly: ``sum_j c_j t_j^2 (a[x] + b[y])^2``. Directions
    are compared on two grids of pitch ``tol`` with random offsets, so near-equal ones may stay apart (which
    costs width, never accuracy).

    Parameters
    ----------
    network : GroupNetwork
    tol : float
        Pitch on unit vectors (a, b)/|(a, b)|.
    drop : float
        Share of the largest ``|c| |(a, b)|^2`` below which a neuron is left out.
    seed : int
        Of the offsets.

    Returns
    -------
    Compression

    Raises
    ------
    InputError
        If the tolerance is not in (0, 1) or no neuron has any output.
    """
    if not 0 < tol < 1:
        raise InputError(f"tol: expected a number in (0, 1), got {tol}")
    scale = network.tau / network.width ** (1 / 3)  # now f = (1/2n) sum_j c_j (a_j[x] + b_j[y])^2
    a, b, c = (scale * w for w in (network.a, network.a if network.tied else network.b, network.c))
    length = (a.square().sum(0) + b.square().sum(0)).sqrt()
    strength = length.square() * c.norm(dim=0)
    if float(strength.max()) == 0:
        raise InputError("compress: expected a network with some output, every neuron is zero")
    keep = strength > drop * strength.max()
    bound = float(_sizes(a[:, ~keep], b[:, ~keep], c[:, ~keep]).sum())
    u, v = a[:, keep] / length[keep], b[:, keep] / length[keep]
    heads = c[:, keep] * length[keep].square()
    rng = np.random.default_rng(seed)
    for _ in range(2):
        u, v, heads, moved = _merge(u, v, heads, tol, rng)
        bound += moved
    r = (2 * heads.square().sum(0)) ** (1 / 6)  # of all (r u, r v, heads / r^2) the shortest
    q, n = u.shape[1], network.group.order
    r, back = r.clamp_min(1e-300), q ** (1 / 3)
    blocks = (back * r * u, None if network.tied else back * r * v, back * heads / r.square())
    small = GroupNetwork(network.group, *blocks, output_scale=1 / (2 * n * q))
    kept = int(keep.sum())
    return Compression(small, kept - q, network.width - kept, bound)


def _merge(
    u: Tensor, v: Tensor, heads: Tensor, tol: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Merge columns (u, v), unit vectors up to sign, that share a cell; the strongest one stands for all."""
    both = torch.cat([u, v])
    sign = torch.sign(torch.as_tensor(rng.normal(size=len(both)), device=u.device) @ both)
    both = both * torch.where(sign == 0, 1.0, sign)
    cells = np.floor(both.T.cpu().numpy() / tol + rng.random(len(both)))
    _, label = np.unique(cells, axis=0, return_inverse=True)
    label = label.reshape(-1)
    order = np.lexsort((-heads.norm(dim=0).cpu().numpy(), label))
    leaders = torch.as_tensor(order[np.unique(label[order], return_index=True)[1]], device=u.device)
    where = torch.as_tensor(label, device=u.device)
    total = torch.zeros(len(heads), len(leaders), dtype=heads.dtype, device=u.device)
    total.index_add_(1, where, heads)
    stand_in = both[:, leaders][:, where]
    n = len(u)
    moved = _differences(both[:n], both[n:], stand_in[:n], stand_in[n:], heads)
    return both[:n, leaders], both[n:, leaders], total, float(moved.sum())


def _sizes(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Root mean square over the pairs of ``|c_j (a_j[x] + b_j[y])^2| / 2n``, shape (q,)."""
    return _differences(a, b, torch.zeros_like(a), torch.zeros_like(b), c)


def _differences(a: Tensor, b: Tensor, a2: Tensor, b2: Tensor, c: Tensor) -> Tensor:
    """Root mean square over the pairs of ``|c_j| |(a_j[x]+b_j[y])^2 - (a2_j[x]+b2_j[y])^2| / 2n``."""
    n, q = a.shape
    out = torch.zeros(q, dtype=a.dtype, device=a.device)
    step = max(1, _CHUNK // (n * n))
    for low in range(0, q, step):
        part = slice(low, low + step)
        new = a2[:, None, part] + b2[None, :, part]
        old = a[:, None, part] + b[None, :, part]
        gap = (old - new) * (old + new)  # the difference of squares without cancellation
        out[part] = gap.square().sum((0, 1)).sqrt() * c[:, part].norm(dim=0) / (2 * n * n)
    return out
