"""Eigenvalues with error bounds.

Begin with `spectrum` (the result, its certificate, the dense solver); `block_lanczos` gives the ends of
large operators, `lanczos`, `lanczos_passes`, `lanczos_deep` and `ritz_basis` are its parts, `density` the
spectral density by quadrature.
"""
