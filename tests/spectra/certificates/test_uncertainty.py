"""What rounding and kinks leave open of a second variation, against its dense matrices."""

import dataclasses

import numpy as np
import pytest
import torch

from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.certificates.uncertainty import operator_uncertainty
from spectra.networks.activations import Relu
from spectra.operators.variation import SecondVariation
from spectra.tasks.group_task import GroupTask
from spectra.tasks.output_task import OutputTask

EPS = 2.0**-52
GROUP = FiniteAbelianGroup((3,))


def measure_for(task, q=4, seed=0):
    return ParticleMeasure(torch.as_tensor(np.random.default_rng(seed).standard_normal((q, task.dimension))))


def dense(task, measure, **options):
    return SecondVariation(task.linearise(measure), **options).dense()


@pytest.mark.parametrize("parts", [("interaction", "local"), ("local",)])
def test_rounding_is_sixteen_times_a_unit_in_the_last_place_of_the_points(parts):
    """In the mean: three moves and four probes tell the root mean square of a change to some factor only."""
    task = GroupTask(GROUP)
    measure = measure_for(task, q=2)
    base, step = dense(task, measure, parts=parts), 1e-6
    changes = []
    for other in range(100):
        noise = torch.as_tensor(np.random.default_rng(other).standard_normal(measure.points.shape))
        moved = dataclasses.replace(measure, points=measure.points * (1 + step * noise))
        changes.append(float((dense(task, moved, parts=parts) - base).norm()) / step)
    expected = 16 * EPS * np.mean(np.square(changes)) ** 0.5
    found = [operator_uncertainty(task, measure, parts=parts, seed=seed) for seed in range(25)]
    assert len(set(found)) == 25
    assert np.mean(np.square(found)) ** 0.5 == pytest.approx(expected, rel=0.25, abs=0)


@pytest.mark.parametrize("gain", [1.0, 1e-2])
def test_the_kink_that_changes_most_is_added(gain):
    """Of the slopes 1/2 and 1 instead of 0 at exact zeros the second is the worse one."""
    task = OutputTask(GROUP, Relu(), gain=gain)
    points = measure_for(task, q=3).points
    third = task.dimension // 3
    points[0, third : 2 * third] = -points[0, :third]  # a + b = 0 on every pair (x, x)
    measure = ParticleMeasure(points)
    base = dense(task, measure)
    norms = [float(torch.linalg.matrix_norm(dense(o, measure) - base, 2)) for o in task.choices()]
    assert 0 < norms[0] < 0.55 * norms[1]
    assert norms[1] <= operator_uncertainty(task, measure) <= 1.3 * norms[1]
    assert operator_uncertainty(task, measure_for(task)) < 1e-10  # no kink, nothing to choose


def test_no_particles_have_no_uncertainty():
    task = GroupTask(GROUP)
    empty = ParticleMeasure(torch.zeros(0, task.dimension, dtype=torch.float64))
    assert operator_uncertainty(task, empty) == 0.0
