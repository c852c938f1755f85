"""The subject of a study: one network with the objective it was trained on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from analyses.checkpoints.reader import Checkpoint
from analyses.checkpoints.reading.text import path_text
from analyses.layouts.layout import Layout
from analyses.layouts.origins import Origin
from analyses.runs.pair_files import group_pairs, training_pairs
from analyses.runs.recipes import NOTHING_TOLD, Recipe, Told, recipe_of
from analyses.runs.run import Run
from analyses.subjects.task_check import task_warning
from manifold.errors import InputError
from manifold.measures import ParticleMeasure
from spectra.functionals.base import Decayed, Functional
from spectra.networks.group_network import GroupNetwork
from spectra.tasks.group_task import GroupTask
from spectra.tasks.output_task import OutputTask, kink_distances
from spectra.tasks.relabelled_task import labelled_task, shuffled_labels


@dataclass(frozen=True, eq=False)
class Subject:
    """A network on a group, and what it minimises.

    Parameters
    ----------
    network : GroupNetwork
        Its weights.
    loss : str
        ``projected_mse``, ``mse`` or ``cross_entropy``.
    centred : bool
        Study it on D = 3(n - 1) coordinates, without the trivial character.
    weight_decay : float
        wd of ``(wd/2) |theta|^2`` in the objective.
    pairs : ndarray of int, shape (N, 2), optional
        Pairs of the loss; None: all.
    path, step, sha256 : str, int, str
        Where it came from.
    notes : tuple of str
        What a reader must know (decoupled decay, carried biases, ...).
    labels : int, optional
        Seed of shuffled labels (a null control); None: the labels x + y.
    left_out : dict of str to str
        Files of its run that were not used, with the reasons.
    origin : Origin
        How the layout became known.
    """

    network: GroupNetwork
    loss: str = "projected_mse"
    centred: bool = False
    weight_decay: float = 0.0
    pairs: np.ndarray | None = None
    path: str = ""
    step: int | None = None
    sha256: str = ""
    notes: tuple[str, ...] = field(default=())
    labels: int | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    origin: Origin = field(default=Origin())

    @cached_property
    def measure(self) -> ParticleMeasure:
        """The particle measure in real orthonormal Fourier coordinates."""
        return self.network.measure(centred=self.centred)

    @cached_property
    def task(self) -> GroupTask | OutputTask:
        """The loss H on the pairs, without decay; through its outputs unless the network is quadratic."""
        net = self.network
        if not net.quadratic:
            return OutputTask(
                net.group, net.activation, gain=net.gain, loss=self.loss, tied=net.tied, pairs=self.pairs,
                device=net.a.device,
            )  # fmt: skip
        return labelled_task(
            net.group, self.labels, loss=self.loss, centred=self.centred, tied=net.tied, pairs=self.pairs,
            device=net.a.device,
        )  # fmt: skip

    @property
    def wanted(self) -> np.ndarray:
        """The element asked for at every pair of the loss, shape (P,)."""
        group = self.network.group
        table = group.sums if self.labels is None else shuffled_labels(group, self.labels)
        flat = np.ascontiguousarray(table).reshape(-1)
        return flat if self.pairs is None else flat[self.pairs @ [group.order, 1]]

    @property
    def training_accuracy(self) -> float | None:
        """Share of the pairs of the loss whose largest output is right; None where these are all pairs."""
        if self.pairs is None:
            return None
        right = 0
        for x in np.unique(self.pairs[:, 0]):
            y = self.pairs[self.pairs[:, 0] == x, 1]
            answers = self.network.outputs(slice(int(x), int(x) + 1))[0].argmax(-1).cpu().numpy()
            right += int((answers[y] == self.network.group.sums[x, y]).sum())
        return right / max(len(self.pairs), 1)

    def warnings(self, accuracy: float) -> list[str]:
        """What must be said first: that the network does not do the task it is read as.

        Parameters
        ----------
        accuracy : float
            Its accuracy on all pairs.

        Returns
        -------
        list of str
            None of a null control, whose labels are not those of the task.
        """
        if self.labels is not None:
            return []
        group = self.network.group
        found = task_warning(
            accuracy, group=group.name, order=group.order, training_accuracy=self.training_accuracy
        )
        return [] if found is None else [found]

    @cached_property
    def objective(self) -> Functional:
        """What training minimises: H plus the decay."""
        if not self.weight_decay:
            return self.task
        return Decayed(self.task, self.network.decay_strength(self.weight_decay))


def subject_of(
    checkpoint: Checkpoint, layout: Layout, run: Run | None = None, *, centred: bool | None = None,
    weight_decay: float | None = None, pairs: str | None = None, device: str = "cpu",
) -> Subject:  # fmt: skip
    """Make the subject of a checkpoint; what is not said is taken from its run.

    Parameters
    ----------
    checkpoint : Checkpoint
        As read.
    layout : Layout
        Where its weights are.
    run : Run, optional
        Run it belongs to: source of decay, split and centring, and of what the user says about them.
    centred : bool, optional
        Default: as trained (foreign networks: not centred).
    weight_decay : float, optional
        Default: the run's L2 decay (none for decoupled decay).
    pairs : str, optional
        ``all`` or ``train``; default ``train`` where the run tells the split.
    device : str
        torch device.

    Returns
    -------
    Subject

    Raises
    ------
    InputError
        If the training pairs are asked of a run that does not tell them, or a network that is not
        quadratic is to be centred.
    """
    network = layout.network(checkpoint, quadratic=False)
    config, told = (run.config, run.told) if run is not None else ({}, NOTHING_TOLD)
    if weight_decay is not None:
        told = replace(told, weight_decay=weight_decay)
    recipe = recipe_of(config, network.group.order, told)
    notes = [*layout.weights(checkpoint).notes, *_notes_of(network), *checkpoint.notes]
    if device != "cpu":
        b = None if network.b is None else network.b.to(device)
        network = replace(network, a=network.a.to(device), b=b, c=network.c.to(device))
    if not network.quadratic and centred:
        raise InputError(
            f"--centred: only quadratic networks have a centred form, this one has {network.activation.name}"
        )
    if centred is None:
        centred = network.quadratic and recipe.centred
    chosen = _pairs_of(recipe, told, layout, network, pairs)
    if chosen is not None:
        notes.append(f"loss and spectrum over the {len(chosen):,} training pairs")
    if recipe.labels is not None:
        notes.append("null control: trained on shuffled labels; accuracy is against the true ones")
    return Subject(
        network, layout.loss, centred, recipe.weight_decay, chosen, path_text(checkpoint.path),
        checkpoint.step, checkpoint.sha256, (*notes, *recipe.notes), recipe.labels,
        run.left_out if run is not None else {}, layout.origin,
    )  # fmt: skip


def _notes_of(network: GroupNetwork) -> list[str]:
    """What the spectrum of a network with another activation than the square means."""
    if network.quadratic:
        return []
    name, degree = network.activation.name, network.activation.degree
    notes = [
        f"activation {name}: the potentials of the group task are order parameters only, they do not "
        "determine the loss; the spectrum is that of the outputs, r = g c sigma(a[x] + b[y])"
    ]
    if degree is None:
        notes.append(
            f"{name} is not homogeneous, so no isotropic rescaling removes the width and the output scale: "
            "z are the raw weights, |z|^2 = |(a, b, c)|^2 / n (tau = 1, g = q s)"
        )
    else:
        notes.append(
            f"{name} is homogeneous of degree {degree}: canonical weights are tau times the raw ones, "
            f"tau^{degree + 1} = q s, |z|^2 = |(a, b, c)|^2 / n, g = 1"
        )
    if network.activation.kinked:
        double, single, total, nearest = kink_distances(network)
        notes.append(
            f"the second derivative of {name} is an atom at its kink and is left out: the spectrum is that "
            f"of the smooth pieces; of {total:,} pre-activations {double:,} lie within double-precision "
            f"rounding of the kink, {single:,} within single-precision rounding, the nearest (beyond double) "
            f"at {nearest:.1e} of |a[x]| + |b[y]|"
        )
    return notes


def _pairs_of(
    recipe: Recipe, told: Told, layout: Layout, network: GroupNetwork, pairs: str | None
) -> np.ndarray | None:
    """The trained pairs; None: all.

    Raises
    ------
    InputError
        If the training pairs are asked for and not told, or two answers contradict each other.
    """
    if pairs not in {None, "train", "all"}:
        raise InputError(f"--pairs: expected all or train, got {pairs!r}")
    if told.pairs is not None:
        if pairs == "all":
            raise InputError("--pairs all and --train-pairs contradict each other: give one of them")
        chosen = group_pairs(told.pairs, network.group.order, layout.elements)
        return None if len(chosen) == network.group.order**2 else chosen
    if pairs == "train" and recipe.held_out is None:
        raise InputError(
            "--pairs train: the run does not say which pairs it was trained on; give --train-pairs FILE, or "
            "use --pairs all"
        )
    if recipe.held_out is None or not len(recipe.held_out) or pairs == "all":
        return None
    return training_pairs(network.group, recipe.held_out)
