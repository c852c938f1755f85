"""The temperature study: branches of stationary measures, their stability and rates, phase transitions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from analyses.sections import Fact, Picture, Section, document_of, scientific
from analyses.studies import Progress, plain, provenance, silent
from manifold.errors import InputError
from manifold.expressions import parse_monomials
from manifold.spaces import parse_space
from spectra.loss_expressions import parse_loss
from spectra.temperature import FreeEnergy, ThermalState, find_transitions, follow_branches

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ThermalQuestion:
    """What is asked.

    Parameters
    ----------
    space : str
        Such as ``S2``.
    monomials : str
        Expressions separated by ``;``.
    loss : str
        Formula of rho1, rho2, ..
    parameters : mapping of str to float
        Values of other names in it.
    temperatures : tuple of float
        Ascending.
    rates : int
        How many rates of each state.
    seed : int
        Of the first guesses.
    """

    space: str
    monomials: str
    loss: str
    parameters: Mapping[str, float]
    temperatures: tuple[float, ...]
    rates: int = 8
    seed: int = 0

    def free_energy(self) -> FreeEnergy:
        """The free energy, parsed."""
        space = parse_space(self.space)
        monomials = parse_monomials(self.monomials, space)
        return FreeEnergy(space, monomials, parse_loss(self.loss, len(monomials), self.parameters))


def parse_grid(text: str) -> tuple[float, ...]:
    """Temperatures ``LOW:HIGH:N``, evenly spaced.

    Raises
    ------
    InputError
        If the text does not say that.
    """
    words = text.split(":")
    try:
        low, high, count = float(words[0]), float(words[1]), int(words[2])
    except (ValueError, IndexError):
        low, high, count = 0.0, 0.0, 0
    if len(words) != 3 or not 0 < low < high < np.inf or not 2 <= count <= 10000:
        raise InputError(f"--t-grid: expected LOW:HIGH:N with 0 < LOW < HIGH, 2 <= N <= 10000, got {text!r}")
    return tuple(np.linspace(low, high, count).tolist())


def heat(question: ThermalQuestion, *, progress: Progress = silent) -> xr.Dataset:
    """Follow stationary measures through temperatures.

    Parameters
    ----------
    question : ThermalQuestion
    progress : Progress
        Told every temperature.

    Returns
    -------
    xarray.Dataset
        Dims ``branch``, ``T``, ``monomial``, ``eigen``, ``rate``; NaN where a branch does not exist. The JSON
        document is the attribute ``summary``. Second variations (flat metric) and rates of the noisy flow
        are two different spectra.
    """
    energy, grid = question.free_energy(), question.temperatures
    branches = follow_branches(energy, grid, seed=question.seed, progress=progress)
    states = []
    for number, branch in enumerate(branches):
        progress(number, len(branches), f"rates of branch {number + 1}")
        states.append(
            [
                None if natural is None else energy.state(t, natural, rates=question.rates)
                for t, natural in zip(grid, branch, strict=True)
            ]
        )
    critical = [
        {"T_low": found.low, "T_high": found.high, "direction": found.direction, "branch": number}
        for number, branch in enumerate(branches)
        for found in find_transitions(energy, grid, branch)
    ]
    document = _document(question, energy, states, critical)
    return _dataset(energy, grid, states, document)


def _kind(states: Sequence[ThermalState | None], earlier: list[str]) -> str:
    there = [state for state in states if state is not None]
    kind = "uniform" if all(state.uniform for state in there) else "ordered"
    copies = sum(name.split("-")[0] == kind for name in earlier)
    return kind if not copies else f"{kind}-{copies + 1}"


def _document(
    question: ThermalQuestion, energy: FreeEnergy, states: list[list[ThermalState | None]],
    critical: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    kinds: list[str] = []
    for branch in states:
        kinds.append(_kind(branch, kinds))

    def column(branch: Sequence[ThermalState | None], name: str) -> list[Any]:
        return [None if state is None else getattr(state, name) for state in branch]

    names = ("rho", "second_variation", "rates", "rate_errors", "free_energy", "symmetry_zeros", "error")
    return {
        "space": energy.space.name,
        "monomials": list(energy.monomials.names),
        "loss": question.loss,
        "parameters": dict(question.parameters),
        "T": list(question.temperatures),
        "branches": [
            {"kind": kind, **{name: column(branch, name) for name in names}}
            for kind, branch in zip(kinds, states, strict=True)
        ],
        "critical": [{**one, "kind": kinds[one["branch"]]} for one in critical],
        "conventions": {
            "second_variation": "T + eig(G^(1/2) L'' G^(1/2)), flat metric, negative = unstable",
            "rates": "of the noisy flow per unit of flow time, positive = decaying",
        },
        "provenance": provenance(seed=question.seed),
    }


def _dataset(
    energy: FreeEnergy, grid: Sequence[float], states: list[list[ThermalState | None]],
    document: dict[str, Any],
) -> xr.Dataset:  # fmt: skip
    def array(name: str) -> np.ndarray:
        known = [np.atleast_1d(getattr(s, name)) for branch in states for s in branch if s is not None]
        width = max(len(row) for row in known)
        found = np.full((len(states), len(grid), width), np.nan)
        for i, branch in enumerate(states):
            for j, state in enumerate(branch):
                if state is not None:
                    row = np.atleast_1d(getattr(state, name))
                    found[i, j, : len(row)] = row
        return found

    def variable(name: str, last: str | None, units: str, definition: str) -> tuple:
        values = array(name)
        dims = ("branch", "T", last) if last else ("branch", "T")
        return dims, values if last else values[..., 0], {"units": units, "definition": definition}

    flow = "1 / flow time"
    data = {
        "rho": variable("rho", "monomial", "1", "potentials E r of the stationary measure"),
        "second_variation": variable(
            "second_variation", "eigen", "loss", "T + eig(G^(1/2) L'' G^(1/2)), negative = unstable"
        ),
        "rates": variable("rates", "rate", flow, "lowest rates of the noisy flow, positive = decaying"),
        "rate_errors": variable("rate_errors", "rate", flow, "change when the degree is lowered by two"),
        "free_energy": variable("free_energy", None, "loss", "L(rho) + T E log density"),
        "symmetry_zeros": variable("symmetry_zeros", None, "1", "zeros explained by rotations"),
        "error": variable("error", None, "1", "absolute bound of rho and of the second variation"),
    }
    kinds = [branch["kind"] for branch in document["branches"]]
    coordinates = {"T": list(grid), "branch": kinds, "monomial": list(energy.monomials.names)}
    summary = {"study": "temperature", "summary": json.dumps(plain(document)), **document["provenance"]}
    return xr.Dataset(data, coords=coordinates, attrs=summary)


def temperature_figure(study: xr.Dataset) -> Figure:
    """Length of rho, second variation and rates against temperature, each in its own panel."""
    # Late, as the command comes up without what draws.
    from analyses.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, add_legend, new_figure

    colours = (BLUE, VERMILION, GREEN, PURPLE, ORANGE)
    figure, axes = new_figure(3, 1, size=(7.2, 7.4), sharex=True)
    (upper,), (middle,), (lower,) = axes
    temperatures = study["T"].to_numpy()
    for number, kind in enumerate(study.branch.to_numpy()):
        colour = colours[number % len(colours)]
        one = study.isel(branch=number)
        upper.plot(temperatures, np.linalg.norm(one.rho, axis=1), color=colour, marker=".", label=str(kind))
        middle.plot(temperatures, one.second_variation, color=colour, lw=1.1)
        lower.plot(temperatures, one.rates[:, :6], color=colour, lw=1.1)
    for critical in document_of(study)["critical"]:
        for panel in (upper, middle, lower):
            panel.axvline(critical["T_high"], color=GREY, lw=0.9, ls="--")
    for panel in (middle, lower):
        panel.axhline(0, color="black", lw=0.8)
    upper.set_ylabel(r"$|\rho|$")
    middle.set_ylabel("second variation\n(loss)")
    lower.set_ylabel("rates of the noisy flow\n(1 / flow time)")
    lower.set_xlabel("temperature $T$ (dashed: a state changes its stability)")
    add_legend(upper, loc="best")
    figure.align_ylabels()
    return figure


def temperature_section(study: xr.Dataset) -> Section:
    """The section of a temperature study."""
    document = document_of(study)
    kinds = ", ".join(branch["kind"] for branch in document["branches"])
    story = [
        Markup(
            "Noise of temperature T turns the flow into a competition between the loss and entropy. On {} "
            "with the symbols {} and the loss {} the stationary measures found between T = {} and {} are: "
            "{}. Each is a maximum-entropy measure whose parameters solve λ = −∇L(ρ)/T."
        ).format(
            document["space"], "; ".join(document["monomials"]), document["loss"],
            scientific(document["T"][0]), scientific(document["T"][-1]), kinds,
        ),
        _transitions(document),
        "The second variation decides stability; the rates say how fast the noisy flow relaxes. They are "
        "different spectra in different metrics and never share an axis.",
    ]  # fmt: skip
    errors = study.error.to_numpy()
    return Section(
        title=f"Temperature on {document['space']}",
        story=story,
        facts=[
            Fact("branches", kinds, "states that a rotation maps to each other count once"),
            Fact("largest error bound", scientific(float(np.nanmax(errors)), 2), "of ρ and second variation"),
            *(
                Fact("transition", f"{one['T_low']:.8g} to {one['T_high']:.8g}", f"{one['kind']} branch")
                for one in document["critical"]
            ),
        ],
        pictures=[
            Picture(
                "temperature", partial(temperature_figure, study),
                Markup("Above: length of ρ. Middle: second variation. Below: the six lowest rates."),
                "Branches, second variation and rates against temperature",
            )
        ],
        provenance=document["provenance"],
        document=document,
    )  # fmt: skip


def _transitions(document: dict[str, Any]) -> str:
    if not document["critical"]:
        return "No state changes its stability on this range of temperatures."
    words = {"up": "unstable below, stable above", "down": "stable below, unstable above"}
    return " ".join(
        f"The {one['kind']} state changes its stability between T = {one['T_low']:.8g} and "
        f"{one['T_high']:.8g} ({words[one['direction']]})."
        for one in document["critical"]
    )
