"""The referee's own arithmetic: it shares no formula with the engine that it checks.

Begin with `problem` and `reference`; `numbers` are fixed-point and extended precision.
"""
