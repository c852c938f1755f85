"""Slow, obvious references. Nothing here imports spectra; each formula is written a second time.

Why each exists:
- `naive_outputs`, `naive_loss`: the network as a user would write it in plain torch.
- `dense_hessian`: reverse-over-reverse autodiff of any scalar, the reference of every product.
- `extended_hessian`: Hessian and gradients of the outputs in 80-bit arithmetic, for questions of rounding.
- `loss_by_potentials`: the loss rebuilt from the complex monomial potentials by explicit loops.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor


def elements(orders: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(n) for n in orders)))


def add(orders: tuple[int, ...], x: tuple[int, ...], y: tuple[int, ...]) -> tuple[int, ...]:
    return tuple((i + j) % n for i, j, n in zip(x, y, orders, strict=True))


def sum_table(orders: tuple[int, ...]) -> Tensor:
    all_elements = elements(orders)
    return torch.tensor([[all_elements.index(add(orders, x, y)) for y in all_elements] for x in all_elements])


def naive_outputs(a: Tensor, b: Tensor, c: Tensor, scale: float) -> Tensor:
    """o(x, y) = scale sum_j c_j (a_j[x] + b_j[y])^2 for weights of shape (n, q)."""
    return scale * torch.einsum("xyj,mj->xym", (a[:, None, :] + b[None, :, :]) ** 2, c)


def naive_loss(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    scale: float,
    orders: tuple[int, ...],
    loss: str,
    mask: Tensor | None = None,
) -> Tensor:
    """The three losses, each a mean over the (chosen) pairs."""
    n = a.shape[0]
    outputs = naive_outputs(a, b, c, scale)
    target = sum_table(orders)
    keep = torch.ones(n, n, dtype=torch.bool) if mask is None else mask
    if loss == "cross_entropy":
        return torch.nn.functional.cross_entropy(outputs[keep], target[keep])
    residual = outputs - torch.eye(n, dtype=a.dtype)[target]
    if loss == "projected_mse":
        residual = residual - residual.mean(-1, keepdim=True)
    return (residual**2).sum(-1)[keep].mean()


def dense_hessian(scalar, *weights: Tensor) -> Tensor:
    """Hessian of scalar(*weights) in all entries, flattened in order."""
    shapes = [w.shape for w in weights]
    sizes = [w.numel() for w in weights]

    def flat(vector: Tensor) -> Tensor:
        return scalar(*(part.reshape(s) for part, s in zip(vector.split(sizes), shapes, strict=True)))

    vector = torch.cat([w.detach().reshape(-1) for w in weights]).requires_grad_()
    (gradient,) = torch.autograd.grad(flat(vector), vector, create_graph=True)
    rows = [torch.autograd.grad(entry, vector, retain_graph=True)[0] for entry in gradient]
    return torch.stack(rows)


def character(orders: tuple[int, ...], k: tuple[int, ...], x: tuple[int, ...]) -> complex:
    return np.exp(2j * np.pi * sum(i * j / n for i, j, n in zip(k, x, orders, strict=True)))


def loss_by_potentials(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, orders: tuple[int, ...], *, centred: bool
) -> float:
    """Projected MSE from the monomial potentials of canonical weights (n, q), prediction o/(2n).

    H = (n-1)/n + (1/n) sum_{k != 0} l_k with every sum written out.
    """
    group = elements(orders)
    n, q = a.shape
    za = {k: sum(a[i] * np.conj(character(orders, k, x)) for i, x in enumerate(group)) / n for k in group}
    zb = {k: sum(b[i] * np.conj(character(orders, k, x)) for i, x in enumerate(group)) / n for k in group}
    zc = {k: sum(c[i] * character(orders, k, x) for i, x in enumerate(group)) / n for k in group}
    zero = group[0]
    minus = {k: tuple((-i) % m for i, m in zip(k, orders, strict=True)) for k in group}
    inner = [k for k in group if k != zero]
    span = inner if centred else group

    def rho(*factors: np.ndarray) -> complex:
        return np.prod(factors, axis=0).sum() / q

    def total(z: dict, m: tuple[int, ...], k: tuple[int, ...]) -> complex:
        keep = [p for p in span if not centred or add(orders, m, minus[p]) != zero]
        return sum(rho(z[p], z[add(orders, m, minus[p])], zc[k]) for p in keep)

    loss = (n - 1) / n
    for k in inner:
        term = -2 * rho(za[k], zb[k], zc[k]).real
        term += sum(abs(rho(za[k1], zb[k2], zc[k])) ** 2 for k1 in inner for k2 in inner)
        extra_a = {m: 0 if centred else 2 * rho(za[m], zb[zero], zc[k]) for m in inner}
        extra_b = {m: 0 if centred else 2 * rho(za[zero], zb[m], zc[k]) for m in inner}
        term += 0.25 * sum(
            abs(extra_a[m] + total(za, m, k)) ** 2 + abs(extra_b[m] + total(zb, m, k)) ** 2 for m in inner
        )
        means = 0 if centred else 2 * rho(za[zero], zb[zero], zc[k])
        term += 0.25 * abs(means + total(za, zero, k) + total(zb, zero, k)) ** 2
        loss += term / n
    return loss


def extended_hessian(a: Tensor, b: Tensor, c: Tensor, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Of the projected MSE on a cyclic group, parameters in the order a[x, j], b[y, j], c[k, j].

    Returns the Hessian (3 n q, 3 n q) and the gradients of the projected outputs (n^3, 3 n q), 80 bit.
    """
    a, b, c = (w.numpy().astype(np.longdouble) for w in (a, b, c))
    n, q = a.shape
    size = 3 * n * q
    hessian, rows = np.zeros((size, size), np.longdouble), []
    neuron = np.arange(q)
    for x in range(n):
        for y in range(n):
            at_a, at_b = x * q + neuron, n * q + y * q + neuron
            u = a[x] + b[y]
            slope = np.zeros((n, size), np.longdouble)
            for k in range(n):
                slope[k, at_a] = slope[k, at_b] = 2 * scale * c[k] * u
                slope[k, 2 * n * q + k * q + neuron] = scale * u**2
            slope -= slope.mean(0)
            residual = scale * (c @ u**2)
            residual[(x + y) % n] -= 1
            residual -= residual.mean()
            hessian += 2 * slope.T @ slope / n**2
            for k in range(n):
                at_c, push = 2 * n * q + k * q + neuron, 2 * residual[k] / n**2
                for i in (at_a, at_b):
                    for j in (at_a, at_b):
                        hessian[i, j] += push * 2 * scale * c[k]
                    hessian[i, at_c] += push * 2 * scale * u
                    hessian[at_c, i] += push * 2 * scale * u
            rows.append(slope)
    return hessian, np.concatenate(rows)
