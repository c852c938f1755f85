"""Curves of stationary measures through temperature: continuation that goes around folds.

A curve lives in the space of (eta, T) with ``eta = T lambda = -grad L(rho)``, which stays bounded where T
goes to zero. It is followed by its arc length, so that temperature may turn: at a *fold* a branch of
stationary measures goes back below itself, and there is none beyond (a spinodal). Between its turning points
a curve is a *sheet*, on which the measure is a function of temperature.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from manifold.errors import InputError, NotConvergedError
from spectra.temperature.free_energy import FreeEnergy

FIRST_STEP, LONGEST_STEP, SHORTEST_STEP = 0.02, 0.06, 1e-5  # of arc length; the range of (eta, T) is about 1
MOST_POINTS = 2000
TURN = 0.9  # smallest cosine of the angle between two chords: a sharper one has left the curve
CONVERGED = 1e-11  # of the size of eta
STAGNANT = 1e-8  # the same, where a quadrature that breaks a symmetry leaves no exact solution
ITERATIONS = 8
DROPPED = 1e-9  # singular values below this are those of rotations, along which nothing moves
SAME = 1e-6  # relative: what rotations do not change agrees so far for one and the same measure
FLAT, DEGENERATE = 1e-5, 1e-2  # near a transition a residual at rounding level leaves its cube root in lambda
ASTRAY = 2.0  # of the distance between neighbours on a sheet: a solution farther off is of another one


class End(enum.Enum):
    """Why a sheet ends."""

    RANGE = "the range of temperatures"
    FOLD = "a fold: the curve turns back in temperature"
    BRANCH_POINT = "another branch: the curve meets its mirror image there"
    LOST = "the continuation found no further point"


@dataclass(frozen=True, eq=False)
class Sheet:
    """A piece of a curve on which the stationary measure is a function of temperature.

    Parameters
    ----------
    curve : int
        Number of its curve: sheets of one curve are joined by folds.
    temperatures : ndarray, shape (k,)
        Ascending.
    etas : ndarray, shape (k, m)
        ``T lambda`` there; the end points at a turn of the curve included.
    low, high : End
        What ends it below and above.
    scale : float
        Size of eta on the whole space, ``max |grad L|``.
    """

    curve: int
    temperatures: np.ndarray
    etas: np.ndarray
    low: End
    high: End
    scale: float

    def at(self, energy: FreeEnergy, temperature: float) -> np.ndarray | None:
        """Lambda of the measure at a temperature, shape (m,); None where the sheet has none."""
        grid = self.temperatures
        if not grid[0] <= temperature <= grid[-1]:
            return None
        j = int(np.clip(np.searchsorted(grid, temperature), 1, len(grid) - 1))
        share = (temperature - grid[j - 1]) / (grid[j] - grid[j - 1])
        if j == len(grid) - 1 and self.high in TURNS:  # eta is a root of the distance to a turn
            share = 1 - np.sqrt(1 - share)
        elif j == 1 and self.low in TURNS:
            share = np.sqrt(share)
        guess = (1 - share) * self.etas[j - 1] + share * self.etas[j]
        try:
            natural = energy.solve(temperature, guess / temperature)
        except NotConvergedError:
            return None
        apart = np.linalg.norm(self.etas[j] - self.etas[j - 1])
        near = np.linalg.norm(temperature * natural - guess) <= ASTRAY * apart + SAME * self.scale
        return natural if near else None


TURNS = {End.FOLD, End.BRANCH_POINT}


def fingerprint(energy: FreeEnergy, temperature: float, natural: np.ndarray) -> tuple[np.ndarray, float]:
    """What rotations do not change, and how far two of them may be apart for one and the same measure."""
    found = energy.whitened(temperature, natural)
    spread = np.sqrt(max(0.0, float(natural @ found.covariance @ natural)))
    values = np.append(found.values, [spread, energy.value(temperature, natural)[0]])
    flat = (np.abs(found.across) < FLAT * temperature).any()
    return values, DEGENERATE if flat else SAME * (1 + np.abs(found.values).max(initial=0.0))


def same(energy: FreeEnergy, temperature: float, first: np.ndarray, second: np.ndarray) -> bool:
    """Whether a rotation may map two measures to each other: equal second variation, spread, free energy."""
    (one, reach), (other, far) = (fingerprint(energy, temperature, natural) for natural in (first, second))
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=max(reach, far)))


class _Curve:
    """The equation in scaled coordinates ``y = (eta / size, T / range)``."""

    def __init__(self, energy: FreeEnergy, low: float, high: float):
        self.energy, self.low, self.high = energy, low, high
        slopes = [
            np.linalg.norm(energy.slope(row)) for row in energy.values[:: max(1, len(energy.values) // 64)]
        ]
        self.size = max((s for s in slopes if np.isfinite(s)), default=1.0) or 1.0
        self.width = high - low

    def pack(self, temperature: float, natural: np.ndarray) -> np.ndarray:
        return np.append(temperature * natural / self.size, temperature / self.width)

    def unpack(self, y: np.ndarray) -> tuple[float, np.ndarray]:
        """T and eta."""
        return float(y[-1] * self.width), y[:-1] * self.size

    def equation(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residual (m,) and Jacobian (m, m + 1)."""
        temperature, eta = self.unpack(y)
        mean, covariance = self.energy.moments(eta / temperature)
        inner = self.energy.curvature(mean) @ covariance / temperature
        jacobian = np.column_stack(
            [np.eye(len(eta)) + inner, -inner @ eta / temperature * self.width / self.size]
        )
        return (eta + self.energy.slope(mean)) / self.size, jacobian

    def tangent(self, y: np.ndarray, along: np.ndarray) -> np.ndarray:
        """Unit direction of the curve at a point, in the sense of another direction."""
        _, jacobian = self.equation(y)
        step = _least(np.vstack([jacobian, along]), np.append(np.zeros(len(jacobian)), 1.0))
        return step / np.linalg.norm(step)

    def correct(self, guess: np.ndarray, along: np.ndarray) -> np.ndarray | None:
        """The point of the curve in the plane through a guess across a direction; None without one."""
        y, left = guess, np.inf
        for _ in range(ITERATIONS):
            if y[-1] <= 0.2 * min(self.low / self.width, guess[-1]):
                return None
            residual, jacobian = self.equation(y)
            right = np.append(residual, along @ (y - guess))
            if not np.isfinite(right).all():
                return None
            left = np.abs(right).max()
            if left < CONVERGED:
                return y
            y = y - _least(np.vstack([jacobian, along]), right)
        return y if left < STAGNANT else None

    def follow(self, start: np.ndarray, along: np.ndarray) -> tuple[list[np.ndarray], End]:
        """Points from a start until the range of temperatures ends or the curve is lost or closed."""
        points, step, chord = [start], FIRST_STEP, along
        while len(points) < MOST_POINTS:
            guess = points[-1] + step * chord
            found = self.correct(guess, chord)
            moved = None if found is None else found - points[-1]
            length = 0.0 if moved is None else float(np.linalg.norm(moved))
            if not length or np.linalg.norm(found - guess) > 0.5 * step or moved @ chord < TURN * length:
                step /= 2
                if step < SHORTEST_STEP:
                    return points, End.LOST
                continue
            chord = moved / length
            points.append(found)
            step = min(LONGEST_STEP, 1.4 * step)
            if not self.low <= self.unpack(found)[0] <= self.high:
                return points, End.RANGE
            if len(points) > 4 and np.linalg.norm(found - start) < 0.5 * step and chord @ along > TURN:
                return points, End.LOST  # once around
        return points, End.LOST

    def turn(self, before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
        """The point between two where temperature turns."""
        length = float(np.linalg.norm(after - before))
        along, middle = (after - before) / length, {}

        def speed(s: float) -> float:
            y = self.correct(before + s * along, along)
            if y is None:
                raise NotConvergedError("curve: no point near its turn")
            middle[s] = y
            return float(self.tangent(y, along)[-1])

        try:
            if speed(0.0) * speed(length) >= 0:
                return None
            place = brentq(speed, 0.0, length, xtol=1e-10 * length)
            speed(place)
        except NotConvergedError:
            return None
        return middle[place]


def _least(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(matrix, right, rcond=DROPPED)[0]


def trace_sheets(
    energy: FreeEnergy, temperatures: Sequence[float], *, seed: int = 0,
    progress: Callable[[float, float, str], None] | None = None,
) -> list[Sheet]:  # fmt: skip
    """All sheets of stationary measures that are found between two temperatures.

    At every temperature of a grid Newton's iteration starts from several places; what is on no known curve is
    the seed of another one, which is followed both ways to the ends of the range.

    Parameters
    ----------
    energy : FreeEnergy
    temperatures : sequence of float
        Ascending, positive: the range, and where new curves are looked for.
    seed : int
        Of the first guesses.
    progress : callable, optional
        Called with (temperatures done, temperatures, message).

    Returns
    -------
    list of Sheet

    Raises
    ------
    InputError
        If the temperatures are not ascending and positive.
    """
    grid = np.asarray(temperatures, float)
    if not len(grid) or grid[0] <= 0 or (np.diff(grid) <= 0).any() or not np.isfinite(grid).all():
        raise InputError("temperatures: expected ascending positive numbers")
    margin = 1e-3 * (grid[-1] - grid[0]) if len(grid) > 1 else 1e-3 * grid[0]
    curve = _Curve(energy, max(grid[0] - margin, 0.5 * grid[0]), grid[-1] + margin)
    sheets: list[Sheet] = []
    for i, temperature in enumerate(grid):
        if progress is not None:
            progress(i, len(grid), f"branches at T = {temperature:.4g}")
        known = [natural for sheet in sheets if (natural := sheet.at(energy, temperature)) is not None]
        for start in energy.starts(temperature, seed=seed):
            try:
                natural = energy.solve(temperature, start)
            except NotConvergedError:
                continue
            if any(same(energy, temperature, natural, other) for other in known):
                continue
            number = max((sheet.curve for sheet in sheets), default=-1) + 1
            fresh = _sheets_through(curve, temperature, natural, number)
            sheets += fresh
            known += [n for sheet in fresh if (n := sheet.at(energy, temperature)) is not None] or [natural]
    return sheets


def _sheets_through(curve: _Curve, temperature: float, natural: np.ndarray, number: int) -> list[Sheet]:
    """The sheets of the curve through a measure."""
    start = curve.pack(temperature, natural)
    up = np.append(np.zeros(len(natural)), 1.0)
    along = curve.tangent(start, up)
    ahead, last = curve.follow(start, along)
    behind, first = curve.follow(start, -along)
    points = [*behind[:0:-1], *ahead]
    pieces, ends = _cut(curve, points, first, last)
    return [
        _sheet(curve, piece, number, *pair)
        for piece, pair in zip(pieces, itertools.pairwise(ends), strict=True)
        if len(piece) > 1
    ]


def _cut(
    curve: _Curve, points: list[np.ndarray], first: End, last: End
) -> tuple[list[list[np.ndarray]], list[End]]:
    """Cut a curve at its turning points; what is beyond a branch point is its mirror image and left out."""
    pieces, ends, piece = [], [first], [points[0]] if points else []
    for i in range(1, len(points)):
        turned = i + 1 < len(points) and (
            (points[i][-1] - points[i - 1][-1]) * (points[i + 1][-1] - points[i][-1]) < 0
        )
        piece.append(points[i])
        if not turned:
            continue
        top = curve.turn(points[i - 1], points[i + 1])
        if top is None:
            continue
        outside = [k for k in (i,) if (points[k] - top) @ (points[i + 1] - points[i - 1]) > 0]
        if outside:
            piece.pop()
        pieces.append([*piece, top])
        mirror = _mirrored(curve, points[i - 1], top, points[i + 1])
        ends.append(End.BRANCH_POINT if mirror else End.FOLD)
        piece = [top, *(points[k] for k in outside)]
        if mirror:
            return pieces, ends
    pieces.append(piece)
    ends.append(last)
    return pieces, ends


def _mirrored(curve: _Curve, before: np.ndarray, top: np.ndarray, after: np.ndarray) -> bool:
    """Whether the measures on both sides of a turn are the same up to a rotation."""
    sides = sorted((before, after), key=lambda y: abs(y[-1] - top[-1]))
    temperature, eta = curve.unpack(sides[0])
    far, _ = curve.unpack(sides[1])
    summit, at_top = curve.unpack(top)
    share = np.sqrt(abs(temperature - summit) / max(abs(far - summit), 1e-300))
    guess = at_top + share * (curve.unpack(sides[1])[1] - at_top)
    try:
        pair = [curve.energy.solve(temperature, one / temperature) for one in (eta, guess)]
    except NotConvergedError:
        return False
    if np.linalg.norm(temperature * pair[1] - guess) > 0.5 * np.linalg.norm(guess - eta):
        return False
    return same(curve.energy, temperature, *pair)


def _sheet(curve: _Curve, piece: list[np.ndarray], number: int, low: End, high: End) -> Sheet:
    temperatures, etas = (np.array(part) for part in zip(*map(curve.unpack, piece), strict=True))
    sheet = Sheet(number, temperatures, etas, low, high, curve.size)
    if temperatures[0] > temperatures[-1]:
        sheet = dataclasses.replace(
            sheet, temperatures=temperatures[::-1], etas=etas[::-1], low=high, high=low
        )
    keep = np.append(True, np.diff(np.maximum.accumulate(sheet.temperatures)) > 0)
    return dataclasses.replace(sheet, temperatures=sheet.temperatures[keep], etas=sheet.etas[keep])
