"""Which tensors are which weights: said by the user, or guessed and marked as a guess.

Begin with `layout`; `guesses` weighs `candidates` by `evidence`, `rivals` are what fits as well, `hints`
what lies beside the file, `tensor_expressions` the small language for weights.
"""
