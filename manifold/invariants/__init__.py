"""Kernels that a group leaves invariant, and what a symmetry buys in samples.

Begin with `kernel_ridge` (invariant kernel ridge regression); `torus_basis` and `sphere_basis` are the
eigenfunctions, `weyl` counts them, `predicted_risk` is the deterministic equivalent of the risk.
"""
