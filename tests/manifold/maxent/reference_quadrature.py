"""Adaptive cubature on spheres and tori, written without any code of the package.

A sphere is covered by the faces of a cube (central projection), a circle by three arcs; cells are halved
until two Gauss rules agree on each. Slow and obvious: the reference for families of up to three dimensions,
and for functions of two coordinates of a higher sphere (whose law on them is known).
"""

import itertools
from dataclasses import dataclass

import numpy as np

FINE, ROUGH = 12, 9  # nodes per axis of the two rules that must agree
KEEP = 45.0  # exponents further below the maximum carry less than 1e-19


@dataclass(frozen=True)
class Reference:
    """log Z, mean and covariance against the uniform probability measure, and their own error."""

    log_partition: float
    mean: np.ndarray
    covariance: np.ndarray
    error: float

    @property
    def mean_error(self):
        """Of the mean: in units of each function's size."""
        return self.error * np.sqrt(np.diag(self.covariance)) + 4e-16 * np.abs(self.mean)


def cube_face(dimension, axis, sign):
    """Chart ``[-1, 1]^d -> S^d`` of one face and its density against the surface measure."""

    def chart(y):
        x = np.insert(y, axis, sign, axis=1) / np.sqrt(1 + (y**2).sum(1))[:, None]
        return x, (1 + (y**2).sum(1)) ** (-(dimension + 1) / 2)

    return chart, [(-1.0, 1.0)] * dimension


def arc(number):
    """A third of a circle."""

    def chart(y):
        return np.stack([np.cos(y[:, 0]), np.sin(y[:, 0])], 1), np.ones(len(y))

    start = 0.1 + 2 * np.pi * number / 3
    return chart, [(start, start + 2 * np.pi / 3)]


def two_coordinates(dimension):
    """The first two coordinates of S^d, d >= 3, the others left out (zero): ``sin`` of two nested angles."""

    def chart(y):
        x = np.zeros((len(y), dimension + 1))
        x[:, 0] = np.sin(y[:, 0])
        x[:, 1] = np.cos(y[:, 0]) * np.sin(y[:, 1])
        return x, np.cos(y[:, 0]) ** (dimension - 1) * np.cos(y[:, 1]) ** (dimension - 2)

    return chart, [(-np.pi / 2, np.pi / 2)] * 2


def charts(spheres, *, two=False):
    """Products of charts that cover a product of spheres of the given dimensions."""
    if two:
        (dimension,) = spheres
        return [two_coordinates(dimension)]
    options = []
    for d in spheres:
        faces = [cube_face(d, a, s) for a in range(d + 1) for s in (-1.0, 1.0)]
        options.append([arc(k) for k in range(3)] if d == 1 else faces)
    return [_product(parts) for parts in itertools.product(*options)]


def _product(parts):
    sizes = [len(box) for _, box in parts]
    ends = np.cumsum(sizes)

    def chart(y):
        points, density = [], np.ones(len(y))
        for (f, _), end, size in zip(parts, ends, sizes, strict=True):
            x, w = f(y[:, end - size : end])
            points.append(x)
            density = density * w
        return np.concatenate(points, 1), density

    return chart, [b for _, box in parts for b in box]


def integrate(spheres, functions, lam, *, two=False, tol=1e-13, most=2 * 10**7):
    """`Reference` of ``exp(lambda . r)`` for ``functions(x) -> (q, m)`` on a product of spheres."""
    lam = np.asarray(lam, float)
    cells = [(n, np.array(box)[None]) for n, (_, box) in enumerate(charts(spheres, two=two))]
    maps = [chart for chart, _ in charts(spheres, two=two)]
    dimension = cells[0][1].shape[1]
    cells = [(n, _split(_split(c))) for n, c in cells]
    peak, centre, done, spent, begun = -np.inf, None, [], 0, False
    while cells:
        found = [(n, c, _survey(maps[n], c, functions, lam, centre)) for n, c in cells]
        top = max(f["top"].max() for _, _, f in found)
        if centre is None or not begun:
            best = max(found, key=lambda x: x[2]["top"].max())[2]
            centre, begun = best["where"][best["top"].argmax()], True
            continue
        peak = max(peak, top)
        total = sum(np.exp(d["shift"] - peak) @ d["fine"][:, 0] for d in done)
        total += sum(np.exp(f["shift"] - peak) @ np.abs(f["fine"][:, 0]) for _, _, f in found)
        cells = []
        for n, c, f in found:
            spread = f["top"] - f["low"]
            scale = np.exp(f["shift"] - peak)
            gap = np.abs(f["fine"][:, 0] - f["rough"][:, 0]) * scale
            noise = 1e-15 * (1 + np.abs(lam) @ np.abs(f["where"]).max(0)) * np.abs(f["fine"][:, 0]) * scale
            bad = (gap > tol * total * 1e-3 + noise) | (spread > 12.0)
            bad &= f["top"] + 0.2 * spread > peak - KEEP
            keep = {k: v[~bad] for k, v in f.items() if k not in ("where", "steep")}
            done.append(keep)
            spent += len(c) * FINE**dimension
            if bad.any():
                cells.append((n, _split(c[bad], f["steep"][bad])))
        if spent > most:
            raise ValueError(f"reference: more than {most} nodes")
    scale = [np.exp(d["shift"] - peak) for d in done]
    z = sum(s @ d["fine"][:, 0] for s, d in zip(scale, done, strict=True))
    error = sum(s @ np.abs(d["fine"][:, 0] - d["rough"][:, 0]) for s, d in zip(scale, done, strict=True)) / z
    m = len(lam)
    first = sum(s @ d["fine"][:, 1 : m + 1] for s, d in zip(scale, done, strict=True)) / z
    second = sum(s @ d["fine"][:, m + 1 :] for s, d in zip(scale, done, strict=True)).reshape(m, m) / z
    volume = integrate_volume(maps, spheres, two)
    log_z = float(lam @ centre + peak + np.log(z) - np.log(volume))
    size = 1 + float(np.abs(lam) @ (np.abs(centre) + 1e-3))
    return Reference(log_z, centre + first, second - np.outer(first, first), error + 4e-16 * size)


