"""The matrix of the second variation of a group task, and its inverse, without an operator product.

For a squared loss over all pairs ``H = mean |P(f - e)|^2`` the interaction of neurons j and l is
``(2/n^2) <grad phi_j, grad phi_l>`` with ``phi_j = c_j (a_j[x] + b_j[y])^2 / 2n``. Its blocks need tables of
sums over pairs, of ``u_j u_l``, ``u_j u_l^2`` and ``u_j^2 u_l^2`` with u = a[x] + b[y]; a row of blocks
costs O(q n^3) and is written straight into the matrix. The c-c part is one q x q matrix P for every output,
so eliminating c leaves a matrix of the first-layer unknowns alone, two thirds of the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from manifold.errors import InputError
from spectra.functionals.base import Linearisation
from spectra.operators.packed_cholesky import PackedMatrix
from spectra.tasks.group_task import GroupTask

Preconditioner = Callable[[Tensor, Tensor], Tensor]


def group_task(at: Linearisation) -> GroupTask | None:
    """The group task behind a linearisation, decayed or not; None for any other functional."""
    inner = getattr(at, "inner", at)  # decay wraps the linearisation of its task
    task = getattr(inner, "task", None)  # other activations share the linearisation, not the structure
    return task if isinstance(task, GroupTask) else None


def can_assemble(at: Linearisation) -> bool:
    """Whether a linearisation has the structure used here.

    Parameters
    ----------
    at : Linearisation

    Returns
    -------
    bool
        True for an untied group task with a squared loss over all pairs, decayed or not.
    """
    task = group_task(at)
    return task is not None and task.loss != "cross_entropy" and task.pairs is None and not task.tied


class NeuronTables:
    """What sums over pairs are made of: the outputs of every neuron and its u = a[x] + b[y].

    Parameters
    ----------
    at : Linearisation
        A group task at a measure of q neurons, points (a, b, c) of dimension D = 3 d.

    Raises
    ------
    InputError
        If the task has another structure, see `can_assemble`.
    """

    def __init__(self, at: Linearisation):
        if not can_assemble(at):
            raise InputError("at: expected an untied group task with a squared loss over all pairs")
        task = group_task(at)
        self.n, self.q = task.group.order, len(at.measure)
        first = int(task.centred)
        self.basis = task.basis[:, first:].to(at.measure.points.dtype)
        self.weights = at.measure.weights
        a, b, c = task.embed(at.measure.points)
        self.c = c[:, first:]
        self.seen = torch.ones(self.c.shape[1], dtype=c.dtype, device=c.device)  # outputs the loss sees
        if task.projected and not task.centred:
            self.seen[0] = 0
        values = task.basis.to(c.dtype) * self.n**0.5
        self.u = (a @ values.T)[:, :, None] + (b @ values.T)[:, None, :]  # (q, n, n)
        self.local = at.local_blocks()
        self.decay = float(self.local[0, -1, -1])  # V is linear in c: what is on its diagonal is decay


class Assembly(NeuronTables):
    """Blocks of the second variation in half-density coordinates, row by row of neurons.

    Parameters
    ----------
    at : Linearisation
        As for `NeuronTables`.
    """

    def __init__(self, at: Linearisation):
        super().__init__(at)
        root = self.weights.sqrt()
        self.scale = 2 / self.n**2 * torch.outer(root, root)
        self.kernel = self.scale * (self.c @ self.c.T)  # c_j . c_l of values is n times that of coordinates
        squares = self.u.square().reshape(self.q, -1)
        self.outputs = self.scale / (4 * self.n) * (squares @ squares.T)  # P
        self.cubes = self._cubes()

    @property
    def first(self) -> int:
        """First-layer unknowns of a neuron, 2 d."""
        return 2 * self.basis.shape[1]

    def _cubes(self) -> Tensor:
        """``(a or b direction s of j) x l -> sum over pairs of u_j u_l^2``, scaled, (q, 2d, q)."""
        by_x, by_y = self.u.permute(1, 2, 0), self.u.permute(2, 1, 0)
        sums = [side.mT @ side.square() for side in (by_x, by_y)]  # (n, q, q)
        turned = [torch.einsum("xs,xjl->jsl", self.basis, s) for s in sums]
        return torch.cat(turned, dim=1) * (self.scale / (2 * self.n**0.5))[:, None, :]

    def first_layer(self, j: int, count: int | None = None) -> Tensor:
        """Interaction of the first layer of neuron j with that of the first ``count``, (2d, count, 2d)."""
        d, basis, others = self.basis.shape[1], self.basis, self.q if count is None else count
        mixed = self.u[j, :, None, :] * self.u[:others].transpose(0, 1)  # (x, l, y): u_j u_l
        cross = (basis.T @ mixed.reshape(self.n, -1)).reshape(d, others, self.n) @ basis
        squares = (basis[:, :, None] * basis[:, None, :]).reshape(self.n, -1)
        out = torch.empty(2 * d, others, 2 * d, dtype=basis.dtype, device=basis.device)
        of_x, of_y = mixed.sum(2), mixed.sum(0).T  # (n, l) each
        out[:d, :, :d] = (of_x.T @ squares).reshape(others, d, d).transpose(0, 1)
        out[d:, :, d:] = (of_y.T @ squares).reshape(others, d, d).transpose(0, 1)
        out[:d, :, d:] = cross
        out[d:, :, :d] = cross.permute(2, 1, 0)
        return out * self.kernel[j, :others][None, :, None]

    def matrix(self, *, dtype: torch.dtype | None = None) -> Tensor:
        """The whole symmetric matrix, shape (q D, q D).

        Parameters
        ----------
        dtype : torch.dtype, optional
            Of the result; default that of the points.

        Returns
        -------
        Tensor
        """
        q, f, g = self.q, self.first, self.c.shape[1]
        size = f + g
        dtype = self.u.dtype if dtype is None else dtype
        out = torch.zeros(q, size, q, size, dtype=dtype, device=self.u.device)
        outputs = torch.diag(self.seen)
        for j in range(q):
            out[j, :f, :, :f] = self.first_layer(j)
            out[j, :f, :, f:] = self.cubes[j][:, :, None] * self.c[j]
            out[j, f:, :, :f] = torch.einsum("lt,ls->tls", self.c, self.cubes[:, :, j])
            out[j, f:, :, f:] = self.outputs[j][None, :, None] * outputs[:, None, :]
            out[j, :, j, :] += self.local[j]
        return out.reshape(q * size, q * size)

    def eliminated(self, shift: float, inverse: Tensor) -> Iterator[Tensor]:
        """First-layer matrix of ``L - shift`` after elimination of c, by rows of neurons.

        Parameters
        ----------
        shift : float
        inverse : Tensor, shape (q, q)
            ``(P + decay - shift)^{-1}``.

        Yields
        ------
        Tensor
            Of neuron j, up to the diagonal, (2d, 2d (j + 1)): rows of ``X - shift - Y (inverse x 1) Y^T``
            with ``Y = c_j cubes_jl + (local a-c block of j at l = j)``.
        """
        q, f = self.q, self.first
        slopes = self.local[:, :f, f:]  # (q, 2d, d)
        turned = self.cubes @ inverse  # (q, 2d, q)
        of_c = torch.einsum("lst,jt->lsj", slopes, self.c)  # (q, 2d, q)
        kernel = self.c @ self.c.T
        flat_cubes, flat_slopes = self.cubes.reshape(-1, q), slopes.reshape(q * f, -1)
        for j in range(q):
            last, width = j + 1, f * (j + 1)
            row = self.first_layer(j, last)
            row[:, j] += self.local[j, :f, :f] - shift * torch.eye(f, dtype=row.dtype, device=row.device)
            row -= (turned[j] @ flat_cubes[:width].T).reshape(f, last, f) * kernel[j, :last][None, :, None]
            row -= turned[j, :, :last, None] * of_c[:last, :, j]
            row -= of_c[j, :, :last, None] * turned[:last, :, j]
            row -= (slopes[j] @ flat_slopes[:width].T).reshape(f, last, f) * inverse[j, :last][None, :, None]
            yield row.reshape(f, width)

    def couple(self, fields: Tensor) -> Tensor:
        """``Y`` applied to moves of c, (k, q, d) to (k, q, 2d)."""
        joint = self.c @ fields.mT  # (k, j, l)
        return torch.einsum("jsl,kjl->kjs", self.cubes, joint) + torch.einsum(
            "jst,kjt->kjs", self.local[:, : self.first, self.first :], fields
        )

    def couple_back(self, fields: Tensor) -> Tensor:
        """``Y^T`` applied to moves of the first layer, (k, q, 2d) to (k, q, d)."""
        joint = torch.einsum("jsl,kjs->kjl", self.cubes, fields)
        return joint.mT @ self.c + torch.einsum(
            "jst,kjs->kjt", self.local[:, : self.first, self.first :], fields
        )


class Elimination:
    """``L - shift`` by exact elimination of c: a congruence to a c-c part and a first-layer part.

    Parameters
    ----------
    assembly : Assembly
    shift : float
    """

    def __init__(self, assembly: Assembly, shift: float):
        self.assembly, self.shift, hidden = assembly, shift, assembly.decay - shift
        eye = torch.eye(assembly.q, dtype=assembly.outputs.dtype, device=assembly.outputs.device)
        values, vectors = torch.linalg.eigh(assembly.outputs + hidden * eye)
        self.inverse, self.hidden = vectors / values @ vectors.T, 1 / hidden
        seen = int(assembly.seen.sum())
        #: Negative eigenvalues of the c-c part; outputs that the loss does not see have ``decay - shift``.
        self.negative = seen * int((values < 0).sum())
        self.negative += (len(assembly.seen) - seen) * assembly.q * int(hidden < 0)

    @property
    def size(self) -> int:
        """Dimension 2dq of the first-layer part."""
        return self.assembly.q * self.assembly.first

    def rest(self) -> Iterator[tuple[int, Tensor]]:
        """The first-layer part up to its diagonal, (k, width) each, with the number of the first row."""
        rows = self.assembly.eliminated(self.shift, self.inverse)
        return ((j * self.assembly.first, part) for j, part in enumerate(rows))

    def _solve_outputs(self, fields: Tensor) -> Tensor:
        return torch.where(self.assembly.seen > 0, self.inverse @ fields, self.hidden * fields)

    def solve(self, block: Tensor, solve_rest: Callable[[Tensor], Tensor]) -> Tensor:
        """``(L - shift)^{-1}`` of a block, given solves with the first-layer part.

        Parameters
        ----------
        block : Tensor, shape (q D, k)
        solve_rest : callable
            Maps (2dq, k) to (2dq, k).

        Returns
        -------
        Tensor, shape (q D, k)
        """
        assembly, f = self.assembly, self.assembly.first
        fields = block.T.reshape(-1, assembly.q, f + assembly.c.shape[1])
        first, last = fields[..., :f], fields[..., f:]
        right = first - assembly.couple(self._solve_outputs(last))
        first = solve_rest(right.reshape(len(fields), -1).T).T.reshape(right.shape)
        last = self._solve_outputs(last - assembly.couple_back(first))
        return torch.cat([first, last], dim=-1).reshape(len(fields), -1).T


def elimination_inverse(assembly: Assembly, below: float) -> Preconditioner | None:
    """``(L - below)^{-1}`` by elimination of c and a single-precision Cholesky factor of the rest.

    Costs ``(2 d q)^3 / 3`` single-precision flops and ``2 (2 d q)^2`` bytes: single precision is enough to
    direct an iteration whose residuals are computed in double precision.

    Parameters
    ----------
    assembly : Assembly
    below : float
        A number below the spectrum, best by about the width of the cluster at the small end.

    Returns
    -------
    callable or None
        Maps residuals (N, k) and Ritz values to directions (N, k); None if ``below`` is not below.
    """
    eliminated = Elimination(assembly, below)
    if eliminated.negative:
        return None
    matrix = PackedMatrix(eliminated.size)
    for first, rows in eliminated.rest():
        matrix.set_rows(first, rows)
    if not matrix.factor():
        return None

    def solve_rest(right: Tensor) -> Tensor:
        return torch.as_tensor(matrix.solve(right.cpu().numpy()), dtype=right.dtype, device=right.device)

    def precondition(residuals: Tensor, values: Tensor) -> Tensor:
        return eliminated.solve(residuals / residuals.norm(dim=0).clamp_min(1e-300), solve_rest)

    return precondition
