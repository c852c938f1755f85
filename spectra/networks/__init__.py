"""Two-layer networks as measures: activations, potentials, constructions, the semiring.

Begin with `group_network` (raw weights to a measure and back) and `potentials` (the symbols of a group
task); a new activation is one class in `activations`.
"""
