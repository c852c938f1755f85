"""Samples from exponential families where no rule reaches.

Begin with `tempered_hmc` (Hamiltonian Monte Carlo on a space, with tempering); `linear_forms` draws exactly
where the exponent is linear, `bridge` estimates log Z from samples.
"""
