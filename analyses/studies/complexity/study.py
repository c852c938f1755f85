"""The whole study behind ``rhoscope complexity``: options, plan, run, JSON document, summary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from analyses.common.jobs import dask_cluster
from analyses.common.study_files import Progress, plain, provenance, silent
from analyses.studies.complexity.curve_results import gain_records, group_records, second_term, weyl_records
from analyses.studies.complexity.curves import run_curves
from analyses.studies.complexity.plan import CurvePlan, make_plan
from analyses.studies.complexity.verdict import verdict
from manifold.errors import InputError
from manifold.groups.actions import FiniteAction, GroupAction
from manifold.groups.named import default_chain, named_action
from manifold.invariants.weyl import invariant_basis
from manifold.spaces.homogeneous import SpectralSpace

DELTAS = (0.1, 0.01, 0.001)


@dataclass(frozen=True)
class ComplexityOptions:
    """What the command line asks for; see ``rhoscope complexity --help``."""

    space: str = "T1"
    symmetry: str = "Z8"
    chain: tuple[str, ...] = ()
    matrices: tuple[np.ndarray, np.ndarray | None] | None = None
    s: float | None = None
    kappas: tuple[float, ...] = ()
    thetas: tuple[float, ...] = (1.0,)
    noise: float = 1.0
    delta: float = 0.1
    sizes: tuple[int, ...] = ()
    trials: int = 64
    draws: int = 100
    band: float | None = None
    accuracy: float = 2e-3
    cutoff: float | None = None
    max_functions: int = 3000
    diagnostic: bool = False
    regimes: bool = False
    network: str | None = None
    workers: int = 1
    dask: str | None = None
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class StudyPlan:
    """Options and the plan of the main curves.

    Attributes
    ----------
    options : ComplexityOptions
    curves : CurvePlan
    """

    options: ComplexityOptions
    curves: CurvePlan

    def lines(self) -> Iterator[str]:
        """The plan in words, one line each."""
        plan = self.curves
        names = " < ".join(a.name for a in plan.actions)
        yield (
            f"{plan.actions[0].space.name}, {names}: s = {plan.s:g}, theta = {plan.theta:g}, "
            f"sigma = {plan.noise:g}; {plan.trials} designs at {plan.samples.shape[1]} sizes, "
            f"largest n = {plan.samples.max()}"
        )
        largest = max(plan.functions(h, i) for h, i in np.ndindex(*plan.samples.shape))
        sides = [(plan.functions(h, i), int(n)) for (h, i), n in np.ndenumerate(plan.samples)]
        factored = max(min(side) for side in sides)
        memory = max(p * min(p, n) for p, n in sides)
        yield (
            f"up to {largest} eigenfunctions (truncation changes the risk by at most "
            f"{plan.truncation_error.max():.1e}), dense eigen-solves of size {factored}, about "
            f"{8e-6 * 6 * memory + 100:.0f} MB per process, {self.options.workers} process(es)"
        )
        if self.options.regimes:
            yield "then the other regimes: exponent table, saturation, no noise, kappa = 0, tori and spheres"
        if self.options.network:
            yield f"then the network on {self.options.network}: accuracy against the fraction of pairs"


def plan_study(options: ComplexityOptions) -> StudyPlan:
    """Check the options and plan the main curves.

    Raises
    ------
    InputError
        If an option makes no sense.
    """
    space = SpectralSpace.parse(options.space)
    if options.matrices is not None:
        groups: list = ["trivial", FiniteAction.from_generators(space, *options.matrices)]
    else:
        groups = list(options.chain or default_chain(options.symmetry))
    for name, values, low in (("theta", options.thetas, 0.0), ("kappa", options.kappas, -np.inf)):
        if not all(v > low for v in values) or (name == "theta" and max(values) > 1):
            raise InputError(f"{name}: expected numbers in (0, 1] for theta, above 0 for kappa; got {values}")
    curves = make_plan(
        space,
        groups,
        samples=list(options.sizes) or default_sizes(space, groups),
        s=options.s,
        kappa=options.kappas[0] if options.kappas else None,
        theta=options.thetas[-1],
        noise=options.noise,
        trials=options.trials,
        draws=options.draws,
        seed=options.seed,
        accuracy=options.accuracy,
        max_functions=options.max_functions,
        cutoff=options.cutoff,
        band=options.band,
        saturated=options.band is not None,
        diagnostic=options.diagnostic,
    )
    check_chain(curves)
    return StudyPlan(options, curves)


def default_sizes(space: SpectralSpace, groups: list) -> list[int]:
    """Sample sizes of the largest group, powers of two: 8 .. 8192 on the circle, fewer elsewhere.

    Elsewhere the smallest group of the chain, which gets |G| / |H| times as many, stays below 16384.
    """
    if space.name == "T1":
        return [2**k for k in range(3, 14)]
    first, last = (
        g if isinstance(g, GroupAction) else named_action(space, g) for g in (groups[0], groups[-1])
    )
    ratio = last.order // first.order if first.order and last.order else 1
    top = min(13, 14 - ratio.bit_length() + 1) if space.dim == 2 else min(11, 14 - ratio.bit_length() + 1)
    return [2**k for k in range(min(4, top - 2), top + 1)]


def check_chain(plan: CurvePlan) -> None:
    """Refuse a chain whose groups do not contain one another: the target must be invariant under all.

    Raises
    ------
    InputError
        If an invariant function of the last group is not invariant under another.
    """
    largest = plan.actions[-1]
    basis = invariant_basis(largest, cutoff=4 * plan.target.first)
    probe = np.random.default_rng(0).standard_normal(len(basis))
    for action in plan.actions[:-1]:
        found = invariant_basis(action, cutoff=4 * plan.target.first).transfer(basis, probe)
        if not np.isclose((found**2).sum(), (probe**2).sum(), rtol=1e-6):
            raise InputError(
                f"chain: {action.name} is not a subgroup of {largest.name} as they act here; "
                "list subgroups of the last group, smallest first"
            )


def run_study(
    plan: StudyPlan, *, parts: Path | None = None, progress: Progress = silent
) -> tuple[xr.Dataset, dict[str, Any]]:
    """Run everything that was planned.

    Parameters
    ----------
    plan : StudyPlan
    parts : Path, optional
        Folder of finished parts, to resume from.
    progress : Progress

    Returns
    -------
    study : xarray.Dataset
    document : dict
        The JSON document of the command.
    """
    options, curves = plan.options, plan.curves
    with dask_cluster(options.dask):
        study = run_curves(curves, workers=options.workers, parts=parts, progress=progress)
        document: dict[str, Any] = {
            "space": curves.actions[0].space.name,
            "dim": curves.actions[0].space.dim,
            "s": curves.s,
            "theta": curves.theta,
            "noise": curves.noise,
            "delta": options.delta,
            "trials": curves.trials,
            "convention": "risk = E_x (fit - f)^2 under the uniform probability measure; target variance 1",
            "groups": group_records(curves, study, delta=options.delta),
            "gain": gain_records(curves, study),
            "weyl": weyl_records(curves),
            "second_term": second_term(curves, study, sorted({options.delta, *DELTAS}, reverse=True)),
        }
        if options.diagnostic:
            document["truncated_diagnostic"] = True
        if options.regimes:
            from analyses.studies.complexity.regimes import Runner, all_regimes

            run = Runner(options.workers, options.seed, progress=progress, parts=parts)
            thetas = options.thetas if len(options.thetas) > 1 else (0.5, 0.75, 1.0)
            kappas = options.kappas if len(options.kappas) > 1 else (1.0, 2.0, 3.0)
            document["regimes"] = all_regimes(thetas, kappas, run)
    if options.network:
        from analyses.studies.complexity.network import network_curve

        document["network"] = network_curve(
            options.network, seed=options.seed, device=options.device, progress=progress
        )
    document["verdict"] = verdict(document)
    document["provenance"] = provenance(seed=options.seed)
    study = study.assign_attrs(
        study="complexity",
        summary=json.dumps(plain(document)),
        verdict=json.dumps(plain(document["verdict"])),
        regimes=json.dumps(plain(document.get("regimes"))),
        network=json.dumps(plain(document.get("network"))),
        provenance=json.dumps(plain(document["provenance"])),
    )
    return study, document


def summary(document: dict[str, Any]) -> str:
    """A short text of the verdict."""
    found = document["verdict"]
    lines = [found["statement"]]
    titles = {
        "holds": "Holds",
        "undecided": "Undecided",
        "slack": "Slack",
        "excluded": "Excluded by the data",
        "notes": "Notes",
    }
    for key, title in titles.items():
        if found.get(key):
            lines += ["", f"{title}:"] + [f"  - {sentence}" for sentence in found[key]]
    return "\n".join(lines)
