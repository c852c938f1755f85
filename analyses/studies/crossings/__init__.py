"""A spectrum through training: counts, branches, crossings of zero, fixed points.

Begin with `study`; `records` is what is computed at one step, `document` what leaves the study.
"""
