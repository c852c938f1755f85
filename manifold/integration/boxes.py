"""Integrals of ``exp(lambda . f)`` over boxes of polar coordinates, halved until the error is proven small.

For densities with several scales at once (a narrow peak over broad tails, several peaks), where one product
rule for the whole space would need far too many nodes. Every box comes with a bound of its mass and of the
error of its Gauss rule, from a Taylor expansion of the exponent about its centre with bounded remainders
(`Lattice`): a box is left out only where its mass is proven negligible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaln, logsumexp

from manifold.errors import TooLargeError
from manifold.integration.harmonics import Lattice
from manifold.integration.polar_terms import Axis, Terms
from manifold.integration.products import Cumulants
from manifold.integration.rules import axis_density, domain, gauss_legendre

MOST_NODES = 3 * 10**7
MOST_BOXES = 4 * 10**5
CHUNK = 2**16
FINE_NODES, COARSE_NODES = 16, 8  # nodes per axis and box: few boxes against small ones
RADII = np.linspace(0.3, 2.4, 8)  # log sizes y of the Bernstein ellipses tried
ERROR = 1e-3  # of the wanted error, for a single box: at most thousands of them weigh
OVERFLOW = 700.0  # exponents of remainders are cut here: such a box is halved anyway


@dataclass(frozen=True, eq=False)
class Boxes:
    """A subdivision: corners of shape (B, axes), nodes per axis of each box, log of the absolute error."""

    low: np.ndarray
    high: np.ndarray
    nodes: int
    log_error: float = -np.inf

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of boxes, then the nodes per axis."""
        return (len(self.low), *(self.nodes,) * self.low.shape[1])


@dataclass(frozen=True, eq=False)
class Survey:
    """What is known of each box: logs of its mass from below (roughly) and above, of its errors per axis."""

    least: np.ndarray
    most: np.ndarray
    errors: np.ndarray


