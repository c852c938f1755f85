"""Integrals of ``exp(lambda . f)`` over product rules whose integrands factorise over outer and inner axes.

Nothing of size nodes x functions is ever stored: with the axes split into an outer and an inner group each
function is a bilinear form in a few outer functions U and inner functions V, so exponents and moments are
plain matrix products over chunks of nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import csr_matrix

from manifold.errors import TooLargeError
from manifold.integration.polar_terms import Axis, Terms
from manifold.integration.rules import Panels

CHUNK = 2**17
MAX_NODES = 2 * 10**8


@dataclass(frozen=True, eq=False)
class Rule:
    """Nodes and positive weights per axis; ``panels`` is None for an axis that is covered wholly."""

    angles: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    panels: tuple[Panels | None, ...]
    key: tuple

    @property
    def sizes(self) -> tuple[int, ...]:
        """Nodes per axis."""
        return tuple(len(a) for a in self.angles)

    @property
    def count(self) -> int:
        """Nodes of the product rule."""
        return int(np.prod(self.sizes, dtype=float))

    @property
    def local(self) -> bool:
        """Whether some axis is covered by panels only."""
        return any(p is not None for p in self.panels)


@dataclass(frozen=True, eq=False)
class Errors:
    """Bounds of the errors of an integral over a density.

    Attributes
    ----------
    log_partition : float
        Of ``log Z``: the relative error of the rule and of rounding.
    absolute : ndarray, shape (m,)
        Of ``E f``, whatever the density is.
    relative : ndarray, shape (m,)
        Of ``E f`` in standard deviations of f: a density wrong by a share d moves it by 2 d at most.
    ranges : ndarray, shape (m,)
        Bounds of ``|f|``.
    """

    log_partition: float
    absolute: np.ndarray
    relative: np.ndarray
    ranges: np.ndarray

    def mean(self, variances: np.ndarray | None = None) -> np.ndarray:
        """Bounds of the errors of ``E f``, shape (m,); sharper if the variances are known."""
        deviation = self.ranges if variances is None else np.sqrt(np.clip(variances, 0, None))
        return self.absolute + self.relative * np.minimum(deviation, self.ranges)


@dataclass(frozen=True, eq=False)
class Cumulants:
    """``log integral exp(lambda . f) d(uniform)`` and its first derivatives in lambda.

    Attributes
    ----------
    log_partition : float
    mean : ndarray, shape (m,)
    covariance : ndarray, shape (m, m), or None
        Fisher information (only when asked for).
    marginals : tuple of ndarray
        Probability of each node of each axis.
    errors : Errors or None
        What the rule and rounding may have changed (None where nobody has stated it).
    """

    log_partition: float
    mean: np.ndarray
    covariance: np.ndarray | None
    marginals: tuple[np.ndarray, ...]
    errors: Errors | None = None

    @property
    def log_partition_error(self) -> float:
        """Bound of the error of ``log_partition``."""
        return math.nan if self.errors is None else self.errors.log_partition

    @property
    def mean_error(self) -> np.ndarray:
        """Bounds of the errors of ``mean``, shape (m,)."""
        if self.errors is None:
            return np.full(self.mean.shape, math.nan)
        return self.errors.mean(None if self.covariance is None else np.diag(self.covariance))


class Bilinear:
    """``f_i(outer, inner) = sum_ab S[i, ab] U_a(outer) V_b(inner)`` for a split of the axes.

    Parameters
    ----------
    terms : Terms
    inner : tuple of int
        Numbers of the inner axes.
    """

    def __init__(self, terms: Terms, inner: tuple[int, ...]):
        self.axes = terms.axes
        self.inner = inner
        self.outer = tuple(a for a in range(len(terms.axes)) if a not in inner)
        self.outer_keys, u, u_sign, u_sine = self._side(terms, self.outer)
        self.inner_keys, v, v_sign, v_sine = self._side(terms, self.inner)
        self.shape = (self._width(self.outer, self.outer_keys), self._width(self.inner, self.inner_keys))
        c, i = terms.coefficients, terms.owner
        both = np.ones(len(c), bool)
        has_u, has_v = u_sine >= 0, v_sine >= 0
        # Re(c (Uc + i su Us)(Vc + i sv Vs)), written out in the real functions Uc, Us, Vc, Vs.
        parts = [
            (both, u, v, c.real),
            (has_u & has_v, u_sine, v_sine, -c.real * u_sign * v_sign),
            (has_v, u, v_sine, -c.imag * v_sign),
            (has_u, u_sine, v, -c.imag * u_sign),
        ]
        rows = np.concatenate([i[k] for k, _, _, _ in parts])
        columns = np.concatenate([(a * self.shape[1] + b)[k] for k, a, b, _ in parts])
        values = np.concatenate([x[k] for k, _, _, x in parts])
        self.matrix = csr_matrix((values, (rows, columns)), (terms.count, self.shape[0] * self.shape[1]))
        self.matrix.eliminate_zeros()
        self.constant = self._constant_columns()

    def _columns(self, axes: tuple[int, ...]) -> list[int]:
        return [self.axes[a].column + j for a in axes for j in range(self.axes[a].width)]

    def _side(self, terms: Terms, axes: tuple[int, ...]):
        keys = terms.keys[:, self._columns(axes)].copy()
        phase = np.array([self.axes[a].block == 0 for a in axes for _ in range(self.axes[a].width)], bool)
        sign = np.ones(len(keys), int)
        oscillating = np.zeros(len(keys), bool)
        if phase.any():
            part = keys[:, phase]
            sign = np.sign(np.take_along_axis(part, (part != 0).argmax(1)[:, None], 1)[:, 0])
            oscillating = sign != 0
            sign[sign == 0] = 1
            keys[:, phase] *= sign[:, None]
        unique, inverse = np.unique(keys, axis=0, return_inverse=True)
        inverse = inverse.ravel()
        waves = np.zeros(len(unique), bool)
        waves[inverse] = oscillating
        sine = np.where(waves, len(unique) + np.cumsum(waves) - 1, -1)
        return unique, inverse, sign, sine[inverse]

    def _waves(self, axes: tuple[int, ...], keys: np.ndarray) -> np.ndarray:
        phase = [self.axes[a].block == 0 for a in axes for _ in range(self.axes[a].width)]
        return keys[:, np.array(phase, bool)].any(1) if axes else np.zeros(len(keys), bool)

    def _width(self, axes: tuple[int, ...], keys: np.ndarray) -> int:
        return len(keys) + int(self._waves(axes, keys).sum())

    def _constant_columns(self) -> tuple[int, int]:
        """Position of the constant function 1 on both sides (-1 when it is absent)."""
        found = []
        for keys in (self.outer_keys, self.inner_keys):
            hit = np.flatnonzero(~keys.any(1))
            found.append(int(hit[0]) if len(hit) else -1)
        return found[0], found[1]

    def table(self, side: str, angles: tuple[np.ndarray, ...]) -> np.ndarray:
        """Outer or inner real functions at the product of the nodes, shape (functions, nodes)."""
        axes, keys = (self.outer, self.outer_keys) if side == "outer" else (self.inner, self.inner_keys)
        values, column = np.ones((len(keys), 1)), 0
        for a in axes:
            axis = self.axes[a]
            unique, inverse = np.unique(keys[:, column : column + axis.width], axis=0, return_inverse=True)
            factor = axis.functions(unique, angles[a])[inverse.ravel()]
            values = (values[:, :, None] * factor[:, None, :]).reshape(len(keys), -1)
            column += axis.width
        waves = self._waves(axes, keys)
        return (
            np.vstack([values.real, values.imag[waves]]) if waves.any() else np.ascontiguousarray(values.real)
        )


class Integrator:
    """Evaluate log-partition, mean and covariance of functions given as `Terms`, on any `Rule`.

    Parameters
    ----------
    terms : Terms
    """

    def __init__(self, terms: Terms):
        self.terms = terms
        self.axes: tuple[Axis, ...] = terms.axes
        self.first = terms.with_constant()
        self.second = self.first.products()
        self._splits: dict = {}
        self._costs: dict = {}
        self._tables: dict = {}

    def _split(self, order: int, inner: tuple[int, ...]) -> Bilinear:
        if (order, inner) not in self._splits:
            self._splits[order, inner] = Bilinear(self.second if order == 2 else self.first, inner)
        return self._splits[order, inner]

    def _choose_inner(self, sizes: tuple[int, ...], order: int) -> tuple[int, ...]:
        """The split with the fewest multiplications; few inner nodes keep the tables small."""
        best, chosen = np.inf, None
        numbers = range(len(self.axes))
        candidates = [c for r in range(1, len(self.axes) + 1) for c in combinations(numbers, r)]
        for inner in candidates:
            n_inner = np.prod([sizes[a] for a in inner], dtype=float)
            n_outer = np.prod(sizes, dtype=float) / n_inner
            if len(candidates) > 1 and n_inner > 4096 and len(inner) > 1:
                continue
            if inner not in self._costs:
                split = Bilinear(self.first, inner)
                growth = self.second.keys.shape[0] / max(len(self.first.keys), 1)
                self._costs[inner] = (*split.shape, growth)
            nu, nv, growth = self._costs[inner]
            if order == 2:
                nu, nv = nu * growth**0.5, nv * growth**0.5
            cost = n_outer * n_inner * (nv + 12) + n_outer * nu * nv + 6 * (n_inner * nv + n_outer * nu)
            if cost < best:
                best, chosen = cost, inner
        return chosen if chosen is not None else (int(np.argmin(sizes)),)

    def _table(self, split: Bilinear, rule: Rule, order: int) -> tuple[np.ndarray, np.ndarray]:
        key = (rule.key, order, split.inner)
        if key not in self._tables:
            if len(self._tables) > 3:
                self._tables.clear()
            self._tables[key] = split.table("outer", rule.angles), split.table("inner", rule.angles)
        return self._tables[key]

    def evaluate(self, lam: np.ndarray, rule: Rule, *, order: int = 1) -> Cumulants:
        """Log-partition, mean and (order 2) covariance on a rule.

        Parameters
        ----------
        lam : ndarray, shape (m,)
        rule : Rule
        order : {1, 2}

        Returns
        -------
        Cumulants

        Raises
        ------
        TooLargeError
            If the rule has more than `MAX_NODES` nodes.
        """
        if rule.count > MAX_NODES:
            raise TooLargeError(
                f"quadrature needs {rule.count:.2g} nodes ({' x '.join(map(str, rule.sizes))}), more than "
                f"{MAX_NODES:.0e}: use the sampler (method='sampling'), fewer monomials or smaller moments"
            )
        inner = self._choose_inner(rule.sizes, order)
        split = self._split(1, inner)
        u, v = self._table(split, rule, 1)
        outer_weights = _outer_product([rule.weights[a] for a in split.outer])
        inner_weights = _outer_product([rule.weights[a] for a in split.inner])
        coupling = np.asarray(split.matrix[1:].T @ lam).reshape(split.shape)
        work = self._centred if rule.local else self._factored
        return work(lam, rule, order, split, coupling, u, v, outer_weights, inner_weights)

    def _factored(self, lam, rule, order, split, coupling, u, v, outer_weights, inner_weights) -> Cumulants:
        moments = self._split(order, split.inner)
        u2, v2 = (u, v) if order == 1 else self._table(moments, rule, 2)
        slope = u.T @ coupling
        weighted = v2.T.copy() * inner_weights[:, None]
        total = np.zeros(moments.shape)
        outer_mass, inner_mass = np.zeros(len(outer_weights)), np.zeros(len(inner_weights))
        shift = -np.inf
        rows = max(1, CHUNK // len(inner_weights))
        for start in range(0, len(outer_weights), rows):
            part = slice(start, start + rows)
            density = slope[part] @ v
            peak = density.max()
            if peak > shift:
                scale = np.exp(shift - peak)
                total *= scale
                outer_mass *= scale
                inner_mass *= scale
                shift = peak
            density -= shift
            np.exp(density, out=density)
            inner_sums = density @ weighted
            total += (u2[:, part] * outer_weights[part]) @ inner_sums
            inner_mass += outer_weights[part] @ density
            outer_mass[part] = outer_weights[part] * (density @ inner_weights)
        values = np.asarray(moments.matrix @ total.ravel())
        z = values[0]
        values = values / z
        m = len(lam)
        covariance = None
        if order == 2:
            square = np.zeros((m + 1, m + 1))
            square[np.triu_indices(m + 1)] = values
            square = np.triu(square) + np.triu(square, 1).T
            covariance = square[1:, 1:] - np.outer(square[0, 1:], square[0, 1:])
        mean = values[1 : m + 1]
        return Cumulants(
            float(shift + np.log(z)), mean, covariance,
            self._marginals(split, rule, outer_mass, inner_mass * inner_weights),
        )  # fmt: skip

    def _centred(self, lam, rule, order, split, coupling, u, v, outer_weights, inner_weights) -> Cumulants:
        """As `_factored`, with the functions centred node by node: no cancellation near the boundary."""
        m = len(lam)
        slope = u.T @ coupling
        rows = max(1, CHUNK // len(inner_weights))
        parts = [slice(s, s + rows) for s in range(0, len(outer_weights), rows)]
        tops = [(block.max(), part.start + block.argmax() // block.shape[1], block.argmax() % block.shape[1])
                for part in parts for block in [slope[part] @ v]]  # fmt: skip
        _, top_outer, top_inner = max(tops)
        couplings = [np.asarray(split.matrix[i + 1].todense()).reshape(split.shape) for i in range(m)]
        centre = np.array([u[:, top_outer] @ c @ v[:, top_inner] for c in couplings])
        used = [(np.flatnonzero(c.any(1)), np.flatnonzero(c.any(0))) for c in couplings]
        mass, first, second = 0.0, np.zeros(m), np.zeros((m, m))
        outer_mass, inner_mass = np.zeros(len(outer_weights)), np.zeros(len(inner_weights))
        for part in parts:
            functions = np.empty((m, len(outer_weights[part]), len(inner_weights)))
            for i, (a, b) in enumerate(used):
                functions[i] = u[a, part].T @ couplings[i][np.ix_(a, b)] @ v[b]
                functions[i] -= centre[i]
            functions = functions.reshape(m, -1)
            density = np.exp(lam @ functions)
            density *= np.outer(outer_weights[part], inner_weights).ravel()
            weighted = functions * density
            mass += density.sum()
            first += weighted.sum(1)
            if order == 2:
                second += weighted @ functions.T
            density = density.reshape(-1, len(inner_weights))
            inner_mass += density.sum(0)
            outer_mass[part] = density.sum(1)
        shift = first / mass
        covariance = second / mass - np.outer(shift, shift) if order == 2 else None
        return Cumulants(
            float(lam @ centre + np.log(mass)), centre + shift, covariance,
            self._marginals(split, rule, outer_mass, inner_mass),
        )  # fmt: skip

    def _marginals(self, split: Bilinear, rule: Rule, outer_mass: np.ndarray, inner_mass: np.ndarray):
        marginals: list = [None] * len(self.axes)
        for axes, mass in ((split.outer, outer_mass), (split.inner, inner_mass)):
            grid = (mass / mass.sum()).reshape([rule.sizes[a] for a in axes])
            for position, a in enumerate(axes):
                marginals[a] = grid.sum(tuple(k for k in range(len(axes)) if k != position))
        return tuple(marginals)


def _outer_product(vectors: list[np.ndarray]) -> np.ndarray:
    result = np.ones(1)
    for vector in vectors:
        result = np.outer(result, vector).ravel()
    return result
