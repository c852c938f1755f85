"""Axes of which half is enough, because reflections keep the functions."""

from __future__ import annotations

import numpy as np

from manifold.integration.polar_terms import Terms


def symmetric_axes(terms: Terms) -> list[bool]:
    """Axes of which half is enough, because reflections that keep every term map one half to the other.

    Half-turns of phases and reflections of single coordinates act by signs on the terms: the sign group
    that fixes all of them is a kernel over GF(2). If all coefficients are real, conjugating every
    phase is a symmetry too.
    """
    half = [False] * len(terms.axes)
    signed = [a for a, axis in enumerate(terms.axes) if axis.block in (0, 1)]
    parity = np.array([terms.keys[:, terms.axes[a].column] % 2 for a in signed], dtype=np.int64).T
    for pivot in _kernel_pivots(parity.reshape(len(terms.keys), len(signed))):
        half[signed[pivot]] = True
    if np.abs(terms.coefficients.imag).max(initial=0) < 1e-14:
        free = [a for a in signed if not terms.axes[a].block and not half[a]]
        if free:
            half[free[0]] = True
    return half


def _kernel_pivots(matrix: np.ndarray) -> list[int]:
    """Free columns of a matrix over GF(2): each carries a kernel vector that no other free column touches."""
    matrix = np.unique(matrix, axis=0) if len(matrix) else matrix
    rows, bound = [r.copy() for r in matrix], []
    for column in range(matrix.shape[1]):
        pivot = next((k for k in range(len(bound), len(rows)) if rows[k][column]), None)
        if pivot is None:
            continue
        rows[len(bound)], rows[pivot] = rows[pivot], rows[len(bound)]
        for k in range(len(rows)):
            if k != len(bound) and rows[k][column]:
                rows[k] = (rows[k] + rows[len(bound)]) % 2
        bound.append(column)
    return [c for c in range(matrix.shape[1]) if c not in bound]
