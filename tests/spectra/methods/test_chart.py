"""The chart spectrum against the flat kernel rebuilt from explicit potentials."""

import itertools

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.methods.chart import chart_multiplicities, chart_spectrum
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum
from spectra.networks.group_network import GroupNetwork
from spectra.tasks.group_task import GroupTask


@pytest.mark.parametrize("orders", [(3,), (4,), (5,), (2, 2)])
@pytest.mark.parametrize("loss", ["projected_mse", "mse"])
@pytest.mark.parametrize("centred", [True, False])
def test_quadratic_form_in_the_potentials_is_the_flat_kernel(orders, loss, centred):
    group = FiniteAbelianGroup(orders)
    n, q = group.order, 6
    rng = torch.Generator().manual_seed(1)
    raw = [torch.randn(n, q, generator=rng, dtype=torch.float64) for _ in range(3)]
    network = GroupNetwork(group, *([w - w.mean(0) for w in raw] if centred else raw))
    task = GroupTask(group, loss=loss, centred=centred)
    za, zb, zc = (z.numpy() for z in network.coefficients())
    add = group.sums
    first = 1 if task.projected or centred else 0
    products, sums = [], []
    for k in range(first, n):
        products += [za[:, i] * zb[:, j] * zc[:, k] for i, j in itertools.product(range(1, n), repeat=2)]
        of = [
            [sum(z[:, i] * z[:, add[m, group.negatives[i]]] for i in range(n)) * zc[:, k] for m in range(n)]
            for z in (za, zb)
        ]
        cross = [za[:, m] * zb[:, 0] * zc[:, k] for m in range(n)]
        other = [za[:, 0] * zb[:, m] * zc[:, k] for m in range(n)]
        sums += [of[0][m] + 2 * cross[m] for m in range(1, n)]
        sums += [of[1][m] + 2 * other[m] for m in range(1, n)]
        sums.append(of[0][0] + of[1][0] + 2 * cross[0])
    (high, many), (low, few) = chart_multiplicities(task)
    assert (len(products), len(sums)) == (many, few)
    products, sums = np.array(products), np.array(sums)
    kernel = (high * products.T @ products.conj() + low * sums.T @ sums.conj()).real
    ours = task.linearise(network.measure(centred=centred)).flat_kernel().numpy()
    assert np.abs(kernel - ours).max() < 1e-10 * np.abs(ours).max()


def test_plan_and_refusals():
    task = GroupTask(FiniteAbelianGroup((5,)))
    measure = GroupNetwork(task.group, *[torch.randn(5, 4, dtype=torch.float64) for _ in range(3)]).measure()
    plan = plan_spectrum(task, measure, operator="chart")
    found = compute_spectrum(plan, task, measure).spectrum
    assert found.complete
    assert found.counts.certified
    assert found.dimension == task.potential_count == plan.dimension
    assert found.eigenvalues[0] == pytest.approx(0.1)
    assert found.eigenvalues[-1] == pytest.approx(0.4)
    for other in (GroupTask(task.group, loss="cross_entropy"), GroupTask(task.group, tied=True)):
        with pytest.raises(InputError, match="chart"):
            chart_spectrum(other)


def test_the_error_of_an_exact_formula_is_its_rounding():
    found = chart_spectrum(GroupTask(FiniteAbelianGroup((5,))))
    assert (found.errors == np.finfo(float).eps * found.eigenvalues).all()
    assert (found.residuals == 0).all()
    assert found.norm == pytest.approx(0.4)
    assert found.vectors.shape == (100, 0)
    assert (found.matvecs, found.converged, found.complete) == (0, True, True)
