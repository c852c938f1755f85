"""The claims of a maximum-entropy study, by quadrature of its own where the space is small."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp, roots_jacobi

from analyses.verification.checks import Check, near, unchecked

NODES = 2.5e6  # of a product rule: a few hundred MB and seconds
LEVELS = (1.0, 1.37)  # the second rule has other nodes in every direction: aliasing would show
POINTS = 24  # least in one direction
SAMPLES = 400_000  # where the space is too large for a rule
STANDARD_ERRORS = 6.0
_FACTOR = re.compile(r"(x|z|conj\(z|\|z)(\d+)[)|]?(?:(?:\^|\*\*)(\d+))?")


@dataclass(frozen=True, eq=False)
class Rule:
    """Nodes and weights of the uniform probability measure on a product of spheres and circles.

    Parameters
    ----------
    points : ndarray, shape (N, ambient)
    weights : ndarray, shape (N,)
        Positive, of sum one.
    """

    points: np.ndarray
    weights: np.ndarray


def factors_of(space: str) -> list[int] | None:
    """Dimensions of the spheres of ``S2xS1`` or ``T3``; None for other spaces."""
    found: list[int] = []
    for name in space.replace(" ", "").split("x"):
        match = re.fullmatch(r"([STst])(\d+)", name)
        if match is None:
            return None
        kind, number = match[1].upper(), int(match[2])
        found += [1] * number if kind == "T" else [number]
    return found


def sphere_rule(dimension: int, count: int, offset: float) -> Rule:
    """A product rule on ``S^d``: the last coordinate by Gauss-Jacobi, the rest a smaller sphere; positive."""
    if dimension == 1:
        angles = 2 * np.pi * (np.arange(2 * count) + offset) / (2 * count)
        return Rule(np.stack([np.cos(angles), np.sin(angles)], 1), np.full(2 * count, 0.5 / count))
    power = (dimension - 2) / 2
    height, weight = roots_jacobi(count, power, power)
    inner = sphere_rule(dimension - 1, count, offset)
    radius = np.sqrt(np.maximum(0.0, 1 - height**2))
    points = np.concatenate(
        [
            (radius[:, None, None] * inner.points[None]).reshape(-1, dimension),
            np.repeat(height, len(inner.points))[:, None],
        ],
        axis=1,
    )
    weights = (weight[:, None] / weight.sum() * inner.weights[None]).reshape(-1)
    return Rule(points, weights)


def product_rule(factors: list[int], budget: float, offset: float) -> Rule | None:
    """Product of `sphere_rule` over the factors within a number of nodes; None where that is too coarse."""
    total = sum(factors)
    count = int((budget / 2 ** len(factors)) ** (1 / total))
    if count < POINTS // 2:
        return None
    rule = Rule(np.zeros((1, 0)), np.ones(1))
    for dimension in factors:
        other = sphere_rule(dimension, count, offset)
        points = np.concatenate(
            [np.repeat(rule.points, len(other.points), 0), np.tile(other.points, (len(rule.points), 1))],
            axis=1,
        )
        rule = Rule(points, np.outer(rule.weights, other.weights).reshape(-1))
    return rule


def monomial_values(names: list[str], points: np.ndarray, factors: list[int]) -> np.ndarray:
    """Values of expressions such as ``Re(z1*z2*conj(z3))`` or ``x1^2*x2``, shape (N, m).

    Parameters
    ----------
    names : list of str
    points : ndarray, shape (N, ambient)
    factors : list of int
        Dimensions of the spheres; complex pairs are neighbouring coordinates inside each.

    Returns
    -------
    ndarray

    Raises
    ------
    ValueError
        For an expression that is not understood.
    """
    pairs, offset = [], 0
    for dimension in factors:
        pairs += [(offset + i, offset + i + 1) for i in range(0, dimension, 2)]
        offset += dimension + 1
    columns = []
    for name in names:
        text = "".join(name.split())
        part, body = (text[:2], text[3:-1]) if re.match(r"(Re|Im)\(", text) else ("Re", text)
        value = np.ones(len(points), dtype=complex)
        place = 0
        while place < len(body):
            match = _FACTOR.match(body, place)
            if match is None:
                raise ValueError(f"not understood: {name}")
            kind, number, power = match[1], int(match[2]) - 1, int(match[3] or 1)
            if kind == "x":
                base = points[:, number]
            else:
                base = points[:, pairs[number][0]] + 1j * points[:, pairs[number][1]]
                base = base.conj() if kind.startswith("conj") else np.abs(base) if kind == "|z" else base
            value = value * base**power
            place = match.end() + (1 if body[match.end() : match.end() + 1] == "*" else 0)
        columns.append(value.real if part == "Re" else value.imag)
    return np.stack(columns, 1)


@dataclass(frozen=True, eq=False)
class Moments:
    """What a rule makes of ``exp(lambda . r)``.

    Parameters
    ----------
    log_partition : float
    means : ndarray, shape (m,)
    covariance : ndarray, shape (m, m)
    spread : float
        Difference from a second rule in log Z, or a standard error.
    means_spread : ndarray, shape (m,)
        The same of the means.
    method : str
    """

    log_partition: float
    means: np.ndarray
    covariance: np.ndarray
    spread: float
    means_spread: np.ndarray
    method: str


def _integrated(rule: Rule, values: np.ndarray, lam: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    exponent = values @ lam + np.log(rule.weights)
    log_z = float(logsumexp(exponent))
    share = np.exp(exponent - log_z)
    means = share @ values
    centred = values - means
    return log_z, means, (share[:, None] * centred).T @ centred


def moments_of(space: str, names: list[str], lam: np.ndarray, *, seed: int = 0) -> Moments | None:
    """Log partition function, means and covariance of ``exp(lambda . r)`` by rules of our own.

    Parameters
    ----------
    space : str
    names : list of str
        The monomials.
    lam : ndarray, shape (m,)
    seed : int
        Of the samples, where no rule fits.

    Returns
    -------
    Moments or None
        None for spaces that are no product of spheres, and where samples say nothing.
    """
    factors = factors_of(space)
    if factors is None:
        return None
    found = []
    for level, offset in zip(LEVELS, (0.0, 0.31), strict=True):
        rule = product_rule(factors, NODES / level, offset)
        if rule is None:
            return _sampled(factors, names, lam, seed)
        found.append(_integrated(rule, monomial_values(names, rule.points, factors), lam))
    (log_z, means, covariance), other = found
    method = f"two product rules of up to {NODES:,.0f} nodes with different nodes"
    return Moments(log_z, means, covariance, abs(log_z - other[0]), np.abs(means - other[1]), method)


def _sampled(factors: list[int], names: list[str], lam: np.ndarray, seed: int) -> Moments | None:
    """Importance sampling from the uniform measure; useful only where the exponent varies little."""
    rng = np.random.default_rng(seed + 14)
    points = []
    for dimension in factors:
        cloud = rng.normal(size=(SAMPLES, dimension + 1))
        points.append(cloud / np.linalg.norm(cloud, axis=1, keepdims=True))
    values = monomial_values(names, np.concatenate(points, 1), factors)
    rule = Rule(values[:, :0], np.full(SAMPLES, 1 / SAMPLES))
    log_z, means, covariance = _integrated(rule, values, lam)
    share = np.exp(values @ lam - math.log(SAMPLES) - log_z)
    effective = 1 / float((share**2).sum())
    if effective < SAMPLES / 1000:
        return None
    error = math.sqrt(1 / effective)
    spread = STANDARD_ERRORS * np.sqrt(np.diag(covariance)) * error
    return Moments(
        log_z, means, covariance, STANDARD_ERRORS * error, spread,
        f"{SAMPLES:,} uniform samples, {effective:,.0f} effective, six standard errors",
    )  # fmt: skip


def fit_checks(fit: dict[str, Any], *, name: str = "", seed: int = 0) -> list[Check]:
    """Judge one maximum-entropy fit.

    lambda is right where its moments are the given ones: an error e of the means is one of ``C^-1 e`` in
    lambda, and ``-e C^-1 e / 2`` in the entropy.

    Parameters
    ----------
    fit : dict
        As `rhoscope maxent` gives it.
    name : str
        Put before the claims (one fit of several).
    seed : int

    Returns
    -------
    list of Check
    """
    label = f"{name}." if name else ""
    lam = fit.get("lambda")
    if fit.get("face") is not None or lam is None or any(value is None for value in lam):
        return [unchecked(f"{label}lambda", None, "the measure lives on a face: lambda is infinite")]
    lam = np.array(lam, dtype=float)
    try:
        found = moments_of(fit["space"], fit["monomials"], lam, seed=seed)
    except (ValueError, IndexError) as error:
        return [unchecked(f"{label}lambda", None, str(error))]
    if found is None:
        return [
            unchecked(f"{label}log_partition", fit["log_partition"], f"no rule of ours fits {fit['space']}")
        ]
    if found.spread > 1e-3 * max(1.0, abs(found.log_partition)):
        return [unchecked(f"{label}log_partition", fit["log_partition"], "two rules of ours disagree")]
    target = np.array(fit["moments"], dtype=float)
    deviation = np.abs(found.means - target)
    scale = np.sqrt(np.maximum(np.diag(found.covariance), 0))
    sampled = fit.get("method") == "sampling"
    diagnostics = fit.get("diagnostics") or {}
    claimed_error = np.array(fit.get("lambda_error") or np.zeros(len(lam)), dtype=float)
    allowed = found.means_spread + 1e-12 + fit["moment_error"] * np.maximum(1.0, scale)
    if sampled:
        allowed = allowed + STANDARD_ERRORS * np.abs(found.covariance) @ claimed_error
    worst = int((deviation / allowed).argmax())
    log_bound = found.spread + 1e-9 * max(1.0, abs(found.log_partition))
    if sampled:
        error = diagnostics.get("log_partition_error") or fit.get("log_partition_error") or 0.0
        log_bound += STANDARD_ERRORS * float(error)
    checks = [
        near(f"{label}log_partition", fit["log_partition"], log_bound, found.log_partition, found.method),
        near(
            f"{label}moments[{worst}]", float(target[worst]), float(allowed[worst]),
            float(found.means[worst]),
            f"{found.method}: the mean under the claimed lambda",
        ),
        near(
            f"{label}entropy", fit["entropy"],
            log_bound + float(np.abs(lam) @ (found.means_spread + (allowed if sampled else 0 * allowed)))
            + 1e-9 * max(1.0, abs(float(lam @ target))),
            found.log_partition - float(lam @ target), found.method,
        ),
        _rank(label, fit, found),
    ]  # fmt: skip
    return [*checks, _lambda(label, lam, claimed_error, target, found)]


def _lambda(label: str, lam: np.ndarray, claimed: np.ndarray, target: np.ndarray, found: Moments) -> Check:
    """One Newton step from the claimed lambda: how far the moments say it is off."""
    values, vectors = np.linalg.eigh(found.covariance)
    kept = values > 1e-10 * max(float(values.max(initial=0)), 1e-300)
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    step = inverse @ (target - found.means)
    slack = np.abs(inverse) @ found.means_spread
    off = np.abs(step)
    bound = slack + STANDARD_ERRORS * claimed + 1e-6 * np.maximum(1.0, np.abs(lam))
    i = int((off / bound).argmax())
    return Check(
        f"{label}lambda[{i}]", float(lam[i]), float(bound[i]), float(lam[i] + step[i]),
        f"{found.method}: one Newton step", bool(off[i] <= bound[i]), float(off[i] / bound[i]),
    )  # fmt: skip


def _rank(label: str, fit: dict[str, Any], found: Moments) -> Check:
    scale = np.sqrt(np.maximum(np.diag(found.covariance), 1e-300))
    values = np.linalg.eigvalsh(found.covariance / np.outer(scale, scale))
    bounds = [int((values > cut * values.max(initial=0)).sum()) for cut in (1e-6, 1e-13)]
    rank = fit["fisher_rank"]
    passed = bounds[0] <= rank <= bounds[1]
    return Check(
        f"{label}fisher_rank", rank, bounds, bounds, f"{found.method}: correlation matrix", passed,
        0.0 if passed else float("inf"),
    )  # fmt: skip


def maxent_checks(document: dict[str, Any], *, seed: int) -> list[Check]:
    """Judge a maximum-entropy study: one fit, or one per frequency.

    Parameters
    ----------
    document : dict
    seed : int

    Returns
    -------
    list of Check
    """
    if "fits" not in document:
        return fit_checks(document, seed=seed)
    checks = []
    for i, fit in enumerate(document["fits"]):
        checks += fit_checks(fit, name=f"fits[{i}]", seed=seed)
    for name in ("empirical_entropy", "entropy_gap", "intrinsic_dimension"):
        checks.append(unchecked(f"fits.{name}", None, "an estimate from a sample of neurons"))
    return checks
