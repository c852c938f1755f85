"""Order parameters of one network: potentials, sets, purity, decoupling; cheap at any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from analyses.subjects.subject import Subject
from spectra.networks.activations import Polynomial
from spectra.networks.group_network import GroupNetwork
from spectra.networks.polynomial_potentials import PolynomialPotentials
from spectra.networks.potentials import GroupPotentials, sampled_monomials
from spectra.tasks.output_task import OutputTask

ALIVE = 1e-3  # of the largest |z_j|: below it a neuron's cubic share is under 1e-9 of the largest one's
TOLERANCE = 0.05
CHUNK = 64  # neurons whose Jacobians are held at once


@dataclass(frozen=True, eq=False)
class OrderParameters:
    """What can be read off a network without an eigenvalue.

    Parameters
    ----------
    loss, objective, accuracy : float
        H on the pairs, H plus decay, share of all pairs whose largest output is right.
    identity_error : float
        ``|H by the network - H by its potentials|``, projected MSE over all pairs; NaN where no finite set
        of potentials determines the loss (activations that are no polynomials).
    projected_mse : float
        The H of that identity.
    targets : ndarray, complex, shape (n - 1,)
        ``rho_kkk`` for k = 1..n-1 (numbers of frequencies).
    ones : float
        Share of R_g within ``TOLERANCE`` of 1; NaN where nothing makes 1 a value of its own
        (`has_unit_targets`).
    zeros : dict of float
        Share of R_c, R_n, R_* within ``TOLERANCE`` of 0; where 1 is no value of its own within ``TOLERANCE``
        times the largest ``|rho_kkk|``.
    alignment : ndarray, shape (n - 1,)
        ``|E z_ak z_bk z_ck| / E |z_ak z_bk z_ck|``, 1 where the phases of all neurons agree; free of scale.
    largest : dict of float
        Largest modulus in R_c, R_n, R_*.
    largest_sum : float
        Largest modulus of the sums over R_n and R_* that must vanish at zero loss (the single potentials
        need not).
    purity : ndarray, shape (q,)
        Share of a neuron's non-trivial power in its strongest frequency pair.
    frequency : ndarray of int, shape (q,)
        Number of that frequency (one of each pair k, -k).
    alive : ndarray of bool, shape (q,)
        ``|z_j| > 1e-3 max |z|``.
    """

    loss: float
    objective: float
    accuracy: float
    identity_error: float
    projected_mse: float
    targets: np.ndarray
    ones: float
    zeros: dict[str, float]
    alignment: np.ndarray
    largest: dict[str, float]
    largest_sum: float
    purity: np.ndarray
    frequency: np.ndarray
    alive: np.ndarray


def has_unit_targets(network: GroupNetwork, loss: str) -> bool:
    """Whether the loss is least where every ``rho_kkk`` is 1.

    Squared errors of the quadratic network have their minimum there. Cross-entropy falls as long as the
    outputs grow, and with other activations the potentials do not determine the loss.
    """
    return network.quadratic and loss != "cross_entropy"


def order_parameters(subject: Subject) -> OrderParameters:
    """Compute the order parameters of a subject: O(q n^3) work.

    Parameters
    ----------
    subject : Subject

    Returns
    -------
    OrderParameters
    """
    network = subject.network
    potentials = GroupPotentials.of(network)
    sets = potentials.named_sets()
    by_network = plain_projected_mse(network)
    purity, frequency = neuron_purity(network)
    sizes = network.measure().points.norm(dim=1).cpu().numpy()
    others = ("R_c", "R_n", "R_*")
    targets = sets["R_g"].abs()
    absolute = has_unit_targets(network, subject.loss)
    unit = 1.0 if absolute or not len(targets) else float(targets.max())
    return OrderParameters(
        loss=subject.task.value(subject.measure),
        objective=subject.objective.value(subject.measure),
        accuracy=network.accuracy(),
        identity_error=abs(by_network - _loss_by_potentials(network, potentials)),
        projected_mse=by_network,
        targets=potentials.targets.cpu().numpy(),
        ones=_share((sets["R_g"] - 1).abs()) if absolute else float("nan"),
        zeros={name: _share(sets[name].abs(), unit) for name in others},
        alignment=_alignment(network),
        largest={name: float(sets[name].abs().max()) if len(sets[name]) else 0.0 for name in others},
        largest_sum=max(float(part.abs().max()) for part in potentials.vanishing_sums() if part.numel()),
        purity=purity,
        frequency=frequency,
        alive=sizes > ALIVE * sizes.max(initial=0.0),
    )


def _share(distances: torch.Tensor, unit: float = 1.0) -> float:
    return float((distances <= TOLERANCE * unit).double().mean()) if len(distances) else 1.0


def _loss_by_potentials(network: GroupNetwork, potentials: GroupPotentials) -> float:
    """Projected MSE from monomial potentials alone, NaN where they do not determine it."""
    if network.quadratic:
        return potentials.projected_loss()
    if not isinstance(network.activation, Polynomial):
        return float("nan")
    outputs = PolynomialPotentials.of(network).outputs()
    return sum(_squared_residual(network, x, row) for x, row in enumerate(outputs)) / len(outputs) ** 2


def _alignment(network: GroupNetwork) -> np.ndarray:
    products = torch.stack(network.coefficients()).prod(0)[:, 1:]
    return (products.mean(0).abs() / products.abs().mean(0).clamp_min(1e-300)).cpu().numpy()


def plain_projected_mse(network: GroupNetwork) -> float:
    """Projected MSE over all pairs by the plain network, one row x at a time."""
    n = network.group.order
    rows = (network.outputs(slice(x, x + 1))[0] for x in range(n))
    return sum(_squared_residual(network, x, row) for x, row in enumerate(rows)) / n**2


def _squared_residual(network: GroupNetwork, x: int, outputs: torch.Tensor) -> float:
    """``sum_y |P(o(x, y) - e_{x+y})|^2`` for the outputs (n, n) of one row x."""
    targets = torch.as_tensor(network.group.sums[x], device=outputs.device)
    residual = outputs - torch.nn.functional.one_hot(targets, len(outputs)).to(outputs)
    return float((residual - residual.mean(-1, keepdim=True)).square().sum())


def neuron_purity(network: GroupNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Purity and dominant frequency of every neuron.

    Parameters
    ----------
    network : GroupNetwork

    Returns
    -------
    purity : ndarray, shape (q,)
        Share of ``sum_k |z_ak|^2 + |z_bk|^2 + |z_ck|^2`` (k != 0) in the strongest pair {k, -k}; 0 for a
        neuron without power.
    frequency : ndarray of int, shape (q,)
        The smaller number of that pair.
    """
    group = network.group
    power = sum(z.abs().square() for z in network.coefficients()).cpu().numpy()
    pairs = np.array(group.conjugate_pairs)
    partner = group.negatives[pairs]
    paired = power[:, pairs] + np.where(partner == pairs, 0.0, power[:, partner])
    total = paired.sum(1)
    best = paired.argmax(1)
    top = paired[np.arange(len(paired)), best]
    return np.divide(top, total, out=np.zeros_like(top), where=total > 0), pairs[best]


