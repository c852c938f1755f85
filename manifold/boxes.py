"""Integrals of ``exp(lambda . f)`` over boxes of polar coordinates, halved where the density is not resolved.

For densities with several scales at once (a narrow peak over broad tails, several peaks), where one product
rule for the whole space would need far too many nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from manifold.errors import TooLargeError
from manifold.integrals import Cumulants
from manifold.polynomials import Terms
from manifold.quadrature import axis_density, domain, gauss_legendre

MOST_NODES = 3 * 10**7
CHUNK = 2**16
SPREAD = 40.0  # exponents that differ by more within one box leave its peak between the nodes
DEPTH = 1e-8


@dataclass(frozen=True, eq=False)
class Boxes:
    """A subdivision: corners of shape (B, axes) and the nodes per axis of each box."""

    low: np.ndarray
    high: np.ndarray
    nodes: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of boxes, then the nodes per axis."""
        return (len(self.low), *(self.nodes,) * self.low.shape[1])


class BoxIntegrator:
    """Log-partition, mean and covariance by Gauss-Legendre rules on adaptively halved boxes.

    Parameters
    ----------
    terms : Terms
    half : list of bool
        Axes of which the upper half is enough (see `manifold.adaptive.symmetric_axes`).
    """

    def __init__(self, terms: Terms, half: list[bool]):
        self.terms, self.axes, self.half = terms, terms.axes, half
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
        """Halve boxes until the last Legendre coefficients of the density are negligible on each.

        A Gauss rule errs by about the square of these coefficients (relative to the mass of the box), so the
        root of ``tol`` is enough for them.

        Raises
        ------
        TooLargeError
            If more than `MOST_NODES` nodes would be needed.
        """
        nodes = 12 if tol < 1e-8 else 8
        active = self._start(nodes)
        done_low, done_high, done_mass = [], [], []
        while len(active.low):
            mass, tails, slack = self._survey(lam, active)
            total = logsumexp(np.concatenate([*done_mass, mass]))
            floor = np.log(tol) + total
            rough = tails > 0.5 * (floor + np.maximum(mass, floor - 20))[:, None]
            peaked = (slack > 0) & (mass + slack > floor)
            rough |= peaked[:, None] & (tails > tails.max(1, keepdims=True) - 2.0)
            rough &= (mass + slack > floor - 5)[:, None]
            spans = np.array(
                [np.subtract(*domain(x, h)[::-1]) for x, h in zip(self.axes, self.half, strict=True)]
            )
            rough &= active.high - active.low > DEPTH * spans
            kept = ~rough.any(1) & (mass + slack > floor - 10)
            done_low.append(active.low[kept])
            done_high.append(active.high[kept])
            done_mass.append(mass[kept])
            again = rough.any(1)
            active = _halve(Boxes(active.low[again], active.high[again], nodes), rough[again])
            count = sum(map(len, done_mass)) + len(active.low)
            if count * nodes ** len(self.axes) > MOST_NODES:
                raise TooLargeError(
                    f"quadrature needs more than {MOST_NODES:.0e} nodes on adaptive boxes: use the sampler "
                    "(method='sampling'), fewer monomials or smaller moments"
                )
        order = np.argsort(-np.concatenate(done_mass), kind="stable")  # the heaviest first: see `evaluate`
        return Boxes(np.concatenate(done_low)[order], np.concatenate(done_high)[order], nodes)

    def _start(self, nodes: int) -> Boxes:
        low, high = np.zeros((1, len(self.axes))), np.zeros((1, len(self.axes)))
        for a, axis in enumerate(self.axes):
            low[:, a], high[:, a] = domain(axis, self.half[a])
        boxes = Boxes(low, high, nodes)
        for a, axis in enumerate(self.axes):
            for _ in range(1 if axis.block else 2):
                boxes = _halve(boxes, np.arange(len(self.axes)) == a)
        return boxes

    def _survey(self, lam: np.ndarray, boxes: Boxes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per box: log mass, log of the last two Legendre coefficients along each axis, doubt of its peak."""
        p, dimension = boxes.nodes, len(self.axes)
        top = np.polynomial.legendre.legvander(gauss_legendre(p)[0], p - 1)[:, p - 2 :].T
        top = top * (np.arange(p - 2, p) + 0.5)[:, None]  # the weights come with the density
        coefficients = lam[self.terms.owner] * self.terms.coefficients
        masses, tails, slacks = [], [], []
        for part in self._chunks(boxes):
            angles = self._angles(part)
            exponents = self._contract(*self._sides(angles), coefficients)
            peak, least = exponents.max(1), exponents.min(1)
            density = np.exp(exponents - peak[:, None]) * self._weights(angles, part)
            masses.append(peak + np.log(density.sum(1)))
            grid = density.reshape(len(density), *(p,) * dimension)
            found = np.stack(
                [np.abs(np.tensordot(grid, top, (a + 1, 1))).reshape(len(grid), -1, 2).sum(1).max(1)
                 for a in range(dimension)], axis=1
            )  # fmt: skip
            tails.append(peak[:, None] + np.log(np.maximum(found, 1e-300)))
            slacks.append(np.where(peak - least > SPREAD, 0.1 * (peak - least), 0.0))
        return np.concatenate(masses), np.concatenate(tails), np.concatenate(slacks)

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
        boxes = Boxes(boxes.low, boxes.high, int(np.ceil(growth * boxes.nodes)) + extra)
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
