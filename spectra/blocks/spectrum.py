"""Complete spectra from uncoupled blocks, with the norm of the dropped coupling as the error bound.

Where neurons carry one frequency the second variation falls apart into one block per conjugate pair; where
they nearly do, the coupling between blocks is small. Whatever a partition drops is measured, not assumed:
the difference of the operator and its blocks has a norm, and by Weyl no eigenvalue is off by more.

That norm is found first, without any block, from products with vectors cut to one block each; so a network
that does not fall apart is refused before the work. Blocks are then assembled in groups of bounded memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from manifold.errors import InputError, NotConvergedError
from spectra.blocks.border import Border
from spectra.blocks.partition import GROUP_BYTES, PROBES, BlockStructure
from spectra.operators.variation import SymmetricOperator
from spectra.rounding import arithmetic
from spectra.solvers.block_lanczos import norm_bound
from spectra.solvers.spectrum import Reason, Spectrum, power_norm

USEFUL = 0.05  # of the operator norm: a larger bound says too little to be worth the wait
MASKED_BYTES = 2**27  # of vectors cut to blocks, at once
PROBE_FACTOR = 25.3  # sqrt(2/pi) / 25.3 to the power of PROBES is 1e-9
NEGLIGIBLE = 1e-10  # of the norm: a coupling that needs no sharper bound
UNITS = 2e10  # n^3 of dense eigenvalues in a second, for predictions only
Report = Callable[[float, float, str], None]


class CutBlocks(SymmetricOperator):
    """``sum_b P_b L P_b`` over some blocks, by products with vectors cut to one block each; nothing stored.

    One product costs one of L for every chosen block of more than one unknown. Blocks of one unknown share a
    diagonal, L times the sum of their unit vectors. All blocks together include the rows and columns of the
    border.

    Parameters
    ----------
    operator : SymmetricOperator
        L.
    structure : BlockStructure
        The partition.
    chosen : ndarray of int, optional
        Numbers of blocks; default all of them.
    """

    def __init__(
        self, operator: SymmetricOperator, structure: BlockStructure, chosen: np.ndarray | None = None
    ):
        self.operator, self.dimension = operator, operator.dimension
        large = structure.sizes > 1
        wanted = large if chosen is None else large & np.isin(np.arange(len(large)), chosen)
        labelled = structure.labels >= 0
        number = np.where(labelled, np.where(wanted, np.cumsum(wanted) - 1, -1)[structure.labels], -1)
        single = labelled & ~large[structure.labels] & (chosen is None)
        self.count = int(wanted.sum())
        self.number = torch.as_tensor(number, device=operator.device)
        self.single = torch.as_tensor(single, device=operator.device)
        border = structure.border if chosen is None else structure.border[:0]
        self.border = torch.as_tensor(border, device=operator.device)
        self.diagonal = torch.zeros(self.dimension, dtype=torch.float64, device=operator.device)
        if bool(self.single.any()):
            self.diagonal = self.single * operator.apply(self.single.double()[:, None])[:, 0]

    @property
    def device(self) -> torch.device:
        """Device of the operator."""
        return self.operator.device

    def _apply(self, block: Tensor) -> Tensor:
        out = self.diagonal[:, None] * block
        step = max(1, MASKED_BYTES // (8 * self.dimension))
        for low in range(0, self.count, step):
            width = min(step, self.count - low)
            inside = ((self.number >= low) & (self.number < low + width)).nonzero().flatten()
            place = self.number[inside] - low
            for i in range(block.shape[1]):
                cut = torch.zeros(self.dimension, width, dtype=block.dtype, device=block.device)
                cut[inside, place] = block[inside, i]
                out[inside, i] = self.operator.apply(cut)[inside, place]
        return out + self._of_border(block) if len(self.border) else out

    def _of_border(self, block: Tensor) -> Tensor:
        at_border = torch.zeros_like(block)
        at_border[self.border] = block[self.border]
        out = self.operator.apply(at_border)  # its columns
        out[self.border] = self.operator.apply(block)[self.border]  # its rows, the corner included
        return out


class BlockGroup(SymmetricOperator):
    """Some diagonal blocks of an operator, assembled by probing all of them at once.

    One product with the sum of one unit vector of every block gives a column of each block. What couples
    blocks of the group falls into these columns as an error.

    Parameters
    ----------
    operator : SymmetricOperator
    structure : BlockStructure
    chosen : ndarray of int
        Numbers of the blocks.
    advance : callable
        Called after every few products.
    """

    STEP = 16  # columns at once

    def __init__(
        self, operator: SymmetricOperator, structure: BlockStructure, chosen: np.ndarray,
        advance: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        self.operator, self.dimension = operator, operator.dimension
        every, device = structure.members, operator.device
        self.members = [torch.as_tensor(every[i], device=device) for i in chosen]
        self.blocks = [torch.empty(len(m), len(m), dtype=torch.float64, device=device) for m in self.members]
        for low in range(0, max(len(m) for m in self.members), self.STEP):
            self._probe(low)
            advance()
        for block in self.blocks:
            block += block.T.clone()
            block *= 0.5

    def _probe(self, low: int) -> None:
        width = min(self.STEP, max(len(m) for m in self.members) - low)
        probe = torch.zeros(self.dimension, width, dtype=torch.float64, device=self.device)
        for member in self.members:
            inside = member[low : low + width]
            probe[inside, torch.arange(len(inside), device=self.device)] = 1
        image = self.operator.apply(probe)
        for member, block in zip(self.members, self.blocks, strict=True):
            inside = len(member[low : low + width])
            block[:, low : low + inside] = image[member, :inside]

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""
        return self.operator.device

    def _apply(self, block: Tensor) -> Tensor:
        out = torch.zeros_like(block)
        for member, matrix in zip(self.members, self.blocks, strict=True):
            out[member] = matrix @ block[member]
        return out

    def drain(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Unknowns (k,) and matrix (k, k) of every block, which the group forgets on the way.

        Raises
        ------
        InputError
            If a block holds NaN or infinity.
        """
        while self.blocks:
            matrix = self.blocks.pop()
            if not torch.isfinite(matrix).all():
                raise InputError("operator: expected finite products, got NaN or infinity")
            yield self.members.pop(), matrix


