"""The claims of ``rhoscope analyze`` about one network: loss, accuracy, potentials, neurons, spectrum."""

from __future__ import annotations

from typing import Any

import numpy as np

from analyses.verification.checks import Check, equal, near, unchecked
from analyses.verification.exact.numbers import DOUBLE, EXTENDED
from analyses.verification.exact.problem import RawProblem
from analyses.verification.exact.products import PlainProducts
from analyses.verification.exact.reference import dense_references, flat_reference
from analyses.verification.large import large_spectrum_checks
from analyses.verification.potentials import ROUNDING, Potentials, accuracy_bounds, potentials_of
from analyses.verification.spectrum import SpectrumClaim, spectrum_checks

DENSE_DIMENSION = 1200  # of the extended reference: seconds on one core
SPAN_WORK = 3e9  # potentials times the square of the smaller side
SUM_ROUNDING = 256.0  # units in the last place of the largest terms: what sums over pairs may lose
SIGNS = ("negative", "marginal", "positive", "undetermined")


def network_checks(document: dict[str, Any], problem: RawProblem, *, seed: int) -> list[Check]:
    """Judge the document of one checkpoint.

    Parameters
    ----------
    document : dict
        Of ``rhoscope analyze``.
    problem : RawProblem
        The network and objective that it is about.
    seed : int
        Of Lanczos, where the Hessian does not fit.

    Returns
    -------
    list of Check
    """
    plain = PlainProducts(problem)
    potentials = potentials_of(problem)
    checks = _task_checks(document["task"], problem, potentials)
    checks += loss_checks(document, problem, plain)
    checks += _potential_checks(document, problem, potentials)
    checks += _neuron_checks(document, potentials)
    checks.append(_gradient_check(document["fixed_point"], problem, plain))
    if document["fixed_point"]["refined"]:
        why = "the weights after refinement are not in the study"
        checks += [unchecked("spectrum", None, why), unchecked("fixed_point.gradient_norm_after", None, why)]
    else:
        checks += study_spectrum_checks(document, problem, seed=seed)
    dof, spectrum = document["dof"], document["spectrum"]
    told = [spectrum[name] for name in ("negative", "marginal", "positive")]
    checks.append(
        equal("dof", [dof[k] for k in ("unstable", "marginal", "contracted")], told, "the counts of spectrum")
    )
    for name, why in _UNCHECKED.items():
        if document.get(name) is not None:
            checks.append(unchecked(name, None, why))
    return checks


_UNCHECKED = {
    "decoupling": "depends on a random sample of potentials",
    "solutions": "names of fitted families carry no bound",
    "loss_identity_error": "a difference of two computations, not a property of the network",
}


def _task_checks(task: dict[str, Any], problem: RawProblem, potentials: Potentials) -> list[Check]:
    method = "from the tensors"
    tau = (problem.q * problem.n / problem.raw_scale) ** 0.5
    sizes = potentials.power
    return [
        equal("task.order", task["order"], problem.n, method),
        equal("task.neurons", task["neurons"], problem.q, method),
        equal("task.dimension", task["dimension"], problem.blocks * problem.rows, method),
        equal("task.tied", task["tied"], problem.b is None, method),
        near("task.tau", task["tau"], 1e-12 * tau, tau, "theory, sections 2 and 7"),
        near(
            "task.raw_scale", task["raw_scale"], 1e-12 * problem.raw_scale, problem.raw_scale, "q n / tau^2"
        ),
        equal(
            "task.alive", task["alive"], int((sizes > 1e-3 * sizes.max(initial=0)).sum()), "|z| > 1e-3 max"
        ),
    ]


