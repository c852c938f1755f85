"""Bench of the spectral engine: one product and both ends, against generic tools on the same network."""

from __future__ import annotations

import importlib
import importlib.metadata
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from analyses.bench.timing import flop_rates, interleaved_seconds
from analyses.common.study_files import Progress, silent
from analyses.common.versions import rhoscope_version
from analyses.training.trainer import RawGradient, TrainingPlan
from spectra.methods.large_end import prepare_large_end
from spectra.methods.small_end import prepare_small_end
from spectra.networks.group_network import GroupNetwork
from spectra.operators.single_precision import in_single_precision
from spectra.operators.variation import SecondVariation
from spectra.solvers.block_lanczos import block_spectrum
from spectra.tasks.group_task import GroupTask

CASES = ("Z23", "Z59", "Z113")
WIDTHS = {"Z23": 256, "Z59": 512, "Z113": 512}
QUICK_WIDTHS = {"Z23": 32, "Z59": 32, "Z113": 64}
SMALL_END_SECONDS = {"Z23": 20.0, "Z59": 60.0, "Z113": 180.0}  # for the ten smallest
SLOW_PRODUCT = 0.1  # seconds of another tool's product beyond which its slowest questions are shortened
IN_A_ROW = 5  # products of one tool in each turn, unless one of them is slow
TOLERANCE = 1e-6  # of the operator norm
REPEATS = 7  # of one product of every tool, ours and its in turn
COUNT = 10
FEW = 2  # eigenvalues asked of a slow tool whose time grows with their number


def run(
    *, quick: bool = False, cases: Sequence[str] = CASES, seed: int = 0, progress: Progress = silent
) -> list[dict[str, Any]]:
    """Rows of the bench: one product, the ten largest and the ten smallest eigenvalues.

    Every tool works on the Hessian of the projected MSE in the raw weights of the same network, trained here
    by a few Adam steps; its eigenvalues are ours divided by ``raw_scale``.

    Parameters
    ----------
    quick : bool
        Narrow networks, 30 training steps, no smallest eigenvalues by the generic engine.
    cases : sequence of str
        Of `CASES`.
    seed : int
        Of the weights and start vectors.
    progress : Progress
        Told the cases done.

    Returns
    -------
    list of dict
        Rows with the keys of ``rhoscope bench``; ratio = the other tool's time over ours. ``error`` holds
        the largest difference from our eigenvalues relative to the norm, our own residual, or what is
        missing.
    """
    rows: list[dict[str, Any]] = []
    for i, case in enumerate(cases):
        progress(i, len(cases), case)
        width = (QUICK_WIDTHS if quick else WIDTHS)[case]
        network = _trained(TrainingPlan(case, width=width, seed=seed), 30 if quick else 500)
        rows += _Case(f"{case} q={width}", network, seed).rows(quick)
    progress(len(cases), len(cases), "done")
    return rows


def _trained(plan: TrainingPlan, steps: int) -> GroupNetwork:
    network = plan.initial()
    gradient = RawGradient(plan.task(), network)
    weights = [w.clone() for w in (network.a, network.b, network.c)]
    optimiser = torch.optim.Adam(weights, lr=0.01)
    for _ in range(steps):
        _, slopes = gradient(weights)
        for w, g in zip(weights, slopes, strict=True):
            w.grad = g
        optimiser.step()
    return GroupNetwork(network.group, *weights, network.output_scale)


