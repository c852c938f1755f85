"""The pencil of span(R) from sums over neurons, without the gradients of its functions at the particles.

The functions ``phi_{u,p}(z) = c_u (a[x] + b[y])^2``, p = (x, y) a pair and u a real character that the loss
sees, span R of a group task. With ``U_p = a[x] + b[y]`` and a symmetric D x D block per neuron,

    sum_j w_j grad phi_{u,p}^T S_j grad phi_{u',p'}
        = sum_j w_j {4 c_u c_u' U_p U_p' (aa[x,x'] + ab[x,y'] + ab[x',y] + bb[y,y'])
                     + 2 c_u U_p U_p'^2 (ac[x,u'] + bc[y,u']) + 2 c_u' U_p' U_p^2 (ac[x',u] + bc[y',u])
                     + t delta_{uu'} U_p^2 U_p'^2},

where aa, ab, .. are parts of S_j with the coordinates of a and b turned into values, and its c-c part is t
times the identity. S = 1 gives the metric ``K``, S = Hess V the local part ``B``. A squared loss over all
pairs is quadratic in these functions with ``L'' = kappa``, ``kappa = 1/(2 n^3)``, so the second variation is
``kappa K K + B`` on their gradients. Both are matrix products over the neurons, about ``6 m^2 q`` flops each
for m functions; the m x q D matrix of gradients is never made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectra.functionals.base import Linearisation
from spectra.operators.assembly import NeuronTables

Advance = Callable[[], None]


class RestrictedMoments(NeuronTables):
    """Metric and local part of the second variation in the functions that span R, ordered by (u, x, y).

    Parameters
    ----------
    at : Linearisation
        A group task at a measure of q neurons, see `spectra.operators.assembly.can_assemble`.

    Raises
    ------
    InputError
        If the task has another structure.
    """

    def __init__(self, at: Linearisation):
        super().__init__(at)
        self.outputs = self.seen.nonzero().flatten()
        self.channels = self.c[:, self.outputs]  # (q, d)
        self.values = self.basis * self.n**0.5  # (n, coordinates of a): a[x] = values a
        self.curvature = 1 / (2 * self.n**3)
        self.squares = self.u.square().reshape(self.q, -1)

    @property
    def count(self) -> int:
        """Number m of functions."""
        return self.channels.shape[1] * self.n**2

    def metric(self, *, advance: Advance = lambda: None) -> Tensor:
        """``K = E grad phi . grad phi'``, shape (m, m)."""
        size = self.local.shape[1]
        eye = torch.eye(size, dtype=self.local.dtype, device=self.local.device)
        return self.form(eye.expand(self.q, size, size), advance=advance)

    def local_form(self, *, advance: Advance = lambda: None) -> Tensor:
        """``B = E grad phi^T Hess V grad phi'`` with the decay of the objective in V, shape (m, m)."""
        return self.form(self.local, advance=advance)

    def form(self, blocks: Tensor, *, advance: Advance = lambda: None) -> Tensor:
        """``sum_j w_j grad phi^T S_j grad phi'`` for every two functions.

        Parameters
        ----------
        blocks : Tensor, shape (q, D, D)
            Symmetric S_j, whose c-c part is one multiple of the identity for all neurons.
        advance : callable
            Called once for each of the n values of x' and each of the outputs.

        Returns
        -------
        Tensor, shape (m, m)
        """
        d, pairs = self.channels.shape[1], self.n**2
        table = torch.empty(d, pairs, d, pairs, dtype=self.u.dtype, device=self.u.device)
        self._write_first(table, blocks, advance)
        self._add_last(table, blocks, advance)
        for i in range(d):  # what was written is one half, its transpose the other
            for k in range(i + 1):
                whole = table[i, :, k] + table[k, :, i].T
                table[i, :, k], table[k, :, i] = whole, whole.T
        return table.reshape(self.count, self.count)

    def _write_first(self, table: Tensor, blocks: Tensor, advance: Advance) -> None:
        """Half of the part of the first layer on both sides."""
        n, q, s = self.n, self.q, self.values.shape[1]
        weighted = self.weights[:, None, None] * blocks
        aa, ab, bb = (
            self.values @ weighted[:, row, column] @ self.values.T
            for row, column in (
                (slice(s), slice(s)),
                (slice(s), slice(s, 2 * s)),
                (slice(s, 2 * s), slice(s, 2 * s)),
            )
        )
        d = self.channels.shape[1]
        products = (self.channels[:, :, None] * self.channels[:, None, :]).reshape(q, d * d)
        for x in range(n):
            for y in range(n):
                of_x, of_y = aa[:, :, x] + ab[:, :, y], ab[:, x, :] + bb[:, :, y]
                kernel = (of_x[:, :, None] + of_y[:, None, :]) * self.u
                kernel *= 2 * self.u[:, x, y, None, None]
                table[:, x * n + y] = (products.T @ kernel.reshape(q, -1)).reshape(d, d, n * n)
            advance()

    def _add_last(self, table: Tensor, blocks: Tensor, advance: Advance) -> None:
        """Add the part of c on the left and the first layer on the right, and half of c on both sides."""
        n, q, s = self.n, self.q, self.values.shape[1]
        ac = self.values @ blocks[:, :s, 2 * s + self.outputs]
        bc = self.values @ blocks[:, s : 2 * s, 2 * s + self.outputs]
        weighted = 2 * self.weights[:, None, None] * self.u
        both = 0.5 * float(blocks[0, -1, -1]) * (self.squares.T @ (self.weights[:, None] * self.squares))
        for i in range(len(self.outputs)):
            slope = weighted * (ac[:, :, None, i] + bc[:, None, :, i])
            right = (self.channels[:, :, None, None] * slope[:, None]).reshape(q, self.count)
            table[i].view(n * n, self.count).addmm_(self.squares.T, right)
            table[i, :, i] += both
            advance()

    def lift(self, coefficients: Tensor) -> Tensor:
        """Half-densities ``sqrt(w_j) grad f(z_j)`` of functions ``f = sum c_i phi_i``, (m, k) to (N, k)."""
        n, q, k = self.n, self.q, coefficients.shape[1]
        table = coefficients.T.reshape(k, -1, n * n)
        joint = (self.channels @ table).reshape(k, q, n, n) * (2 * self.u)
        of_c = torch.zeros(k, q, len(self.seen), dtype=joint.dtype, device=joint.device)
        of_c[..., self.outputs] = self.squares @ table.mT
        fields = torch.cat([joint.sum(3) @ self.values, joint.sum(2) @ self.values, of_c], dim=-1)
        return (self.weights.sqrt()[:, None] * fields).reshape(k, -1).T

    def project(self, halves: Tensor) -> Tensor:
        """Adjoint of `lift`: ``<grad phi_i, v>`` of half-densities v, (N, k) to (m, k)."""
        n, q, k, s = self.n, self.q, halves.shape[1], self.values.shape[1]
        fields = self.weights.sqrt()[:, None] * halves.T.reshape(k, q, -1)
        of_a, of_b, of_c = fields[..., :s], fields[..., s : 2 * s], fields[..., 2 * s + self.outputs]
        moves = (of_a @ self.values.T)[..., None] + (of_b @ self.values.T)[..., None, :]
        joint = (moves * (2 * self.u)).reshape(k, q, n * n)
        return (self.channels.T @ joint + of_c.mT @ self.squares).reshape(k, -1).T