def _eigenvalues(matrix: Tensor) -> np.ndarray:
    """Eigenvalues of a symmetric matrix, which is overwritten."""
    if matrix.is_cuda:
        return torch.linalg.eigvalsh(matrix).cpu().numpy()
    # Of a symmetric matrix the transpose is the column-major array that LAPACK works in, without a copy.
    return scipy.linalg.eigh(
        matrix.numpy().T, eigvals_only=True, driver="evd", overwrite_a=True, check_finite=False
    )


class _Difference(SymmetricOperator):
    def __init__(self, one: SymmetricOperator, two: SymmetricOperator):
        self.one, self.two, self.dimension = one, two, one.dimension

    def _apply(self, block: Tensor) -> Tensor:
        return self.one.apply(block) - self.two.apply(block)

    @property
    def device(self) -> torch.device:
        """Device of both."""
        return self.one.device


def coupling_bound(
    one: SymmetricOperator, two: SymmetricOperator, *, negligible: float, seed: int = 0
) -> float:
    """Upper bound of the norm of a difference of operators that fails with probability 1e-9.

    First by six Gaussian vectors x: ``P(max |E x| < |E| / 25.3) <= (sqrt(2/pi) / 25.3)^6``. That bound is
    loose by the root of the rank; where it is not negligible, Lanczos gives a sharp one.

    Parameters
    ----------
    one, two : SymmetricOperator
        On the same space.
    negligible : float
        A bound below this needs no sharpening.
    seed : int
        Of the vectors.

    Returns
    -------
    float

    Raises
    ------
    InputError
        If a product gives NaN or infinity.
    """
    difference = _Difference(one, two)
    rng = np.random.default_rng(seed)
    probes = torch.as_tensor(rng.standard_normal((one.dimension, PROBES)), device=one.device)
    loose = PROBE_FACTOR * float(difference.apply(probes).norm(dim=0).max())
    if not np.isfinite(loose):
        raise InputError("operator: expected finite products, got NaN or infinity")
    return loose if loose <= negligible else min(loose, norm_bound(difference, seed=seed)[0])


