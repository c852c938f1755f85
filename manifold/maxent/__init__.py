"""Maximum-entropy measures ``exp(sum_i lambda_i r_i)`` with given moments.

Begin with `family` (the density, its moments and log Z), then `fitting` (Newton on the dual, by quadrature)
and `sampled_fits` (by samples); `moment_body` and `faces` say which moments exist, `fisher_rao` is the
geometry of the fit, `estimator` the scikit-learn face of it, `nearest_neighbours` the entropy of a sample.
"""
