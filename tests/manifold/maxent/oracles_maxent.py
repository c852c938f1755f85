"""Closed forms of maximum-entropy families, written without any code of the package."""

import mpmath as mp
import numpy as np
from scipy.special import gammaln, ive, logsumexp


def von_mises_fisher(kappa, dimension):
    """log Z and E x_1 of exp(kappa x_1) on S^(dimension-1) in R^dimension, uniform probability reference."""
    nu = dimension / 2 - 1
    log_z = gammaln(dimension / 2) + nu * np.log(2 / kappa) + np.log(ive(nu, kappa)) + kappa
    return log_z, ive(nu + 1, kappa) / ive(nu, kappa)


def bingham(a, b):
    """log Z of exp(a x^2 + b y^2) on S^2: the azimuth by a Bessel function, the height by mpmath."""
    mp.mp.dps = 30
    value = mp.quad(
        lambda t: mp.e ** ((a + b) / 2 * (1 - t * t)) * mp.besseli(0, (a - b) / 2 * (1 - t * t)), [-1, 0, 1]
    )
    return float(mp.log(value / 2))


def cubic_sphere(lam):
    """log Z, mean, variance of exp(lam Re(z1 z2 conj z3)) on S^5: Z = 2 sum (lam/2)^{2j} j!/(3j+2)!."""
    j = np.arange(0, int(2 * lam) + 60)
    logs = np.log(2) + 2 * j * np.log(lam / 2) + gammaln(j + 1) - gammaln(3 * j + 3)
    log_z = logsumexp(logs)
    p = np.exp(logs - log_z)
    first = p @ (2 * j) / lam
    second = p @ (2 * j * (2 * j - 1.0)) / lam**2
    return log_z, first, second - first**2


def folland(exponents):
    """E prod x_i^{k_i} under the uniform probability measure of the sphere: Gamma functions, 0 for odd k."""
    k = np.asarray(exponents)
    if (k % 2).any():
        return 0.0
    d = len(k)
    return float(
        np.exp(gammaln((k + 1) / 2).sum() - d * gammaln(0.5) + gammaln(d / 2) - gammaln((k.sum() + d) / 2))
    )


def disjoint_cubes(lams):
    """log Z of exp(sum_b lam_b Re(z_b1 z_b2 conj z_b3)) on the sphere of C^{3 B}: a B-fold convolution.

    With s_b the squared radius of block b, s ~ Dirichlet(3, .., 3), and given s the blocks are independent:
    Z = E prod_b f_b(s_b), f_b(s) = sum_j c_bj s^{3j}, c_bj = 2 (lam_b/2)^{2j} j!/(3j+2)!. Dirichlet
    moments are E prod s_b^{3 j_b} = Gamma(3B)/Gamma(3B + 3J) prod Gamma(3 + 3 j_b)/Gamma(3), J = sum j_b,
    so only the convolution of the sequences c_bj Gamma(3 + 3j)/2 is needed.
    All terms are positive; everything in logs.
    """
    top = int(1.2 * max(lams)) + 60
    j = np.arange(top)
    total = np.array([0.0])
    for lam in lams:
        if lam == 0:  # a block without a term: f_b = 1
            continue
        logs = np.log(2) + 2 * j * np.log(abs(lam) / 2) + gammaln(j + 1) - gammaln(3 * j + 3)
        logs = logs + gammaln(3 + 3 * j) - gammaln(3)
        size = min(len(total) + top - 1, 2 * top)
        merged = np.full(size, -np.inf)
        for k in range(size):
            i = np.arange(max(0, k - top + 1), min(k, len(total) - 1) + 1)
            merged[k] = logsumexp(total[i] + logs[k - i])
        total = merged
    k = np.arange(len(total))
    return logsumexp(total + gammaln(3 * len(lams)) - gammaln(3 * len(lams) + 3 * k))


def disjoint_cube_moments(lams, *, step=1e-4):
    """E Re(z_b1 z_b2 conj z_b3) by central differences of the exact log Z."""
    result = []
    for b, lam in enumerate(lams):
        if lam == 0:  # odd in z_b3
            result.append(0.0)
            continue
        up, down = list(lams), list(lams)
        up[b], down[b] = lam * (1 + step), lam * (1 - step)
        result.append((disjoint_cubes(up) - disjoint_cubes(down)) / (2 * step * lam))
    return np.array(result)
