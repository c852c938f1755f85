"""Kernel ridge regression in a spectral basis: all ridges from one factorisation, exact excess risk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from manifold.errors import InputError
from manifold.groups.actions import GroupAction
from manifold.invariants.weyl import InvariantBasis, cutoff_for, invariant_basis, weyl_main


def sobolev_eigenvalues(eigenvalues: np.ndarray, s: float) -> np.ndarray:
    """Kernel eigenvalues ``(1 + lambda_i)^(-s)`` under the uniform probability measure."""
    return (1.0 + np.asarray(eigenvalues, dtype=float)) ** (-s)


@dataclass(frozen=True)
class SampleFactor:
    """The sample, reduced to what ridge regression needs: eigenpairs of the scaled second moments.

    With features ``Phi = psi(X) sqrt(l) / sqrt(n)`` and ``Phi^T Phi = V diag(D) V^T`` the minimiser of
    ``(1/n) sum_j (y_j - f(x_j))^2 + eta |f|_K^2`` has coefficients
    ``sqrt(l) V (D + eta)^-1 V^T sqrt(l) (psi(X)^T y / n)`` for every eta at once.

    Attributes
    ----------
    scale : ndarray, shape (p,)
        sqrt(l_i).
    vectors : ndarray, shape (p, r)
        V, r = min(n, p).
    values : ndarray, shape (r,)
        D >= 0.
    signal : ndarray, shape (r,)
        ``V^T sqrt(l) psi(X)^T f / n`` for the noiseless targets (or for the observations).
    samples : int
        n.
    """

    scale: np.ndarray
    vectors: np.ndarray
    values: np.ndarray
    signal: np.ndarray
    samples: int

    @classmethod
    def of(cls, basis: InvariantBasis, s: float, points: np.ndarray, targets: np.ndarray) -> SampleFactor:
        """Factor a sample: primal (p x p) when n >= p, else dual (n x n).

        Parameters
        ----------
        basis : InvariantBasis
            p functions.
        s : float
            Sobolev exponent.
        points : ndarray, shape (n, ambient)
        targets : ndarray, shape (n,)

        Returns
        -------
        SampleFactor
        """
        scale = np.sqrt(sobolev_eigenvalues(basis.eigenvalues, s))
        samples = len(points)
        if samples >= len(basis):
            gram, correlation = basis.moments(points, targets)
            values, vectors = eigh(
                scale[:, None] * gram * scale, driver="evd", check_finite=False, overwrite_a=True
            )
        else:
            # Phi Phi^T has the same spectrum on the smaller side, and V = Phi^T U / sqrt(D).
            features = basis.values(points) * (scale / np.sqrt(samples))
            values, left = eigh(features @ features.T, driver="evd", check_finite=False)
            # Directions of rounding size carry no signal, and dividing by their root would invent one.
            keep = values > 1e-13 * values[-1]
            values, left = values[keep], left[:, keep]
            vectors = features.T @ (left / np.sqrt(values))
            correlation = features.T @ targets / (scale * np.sqrt(samples))
        return cls(scale, vectors, np.maximum(values, 0.0), vectors.T @ (scale * correlation), samples)

    def coefficients(self, ridges: np.ndarray) -> np.ndarray:
        """Fitted coefficients for every ridge, shape (p, R)."""
        shrunk = self.signal[:, None] / (self.values[:, None] + np.asarray(ridges))
        return self.scale[:, None] * (self.vectors @ shrunk)

    def squared_bias(self, ridges: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """``|c - fitted|^2`` of the fit to the noiseless targets, shape (R,)."""
        return ((coefficients[:, None] - self.coefficients(ridges)) ** 2).sum(axis=0)

    def variance(self, ridges: np.ndarray) -> np.ndarray:
        """Mean over unit noise of the squared L2 norm of the fitted noise, shape (R,)."""
        load = (self.scale**2) @ self.vectors**2
        shrink = self.values[:, None] / (self.values[:, None] + np.asarray(ridges)) ** 2
        return load @ shrink / self.samples

    def noisy_risks(
        self, ridge: float, coefficients: np.ndarray, *, noise: float, draws: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Excess risks of ``draws`` independent Gaussian noise vectors on this design, shape (draws,).

        ``V^T sqrt(l) psi(X)^T eps / n`` is Gaussian with covariance ``sigma^2 diag(D) / n``: it is drawn in
        these r coordinates, which has exactly the law of drawing n noises.
        """
        gauss = rng.standard_normal((len(self.values), draws))
        noise_part = noise * np.sqrt(self.values / self.samples)[:, None] * gauss
        fitted = (self.signal[:, None] + noise_part) / (self.values + ridge)[:, None]
        error = coefficients[:, None] - self.scale[:, None] * (self.vectors @ fitted)
        return (error**2).sum(axis=0)


