"""Complete spectra from uncoupled blocks, with the norm of the dropped coupling as the error bound.

For squared losses over all pairs ``L''`` is diagonal in the output frequency. First-layer unknowns of a
neuron reach the output frequencies that its c carries, ``c_j`` at k reaches k. Where neurons carry one
frequency the second variation falls apart into one block per conjugate pair; where they nearly do, the
coupling between blocks is small. Unknowns are joined to output frequencies by c coefficients above a cut, the
blocks are the connected components, and whatever the cut dropped is measured, not assumed: the difference of
the operator and its blocks has a norm, and by Weyl no eigenvalue is off by more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from manifold.errors import InputError, NotConvergedError, TooLargeError
from manifold.measures import ParticleMeasure
from spectra.block_solvers import norm_bound
from spectra.eigen import EPS, Reason, Spectrum
from spectra.functionals import Decayed, Functional
from spectra.group_task import GroupTask
from spectra.variation import SymmetricOperator

CUT = 0.1  # of |c_j|: coefficients below it do not join blocks
USEFUL = 0.05  # of the operator norm: a larger bound says too little to be worth the wait
BLOCK_LIMIT = 8000
BLOCK_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class BlockStructure:
    """A partition of the unknowns of an operator.

    Parameters
    ----------
    labels : ndarray of int, shape (N,)
        Number of the block of each unknown, 0 .. count - 1.
    """

    labels: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Number of unknowns of each block, shape (count,)."""
        return np.bincount(self.labels)

    @property
    def products(self) -> int:
        """Operator products that assemble every block at once."""
        return int(self.sizes.max(initial=0))

    def ranks(self) -> np.ndarray:
        """Place of each unknown within its block, shape (N,)."""
        order = np.argsort(self.labels, kind="stable")
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(len(order)) - np.repeat(starts, self.sizes)
        return ranks


def frequency_blocks(
    functional: Functional, measure: ParticleMeasure, *, cut: float = CUT
) -> BlockStructure | None:
    """Blocks of the full Wasserstein second variation of a group task by output frequency.

    Parameters
    ----------
    functional : Functional
        A `GroupTask` with a squared loss over all pairs, or its decayed form.
    measure : ParticleMeasure
        Points of shape (q, D).
    cut : float
        c coefficients below ``cut * |c_j|`` are taken as absent.

    Returns
    -------
    BlockStructure or None
        None where the loss couples all output frequencies (cross-entropy, a training split). Unknowns of a
        vanished neuron are blocks of one: V is cubic, so it has no second derivative there.
    """
    task = functional.functional if isinstance(functional, Decayed) else functional
    if not isinstance(task, GroupTask) or task.loss == "cross_entropy" or task.pairs is not None:
        return None
    keep = slice(int(task.centred), None)
    frequency = np.array([k for k, _ in task.group.real_columns])[keep]
    points = measure.points.cpu().numpy()
    q, width = len(points), len(frequency)
    alive = np.linalg.norm(points, axis=1) > 0
    power = np.zeros((q, task.group.order))
    np.add.at(power, (slice(None), frequency), points[:, -width:] ** 2)
    carries = power > (cut**2 * power.sum(1, keepdims=True)).clip(1e-300)
    neuron, reached = np.nonzero(carries)
    size = q + task.group.order
    graph = scipy.sparse.coo_array((np.ones(len(neuron)), (neuron, q + reached)), shape=(size, size))
    _, joined = connected_components(graph, directed=False)
    first_layer = np.repeat(joined[:q, None], points.shape[1] - width, axis=1)
    labels = np.concatenate([first_layer, np.tile(joined[q + frequency], (q, 1))], axis=1)
    lone = np.arange(labels.size).reshape(labels.shape) + size
    labels = np.where(alive[:, None], labels, lone)
    return BlockStructure(np.unique(labels.reshape(-1), return_inverse=True)[1])


