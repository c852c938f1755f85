"""A trained network on a finite Abelian group, and its particle measure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from manifold.measures import ParticleMeasure
from spectra.networks.activations import SQUARE, Activation, Polynomial, Square

OUTPUT_LIMIT = 1e140  # its square, times n^2 q^2 of any network that fits in memory, is below 1e308


def _coordinates(block: Tensor, basis: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Weights (n, q) in a basis whose first column is constant, times a factor, and sizes of rounding.

    The mean is taken out first: only the constant column sees it, and large ones would drown the others.
    """
    mean = block.mean(0, keepdim=True)
    rest = block - mean
    points = rest.T @ basis
    points[:, 0] += mean[0] * len(block) ** 0.5
    scale = points.abs() + rest.norm(dim=0)[:, None]
    return factor * points, factor * scale


@dataclass(frozen=True, eq=False)
class GroupNetwork:
    """The network ``o(x, y) = s sum_j c_j sigma(a_j[x] + b_j[y])`` in R^n, trained to give ``e_{x+y}``.

    Parameters
    ----------
    group : FiniteAbelianGroup
        The group, of order n.
    a, b, c : Tensor, shape (n, q)
        One column per neuron; ``b=None`` means tied weights (b = a). Kept as given, computed in float64.
    output_scale : float
        The factor s.
    activation : Activation
        sigma; default the square.

    Raises
    ------
    InputError
        If shapes disagree with the group or each other, or a weight is not finite.
    """

    group: FiniteAbelianGroup
    a: Tensor
    b: Tensor | None
    c: Tensor
    output_scale: float = 1.0
    activation: Activation = SQUARE

    def __post_init__(self) -> None:
        n, shape = self.group.order, tuple(self.a.shape)
        for name in ("a", "b", "c"):
            weights = getattr(self, name)
            if weights is None:
                continue
            if tuple(weights.shape) != shape or shape[0] != n:
                raise InputError(
                    f"{name}: expected shape ({n}, q) for the group {self.group.name}, "
                    f"got {tuple(weights.shape)}; transpose with .T in the layout if it is q x n"
                )
            weights = weights.detach().to(torch.float64)
            if not torch.isfinite(weights).all():
                raise InputError(f"{name}: expected finite weights, got NaN or infinity")
            object.__setattr__(self, name, weights)
        if not self.output_scale > 0:
            raise InputError(f"output_scale: expected a positive number, got {self.output_scale}")

    @property
    def width(self) -> int:
        """Number q of neurons."""
        return self.a.shape[1]

    @property
    def largest(self) -> float:
        """Largest modulus of a weight."""
        return max(float(w.abs().max()) for w in (self.a, self.b, self.c) if w is not None)

    @property
    def overflow(self) -> float:
        """Size of the weights beyond which squared outputs may overflow double precision."""
        top = self.activation.degree or 1
        if isinstance(self.activation, Polynomial):
            top = len(self.activation.coefficients) - 1
        return OUTPUT_LIMIT ** (1 / (top + 1))

    @property
    def tied(self) -> bool:
        """True when a and b are one tensor."""
        return self.b is None

    @property
    def quadratic(self) -> bool:
        """True for the square, where the potentials of the group task determine the loss."""
        return isinstance(self.activation, Square)

    @property
    def tau(self) -> float:
        """The isotropic factor that brings raw weights to canonical ones.

        ``(2 n q s)^(1/3)`` for the square; ``(q s)^(1/(d+1))`` for other activations of homogeneous degree d;
        1 for those without a degree, which no isotropic factor frees of the width and the output scale.
        """
        if self.activation.degree is None:
            return 1.0
        size = self.width * self.output_scale * (2 * self.group.order if self.quadratic else 1)
        return size ** (1 / (self.activation.degree + 1))

    @property
    def gain(self) -> float:
        """The factor g in ``o = g mean_j c_j sigma(a_j[x] + b_j[y])`` of canonical weights.

        ``1/(2n)`` for the square, 1 for other homogeneous activations, ``q s`` for all others.
        """
        if self.quadratic:
            return 1 / (2 * self.group.order)
        return self.width * self.output_scale if self.activation.degree is None else 1.0

    @property
    def raw_scale(self) -> float:
        """``q n tau^-2``: eigenvalues in z = raw_scale * eigenvalues of the Hessian in raw weights."""
        return self.width * self.group.order / self.tau**2

    def decay_strength(self, weight_decay: float) -> float:
        """Strength kappa of the potential ``kappa |z|^2 / 2`` equal to L2 decay ``wd |theta|^2 / 2``."""
        return weight_decay * self.raw_scale

    def flow_time(self, learning_rate: float) -> float:
        """Flow time of one plain gradient step on raw weights: ``eta tau^2 / (q n)``."""
        return learning_rate / self.raw_scale

    def outputs(self, rows: slice = slice(None)) -> Tensor:
        """Predictions by the plain definition, shape (rows, n, n), axes x, y, output."""
        first = self.a[rows][:, None, :]
        second = (self.a if self.tied else self.b)[None, :, :]
        return self.output_scale * self.activation.value(first + second) @ self.c.T

    def accuracy(self) -> float:
        """Share of the n^2 pairs whose largest output is at x + y."""
        right = 0
        for x in range(self.group.order):
            target = torch.as_tensor(self.group.sums[x], device=self.a.device)
            right += int((self.outputs(slice(x, x + 1))[0].argmax(-1) == target).sum())
        return right / self.group.order**2

    def measure(self, *, centred: bool = False) -> ParticleMeasure:
        """The particle measure in real orthonormal Fourier coordinates z of the canonical weights.

        Parameters
        ----------
        centred : bool
            Drop the trivial character of a, b and c (this changes the network unless it is centred).

        Returns
        -------
        ParticleMeasure
            Points of shape (q, D) with equal weights; D = 3n, or 3(n - 1) centred; 2n and 2(n - 1)
            when tied. Coordinates: all of a, then b, then c, in the order of ``group.real_columns``,
            with ``|z|^2 = |(a, b, c)|^2 / n``.
        """
        basis = torch.as_tensor(self.group.real_basis, device=self.a.device)
        blocks = [self.a, self.c] if self.tied else [self.a, self.b, self.c]
        # Copies of a neuron get the same points to the last digit, whatever the order of a matrix product.
        unique, copy = torch.unique(torch.cat(blocks), dim=1, return_inverse=True)
        factor = self.tau / self.group.order**0.5
        found = [_coordinates(block, basis, factor) for block in unique.chunk(len(blocks))]
        keep = slice(int(centred), None)
        points, scale = (torch.cat([x[:, keep] for x in part], dim=1) for part in zip(*found, strict=True))
        return ParticleMeasure(points[copy], scale=scale[copy])

    def with_points(self, points: Tensor, *, centred: bool = False) -> GroupNetwork:
        """The network whose `measure` has these points (same group, scale and tying).

        Parameters
        ----------
        points : Tensor, shape (q, D)
            As made by `measure` with the same ``centred``.
        centred : bool
            Whether the points lack the trivial character.

        Returns
        -------
        GroupNetwork

        Raises
        ------
        InputError
            If the shape does not fit this network.
        """
        basis = torch.as_tensor(self.group.real_basis, device=points.device)[:, int(centred) :]
        count = 2 if self.tied else 3
        if tuple(points.shape) != (self.width, count * basis.shape[1]):
            raise InputError(
                f"points: expected shape ({self.width}, {count * basis.shape[1]}), got {tuple(points.shape)}"
            )
        scale = self.group.order**0.5 / self.tau
        blocks = [scale * basis @ block.T for block in points.chunk(count, dim=1)]
        return replace(self, a=blocks[0], b=None if self.tied else blocks[1], c=blocks[-1])

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Complex Fourier coefficients of the canonical weights, each (q, n), frequency k along axis 1.

        ``a_j = sum_k z_ak chi_k``, ``b_j`` alike, ``c_j = sum_k z_ck conj(chi_k)``.
        """
        characters = torch.as_tensor(self.group.characters, device=self.a.device)
        forward = self.tau / self.group.order * characters.conj()
        b = self.a if self.tied else self.b
        to = torch.complex128
        return self.a.T.to(to) @ forward, b.T.to(to) @ forward, self.c.T.to(to) @ forward.conj()
