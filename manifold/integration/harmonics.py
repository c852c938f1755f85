"""Trigonometric form of statistics: bounds of ``exp(lambda . f)`` in the complex plane, before integrating.

Along an angle every exponent is a trigonometric polynomial ``p = sum_k p_k`` of harmonics k, and
``Re p(x + i y) = sum_k p_k(x) cosh(k y)``. With ``A_k >= |p_k|`` at all other angles,

``|exp p(x + i y)| <= exp(p(x)) exp(K(y)),   K(y) = sum_k A_k (cosh(k y) - 1)``,

so the k-th Fourier coefficient of the density is at most ``exp(K(y) - k y)`` times its mean, for every y.
That bounds the error of a trapezoid or Gauss rule by its node count alone (Trefethen & Weideman, SIAM Review
56, 2014, theorem 3.2): no sample of the density is involved, so no frequency can hide from it.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from scipy.special import betaln

from manifold.integration.polar_terms import Axis, Terms

SHIFTS = np.geomspace(1e-7, 8.0, 240)  # imaginary shifts y tried: the best lies within 8 % of one of them
HUGE = 700.0  # exponents above would overflow; the shift is then useless anyway


class Harmonics:
    """Sizes of the harmonics of ``lambda . f`` along every axis.

    Parameters
    ----------
    terms : Terms
    """

    def __init__(self, terms: Terms):
        self.terms, self.axes = terms, terms.axes
        self.series: list[
            np.ndarray
        ] = []  # per axis: |amplitude| of harmonic k of each term, (T, degree + 1)
        self.degrees: list[int] = []
        tops = []
        for axis in terms.axes:
            keys = terms.keys[:, axis.column : axis.column + axis.width]
            unique, inverse = np.unique(keys, axis=0, return_inverse=True)
            self.degrees.append(int(np.abs(unique).sum(1).max(initial=0)))
            self.series.append(amplitudes(axis, unique, self.degrees[-1])[inverse.ravel()])
            tops.append(_largest(axis, unique)[inverse.ravel()])
        self._tops = np.array(tops).reshape(len(terms.axes), len(terms.keys))

    @cached_property
    def ranges(self) -> np.ndarray:
        """A bound of ``|f_i|`` on the whole space, shape (m,)."""
        size = np.abs(self.terms.coefficients) * self._tops.prod(0)
        return np.bincount(self.terms.owner, size, self.terms.count)

    def amplitudes(self, lam: np.ndarray, a: int) -> np.ndarray:
        """Bounds ``A_k`` of the harmonics of ``lambda . f`` along axis a, shape (degree + 1,)."""
        others = np.delete(self._tops, a, axis=0).prod(0)
        size = np.abs(lam[self.terms.owner] * self.terms.coefficients) * others
        return size @ self.series[a]

    def nodes(self, lam: np.ndarray, a: int, tol: float, *, extra: int = 0) -> int:
        """Nodes of a global rule along axis a that integrates ``exp(lambda . f)`` to a relative ``tol``.

        Holds for the density times any polynomial of degree ``extra`` as well, relative to its largest value,
        and for products of rules axis by axis, because all weights are positive.

        Parameters
        ----------
        lam : ndarray, shape (m,)
        a : int
        tol : float
        extra : int
            Degree of the moment functions along this axis.

        Returns
        -------
        int
            Even.
        """
        return node_count(self.axes[a], self.amplitudes(lam, a), tol, extra=extra)


def growth(amplitude: np.ndarray) -> np.ndarray:
    """``K(y) = sum_k A_k (cosh(k y) - 1)`` at every y of `SHIFTS`; infinite where it overflows."""
    k = np.arange(len(amplitude))
    inside = np.minimum(np.outer(SHIFTS, k), HUGE)
    with np.errstate(over="ignore"):
        value = 2 * np.sinh(inside / 2) ** 2 @ amplitude
    return np.where(SHIFTS * k[-1] < HUGE, value, np.inf)


def bandwidth(amplitude: np.ndarray, tol: float) -> int:
    """Harmonics beyond this one are below ``tol`` of the mean of ``exp p``, whatever the phases of p."""
    return math.ceil(float(((growth(amplitude) - math.log(tol)) / SHIFTS).min()))


def node_count(axis: Axis, amplitude: np.ndarray, tol: float, *, extra: int = 0) -> int:
    """`Harmonics.nodes` from the amplitudes of the harmonics along one axis."""
    level = growth(amplitude) + math.log(4 / tol)
    if not axis.block:  # |T_N - I| <= 2 e^K / (e^{N y} - 1) I
        count = ((level / SHIFTS).min()) + extra
    else:  # twice the Chebyshev coefficients that the rule misses, against a mean without the weight
        level = level + _concentration(axis, amplitude) - np.log(-np.expm1(-SHIFTS))
        count = ((level / SHIFTS).min() + extra) / (2 * axis.block) + 1
    return 2 * math.ceil(min(count, 1e9) / 2)


def _concentration(axis: Axis, amplitude: np.ndarray) -> float:
    """Bound of ``log(mean G / integral G w)`` for the density w of the axis, which vanishes at its ends.

    G changes by at most a factor e within ``1 / L`` of its maximum, L its logarithmic Lipschitz constant; the
    mass of w on such an interval is smallest at an end of the axis (w has a single hump).
    """
    lipschitz = float(np.arange(len(amplitude)) @ amplitude) + 1.0
    width = 1 / lipschitz
    masses = [
        math.cos(1.0) ** (other - 1) * math.sin(1.0) ** (power - 1) * width**power / power
        for power, other in ((axis.rest, axis.block), (axis.block, axis.rest))[: axis.block]
    ]
    scale = math.log(axis.block) - float(betaln(axis.block / 2, axis.rest / 2))
    return 1.0 - math.log(min(masses)) - scale


def amplitudes(axis: Axis, keys: np.ndarray, degree: int) -> np.ndarray:
    """Amplitudes of harmonics 0..degree of the functions of an axis, shape (len(keys), degree + 1)."""
    series = np.abs(fourier(axis, keys, degree))
    folded = series[:, degree:].copy()
    folded[:, 1:] += series[:, :degree][:, ::-1]
    return folded


def fourier(axis: Axis, keys: np.ndarray, degree: int) -> np.ndarray:
    """Fourier coefficients -degree..degree of ``sin^p cos^q`` or ``e^{i m psi}``, exact to rounding.

    Returns
    -------
    ndarray of complex, shape (len(keys), 2 degree + 1)
    """
    size = 2 * degree + 1
    angles = 2 * np.pi * np.arange(size) / size
    values = axis.functions(keys, angles)
    series = np.fft.fftshift(np.fft.fft(values, axis=1), axes=1) / size
    series[np.abs(series) < 1e-15] = 0  # powers of sine and cosine are at most 1
    return series


def _largest(axis: Axis, keys: np.ndarray) -> np.ndarray:
    """Maximum of ``|sin^p cos^q|`` (1 for phases), shape (len(keys),)."""
    if not axis.block:
        return np.ones(len(keys))
    p, q = keys[:, 0].astype(float), keys[:, 1].astype(float)
    share = p / np.maximum(p + q, 1)
    return share ** (p / 2) * (1 - share) ** (q / 2)


class Lattice:
    """``lambda . f = Re sum_K G_K e^{i K . x}`` over integer vectors K: Taylor bounds on boxes.

    Parameters
    ----------
    terms : Terms
        Of few axes: all products of their harmonics are listed.
    """

    def __init__(self, terms: Terms):
        rows = np.arange(len(terms.keys))
        vectors, values = np.zeros((len(rows), 0), int), terms.coefficients.astype(complex)
        for axis in terms.axes:
            keys = terms.keys[:, axis.column : axis.column + axis.width]
            degree = int(np.abs(keys).sum(1).max(initial=0))
            unique, inverse = np.unique(keys, axis=0, return_inverse=True)
            series = fourier(axis, unique, degree)[inverse.ravel()[rows]]
            parent, harmonic = np.nonzero(series)
            vectors = np.column_stack([vectors[parent], harmonic - degree])
            values = values[parent] * series[parent, harmonic]
            rows = rows[parent]
        lead = np.take_along_axis(vectors, (vectors != 0).argmax(1)[:, None], 1)[:, 0]
        vectors[lead < 0] *= -1  # Re z = Re conj z
        values[lead < 0] = values[lead < 0].conj()
        self.vectors, place = np.unique(vectors, axis=0, return_inverse=True)
        table = np.zeros((terms.count, len(self.vectors)), complex)
        np.add.at(table, (terms.owner[rows], place.ravel()), values)
        self.table = table

    def derivatives(self, lam: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value (B,), gradient (B, n) and Hessian (B, n, n) of ``lambda . f`` at angles (B, n)."""
        k = self.vectors
        weights = lam @ self.table
        n = k.shape[1]
        columns = [weights, *(1j * k[:, a] * weights for a in range(n))]
        columns += [-k[:, a] * k[:, b] * weights for a in range(n) for b in range(n)]
        found = (np.exp(1j * (points @ k.T)) @ np.array(columns).T).real
        return found[:, 0], found[:, 1 : n + 1], found[:, n + 1 :].reshape(-1, n, n)

    def sizes(self, lam: np.ndarray) -> np.ndarray:
        """``|G_K|``, shape (number of K,)."""
        return np.abs(lam @ self.table)
