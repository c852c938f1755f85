"""The moment body: the convex hull of ``r(M)``, its support function and its separating directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pymanopt
import torch
from pymanopt.optimizers import TrustRegions
from scipy.optimize import nnls
from torch import Tensor

from manifold.monomials import Monomials
from manifold.sampling.linear_forms import LinearForm
from manifold.spaces.embedded import Product, Space


@dataclass(frozen=True, eq=False)
class Certificate:
    """A direction u with ``u . rho > h(u) = max_M u . r``: no probability measure has the moments rho.

    Attributes
    ----------
    direction : ndarray, shape (m,)
        Unit vector.
    value : float
        ``u . rho``.
    support : float
        ``h(u)``, the largest value found by ``starts`` local searches (a lower bound of the true
        maximum: the certificate is as good as these searches).
    point : ndarray or None
        Where ``u . r`` is largest.
    starts : int
    exact : bool
        True when ``u . r`` is constant on the space, so that no search is involved.
    """

    direction: np.ndarray
    value: float
    support: float
    point: np.ndarray | None
    starts: int
    exact: bool = False

    @property
    def margin(self) -> float:
        """``u . rho - h(u)``."""
        return self.value - self.support

    def sentence(self, names: tuple[str, ...]) -> str:
        """The certificate in words."""
        big = [i for i in np.argsort(-np.abs(self.direction)) if abs(self.direction[i]) > 1e-6][:6]
        words = " ".join(f"{self.direction[i]:+.4g}*{names[i]}" for i in big)
        how = "exactly" if self.exact else f"largest value found by {self.starts} searches"
        return (
            f"infeasible moments: in the direction u = {words} they have u.rho = {self.value:.10g}, but no "
            f"measure exceeds h(u) = {self.support:.10g} ({how})"
        )


def ascend(
    space: Space, monomials: Monomials, direction: np.ndarray, points: Tensor, *, steps: int = 300
) -> tuple[Tensor, Tensor]:
    """Batched Riemannian ascent of ``u . r``: one Barzilai-Borwein step length per start, monotone.

    Parameters
    ----------
    space : Space
    monomials : Monomials
    direction : ndarray, shape (m,)
    points : Tensor, shape (q, ambient)
    steps : int

    Returns
    -------
    points, values : Tensor, shapes (q, ambient) and (q,)
    """
    form = LinearForm(monomials)
    u = torch.as_tensor(np.asarray(direction, float))
    size = float(u.abs().sum()) * form.largest + 1e-300

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        values, gradient = form(x, u)
        return values, space.tangent(x, gradient)

    best, slope = both(points)
    length = torch.full((len(points), 1), 0.3 / size, dtype=torch.float64)
    for _ in range(steps):
        trial = space.project(points + slope * length)
        level, new_slope = both(trial)
        better = (level >= best)[:, None]
        s, y = trial - points, slope - new_slope
        curvature = (s * y).sum(-1, keepdim=True).abs().clamp_min(1e-300)
        estimate = (s.square().sum(-1, keepdim=True) / curvature).clamp(0.02 / size, 1e3 / size)
        length = torch.where(better, estimate, length / 4)
        points = torch.where(better, trial, points)
        slope = torch.where(better, new_slope, slope)
        best = torch.where(better[:, 0], level, best)
        if float(slope.norm(dim=-1).max()) < 1e-12 * size:
            break
    return points, best


def support_function(
    space: Space, monomials: Monomials, direction: np.ndarray, *, starts: int = 64, seed: int = 0,
    points: Tensor | None = None, method: str = "ascent", steps: int = 300,
) -> tuple[float, np.ndarray]:  # fmt: skip
    """``h(u) = max_M u . r`` and a point where it is attained, from many random starts.

    Parameters
    ----------
    space : Space
    monomials : Monomials
    direction : array_like, shape (m,)
    starts : int
    seed : int
    points : Tensor, optional
        Further starting points.
    method : {"ascent", "pymanopt"}
        Batched ascent (fast) or pymanopt's trust regions from the best few starts (the cross-check).
    steps : int
        Of the ascent.

    Returns
    -------
    float, ndarray of shape (ambient,)
    """
    direction = np.asarray(direction, float)
    generator = torch.Generator().manual_seed(seed)
    begin = space.uniform(starts, generator=generator)
    if points is not None:
        begin = torch.cat([points, begin])
    if method == "pymanopt":
        return _support_pymanopt(space, monomials, direction, begin)
    ends, values = ascend(space, monomials, direction, begin, steps=steps)
    top = int(values.argmax())
    return float(values[top]), ends[top].numpy()


def _support_pymanopt(space: Space, monomials: Monomials, direction: np.ndarray, begin: Tensor):
    manifold = space.to_pymanopt()
    u = torch.as_tensor(direction, dtype=torch.float64)

    def join(parts) -> Tensor:
        return torch.cat([p.reshape(-1) for p in parts])[None]

    @pymanopt.function.pytorch(manifold)
    def cost(*parts):
        return -(monomials.values(join(parts)) @ u)[0]

    problem = pymanopt.Problem(manifold, cost)
    optimizer = TrustRegions(verbosity=0, min_gradient_norm=1e-10, max_iterations=200)
    values = monomials.values(begin) @ u
    best, point = -np.inf, None
    for index in values.argsort(descending=True)[:8].tolist():
        start = begin[index].numpy()
        if isinstance(space, Product):
            start = [np.ascontiguousarray(x) for x in space.split(start)]
        outcome = optimizer.run(problem, initial_point=start)
        if -outcome.cost > best:
            end = outcome.point
            best = -float(outcome.cost)
            point = (
                np.concatenate([np.ravel(x) for x in end]) if isinstance(space, Product) else np.asarray(end)
            )
    return best, point


def separate(family, moments: np.ndarray, *, seed: int = 0, rounds: int = 300) -> Certificate | None:
    """Find a direction that separates moments from the moment body, by fully corrective Frank-Wolfe.

    Minimises the distance from the moments (in uniform standard deviations, decorrelated) to the hull of
    atoms ``r(z)``; every round adds the point of the space furthest in the direction of the
    residual and solves for the weights again. A positive lower bound of the distance is a certificate, which
    is then checked again with four times as many starts.

    Parameters
    ----------
    family : MaxEntFamily
    moments : ndarray, shape (m,)
    seed : int
    rounds : int

    Returns
    -------
    Certificate or None
        None if the moments are in the body as far as could be seen.
    """
    keep = family.independent
    mean, covariance = family.uniform_moments
    values, vectors = np.linalg.eigh(
        covariance[np.ix_(keep, keep)] / np.outer(family.scale[keep], family.scale[keep])
    )
    whiten = (vectors / np.sqrt(values)) @ vectors.T / family.scale[keep]
    target = whiten @ (moments[keep] - mean[keep])
    generator = torch.Generator().manual_seed(seed)
    points = family.space.uniform(64, generator=generator)

    def features(x: Tensor) -> np.ndarray:
        return (family.monomials.values(x).numpy()[:, keep] - mean[keep]) @ whiten.T

    atoms = features(points)
    for _ in range(rounds):
        weights = _hull_weights(atoms, target)
        residual = target - weights @ atoms
        distance = np.linalg.norm(residual)
        if distance < 1e-9:
            return None
        u = residual / distance
        direction = np.zeros(len(family))
        direction[keep] = whiten.T @ u
        active = weights > 1e-12
        points, atoms = points[torch.as_tensor(active)], atoms[active]
        begin = torch.cat([points, family.space.uniform(48, generator=generator)])
        ends, levels = ascend(family.space, family.monomials, direction, begin, steps=60)
        order = levels.argsort(descending=True)
        top = float(levels[order[0]] - direction @ mean)
        if u @ target - top > 0:
            found = certify(
                family.space, family.monomials, direction, moments, seed=seed, points=ends[order[:16]]
            )
            if found is not None:
                return found
        gain = top - float(u @ (weights[active] @ atoms))
        if gain < 1e-12:
            return None
        fresh = ends[order[:24]]
        points = torch.cat([points, fresh])
        atoms = np.vstack([atoms, features(fresh)])
    return None


def certify(
    space: Space, monomials: Monomials, direction: np.ndarray, moments: np.ndarray, *, seed: int = 0,
    points: Tensor | None = None,
) -> Certificate | None:  # fmt: skip
    """The certificate that a direction separates moments from the moment body; None if it does not.

    Parameters
    ----------
    space : Space
    monomials : Monomials
    direction, moments : ndarray, shape (m,)
    seed : int
        Of the 256 searches for ``h(u)``.
    points : Tensor, optional
        Further starting points.

    Returns
    -------
    Certificate or None
    """
    direction = direction / np.linalg.norm(direction)
    starts = 256
    support, where = support_function(
        space, monomials, direction, starts=starts, seed=seed + 1, points=points
    )
    value = float(direction @ moments)
    if value - support <= 1e-12 * (abs(value) + abs(support)):
        return None
    return Certificate(direction, value, support, where, starts + (0 if points is None else len(points)))


def _hull_weights(atoms: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Convex weights of the point of the hull nearest to the target (non-negative least squares)."""
    heavy = 1e3 * max(1.0, np.abs(atoms).max())
    weights, _ = nnls(
        np.vstack([atoms.T, np.full(len(atoms), heavy)]), np.append(target, heavy), maxiter=50 * len(atoms)
    )
    return weights / weights.sum()