def loss_checks(document: dict[str, Any], problem: RawProblem, plain: PlainProducts) -> list[Check]:
    """Loss, objective and accuracy; bounds are the rounding of sums of the size of their largest terms."""
    scale = np.abs(problem.scale) * (np.abs(plain.level) @ np.abs(plain.c).T)
    size = float(np.nanmax(scale, initial=0.0)) + 1.0
    terms = (
        size if problem.loss == "cross_entropy" else size * float(np.abs(plain.outputs).max(initial=0) + 1)
    )
    bound = SUM_ROUNDING * DOUBLE.eps * terms
    method = "plain network in double precision"
    low, high = accuracy_bounds(plain.outputs, _sums(problem), SUM_ROUNDING * DOUBLE.eps * size)
    value = document["accuracy"]
    inside = low - 1e-12 <= value <= high + 1e-12
    return [
        near("loss", document["loss"], bound, plain.loss, method),
        near(
            "objective", document["objective"], bound + 1e-12 * abs(plain.objective), plain.objective, method
        ),
        Check("accuracy", value, [low, high], [low, high], f"{method}, ties both ways", inside,
              0.0 if inside else float("inf")),
    ]  # fmt: skip


def _sums(problem: RawProblem) -> np.ndarray:
    """Accuracy is against the true labels x + y even where the loss asks for others."""
    bare = RawProblem(problem.orders, problem.a, problem.b, problem.c)
    return bare.wanted()


def _potential_checks(document: dict[str, Any], problem: RawProblem, potentials: Potentials) -> list[Check]:
    told, method = document["potentials"], "Fourier sums in extended precision"
    targets = np.array([complex(t["re"], t["im"]) for t in told["targets"]])
    checks = []
    if len(targets) == len(potentials.targets):
        off = np.abs(targets - potentials.targets)
        i = int(off.argmax()) if len(off) else 0
        bound = ROUNDING * max(potentials.size, 1e-300)
        checks.append(
            Check(
                f"potentials.targets[{i}]", str(targets[i]), bound,
                str(complex(potentials.targets[i])), method,
                bool(off[i] <= bound), float(off[i] / bound),
            )
        )  # fmt: skip
    else:
        checks.append(equal("potentials.targets", len(targets), len(potentials.targets), method))
    square = problem.activation == "square"
    unit = 1.0 if square else float(np.abs(potentials.targets).max(initial=0))
    if square and told["ones"] is not None:
        checks.append(
            _share("potentials.ones", told["ones"], potentials.shares("R_g", told["tol"], 1.0), method)
        )
    for name, share in (told["zeros"] or {}).items():
        claim = f"potentials.zeros.{name}"
        if share is None or potentials.mixed is None:
            checks.append(unchecked(claim, share, "the group is too large for all potentials"))
        else:
            checks.append(_share(claim, share, potentials.shares(name, told["tol"], unit), method))
    return checks


def _share(claim: str, value: float, bounds: tuple[float, float], method: str) -> Check:
    inside = bounds[0] - 1e-12 <= value <= bounds[1] + 1e-12
    return Check(claim, value, list(bounds), list(bounds), method, inside, 0.0 if inside else float("inf"))


def _neuron_checks(document: dict[str, Any], potentials: Potentials) -> list[Check]:
    alive = potentials.power > 1e-3 * potentials.power.max(initial=0)
    purity = potentials.purity[alive].astype(np.float64)
    told, method = document["neurons"], "Fourier sums in extended precision"
    found = {"purity_mean": purity.mean(), "purity_median": np.median(purity)} if len(purity) else {}
    checks = []
    for name in ("purity_mean", "purity_median"):
        value = told[name]
        if value is None or name not in found:
            checks.append(equal(f"neurons.{name}", value, found.get(name), method))
        else:
            checks.append(near(f"neurons.{name}", value, 1e-9, float(found[name]), method))
    return checks


