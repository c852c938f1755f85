"""The Wasserstein gradient flow of particles: steps, fixed points, rates.

Begin with `gradient_flow`; `saddles` finds fixed points that are no minima, `rates_check` compares the flow
near one with its spectrum.
"""
