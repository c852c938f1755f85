"""Second variations as symmetric operators, whole or on a subspace.

Begin with `variation`; `complement` takes symmetry directions away, `tangent` and `gradient_span` are T_R,
`span_moments` the operator on it by sums over neurons, `assembly` makes the matrix, `single_precision` a
cheap copy.
"""