class PlainHessian:
    """The Hessian of the projected MSE of the plain torch network, by forward-over-reverse autodiff."""

    def __init__(self, network: GroupNetwork):
        self.network = network
        self.weights = [w.clone().requires_grad_() for w in (network.a, network.b, network.c)]
        self.size = sum(w.numel() for w in self.weights)
        self.matvecs = 0

    def loss(self, *weights: Tensor) -> Tensor:
        """Mean over the n^2 pairs of the squared projected error."""
        a, b, c = weights
        outputs = self.network.output_scale * (a[:, None, :] + b[None, :, :]).square() @ c.T
        target = torch.eye(len(a), dtype=a.dtype)[torch.as_tensor(self.network.group.sums)]
        residual = outputs - target
        residual = residual - residual.mean(-1, keepdim=True)
        return residual.square().sum(-1).mean()

    def product(self, vector: np.ndarray) -> np.ndarray:
        """Hessian times a flat vector by double backward, as the generic tools do it."""
        self.matvecs += 1
        parts = torch.as_tensor(vector).split([w.numel() for w in self.weights])
        slopes = torch.autograd.grad(self.loss(*self.weights), self.weights, create_graph=True)
        along = sum((g.flatten() * v).sum() for g, v in zip(slopes, parts, strict=True))
        found = torch.autograd.grad(along, self.weights)
        return torch.cat([g.flatten() for g in found]).numpy()


