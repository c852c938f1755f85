"""Losses as functionals of a measure, and what the second variation needs from them.

Begin with `base` (`Functional` and `Linearisation`); `conformance` checks a functional of one's own,
`loss_expressions` reads one from text.
"""
