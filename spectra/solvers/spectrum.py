"""Eigenvalues of symmetric operators, returned as a certified `Spectrum`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from manifold.errors import InputError
from spectra.operators.variation import SymmetricOperator
from spectra.rounding import EPS, arithmetic

DENSE_LIMIT = 4000
VECTORS_LIMIT = 8000  # dimensions up to which a dense solver also computes eigenvectors


class Reason(enum.Enum):
    """Why a solver stopped; the value is the sentence the user reads."""

    DENSE = "complete: every eigenvalue computed by a dense solver, residuals recomputed"
    DENSE_VALUES = (
        "complete: every eigenvalue by a dense backward stable solver without eigenvectors; "
        "trace and Frobenius norm agree"
    )
    KRYLOV = "the requested ends of the spectrum converged; eigenvalues between them were not computed"
    SUMS_DISAGREE = (
        "every eigenvalue was computed, but their sums disagree with the trace or the Frobenius norm of the "
        "matrix by more than rounding: do not rely on them"
    )
    NOT_CONVERGED = (
        "the iteration limit was reached before all requested eigenvalues met the tolerance; "
        "those listed carry their true residuals"
    )
    BLOCKS = (
        "complete: every eigenvalue of the uncoupled blocks; the norm of the dropped coupling, bounded with "
        "probability 1 - 1e-9, is the error of all of them (Weyl)"
    )
    COUPLED = (
        "the coupling dropped between blocks is so large that its error bound says little; "
        "the neurons are not single-frequency enough"
    )
    MOMENTS = (
        "complete: every eigenvalue in span(R) from sums over neurons; the difference from the operator's "
        "own products, bounded with probability 1 - 2e-9, is part of the error of all of them (Weyl)"
    )
    DEPENDENT = (
        "gradients of span(R) are so nearly dependent at these particles, or depend so much on the slope at "
        "kinks, that their span is open, and the eigenvalues with it: the error bounds say little; the full "
        "space does not depend on it"
    )
    DENSITY = (
        "the density by stochastic Lanczos quadrature: counts with a standard error over random starts and "
        "the interval that the number of steps leaves open; no single eigenvalue was computed"
    )
    EXACT = "complete: every eigenvalue by an exact formula"
    EMPTY = "the space is empty: there is nothing to compute"


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of a symmetric operator with their certificate.

    Parameters
    ----------
    eigenvalues : ndarray, shape (k,)
        Ascending, Hessian sign: positive = contracting.
    errors : ndarray, shape (k,)
        Absolute error bound of each eigenvalue: for symmetric operators an eigenvalue lies within the
        residual norm; rounding of the products is added.
    residuals : ndarray, shape (k,)
        ``|L v - lambda v|`` recomputed with the operator after the solve, |v| = 1.
    vectors : Tensor, shape (N, k)
        Unit eigenvectors; no columns where they are not kept (block decomposition).
    dimension : int
        Dimension N of the space the operator acts on.
    norm : float
        Estimate of the operator norm (largest absolute eigenvalue found).
    complete : bool
        Whether all N eigenvalues are there, so that counts are exact.
    method : str
        Solver used.
    matvecs : int
        Operator products spent.
    converged : bool
        Whether everything asked for met the tolerance.
    reason : Reason
        Why the solver stopped.
    at_least, at_most : tuple of int
        Proved bounds of the numbers of negative and positive eigenvalues, beyond those listed.
    lowest : float or None
        Proved lower bound of the smallest eigenvalue (the smallest Ritz value is an upper one).
    null : int
        Eigenvalues that are exactly zero, by a symmetry or by their number; no other is taken for zero.
    missing : int
        Dimensions that the space may have beyond those the operator acts on, where its rank is uncertain.
    uncertainty : float
        The part of every error that the operator itself is uncertain by.
    """

    eigenvalues: np.ndarray
    errors: np.ndarray
    residuals: np.ndarray
    vectors: Tensor
    dimension: int
    norm: float
    complete: bool
    method: str
    matvecs: int
    converged: bool
    reason: Reason
    at_least: tuple[int, int] = (0, 0)
    at_most: tuple[int | None, int | None] = (None, None)
    lowest: float | None = None
    null: int = 0
    missing: int = 0
    uncertainty: float = 0.0
    counts: Counts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", Counts.of(self))

    @property
    def smallest_enclosure(self) -> tuple[float, float] | None:
        """Certified interval of the smallest eigenvalue; None where there is no lower bound."""
        if not len(self.eigenvalues) or (self.lowest is None and not self.complete):
            return None
        low, error = float(self.eigenvalues[0]), float(self.errors[0])
        if self.missing:  # a direction beyond those seen may go lower
            return None
        if self.complete:
            return low - error, low + error
        # A Ritz value is never below the smallest eigenvalue, up to what the operator itself is known to.
        return min(self.lowest, low), low + self.uncertainty + arithmetic(self.dimension, self.norm)

    def widened(self, uncertainty: float) -> Spectrum:
        """The same with bounds for an operator that is known up to a symmetric change of this norm (Weyl)."""
        return replace(
            self, errors=self.errors + uncertainty, uncertainty=self.uncertainty + uncertainty,
            lowest=None if self.lowest is None else self.lowest - uncertainty,
        )  # fmt: skip

    def largest(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The largest eigenvalues, descending, with their error bounds."""
        return self.eigenvalues[::-1][:count], self.errors[::-1][:count]

    def smallest(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The smallest eigenvalues, ascending, with their error bounds."""
        return self.eigenvalues[:count], self.errors[:count]


@dataclass(frozen=True)
class Counts:
    """How many eigenvalues have which sign; a sign is claimed only beyond the error bound.

    Parameters
    ----------
    negative, positive : int
        Signs that are certain.
    marginal : int
        Exactly zero, by a symmetry or by their number; smallness alone makes no eigenvalue zero.
    undetermined : int
        Neither: the bound is too wide, or the eigenvalue was not computed.
    certified : bool
        Whether the counts are exact (nothing undetermined).
    most_negative, most_positive : int
        Upper bounds of the numbers of negative and positive eigenvalues.
    """

    negative: int
    marginal: int
    positive: int
    undetermined: int
    certified: bool
    most_negative: int
    most_positive: int

    @classmethod
    def of(cls, spectrum: Spectrum) -> Counts:
        """Count the signs of a spectrum; proved bounds count what was not computed."""
        values, errors = spectrum.eigenvalues, spectrum.errors
        negative = max(int((values < -errors).sum()), spectrum.at_least[0])
        positive = max(int((values > errors).sum()), spectrum.at_least[1])
        unsigned = max(0, spectrum.dimension - negative - positive)
        marginal = min(spectrum.null, unsigned)
        rest = unsigned - marginal + spectrum.missing
        most = [
            known + rest if bound is None else min(bound + spectrum.missing, known + rest)
            for known, bound in zip((negative, positive), spectrum.at_most, strict=True)
        ]
        return cls(negative, marginal, positive, rest, spectrum.complete and rest == 0, *most)

    @property
    def bounds(self) -> dict[str, list[int]]:
        """Two-sided bounds of each count: undetermined eigenvalues may have any sign not excluded."""
        return {
            "negative": [self.negative, self.most_negative],
            "marginal": [self.marginal, self.marginal + self.undetermined],
            "positive": [self.positive, self.most_positive],
        }


def certify(
    operator: SymmetricOperator, values: np.ndarray, vectors: Tensor, *, complete: bool, method: str,
    converged: bool, reason: Reason, at_least: tuple[int, int] = (0, 0), norm: float = 0.0,
) -> Spectrum:  # fmt: skip
    """A `Spectrum` from approximate eigenpairs: residuals and errors recomputed with the operator.

    Parameters
    ----------
    operator : SymmetricOperator
    values : ndarray, shape (k,)
        Eigenvalues in any order.
    vectors : Tensor, shape (N, k)
        Their unit vectors.
    complete, method, converged, reason
        As in `Spectrum`.
    at_least : tuple of int
        Numbers of negative and of positive eigenvalues that are proved to exist.
    norm : float
        Lower bound of the operator norm, where the eigenvalues listed are not the largest.

    Returns
    -------
    Spectrum
    """
    order = np.argsort(values)
    values, vectors = values[order], vectors[:, torch.as_tensor(order.copy(), device=vectors.device)]
    image = operator.apply(vectors)
    residual = image - vectors * torch.as_tensor(values, device=vectors.device)
    residuals = residual.norm(dim=0).cpu().numpy()
    norm = float(np.abs(values).max(initial=norm))
    defect = float((vectors.T @ vectors - torch.eye(len(values), device=vectors.device)).norm())
    rounding = arithmetic(operator.dimension, norm)
    if complete:
        # Weyl for the whole set at once: eigenvalues match one to one within the residual matrix.
        errors = np.full(len(values), float(residual.norm()) + norm * defect + rounding)
    else:
        errors = residuals * (1 + defect) + rounding
    return Spectrum(
        values, errors, residuals, vectors, operator.dimension, norm, complete, method, operator.matvecs,
        converged, reason, at_least,
    )  # fmt: skip


def dense_spectrum(operator: SymmetricOperator, *, vectors: bool | None = None) -> Spectrum:
    """All eigenvalues of the assembled matrix.

    Parameters
    ----------
    operator : SymmetricOperator
    vectors : bool, optional
        Whether to compute eigenvectors, and with them residuals through the operator's own products; default:
        up to `VECTORS_LIMIT` dimensions. Without them the error is that of a backward stable solver,
        ``N eps |L|``, and the sums of the eigenvalues and of their squares are checked against the matrix.

    Returns
    -------
    Spectrum
        Complete; the error bound is that of Weyl for the whole set.

    Raises
    ------
    InputError
        If the matrix holds NaN or infinity.
    """
    if operator.dimension == 0:
        none = np.zeros(0)
        empty = torch.zeros(0, 0, dtype=torch.float64)
        return Spectrum(none, none, none, empty, 0, 0.0, True, "dense", 0, True, Reason.EMPTY)
    matrix = operator.dense()
    if not torch.isfinite(matrix).all():
        raise InputError("operator: expected finite entries, got NaN or infinity")
    if not (operator.dimension <= VECTORS_LIMIT if vectors is None else vectors):
        return _dense_values(operator, matrix)
    if matrix.is_cuda:
        values, vectors = torch.linalg.eigh(matrix)
        values = values.cpu().numpy()
    else:
        values, found = scipy.linalg.eigh(matrix.numpy(), driver="evd")
        vectors = torch.as_tensor(found)
    return certify(
        operator, values, vectors, complete=True, method="dense", converged=True, reason=Reason.DENSE
    )


def _dense_values(operator: SymmetricOperator, matrix: torch.Tensor) -> Spectrum:
    size = operator.dimension
    trace, frobenius = float(matrix.trace()), float(torch.linalg.vector_norm(matrix)) ** 2
    values = torch.linalg.eigvalsh(matrix).cpu().numpy()
    norm = float(np.abs(values).max())
    bound = size * EPS * norm + arithmetic(size, norm)
    sums_agree = abs(values.sum() - trace) <= size * bound and (
        abs((values**2).sum() - frobenius) <= 2 * size * norm * bound
    )
    errors = np.full(size, bound)
    return Spectrum(
        values, errors, errors, torch.zeros(size, 0, dtype=torch.float64), size, norm, True, "dense, values",
        operator.matvecs, sums_agree, Reason.DENSE_VALUES if sums_agree else Reason.SUMS_DISAGREE,
    )  # fmt: skip


def power_norm(operator: SymmetricOperator, *, seed: int = 0, steps: int = 8) -> float:
    """Rough operator norm from a few power steps (a lower bound, usually within a third)."""
    rng = torch.Generator().manual_seed(seed)
    v = torch.randn(operator.dimension, 1, generator=rng, dtype=torch.float64).to(operator.device)
    size = 0.0
    for _ in range(steps):
        image = operator.apply(v / v.norm())
        size, v = float(image.norm()), image
        if size == 0.0:
            break
    return size
