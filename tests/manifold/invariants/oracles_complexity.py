"""Slow, obvious references for the spectral code: brute-force averages, closed-form kernels, quadrature."""

import itertools
import math

import numpy as np
from scipy.special import gammaln, roots_jacobi


def circle_kernel(x, y, *, s, order=1):
    """Sum over k of (1 + (order k)^2)^-s cos(order k (x - y)) in closed form, s = 1 or 2."""
    a = 1.0 / order
    u = np.mod(order * (np.asarray(x)[:, None] - np.asarray(y)[None]), 2 * np.pi)
    c, sh, ch = np.cosh(a * (np.pi - u)), np.sinh(np.pi * a), np.cosh(np.pi * a)
    first = np.pi / a * c / sh
    if s == 1:
        return first / order**2
    # Sum cos(k u)/(k^2 + a^2)^2 = -(1/2a) d/da of the first.
    slope = -np.pi / a**2 * c / sh + np.pi / a * (
        (np.pi - u) * np.sinh(a * (np.pi - u)) / sh - np.pi * c * ch / sh**2
    )
    return -slope / (2 * a) / order**4


def torus_kernel(x, y, *, s, reach, matrices, shifts):
    """Group average of sum over |k_i| <= reach, |k|^2 <= reach^2 of (1 + |k|^2)^-s cos(k.(g x - y))."""
    dim = x.shape[1]
    k = np.array(
        [v for v in itertools.product(range(-reach, reach + 1), repeat=dim) if np.dot(v, v) <= reach**2]
    )
    weight = (1.0 + (k**2).sum(1)) ** -s
    total = np.zeros((len(x), len(y)))
    for matrix, shift in zip(matrices, shifts, strict=True):
        phase = np.exp(1j * ((x @ matrix.T + shift) @ k.T))
        total += ((phase * weight) @ np.exp(1j * (y @ k.T)).conj().T).real
    return total / len(matrices)


def sphere_kernel(x, y, *, s, degree, matrices):
    """Group average of sum_l (1 + l(l+N-2))^-s N_l R_l(<g x, y>), Gegenbauer polynomials by their series."""
    ambient = x.shape[1]
    total = np.zeros((len(x), len(y)))
    for matrix in matrices:
        t = np.clip(x @ matrix.T @ y.T, -1, 1)
        for deg in range(degree + 1):
            level = deg * (deg + ambient - 2)
            total += (1.0 + level) ** -s * zonal(t, ambient, deg)
    return total / len(matrices)


def zonal(t, ambient, degree):
    """Reproducing kernel of degree-l harmonics: N_l times an integral over the angle (Laplace's formula)."""
    if ambient == 2:
        return (2 if degree else 1) * np.cos(degree * np.arccos(t))
    nodes, weights = roots_jacobi(degree + 2, (ambient - 4) / 2, (ambient - 4) / 2)
    weights = weights / weights.sum()
    value = ((t[..., None] + 1j * np.sqrt(1 - t[..., None] ** 2) * nodes) ** degree).real @ weights
    dimension = (
        (2 * degree + ambient - 2)
        / (ambient - 2)
        * math.exp(gammaln(degree + ambient - 2) - gammaln(degree + 1) - gammaln(ambient - 2))
    )
    return dimension * value


def ridge_fit(kernel, targets, ridge):
    """Dual coefficients of (1/n) sum residual^2 + ridge |f|^2 by one dense solve."""
    return np.linalg.solve(kernel + len(targets) * ridge * np.eye(len(targets)), targets)
