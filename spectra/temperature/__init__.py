"""Measures at a temperature: free energy, noisy flow, phase transitions.

Begin with `free_energy`; `curves` follows a branch through temperature, `transitions` finds where it
changes, `bounds` are its errors, `noisy_flow` the generator of the noisy flow.
"""
