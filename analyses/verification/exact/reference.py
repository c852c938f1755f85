"""The reference of one spectrum: what fits, in the best arithmetic that fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from analyses.verification.exact.eigenvalues import Eigenvalues, eigenvalues_of
from analyses.verification.exact.hessian import SecondOrder, output_loss, second_order
from analyses.verification.exact.numbers import DOUBLE, EXTENDED, FIXED, Fixed, Numbers, extended_product
from analyses.verification.exact.problem import KINK_CHOICES, RawProblem, activation_tables
from analyses.verification.exact.span import Span, compressed, graded_rank, row_space, symmetry_complement

SAFETY = 16.0  # between the rounding of doubles that was seen and what extended precision is trusted to
FIXED_WORK = 2e6  # integer multiplications of about a third of a microsecond: below, always
MOST_FIXED_WORK = 1e7  # and up to here where extended precision leaves the space in doubt
TAILS, LONGEST_TAIL = ("tanh", "gelu"), 10.0  # pre-activations beyond leave gradients of 1e-23 and less
LEAST_PIVOT = 1e-5  # of T_R over the largest: below, its basis loses digits of extended precision


@dataclass(frozen=True, eq=False)
class DenseReference:
    """Spectrum of the second variation at one choice of the slope at kinks.

    Parameters
    ----------
    kink : float
        ReLU'(0).
    eigenvalues : Eigenvalues
        In canonical coordinates, ascending.
    rank : int
        Dimension of the space.
    rank_certain : bool
        Whether the pivots leave no doubt about the rank.
    leak : tuple of float
        Lower and upper bound of the largest ``|(1 - QQ^T) L v|`` over eigenvectors v: root mean square, norm.
    parts : SecondOrder
        Loss, gradient, .. in raw weights.
    numbers : Numbers
        The arithmetic used.
    least : float
        Smallest pivot of T_R over the largest.
    """

    kink: float
    eigenvalues: Eigenvalues
    rank: int
    rank_certain: bool
    leak: tuple[float, float]
    parts: SecondOrder
    numbers: Numbers
    least: float = 1.0


def fixed_work(problem: RawProblem, *, span: bool) -> float:
    """Multiplications of the reference in fixed-point numbers, roughly."""
    size = problem.blocks * problem.n * problem.q
    pairs = len(problem.pair_list())
    work = float(pairs * (problem.q * (2 * problem.n + 2)) ** 2 * 2)
    if span:
        m = problem.n**2 * (problem.n - int(not problem.sees_mean))
        rank = min(m, size)
        work += 2.0 * m * size * rank + size * size * rank + size * rank * rank
    return work


def dense_references(
    problem: RawProblem, *, space: str, numbers: Numbers | None = None
) -> list[DenseReference]:
    """References at every choice of the slope at kinks (one, where no pre-activation lies on a kink).

    Parameters
    ----------
    problem : RawProblem
    space : str
        ``full``, ``span`` (T_R) or ``complement`` (what the symmetries of R leave).
    numbers : Numbers, optional
        Default: fixed-point numbers where they take seconds, extended precision beyond.

    Returns
    -------
    list of DenseReference
    """
    choices = KINK_CHOICES if problem.kinks else KINK_CHOICES[:1]
    if numbers is not None:
        return [_dense(problem, space, numbers, kink) for kink in choices]
    work = fixed_work(problem, span=space != "full")
    found = []
    for kink in choices:
        one = _dense(problem, space, FIXED if work <= FIXED_WORK else EXTENDED, kink)
        if (one.least < LEAST_PIVOT or not one.rank_certain) and FIXED_WORK < work <= MOST_FIXED_WORK:
            one = _dense(problem, space, FIXED, kink)
        found.append(one)
    # The leak that a study claims is the largest of all slopes at kinks.
    low, high = (max(one.leak[end] for one in found) for end in (0, 1))
    return [replace(one, leak=(low, high)) for one in found]


def _dense(problem: RawProblem, subspace: str, numbers: Numbers, kink: float) -> DenseReference:
    parts, rounding = _assembled(problem, numbers, kink, subspace == "span")
    scale = problem.raw_scale
    if subspace == "full":
        found = _scaled(eigenvalues_of(parts.hessian, numbers), scale, rounding)
        return DenseReference(kink, found, problem.dimension, True, (0.0, 0.0), parts, numbers)
    if subspace == "span":
        space = row_space(parts.jacobian, numbers)
    else:
        space = symmetry_complement(problem, numbers)
    inside = compressed(parts.hessian, space, numbers)
    certain = not _long_tails(problem) and (subspace != "span" or _certain(space, numbers, parts.jacobian))
    doubt = (
        0.0 if isinstance(numbers, Fixed) else numbers.eps * problem.dimension**0.5 / max(space.least, 1e-300)
    )
    norm = float(np.abs(numbers.extended(parts.hessian)).sum(1).max(initial=0))
    found = _scaled(eigenvalues_of(inside, numbers), scale, rounding + 4 * doubt * norm)
    return DenseReference(
        kink, found, space.rank, certain, _leak(parts.hessian, space, numbers, scale), parts,
        numbers, space.least,
    )  # fmt: skip


@lru_cache(maxsize=8)  # the spaces of one problem share its Hessian
def _assembled(problem: RawProblem, numbers: Numbers, kink: float, span: bool) -> tuple[SecondOrder, float]:
    parts = second_order(problem, numbers, kink=kink, span=span)
    return parts, _rounding(problem, parts, numbers)


def _long_tails(problem: RawProblem) -> bool:
    """Whether tails of tanh or GELU may lie below the digits there are."""
    b = problem.a if problem.b is None else problem.b
    return problem.activation in TAILS and np.abs(problem.a).max() + np.abs(b).max() > LONGEST_TAIL


def _certain(space: Span, numbers: Numbers, matrix: np.ndarray) -> bool:
    """Kept and dropped pivots are far apart, and no neuron is so small that all of it was dropped."""
    if isinstance(numbers, Fixed):
        return space.least > 1e-40 and space.dropped < 1e-50
    return space.least > 1e6 * max(space.dropped, numbers.eps) and space.rank == graded_rank(matrix)


def _rounding(problem: RawProblem, parts: SecondOrder, numbers: Numbers) -> float:
    """Norm of what rounding did to a Hessian: that of doubles, seen by comparison, in smaller units."""
    if isinstance(numbers, Fixed):
        return float(np.abs(numbers.extended(parts.hessian)).max(initial=0)) * 1e-60 + 1e-66
    plain = second_order(problem, DOUBLE, kink=parts.kink, span=False).hessian
    seen = float(np.linalg.norm((plain - parts.hessian).astype(np.float64)))
    return SAFETY * numbers.eps / DOUBLE.eps * seen


def _scaled(found: Eigenvalues, scale: float, rounding: float) -> Eigenvalues:
    return Eigenvalues(
        found.values * np.longdouble(scale), (found.error + rounding) * scale * (1 + 1e-12), found.method
    )


def _leak(hessian: np.ndarray, space: Span, numbers: Numbers, scale: float) -> tuple[float, float]:
    if not space.rank:
        return 0.0, 0.0
    basis, matrix = numbers.extended(space.basis), numbers.extended(hessian)
    image = extended_product(basis, matrix)
    outside = (image - extended_product(extended_product(image, basis.T.copy()), basis)).astype(np.float64)
    return scale * float(np.linalg.norm(outside)) / space.rank**0.5, scale * float(np.linalg.norm(outside, 2))


def flat_reference(problem: RawProblem) -> list[DenseReference]:
    """The flat (L2) second variation: ``q sum_pairs f_j W f_l`` with the outputs ``f_j = s c_j sigma(u_j)``.

    Parameters
    ----------
    problem : RawProblem

    Returns
    -------
    list of DenseReference
        One; kinks do not matter.
    """
    numbers = FIXED
    a, b, c = problem.weights(numbers)
    level = activation_tables(problem, numbers, a[:, None, :] + b[None, :, :], 0.0)[0]
    level = level[tuple(problem.pair_list().T)]
    s = numbers.of(np.array(problem.scale)).item()
    outputs = numbers.mul(s, numbers.dot(level, c.T))
    wanted = problem.wanted()[tuple(problem.pair_list().T)]
    _, gradient, curvature = output_loss(problem, numbers, outputs, wanted)
    kernel = numbers.zeros(problem.q, problem.q)
    for p, row in enumerate(level):
        heads = numbers.mul(s, numbers.mul(c, row[None]))
        w = curvature[p] if curvature.ndim == 3 else curvature
        kernel = kernel + numbers.dot(heads.T, numbers.dot(w, heads))
    found = eigenvalues_of(kernel * problem.q, numbers)
    # Probabilities are known to 72 places after the point, whatever their size, and multiply outputs twice.
    largest = abs(problem.scale) * float(
        np.abs(numbers.extended(level)).max(initial=0) * np.abs(problem.c).max()
    )
    places = 1e-70 * len(level) * problem.n * (largest**2 + 1)
    relative = 1e-60 * float(np.abs(numbers.extended(kernel)).max(initial=0))
    found = replace(found, error=found.error + problem.q * (places + relative))
    parts = SecondOrder(0, 0, outputs, gradient, kernel, None, 0.0)
    return [DenseReference(0.0, found, problem.q, True, (0.0, 0.0), parts, numbers)]
