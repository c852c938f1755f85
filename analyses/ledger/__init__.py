"""The claims ledger: each formal claim about the theory, measured, with its hypotheses and a verdict."""
