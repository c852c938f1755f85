"""Choose quadrature rules for ``exp(lambda . f)``: proven where they fit, checked by a second rule elsewhere.

A global rule whose node counts are proven enough (`harmonics`) is taken where it is small, boxes with proven
errors (`boxes`) where the density is concentrated and depends on few axes. What is left, many axes at a large
lambda, gets a rule from slices (`slices`), which counts only if a second one with other nodes agrees.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from manifold.errors import NotConvergedError, TooLargeError
from manifold.integration.boxes import Boxes, BoxIntegrator
from manifold.integration.polar_terms import Terms
from manifold.integration.products import MAX_NODES, Cumulants, Errors, Rule
from manifold.integration.slices import AGREEMENT, COARSE, FINE, GLOBAL_LIMIT, GROWTHS, SliceRules

BOX_AXES, BOX_MODES = 3, 2e4  # boxes list all products of harmonics: beyond, their bounds cost too much
PROVEN = 1e-2  # of the wanted tolerance: what a proven rule may err on each axis
PROVEN_AXIS, PROVEN_NODES = 128, 3e5  # beyond, boxes are cheaper and see small variances without cancellation
DEEP_NODES = 5e6  # of a proven rule on more axes than boxes take
APART = 1e-9  # two rules that differ by more are refused
NODE = 3 * float(np.finfo(np.longdouble).eps)  # times nodes squared: of Gauss weights next to the ends
ROUNDING = 16 * np.finfo(float).eps  # sums and products of one exponent, measured on closed forms
SECOND = (1.1, 2)  # factor and nodes more on each axis: no common node, about twice the work on five axes


class AdaptiveIntegrator(SliceRules):
    """An `Integrator` that picks its own rule for every lambda.

    Parameters
    ----------
    terms : Terms
        The functions, on the polar axes of their space.
    seed : int
        Of the Gibbs chains that choose slices.
    """

    def __init__(self, terms: Terms, *, seed: int = 0):
        super().__init__(terms, seed=seed)
        modes = np.prod([2.0 * d + 1 for d in self._degrees])
        few = 0 < len(self.axes) <= BOX_AXES and modes <= BOX_MODES
        self.boxes = BoxIntegrator(terms, self.half) if few else None

    def cumulants(
        self, lam: np.ndarray, *, order: int = 1, tol: float = FINE, growth: float = 1.0, extra: int = 0,
        verify: bool = True,
    ) -> tuple[Cumulants, Rule | Boxes]:  # fmt: skip
        """Log-partition and moments with their errors on a rule chosen for ``lam``, and that rule.

        ``growth`` times and ``extra`` more nodes per axis give a second rule that shares no node with the
        first. ``verify`` takes such a second rule where the first is not proven (at `FINE` only); without
        it the error of such a rule is infinite.

        Raises
        ------
        TooLargeError
            If the density needs too many nodes.
        NotConvergedError
            If two rules disagree.
        """
        counts = [
            self.harmonics.nodes(lam, a, PROVEN * tol, extra=2 * d) for a, d in enumerate(self._degrees)
        ]
        nodes = self._nodes(counts)
        quadrature = PROVEN * tol * len(counts) + NODE * max(counts) ** 2
        if max(counts) <= PROVEN_AXIS and nodes <= PROVEN_NODES:
            return self._proven(lam, counts, order, growth, extra, quadrature)
        if self.boxes is not None:
            try:
                found, boxes = self.boxes.cumulants(lam, order=order, tol=tol, growth=growth, extra=extra)
                quadrature = float(np.exp(min(boxes.log_error - found.log_partition, 0.0)))
                return self._with_errors(lam, found, quadrature), boxes
            except TooLargeError:
                if nodes > MAX_NODES / 4:
                    raise
                return self._proven(lam, counts, order, growth, extra, quadrature)
        if max(counts) <= GLOBAL_LIMIT and nodes <= DEEP_NODES:
            return self._proven(lam, counts, order, growth, extra, quadrature)
        rule = self.rule_for(lam, self._needed(lam, tol), tol=tol)
        if extra or growth > 1:
            rule = self._grown(rule, growth, extra)
        if not verify or tol > FINE:
            return self._with_errors(lam, self.integrator.evaluate(lam, rule, order=order), np.inf), rule
        return self._verified(lam, rule, order)

    def _proven(self, lam, counts, order, growth, extra, quadrature) -> tuple[Cumulants, Rule]:
        rule = self._make(self._settled(counts))
        self._last = (lam.copy(), rule)
        if extra or growth > 1:
            rule = self._grown(rule, growth, extra)
        return self._with_errors(lam, self.integrator.evaluate(lam, rule, order=order), quadrature), rule

    def _verified(self, lam: np.ndarray, rule: Rule, order: int) -> tuple[Cumulants, Rule]:
        """More nodes until they change nothing; the error is what the last change was.

        Raises
        ------
        NotConvergedError
            If they keep changing the log-partition.
        """
        found = self.integrator.evaluate(lam, rule, order=order)
        for _ in range(GROWTHS):
            rule = self._grown(rule, *SECOND)
            before, found = found, self.integrator.evaluate(lam, rule, order=order)
            change = abs(found.log_partition - before.log_partition)
            moved = float(np.max(np.abs(found.mean - before.mean) / self.harmonics.ranges, initial=0.0))
            if max(change, moved) <= AGREEMENT * (1 + abs(found.log_partition)):
                break
        if not max(change, moved) <= APART * (1 + abs(found.log_partition)):
            raise NotConvergedError(
                f"quadrature: two rules of {' x '.join(map(str, rule.sizes))} nodes and fewer differ by "
                f"{change:.1e} in log Z; use the sampler (method='sampling')"
            )
        return self._with_errors(lam, found, max(change, moved)), rule

    def _with_errors(self, lam: np.ndarray, found: Cumulants, quadrature: float) -> Cumulants:
        """Stated errors: of the rule relative to Z and to the range of each f, and of rounding.

        A relative error d of the density moves ``E f`` by at most ``2 d`` standard deviations.
        """
        ranges = self.harmonics.ranges
        rounding = ROUNDING * (1 + float(np.abs(lam) @ ranges))
        absolute = (2 * quadrature + ROUNDING) * ranges
        errors = Errors(quadrature + rounding, absolute, np.full(len(ranges), 2 * rounding), ranges)
        return replace(found, errors=errors)


__all__ = ["COARSE", "FINE", "AdaptiveIntegrator"]
