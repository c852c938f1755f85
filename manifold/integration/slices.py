"""Quadrature rules from one-dimensional slices of the density through typical points.

A few persistent Gibbs chains give the points. The Fourier coefficients of the density along a great circle
say how many nodes an exact-degree rule needs; where that is too many, the axis is cut to the panels that
carry the mass, found by following ``beta lambda`` from a small beta to 1.
"""

from __future__ import annotations

import numpy as np

from manifold.errors import NotConvergedError
from manifold.integration.harmonics import Harmonics, bandwidth, fourier
from manifold.integration.polar_terms import Terms
from manifold.integration.products import MAX_NODES, Cumulants, Integrator, Rule
from manifold.integration.rules import (
    Panels,
    axis_density,
    domain,
    gauss_legendre,
    global_rule,
    merged,
    panel_rule,
)
from manifold.integration.symmetries import symmetric_axes

FINE, COARSE = 1e-14, 1e-5
GLOBAL_LIMIT, GLOBAL_NODES = 256, 5e6
AGREEMENT, GROWTHS = 1e-13, 4  # two rules agree; how often more nodes are tried
FINEST = 4096
_SUPPORT = 1e-22
_PANEL_DEGREE = 72


class SliceRules:
    """Rules for many axes at a large lambda, read off slices: right as far as the slices have seen.

    Parameters
    ----------
    terms : Terms
        The functions, on the polar axes of their space.
    seed : int
        Of the Gibbs chains that choose slices.
    """

    def __init__(self, terms: Terms, *, seed: int = 0):
        self.integrator = Integrator(terms)
        self.harmonics = Harmonics(terms)
        self.terms = terms
        self.axes = terms.axes
        self.half = symmetric_axes(terms)
        self._rng = np.random.default_rng(seed)
        self._degrees = self.harmonics.degrees
        self._unique = []
        for axis in self.axes:
            columns = terms.keys[:, axis.column : axis.column + axis.width]
            unique, inverse = np.unique(columns, axis=0, return_inverse=True)
            self._unique.append((unique, inverse.ravel()))
        self._points = self._scatter()
        self._last: tuple[np.ndarray, Rule] | None = None

    def _scatter(self) -> np.ndarray:
        """Twelve uniform chains, shape (axes, 12)."""
        return np.array([self._uniform_angles(a, 12) for a in range(len(self.axes))])

    def _uniform_angles(self, a: int, count: int) -> np.ndarray:
        low, high = domain(self.axes[a], self.half[a])
        grid = low + (high - low) * (np.arange(200) + 0.5) / 200
        density = axis_density(self.axes[a], grid)
        return self._rng.choice(grid, count, p=density / density.sum())

    # --- slices -----------------------------------------------------------------------------------

    def _values(self, a: int, angles: np.ndarray) -> np.ndarray:
        unique, inverse = self._unique[a]
        return self.axes[a].functions(unique, angles)[inverse]

    def _folded(self, lam: np.ndarray, a: int) -> np.ndarray:
        """Coefficients of the functions of axis a through every chain's point, shape (chains, functions)."""
        rest = (lam[self.terms.owner] * self.terms.coefficients)[:, None]
        for b in range(len(self.axes)):
            if b != a:
                rest = rest * self._values(b, self._points[b])
        unique, inverse = self._unique[a]
        folded = np.zeros((len(unique), rest.shape[1]), complex)
        np.add.at(folded, inverse, rest)
        return folded.T

    def _slices(self, lam: np.ndarray, a: int, angles: np.ndarray) -> np.ndarray:
        """Exponent along axis a through every chain's point, shape (chains, len(angles))."""
        return (self._folded(lam, a) @ self.axes[a].functions(self._unique[a][0], angles)).real

    def _slice_amplitudes(self, lam: np.ndarray, a: int) -> np.ndarray:
        """Amplitudes of the harmonics of these exponents, shape (chains, degree + 1)."""
        degree = self.harmonics.degrees[a]
        series = self._folded(lam, a) @ fourier(self.axes[a], self._unique[a][0], degree)
        both = np.abs(series[:, degree:] + series[:, degree::-1].conj())  # Re z = Re conj z
        both[:, 0] /= 2
        return both

    def _move(self, a: int, angles: np.ndarray, exponents: np.ndarray, weights: np.ndarray) -> None:
        """One Gibbs step of every chain along axis a, on the given nodes."""
        probability = weights * np.exp(exponents - exponents.max(1, keepdims=True))
        cumulative = np.cumsum(probability, 1)
        draw = self._rng.random(len(cumulative)) * cumulative[:, -1]
        chosen = (cumulative < draw[:, None]).sum(1).clip(max=len(angles) - 1)
        self._points[a] = angles[chosen]

    def bandwidth(self, lam: np.ndarray, a: int, tol: float) -> int:
        """Largest Fourier index above ``tol`` (relative) of the density along axis a; moves the chains.

        The grid is fine enough for the proven bandwidth of these slices: no index folds back on a lower one.
        """
        proven = max(bandwidth(x, tol) for x in self._slice_amplitudes(lam, a))
        size = min(2 * proven + 2, FINEST)
        angles = 2 * np.pi * (np.arange(size) + 0.5) / size
        exponents = self._slices(lam, a, angles)
        degree = proven
        if size < FINEST:
            density = np.exp(exponents - exponents.max(1, keepdims=True))
            spectrum = np.abs(np.fft.rfft(density, axis=1))
            above = np.flatnonzero((spectrum > max(tol, _noise(exponents)) * spectrum[:, :1]).any(0))
            degree = int(above[-1])
        low, high = domain(self.axes[a], self.half[a])
        inside = (_wrap(self.axes[a], angles) > low) & (_wrap(self.axes[a], angles) < high)
        angles = _wrap(self.axes[a], angles)[inside]
        self._move(a, angles, exponents[:, inside], axis_density(self.axes[a], angles))
        return degree

    def _needed(self, lam: np.ndarray, tol: float) -> list[int]:
        """Nodes of a global rule per axis."""
        needed = []
        for a, axis in enumerate(self.axes):
            degree = self.bandwidth(lam, a, tol) + 2 * self._degrees[a]
            count = degree + 1 if not axis.block else degree / 2 + 1 if axis.block == 1 else degree / 4 + 1.5
            needed.append(2 * int(np.ceil(count / 2)))
        return needed

    # --- rules ------------------------------------------------------------------------------------

    def _make(self, choice: list) -> Rule:
        """A rule from one entry per axis: a node count, or (panels, nodes per panel)."""
        angles, weights, panels = [], [], []
        for axis, half, entry in zip(self.axes, self.half, choice, strict=True):
            if isinstance(entry, tuple):
                x, w = panel_rule(axis, entry[0], entry[1], half)
                panels.append(entry[0])
            else:
                x, w = global_rule(axis, entry, half)
                panels.append(None)
            angles.append(x)
            weights.append(w)
        return Rule(tuple(angles), tuple(weights), tuple(panels), tuple(choice))

    def _panel_nodes(
        self, lam: np.ndarray, a: int, panels: Panels, tol: float
    ) -> tuple[Panels, tuple[int, ...]]:
        """Node counts of the panels from the Legendre coefficients of slices; wide ones are halved."""
        axis = self.axes[a]
        x, w = gauss_legendre(_PANEL_DEGREE + 24)
        legendre = np.polynomial.legendre.legvander(x, _PANEL_DEGREE + 20) * w[:, None]
        legendre *= np.arange(_PANEL_DEGREE + 21) + 0.5
        queue, done, everything = list(panels), [], []
        slices = {p: self._slices(lam, a, _affine(p, x)) for p in queue}
        peak = np.max([e.max(1) for e in slices.values()], axis=0)[:, None]
        while queue:
            panel = queue.pop(0)
            angles = _affine(panel, x)
            exponents = slices.get(panel)
            if exponents is None:
                exponents = self._slices(lam, a, angles)
            weights = axis_density(axis, angles)
            coefficients = np.abs((np.exp(exponents - peak) * weights / weights.max()) @ legendre)
            floor = max(tol, 1e-12, _noise(exponents))
            above = np.flatnonzero((coefficients > floor * coefficients.max()).any(0))
            degree = int(above[-1]) if len(above) else 0
            if degree > _PANEL_DEGREE and len(queue) + len(done) < 24:
                middle = sum(panel) / 2
                queue += [(panel[0], middle), (middle, panel[1])]
                continue
            everything.append((angles, exponents, weights * w * (panel[1] - panel[0])))
            done.append((panel, 2 * ((degree // 2 + 5 + self._degrees[a]) // 2)))
        order = np.argsort([p[0] for p, _ in done])
        self._move(
            a,
            np.concatenate([e[0] for e in everything]),
            np.concatenate([e[1] for e in everything], 1),
            np.concatenate([e[2] for e in everything]),
        )
        return tuple(done[k][0] for k in order), tuple(done[k][1] for k in order)

    def _localise(self, lam: np.ndarray, rule: Rule, found: Cumulants, tol: float) -> Rule:
        """The next rule at ``lam`` from the marginals that another rule found at a nearby lambda."""
        choice: list = []
        panels = [self._support(a, rule, found) for a in range(len(self.axes))]
        for a in range(len(self.axes)):  # chains into the support first
            nodes = np.array(rule.angles[a])
            self._move(a, nodes, self._slices(lam, a, nodes), rule.weights[a])
        needed = self._needed(lam, tol) if not rule.local else None
        for a in range(len(self.axes)):
            count = needed[a] if needed else self._global_count(lam, a, panels[a], tol)
            low, high = domain(self.axes[a], self.half[a])
            whole = sum(q - p for p, q in panels[a]) > 0.7 * (high - low)
            if count <= 96 and (whole or count <= 40):
                choice.append(count)
            else:
                choice.append(self._panel_nodes(lam, a, panels[a], tol))
        return self._make(choice)

    def _global_count(self, lam: np.ndarray, a: int, panels: Panels, tol: float) -> int:
        axis = self.axes[a]
        kept = self._points[a].copy()
        degree = self.bandwidth(lam, a, tol) + 2 * self._degrees[a]
        inside = np.any([(self._points[a] >= p) & (self._points[a] <= q) for p, q in panels], axis=0)
        self._points[a] = np.where(inside, self._points[a], kept)
        count = degree + 1 if not axis.block else degree / 2 + 1 if axis.block == 1 else degree / 4 + 1.5
        return 2 * int(np.ceil(count / 2))

    def _support(self, a: int, rule: Rule, found: Cumulants) -> Panels:
        """Intervals of axis a that carry all but a negligible share of the mass."""
        angles, mass = rule.angles[a], found.marginals[a]
        order = np.argsort(angles)
        angles, alive = angles[order], (mass > _SUPPORT * mass.max())[order]
        low, high = domain(self.axes[a], self.half[a])
        edges = np.concatenate([[low], (angles[1:] + angles[:-1]) / 2, [high]])
        bounds = rule.panels[a]
        runs: list[list[float]] = []
        for j in np.flatnonzero(alive):
            left = edges[max(j - 1, 0)]
            right = edges[min(j + 2, len(edges) - 1)]
            if runs and left <= runs[-1][1] + 0.1 * (runs[-1][1] - runs[-1][0]):
                runs[-1][1] = right
            else:
                runs.append([left, right])
        if bounds is not None:  # never outside what was integrated
            runs = [[max(p, bounds[0][0]), min(q, bounds[-1][1])] for p, q in runs]
        return tuple((p, q) for p, q in runs)

    def _leaks(self, rule: Rule, found: Cumulants) -> bool:
        """Whether mass touches the border of a panel (other than the border of the axis)."""
        for a, panels in enumerate(rule.panels):
            if panels is None:
                continue
            low, high = domain(self.axes[a], self.half[a])
            density = found.marginals[a] / rule.weights[a]
            for p, q in merged(panels):
                inside = np.flatnonzero((rule.angles[a] > p) & (rule.angles[a] < q))
                ends = [
                    (p, inside[rule.angles[a][inside].argmin()]),
                    (q, inside[rule.angles[a][inside].argmax()]),
                ]
                for border, node in ends:
                    free = low + 1e-9 < border < high - 1e-9
                    if free and density[node] > 1e-11 * density.max():
                        return True
        return False

    def _grown(self, rule: Rule, growth: float, extra: int = 0) -> Rule:
        """The same rule with more nodes on every axis or panel."""

        def more(nodes: int) -> int:
            return 2 * int(np.ceil(growth * nodes / 2)) + extra

        return self._make(
            [more(e) if isinstance(e, int) else (e[0], tuple(map(more, e[1]))) for e in rule.key]
        )

    def _nodes(self, needed: list[int]) -> float:
        """Nodes of a global product rule, halved axes counted by half."""
        return float(np.prod([n / (1 + h) for n, h in zip(needed, self.half, strict=True)], dtype=float))

    def rule_for(self, lam: np.ndarray, needed: list[int], *, tol: float = FINE) -> Rule:
        """A rule that integrates ``exp(lambda . f)`` and its first moments to about ``tol``.

        ``needed`` are the node counts of a global rule.

        Raises
        ------
        NotConvergedError
            If the concentrated density could not be followed to this lambda.
        """
        if self._last is not None and self._last[1].local:
            warm = self._warm(lam, tol)
            if warm is not None:
                return warm
        nodes = self._nodes(needed)
        if (max(needed) <= 96 and nodes <= MAX_NODES / 4) or (
            max(needed) <= GLOBAL_LIMIT and nodes <= GLOBAL_NODES
        ):
            if tol <= FINE:  # chains that followed a fit may sit in one mode: new ones see the others
                self._points = self._scatter()
                needed = self._at_least(needed, lam, tol)
            rule = self._make(self._settled(self._at_least(needed, lam, tol)))
        else:
            rule = self._cold(lam, tol)
        self._last = (lam.copy(), rule)
        return rule

    def _at_least(self, needed: list[int], lam: np.ndarray, tol: float) -> list[int]:
        return [max(x, y) for x, y in zip(needed, self._needed(lam, tol), strict=True)]

    def _settled(self, needed: list[int]) -> list[int]:
        """Keep the last node counts when they suffice without waste: fewer tables to rebuild."""
        if self._last is None or self._last[1].local:
            return needed
        last = self._last[1].key
        return [old if n <= old <= 1.15 * n + 2 else n for n, old in zip(needed, last, strict=True)]

    def _warm(self, lam: np.ndarray, tol: float) -> Rule | None:
        assert self._last is not None
        rule = self._last[1]
        try:
            for _ in range(2):
                found = self.integrator.evaluate(lam, rule)
                if self._leaks(rule, found):
                    return None
                rule = self._localise(lam, rule, found, tol)
            if tol <= FINE:
                rule = self._agreed(lam, rule)
        except (ValueError, IndexError):
            return None
        if rule is not None:
            self._last = (lam.copy(), rule)
        return rule

    def _agreed(self, lam: np.ndarray, rule: Rule) -> Rule | None:
        """A rule that more nodes do not change: counts read off slices of another lambda may be too small."""
        value = self.integrator.evaluate(lam, rule).log_partition
        for _ in range(GROWTHS):
            finer = self._grown(rule, 1.4)
            again = self.integrator.evaluate(lam, finer).log_partition
            if abs(again - value) <= AGREEMENT * (1 + abs(value)):
                return rule
            rule, value = finer, again
        return None

    def _cold(self, lam: np.ndarray, tol: float) -> Rule:
        self._points = self._scatter()
        beta = 1.0
        while True:
            beta /= 2
            needed = self._needed(beta * lam, COARSE)
            if max(needed) <= 48 and np.prod(needed, dtype=float) < MAX_NODES / 100:
                break
        rule = self._make(needed)
        for _ in range(200):
            found = self.integrator.evaluate(beta * lam, rule)
            if self._leaks(rule, found):
                raise NotConvergedError(
                    "quadrature: mass left the panels while following lambda; use the sampler"
                )
            if beta == 1.0:
                return self._localise(lam, rule, found, tol)
            # Between beta and beta' no mode grows by more than exp((beta' - beta)(max - mean)).
            beta = min(1.0, 1.6 * beta)
            rule = self._localise(beta * lam, rule, found, COARSE if beta < 1 else tol)
        raise NotConvergedError("quadrature: lambda could not be reached")


def _noise(exponents: np.ndarray) -> float:
    """Relative rounding noise of exp(exponents): no coefficient below it means anything."""
    return 20 * np.finfo(float).eps * (1 + float(np.abs(exponents).max()))


def _wrap(axis, angles: np.ndarray) -> np.ndarray:
    return angles if not axis.block else (angles + np.pi) % (2 * np.pi) - np.pi


def _affine(panel: tuple[float, float], x: np.ndarray) -> np.ndarray:
    return (panel[0] + panel[1]) / 2 + (panel[1] - panel[0]) / 2 * x
