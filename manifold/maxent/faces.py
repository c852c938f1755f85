"""Exposed faces of the moment body: where maximum-entropy measures live when the moments are on the boundary.

On the boundary some direction u has ``u . rho = h(u)``, so every measure with these moments sits on
``{z : u . r(z) = h(u)}``. Two kinds of faces are parametrised: finitely many points, and tori of phases
(all moduli fixed, the phases free up to the ones that u sees), which is what monomials in complex pairs give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax

from manifold.errors import InfeasibleMomentsError, NotConvergedError, TooLargeError
from manifold.integration.polar_terms import expand
from manifold.maxent.family import MaxEntFamily
from manifold.maxent.fitting import TOUCHING, MaxEntFit, fit
from manifold.maxent.moment_body import Certificate, ascend
from manifold.monomials import Monomials
from manifold.spaces.embedded import Space, Torus
from manifold.spaces.monomial_expressions import complex_pairs

APART = 1e-4  # points and moduli that ascents leave further apart are two
SEEN = 1e-6  # of the size of a monomial on the face: less is what ascents have left
TURNED = 1e-3  # of a phase that should stand still along a torus
NOTHING = 1e-9  # of a direction or coefficient: rounding


@dataclass(frozen=True, eq=False)
class Face:
    """The set where ``u . r`` attains its maximum.

    Attributes
    ----------
    direction : ndarray, shape (m,)
        u, a unit vector.
    support : float
        ``h(u)``.
    dimension : int
        Of the face as a set: 0 for points, the number of free phases for a torus.
    points : ndarray, shape (q, ambient)
        Some maximisers (all of them when the dimension is 0).
    free : ndarray of int
        Monomials that still vary on the face.
    constants : ndarray, shape (m,)
        Values of the others on the face (NaN for free ones).
    monomials : Monomials or None
        The free monomials as functions on ``T<dimension>`` (None for points).
    origin : ndarray, shape (K, 2)
        Moduli and phases of the complex pairs at the origin of the torus.
    chart : ndarray of int, shape (dimension, K)
        Coordinates of the torus: ``chart @ (theta - origin)``.
    """

    direction: np.ndarray
    support: float
    dimension: int
    points: np.ndarray
    free: np.ndarray
    constants: np.ndarray
    monomials: Monomials | None = None
    origin: np.ndarray | None = None
    chart: np.ndarray | None = None

    @property
    def kind(self) -> str:
        """``torus`` or ``points``."""
        return "points" if self.monomials is None and self.dimension == 0 else "torus"


@dataclass(frozen=True, eq=False)
class FaceFit:
    """Maximum entropy on an exposed face.

    Attributes
    ----------
    face : Face
    moments : ndarray, shape (m,)
    fit : MaxEntFit or None
        The fit on the torus, against its uniform measure; None for points or when nothing varies.
    weights : ndarray or None
        Probabilities of the points of a finite face.
    entropy : float
        Against the uniform measure of the face, nats. Against the uniform measure of the whole space it
        is minus infinity: the measure is singular.
    moment_error : float
        Largest deviation of a moment, the constant ones included, in uniform standard deviations.
    """

    face: Face
    moments: np.ndarray
    fit: MaxEntFit | None
    weights: np.ndarray | None
    entropy: float
    moment_error: float


def exposed_face(space: Space, monomials: Monomials, direction: np.ndarray, *, seed: int = 0) -> Face:
    """The exposed face in a direction, from the maximisers that many ascents find.

    Parameters
    ----------
    space : Space
    monomials : Monomials
    direction : array_like, shape (m,)
    seed : int

    Returns
    -------
    Face

    Raises
    ------
    NotConvergedError
        If the maximisers are neither a few points nor one torus of phases.
    """
    direction = np.asarray(direction, float) / np.linalg.norm(direction)
    begin = space.uniform(384, generator=torch.Generator().manual_seed(seed))
    ends, values = ascend(space, monomials, direction, begin, steps=600)
    support = float(values.max())
    points = ends[values > support - 1e-11 * abs(support) - 1e-14].numpy()
    table = monomials.values(torch.as_tensor(points)).numpy()
    clusters = _distinct(points, APART)
    if len(clusters) <= 64 and len(points) >= 3 * len(clusters):
        points, table = points[clusters], table[clusters]
        constants = np.where(np.ptp(table, axis=0) < SEEN, table[0], np.nan)
        return Face(direction, support, 0, points, np.flatnonzero(np.isnan(constants)), constants)
    return _torus(space, monomials, direction, support, points)


def _distinct(points: np.ndarray, radius: float, *, most: int = 65) -> list[int]:
    """Numbers of points further than ``radius`` from each other; stops at ``most``."""
    chosen: list[int] = []
    left = np.arange(len(points))
    while len(left) and len(chosen) < most:
        chosen.append(int(left[0]))
        left = left[np.linalg.norm(points[left] - points[left[0]], axis=1) > radius]
    return chosen


def _torus(
    space: Space, monomials: Monomials, direction: np.ndarray, support: float, points: np.ndarray
) -> Face:
    failure = NotConvergedError(
        "the moments lie on a face of the moment body that is neither a few points nor a torus of phases: "
        "it cannot be parametrised here"
    )
    pairs = complex_pairs(space)
    paired = {i for pair in pairs for i in pair}
    alone = [i for i in range(space.ambient) if i not in paired]
    z = points[:, [p[0] for p in pairs]] + 1j * points[:, [p[1] for p in pairs]]
    moduli = np.abs(z)
    if (np.ptp(np.column_stack([moduli, points[:, alone]]), axis=0) > APART).any():
        raise failure
    modulus = moduli.mean(0)
    powers, coefficients, owner = expand(monomials, pairs, alone)
    count = len(pairs)
    frequencies = powers[:, :count] - powers[:, count : 2 * count]
    size = np.prod(modulus ** (powers[:, :count] + powers[:, count : 2 * count]), axis=1)
    size = size * np.prod(points[0, alone] ** powers[:, 2 * count :], axis=1)
    active = frequencies[(size * np.abs(coefficients) > SEEN) & (np.abs(direction[owner]) > NOTHING)]
    there = modulus > APART
    theta = np.angle(z) * there
    turned = np.exp(1j * theta @ active.T)
    if (np.abs(turned - turned[0]) > TURNED).any():
        raise failure
    basis, inverse = integer_kernel(active, there)
    values = coefficients * size * np.exp(1j * frequencies @ theta[0])
    reduced = frequencies @ basis
    free, rows, constants = [], [], np.full(len(monomials), np.nan)
    for i in range(len(monomials)):
        terms: dict[tuple, complex] = {}
        for t in np.flatnonzero(owner == i):
            key, value = tuple(int(m) for m in reduced[t]), values[t]
            mirrored = tuple(-m for m in key)
            if key < mirrored:  # Re z = Re conj z
                key, value = mirrored, np.conj(value)
            terms[key] = terms.get(key, 0) + value
        vary = {k: v for k, v in terms.items() if any(k) and abs(v) > NOTHING}
        if not vary:
            constants[i] = sum(v.real for v in terms.values())
        elif len(vary) > 1 or abs(terms.get((0,) * basis.shape[1], 0)) > NOTHING:
            raise failure
        else:
            free.append(i)
            rows.append(next(iter(vary.items())))
    restricted = _on_torus(rows, basis.shape[1], [monomials.names[i] for i in free]) if free else None
    return Face(
        direction, support, basis.shape[1], points[:64], np.array(free, int), constants, restricted,
        np.stack([modulus, theta[0]], 1), inverse,
    )  # fmt: skip


def _on_torus(rows: list, dimension: int, names: list[str]) -> Monomials:
    """``Re(v e^{i m . phi})`` as monomials of scaled coordinates of ``T<dimension>``."""
    coordinates, owners = [], []
    for owner, (frequencies, value) in enumerate(rows):
        for axis, power in enumerate(frequencies):
            for _ in range(abs(power)):
                row = np.zeros(2 * dimension, complex)
                row[2 * axis : 2 * axis + 2] = 1, 1j * np.sign(power)
                coordinates.append(row if owner in owners else value * row)  # the first factor carries v
                owners.append(owner)
    table = np.array(owners) == np.arange(len(rows))[:, None]
    return Monomials(table.astype(int), np.array(coordinates), names=tuple(names))


def integer_kernel(vectors: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integer vectors on the ``used`` entries that are orthogonal to the given ones.

    Returns
    -------
    basis : ndarray of int, shape (K, r)
    inverse : ndarray of int, shape (r, K)
        ``inverse @ basis`` is the identity: coordinates of a torus point from its phases.
    """
    count = vectors.shape[1]
    transform = np.eye(count, dtype=np.int64)[:, used]
    reduced = np.array(vectors, dtype=np.int64)[:, used]
    rank = 0
    for row in range(len(reduced)):
        while left := np.count_nonzero(reduced[row, rank:]):
            tail = np.abs(reduced[row, rank:]).astype(float)
            tail[tail == 0] = np.inf
            pivot = rank + int(tail.argmin())
            for matrix in (reduced, transform):
                matrix[:, [rank, pivot]] = matrix[:, [pivot, rank]]
            if left == 1:
                rank += 1
                break
            factors = reduced[row, rank + 1 :] // reduced[row, rank]
            for matrix in (reduced, transform):
                matrix[:, rank + 1 :] -= np.outer(matrix[:, rank], factors)
    inverse = np.zeros((reduced.shape[1], count), dtype=np.int64)
    inverse[:, used] = np.rint(np.linalg.inv(transform[used])).astype(np.int64)
    return transform[:, rank:], inverse[rank:]


