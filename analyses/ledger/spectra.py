"""Claims about spans, ranks and maximum-entropy measures."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize

from analyses.ledger.entries import Claim, Hypothesis, Verdict, examines
from analyses.ledger.laboratory import Laboratory, flow_run, random_network, spectrum
from manifold.errors import NotConvergedError
from manifold.groups import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.constructions import f6
from spectra.flow import refine
from spectra.functionals import Decayed, PotentialFunctional
from spectra.group_task import GroupTask


@examines("maxent-manifold")
def maxent_manifold(lab: Laboratory) -> Claim:
    """Exponential families on the circle by the trapezoid rule, and the failure on the line."""
    angle = 2 * np.pi * np.arange(512) / 512
    potentials = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.cos(angle) ** 2], axis=1)
    rng = np.random.default_rng(lab.seed)
    trials = []
    for _ in range(5):
        other = np.exp(rng.normal(size=4) @ potentials.T + 0.5 * np.sin(3 * angle + rng.normal()))
        other /= other.sum()
        wanted = other @ potentials
        multipliers = minimize(_dual, np.zeros(4), args=(potentials, wanted), jac=True, tol=1e-14).x
        density = np.exp(potentials @ multipliers)
        density /= density.sum()
        centred = potentials - density @ potentials
        values = np.linalg.eigvalsh(centred.T @ (density[:, None] * centred))
        gap = _entropy(density) - _entropy(other)
        divergence = float(other @ np.log(other / density))
        trials.append({"moment_error": float(np.abs(density @ potentials - wanted).max()),
                       "fisher_rank": int((values > 1e-10 * values[-1]).sum()), "entropy_gain": gap,
                       "gain_minus_kl": gap - divergence})  # fmt: skip
    growth = [
        float(np.log(np.trapezoid(np.exp(np.linspace(-x, x, 4001) ** 3 / 8), dx=x / 2000))) for x in (4, 8)
    ]
    good = all(one["fisher_rank"] == 3 and one["entropy_gain"] > 0 and abs(one["gain_minus_kl"]) < 1e-6
               for one in trials)  # fmt: skip
    return Claim(
        "maxent-manifold",
        "The maximum-entropy measure with given potentials is mu* ~ exp(sum lambda_i r_i); these measures "
        "form "
        "a manifold of dimension at most m.",
        Verdict.CORRECTED if good and growth[1] > 4 * growth[0] else Verdict.UNDECIDED,
        {"space": "S1", "m": 4, "trials": trials, "log_integral_of_cubic_on_line": growth, "seed": lab.seed},
        "Holds on a compact space, with dimension rank Cov(r): 3 for these 4 potentials, which are "
        "dependent. "
        "On the line a cubic exponent has no normalisation (its integral over [-x, x] explodes with x).",
        (Hypothesis("compact space, moments inside the hull", "circle, positive densities", True),),
    )  # fmt: skip


def _dual(multipliers: np.ndarray, potentials: np.ndarray, wanted: np.ndarray) -> tuple[float, np.ndarray]:
    """``A(lambda) - lambda . rho`` and its gradient ``E r - rho``, on a uniform grid."""
    exponent = potentials @ multipliers
    top = exponent.max()
    density = np.exp(exponent - top)
    log_partition = top + np.log(density.mean())
    density /= density.sum()
    return log_partition - multipliers @ wanted, density @ potentials - wanted


def _entropy(density: np.ndarray) -> float:
    return float(-(density * np.log(density * len(density))).sum())


@examines("intrinsic-dimension")
def intrinsic_dimension(lab: Laboratory) -> Claim:
    """Rank of T_R against the width, and against weight decay at refined end points."""
    widths, decays = [], []
    m = 18
    for width in (1, 2, 4, 16, 64) if lab.quick else (1, 2, 3, 4, 8, 16, 64, 256):
        start = random_network("Z3", width, np.random.default_rng(lab.seed), scale=0.6, centred=True)
        task = GroupTask(start.group, centred=True)
        rank = spectrum(task, start.measure(centred=True)).rank
        widths.append({"neurons": width, "rank": rank, "bound": min(m, width * (6 - 1))})
    run = flow_run("Z3", 32, np.array([0.0, 30.0]), seed=lab.seed)
    for strength in (0.0, 1e-3, 1e-2, 5e-2, 0.5):
        objective = Decayed(run.task, strength) if strength else run.task
        try:
            end = refine(objective, run.measures[-1], tol=1e-6, max_iterations=300)
        except NotConvergedError as error:
            end = error.partial
        size = end.measure.points.norm(dim=1)
        alive = size > 1e-3 * max(float(size.max()), 1e-6)
        found = spectrum(objective, end.measure).rank if float(size.max()) > 1e-3 else 0
        decays.append({"kappa": strength, "rank": found, "alive": int(alive.sum()) if found else 0,
                       "gradient_norm": end.gradient_norm_after,
                       "loss": run.task.value(end.measure)})  # fmt: skip
    by_width = all(row["rank"] == row["bound"] for row in widths)
    lowers = decays[-1]["rank"] < decays[0]["rank"]
    return Claim(
        "intrinsic-dimension",
        "The intrinsic dimension is governed by the number m of potentials, not by the width; weight "
        "decay lowers it.",
        Verdict.CORRECTED if by_width and lowers else Verdict.UNDECIDED,
        {"group": "Z3", "m": m, "width_sweep": widths, "decay_sweep": decays, "seed": lab.seed},
        "The rank of T_R is min(m, q(D-1)): the width drops out once q >= m/(D-1). Decay lowers it only "
        "where it "
        f"switches neurons off (alive and rank along the sweep: "
        f"{', '.join(str((row['alive'], row['rank'])) for row in decays)}).",
    )


@examines("displacement-convexity")
def displacement_convexity(lab: Laboratory) -> Claim:
    """The hypothesis on a run, the conclusion with and without it."""
    first = lab.spectra[0]
    value, error = (float(x[0]) for x in first.spectrum.smallest(1))
    example = _confined(lab.seed)
    group = FiniteAbelianGroup((5,))
    solution = f6(group).measure(centred=True)
    at_solution = spectrum(GroupTask(group, centred=True), solution).leak
    leaks = [float(found.leak) for found in lab.spectra]
    return Claim(
        "displacement-convexity",
        "If H is displacement convex, eigenfunctions of non-zero eigenvalues lie in span(R).",
        Verdict.FAILS if example["eigenvalues_one"] > example["rank_of_span"] else Verdict.UNDECIDED,
        {"smallest_eigenvalue_at_start": value, "error": error, "leak_along_run": leaks,
         "leak_at_F6": at_solution, "counterexample": example, "run": lab.learning.facts},
        f"Counterexample: H = E|z|^2/2 is displacement convex, its second variation is the identity on "
        f"{example['dimension']} directions, and span(R) has rank {example['rank_of_span']}. Real runs are "
        "not "
        f"displacement convex (eigenvalue {value:.2f} at the start). At MP-critical points the conclusion "
        "holds "
        f"without the hypothesis (leak {at_solution:.0e} at F6, up to {max(leaks):.2f} along the run).",
        (Hypothesis("second variation non-negative along the run", value, value >= -error),),
    )  # fmt: skip


def _confined(seed: int) -> dict[str, float]:
    """``H = E|z|^2 / 2`` with the one potential r = |z|^2 / 2."""
    functional = PotentialFunctional(lambda z: 0.5 * z.square().sum(1, keepdim=True), torch.sum, count=1)
    points = torch.as_tensor(np.random.default_rng(seed).normal(size=(6, 3)))
    measure = ParticleMeasure(points)
    full = spectrum(functional, measure, subspace="full").spectrum.eigenvalues
    return {
        "dimension": len(full),
        "eigenvalues_one": int((np.abs(full - 1) < 1e-9).sum()),
        "rank_of_span": spectrum(functional, measure).rank,
    }


@examines("degrees-of-freedom")
def degrees_of_freedom(lab: Laboratory) -> Claim:
    """Rank bounds, and the count of contracted directions at the end of a run."""
    run, task = lab.learning, lab.learning.task
    q, dimension = run.measures[0].points.shape
    bound = min(task.potential_count, q * (dimension - 1))
    ranks = [found.rank for found in lab.spectra]
    counts = lab.spectra[-1].spectrum.counts
    narrow = random_network("Z5", 4, np.random.default_rng(lab.seed), scale=0.6, centred=True)
    small = spectrum(GroupTask(narrow.group, centred=True), narrow.measure(centred=True)).rank
    within = max(ranks) <= bound and small <= 4 * (dimension - 1)
    return Claim(
        "degrees-of-freedom",
        "Degrees of freedom are bounded by |R| = m; the stable manifold has as many dimensions as the "
        "Jacobian "
        "has negative eigenvalues.",
        Verdict.CORRECTED if within and counts.certified and small < bound else Verdict.UNDECIDED,
        {"m": task.potential_count, "q(D-1)": q * (dimension - 1), "rank_along_run": ranks,
         "rank_of_4_neurons": small, "contracted_at_end": counts.positive, "certified": counts.certified,
         "loss_at_end": float(run.losses[-1]), "run": run.facts},
        f"The rank is at most min(m, q(D-1)): {max(ranks)} of m = {task.potential_count} here, but {small} "
        "for four "
        f"neurons. At the end {counts.positive} directions are contracted (Hessian > 0, Jacobian < 0).",
        (Hypothesis("counts certified at the end", counts.certified, counts.certified),),
    )  # fmt: skip