def _gradient_check(point: dict[str, Any], problem: RawProblem, plain: PlainProducts) -> Check:
    """``max_j |grad V(z_j)|``: the gradient in z_j is 1/q of it, and z = tau / sqrt(n) times raw weights."""
    tau = (problem.q * problem.n / problem.raw_scale) ** 0.5
    per_neuron = np.sqrt((plain.gradient() ** 2).sum((0, 1)))
    found = problem.q * problem.n**0.5 / tau * float(per_neuron.max(initial=0))
    terms = (
        problem.scale
        * (2 * np.abs(plain.outputs).max(initial=0) + 2)
        * float(np.abs(plain.c).max(initial=0) + 1)
    )
    size = terms * float(max(np.abs(plain.slope).max(initial=0), np.abs(plain.level).max(initial=0)) + 1)
    bound = 1e-9 * found + SUM_ROUNDING * DOUBLE.eps * problem.q * problem.n / tau * (size + problem.decay)
    return near(
        "fixed_point.gradient_norm", point["gradient_norm"], bound, found, "plain gradient, max_j |grad V|"
    )


def study_spectrum_checks(document: dict[str, Any], problem: RawProblem, *, seed: int) -> list[Check]:
    """Judge the ``spectrum`` part of a document by the strongest means that fit.

    Parameters
    ----------
    document : dict
    problem : RawProblem
    seed : int

    Returns
    -------
    list of Check
    """
    spectrum, potentials = document["spectrum"], document.get("asked_potentials", "all")
    operator, subspace = spectrum["operator"], spectrum["subspace"]
    if operator == "chart":
        return _chart_checks(spectrum, problem)
    if potentials != "all":
        return [unchecked("spectrum", potentials, "a subset of the potentials spans the space")]
    claim = SpectrumClaim.of_document(spectrum)
    if operator == "flat":
        return spectrum_checks(claim, flat_reference(problem))
    space, span = subspace, subspace != "full"
    m = problem.n**2 * (problem.n - int(not problem.sees_mean))
    small, large = sorted((m, problem.dimension))
    fits = problem.dimension <= DENSE_DIMENSION and (not span or float(large) * small * small <= SPAN_WORK)
    if spectrum.get("density") is not None:
        fits = problem.dimension <= DENSE_DIMENSION
        space = "full"
    if not fits:
        return large_spectrum_checks(claim, problem, space=space, seed=seed)
    references = dense_references(problem, space=space)
    checks = spectrum_checks(claim, references)
    if spectrum.get("density") is not None:
        checks.append(_density_check(spectrum["density"], references[0].eigenvalues.values))
    return checks


def _chart_checks(spectrum: dict[str, Any], problem: RawProblem) -> list[Check]:
    """L'' of a squared loss is that of the outputs in orthonormal potentials: 2/n and 1/(2n) (theory, 2)."""
    n = problem.n
    channels = n if problem.sees_mean else n - 1
    values = np.sort(
        np.r_[np.full(channels * (n - 1) ** 2, 2 / n), np.full(channels * (2 * n - 1), 1 / (2 * n))]
    )
    shown = np.array(spectrum["largest"])
    off = np.abs(shown - values[::-1][: len(shown)])
    bound = np.array(spectrum["largest_error"]) + 4 * EXTENDED.eps
    good = bool((off <= bound).all())
    return [
        equal("spectrum.dimension", spectrum["dimension"], len(values), "theory, section 2"),
        Check(
            "spectrum.largest", float(shown[0]), float(bound[0]), float(values[-1]), "theory, section 2", good
        ),
    ]


STANDARD_ERRORS = 6.0  # of an estimate over eight random starts


def _density_check(density: dict[str, Any], values: np.ndarray) -> Check:
    """Cumulative counts within what the steps leave open and six standard errors, at every edge."""
    edges = np.array(density["edges"])
    true = np.searchsorted(values, edges, side="right")
    slack = STANDARD_ERRORS * np.array(density["cumulative_standard_error"]) + 1
    low, high = np.array(density["cumulative_low"]) - slack, np.array(density["cumulative_high"]) + slack
    out = np.maximum(low - true, true - high)
    i = int(out.argmax())
    return Check(
        f"spectrum.density.cumulative[{i}]", density["cumulative"][i], [float(low[i]), float(high[i])],
        int(true[i]), "dense reference, six standard errors", bool(out[i] <= 0), float(max(0.0, out[i])),
    )  # fmt: skip