def decoupling(subject: Subject, *, count: int = 100, seed: int = 0) -> dict[str, float]:
    """How far a network is from the hypotheses of the decoupling claim.

    Parameters
    ----------
    subject : Subject
    count : int
        Potentials sampled from R for K.
    seed : int
        Of that sample.

    Returns
    -------
    dict
        ``offdiagonal_share``: share of ``sum_ij K_ij^2`` off the diagonal, ``K_ij = E <grad r_i, grad r_j>``
        over the sample (0: decoupled; for other activations than the square a sample of outputs);
        ``equivariance_defect``: share of ``E |grad V|^2`` that is not radial (an O(d)-equivariant field is
        radial, defect 0).
    """
    measure, jacobian_of = subject.measure, _sampled_jacobian(subject, count, seed)

    def metric(part: slice) -> torch.Tensor:
        jacobian = jacobian_of(measure.points[part])
        return torch.einsum("j,jid,jkd->ik", measure.weights[part], jacobian, jacobian)

    # The Jacobian of all neurons at once would not fit.
    coupling = sum(metric(slice(low, low + CHUNK)) for low in range(0, len(measure), CHUNK))
    total = float(coupling.square().sum())
    diagonal = float(coupling.diagonal().square().sum())
    gradient = subject.objective.gradient(measure)
    radius = measure.points.norm(dim=1).clamp_min(1e-300)
    force = float(gradient.square().sum())
    radial = float(((gradient * measure.points).sum(1) / radius).square().sum())
    return {
        "offdiagonal_share": 1 - diagonal / total if total else 0.0,
        "equivariance_defect": 1 - radial / force if force else 0.0,
    }


def _sampled_jacobian(subject: Subject, count: int, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Gradients of some potentials of R as a function of points (q, D): shape (q, m, D)."""
    task, rng = subject.task, np.random.default_rng(seed)
    if not isinstance(task, OutputTask):
        return sampled_monomials(task.group, count, centred=task.centred, tied=task.tied, rng=rng).jacobian
    n = task.group.order
    numbers = rng.choice(n**3, size=min(count, n**3), replace=False)
    sample = torch.as_tensor(np.stack(np.unravel_index(numbers, (n, n, n)), axis=1), device=task.basis.device)
    return torch.func.vmap(torch.func.jacrev(lambda point: task.outputs(point, sample)))
