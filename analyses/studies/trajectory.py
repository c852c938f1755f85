"""The study of a run: the cheap order parameters at every checkpoint, and spectra where they are cheap."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from analyses.checkpoints.reader import CheckpointReader
from analyses.checkpoints.reading.text import path_text
from analyses.common.study_files import Progress, plain, provenance, silent
from analyses.layouts.layout import Layout
from analyses.runs.run import Run, known_layout
from analyses.studies.network.study import Question
from analyses.subjects.order_parameters import ALIVE, TOLERANCE, OrderParameters, order_parameters
from analyses.subjects.subject import Subject, subject_of
from manifold.errors import CheckpointError, LayoutError
from spectra.methods.compute import SpectrumResult, compute_spectrum
from spectra.methods.plan import SpectrumPlan

SETS = ("R_c", "R_n", "R_*")
SPECTRUM_FLOPS = 5e9  # of one step: below a second on one core
EIGENVALUE_UNIT = "1 (loss per squared unit of z)"

# name -> (attribute of OrderParameters, units, definition)
SCALARS = {
    "loss": ("loss", "loss", "H over the trained pairs, mean over pairs"),
    "objective": ("objective", "loss", "H plus weight decay"),
    "accuracy": ("accuracy", "1", "share of all n^2 pairs whose largest output is right"),
    "loss_identity_error": (
        "identity_error", "loss", "|H by network - H by potentials|, projected MSE over all pairs",
    ),
    "ones": ("ones", "1", f"share of rho_kkk within {TOLERANCE} of 1"),
    "largest_sum": (
        "largest_sum", "1", "largest modulus of the sums over R_n and R_* that vanish at zero loss",
    ),
}  # fmt: skip


def follow(
    run: Run, layout: Layout | None = None, *, steps: Sequence[int] | None = None, seed: int = 0,
    device: str = "cpu", skip_bad: bool = False, progress: Progress = silent,
) -> xr.Dataset:  # fmt: skip
    """Follow the order parameters of a run through its checkpoints.

    Parameters
    ----------
    run : Run
        Its checkpoints are read one after the other.
    layout : Layout, optional
        Where the weights are; default: as stored with the run.
    steps : sequence of int, optional
        Which checkpoints; default all.
    seed : int
        Of the eigen-solver.
    device : str
        torch device.
    skip_bad : bool
        Leave out steps that cannot be used (damaged, not finite); otherwise the first one is an error.
    progress : Progress
        Told every step.

    Returns
    -------
    xarray.Dataset
        Dims ``step``, ``frequency`` (k != 0), ``set`` (R_c, R_n, R_*). Where every step has a complete dense
        spectrum of less than about a second, also the eigenvalues of the second variation of the objective
        on T_R, (``step``, ``eigen``), ascending, Hessian sign (positive = contracting), NaN beyond the rank
        of that step, with their absolute error bounds, and the counts of their signs.

    Raises
    ------
    LayoutError
        If no layout is given and none is stored with the run.
    InputError
        If the run has no such step.
    CheckpointError
        If a step cannot be used and bad steps are not to be skipped, or none can.
    """
    chosen = tuple(run.steps if steps is None else sorted(set(steps)))
    found: list[tuple[Subject, OrderParameters, SpectrumResult | None]] = []
    skipped: dict[int, str] = {}
    with CheckpointReader() as reader:
        for done, step in enumerate(chosen):
            progress(done, len(chosen), f"trajectory, step {step}")
            try:
                subject = _subject(run, layout, step, reader, device)
            except CheckpointError as error:
                if not skip_bad:
                    raise CheckpointError(
                        f"step {step}: {error}; --skip-bad leaves such steps out"
                    ) from error
                skipped[step] = str(error)
                continue
            found.append((subject, order_parameters(subject), _spectrum(subject, seed)))
    if not found:
        raise CheckpointError(f"{path_text(run.path)}: no checkpoint can be used")
    progress(len(chosen), len(chosen), "trajectory")
    return _dataset(run, tuple(step for step in chosen if step not in skipped), found, seed, skipped)


def affordable(plan: SpectrumPlan, subject: Subject) -> bool:
    """Whether a spectrum is complete and takes less than about a second."""
    size = max(subject.task.potential_count, subject.measure.points.numel())
    return plan.dense and 6.0 * size * plan.dimension**2 <= SPECTRUM_FLOPS


def _subject(run: Run, layout: Layout | None, step: int, reader: CheckpointReader, device: str) -> Subject:
    checkpoint = run.read(step, reader)
    known = layout if layout is not None else known_layout(checkpoint, run)
    if known is None:
        raise LayoutError(
            f"{path_text(run.path)}: no layout is stored with the run; give --layout FILE or "
            "--tensor w_a=EXPR .."
        )
    return subject_of(checkpoint, known, run, device=device)


def _spectrum(subject: Subject, seed: int) -> SpectrumResult | None:
    plan = Question().plan(subject)
    if not affordable(plan, subject):
        return None
    return compute_spectrum(plan, subject.objective, subject.measure, seed=seed)


def _variable(dims: Sequence[str], values: Any, units: str, definition: str) -> tuple:
    return tuple(dims), np.asarray(values), {"units": units, "definition": definition}


def _dataset(run: Run, steps: tuple[int, ...], found: list, seed: int, skipped: dict[int, str]) -> xr.Dataset:
    subjects, parameters, spectra = zip(*found, strict=True)
    group = subjects[-1].network.group
    data = {
        name: _variable(["step"], [getattr(one, attribute) for one in parameters], units, definition)
        for name, (attribute, units, definition) in SCALARS.items()
    }
    data |= {
        "target_potential": _variable(
            ["step", "frequency"], [one.targets for one in parameters], "1", "rho_kkk, 1 at a solution"
        ),
        "largest_potential": _variable(
            ["step", "set"], [[one.largest[name] for name in SETS] for one in parameters], "1",
            "largest |rho| of the set; R_c must vanish, of R_n and R_* only sums must",
        ),
        "zeros": _variable(
            ["step", "set"], [[one.zeros[name] for name in SETS] for one in parameters], "1",
            f"share of the set within {TOLERANCE} of 0",
        ),
        "alive": _variable(
            ["step"], [int(one.alive.sum()) for one in parameters], "neurons", f"|z_j| > {ALIVE} max |z|"
        ),
        "purity_median": _variable(
            ["step"], [np.median(one.purity[one.alive]) if one.alive.any() else np.nan for one in parameters],
            "1", "median over living neurons of the power share of the top frequency pair",
        ),
    }  # fmt: skip
    if all(result is not None for result in spectra):
        data |= _spectral_variables(spectra)
    labels = ["(" + ",".join(map(str, group.elements[k].tolist())) + ")" for k in range(1, group.order)]
    study = xr.Dataset(data, coords={"step": list(steps), "frequency": labels, "set": list(SETS)})
    document = _document(run, subjects[-1], study, seed)
    document["skipped"] = {str(step): reason for step, reason in skipped.items()} | run.left_out
    return study.assign_attrs(
        {"study": "trajectory", "summary": json.dumps(plain(document)), **document["provenance"]}
    )


def _spectral_variables(spectra: Sequence[SpectrumResult]) -> dict[str, tuple]:
    width = max(len(result.spectrum.eigenvalues) for result in spectra)

    def padded(name: str) -> np.ndarray:
        rows = [getattr(result.spectrum, name) for result in spectra]
        return np.stack([np.pad(row, (0, width - len(row)), constant_values=np.nan) for row in rows])

    counts = {
        name: _variable(
            ["step"], [getattr(result.spectrum.counts, name) for result in spectra], "eigenvalues", text
        )
        for name, text in (
            ("negative", "certainly negative: unstable directions"),
            ("marginal", "zero because a symmetry makes it zero"),
            ("positive", "certainly positive: contracting directions"),
            ("undetermined", "error bound too wide to tell the sign"),
        )
    }
    return counts | {
        "rank": _variable(["step"], [result.rank for result in spectra], "1", "dimension of T_R"),
        "eigenvalue": _variable(
            ["step", "eigen"], padded("eigenvalues"), EIGENVALUE_UNIT,
            "second variation of the objective on T_R, Hessian sign: positive = contracting; NaN beyond rank",
        ),
        "eigenvalue_error": _variable(
            ["step", "eigen"], padded("errors"), EIGENVALUE_UNIT, "absolute error bound"
        ),
    }  # fmt: skip


def _document(run: Run, subject: Subject, study: xr.Dataset, seed: int) -> dict[str, Any]:
    net, config = subject.network, run.config
    told = ("optimizer", "lr", "schedule", "weight_decay", "steps", "init_scale", "train_fraction", "seed")
    counted = ("rank", "negative", "marginal", "positive", "undetermined")
    cheap = ("loss", "objective", "accuracy", "loss_identity_error", "ones", "largest_sum", "alive",
             "purity_median")  # fmt: skip
    warnings = subject.warnings(float(study["accuracy"].values[-1]))
    return {
        "run": path_text(run.path),
        "task": {
            "group": net.group.name,
            "order": net.group.order,
            "neurons": net.width,
            "dimension": subject.task.dimension,
            "potential_count": subject.task.potential_count,
            "loss": subject.loss,
            "activation": net.activation.name,
            "tied": net.tied,
            "centred": subject.centred,
            "output_scale": net.output_scale,
            "weight_decay": subject.weight_decay,
        },
        "training": {key: config[key] for key in told if isinstance(config.get(key), (str, int, float))},
        "steps": study.step.values,
        **{name: study[name].values for name in cheap},
        "largest": {name: study.largest_potential.sel(set=name).values for name in SETS},
        **{name: study[name].values if name in study else None for name in counted},
        "layout": subject.origin.document,
        "warnings": warnings,
        "notes": [*warnings, *subject.origin.notes, *subject.notes],
        "provenance": provenance(seed=seed, device=str(net.a.device)),
    }
