"""Maximum-entropy density estimation with the manners of scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from manifold.errors import InputError
from manifold.maxent.family import MaxEntFamily
from manifold.maxent.fitting import fit
from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import parse_monomials


class MaxEntDensity(DensityMixin, BaseEstimator):
    """The maximum-entropy density with the sample's moments of given monomials.

    By duality this is the maximum-likelihood member of the exponential family ``exp(lambda . r)``.

    Parameters
    ----------
    space : str
        Such as ``S2``, ``T3``, ``S2xS1``.
    monomials : str
        Expressions separated by ``;`` (see `manifold.spaces.monomial_expressions.parse_monomials`).
    method : {"newton", "trust-regions"}
        As in `manifold.maxent.fitting.fit`.

    Attributes
    ----------
    family_ : MaxEntFamily
    fit_ : MaxEntFit
    lambda_ : ndarray, shape (m,)
    entropy_ : float
        Nats, against the uniform probability measure.

    Examples
    --------
    >>> import numpy as np
    >>> points = np.array([[0, 0, 1.0], [0, 1.0, 0], [0, 0.6, 0.8]])
    >>> MaxEntDensity("S2", "x2;x3").fit(points).entropy_ < 0
    True
    """

    def __init__(self, space: str = "S2", monomials: str = "x1;x2;x3", *, method: str = "newton"):
        self.space = space
        self.monomials = monomials
        self.method = method

    def fit(self, X: np.ndarray, y: None = None, sample_weight: np.ndarray | None = None) -> MaxEntDensity:
        """Fit to points of the space.

        Parameters
        ----------
        X : ndarray, shape (q, ambient)
        y : None
            Ignored.
        sample_weight : ndarray, shape (q,), optional
            Not negative; equal by default.

        Returns
        -------
        MaxEntDensity
            Itself.

        Raises
        ------
        InputError
            If a point is not on the space, a weight is negative or all are zero.
        ValueError
            If there is no point, or a number is NaN or infinite (scikit-learn's checks).
        NotConvergedError
            If the moments lie on the boundary of what any measure can have, as those of too few points do.
        """
        place = parse_space(self.space)
        functions = parse_monomials(self.monomials, place)
        points = self._points(X, place)
        weights = _check_sample_weight(sample_weight, points, dtype=float)
        if (weights < 0).any() or not weights.sum() > 0:
            raise InputError("sample_weight: expected weights of at least 0, not all of them 0")
        moments = weights / weights.sum() @ functions.values(torch.as_tensor(points)).numpy()
        self.family_ = MaxEntFamily(place, functions)
        self.fit_ = fit(self.family_, moments, method=self.method)
        self.lambda_, self.entropy_ = self.fit_.lam, self.fit_.entropy
        self.n_features_in_ = points.shape[1]
        return self

    @staticmethod
    def _points(X: np.ndarray, place) -> np.ndarray:
        points = check_array(X, dtype=float, input_name="X")
        if points.shape[1] != place.ambient:
            raise InputError(f"X: expected shape (q, {place.ambient}) on {place.name}, got {points.shape}")
        if np.abs(place.project(torch.as_tensor(points)).numpy() - points).max(initial=0) > 1e-6:
            raise InputError(f"X: expected points on {place.name}; project them first (Space.project)")
        return points

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """Log density at points, against the uniform probability measure, shape (q,).

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        """
        check_is_fitted(self)
        return self.family_.log_density(self.lambda_, self._points(X, self.family_.space))

    def score(self, X: np.ndarray, y: None = None) -> float:
        """Mean log density (log-likelihood per point), nats; raises as `score_samples`."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state=None) -> np.ndarray:
        """Points from the fitted density, shape (n_samples, ambient).

        Parameters
        ----------
        n_samples : int
        random_state : int, RandomState instance or None
            As everywhere in scikit-learn; None draws from numpy's global state.

        Raises
        ------
        InputError
            If fewer than one point is asked for.
        sklearn.exceptions.NotFittedError
            Before `fit`.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise InputError(f"n_samples: expected at least 1, got {n_samples}")
        seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
        return self.family_.sample(self.lambda_, n_samples, seed=seed)
