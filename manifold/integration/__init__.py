"""Integrals of exponentials of polynomials over a space, each with its error bound.

Begin with `rules` (nodes and weights) and `products` (which rule for which space); `adaptive` refines until
two rules agree, `harmonics` proves how many nodes a frequency needs, `slices`, `symmetries`, `polar_terms`
and `boxes` make the dimension smaller first.
"""
