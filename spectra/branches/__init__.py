"""How a spectrum moves along training.

Begin with `crossings` (tracking by overlap, visits of zero); `motion` is the motion that first-order
perturbation theory predicts.
"""