class BoxIntegrator:
    """Log-partition, mean and covariance by Gauss-Legendre rules on adaptively halved boxes.

    Parameters
    ----------
    terms : Terms
    half : list of bool
        Axes of which the upper half is enough (see `manifold.integration.symmetries.symmetric_axes`).
    """

    def __init__(self, terms: Terms, half: list[bool]):
        self.terms, self.axes, self.half = terms, terms.axes, half
        self.lattice = Lattice(terms)
        self._unique = []
        for axis in self.axes:
            columns = terms.keys[:, axis.column : axis.column + axis.width]
            unique, inverse = np.unique(columns, axis=0, return_inverse=True)
            self._unique.append((unique, inverse.ravel()))
        self._memory: dict = {}

    # --- values on the nodes of many boxes ------------------------------------------------------------

    def _angles(self, boxes: Boxes) -> np.ndarray:
        x, _ = gauss_legendre(boxes.nodes)
        middle, reach = (boxes.high + boxes.low) / 2, (boxes.high - boxes.low) / 2
        return middle[:, :, None] + reach[:, :, None] * x  # (boxes, axes, nodes)

    def _weights(self, angles: np.ndarray, boxes: Boxes) -> np.ndarray:
        """Weights of the uniform measure at the nodes, shape (boxes, nodes of all axes)."""
        _, w = gauss_legendre(boxes.nodes)
        total = np.ones((len(angles), 1))
        for a, axis in enumerate(self.axes):
            factor = axis_density(axis, angles[:, a]) * w * ((boxes.high - boxes.low) / 2)[:, a, None]
            factor = factor * (2 if self.half[a] and axis.block != 2 else 1)
            total = (total[:, :, None] * factor[:, None, :]).reshape(len(angles), -1)
        return total

    def _sides(self, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each term as (all axes but the last) x (last axis), shapes (boxes, terms, nodes)."""
        count, _, nodes = angles.shape
        tables = []
        for a, (unique, inverse) in enumerate(self._unique):
            table = self.axes[a].functions(unique, angles[:, a].ravel())[inverse]
            tables.append(table.reshape(len(inverse), count, nodes).transpose(1, 0, 2))
        first = np.ones((count, len(self.terms.keys), 1))
        for table in tables[:-1]:
            first = (first[:, :, :, None] * table[:, :, None, :]).reshape(count, len(self.terms.keys), -1)
        return first, tables[-1]

    @staticmethod
    def _contract(first: np.ndarray, last: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """``Re sum_t c_t first_t last_t`` at all nodes, shape (boxes, nodes of all axes)."""
        left = (first * coefficients[:, None]).transpose(0, 2, 1)
        value = left.real @ last.real
        if np.iscomplexobj(left) and np.iscomplexobj(last):
            value -= left.imag @ last.imag
        return value.reshape(len(first), -1)

    def _chunks(self, boxes: Boxes):
        rows = max(1, CHUNK // boxes.nodes ** len(self.axes))
        for start in range(0, len(boxes.low), rows):
            yield Boxes(boxes.low[start : start + rows], boxes.high[start : start + rows], boxes.nodes)

    # --- the subdivision ------------------------------------------------------------------------------

    def subdivide(self, lam: np.ndarray, *, tol: float) -> Boxes:
        """Halve boxes until the bounds of their errors, and of the mass of the ones left out, are below tol.

        Raises
        ------
        TooLargeError
            If more than `MOST_NODES` nodes would be needed.
        """
        nodes = FINE_NODES if tol < 1e-8 else COARSE_NODES
        active = self._start(nodes)
        done: list[Boxes] = []
        masses, errors, kept_mass = [], [-np.inf], -np.inf
        visited = 0
        while len(active.low):
            found = self.survey(lam, active)
            total = np.logaddexp(kept_mass, logsumexp(found.least))
            limit = total + np.log(tol * ERROR)
            dropped = found.most < limit
            error = logsumexp(found.errors, axis=1)
            kept = ~dropped & (error < limit)
            errors.append(logsumexp(np.concatenate([found.most[dropped], error[kept], [-np.inf]])))
            done.append(Boxes(active.low[kept], active.high[kept], nodes))
            masses.append(found.least[kept])
            kept_mass = np.logaddexp(kept_mass, logsumexp(found.least[kept])) if kept.any() else kept_mass
            again = ~dropped & ~kept
            # Halve the axes that err most: along the others the box may stay wide.
            rough = found.errors[again] > found.errors[again].max(1, keepdims=True, initial=-np.inf) - 3.0
            active = _halve(Boxes(active.low[again], active.high[again], nodes), rough)
            visited += len(active.low)
            count = sum(map(len, masses)) + len(active.low)
            if count * nodes ** len(self.axes) > MOST_NODES or visited > MOST_BOXES:
                raise TooLargeError(
                    f"quadrature needs more than {MOST_NODES:.0e} nodes on adaptive boxes: use the sampler "
                    "(method='sampling'), fewer monomials or smaller moments"
                )
        order = np.argsort(-np.concatenate(masses), kind="stable")  # the heaviest first: see `evaluate`
        low, high = np.concatenate([b.low for b in done]), np.concatenate([b.high for b in done])
        return Boxes(low[order], high[order], nodes, float(logsumexp(errors)))

    def _start(self, nodes: int) -> Boxes:
        low, high = np.zeros((1, len(self.axes))), np.zeros((1, len(self.axes)))
        for a, axis in enumerate(self.axes):
            low[:, a], high[:, a] = domain(axis, self.half[a])
        boxes = Boxes(low, high, nodes)
        for a, axis in enumerate(self.axes):
            for _ in range(1 if axis.block else 2):
                boxes = _halve(boxes, np.arange(len(self.axes)) == a)
        return boxes

    def survey(self, lam: np.ndarray, boxes: Boxes) -> Survey:
        """Bounds of mass and quadrature error of every box.

        With ``z`` on the Bernstein ellipse of size y over axis a, ``|z - x| <= h sinh y`` from the real point
        x below it, so ``Re g(z) <= g(x) + |g'| h (cosh y - 1) + max |g''| (h sinh y)^2 / 2``; a Gauss rule of
        n nodes errs by at most ``(32/15) 2 h max|exp g| e^{-2(n-1)y} / (1 - e^{-2y})`` (Trefethen,
        Approximation Theory and Approximation Practice, theorem 19.3).
        """
        middle, half = (boxes.low + boxes.high) / 2, (boxes.high - boxes.low) / 2
        count, n = half.shape
        sizes, k = self.lattice.sizes(lam), np.abs(self.lattice.vectors)
        curvature = np.sqrt((k**2).T @ sizes)
        value, gradient, hessian = np.empty(count), np.empty((count, n)), np.empty((count, n, n))
        rows = max(1, CHUNK * 4 // len(k))
        for part in (slice(s, s + rows) for s in range(0, count, rows)):
            value[part], gradient[part], hessian[part] = self.lattice.derivatives(lam, middle[part])
        slope, bent = np.abs(gradient), np.abs(hessian)
        patterns, which = np.unique(half, axis=0, return_inverse=True)
        which = which.ravel()
        reach = k @ patterns.T  # |K . (x - c)| at most, (modes, patterns)
        tilt = (bent * half[:, None, :]).sum(2)
        third = (sizes @ reach**3)[which]
        most = value + (slope * half).sum(1) + (tilt * half).sum(1) / 2 + third / 6
        slope = slope + tilt + ((k * sizes[:, None]).T @ reach**2)[:, which].T / 2
        errors = np.empty((count, n))
        for a in range(n):
            errors[:, a] = self._axis_error(
                a, boxes.nodes, half, slope[:, a], bent[:, a, a], sizes, reach, patterns, which, middle
            )
        volume = np.log(2 * half).sum(1)
        weight = self._log_weight(middle, half, 0.0, None)
        inner = np.log(2 * np.minimum(half, 1 / (np.abs(gradient) + curvature + 1e-300))).sum(1)
        with np.errstate(divide="ignore"):
            density = sum(
                np.log(axis_density(x, middle[:, a]) * self._doubling(a)) for a, x in enumerate(self.axes)
            )
        least = value - 1.5 * n + inner + density
        return Survey(least, most + volume + weight, errors + (most + volume)[:, None])

    def _axis_error(self, a, nodes, half, slope, bent, sizes, reach, patterns, which, middle) -> np.ndarray:
        """Log of the bound of the relative error along one axis, at the best of the ellipses."""
        k = np.abs(self.lattice.vectors)[:, a]
        best = np.full(len(half), np.inf)
        h = half[:, a]
        for y in RADII:
            shift = np.minimum(reach + np.outer(k, patterns[:, a]) * (np.cosh(y) - 1), OVERFLOW)
            second = bent + ((sizes * k**2) @ np.expm1(shift))[which]
            rise = slope * h * (np.cosh(y) - 1) + second * (h * np.sinh(y)) ** 2 / 2
            rise += 2 * k.max() * h * np.sinh(y)  # moment functions, and their products, grow by this
            level = rise - 2 * (nodes - 1) * y - np.log(-np.expm1(-2 * y)) + np.log(32 / 15)
            best = np.minimum(best, level + self._log_weight(middle, half, y, a))
        return best

    def _log_weight(self, middle: np.ndarray, half: np.ndarray, y: float, wide: int | None) -> np.ndarray:
        """Log of a bound of the uniform density on boxes, axis ``wide`` over its ellipse of size y."""
        total = np.zeros(len(middle))
        for a, axis in enumerate(self.axes):
            h = half[:, a]
            reach = h * np.cosh(y) * np.exp(h * np.sinh(y)) if a == wide else h
            sine = np.abs(np.sin(middle[:, a])) + reach
            cosine = np.abs(np.cos(middle[:, a])) + reach
            total += np.log(_peak(axis) * self._doubling(a))
            if axis.block:
                total += (axis.block - 1) * np.log(sine) + (axis.rest - 1) * np.log(cosine)
        return total

    def _doubling(self, a: int) -> float:
        return 2.0 if self.half[a] and self.axes[a].block != 2 else 1.0

    # --- integrals ------------------------------------------------------------------------------------

    def cumulants(
        self, lam: np.ndarray, *, order: int = 1, tol: float, growth: float = 1.0, extra: int = 0
    ) -> tuple[Cumulants, Boxes]:
        """Log-partition and moments, and the boxes.

        ``growth`` times and ``extra`` more nodes per axis and box give a second rule without common nodes.

        Raises
        ------
        TooLargeError
            As `subdivide`.
        """
        key = (lam.tobytes(), tol)
        if key not in self._memory:
            self._memory = {key: self.subdivide(lam, tol=tol)}
        boxes = self._memory[key]
        boxes = Boxes(boxes.low, boxes.high, int(np.ceil(growth * boxes.nodes)) + extra, boxes.log_error)
        return self.evaluate(lam, boxes, order=order), boxes

    def evaluate(self, lam: np.ndarray, boxes: Boxes, *, order: int) -> Cumulants:
        """Sums over all boxes, functions centred at a high node: no cancellation near a face."""
        m, owner, c = len(lam), self.terms.owner, self.terms.coefficients
        groups = [np.flatnonzero(owner == i) for i in range(m)]
        shift, centre = -np.inf, np.zeros(m)
        mass, first, second = 0.0, np.zeros(m), np.zeros((m, m))
        for part in self._chunks(boxes):
            angles = self._angles(part)
            left, right = self._sides(angles)
            functions = np.stack([self._contract(left[:, g], right[:, g], c[g]).ravel() for g in groups])
            exponents = lam @ functions
            if not np.isfinite(shift):
                centre = functions[:, exponents.argmax()].copy()
            functions -= centre[:, None]
            exponents = lam @ functions
            peak = max(shift, exponents.max())
            scale = np.exp(shift - peak)
            shift = peak
            density = np.exp(exponents - shift) * self._weights(angles, part).ravel()
            weighted = functions * density
            mass = mass * scale + density.sum()
            first = first * scale + weighted.sum(1)
            if order == 2:
                second = second * scale + weighted @ functions.T
        mean = first / mass
        covariance = second / mass - np.outer(mean, mean) if order == 2 else None
        return Cumulants(float(lam @ centre + shift + np.log(mass)), centre + mean, covariance, ())


def _halve(boxes: Boxes, marked: np.ndarray) -> Boxes:
    """Every box cut in two along each of its marked axes, shape of ``marked`` (B, axes) or (axes,)."""
    low, high = boxes.low, boxes.high
    marked = np.broadcast_to(marked, low.shape)
    for a in range(low.shape[1]):
        cut = marked[:, a]
        middle = (low[cut, a] + high[cut, a]) / 2
        left_high, right_low = high[cut].copy(), low[cut].copy()
        left_high[:, a], right_low[:, a] = middle, middle
        low = np.concatenate([low[~cut], low[cut], right_low])
        high = np.concatenate([high[~cut], left_high, high[cut]])
        marked = np.concatenate([marked[~cut], marked[cut], marked[cut]])
    return Boxes(low, high, boxes.nodes)


def _peak(axis: Axis) -> float:
    """The factor in front of ``sin^{block-1} cos^{rest-1}`` in the density of an axis."""
    if not axis.block:
        return 1 / (2 * np.pi)
    return axis.block * float(np.exp(-betaln(axis.block / 2, axis.rest / 2)))
