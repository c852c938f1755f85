"""T_R of a functional at its particles: from all gradients or a form of them, for every slope at kinks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from manifold.measures import ParticleMeasure
from manifold.monomials import Monomials
from spectra.complement import Complement
from spectra.functionals import Functional
from spectra.rounding import of_rows
from spectra.tangent import TangentSpace, tangent_space, tangent_space_of_metric
from spectra.variation import SecondVariation

SAME = 1e-9  # of two forms of the gradients: beyond rounding, below what a slope at a kink changes


def spans_of_gradients(
    functional: Functional, measure: ParticleMeasure, space: Complement,
    potentials: Monomials | None = None,
) -> list[TangentSpace]:  # fmt: skip
    """T_R from the matrix of the gradients.

    Parameters
    ----------
    functional : Functional
    measure : ParticleMeasure
        Of q distinct particles of dimension D.
    space : Complement
        What the symmetries leave: T_R lies in it.
    potentials : Monomials, optional
        Functions to take instead of R.

    Returns
    -------
    list of TangentSpace
        Of the functional, and of each of its `Functional.choices`; the same one where no kink decides it.
    """
    m = functional.potential_count if potentials is None else len(potentials)

    def gradients(of: Functional, at: ParticleMeasure) -> Tensor:
        chosen = None if potentials is None else potentials.jacobian(at.points)
        return SecondVariation(of.linearise(at)).weighted_gradients(chosen)

    others = functional.choices()
    table = gradients(functional, measure)
    decided = torch.zeros_like(table, dtype=torch.bool)  # by the slope at a kink
    for other in others:
        decided |= gradients(other, measure) != table

    def rounded(at: ParticleMeasure) -> Tensor:  # a moved particle leaves its kink, which is not rounding
        return torch.where(decided, table, gradients(functional, at))

    noise = of_rows(measure, rounded, table)
    span = partial(tangent_space, space=space, functions=m, noise=noise)
    own = span(table)
    return [own, *(span(gradients(other, measure)) if bool(decided.any()) else own for other in others)]


def spans_of_forms(functional: Functional, measure: ParticleMeasure, space: Complement) -> list[TangentSpace]:
    """T_R as the range of a positive definite form of the gradients, see `Functional.metric`.

    Parameters
    ----------
    functional : Functional
    measure : ParticleMeasure
    space : Complement

    Returns
    -------
    list of TangentSpace
        As of `spans_of_gradients`.
    """
    others = functional.choices()
    form = _form(functional, measure)
    roots = form.diagonal().sqrt()
    decided = torch.zeros_like(roots, dtype=torch.bool)
    for other in others:
        changed = _form(other, measure)
        sizes = torch.maximum(roots, changed.diagonal().sqrt())
        decided |= ((changed - form).abs() > SAME * torch.outer(sizes, sizes)).any(1)

    def rounded(at: ParticleMeasure) -> Tensor:
        return torch.where(decided, roots, _form(functional, at).diagonal().sqrt())[:, None]

    moved = of_rows(measure, rounded, roots[:, None])
    span = partial(tangent_space_of_metric, space=space, functions=functional.potential_count, moved=moved)
    own = span(form)
    return [own, *(span(_form(other, measure)) if bool(decided.any()) else own for other in others)]


def _form(functional: Functional, measure: ParticleMeasure) -> Tensor:
    """A positive definite form of all gradients, (N, N); rounding leaves no diagonal entry below zero."""
    form = SecondVariation(functional.metric().linearise(measure), parts=("interaction",)).dense()
    form.diagonal().clamp_min_(0)
    return form