class _Case:
    def __init__(self, name: str, network: GroupNetwork, seed: int):
        self.name, self.network, self.seed = name, network, seed
        self.task, self.measure = GroupTask(network.group), network.measure()
        self.full = SecondVariation(self.task.linearise(self.measure))
        self.plain = PlainHessian(network)
        self.engine = f"torch double backward {torch.__version__}"

    def rows(self, quick: bool) -> list[dict[str, Any]]:
        vector = np.random.default_rng(self.seed).standard_normal(self.full.dimension)
        block = torch.as_tensor(vector)[:, None]
        ours, plain = self._products(block, lambda: self.plain.product(vector))
        n, q = self.network.group.order, self.network.width
        rate, peak = flop_rates(lambda: self.full.apply(block), 18 * n * q * q + 36 * n * n * q)
        words = (
            f"alone {rate / 1e9:.1f} Gflop/s by 18 n q^2 + 36 n^2 q, {100 * rate / peak:.0f} % of this "
            f"machine's matrix products ({peak / 1e9:.0f})"
        )
        own = {"tool": "rhoscope", "version": rhoscope_version()}
        generic = {"tool": "torch double backward", "version": torch.__version__}
        agreement = self._agreement(vector)
        rows = [
            self._row(own, "one product", ours, 1.0, words),
            self._row(generic, "one product", plain, plain / ours, f"relative difference {agreement:.1e}"),
        ]
        eigsh_tool = generic | {"tool": "torch double backward + eigsh"}
        slow = plain > SLOW_PRODUCT
        limit = 20 if quick else SMALL_END_SECONDS[self.name.split()[0]]
        ends, largest, norm = self._ends("largest", own, eigsh_tool, compare=not slow, limit=limit)
        compare = not (quick or slow)
        rows += ends + self._ends("smallest", own, eigsh_tool, compare=compare, limit=limit)[0]
        seconds = ends[0]["seconds"]
        return rows + [row for tool in FOREIGN for row in self._foreign(tool, block, seconds, largest, norm)]

    def _products(self, block: Tensor, other: Callable[[], Any]) -> list[float]:
        """Seconds of one of our products and of another tool's, in turn."""
        begin = time.perf_counter()
        other()
        runs = IN_A_ROW if time.perf_counter() - begin < SLOW_PRODUCT else 1
        return interleaved_seconds(lambda: self.full.apply(block), other, times=REPEATS, in_a_row=runs)

    def _agreement(self, vector: np.ndarray) -> float:
        """Difference of both products of one vector, brought to the same coordinates."""
        net = self.network
        basis = torch.as_tensor(net.group.real_basis)
        parts = torch.as_tensor(vector).reshape(3, *net.a.shape)
        field = torch.cat([part.T @ basis for part in parts], dim=1).reshape(-1, 1)
        image = self.full.apply(field).reshape(net.width, 3, -1)
        raw = torch.stack([(image[:, i] @ basis.T).T for i in range(3)]).flatten() / net.raw_scale
        other = torch.as_tensor(self.plain.product(vector))
        return float((raw - other).norm() / other.norm())

    def _ends(
        self, end: str, own: dict, generic: dict, *, compare: bool, limit: float
    ) -> tuple[list[dict], np.ndarray, float]:
        begin = time.perf_counter()
        single = in_single_precision(self.full, self.task, self.measure)
        if end == "smallest":
            small = prepare_small_end(self.full, single, COUNT, seed=self.seed, max_seconds=0.75 * limit)
            start, complete, precondition = small.start, small.complete, small.precondition
        else:
            large = prepare_large_end(self.full, single, COUNT, seed=self.seed)
            start, complete, precondition = large.start, large.complete, None
        found = block_spectrum(
            self.full, COUNT, tol=TOLERANCE, seed=self.seed, start=start,
            precondition=precondition, ends=(end,), complete=complete,
            max_seconds=limit - (time.perf_counter() - begin),
        )  # fmt: skip
        ours = time.perf_counter() - begin
        values = found.largest(COUNT)[0] if end == "largest" else found.smallest(COUNT)[0]
        residual = float(
            found.residuals[-COUNT:].max() if end == "largest" else found.residuals[:COUNT].max()
        )
        state = "" if found.converged else "not converged, "
        quantity = f"ten {end} eigenvalues"
        rows = [self._row(own, quantity, ours, 1.0, f"{state}largest residual {residual / found.norm:.1e}")]
        if compare:
            rows.append(self._generic_ends(generic, quantity, end, values, found.norm, ours))
        return rows, values, found.norm

    def _generic_ends(
        self, tool: dict, quantity: str, end: str, values: np.ndarray, norm: float, ours: float
    ) -> dict[str, Any]:
        size, scale = self.plain.size, self.network.raw_scale
        operator = LinearOperator((size, size), matvec=self.plain.product, dtype=np.float64)
        start = np.random.default_rng(self.seed).standard_normal(size)
        begin, lost = time.perf_counter(), ""
        try:
            found = eigsh(
                operator, k=COUNT, which="LA" if end == "largest" else "SA", tol=TOLERANCE, v0=start,
                ncv=80, maxiter=20, return_eigenvectors=False,
            )  # fmt: skip
        except ArpackNoConvergence as stopped:
            found = stopped.eigenvalues
            lost = f"{len(found)} of {COUNT} converged in {self.plain.matvecs} products; "
        seconds = time.perf_counter() - begin
        found = np.sort(found * scale)[:: -1 if end == "largest" else 1]
        worst = np.abs(found - values[: len(found)]).max(initial=0.0) / norm
        return self._row(tool, quantity, seconds, seconds / ours, f"{lost}difference {worst:.1e} of the norm")

    def _foreign(self, name: str, block: Tensor, ours: float, largest: np.ndarray, norm: float) -> list[dict]:
        """One product and the largest eigenvalues by another tool, where it is installed.

        ``ours`` are the seconds of our ten largest eigenvalues.
        """
        module, make = FOREIGN[name]
        tool = {"tool": name, "version": None}
        try:
            importlib.import_module(module)
        except ImportError:
            return [self._row(tool, "one product", None, None, "not installed (extra: bench)")]
        tool["version"] = importlib.metadata.version(name)
        vector = block[:, 0].numpy()
        try:
            product, top = make(self.network)
            reference = self.plain.product(vector)
            worst = np.abs(product(vector) - reference).max() / np.abs(reference).max()
            own, seconds = self._products(block, lambda: product(vector))
            count = COUNT if name == "curvlinops-for-pytorch" or seconds < SLOW_PRODUCT else FEW
            begin = time.perf_counter()
            found = np.sort(top(count))[::-1] * self.network.raw_scale
            span = time.perf_counter() - begin
        except Exception as error:  # a foreign tool may fail in any way; the bench reports it
            text = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            return [self._row(tool, "one product", None, None, text)]
        off = np.abs(found - largest[: len(found)]).max() / norm
        words = {COUNT: "ten", FEW: "two"}[count]
        return [
            self._row(tool, "one product", seconds, seconds / own, f"difference {worst:.1e}"),
            self._row(
                tool, f"{words} largest eigenvalues", span, span / ours, f"difference {off:.1e} of the norm"
            ),
        ]

    def _row(
        self, tool: dict, quantity: str, seconds: float | None, ratio: float | None, error: str
    ) -> dict[str, Any]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "case": self.name, **tool, "quantity": quantity, "seconds": seconds, "peak_mib": peak,
            "error": error, "ratio": ratio,
        }  # fmt: skip


