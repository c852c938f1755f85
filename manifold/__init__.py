"""Where measures live: groups, monomials, particle measures, maximum-entropy families.

Import from the modules, for example ``from manifold.groups.abelian import FiniteAbelianGroup``.
"""
