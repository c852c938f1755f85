"""Monomial potentials of the group task, their named sets, and the loss rebuilt from them.

With complex Fourier coefficients of the canonical weights: ``rho_{k1 k2 k} = mean_j z_ak1 z_bk2 z_ck`` and
``rho_{p;k1 k2 k} = mean_j z_pk1 z_pk2 z_ck`` for p in {a, b}. Frequencies are numbered as in the group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifold.groups.abelian import FiniteAbelianGroup
from manifold.monomials import Monomials
from spectra.networks.group_network import GroupNetwork


@dataclass(frozen=True, eq=False)
class GroupPotentials:
    """All potentials of one network.

    Parameters
    ----------
    group : FiniteAbelianGroup
        The group, of order n.
    mixed : Tensor, complex, shape (n, n, n)
        ``rho_{k1 k2 k}`` with axes k1, k2, k.
    squares_a, squares_b : Tensor, complex, shape (n, n, n)
        ``rho_{a;k1 k2 k}`` and ``rho_{b;k1 k2 k}``.
    """

    group: FiniteAbelianGroup
    mixed: Tensor
    squares_a: Tensor
    squares_b: Tensor

    @classmethod
    def of(cls, network: GroupNetwork) -> GroupPotentials:
        """Compute every potential of a network: O(q n^3) work, 48 n^3 bytes.

        Parameters
        ----------
        network : GroupNetwork
            Its canonical weights are used.

        Returns
        -------
        GroupPotentials
        """
        a, b, c = network.coefficients()

        def mean(x: Tensor, y: Tensor) -> Tensor:
            n = x.shape[1]
            out = torch.empty(n, n, n, dtype=c.dtype, device=c.device)
            for k1 in range(n):  # one slice at a time keeps memory at n^3 instead of q n^2
                out[k1] = (x[:, k1, None] * y).T @ c / len(c)
            return out

        return cls(network.group, mean(a, b), mean(a, a), mean(b, b))

    @property
    def targets(self) -> Tensor:
        """``rho_kkk`` (the set R_g, 1 at a solution) for every k != 0, shape (n - 1,)."""
        k = torch.arange(1, self.group.order)
        return self.mixed[k, k, k]

    def named_sets(self) -> dict[str, Tensor]:
        """The sets R_g, R_c, R_n and R_* over non-trivial frequencies, flattened.

        Returns
        -------
        dict of Tensor
            ``R_g = rho_kkk``; ``R_c`` the other ``rho_{k1 k2 k}``; ``R_n = rho_{p;k',-k',k}``;
            ``R_* = rho_{p;k',m-k',k}`` with m != 0 (k' and m - k' non-trivial). At the talk's binary
            assignment R_g is 1 and the others 0; for zero loss only sums over k' of R_n and R_* must vanish.
        """
        n = self.group.order
        diagonal = torch.zeros(n, n, n, dtype=torch.bool)
        diagonal[range(n), range(n), range(n)] = True
        inner = torch.zeros(n, n, n, dtype=torch.bool)
        inner[1:, 1:, 1:] = True
        opposite = torch.as_tensor(self.group.negatives[:, None] == np.arange(n))[:, :, None].expand(n, n, n)
        squares = [self.squares_a, self.squares_b]
        return {
            "R_g": self.mixed[diagonal & inner],
            "R_c": self.mixed[~diagonal & inner],
            "R_n": torch.cat([s[opposite & inner] for s in squares]),
            "R_*": torch.cat([s[~opposite & inner] for s in squares]),
        }

    def square_sums(self) -> tuple[Tensor, Tensor]:
        """``S_p(m, k) = sum_k' rho_{p; k', m - k', k}`` over the whole dual group, each (n, n), axes m, k."""
        sums = torch.as_tensor(self.group.sums.reshape(-1))
        n = self.group.order
        out = []
        for squares in (self.squares_a, self.squares_b):
            total = torch.zeros(n, n, dtype=squares.dtype)
            total.index_add_(0, sums, squares.reshape(n * n, n))
            out.append(total)
        return out[0], out[1]

    def vanishing_sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of squared potentials that must be zero at zero loss, each (.., n - 1), last axis k != 0.

        Returns
        -------
        tuple of Tensor
            ``2 rho_{m0k} + S_a(m,k)`` and ``2 rho_{0mk} + S_b(m,k)`` for m != 0, and
            ``2 rho_{00k} + S_a(0,k) + S_b(0,k)``.
        """
        of_a, of_b = self.square_sums()
        return (
            2 * self.mixed[1:, 0, 1:] + of_a[1:, 1:],
            2 * self.mixed[0, 1:, 1:] + of_b[1:, 1:],
            2 * self.mixed[0, 0, 1:] + of_a[0, 1:] + of_b[0, 1:],
        )

    def projected_loss(self) -> float:
        """Projected MSE rebuilt from the potentials, centred or not.

        ``H = (n-1)/n + (1/n) sum_{k!=0} l_k`` with ``l_k = -2 Re rho_kkk + sum_{k1,k2!=0} |rho_{k1 k2 k}|^2
        + 1/4 sum_{m!=0} (|2 rho_{m0k} + S_a(m,k)|^2 + |2 rho_{0mk} + S_b(m,k)|^2)
        + 1/4 |2 rho_{00k} + S_a(0,k) + S_b(0,k)|^2``; k' in S runs over the whole dual group.
        Completing the square, ``1 - 2 Re rho_kkk + |rho_kkk|^2 = |1 - rho_kkk|^2``, makes it a sum of
        squares: near a solution nothing cancels, so the error stays small relative to H itself.

        Returns
        -------
        float
        """
        n = self.group.order
        defect = self.mixed[1:, 1:, 1:].clone()
        inner = torch.arange(n - 1, device=defect.device)
        defect[inner, inner, inner] -= 1  # the targets rho_kkk are 1 at a solution, all others 0
        squares = sum(part.abs().square().sum() for part in self.vanishing_sums())
        return float(defect.abs().square().sum() + 0.25 * squares) / n


def group_monomials(
    group: FiniteAbelianGroup, *, chosen: str = "all", output: int | None = None, centred: bool = False,
    tied: bool = False,
) -> Monomials:  # fmt: skip
    """The monomials behind the potentials, as real functions (Re and Im) of the points z.

    Parameters
    ----------
    group : FiniteAbelianGroup
        The group, of order n.
    chosen : str
        ``all`` (with the trivial index when uncentred), ``R_g``, ``R_c``, ``R_n`` or ``R_*``.
    output : int, optional
        Only potentials with z_ck at this frequency (a number 1 .. n - 1 as in the group), those of l_k.
    centred, tied : bool
        Which coordinates the points have, see `GroupNetwork.measure`.

    Returns
    -------
    Monomials
        Complex coefficient coordinates z_ak, z_bk, z_ck for every k; duplicates by conjugation stay, so
        the rank of the set is at most half of its length.
    """
    n = group.order
    blocks = 2 if tied else 3
    wanted = []
    first = 1 if chosen != "all" or centred else 0
    for k in range(1, n) if output is None else [output]:
        for k1 in range(first, n):
            for k2 in range(first, n):
                opposite = group.negatives[k1] == k2
                mixed = "R_g" if k1 == k2 == k else "R_c"
                square = "R_n" if opposite else "R_*"
                if chosen in {"all", mixed}:
                    wanted.append((k1, (1 % (blocks - 1)) * n + k2, k))
                if chosen in {"all", square}:
                    wanted += [(p * n + k1, p * n + k2, k) for p in range(blocks - 1)]
    return _real_functions(group, wanted, centred=centred, blocks=blocks)


def sampled_monomials(
    group: FiniteAbelianGroup, count: int, *, centred: bool, tied: bool, rng: np.random.Generator
) -> Monomials:
    """A random sample of R with non-trivial frequencies: mixed and square potentials alike, Re and Im."""
    blocks, n = 2 if tied else 3, group.order
    rows = []
    for k1, k2, k in rng.integers(1, n, size=(count, 3)):
        first, second = rng.integers(0, blocks - 1, size=2)
        rows.append((first * n + k1, second * n + k2, k))
    return _real_functions(group, sorted(set(rows)), centred=centred, blocks=blocks)


def _real_functions(
    group: FiniteAbelianGroup, rows: list[tuple[int, int, int]], *, centred: bool, blocks: int
) -> Monomials:
    """Re and Im of ``zeta_i zeta_j z_ck`` for rows (i, j, k) over the coefficients of a, (b,) and c."""
    n = group.order
    exponents = np.zeros((len(rows), blocks * n), dtype=np.int64)
    for row, (i, j, k) in enumerate(rows):
        for column in (i, j, (blocks - 1) * n + k):
            exponents[row, column] += 1
    both = np.repeat(exponents, 2, axis=0)
    coordinates = _coefficient_map(group, centred=centred, blocks=blocks)
    return Monomials(both, coordinates, np.arange(len(both)) % 2 == 1)


def _coefficient_map(group: FiniteAbelianGroup, *, centred: bool, blocks: int) -> np.ndarray:
    """Linear map from real coordinates z to complex coefficients of a, (b,) c, shape (blocks n, D)."""
    forward = group.fourier(np.sqrt(group.order) * group.real_basis)[:, int(centred) :]
    width = forward.shape[1]
    full = np.zeros((blocks * group.order, blocks * width), dtype=complex)
    for i in range(blocks):
        part = forward.conj() if i == blocks - 1 else forward
        full[i * group.order : (i + 1) * group.order, i * width : (i + 1) * width] = part
    return full