class _Module(torch.nn.Module):
    """The network as a user of a generic tool would write it, on pairs (x, y)."""

    def __init__(self, network: GroupNetwork):
        super().__init__()
        self.scale = network.output_scale
        self.a, self.b, self.c = (torch.nn.Parameter(w.clone()) for w in (network.a, network.b, network.c))

    def forward(self, pairs: Tensor) -> Tensor:
        return self.scale * (self.a[pairs[:, 0]] + self.b[pairs[:, 1]]).square() @ self.c.T


def _data(network: GroupNetwork) -> tuple[Tensor, Tensor]:
    n = network.group.order
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    target = torch.as_tensor(network.group.sums).flatten()
    return pairs, torch.nn.functional.one_hot(target, n).double()


class _ProjectedLoss(torch.nn.MSELoss):
    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        residual = outputs - target
        residual = residual - residual.mean(-1, keepdim=True)
        return residual.square().sum(-1).mean()


def _curvlinops(network: GroupNetwork) -> Tool:
    """Its Hessian operator, and SciPy's eigsh on it as its documentation does."""
    curvlinops = importlib.import_module("curvlinops")
    module = _Module(network)
    operator = curvlinops.HessianLinearOperator(
        module, _ProjectedLoss(), list(module.parameters()), [_data(network)], check_deterministic=False
    )

    def product(vector: np.ndarray) -> np.ndarray:
        return (operator @ torch.as_tensor(vector)).detach().numpy()

    def largest(count: int) -> np.ndarray:
        size = sum(p.numel() for p in module.parameters())
        linear = LinearOperator((size, size), matvec=lambda v: product(v.ravel()), dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(size)
        return eigsh(linear, k=count, which="LA", tol=TOLERANCE, v0=start, return_eigenvectors=False)

    return product, largest


def _pyhessian(network: GroupNetwork) -> Tool:
    """Its double backward, and its power iteration with default settings."""
    pyhessian = importlib.import_module("pyhessian")
    utilities = importlib.import_module("pyhessian.utils")
    module = _Module(network)
    tool = pyhessian.hessian(module, _ProjectedLoss(), data=_data(network), cuda=False)

    def product(vector: np.ndarray) -> np.ndarray:
        parts = torch.as_tensor(vector).split([p.numel() for p in tool.params])
        columns = [part.reshape(p.shape) for part, p in zip(parts, tool.params, strict=True)]
        found = utilities.hessian_vector_product(tool.gradsH, tool.params, columns)
        return torch.cat([f.detach().flatten() for f in found]).numpy()

    return product, lambda count: np.array(tool.eigenvalues(top_n=count)[0])


def _eigenthings(network: GroupNetwork) -> Tool:
    """Its Hessian operator, and its Lanczos with default settings."""
    eigenthings = importlib.import_module("hessian_eigenthings")
    module, loss = _Module(network), _ProjectedLoss()
    pairs, target = _data(network)
    operator = eigenthings.HessianOperator(
        module, [(pairs, target)], lambda model, batch: loss(model(batch[0]), batch[1])
    )

    def product(vector: np.ndarray) -> np.ndarray:
        return operator.matvec(torch.as_tensor(vector)).detach().numpy()

    def largest(count: int) -> np.ndarray:
        return eigenthings.lanczos(operator, k=count, which="LA").eigenvalues.numpy()

    return product, largest


Tool = tuple[Callable[[np.ndarray], np.ndarray], Callable[[int], np.ndarray]]
FOREIGN: dict[str, tuple[str, Callable[[GroupNetwork], Tool]]] = {
    "curvlinops-for-pytorch": ("curvlinops", _curvlinops),
    "pyhessian": ("pyhessian", _pyhessian),
    "hessian-eigenthings": ("hessian_eigenthings", _eigenthings),
}
