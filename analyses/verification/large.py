"""Spectra whose Hessian does not fit: what Ritz values of another start prove about the claims."""

from __future__ import annotations

import numpy as np

from analyses.verification.checks import Check, unchecked
from analyses.verification.exact.problem import RawProblem
from analyses.verification.exact.products import Ends, lanczos_ends
from analyses.verification.spectrum import SpectrumClaim

METHOD = "Lanczos in double precision from another start, full orthogonalisation"


def large_spectrum_checks(claim: SpectrumClaim, problem: RawProblem, *, space: str, seed: int) -> list[Check]:
    """Judge the listed ends, the enclosure and the lower bounds of counts by Ritz values.

    Parameters
    ----------
    claim : SpectrumClaim
    problem : RawProblem
    space : str
        ``full``, ``span`` or ``complement``.
    seed : int

    Returns
    -------
    list of Check
    """
    m = problem.n**2 * (problem.n - int(not problem.sees_mean))
    if space == "span":
        return [unchecked("spectrum", None, f"the gradients of {m:,} potentials do not fit")]
    ends = lanczos_ends(problem, span=space == "complement", seed=seed + 1)
    checks = [
        _listed("spectrum.smallest", claim.smallest, claim.smallest_error, ends, 1),
        _listed("spectrum.largest", claim.largest, claim.largest_error, ends, -1),
        _enclosure(claim, ends),
    ]
    for name, sign in (("negative", -1), ("positive", 1)):
        proved = int((sign * ends.values > ends.rounding).sum())
        high = claim.bounds[name][1]
        passed = high >= proved
        checks.append(
            Check(f"spectrum.count_bounds.{name}", claim.bounds[name], None, [proved, None],
                  f"{METHOD}: Ritz values prove as many", passed, 0.0 if passed else float("inf"))
        )  # fmt: skip
    why = "the matrix does not fit"
    checks += [unchecked(f"spectrum.{name}", claim.counts[name], why) for name in ("negative", "positive")]
    checks.append(unchecked("spectrum.rank", claim.rank, why))
    return checks


def _listed(name: str, values: np.ndarray, errors: np.ndarray, ends: Ends, sign: int) -> Check:
    """Claims at one end; ``sign`` 1 for the smallest (Ritz values are above), -1 for the largest (below)."""
    if not len(values):
        return unchecked(name, [], "nothing is listed")
    order = slice(None) if sign == 1 else slice(None, None, -1)
    ritz, residual = ends.values[order], ends.residuals[order]
    count = min(len(values), len(ritz))
    beyond = sign * (values[:count] - errors[:count] - ritz[:count]) - ends.rounding
    worst = int(beyond.argmax())
    if beyond[worst] > 0:
        return Check(
            f"{name}[{worst}]", float(values[worst]), float(errors[worst]), float(ritz[worst]),
            f"{METHOD}: a Ritz value lies beyond the claim (Cauchy)", False,
            float(beyond[worst] / max(errors[worst], 1e-300)) + 1,
        )  # fmt: skip
    sharp = residual[:count] <= 1e-6 * ends.norm
    if not sharp.any():
        return unchecked(name, float(values[0]), "no Ritz value of the other start converged")
    matched = ritz[residual <= 1e-6 * ends.norm]
    bound = errors[:count] + residual[:count] + ends.rounding
    off = np.abs(values[:count] - ritz[:count])
    excess = np.where(sharp, off / bound, 0.0)
    i = int(excess.argmax())
    if excess[i] <= 1:
        told = f"{METHOD}: {int(sharp.sum())} of {len(values)} reached"
        return Check(
            f"{name}[{i}]", float(values[i]), float(bound[i]), float(ritz[i]), told, True, float(excess[i])
        )
    near = bool((np.abs(matched - values[i]) <= bound[i]).any())
    if near:  # a multiple eigenvalue, of which one start sees one copy
        return unchecked(f"{name}[{i}]", float(values[i]), "a multiple eigenvalue: Lanczos sees one copy")
    return unchecked(
        f"{name}[{i}]", float(values[i]), "not among the Ritz values of the other start (multiplicities?)"
    )


def _enclosure(claim: SpectrumClaim, ends: Ends) -> Check:
    name = "spectrum.smallest_enclosure"
    if claim.enclosure is None:
        return unchecked(name, None, "none is claimed")
    low, _ = claim.enclosure
    passed = bool(low <= ends.values[0] + ends.rounding)
    return Check(name, list(claim.enclosure), ends.rounding, float(ends.values[0]),
                 f"{METHOD}: no Ritz value lies below", passed, 0.0 if passed else float("inf"))  # fmt: skip
