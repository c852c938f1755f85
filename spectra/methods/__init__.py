"""Which operator, on which space, by which method: planned, said, done.

Begin with `plan`; the others are methods it may choose: `span_spectrum` (T_R by moments), `small_end` and
`large_end` (preparations of an iteration), `chart`.
"""
