"""T_R of a functional at its particles: from all gradients, or from a form of them, with or without kinks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from manifold.measures import ParticleMeasure
from manifold.monomials import Monomials
from spectra.functionals.base import Functional
from spectra.operators.complement import Complement
from spectra.operators.tangent import TangentSpace, tangent_space, tangent_space_of_metric
from spectra.operators.variation import SecondVariation
from spectra.rounding import of_rows

SAME = 1e-9  # of two forms of the gradients: beyond rounding, below what a slope at a kink changes


def span_of_gradients(
    functional: Functional, measure: ParticleMeasure, space: Complement,
    potentials: Monomials | None = None,
) -> TangentSpace:  # fmt: skip
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
    TangentSpace
        Rows of gradients that depend on the slope at a kink are taken for unknown, unless the gradients fill
        `space` with every slope: near kinks may have any mixture of them.
    """
    m = functional.potential_count if potentials is None else len(potentials)

    def gradients(of: Functional, at: ParticleMeasure) -> Tensor:
        chosen = None if potentials is None else potentials.jacobian(at.points)
        return SecondVariation(of.linearise(at)).weighted_gradients(chosen)

    table = gradients(functional, measure)
    others = functional.choices()
    change = torch.zeros_like(table)
    for other in others:
        change = torch.maximum(change, (gradients(other, measure) - table).abs_())

    def rounded(at: ParticleMeasure) -> Tensor:  # a moved particle leaves its kink, which is not rounding
        return torch.where(change > 0, table, gradients(functional, at))

    def span(gradients: Tensor, noise: Tensor) -> TangentSpace:
        return tangent_space(gradients, space, functions=m, noise=noise)

    noise, change = of_rows(measure, rounded, table), change.amax(1)
    turned = (gradients(other, measure) for other in others)
    return _unless_filled(span, table, turned, noise, change, space.dimension)


def span_of_form(functional: Functional, measure: ParticleMeasure, space: Complement) -> TangentSpace:
    """T_R as the range of a positive definite form of the gradients, see `Functional.metric`.

    Parameters
    ----------
    functional : Functional
    measure : ParticleMeasure
    space : Complement

    Returns
    -------
    TangentSpace
        At kinks as of `span_of_gradients`.
    """
    form = _form(functional, measure)
    roots = form.diagonal().sqrt()
    others = functional.choices()
    change = torch.zeros_like(roots)
    for other in others:
        turned = _form(other, measure)
        sizes = torch.maximum(roots, turned.diagonal().sqrt())
        differs = ((turned - form).abs() > SAME * torch.outer(sizes, sizes)).any(1)
        change = torch.maximum(change, torch.where(differs, sizes, 0.0))

    def rounded(at: ParticleMeasure) -> Tensor:
        return torch.where(change > 0, roots, _form(functional, at).diagonal().sqrt())[:, None]

    def span(form: Tensor, moved: Tensor) -> TangentSpace:
        return tangent_space_of_metric(form, space, functions=functional.potential_count, moved=moved)

    moved = of_rows(measure, rounded, roots[:, None])
    turned = (_form(other, measure) for other in others)
    return _unless_filled(span, form, turned, moved, change, space.dimension)


def _unless_filled(
    span: Callable[[Tensor, Tensor], TangentSpace], own: Tensor, turned: Iterable[Tensor], noise: Tensor,
    change: Tensor, full: int,
) -> TangentSpace:  # fmt: skip
    """T_R where gradients fill all dimensions with every slope, else of the rows that no kink decides."""
    found = span(own, noise)
    if not bool(change.any()):
        return found
    if found.rank == full and all(span(table, noise).rank == full for table in turned):
        return found
    return span(own, noise + change)


def _form(functional: Functional, measure: ParticleMeasure) -> Tensor:
    """A positive definite form of all gradients, (N, N); rounding leaves no diagonal entry below zero."""
    form = SecondVariation(functional.metric().linearise(measure), parts=("interaction",)).dense()
    form.diagonal().clamp_min_(0)
    return form
