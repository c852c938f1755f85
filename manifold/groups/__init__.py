"""Finite groups and how they act: on elements, on spaces, on the indices of monomials.

Begin with `abelian` (a group task's group and its characters), then `actions` (isometries of a space);
`named` holds the actions that commands know by name: a new one is one entry there.
"""
