"""Compose two networks and check the result: potentials and sets predicted, then measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analyses.common.study_files import Progress, silent
from analyses.subjects.order_parameters import plain_projected_mse
from analyses.subjects.subject import Subject
from manifold.errors import InputError
from spectra.flow.gradient_flow import refine
from spectra.networks.group_network import GroupNetwork
from spectra.networks.merging import Compression, compress
from spectra.networks.potentials import GroupPotentials
from spectra.networks.semiring import MEMORY_LIMIT, OPERATIONS, add, multiply, predicted_potentials
from spectra.networks.symbol_sets import SymbolSets, all_potentials


@dataclass(frozen=True, eq=False)
class Composition:
    """A composed network with what was predicted of it.

    Parameters
    ----------
    operation : str
        ``add`` or ``multiply``.
    network : GroupNetwork
        The result.
    prediction_error : float
        ``max_r |rho_r measured - rho_r predicted|`` over all 3 n^3 potentials, absolute.
    largest : float
        Largest ``|rho_r|`` predicted, the scale of that error.
    predicted, measured : SymbolSets
        0-sets and 1-sets, from the parts and from the result.
    kept : bool
        Whether every predicted member is one, to its propagated tolerance.
    loss, accuracy : float
        Projected MSE over all pairs and share of right pairs of the result, by the plain network.
    compressions : tuple of Compression
        Of both parts and of the result, where asked for.
    """

    operation: str
    network: GroupNetwork
    prediction_error: float
    largest: float
    predicted: SymbolSets
    measured: SymbolSets
    kept: bool
    loss: float
    accuracy: float
    compressions: tuple[Compression, ...]

    @property
    def document(self) -> dict[str, Any]:
        """The JSON of ``rhoscope compose`` (without files)."""

        def sizes(sets: SymbolSets) -> dict[str, int]:
            return {"zeros": int(sets.zeros.sum()), "ones": int(sets.ones.sum())}

        return {
            "operation": self.operation,
            "group": self.network.group.name,
            "neurons": self.network.width,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "potentials": {
                "count": len(self.predicted.zeros),
                "prediction_error": self.prediction_error,
                "largest": self.largest,
            },
            "sets": {
                "tol": float(self.measured.tolerance.max()),
                "predicted": sizes(self.predicted),
                "predicted_tol": float(self.predicted.tolerance.max()),
                "measured": sizes(self.measured),
                "kept": self.kept,
            },
            "compression": [
                {"neurons": step.network.width, "merged": step.merged, "dropped": step.dropped,
                 "output_bound": step.output_bound, "potential_bound": step.potential_bound}
                for step in self.compressions
            ],
        }  # fmt: skip


def compose(
    operation: str, first: GroupNetwork, second: GroupNetwork, *, set_tolerance: float = 1e-6,
    compression: float | None = None, memory_limit: int = MEMORY_LIMIT,
) -> Composition:  # fmt: skip
    """Add or multiply two networks and measure what came out.

    Parameters
    ----------
    operation : str
        ``add`` (stack neurons) or ``multiply`` (one neuron per pair).
    first, second : GroupNetwork
        On the same group.
    set_tolerance : float
        Of the 0-sets and 1-sets, absolute.
    compression : float, optional
        Merge neurons with (a, b) parallel to this pitch, in the parts and in the result. Predictions are
        those of the parts as given, so what compression changes shows in ``prediction_error``.
    memory_limit : int
        Bytes a product may take.

    Returns
    -------
    Composition

    Raises
    ------
    InputError
        For another operation, or different groups.
    """
    if operation not in OPERATIONS:
        raise InputError(f"operation: expected add or multiply, got {operation!r}")
    if first.group != second.group:
        raise InputError(
            f"compose: expected networks on the same group, got {first.group.name} and {second.group.name}"
        )
    steps: list[Compression] = []

    def smaller(network: GroupNetwork) -> GroupNetwork:
        if compression is None:
            return network
        steps.append(compress(network, tol=compression))
        return steps[-1].network

    left, right = smaller(first), smaller(second)
    if operation == "add":
        network = smaller(add(left, right))
    else:
        network = smaller(multiply(left, right, memory_limit=memory_limit))
    expected = all_potentials(predicted_potentials(operation, first, second))
    found = all_potentials(GroupPotentials.of(network))
    parts = [
        SymbolSets.measured(all_potentials(GroupPotentials.of(part)), tol=set_tolerance)
        for part in (first, second)
    ]
    predicted = parts[0] | parts[1] if operation == "add" else parts[0] & parts[1]
    slack = 1e-12 + _slack(operation, steps, [float(part.sizes.max()) for part in parts])
    return Composition(
        operation, network, float((found - expected).abs().max()), float(expected.abs().max()), predicted,
        SymbolSets.measured(found, tol=set_tolerance), predicted.kept_by(found, rounding=slack),
        plain_projected_mse(network), network.accuracy(), tuple(steps),
    )  # fmt: skip


def _slack(operation: str, steps: list[Compression], sizes: list[float]) -> float:
    """How far compression can have moved any potential of the result."""
    if not steps:
        return 0.0
    first, second, last = (step.potential_bound for step in steps)
    if operation == "add":
        return first + second + last
    return first * sizes[1] + second * sizes[0] + first * second + last


def refined(subject: Subject, *, tolerance: float, progress: Progress = silent) -> GroupNetwork:
    """The network of a subject moved to the nearby fixed point of its objective.

    Parameters
    ----------
    subject : Subject
    tolerance : float
        On ``max_j |grad V(z_j)|``.
    progress : Progress

    Returns
    -------
    GroupNetwork
    """
    point = refine(subject.objective, subject.measure, tol=tolerance, progress=progress)
    return subject.network.with_points(point.measure.points, centred=subject.centred)
