"""Maximum-entropy measures: the exponential family ``exp(lambda . r - A(lambda))`` on a space."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from manifold.errors import InputError, NotConvergedError, NotIntegrableError
from manifold.integration.adaptive import COARSE, FINE, AdaptiveIntegrator
from manifold.integration.polar_terms import Terms, terms_of
from manifold.integration.products import Cumulants, Errors
from manifold.monomials import Monomials
from manifold.spaces.embedded import Product, Space, Sphere

RANK_TOLERANCE = 1e-10
MAX_AXES = 6
CONFIRMING, CONFIRMED = 1024, 8.0  # annealed points against a rule on panels; they are not quite independent


@dataclass(frozen=True)
class Dependency:
    """A monomial that is an affine combination of the ones before it, everywhere on the space.

    Attributes
    ----------
    index : int
        Number of the dependent monomial.
    coefficients : ndarray, shape (m,)
        ``r_index = constant + coefficients . r`` (zero at the dependent monomials themselves).
    constant : float
    sentence : str
        The same, written out.
    """

    index: int
    coefficients: np.ndarray
    constant: float
    sentence: str


class MaxEntFamily:
    """All measures ``d mu = exp(lambda . r(z) - A(lambda)) d(uniform)`` for a set R of monomials.

    The measure in this family with ``E r = rho`` has the largest entropy among all measures with these
    moments. Entropies and densities are against the uniform probability measure: ``entropy <= 0``, and
    the entropy against Riemannian volume is larger by ``log vol``.

    Parameters
    ----------
    space : Space
        A sphere, torus or product of spheres.
    monomials : Monomials
        The statistics r_1..r_m, functions of the ambient coordinates.
    seed : int
        Of the slices that choose quadrature rules.

    Raises
    ------
    InputError
        If dimensions disagree, the space cannot be integrated by quadrature, or no monomial varies on it.
    NotIntegrableError
        If the space is Euclidean and the family contains no integrable density at ``lambda = 0``.

    Notes
    -----
    On a product space the family factorises over groups of factors that no monomial couples. Monomials
    that depend on others on the space (``x1^2 + x2^2 + x3^2 = 1``) are found, named in `dependencies`, and
    get ``lambda = 0`` in fits: they add nothing to the family.
    """

    def __init__(self, space: Space, monomials: Monomials, *, seed: int = 0):
        if monomials.dimension != space.ambient:
            raise InputError(
                f"monomials: expected functions of {space.ambient} coordinates ({space.name}), "
                f"got {monomials.dimension}"
            )
        if not space.compact:
            raise NotIntegrableError(
                f"{space.name}: the uniform measure is not finite; densities are in manifold.maxent.euclidean"
            )
        if not all(isinstance(f, Sphere) for f in space.factors):
            raise InputError(
                f"{space.name}: no quadrature here, expected spheres and their products; use the sampler "
                "(--method sampling)"
            )
        self.space, self.monomials, self.seed = space, monomials, seed
        self._parts = [
            (index, AdaptiveIntegrator(terms, seed=seed)) for index, terms in components(monomials, space)
        ]
        deepest = max((len(part.axes) for _, part in self._parts), default=0)
        if deepest > MAX_AXES:
            raise InputError(
                f"{space.name}: these monomials couple {deepest} polar axes, quadrature takes at most "
                f"{MAX_AXES}; use the sampler (--method sampling)"
            )
        self._memory: dict = {}
        if not self.independent.size:
            raise InputError("monomials: every one is constant on this space; nothing to fit")

    def __len__(self) -> int:
        return len(self.monomials)

    @cached_property
    def uniform_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (m,) and covariance (m, m) of the monomials under the uniform measure, exact to rounding."""
        found = self.evaluate(np.zeros(len(self)), order=2)
        return found.mean, found.covariance

    @cached_property
    def scale(self) -> np.ndarray:
        """Standard deviations under the uniform measure (1 for constants): the natural units of moments."""
        mean, covariance = self.uniform_moments
        deviation = np.sqrt(np.diag(covariance).clip(min=0))
        return np.where(deviation > 1e-7 * np.abs(mean), deviation, np.where(mean == 0, 1.0, np.abs(mean)))

    @cached_property
    def _elimination(self) -> tuple[np.ndarray, tuple[Dependency, ...]]:
        mean, covariance = self.uniform_moments
        correlation = covariance / np.outer(self.scale, self.scale)
        kept: list[int] = []
        dependencies = []
        for j in range(len(self)):
            weights = np.zeros(0)
            if kept:
                weights = np.linalg.lstsq(correlation[np.ix_(kept, kept)], correlation[kept, j], rcond=None)[
                    0
                ]
            left = correlation[j, j] - correlation[kept, j] @ weights
            if left > RANK_TOLERANCE:
                kept.append(j)
                continue
            coefficients = np.zeros(len(self))
            coefficients[kept] = weights * self.scale[j] / self.scale[kept]
            coefficients[np.abs(coefficients) < 1e-9] = 0
            constant = float(mean[j] - coefficients @ mean)
            words = [f"{c:+.6g}*{self.monomials.names[i]}" for i, c in enumerate(coefficients) if c]
            sentence = " ".join([f"{self.monomials.names[j]} =", f"{constant:.6g}" if abs(constant) > 1e-12 or
                                 not words else "", *words]).replace("  ", " ")  # fmt: skip
            dependencies.append(Dependency(j, coefficients, constant, sentence))
        return np.array(kept, dtype=int), tuple(dependencies)

    @property
    def independent(self) -> np.ndarray:
        """Numbers of monomials that are affinely independent on the space (the first ones win)."""
        return self._elimination[0]

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """The other monomials, each with the combination that it equals."""
        return self._elimination[1]

    @property
    def rank(self) -> int:
        """Dimension of the family as a Riemannian manifold: the rank of the Fisher information."""
        return len(self.independent)

    def evaluate(
        self, lam: np.ndarray, *, order: int = 1, tol: float = FINE, growth: float = 1.0, extra: int = 0,
        verify: bool = True,
    ) -> Cumulants:  # fmt: skip
        """Log-partition, mean and (``order=2``) Fisher information at ``lambda``.

        Parameters
        ----------
        lam : array_like, shape (m,)
        order : {1, 2}
        tol : float
            Target relative error of the quadrature; rounding limits it near 1e-14.
        growth : float
            Factor on the nodes of every axis.
        extra : int
            More nodes per axis than that.
        verify : bool
            Check rules without a proof by a second one (see `AdaptiveIntegrator.cumulants`).

        Returns
        -------
        Cumulants
            With bounds of the errors of log-partition and mean.

        Raises
        ------
        InputError
            If ``lambda`` has the wrong length or is not finite.
        TooLargeError
            If the density needs too many quadrature nodes.
        NotConvergedError
            If no second rule confirms a rule without a proof.
        """
        lam = np.atleast_1d(np.asarray(lam, dtype=float))
        if lam.shape != (len(self),) or not np.isfinite(lam).all():
            raise InputError(f"lambda: expected {len(self)} finite numbers, got {lam.tolist()}")
        key = (lam.tobytes(), order, tol, growth, extra, verify)
        if key not in self._memory:
            if len(self._memory) > 8:
                self._memory.clear()
            self._memory[key] = self._evaluate(lam, order, tol, growth, extra, verify)
        return self._memory[key]

    def _evaluate(self, lam, order, tol, growth, extra, verify) -> Cumulants:
        log_partition, mean = 0.0, np.zeros(len(self))
        covariance = np.zeros((len(self), len(self))) if order == 2 else None
        sizes, error, absolute, relative, ranges = [], 0.0, *np.zeros((3, len(self)))
        for index, part in self._parts:
            if not part.axes:  # constants on the space
                mean[index] = part.terms.coefficients.real.sum() if len(part.terms.coefficients) else 0.0
                ranges[index] = np.abs(mean[index])
                absolute[index] = 4 * np.finfo(float).eps * ranges[index]
                log_partition += float(lam[index] @ mean[index])
                error += float(np.abs(lam[index]) @ absolute[index])
                continue
            found, rule = part.cumulants(
                lam[index], order=order, tol=tol, growth=growth, extra=extra, verify=verify
            )
            if verify and tol <= FINE and getattr(rule, "local", False):
                self._confirm(lam, index, found)
            sizes.append(rule.sizes)
            log_partition += found.log_partition
            mean[index] = found.mean
            error += found.errors.log_partition
            absolute[index], relative[index] = found.errors.absolute, found.errors.relative
            ranges[index] = found.errors.ranges
            if covariance is not None:
                covariance[np.ix_(index, index)] = found.covariance
        errors = Errors(error, absolute, relative, ranges)
        return Cumulants(log_partition, mean, covariance, tuple(sizes), errors)

    def _confirm(self, lam: np.ndarray, index: np.ndarray, found: Cumulants) -> None:
        """Panels that chains have chosen may miss a mode: annealed samples must agree with their moments.

        Raises
        ------
        NotConvergedError
            If they do not.
        """
        import torch

        points = self.sample(lam, CONFIRMING, seed=self.seed + 1)
        values = self.monomials.values(torch.as_tensor(points)).numpy()[:, index]
        error = values.std(0) / np.sqrt(CONFIRMING)
        worst = float(np.max(np.abs(values.mean(0) - found.mean) / np.maximum(error, 1e-300)))
        if worst > CONFIRMED:
            raise NotConvergedError(
                f"quadrature: samples and the panels of the rule differ by {worst:.0f} standard errors in a "
                "moment; use the sampler (method='sampling')"
            )

    def log_partition(self, lam: np.ndarray) -> float:
        """``A(lambda) = log integral exp(lambda . r) d(uniform)``."""
        return self.evaluate(lam).log_partition

    def mean(self, lam: np.ndarray) -> np.ndarray:
        """Moments ``E r = grad A``, shape (m,)."""
        return self.evaluate(lam).mean

    def fisher_information(self, lam: np.ndarray) -> np.ndarray:
        """``Cov(r) = Hess A``, shape (m, m): the Fisher-Rao metric in the coordinates lambda."""
        return self.evaluate(lam, order=2).covariance

    def entropy(self, lam: np.ndarray) -> float:
        """Entropy against the uniform probability measure, ``A - lambda . E r <= 0``, in nats."""
        found = self.evaluate(lam)
        return found.log_partition - float(np.asarray(lam, float) @ found.mean)

    def entropy_riemannian(self, lam: np.ndarray) -> float:
        """Differential entropy against Riemannian volume: `entropy` plus ``log vol``, in nats."""
        return self.entropy(lam) + float(np.log(self.space.volume))

    def relative_entropy(self, lam: np.ndarray, other: np.ndarray) -> float:
        """``KL(mu_lambda || mu_other) = A(other) - A(lambda) - (other - lambda) . E_lambda r``, in nats."""
        lam, other = np.asarray(lam, float), np.asarray(other, float)
        found = self.evaluate(lam)
        return self.log_partition(other) - found.log_partition - float((other - lam) @ found.mean)

    def log_density(self, lam: np.ndarray, points) -> np.ndarray:
        """Log density against the uniform probability measure at points, shape (q,)."""
        import torch

        values = self.monomials.values(torch.as_tensor(points)).numpy()
        return values @ np.asarray(lam, float) - self.log_partition(lam)

    def sample(self, lam: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
        """Points of the space from ``mu_lambda`` by many Hamiltonian chains, shape (count, ambient).

        Parameters
        ----------
        lam : array_like, shape (m,)
        count : int
        seed : int

        Returns
        -------
        ndarray
        """
        from manifold.sampling.tempered_hmc import draw

        return draw(self.space, self.monomials, np.asarray(lam, float), count, seed=seed)


def components(monomials: Monomials, space: Space) -> list[tuple[np.ndarray, Terms]]:
    """Groups of monomials that share factors of a product space, each on its own factors, as terms.

    Polar coordinates with the fewest axes are taken for each group.
    """
    factors = space.factors
    ends = np.cumsum([f.ambient for f in factors])
    matrix = np.eye(monomials.dimension) if monomials.coordinates is None else monomials.coordinates
    touched = (monomials.exponents > 0).astype(int) @ (np.abs(matrix) > 0).astype(int) > 0
    uses = np.stack(
        [touched[:, e - f.ambient : e].any(1) for f, e in zip(factors, ends, strict=True)], axis=1
    )
    groups: list[tuple[set[int], set[int]]] = []
    for i, row in enumerate(uses):
        members, places = {i}, set(np.flatnonzero(row).tolist())
        joined = [g for g in groups if g[1] & places]
        for g in joined:
            members |= g[0]
            places |= g[1]
            groups.remove(g)
        groups.append((members, places))
    result = []
    for members, places in sorted(groups, key=lambda g: min(g[0])):
        index = np.array(sorted(members))
        chosen = sorted(places) or [0]
        columns = np.concatenate([np.arange(ends[f] - factors[f].ambient, ends[f]) for f in chosen])
        part = Monomials(
            monomials.exponents[index], matrix[:, columns], monomials.imaginary[index],
            tuple(monomials.names[i] for i in index),
        )  # fmt: skip
        result.append((index, _fewest_axes(part, Product(tuple(factors[f] for f in chosen)))))
    return result


def _fewest_axes(monomials: Monomials, space: Space) -> Terms:
    preferred = np.iscomplexobj(monomials.coordinates) and bool(np.abs(monomials.coordinates.imag).max() > 0)
    best = terms_of(monomials, space, polyspherical=preferred)
    if max(f.ambient for f in space.factors) > 3:
        other = terms_of(monomials, space, polyspherical=not preferred)
        if len(other.axes) < len(best.axes):
            best = other
    # Axes on which nothing depends integrate to one.
    used = [a for a in best.axes if best.keys[:, a.column : a.column + a.width].any()]
    return Terms(tuple(used), best.keys, best.coefficients, best.owner, best.count)


__all__ = ["COARSE", "FINE", "Dependency", "MaxEntFamily", "components"]
