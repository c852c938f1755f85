"""What proves a count of signs or a bound: independent of the solver that found the eigenvalues.

Begin with `inertia` (Sylvester's law by elimination); `convex_bounds` brackets the smallest eigenvalue,
`uncertainty` is what rounding of the points and slopes at kinks may change.
"""