def fit_on_face(family: MaxEntFamily, moments: np.ndarray, face: Face) -> FaceFit:
    """Fit the moments that still vary on a face; the others are constants there.

    Parameters
    ----------
    family : MaxEntFamily
    moments : array_like, shape (m,)
    face : Face

    Returns
    -------
    FaceFit

    Raises
    ------
    NotConvergedError, InfeasibleMomentsError
        As `fit`, within the face.
    """
    moments = np.asarray(moments, float)
    fixed = ~np.isnan(face.constants)
    error = float(np.max(np.abs(moments - face.constants)[fixed] / family.scale[fixed], initial=0.0))
    if not face.free.size:
        return FaceFit(face, moments, None, None, 0.0, error)
    if face.monomials is None:
        return _fit_points(family, moments, face, error)
    inner = fit(MaxEntFamily(Torus(face.dimension), face.monomials), moments[face.free])
    return FaceFit(face, moments, inner, None, inner.entropy, max(error, inner.moment_error))


def _fit_points(family: MaxEntFamily, moments: np.ndarray, face: Face, error: float) -> FaceFit:
    """Maximum entropy on finitely many points: a small convex dual, by Newton.

    Raises
    ------
    NotConvergedError
        If the moments are missed.
    """
    table = (
        family.monomials.values(torch.as_tensor(face.points)).numpy()[:, face.free] / family.scale[face.free]
    )
    target = moments[face.free] / family.scale[face.free]
    lam = np.zeros(table.shape[1])
    for _ in range(200):
        weights = softmax(table @ lam)
        gradient = weights @ table - target
        covariance = (table * weights[:, None]).T @ table - np.outer(weights @ table, weights @ table)
        step = np.linalg.lstsq(covariance, gradient, rcond=1e-10)[0]
        size = np.sqrt(max(gradient @ step, 0))
        if size < 1e-12:
            break
        lam -= step / max(1.0, size)
    miss = float(np.abs(gradient).max())
    if miss > 1e-7:
        raise NotConvergedError(
            f"maximum entropy on {len(table)} points of a face: moments missed by {miss:.1e}"
        )
    entropy = float(-(weights * np.log(np.maximum(weights, 1e-300) * len(weights))).sum())
    return FaceFit(face, moments, None, weights, entropy, max(error, miss))