class _Meter:
    """Turns products and finished blocks into predicted seconds for a progress report."""

    def __init__(self, operator: SymmetricOperator, structure: BlockStructure, report: Report | None):
        self.operator, self.report = operator, report
        self.begin, self.first = time.monotonic(), operator.matvecs
        self.products, self.flops = structure.predicted_products, float((structure.sizes**3.0).sum())
        self.done = 0.0

    def __call__(self, message: str, size: int = 0) -> None:
        self.done += size**3.0
        if self.report is None:
            return
        made = self.operator.matvecs - self.first
        # Seconds per product are measured; a dense solve makes about 2e10 of its n^3 units a second.
        each = max(1e-6, time.monotonic() - self.begin - self.done / UNITS) / max(1, made)
        total = max(self.products, made) * each + self.flops / UNITS
        self.report(min(made * each + self.done / UNITS, total), total, message)


def blocked_spectrum(
    operator: SymmetricOperator, structure: BlockStructure, *, seed: int = 0, useful: float = USEFUL,
    memory: int = GROUP_BYTES, progress: Report | None = None,
) -> Spectrum:  # fmt: skip
    """The complete spectrum of the blocks with a bound for every eigenvalue of the operator itself.

    Parameters
    ----------
    operator : SymmetricOperator
        The full second variation.
    structure : BlockStructure
        Its partition, see `frequency_blocks`.
    seed : int
        Of the norm bounds.
    useful : float
        Largest bound, relative to the norm, that is still a result.
    memory : int
        Bytes of the blocks that are held at once; each group costs as many products as its largest block.
    progress : callable, optional
        Told predicted seconds done, seconds in all, and the stage.

    Returns
    -------
    Spectrum
        All N eigenvalues, without vectors; ``errors`` bounds the i-th eigenvalue for every i at once except
        with probability 1e-9: the norm of the dropped coupling plus that of what falls into assembled blocks.

    Raises
    ------
    NotConvergedError
        Before any block is assembled, if the dropped coupling is larger than useful; it says how large.
    InputError
        If the operator gives NaN.
    """
    meter = _Meter(operator, structure, progress)
    rough = power_norm(operator, seed=seed)
    cut = CutBlocks(operator, structure)
    dropped = coupling_bound(operator, cut, negligible=NEGLIGIBLE * rough, seed=seed)
    meter("coupling between blocks")
    if dropped > useful * rough:
        norm = max(rough, norm_bound(operator, seed=seed)[0])
        if dropped > useful * norm:
            raise NotConvergedError(
                f"blocks: the coupling between blocks has norm {dropped:.2g}, {100 * dropped / norm:.0f} % "
                f"of the operator's, and would be the error of every eigenvalue (limit {100 * useful:.0f} "
                "%): the neurons are not single-frequency enough, or the sums of squared potentials are not "
                "zero; ask for a number of eigenvalues, or their density"
            )
    found, spoilt = [cut.diagonal[cut.single].cpu().numpy()], 0.0
    border = None
    if len(structure.border):
        border = Border(operator, structure.border, lambda: meter("assembling the border"))
        border.absorb_diagonal(cut.single, cut.diagonal[cut.single])
    for chosen in structure.groups(memory):
        group = BlockGroup(operator, structure, chosen, lambda: meter("assembling blocks"))
        simple = (len(chosen) - 1) ** 0.5 * dropped  # a probe is a sum of unit vectors of other blocks
        if simple > 10 * NEGLIGIBLE * rough:
            own = CutBlocks(operator, structure, chosen)
            simple = min(simple, coupling_bound(group, own, negligible=0.0, seed=seed))
        spoilt = max(spoilt, simple)
        for members, matrix in group.drain():
            if border is not None:
                border.absorb(members, matrix)
            else:
                found.append(_eigenvalues(matrix))
            meter("eigenvalues of blocks", len(members))
    values, changed = (np.concatenate(found), 0.0) if border is None else border.eigenvalues()
    values = np.sort(values)
    norm = float(np.abs(values).max(initial=0.0))
    bound = dropped + spoilt + changed + arithmetic(structure.products, norm)
    errors, enough = np.full(len(values), bound), bound <= useful * norm
    return Spectrum(
        values, errors, errors, torch.zeros(len(values), 0, dtype=torch.float64), len(values), norm, True,
        "frequency blocks", operator.matvecs, enough,
        Reason.BLOCKS if enough else Reason.COUPLED,
    )  # fmt: skip
