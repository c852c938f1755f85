"""Claims about spans, ranks and maximum-entropy measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from analyses.studies.claims.entries import Claim, Hypothesis, Verdict, examines
from analyses.studies.claims.laboratory import Laboratory, flow_run, random_network, spectrum
from manifold.errors import NotConvergedError, NotIntegrableError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.maxent.euclidean import check_integrable
from manifold.maxent.family import MaxEntFamily
from manifold.maxent.fitting import fit
from manifold.measures import ParticleMeasure
from manifold.monomials import Monomials
from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import parse_monomials
from spectra.flow.gradient_flow import refine
from spectra.functionals.base import Decayed, PotentialFunctional
from spectra.networks.constructions import f6
from spectra.tasks.group_task import GroupTask

SYMBOLS, MORE = "x1;x2;x3;x1^2;x2^2;x3^2", "x1*x2*x3;x1^3"


@examines("maxent-manifold")
def maxent_manifold(lab: Laboratory) -> Claim:
    """Fits on the sphere to moments of measures outside the family, and the failure on the line."""
    space = parse_space("S2")
    family = MaxEntFamily(space, parse_monomials(SYMBOLS, space))
    larger = MaxEntFamily(space, parse_monomials(f"{SYMBOLS};{MORE}", space))
    rng, m = np.random.default_rng(lab.seed), len(family)
    trials = [_trial(family, larger, rng) for _ in range(3 if lab.quick else 20)]
    good = all(one["moment_error"] < 1e-9 and one["fisher_rank"] == family.rank and one["entropy_gain"] > 0
               and abs(one["gain_minus_kl"]) < 1e-9 for one in trials)  # fmt: skip
    refusal = _cubic_on_the_line()
    return Claim(
        "maxent-manifold",
        "The maximum-entropy measure with given potentials is mu* ~ exp(sum lambda_i r_i); these measures "
        "form a manifold of dimension at most m.",
        Verdict.CORRECTED if good and refusal and family.rank < m else Verdict.UNDECIDED,
        {"space": space.name, "potentials": SYMBOLS, "m": m, "rank": family.rank, "trials": trials,
         "refusal_of_cubic_on_line": refusal, "seed": lab.seed},
        f"Holds on compact spaces with dimension rank Cov(r): {family.rank} for {m} potentials on the "
        "sphere, where x1^2 + x2^2 + x3^2 = 1. The fitted measure has more entropy than the one whose "
        "moments it matches, by exactly their Kullback-Leibler divergence (to "
        f"{max(abs(one['gain_minus_kl']) for one in trials):.0e}). On R^D potentials of odd degree have no "
        "such measure.",
        (Hypothesis("compact space, moments inside the hull", "sphere, positive densities", True),),
    )  # fmt: skip


def _trial(family: MaxEntFamily, larger: MaxEntFamily, rng: np.random.Generator) -> dict[str, Any]:
    """Fit the moments of a random member of the larger family, which has two more potentials."""
    m = len(family)
    other = rng.normal(size=len(larger))
    found = fit(family, larger.mean(other)[:m])
    padded = np.concatenate([found.lam, np.zeros(len(larger) - m)])
    gain = found.entropy - larger.entropy(other)
    return {
        "moment_error": found.moment_error,
        "fisher_rank": found.fisher_rank,
        "entropy_gain": gain,
        "gain_minus_kl": gain - larger.relative_entropy(other, padded),
    }


def _cubic_on_the_line() -> str:
    """What the integrator of R^D says of a cubic exponent; empty if it does not refuse."""
    try:
        check_integrable(Monomials(np.array([[3], [2]])), np.array([0.1, -5.0]))
    except NotIntegrableError as error:
        return str(error)
    return ""


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
        left = ParticleMeasure(end.measure.points[alive], end.measure.weights[alive])
        found = spectrum(objective, left).rank if float(size.max()) > 1e-3 else 0
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
        f"leaves fewer neurons than that (alive and rank along the sweep: "
        f"{', '.join(str((row['alive'], row['rank'])) for row in decays)}).",
    )


@examines("displacement-convexity")
def displacement_convexity(lab: Laboratory) -> Claim:
    """The hypothesis on a run, the conclusion with and without it."""
    first = lab.study.records[0]
    value, error = float(first.eigenvalues[0]), float(first.errors[0])
    examples = {name: _convex_example(name, lab.seed) for name in CONVEX}
    refuted = [name for name, one in examples.items() if one["outside_span"] > 0]
    convex = all(one["smallest_eigenvalue"] > -1e-9 for one in examples.values())
    group = FiniteAbelianGroup((5,))
    solution = f6(group).measure(centred=True)
    at_solution = spectrum(GroupTask(group, centred=True), solution).leak
    leaks = [float(record.facts["leak"]) for record in lab.study.records]
    square, curved = examples["E|z|^2/2"], examples["exp(E|z|^2/2)"]
    return Claim(
        "displacement-convexity",
        "If H is displacement convex, eigenfunctions of non-zero eigenvalues lie in span(R).",
        Verdict.FAILS if convex and len(refuted) >= 2 else Verdict.UNDECIDED,
        {"smallest_eigenvalue_at_start": value, "error": error, "leak_along_run": leaks,
         "leak_at_F6": at_solution, "examples": examples, "counterexamples": refuted,
         "run": lab.learning.facts},
        f"Counterexamples: H = E|z|^2/2 is displacement convex, its second variation is the identity on "
        f"{square['dimension']} directions, span(R) has rank {square['rank_of_span']}; with D^3 L != 0 too, "
        f"H = exp(E|z|^2/2): {curved['outside_span']} of {curved['non_zero']} non-zero eigenvalues outside. "
        "It is true where the potentials are linear (exp(E z)). Real runs are not displacement convex "
        f"(eigenvalue {value:.2f} at the start). At MP-critical points the conclusion holds without the "
        f"hypothesis (leak {at_solution:.0e} at F6, up to {max(leaks):.2f} along the run).",
        (Hypothesis("second variation non-negative along the run", value, value >= -error),
         Hypothesis("second variation non-negative in the examples",
                    min(one["smallest_eigenvalue"] for one in examples.values()), convex)),
    )  # fmt: skip


# Displacement convex functionals: L grows and is convex, r is convex along straight lines (or linear).
CONVEX = {
    "E|z|^2/2": (lambda z: 0.5 * z.square().sum(1, keepdim=True), torch.sum, 1),
    "exp(E|z|^2/2)": (lambda z: 0.5 * z.square().sum(1, keepdim=True), lambda rho: rho.exp().sum(), 1),
    "exp(E z)": (lambda z: z, lambda rho: rho.exp().sum(), 3),
}


def _convex_example(name: str, seed: int) -> dict[str, float]:
    """Second variation of one of `CONVEX` at random measures: its sign, and what lies outside span(R)."""
    values, loss, count = CONVEX[name]
    functional = PotentialFunctional(values, loss, count=count)
    rng = np.random.default_rng(seed)
    smallest = []
    for _ in range(5):
        measure = ParticleMeasure(torch.as_tensor(rng.normal(size=(6, 3))))
        full = spectrum(functional, measure, subspace="full").spectrum.eigenvalues
        smallest.append(float(full[0]))
    rank = spectrum(functional, measure).rank
    non_zero = int((np.abs(full) > 1e-9 * np.abs(full).max()).sum())
    return {
        "dimension": len(full),
        "smallest_eigenvalue": min(smallest),
        "non_zero": non_zero,
        "rank_of_span": rank,
        "outside_span": max(0, non_zero - rank),
    }


@examines("degrees-of-freedom")
def degrees_of_freedom(lab: Laboratory) -> Claim:
    """Rank bounds, and the count of contracted directions at the end of a run."""
    run, task, records = lab.learning, lab.learning.task, lab.study.records
    q, dimension = run.measures[0].points.shape
    bound = min(task.potential_count, q * (dimension - 1))
    ranks = [record.facts["rank"] for record in records]
    end = records[-1].facts
    narrow = random_network("Z5", 4, np.random.default_rng(lab.seed), scale=0.6, centred=True)
    small = spectrum(GroupTask(narrow.group, centred=True), narrow.measure(centred=True)).rank
    within = max(ranks) <= bound and small <= 4 * (dimension - 1)
    return Claim(
        "degrees-of-freedom",
        "Degrees of freedom are bounded by |R| = m; the stable manifold has as many dimensions as the "
        "Jacobian has negative eigenvalues.",
        Verdict.CORRECTED if within and end["certified"] and small < bound else Verdict.UNDECIDED,
        {"m": task.potential_count, "q(D-1)": q * (dimension - 1), "rank_along_run": ranks,
         "rank_of_4_neurons": small, "contracted_at_end": end["positive"], "certified": end["certified"],
         "loss_at_end": end["loss"], "linearisation": lab.study_document["linearisation"], "run": run.facts},
        f"The rank is at most min(m, q(D-1)): {max(ranks)} of m = {task.potential_count} here, but {small} "
        f"for four neurons. At the end {end['positive']} directions are contracted (Hessian > 0, "
        "Jacobian < 0).",
        (Hypothesis("counts certified at the end", end["certified"], end["certified"]),),
    )  # fmt: skip
