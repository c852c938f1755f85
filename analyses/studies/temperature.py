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

from analyses.common.study_files import Progress, plain, provenance, silent
from analyses.reports.sections import Fact, Picture, Section, document_of, scientific
from manifold.errors import InputError, NotConvergedError
from manifold.spaces.embedded import parse_space
from manifold.spaces.monomial_expressions import parse_monomials
from spectra.functionals.loss_expressions import parse_loss
from spectra.temperature.curves import Sheet, trace_sheets
from spectra.temperature.free_energy import FreeEnergy, ThermalState
from spectra.temperature.transitions import Cause, Transition, find_transitions

UNIFORM = 1e-6  # largest |lambda| along a branch whose density is called constant

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

    Raises
    ------
    NotConvergedError
        If no stationary measure is found at any temperature.
    """
    energy, grid = question.free_energy(), question.temperatures
    sheets = trace_sheets(energy, grid, seed=question.seed, progress=progress)
    kinds = _kinds(sheets)
    states, shown = [], []
    for number, sheet in enumerate(sheets):
        progress(number, len(sheets), f"rates of branch {number + 1}")
        naturals = [sheet.at(energy, temperature) for temperature in grid]
        if any(natural is not None for natural in naturals):
            shown.append(number)
            states.append([
                None if natural is None else energy.state(t, natural, rates=question.rates)
                for t, natural in zip(grid, naturals, strict=True)
            ])  # fmt: skip
    if not states:
        raise NotConvergedError("temperature: no stationary measure was found at any temperature of the grid")
    critical = [_event(one, kinds, shown) for one in find_transitions(energy, sheets)]
    branches = [(kinds[number], sheets[number].curve) for number in shown]
    return _dataset(energy, grid, states, _document(question, energy, branches, states, critical))


def _kinds(sheets: Sequence[Sheet]) -> list[str]:
    """Names of the sheets: uniform, ordered, ordered-2, .."""
    kinds: list[str] = []
    for sheet in sheets:
        flat = np.abs(sheet.etas / sheet.temperatures[:, None]).max() < UNIFORM
        kind = "uniform" if flat else "ordered"
        copies = sum(name.split("-")[0] == kind for name in kinds)
        kinds.append(kind if not copies else f"{kind}-{copies + 1}")
    return kinds


def _event(found: Transition, kinds: list[str], shown: list[int]) -> dict[str, Any]:
    """A transition in the keys of the contract; a branch that misses every temperature has no number."""
    first = found.sheets[0]
    return {
        "T_low": found.low,
        "T_high": found.high,
        "direction": found.direction,
        "branch": shown.index(first) if first in shown else None,
        "kind": found.cause.value if found.cause is Cause.FIRST_ORDER else kinds[first],
        "transition": found.cause.value,
        "between": [kinds[number] for number in found.sheets],
    }


def _document(
    question: ThermalQuestion, energy: FreeEnergy, branches: list[tuple[str, int]],
    states: list[list[ThermalState | None]], critical: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    def column(branch: Sequence[ThermalState | None], name: str) -> list[Any]:
        return [None if state is None else getattr(state, name) for state in branch]

    names = (
        "rho", "second_variation", "rates", "rate_errors", "free_energy", "symmetry_zeros", "error",
        "rho_error",
        "second_variation_error", "lowest", "condition", "stable",
    )  # fmt: skip
    return {
        "space": energy.space.name,
        "monomials": list(energy.monomials.names),
        "loss": question.loss,
        "parameters": dict(question.parameters),
        "T": list(question.temperatures),
        "branches": [
            {"kind": kind, "curve": curve, **{name: column(branch, name) for name in names}}
            for (kind, curve), branch in zip(branches, states, strict=True)
        ],
        "critical": critical,
        "conventions": {
            "second_variation": "T + eig(G^(1/2) L'' G^(1/2)), flat metric, negative = unstable",
            "rates": "of the noisy flow per unit of flow time, positive = decaying",
            "error": "bound with the condition of the self-consistency; null and stable null: undetermined",
            "transition": "stability: an eigenvalue crosses zero; fold: a spinodal, the stable branch meets "
            "an unstable one and ends; first-order: the free energies of two stable branches cross",
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
        "rate_errors": variable(
            "rate_errors",
            "rate",
            flow,
            "bound from that of the density, plus the change with two degrees less",
        ),
        "free_energy": variable("free_energy", None, "loss", "L(rho) + T E log density"),
        "symmetry_zeros": variable("symmetry_zeros", None, "1", "zeros explained by rotations"),
        "error": variable("error", None, "1", "absolute bound of rho and of the second variation"),
        "condition": variable("condition", None, "1", "factor from the residual to the error"),
    }
    kinds = [branch["kind"] for branch in document["branches"]]
    coordinates = {"T": list(grid), "branch": kinds, "monomial": list(energy.monomials.names)}
    summary = {"study": "temperature", "summary": json.dumps(plain(document)), **document["provenance"]}
    return xr.Dataset(data, coords=coordinates, attrs=summary)


def temperature_figure(study: xr.Dataset) -> Figure:
    """Length of rho, second variation and rates against temperature, each in its own panel."""
    # Late, as the command comes up without what draws.
    from analyses.reports.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, add_legend, new_figure

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
    styles = {"first-order": "-", "fold": ":"}
    for critical in document_of(study)["critical"]:
        for panel in (upper, middle, lower):
            panel.axvline(critical["T_high"], color=GREY, lw=0.9, ls=styles.get(critical["transition"], "--"))
    for panel in (middle, lower):
        panel.axhline(0, color="black", lw=0.8)
    upper.set_ylabel(r"$|\rho|$")
    middle.set_ylabel("second variation\n(loss)")
    lower.set_ylabel("rates of the noisy flow\n(1 / flow time)")
    lower.set_xlabel(
        "temperature $T$ (dashed: a state changes its stability; dotted: a spinodal; full: first order)"
    )
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
    there = np.isfinite(study.free_energy.to_numpy())
    errors = study.error.to_numpy()[there]
    proved = errors[np.isfinite(errors)]
    return Section(
        title=f"Temperature on {document['space']}",
        story=story,
        facts=[
            Fact("branches", kinds, "states that a rotation maps to each other count once"),
            Fact(
                "largest error bound", scientific(float(proved.max(initial=0.0)), 2),
                f"of ρ and second variation; none could be proved for {len(errors) - len(proved)} of "
                f"{len(errors)} states",
            ),
            *(
                Fact(
                    "transition", f"{one['T_low']:.8g} to {one['T_high']:.8g}",
                    f"{one['transition']}, {' and '.join(one['between'])}",
                )
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
    return " ".join(f"{sentence(one)}." for one in document["critical"])


def sentence(one: dict[str, Any]) -> str:
    """A transition of the document in words."""
    first, second = (one["between"] * 2)[:2]
    where = f"between T = {one['T_low']:.9g} and {one['T_high']:.9g}"
    below = one["direction"] == "down"
    if one["transition"] == Cause.FIRST_ORDER.value:
        return (
            f"First-order transition {where}: the {first} state has the lower free energy below, "
            f"the {second} state above"
        )
    if one["transition"] == Cause.FOLD.value:
        return (
            f"Spinodal of the {first} state {where}: it meets the unstable {second} state, and neither goes "
            f"on {'above' if below else 'below'}"
        )
    return (
        f"The {first} state changes its stability {where} "
        f"({'stable below, unstable above' if below else 'unstable below, stable above'})"
    )
