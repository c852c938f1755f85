"""The result of a maximum-entropy fit, and why it stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from manifold.maxent.family import MaxEntFamily


class Reason(Enum):
    """Why a fit stopped; the value is the sentence for the user."""

    CONVERGED = "the moments are matched to rounding error"
    UNDETERMINED = (
        "the moments are matched, but rounding of the moments leaves lambda undetermined: they are too "
        "near the boundary, or the monomials nearly dependent under this measure"
    )
    ITERATIONS = "stopped at the iteration limit before the moments were matched"
    STALLED = "no step lowers the dual any more, yet the moments are not matched; try another method"


@dataclass(frozen=True, eq=False)
class MaxEntFit:
    """The maximum-entropy measure with given moments.

    Attributes
    ----------
    family : MaxEntFamily
    moments : ndarray, shape (m,)
        What was asked for.
    lam : ndarray, shape (m,)
        Zero at dependent monomials.
    log_partition : float
        ``log integral exp(lambda . r) d(uniform)``.
    entropy : float
        Against the uniform probability measure, nats.
    moment_error : float
        Bound of the largest ``|E r - rho|`` in units of the uniform standard deviation of r: the residual on
        a rule with more nodes than the one that produced lambda, and the error of that rule.
    lambda_error : ndarray, shape (m,)
        Bounds of the errors of lambda: ``|Cov^-1|`` times those of the moments.
    log_partition_error, entropy_error : float
        Bounds of the errors of both, as values of the measure that has the moments exactly.
    fisher_rank : int
    condition : float
        Condition number of the Fisher information, monomials scaled to unit variance.
    fisher_information : ndarray, shape (m, m)
    converged : bool
    reason : Reason
    method : str
    diagnostics : dict
    """

    family: MaxEntFamily
    moments: np.ndarray
    lam: np.ndarray
    log_partition: float
    entropy: float
    moment_error: float
    fisher_rank: int
    condition: float
    fisher_information: np.ndarray
    converged: bool
    reason: Reason
    method: str
    lambda_error: np.ndarray
    log_partition_error: float
    entropy_error: float
    diagnostics: dict = field(default_factory=dict)

    @property
    def entropy_riemannian(self) -> float:
        """Entropy against Riemannian volume, nats."""
        return self.entropy + float(np.log(self.family.space.volume))

    @property
    def dimension(self) -> int:
        """Dimension of the family as a manifold: the Fisher rank."""
        return self.fisher_rank
