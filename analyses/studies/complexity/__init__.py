"""Sample-complexity curves of invariant learning, and the theorem's verdict.

Begin with `study` and `plan`; `verdict` compares measured exponents and gains with the theorem, with
intervals.
"""
