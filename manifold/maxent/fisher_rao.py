"""The Fisher-Rao manifold of a maximum-entropy family, for pymanopt."""

from __future__ import annotations

import numpy as np
from pymanopt.manifolds.manifold import RiemannianSubmanifold

from manifold.maxent.family import FINE, MaxEntFamily


class FisherRaoManifold(RiemannianSubmanifold):
    """``{mu_lambda}`` in natural coordinates (independent monomials), metric ``Cov_lambda(r)``, for pymanopt.

    The connection is the exponential one: e-geodesics are straight lines in lambda, parallel transport is
    the identity, and the Hessian of the dual ``A(lambda) - lambda . rho`` is the metric itself, hence the
    identity operator. The Riemannian gradient is the natural gradient ``Cov^{-1} grad``: nothing
    changes when a monomial is rescaled, while Euclidean descent slows down with the condition number.

    Parameters
    ----------
    family : MaxEntFamily
    tol : float
        Quadrature tolerance.
    """

    def __init__(self, family: MaxEntFamily, *, tol: float = FINE):
        super().__init__(
            f"Fisher-Rao manifold of {len(family)} monomials on {family.space.name}", family.rank
        )
        self.family, self.tol = family, tol

    def embed(self, point: np.ndarray) -> np.ndarray:
        """Full lambda (m,) with zeros at dependent monomials."""
        lam = np.zeros(len(self.family))
        lam[self.family.independent] = point
        return lam

    def metric(self, point: np.ndarray) -> np.ndarray:
        """``Cov_lambda(r)`` of the independent monomials, shape (rank, rank)."""
        covariance = self.family.evaluate(self.embed(point), order=2, tol=self.tol).covariance
        return covariance[np.ix_(self.family.independent, self.family.independent)]

    def mean(self, point: np.ndarray) -> np.ndarray:
        """Moments of the independent monomials."""
        return self.family.evaluate(self.embed(point), order=2, tol=self.tol).mean[self.family.independent]

    @property
    def typical_dist(self) -> float:
        """Radius scale of trust regions: ``sqrt(dim)`` standard deviations."""
        return 16 * float(np.sqrt(self.dim))

    def inner_product(self, point, tangent_vector_a, tangent_vector_b):
        """``u^T Cov v``."""
        return float(tangent_vector_a @ self.metric(point) @ tangent_vector_b)

    def norm(self, point, tangent_vector):
        """Root of the inner product."""
        return float(np.sqrt(max(self.inner_product(point, tangent_vector, tangent_vector), 0.0)))

    def projection(self, point, vector):
        """Every vector is tangent."""
        return vector

    to_tangent_space = projection

    def random_point(self):
        """``lambda`` of about one unit of each monomial's uniform standard deviation (global numpy state)."""
        return np.random.standard_normal(self.dim) / self.family.scale[self.family.independent]  # noqa: NPY002

    def random_tangent_vector(self, point):
        """A unit vector of random direction."""
        vector = self.random_point()
        return vector / self.norm(point, vector)

    def zero_vector(self, point):
        """Zeros."""
        return np.zeros(self.dim)

    def euclidean_to_riemannian_gradient(self, point, euclidean_gradient):
        """Natural gradient ``Cov^{-1} grad``."""
        return solve_scaled(self.metric(point), euclidean_gradient)

    def euclidean_to_riemannian_hessian(self, point, euclidean_gradient, euclidean_hessian, tangent_vector):
        """``Cov^{-1} Hess[v]``: the second derivative along e-geodesics."""
        return solve_scaled(self.metric(point), euclidean_hessian)

    def retraction(self, point, tangent_vector):
        """E-geodesic ``lambda + v``."""
        return point + tangent_vector

    exp = retraction

    def log(self, point_a, point_b):
        """Velocity of the e-geodesic from a to b."""
        return point_b - point_a

    def transport(self, point_a, point_b, tangent_vector_a):
        """Parallel transport of the exponential connection: the identity."""
        return tangent_vector_a

    def pair_mean(self, point_a, point_b):
        """Middle of the e-geodesic."""
        return (point_a + point_b) / 2

    def geodesic(self, point_a, point_b, time: float):
        """The e-geodesic at ``time`` in [0, 1]: mixes the logarithms of the densities."""
        return (1 - time) * point_a + time * point_b

    def dist(self, point_a, point_b):
        """Fisher-Rao length of the e-geodesic (an upper bound of the distance, exact in one dimension)."""
        x, w = np.polynomial.legendre.leggauss(12)
        velocity = point_b - point_a
        lengths = [self.norm(self.geodesic(point_a, point_b, (1 + t) / 2), velocity) for t in x]
        return float(w @ lengths / 2)


def solve_scaled(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Solve a symmetric positive system after scaling its diagonal to one (indifferent to units)."""
    scale = np.sqrt(np.diag(matrix).clip(min=np.finfo(float).tiny))
    scaled = matrix / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(scaled)
    values = values.clip(min=1e-14 * values[-1])
    return vectors @ ((vectors.T @ (vector / scale)) / values) / scale
