"""Complete counts of signs by Sylvester's law: the inertia of a factorisation with its measured error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from manifold.errors import TooLargeError
from spectra.functionals.base import BOTH
from spectra.operators.assembly import Assembly, Elimination, can_assemble
from spectra.operators.variation import DenseOperator, SecondVariation, SymmetricOperator
from spectra.rounding import arithmetic
from spectra.solvers.block_lanczos import norm_bound

MATRIX_BYTES = 5 * 2**30  # of the matrix and of its factor
NORM_STEPS = 16
CONDITION = 1e-6  # of the c-c part: below, its elimination would lose the digits that tell small signs
Solve = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SignCounts:
    """Proved bounds of how many eigenvalues of an operator have which sign.

    Parameters
    ----------
    negative, positive : tuple of int
        Lower and upper bound of each number; equal where nothing lies within ``shift`` of zero.
    shift : float
        Eigenvalues of modulus above twice this are counted with their sign.
    error : float
        Norm of what was not exact (assembly, factorisation, products); bounded from random starts except with
        probability 1e-9 each, and below ``shift``.
    dimension : int
        Of the operator.
    """

    negative: tuple[int, int]
    positive: tuple[int, int]
    shift: float
    error: float
    dimension: int


class _Defect(SymmetricOperator):
    """``A - A F^-1 A`` for ``A = L - s`` and a factorisation F of it, through solves: zero if F is exact."""

    def __init__(self, operator: SymmetricOperator, shift: float, solve: Solve):
        self.operator, self.shift, self.solve = operator, shift, solve
        self.dimension = operator.dimension

    @property
    def device(self) -> torch.device:
        return self.operator.device

    def _shifted(self, block: Tensor) -> Tensor:
        return self.operator.apply(block) - self.shift * block

    def _apply(self, block: Tensor) -> Tensor:
        return self._shifted(block - self.solve(self._shifted(block)))


def count_signs(
    operator: SymmetricOperator, *, null: int = 0, uncertainty: float = 0.0, seed: int = 0,
    memory_limit: int = MATRIX_BYTES,
) -> SignCounts:  # fmt: skip
    """Count the signs of all eigenvalues by factorisations F of ``A = L - s``, s = -shift and shift.

    F has the inertia of its block diagonal, and ``A F^-1 A`` has that of F (Sylvester's law). So F counts the
    signs of ``A - (A - A F^-1 A)`` however inexact it is, and the norm of that defect, measured through
    solves and the operator's own products, is the error. With an error below ``shift`` every eigenvalue that
    is counted negative at ``-shift`` is negative, and every negative one is counted at ``shift``. For a
    squared loss over all pairs c is eliminated first (`spectra.operators.assembly`), and the inertias of both
    parts add (Haynsworth): two thirds of the dimension. Costs ``n^3 / 3`` flops for each factorisation.

    Parameters
    ----------
    operator : SymmetricOperator
    null : int
        Eigenvalues known to be exactly zero.
    uncertainty : float
        Norm of what the operator itself is known to, part of the error.
    seed : int
        Of the random starts that bound norms.
    memory_limit : int
        Bytes for the matrix and its factor.

    Returns
    -------
    SignCounts

    Raises
    ------
    TooLargeError
        If they do not fit.
    """
    n = operator.dimension
    assembly = _to_eliminate(operator)
    _check_memory(n if assembly is None else 2 * n // 3, memory_limit)
    if assembly is not None:
        factor = partial(_eliminated, assembly)
    else:
        operator = DenseOperator(operator.dense())
        factor = partial(_factored, operator.matrix)
    rounding = arithmetic(n, norm_bound(operator, seed=seed)[0]) + uncertainty
    if rounding == 0.0:  # the zero operator: no shift would ever be beyond its error
        return SignCounts((0, 0), (0, 0), 0.0, 0.0, n)
    shift = 64 * rounding
    while True:
        lower, below = _negative(operator, factor, -shift, seed)
        upper, above = _negative(operator, factor, shift, seed)
        error = max(below, above) + rounding
        if error < shift:
            break
        shift = 4 * error
    # Exact zeros are counted as negative at +shift and as positive at -shift.
    return SignCounts((lower, upper - null), (n - upper, n - lower - null), shift, error, n)


def _to_eliminate(operator: SymmetricOperator) -> Assembly | None:
    """The parts of an operator whose c-c part is far from singular; more than n^2 neurons make it so."""
    if not (isinstance(operator, SecondVariation) and operator.parts == BOTH and can_assemble(operator.at)):
        return None
    assembly = Assembly(operator.at)
    values = torch.linalg.eigvalsh(assembly.outputs) + assembly.decay
    return assembly if float(values[0]) > CONDITION * float(values[-1]) else None


def _check_memory(size: int, limit: int) -> None:
    if 16 * size * size > limit:
        raise TooLargeError(
            f"counts: {size:,} dimensions need {16 * size * size / 2**30:.1f} GiB; the limit is "
            f"{limit / 2**30:.0f} GiB, about {int((limit / 16) ** 0.5):,} dimensions"
        )


def _negative(
    operator: SymmetricOperator, factor: Callable[[float], tuple[int, Solve]], shift: float, seed: int
) -> tuple[int, float]:
    """Negative eigenvalues of a factorisation of ``L - shift``, and the norm of its defect."""
    negative, solve = factor(shift)
    error, _ = norm_bound(_Defect(operator, shift, solve), seed=seed, steps=NORM_STEPS)
    return negative, error


def _factored(matrix: Tensor, shift: float) -> tuple[int, Solve]:
    shifted = matrix.clone()
    shifted.diagonal().sub_(shift)
    return _ldl(shifted)


def _eliminated(assembly: Assembly, shift: float) -> tuple[int, Solve]:
    parts = Elimination(assembly, shift)
    matrix = torch.empty(parts.size, parts.size, dtype=torch.float64, device=assembly.u.device).mT
    for first, rows in parts.rest():
        matrix[first : first + len(rows), : rows.shape[1]] = rows
    negative, solve_rest = _ldl(matrix)
    return parts.negative + negative, lambda block: parts.solve(block, solve_rest)


def _ldl(matrix: Tensor) -> tuple[int, Solve]:
    """Inertia and solves of a symmetric matrix, of which the lower triangle is read."""
    factor, pivots = torch.linalg.ldl_factor(matrix)
    return _inertia(factor, pivots), partial(torch.linalg.ldl_solve, factor, pivots)


def _inertia(factor: Tensor, pivots: Tensor) -> int:
    """Negative eigenvalues of the block diagonal D: pivots of size two are marked by negative numbers."""
    diagonal = factor.diagonal().cpu().numpy()
    beside = factor.diagonal(-1).cpu().numpy()
    single = pivots.cpu().numpy() > 0
    first = np.flatnonzero(~single)[::2]
    product = diagonal[first] * diagonal[first + 1] - beside[first] ** 2
    trace = diagonal[first] + diagonal[first + 1]
    pairs = np.where(product < 0, 1, np.where(trace < 0, 2, 0))
    return int((diagonal[single] < 0).sum() + pairs.sum())
