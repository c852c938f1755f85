"""Partitions of the unknowns of an operator into blocks, for the group task by output frequency.

For squared losses over all pairs ``L''`` is diagonal in the output frequency. First-layer unknowns of a
neuron reach the output frequencies that its c carries, ``c_j`` at k reaches k. Unknowns are joined to output
frequencies by c coefficients above a cut; the blocks are the connected components. Nothing here claims that
they are uncoupled: `spectra.blocks.spectrum` measures what a partition drops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from manifold.errors import InputError, TooLargeError
from manifold.measures import ParticleMeasure
from spectra.blocks.border import LEFT_LIMIT
from spectra.functionals.base import Decayed, Functional
from spectra.tasks.group_task import GroupTask

CUT = 0.1  # of |c_j|: coefficients below it do not join blocks
VANISHED = 1e-4  # of the largest |z_j|: what smaller neurons couple is part of the measured error
BLOCK_LIMIT = 8000
BORDER_LIMIT = 4000  # unknowns set aside at most
GROUP_BYTES = 3 * 2**29  # of the blocks held at once
PROBES = 6  # Gaussian vectors of the first look at a coupling


@dataclass(frozen=True, eq=False)
class BlockStructure:
    """A partition of the unknowns of an operator.

    Parameters
    ----------
    labels : ndarray of int, shape (N,)
        Number of the block of each unknown, 0 .. count - 1, or -1 in a border that may couple to all blocks.
    """

    labels: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Number of unknowns of each block, shape (count,)."""
        return np.bincount(self.labels[self.labels >= 0])

    @property
    def border(self) -> np.ndarray:
        """Unknowns of the border, often none."""
        return np.flatnonzero(self.labels < 0)

    @property
    def products(self) -> int:
        """Operator products that assemble every block at once."""
        return int(self.sizes.max(initial=0))

    @property
    def predicted_products(self) -> int:
        """Operator products of a complete spectrum, without those that sharpen the norm of a coupling."""
        large = int((self.sizes > 1).sum())
        assembly = sum(int(self.sizes[group].max()) for group in self.groups())
        return assembly + PROBES * (large + 1) + len(self.border)

    @property
    def memory(self) -> int:
        """Predicted bytes at most: blocks held at once, couplings of the border and what they leave."""
        blocks = min(int(8 * (self.sizes.astype(float) ** 2).sum()), GROUP_BYTES)
        left = 2 * 8 * LEFT_LIMIT**2 if len(self.border) else 0
        return blocks + left + 8 * len(self.labels) * (64 + 3 * len(self.border))

    @property
    def members(self) -> list[np.ndarray]:
        """Unknowns of every block."""
        order = np.argsort(self.labels, kind="stable")[len(self.border) :]
        return np.split(order, np.cumsum(self.sizes)[:-1])

    def groups(self, memory: int = GROUP_BYTES) -> list[np.ndarray]:
        """Numbers of the blocks of more than one unknown, in groups that fit in memory, largest first."""
        sizes = self.sizes
        order = np.argsort(-sizes, kind="stable")
        order = order[sizes[order] > 1]
        place = np.cumsum(8 * sizes[order].astype(float) ** 2) // memory
        return np.split(order, np.nonzero(np.diff(place))[0] + 1) if len(order) else []


def frequency_blocks(
    functional: Functional, measure: ParticleMeasure, *, cut: float = CUT, largest: int = BLOCK_LIMIT
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
    largest : int
        Unknowns of a block above which the first layers of neurons with several output frequencies are set
        aside as a border, if they are few.

    Returns
    -------
    BlockStructure or None
        None where the loss couples all output frequencies (cross-entropy, a training split). Unknowns of a
        vanished neuron are blocks of one: V is cubic, so it has (next to) no second derivative there.
    """
    task = functional.functional if isinstance(functional, Decayed) else functional
    if not isinstance(task, GroupTask) or task.loss == "cross_entropy" or task.pairs is not None:
        return None
    keep = slice(int(task.centred), None)
    frequency = np.array([k for k, _ in task.group.real_columns])[keep]
    points = measure.points.cpu().numpy()
    q, width = len(points), len(frequency)
    lengths = np.linalg.norm(points, axis=1)
    alive = lengths > VANISHED * lengths.max(initial=0.0)
    power = np.zeros((q, task.group.order))
    np.add.at(power, (slice(None), frequency), points[:, -width:] ** 2)
    carries = alive[:, None] & (power > cut**2 * power.sum(1, keepdims=True))
    first_layer = points.shape[1] - width
    structure = _components(carries, alive, first_layer, frequency)
    several = carries.sum(1) > 1
    if structure.products <= largest or several.sum() * first_layer > BORDER_LIMIT:
        return structure
    return _components(carries, alive, first_layer, frequency, border=several)


def _components(
    carries: np.ndarray, alive: np.ndarray, first_layer: int, frequency: np.ndarray,
    border: np.ndarray | None = None,
) -> BlockStructure:  # fmt: skip
    """Connected components of the graph of neurons (q,) and the output frequencies they carry (q, n)."""
    q, n = carries.shape
    border = np.zeros(q, dtype=bool) if border is None else border
    neuron, reached = np.nonzero(carries & ~border[:, None])
    graph = scipy.sparse.coo_array((np.ones(len(neuron)), (neuron, q + reached)), shape=(q + n, q + n))
    _, joined = connected_components(graph, directed=False)
    labels = np.concatenate(
        [np.repeat(joined[:q, None], first_layer, axis=1), np.tile(joined[q + frequency], (q, 1))], axis=1
    )
    lone = np.arange(labels.size).reshape(labels.shape) + q + n
    labels = np.where(alive[:, None], labels, lone)
    inside = np.zeros(labels.shape, dtype=bool)
    inside[border, :first_layer] = True
    labels = np.unique(np.where(inside, -1, labels).reshape(-1), return_inverse=True)[1]
    return BlockStructure(labels - int(border.any()))


def check_blocks(structure: BlockStructure | None, memory_limit: float = math.inf) -> None:
    """Refuse a partition that does not help.

    Parameters
    ----------
    structure : BlockStructure or None
        From `frequency_blocks`.
    memory_limit : float
        Bytes.

    Raises
    ------
    InputError
        If there is no structure.
    TooLargeError
        If the largest block is too large for a dense solver, or the border for the memory.
    """
    if structure is None:
        raise InputError(
            "blocks: expected a squared loss over all pairs; cross-entropy and training splits couple all "
            "output frequencies: ask for a number of eigenvalues, or their density, instead of all"
        )
    if structure.products > BLOCK_LIMIT:
        raise TooLargeError(
            f"blocks: the largest of {len(structure.sizes):,} blocks has {structure.products:,} unknowns "
            f"(limit {BLOCK_LIMIT:,}; alone it needs {8 * structure.products**2 / 2**30:,.1f} GiB); neurons "
            "carry too many output frequencies: ask for a number of eigenvalues, or their density, instead "
            "of all"
        )
    if len(structure.border) and structure.memory > memory_limit:
        raise TooLargeError(
            f"blocks: {len(structure.border):,} unknowns of neurons that carry many output frequencies join "
            f"the blocks, and need {structure.memory / 2**30:,.1f} GiB (limit {memory_limit / 2**30:,.0f}); "
            "ask for a number of eigenvalues, or their density, instead of all"
        )
