"""Sampling ``exp(lambda . r)`` where quadrature cannot reach: geodesic HMC with parallel tempering.

Many independent columns of chains run side by side; a column holds one chain per inverse temperature
``0 = beta_0 < .. < beta_R = 1`` of ``exp(beta lambda . r)`` and neighbours exchange their points. The columns
never talk to each other, so their spread gives honest Monte-Carlo errors, and the split R-hat of every
monomial shows blocks that compete (the R-hat of the energy does not: it is blind to which block is big).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError, NotConvergedError
from manifold.monomials import Monomials
from manifold.sampling.bridge import ladder_ratio
from manifold.sampling.linear_forms import LinearForm
from manifold.spaces.embedded import Space

RHAT_LIMIT = 1.02
MOST_LEAPS = 16
DRIFT = 2.5  # standard errors by which halves of a settled run differ once in 80 runs


@dataclass(frozen=True, eq=False)
class Samples:
    """Chains at ``beta = 1`` and what they say.

    Attributes
    ----------
    points : ndarray, shape (columns, ambient)
        Last point of every column.
    mean, standard_error : ndarray, shape (m,)
        ``E r`` and its Monte-Carlo error (spread of independent columns).
    covariance : ndarray, shape (m, m)
    log_partition, log_partition_error : float
        ``log integral exp(lambda . r) d(uniform)`` by bridge sampling along the ladder, and its standard
        error: the spread of independent columns, and what the halves of the run drift apart beyond it.
    rhat, effective : ndarray, shape (m,)
        Split R-hat and effective sample size of every monomial.
    betas : ndarray
        The temperature ladder.
    swap_rate : ndarray
        Share of accepted exchanges per neighbouring pair.
    acceptance : float
        Mean acceptance of HMC moves.
    sweeps : int
    records : ndarray, shape (sweeps, columns, m)
        The monomials along every chain at ``beta = 1``.
    """

    points: np.ndarray
    mean: np.ndarray
    standard_error: np.ndarray
    covariance: np.ndarray
    log_partition: float
    log_partition_error: float
    rhat: np.ndarray
    effective: np.ndarray
    betas: np.ndarray
    swap_rate: np.ndarray
    acceptance: float
    sweeps: int
    records: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)), repr=False)

    @property
    def converged(self) -> bool:
        """Whether split R-hat is below `RHAT_LIMIT` for every monomial."""
        return bool((self.rhat < RHAT_LIMIT).all())

    def diagnostics(self) -> dict:
        """Plain numbers for reports."""
        return {
            "rhat_max": float(self.rhat.max()), "effective_min": float(self.effective.min()),
            "standard_error_max": float((self.standard_error / np.sqrt(np.diag(self.covariance))).max()),
            "log_partition_error": self.log_partition_error, "temperatures": len(self.betas),
            "swap_rate_min": float(self.swap_rate.min(initial=1.0)), "acceptance": self.acceptance,
            "columns": len(self.points), "sweeps": self.sweeps,
        }  # fmt: skip


class TemperedSampler:
    """Columns of tempered HMC chains for one set of monomials; lambda may change between runs.

    Parameters
    ----------
    space : Space
        Compact, with geodesics.
    monomials : Monomials
    columns : int
        Independent columns.
    seed : int
    device : str
    """

    def __init__(
        self, space: Space, monomials: Monomials, *, columns: int = 48, seed: int = 0, device: str = "cpu"
    ):
        if not space.compact:
            raise InputError(f"sampler: expected a compact space, got {space.name}")
        self.space, self.monomials, self.columns = space, monomials, columns
        self.generator = torch.Generator().manual_seed(seed)
        self.form = LinearForm(monomials, device=device)
        self.device = device
        self.betas = torch.zeros(0, dtype=torch.float64)
        self.points = self.cloud = torch.zeros(0)
        self.log_step = torch.zeros(0)
        self.acceptance = 1.0
        self.leaps = MOST_LEAPS // 2

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator).to(self.device)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=self.generator).to(self.device)

    # --- moves ------------------------------------------------------------------------------------

    def move(
        self, points: Tensor, lam: Tensor, beta: Tensor, log_step: Tensor, *, leaps: int,
        trace: Callable[[int, Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """One HMC step of every chain (own beta and step); new points and acceptance probabilities.

        Parameters
        ----------
        points : Tensor, shape (chains, ambient)
        lam : Tensor, shape (m,)
        beta, log_step : Tensor, shape (chains,)
        leaps : int
            Leapfrog steps.
        trace : callable, optional
            Called as ``trace(leap, position)`` along the trajectory.
        """
        step = (log_step.exp() * (0.8 + 0.4 * self._uniform(len(points))))[:, None]
        scale = beta[:, None]

        def slope(x: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = self.form(x, lam)
            return beta * value, self.space.tangent(x, scale * gradient)

        level, force = slope(points)
        velocity = self.space.tangent(points, self._normal(*points.shape))
        start = level - velocity.square().sum(-1) / 2
        position = points
        for leap in range(1, leaps + 1):
            velocity = velocity + step / 2 * force
            position, velocity = self._geodesic(position, velocity, step)
            level, force = slope(position)
            velocity = velocity + step / 2 * force
            if trace is not None:
                trace(leap, position)
        probability = (level - velocity.square().sum(-1) / 2 - start).clamp(max=0).exp()
        accept = self._uniform(len(points)) < probability
        return self.space.project(torch.where(accept[:, None], position, points)), probability

    def _geodesic(self, position: Tensor, velocity: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        end, moved = self.space.geodesic(position, velocity * step, 1.0)
        return end, self.space.tangent(end, moved) / step

    def untempered(self, columns: int) -> TemperedSampler:
        """Chains at ``beta = 1`` only, continuing from the last points of this sampler (repeated if needed).

        All work goes into the chains that count. Right where these mix on their own, which split R-hat tells;
        they know no log-partition.
        """
        other = TemperedSampler(self.space, self.monomials, columns=columns, device=self.device)
        other.generator = self.generator
        other.betas, other.log_step = self.betas[-1:], self.log_step[-1:].clone()
        repeats = -(-columns // self.cloud.shape[0])
        other.points = self.cloud.repeat(repeats, 1)[None, :columns].clone()
        return other

    def prepare(
        self, lam: np.ndarray, *, overlap: float = 0.45, most: int = 64, particles: int = 256
    ) -> None:
        """Build the ladder by annealing from the uniform measure: neighbours overlap by about ``overlap``.

        Raises
        ------
        NotConvergedError
            If more than ``most`` temperatures would be needed.
        """
        lam_t = torch.as_tensor(lam, dtype=torch.float64, device=self.device)
        count = max(particles, self.columns)
        points = self.space.uniform(count, generator=self.generator).to(self.device)
        log_step = torch.full((count,), -1.0, dtype=torch.float64, device=self.device)
        betas, clouds, steps = [0.0], [points], [log_step[:1]]
        while betas[-1] < 1:
            energy = self.form(points, lam_t)[0]
            beta = _next_beta(energy, betas[-1], overlap)
            weights = torch.softmax((beta - betas[-1]) * energy, 0)
            chosen = torch.multinomial(weights.cpu(), count, replacement=True, generator=self.generator)
            points = points[chosen.to(self.device)]
            for _ in range(6):
                points, accepted = self.move(
                    points, lam_t, torch.full_like(log_step, beta), log_step, leaps=MOST_LEAPS // 2
                )
                log_step = (log_step + 0.5 * (accepted.mean() - 0.8)).clamp(max=0.3)
            betas.append(beta)
            clouds.append(points)
            steps.append(log_step[:1])
            if len(betas) > most:
                raise NotConvergedError(
                    f"sampler: more than {most} temperatures between uniform and this one: too concentrated"
                )
        self.betas = torch.tensor(betas, dtype=torch.float64, device=self.device)
        self.log_step = torch.cat(steps)
        picks = [
            c[torch.randperm(count, generator=self.generator)[: self.columns].to(self.device)] for c in clouds
        ]
        self.points = torch.stack(picks)  # (temperatures, columns, ambient)
        self.cloud = points

    def run(
        self, lam: np.ndarray, *, sweeps: int, warmup: int = 0, report: Callable | None = None
    ) -> Samples:
        """Sweep all columns: an HMC step of every chain, then exchanges between neighbouring temperatures.

        Parameters
        ----------
        lam : array_like, shape (m,)
        sweeps, warmup : int
            Recorded sweeps, and sweeps before them (which also tune the step lengths).
        report : callable, optional
            ``report(done, total, message)``.

        Returns
        -------
        Samples
        """
        if not len(self.betas):
            self.prepare(lam)
        lam_t = torch.as_tensor(np.asarray(lam), dtype=torch.float64, device=self.device)
        temperatures = len(self.betas)
        beta = self.betas.repeat_interleave(self.columns)
        records, energies, rates = [], [], []
        swaps = torch.zeros(temperatures - 1, 2, dtype=torch.float64)
        jumps = _Jumps(self.form.values, self.columns)
        for sweep in range(warmup + sweeps):
            flat = self.points.reshape(-1, self.points.shape[-1])
            tuning = sweep < warmup
            if tuning:
                jumps.begin(flat)
            flat, accepted = self.move(
                flat, lam_t, beta, self.log_step.repeat_interleave(self.columns),
                leaps=MOST_LEAPS if tuning else self.leaps, trace=jumps.see if tuning else None,
            )  # fmt: skip
            self.points = flat.reshape(self.points.shape)
            if self.betas[0] == 0:
                self.points[0] = self.space.uniform(self.columns, generator=self.generator).to(self.device)
            flat = self.points.reshape(flat.shape)
            rate = accepted.reshape(temperatures, self.columns).mean(1)
            if tuning:
                self.log_step = (self.log_step + 0.3 * (rate - 0.8)).clamp(max=0.3)
                if sweep < warmup // 2:  # steps still settle
                    jumps = _Jumps(self.form.values, self.columns)
                elif sweep == warmup - 1:
                    self.leaps = jumps.best(float(rate[-1]))
            else:
                rates.append(float(rate.mean()))
            energy = self.form(flat, lam_t)[0].reshape(temperatures, self.columns)
            energy = self._exchange(energy, sweep % 2, swaps)
            if not tuning:
                records.append(self.form.values(self.points[-1]).cpu().numpy())
                energies.append(energy.cpu().numpy())
            if report is not None:
                report(sweep + 1, warmup + sweeps, "tempered HMC")
        self.acceptance = float(np.mean(rates))
        return self._summary(np.array(records), np.array(energies), swaps.numpy())

    def _exchange(self, energy: Tensor, parity: int, swaps: Tensor) -> Tensor:
        for low in range(parity, len(self.betas) - 1, 2):
            gain = (self.betas[low + 1] - self.betas[low]) * (energy[low] - energy[low + 1])
            swap = self._uniform(self.columns).log() < gain
            swaps[low, 0] += float(swap.sum())
            swaps[low, 1] += self.columns
            both = self.points[[low, low + 1]]
            self.points[[low, low + 1]] = torch.where(swap[None, :, None], both.flip(0), both)
            pair = energy[[low, low + 1]]
            energy[[low, low + 1]] = torch.where(swap[None, :], pair.flip(0), pair)
        return energy

    def _summary(self, records: np.ndarray, energies: np.ndarray, swaps: np.ndarray) -> Samples:
        sweeps, columns, m = records.shape
        flat = records.reshape(-1, m)
        mean = flat.mean(0)
        covariance = np.atleast_2d(np.cov(flat.T))
        per_column = records.mean(0)
        error = per_column.std(0, ddof=1) / np.sqrt(columns)
        rhat = split_rhat(records)
        effective = np.minimum(np.diag(covariance) / np.maximum(error**2, 1e-300), len(flat))
        ladder = len(self.betas) > 1
        log_z, log_z_error = self._log_partition(energies) if ladder else (np.nan, np.nan)
        return Samples(
            self.points[-1].cpu().numpy().copy(), mean, error, covariance, log_z, log_z_error, rhat,
            effective, self.betas.cpu().numpy(), swaps[:, 0] / np.maximum(swaps[:, 1], 1),
            self.acceptance, sweeps, records,
        )  # fmt: skip

    def _log_partition(self, energies: np.ndarray) -> tuple[float, float]:
        """Bridge sampling between neighbours, and its standard error.

        The spread of the columns is blind to what they share (they all descend from one annealed cloud), the
        disagreement of the two halves of the run is not: what it is above the spread counts as well.
        """
        steps, half = np.diff(self.betas.cpu().numpy()), len(energies) // 2
        total, influence = ladder_ratio(energies, steps)
        columns = len(influence)
        # hypot does not overflow where rungs are far apart: the error is then huge, and says so.
        spread = np.sqrt(columns / (columns - 1)) * math.hypot(*influence.tolist())
        drift = (ladder_ratio(energies[:half], steps)[0] - ladder_ratio(energies[half:], steps)[0]) / 2
        return total, float(np.hypot(spread, max(abs(drift) - DRIFT * spread, 0.0)))


class _Jumps:
    """How far the monomials of the coldest chains travel along trajectories: chooses their length.

    The lag-one correlation after l leaps is ``rho = 1 - E (r(l) - r(0))^2 / (2 var r)``; the effective
    sample per gradient, ``(1 - rho) / (1 + rho) / (l + 1)``, is made largest for the slowest monomial.
    """

    def __init__(self, values: Callable[[Tensor], Tensor], columns: int):
        self.values, self.columns = values, columns
        self.squares: dict[int, Tensor] = {}
        self.starts: list[Tensor] = []

    def begin(self, points: Tensor) -> None:
        """A trajectory starts."""
        self.starts.append(self.values(points[-self.columns :]))

    def see(self, leap: int, position: Tensor) -> None:
        """It is at its ``leap``-th point."""
        jump = (self.values(position[-self.columns :]) - self.starts[-1]).square().mean(0)
        self.squares[leap] = self.squares.get(leap, 0) + jump

    def best(self, rate: float) -> int:
        """Leaps to take, given the acceptance rate of the longest trajectories."""
        variance = torch.cat(self.starts).var(0).clamp_min(1e-300)
        chosen, most = MOST_LEAPS, 0.0
        for leap, total in sorted(self.squares.items()):
            correlation = 1 - rate * total / len(self.starts) / (2 * variance)
            slowest = float(correlation.max().clamp(-0.5, 0.999))
            gain = (1 - slowest) / (1 + slowest) / (leap + 1)
            if gain > most:
                chosen, most = leap, gain
        return chosen


def _next_beta(energy: Tensor, beta: float, overlap: float) -> float:
    """The largest next beta at which the importance weights keep the share ``overlap`` of the sample."""

    def share(step: float) -> float:
        weights = torch.softmax(step * energy, 0)
        return float(1 / (len(energy) * weights.square().sum()))

    low, high = 0.0, 1.0 - beta
    if share(high) >= overlap:
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= overlap else (low, middle)
    return min(1.0, beta + max(low, 1e-6))


def split_rhat(records: np.ndarray) -> np.ndarray:
    """Split R-hat of each monomial, from records of shape (sweeps, chains, m)."""
    half = len(records) // 2
    chains = np.concatenate([records[:half], records[half : 2 * half]], axis=1)
    within = chains.var(0, ddof=1).mean(0)
    between = half * chains.mean(0).var(0, ddof=1)
    return np.sqrt(((half - 1) / half * within + between / half) / np.maximum(within, 1e-300))


def draw(
    space: Space, monomials: Monomials, lam: np.ndarray, count: int, *, seed: int = 0, moves: int = 40
) -> np.ndarray:
    """``count`` points of ``exp(lambda . r)``, shape (count, ambient): annealed from uniform, then HMC.

    The annealing carries the competing modes in their right shares up to its Monte-Carlo error (it resamples
    among ``max(count, 256)`` points); the moves at the end make the points nearly independent.
    """
    sampler = TemperedSampler(space, monomials, columns=count, seed=seed)
    sampler.prepare(lam)
    points = sampler.points[-1]
    lam_t = torch.as_tensor(lam, dtype=torch.float64)
    beta = torch.ones(count, dtype=torch.float64)
    step = sampler.log_step[-1].expand(count)
    for _ in range(moves):
        points, _ = sampler.move(points, lam_t, beta, step, leaps=MOST_LEAPS // 2)
    return points.numpy()
