"""One network in many layouts and containers: the same potentials and the same spectrum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses.checkpoints.reader import read_checkpoint
from analyses.layouts.layout import Layout
from analyses.subjects.subject import Subject, subject_of
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum
from spectra.networks.group_network import GroupNetwork
from spectra.networks.potentials import GroupPotentials
from tests.analyses.layouts.test_layout import containers

N, Q = 5, 8
TOLERANCE = 1e-12  # relative to the norm


def more_layouts(tmp_path, a, b, c):
    """Layouts whose numbers are not those of a, b and c, though the network is."""
    shift = torch.randn(Q, generator=torch.Generator().manual_seed(9), dtype=a.dtype)
    own = {"group": f"Z{N}", "w_a": "a", "w_b": "b", "w_c": "c"}
    cases = {
        "biased.pt": ({"a": a - shift, "b": (b - shift).T, "c": c.T, "bias": 2 * shift}, {"bias": "bias"}),
        "scaled.pt": ({"a": a / 2, "b": b / 2, "c": c / 2}, {"output_scale": 8.0}),
        "half.pt": ({"a": a.to(torch.float32), "b": b.to(torch.float32), "c": c.to(torch.float32)}, {}),
    }
    for name, (state, options) in cases.items():
        torch.save(state, tmp_path / name)
        yield name, tmp_path / name, Layout(**own, **options)


def spectrum(subject: Subject, space: str) -> np.ndarray:
    plan = plan_spectrum(subject.task, subject.measure, subspace=space, count=None)
    return np.sort(compute_spectrum(plan, subject.task, subject.measure).spectrum.eigenvalues)


def facts(subject: Subject) -> dict[str, np.ndarray]:
    """Everything that must not depend on how the network is stored."""
    potentials = GroupPotentials.of(subject.network)
    return {
        "rho": potentials.mixed.numpy().reshape(-1),
        "rho_a": potentials.squares_a.numpy().reshape(-1),
        "rho_b": potentials.squares_b.numpy().reshape(-1),
        "loss": np.array([subject.task.value(subject.measure)]),
        "full": spectrum(subject, "full"),
        "span": spectrum(subject, "span"),
    }


@pytest.mark.parametrize(
    ("activation", "loss"), [("square", "projected_mse"), ("square", "cross_entropy"), ("relu", "mse")]
)
def test_the_same_potentials_and_spectrum_from_every_file(tmp_path, activation, loss):
    rng = torch.Generator().manual_seed(0)
    # Numbers that single precision holds exactly, so that a float32 file is one more container.
    a, b, c = torch.randn(3, N, Q, generator=rng).double()
    files = [*containers(tmp_path, a, b, c), *more_layouts(tmp_path, a, b, c)]
    if activation != "square":  # a homogeneous degree of one: scaling by t needs s = t^-2
        files = [(name, path, replace(layout, output_scale=layout.output_scale**(2 / 3)))
                 for name, path, layout in files]  # fmt: skip
    assert len(files) >= 15
    truth = None
    for name, path, layout in files:
        subject = subject_of(read_checkpoint(path), replace(layout, loss=loss, activation=activation))
        assert isinstance(subject.network, GroupNetwork)
        found = facts(subject)
        truth = found if truth is None else truth
        for what, values in found.items():
            scale = np.abs(truth[what]).max()
            assert values.shape == truth[what].shape, (name, what)
            assert np.abs(values - truth[what]).max() <= TOLERANCE * scale, (name, what)


def test_another_network_is_told_apart(tmp_path):
    """Negative control: a change in the tenth digit is seen."""
    a, b, c = torch.randn(3, N, Q, generator=torch.Generator().manual_seed(0)).double()
    found = []
    for name, factor in (("one.pt", 1.0), ("two.pt", 1 + 1e-10)):
        torch.save({"w_a": a, "w_b": b, "w_c": c * factor}, tmp_path / name)
        found.append(
            facts(subject_of(read_checkpoint(tmp_path / name), Layout(f"Z{N}", "w_a", "w_c", "w_b")))
        )
    for what in found[0]:
        scale = np.abs(found[0][what]).max()
        assert np.abs(found[1][what] - found[0][what]).max() > TOLERANCE * scale, what