def fit_anywhere(family: MaxEntFamily, moments: np.ndarray, **options) -> MaxEntFit | FaceFit:
    """`fit`, and if the moments turn out to lie on the boundary of the moment body, `fit_on_face`.

    Parameters
    ----------
    family : MaxEntFamily
    moments : array_like, shape (m,)
    **options
        Of `fit`.

    Returns
    -------
    MaxEntFit or FaceFit

    Raises
    ------
    NotConvergedError
        As `fit` and `exposed_face`.
    TooLargeError
        As `fit`.
    """
    try:
        return fit(family, moments, **options)
    except (NotConvergedError, TooLargeError) as error:
        face = touching_face(family, np.asarray(moments, float), getattr(error, "direction", None))
        if face is None:
            raise
        return fit_on_face(family, moments, face)


def touching_face(family: MaxEntFamily, moments: np.ndarray, direction: np.ndarray | None) -> Face | None:
    """The face that moments lie on, from the direction in which lambda ran away; None if they do not.

    Raises
    ------
    InfeasibleMomentsError
        If that direction separates them.
    NotConvergedError
        If the face could not be parametrised.
    """
    if direction is None or not np.abs(direction).max() > 0:
        return None
    scaled = direction * family.scale
    failure = None
    for cut in (0.1, 1e-2, 1e-3, 0.0):
        kept = np.where(np.abs(scaled) > cut * np.abs(scaled).max(), direction, 0.0)
        kept = kept / np.linalg.norm(kept)
        try:
            face = exposed_face(family.space, family.monomials, kept)
        except NotConvergedError as error:
            failure = error
            continue
        unit = float(np.abs(kept) @ family.scale)
        gap = face.support - float(kept @ moments)
        if abs(gap) <= TOUCHING * unit:
            return face
        if gap < -TOUCHING * unit:
            certificate = Certificate(kept, float(kept @ moments), face.support, face.points[0], 384)
            raise InfeasibleMomentsError(certificate.sentence(family.monomials.names), certificate)
    if failure is not None:
        raise failure
    return None
