"""Complete spectra of operators that are nearly block-diagonal.

Begin with `spectrum`; `partition` finds the blocks by frequency, `border` the neurons that belong to
several.
"""
