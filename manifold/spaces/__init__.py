"""Spaces that neurons live on, embedded in R^D, and the polynomials on them.

Begin with `embedded` (spheres, tori, balls, their products: a new space is one class there, see
docs/architecture.md); `homogeneous` are the spaces of sample-complexity studies, known by their spectrum;
`monomial_expressions` reads ``x1^2 x2`` as a user writes it.
"""