class InvariantKernelRidge(RegressorMixin, BaseEstimator):
    """Ridge regression with the group-averaged Sobolev kernel, for data on a torus or sphere.

    Minimises ``(1/n) sum_j (y_j - f(x_j))^2 + ridge |f|_K^2``, K having eigenvalues ``(1 + lambda)^(-s)``.
    scikit-learn's ``KernelRidge(alpha)`` with the same kernel has ``alpha = n * ridge``.

    Parameters
    ----------
    action : GroupAction
        The symmetry; the predictor is exactly invariant.
    s : float
        Sobolev exponent, above d'/2.
    ridge : float
    n_functions : int
        About how many invariant eigenfunctions to use.

    Attributes
    ----------
    basis_ : InvariantBasis
    coef_ : ndarray, shape (p,)
        Coefficients in the orthonormal invariant eigenfunctions.
    truncation_ : float
        ``sum of the discarded kernel eigenvalues / (n ridge)``: far below the effective dimension,
        the truncation does not matter.

    Examples
    --------
    >>> import numpy as np
    >>> from manifold.spaces.homogeneous import SpectralSpace
    >>> from manifold.groups.named import named_action
    >>> x = np.random.default_rng(0).uniform(0, 2 * np.pi, (200, 1))
    >>> model = InvariantKernelRidge(named_action(SpectralSpace.parse("T1"), "Z4"), ridge=1e-6)
    >>> round(model.fit(x, np.cos(4 * x[:, 0])).score(x, np.cos(4 * x[:, 0])), 3)
    1.0
    """

    def __init__(self, action: GroupAction, s: float = 2.0, ridge: float = 1e-3, n_functions: int = 400):
        self.action = action
        self.s = s
        self.ridge = ridge
        self.n_functions = n_functions

    def fit(self, X: np.ndarray, y: np.ndarray) -> InvariantKernelRidge:
        """Fit to points X, shape (n, ambient), and observations y, shape (n,).

        Raises
        ------
        InputError
            If s <= d'/2 (the kernel does not exist), ridge <= 0, or the points do not lie on the space.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        check_sobolev(self.action, self.s)
        if self.ridge <= 0:
            raise InputError(f"ridge: expected a positive number, got {self.ridge}")
        self._check_points(X)
        self.basis_ = invariant_basis(self.action, cutoff=cutoff_for(self.action, self.n_functions))
        factor = SampleFactor.of(self.basis_, self.s, X, y)
        self.coef_ = factor.coefficients(np.array([self.ridge]))[:, 0]
        self.truncation_ = tail_trace(self.action, self.basis_.cutoff, self.s) / (len(X) * self.ridge)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predictions at points X, shape (n,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        self._check_points(X)
        return self.basis_.evaluate(X, self.coef_)

    def _check_points(self, X: np.ndarray) -> None:
        space = self.action.space
        if X.shape[1] != space.ambient:
            raise InputError(f"X: points of {space.name} have {space.ambient} coordinates, got {X.shape[1]}")
        if space.kind == "sphere" and np.abs((X**2).sum(axis=1) - 1).max() > 1e-6:
            raise InputError(f"X: expected unit vectors on {space.name}; divide each row by its norm")


def check_sobolev(action: GroupAction, s: float) -> None:
    """Refuse an exponent for which the kernel does not exist.

    Raises
    ------
    InputError
        If s <= d'/2: the trace of the kernel diverges.
    """
    if not s > action.quotient_dim / 2:
        raise InputError(
            f"s: expected s > d'/2 = {action.quotient_dim / 2:g} for {action.name} on {action.space.name}, "
            f"got {s:g}: the trace of the kernel diverges and point values are undefined; raise s (kappa > 0)"
        )


def tail_trace(action: GroupAction, cutoff: float, s: float) -> float:
    """Weyl estimate of ``sum (1 + lambda)^(-s)`` over the invariant eigenvalues above the cutoff."""
    dim = action.quotient_dim
    return float(weyl_main(action, 1.0)) * dim / (2 * s - dim) * max(cutoff, 1.0) ** (dim / 2 - s)