def integrate_volume(maps, spheres, two):
    """Total mass of the charts' densities, by a plain rule of many nodes."""
    boxes = [np.array(box) for _, box in charts(spheres, two=two)]
    x, w = np.polynomial.legendre.leggauss(40 if len(boxes[0]) < 3 else 30)
    total = 0.0
    for chart, box in zip(maps, boxes, strict=True):
        y, weights = _nodes(box[None], x, w)
        total += weights.ravel() @ chart(y.reshape(-1, len(box)))[1]
    return total


def _split(cells, steep=None):
    """Cells cut in two along every axis, or along those where the exponent varies most."""
    cut = np.ones(cells.shape[:2], bool) if steep is None else steep > 0.3 * steep.max(1, keepdims=True)
    for a in range(cells.shape[1]):
        low, high = cells.copy(), cells[cut[:, a]].copy()
        low[cut[:, a], a, 1] = high[:, a, 0] = high[:, a].mean(1)
        cells, cut = np.concatenate([low, high]), np.concatenate([cut, cut[cut[:, a]]])
    return cells


def _nodes(cells, x, w):
    axes = (cells.mean(2)[:, :, None] + np.diff(cells, axis=2) / 2 * x).transpose(1, 0, 2)
    weights = (np.diff(cells, axis=2) / 2 * w).transpose(1, 0, 2)
    count, n, p = len(cells), len(axes), len(x)
    total, points = np.ones((count, 1)), np.zeros((count, 1, 0))
    for a in range(n):
        points = np.concatenate(
            [np.repeat(points, p, axis=1), np.tile(axes[a], (1, points.shape[1]))[:, :, None]], axis=2
        )
        total = (total[:, :, None] * weights[a][:, None, :]).reshape(count, -1)
    return points, total


def _survey(chart, cells, functions, lam, centre):
    """Masses and moments of cells by two rules, relative to ``exp(shift)``, functions about ``centre``."""
    result = {}
    for key, p in (("fine", FINE), ("rough", ROUGH)):
        points, weights = _nodes(cells, *np.polynomial.legendre.leggauss(p))
        x, density = chart(points.reshape(-1, points.shape[2]))
        r = functions(x)
        values = (r if centre is None else r - centre).reshape(*weights.shape, -1)
        exponents = values @ lam
        if key == "fine":
            result |= {"top": exponents.max(1), "low": exponents.min(1), "shift": exponents.max(1)}
            grid = exponents.reshape(len(cells), *(p,) * cells.shape[1])
            result["steep"] = np.stack(
                [np.ptp(grid, axis=a + 1).reshape(len(cells), -1).max(1) for a in range(cells.shape[1])], 1
            )
            result["where"] = r.reshape(values.shape)[np.arange(len(cells)), exponents.argmax(1)]
        mass = (
            weights
            * density.reshape(weights.shape)
            * np.exp(np.minimum(exponents - result["shift"][:, None], 300))
        )
        outer = values[..., :, None] * values[..., None, :]
        rows = [mass.sum(1)[:, None], np.einsum("cn,cnm->cm", mass, values)]
        if key == "fine":
            rows.append(np.einsum("cn,cnij->cij", mass, outer).reshape(len(cells), -1))
        result[key] = np.concatenate(rows, 1)
    return result
