"""The maximum-entropy measure with a network's potentials.

Begin with `study`; `lifts` brings neurons to a space, `runs` follows a run.
"""
