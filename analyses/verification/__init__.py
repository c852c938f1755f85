"""The referee: what a study claims, computed again from the checkpoint by means that share nothing with it.

Nothing here imports `spectra`. Begin with `problem` (the network as raw numbers) and `hessian` (its plain
second derivatives, in more digits than a double has); `eigenvalues` and `span` turn them into a reference,
`reference` picks what fits, and the other files hold the claims of one kind of study each.
"""
