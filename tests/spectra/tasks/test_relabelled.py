"""Changed labels against the plain network, and the outputs' response against the operators."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.branches.motion import curvature_form, curvature_response, output_curvature
from spectra.networks.group_network import GroupNetwork
from spectra.operators.variation import SecondVariation, flat_operator
from spectra.tasks.group_task import GroupTask
from spectra.tasks.relabelled_task import RelabelledTask, labelled_task, shuffled_labels

GROUP = FiniteAbelianGroup((5,))


def random_network(width=7, seed=0):
    rng = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, GROUP.order, width, generator=rng, dtype=torch.float64)
    return GroupNetwork(GROUP, *weights, 1 / (2 * GROUP.order * width))


def plain_loss(network, labels, loss, pairs):
    """By the definition, from the outputs of the plain network."""
    losses = []
    for x, y in pairs:
        f = network.outputs()[x, y]
        if loss == "cross_entropy":
            losses.append(-torch.log_softmax(f, 0)[labels[x, y]])
            continue
        miss = f - torch.eye(GROUP.order, dtype=f.dtype)[labels[x, y]]
        losses.append(((miss - miss.mean()) if loss == "projected_mse" else miss).square().sum())
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("loss", ["projected_mse", "mse", "cross_entropy"])
@pytest.mark.parametrize("count", [25, 9])
def test_loss_and_derivatives_against_the_plain_network(loss, count):
    network, labels = random_network(), shuffled_labels(GROUP, 3)
    pairs = np.stack(np.divmod(np.sort(np.random.default_rng(1).permutation(25)[:count]), 5), axis=1)
    task = RelabelledTask(GROUP, labels=labels, loss=loss, pairs=None if count == 25 else pairs)
    measure = network.measure()
    direction = torch.randn(
        measure.points.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    step = 1e-4

    def moved(t):
        return ParticleMeasure(measure.points + t * direction, measure.weights)

    def slow(t):
        return plain_loss(network.with_points(moved(t).points), labels, loss, pairs)

    at = task.linearise(measure)
    assert at.value == pytest.approx(slow(0), rel=1e-12)
    slope = float((measure.weights[:, None] * at.gradient * direction).sum())
    assert slope == pytest.approx((slow(step) - slow(-step)) / (2 * step), rel=1e-6)
    product = at.product(direction[None])[0]
    change = (task.gradient(moved(step)) - task.gradient(moved(-step))) / (2 * step)
    assert torch.allclose(product, change, atol=1e-5 * float(product.abs().max()))
    assert at.value != pytest.approx(GroupTask(GROUP, loss=loss).value(measure), rel=1e-3)


def test_shuffled_labels_keep_their_numbers():
    labels = shuffled_labels(GROUP, 0)
    assert np.bincount(labels.ravel()).tolist() == [5] * 5
    assert (labels != GROUP.sums).mean() > 0.5
    assert type(labelled_task(GROUP, None)) is GroupTask
    assert (labelled_task(GROUP, 0).labels == labels).all()


def test_refusals():
    with pytest.raises(InputError, match="labels"):
        RelabelledTask(GROUP, labels=np.full((5, 5), 5))
    task = RelabelledTask(GROUP, labels=shuffled_labels(GROUP, 0))
    with pytest.raises(InputError, match="no Gram form"):
        task.linearise(random_network().measure(), gram=True)


def test_response_of_the_outputs_gives_the_interaction_part():
    """<v, Phi L'' Phi^T v> by the second derivative in the outputs, and by the operators."""
    network = random_network()
    task, measure = GroupTask(GROUP, loss="cross_entropy"), network.measure()
    at = task.linearise(measure)
    rng = torch.Generator().manual_seed(4)
    vectors = torch.randn(measure.points.numel(), 3, generator=rng, dtype=torch.float64)
    outputs = network.outputs().reshape(25, 5).numpy()
    part = SecondVariation(at, parts=("interaction",))
    expected = (vectors * part.apply(vectors)).sum(0).numpy()
    assert curvature_form(outputs, curvature_response(task, measure, vectors)) == pytest.approx(expected)
    densities = torch.randn(len(measure), 3, generator=rng, dtype=torch.float64)
    expected = (densities * flat_operator(at).apply(densities)).sum(0).numpy()
    response = curvature_response(task, measure, densities, flat=True)
    assert curvature_form(outputs, response) == pytest.approx(expected)


def test_curvature_of_the_outputs_against_autodiff():
    outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    targets = torch.tensor([0, 2, 1, 1])

    def loss(flat):
        return torch.nn.functional.cross_entropy(flat.reshape(4, 3), targets)

    expected = torch.linalg.eigvalsh(torch.func.hessian(loss)(outputs.flatten()))
    assert output_curvature(outputs.numpy()) == pytest.approx(expected.numpy(), abs=1e-14)
