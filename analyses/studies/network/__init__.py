"""One network at one step: loss, potentials, spectrum, degrees of freedom.

Begin with `study`.
"""