class BlockDiagonal(SymmetricOperator):
    """The diagonal blocks of an operator, assembled by probing all blocks at once.

    One product with the sum of one unit vector of every block gives a column of each block; what couples
    different blocks falls into these columns as an error, which the norm of the difference includes.
    Blocks of one unknown are kept as a diagonal.
    """

    def __init__(self, operator: SymmetricOperator, structure: BlockStructure):
        self.dimension, self.structure = operator.dimension, structure
        self._device = operator.device
        members = np.split(np.argsort(structure.labels, kind="stable"), np.cumsum(structure.sizes)[:-1])
        device = operator.device
        self.members = [torch.as_tensor(m, device=device) for m in members if len(m) > 1]
        self.single = torch.as_tensor(
            np.array([m[0] for m in members if len(m) == 1], dtype=np.int64), device=device
        )
        self.blocks = [torch.empty(len(m), len(m), dtype=torch.float64, device=device) for m in self.members]
        self.diagonal = torch.zeros(len(self.single), dtype=torch.float64, device=device)
        self._probe(operator, torch.as_tensor(structure.ranks(), device=device))
        for block in self.blocks:
            block += block.T.clone()
            block *= 0.5

    def _probe(self, operator: SymmetricOperator, ranks: Tensor) -> None:
        step = 16
        for low in range(0, self.structure.products, step):
            width = min(step, self.structure.products - low)
            inside = (ranks >= low) & (ranks < low + width)
            probe = torch.zeros(self.dimension, width, dtype=torch.float64, device=self._device)
            probe[inside.nonzero().flatten(), ranks[inside] - low] = 1
            image = operator.apply(probe)
            for member, block in zip(self.members, self.blocks, strict=True):
                part = min(low + width, len(member)) - low
                if part > 0:
                    block[:, low : low + part] = image[member, :part]
            if low == 0:
                self.diagonal = image[self.single, 0]

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""
        return self._device

    def _apply(self, block: Tensor) -> Tensor:
        out = torch.empty_like(block)
        out[self.single] = self.diagonal[:, None] * block[self.single]
        for member, matrix in zip(self.members, self.blocks, strict=True):
            out[member] = matrix @ block[member]
        return out

    def eigenvalues(self) -> np.ndarray:
        """All eigenvalues, ascending, shape (N,)."""
        parts = [scipy.linalg.eigvalsh(b.cpu().numpy(), driver="evd") for b in self.blocks]
        return np.sort(np.concatenate([self.diagonal.cpu().numpy(), *parts]))


class _Difference(SymmetricOperator):
    def __init__(self, one: SymmetricOperator, two: SymmetricOperator):
        self.one, self.two, self.dimension = one, two, one.dimension

    def _apply(self, block: Tensor) -> Tensor:
        return self.one.apply(block) - self.two.apply(block)

    @property
    def device(self) -> torch.device:
        """Device of both."""
        return self.one.device


def check_blocks(structure: BlockStructure | None, *, memory_limit: int = BLOCK_BYTES) -> None:
    """Refuse a partition that does not help.

    Parameters
    ----------
    structure : BlockStructure or None
        From `frequency_blocks`.
    memory_limit : int
        Bytes for the blocks.

    Raises
    ------
    InputError
        If there is no structure.
    TooLargeError
        If the largest block or all of them together are too large.
    """
    if structure is None:
        raise InputError(
            "blocks: expected a squared loss over all pairs; cross-entropy and training splits couple all "
            "output frequencies: ask for a number of eigenvalues instead of all"
        )
    sizes = structure.sizes.astype(float)
    total = 8 * float((sizes**2).sum())
    if structure.products > BLOCK_LIMIT or total > memory_limit:
        raise TooLargeError(
            f"blocks: the largest of {len(sizes):,} blocks has {structure.products:,} unknowns (limit "
            f"{BLOCK_LIMIT:,}) and all need {total / 2**30:.1f} GiB (limit {memory_limit / 2**30:.1f}); "
            "neurons carry too many output frequencies: ask for a number of eigenvalues instead of all"
        )


def blocked_spectrum(
    operator: SymmetricOperator, structure: BlockStructure, *, seed: int = 0, useful: float = USEFUL
) -> Spectrum:
    """The complete spectrum of the blocks with a bound for every eigenvalue of the operator itself.

    Parameters
    ----------
    operator : SymmetricOperator
        The full second variation.
    structure : BlockStructure
        Its partition, see `frequency_blocks`.
    seed : int
        Of the norm bound of the difference.
    useful : float
        Largest bound, relative to the norm, that is still a result.

    Returns
    -------
    Spectrum
        All N eigenvalues, without vectors; ``errors`` is the norm of the difference of the operator and its
        blocks, which bounds the i-th eigenvalue for every i at once except with probability 1e-9.

    Raises
    ------
    NotConvergedError
        If the bound is larger than useful; it says how large, and carries the spectrum.
    """
    blocks = BlockDiagonal(operator, structure)
    dropped, _ = norm_bound(_Difference(operator, blocks), seed=seed)
    values = blocks.eigenvalues()
    norm = float(np.abs(values).max(initial=0.0))
    bound = dropped + 4 * EPS * structure.products**0.5 * norm
    found = Spectrum(
        values, np.full(len(values), bound), np.full(len(values), bound),
        torch.zeros(len(values), 0, dtype=torch.float64), len(values), norm, True, "frequency blocks",
        operator.matvecs, bound <= useful * norm,
        Reason.BLOCKS if bound <= useful * norm else Reason.COUPLED,
    )  # fmt: skip
    if bound > useful * norm:
        raise NotConvergedError(
            f"blocks: the coupling dropped between blocks has norm {bound:.2g}, {100 * bound / norm:.0f} % "
            "of the operator's: the neurons are not single-frequency enough; ask for a number of eigenvalues",
            found,
        )
    return found
