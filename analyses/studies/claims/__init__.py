"""Every formal claim of the theory with a measured verdict.

Begin with `ledger` and `entries`; a new claim is one function in the file of its subject.
"""
