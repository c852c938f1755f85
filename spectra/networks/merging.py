"""Fewer neurons, the same function: merge parallel neurons, drop empty ones, bound the change of H."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError
from spectra.networks.group_network import GroupNetwork

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
    potential_bound : float
        Upper bound of the change of any single potential.
    """

    network: GroupNetwork
    merged: int
    dropped: int
    output_bound: float
    potential_bound: float

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
    bounds = _changes(torch.cat([a, b])[:, ~keep], torch.zeros(2 * len(a), 1, dtype=a.dtype), c[:, ~keep])
    u, v = a[:, keep] / length[keep], b[:, keep] / length[keep]
    heads = c[:, keep] * length[keep].square()
    rng = np.random.default_rng(seed)
    for _ in range(2):
        u, v, heads, moved = _merge(u, v, heads, tol, rng)
        bounds = bounds + moved
    r = (2 * heads.square().sum(0)) ** (1 / 6)  # of all (r u, r v, heads / r^2) the shortest
    q, n = u.shape[1], network.group.order
    r, back = r.clamp_min(1e-300), q ** (1 / 3)
    blocks = (back * r * u, None if network.tied else back * r * v, back * heads / r.square())
    small = GroupNetwork(network.group, *blocks, output_scale=1 / (2 * n * q))
    kept = int(keep.sum())
    return Compression(small, kept - q, network.width - kept, *bounds.tolist())


def _merge(
    u: Tensor, v: Tensor, heads: Tensor, tol: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
    n = len(u)
    moved = _changes(both, both[:, leaders][:, where], heads)
    return both[:n, leaders], both[n:, leaders], total, moved


def _changes(old: Tensor, new: Tensor, c: Tensor) -> Tensor:
    """Bounds of what replacing columns (a; b) by others changes: of the outputs, of any potential, (2,).

    Per neuron the root mean square over the pairs of ``|c| |(a[x]+b[y])^2 - (a'[x]+b'[y])^2| / 2n``; and,
    as coefficients are means, ``|z_p z_r - z'_p z'_r| |z_c| <= d (s + s') |c|_1/n`` with the larger of
    ``|a|_1/n`` and ``|b|_1/n`` for the old s, the new s' and the difference d. Summed over neurons.
    """
    n, q = c.shape
    new = new.expand(2 * n, q)
    total = torch.zeros(2, dtype=c.dtype, device=c.device)
    step = max(1, _CHUNK // (n * n))
    for low in range(0, q, step):
        one, two, head = (w[:, low : low + step] for w in (old, new, c))
        sums = [w[:n, None] + w[None, n:] for w in (one, two)]
        gap = (sums[0] - sums[1]) * (sums[0] + sums[1])  # the difference of squares without cancellation
        total[0] += (gap.square().sum((0, 1)).sqrt() * head.norm(dim=0)).sum() / (2 * n * n)
        means = [w.abs().unflatten(0, (2, n)).mean(1).amax(0) for w in (one - two, one, two)]
        total[1] += (means[0] * (means[1] + means[2]) * head.abs().mean(0)).sum()
    return total
