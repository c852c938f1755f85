"""The verdict: which parts of the theorem the data hold up, which term is slack, what is excluded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

KINDS = {"holds": "holds", "undecided": "undecided", "differs": "excluded"}  # where a verdict is listed
STATEMENT = "n = Theta(max{ vol(M/G) / eps^(1 + 1/(theta (kappa + 1))), log(1/delta) / eps^2 })"


def verdict(document: dict[str, Any]) -> dict[str, Any]:
    """Plain sentences with numbers, from the other parts of the JSON document.

    Parameters
    ----------
    document : dict
        With keys ``groups``, ``gain``, ``weyl``, ``second_term`` and optionally ``regimes``, ``network``.

    Returns
    -------
    dict
        ``statement``, ``holds``, ``undecided``, ``slack``, ``excluded``, ``notes``: lists of sentences. What
        holds and what is excluded follows from 95 % intervals alone; and
        ``prediction``: largest relative error of the deterministic equivalent above and below the
        target's Nyquist rate.
    """
    result: dict[str, Any] = {
        "statement": STATEMENT, "holds": [], "undecided": [], "slack": [], "excluded": [], "notes": []
    }  # fmt: skip
    result["prediction"] = _prediction(document["groups"])
    for part in (_weyl, _exponents, _gains, _second_term):
        for kind, sentence in part(document):
            result[kind].append(sentence)
    for kind, sentence in _regimes(document.get("regimes") or {}):
        result[kind].append(sentence)
    result["notes"] += list(_network(document.get("network")))
    above, below = result["prediction"]["above_nyquist"], result["prediction"]["below_nyquist"]
    result["notes"].append(
        f"Deterministic equivalent: within {_percent(above)} of the measured mean risk above the target's "
        f"Nyquist rate" + (f", {_percent(below)} off below it." if below is not None else ".")
    )
    return result


def _prediction(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Largest relative error of the prediction against the measured means, whose own error is in it."""
    above, below = [], []
    for group in groups:
        error = np.abs(group["prediction_error"])
        above += error[group["above_nyquist"]].tolist()
        below += error[~np.asarray(group["above_nyquist"])].tolist()
    return {
        "above_nyquist": max(above) if above else None,
        "below_nyquist": max(below) if below else None,
    }


def _weyl(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    bounded = [w for w in document["weyl"] if w["within_bound"] is not None]
    if bounded:
        good = sum(w["within_bound"] for w in bounded)
        yield (
            "holds" if good == len(bounded) else "excluded",
            f"Weyl's law with vol(M/G): {good} of {len(bounded)} counts within their proven remainder bound.",
        )


def _exponents(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for group in document["groups"]:
        slope = group["slope"]
        if slope["value"] is None:
            yield "notes", f"{group['name']}: no exponent; {slope['judgement']}."
            continue
        yield (
            KINDS[slope["verdict"]],
            f"Risk exponent of {group['name']} (d' = {group['quotient_dim']}): {_interval(slope)} for n in "
            f"{slope['range'][0]}..{slope['range'][1]} against {slope['theory']:.4f}: {slope['judgement']}.",
        )


def _gains(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for gain in document["gain"]:
        if gain["epsilon"] is not None:
            continue
        if gain["theory"] is None:
            yield (
                "notes",
                f"{gain['group']}: gain {_ratio(gain)} over these eps; it grows as eps -> 0 (d' differs).",
            )
            continue
        kind = KINDS[gain["verdict"]]
        yield (
            kind,
            f"Gain of {gain['group']} on the fixed target: {_ratio(gain)} against |H| = {gain['theory']:.4g}"
            + ("" if kind == "holds" else f"; the exact spectra predict {gain['predicted']:.3f} at these eps")
            + ("; the interval covers 1 as well" if gain["ci"][0] <= 1 <= gain["ci"][1] else "")
            + ".",
        )


def _second_term(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    test = document.get("second_term")
    if not test:
        yield "notes", "Second term: not tested (no asymptotic range, or too few noise draws for this delta)."
        return
    first = test["first_term_power"]
    yield (
        "notes",
        f"Regime: the first term has eps-power {first:.3f}, the second 2; as eps -> 0 the second "
        + ("would dominate." if first < 2 else "would not dominate."),
    )
    for row in test["rows"]:
        power, bound, fall = row["power"], row["largest_constant"], row["fall"]
        high, low = row["epsilon_range"]
        if first >= 2 or power["high"] >= 2:
            yield (
                "undecided",
                f"Second term undecided at delta = {row['delta']:g}: measured power {power['value']:.3f}.",
            )
            continue
        yield (
            "slack",
            f"delta = {row['delta']:g}: n needed for risk <= eps with probability 1 - delta grows like "
            f"eps^-{power['value']:.3f} [{power['low']:.3f}, {power['high']:.3f}], not eps^-2; "
            f"n eps^2 / log(1/delta) changes by the factor {fall['value']:.2f} from eps = {high:.3g} "
            f"to {low:.3g}.",
        )
        yield (
            "excluded",
            f"A necessary n >= c log(1/delta) / eps^2 with c > {bound['high']:.3g} "
            f"(delta = {row['delta']:g}, this target and ridge); the bound on c still falls as eps -> 0. "
            "As an upper bound the term is harmless; as part of a Theta, ridge regression does not need it.",
        )
    worst = test["rows"][-1]
    excess, limit = worst["excess_times_n_over_sigma2"], worst["chi_square_bound"]
    below = excess["high"] < limit
    stands = "below" if below else "above" if excess["low"] > limit else "not told apart from"
    yield (
        "notes",
        f"What delta costs: at the smallest eps the (1 - {worst['delta']:g})-quantile is "
        f"{worst['quantile_over_mean']['value']:.3f} times the mean risk, an excess of "
        f"{excess['value']:.3g} [{excess['low']:.3g}, {excess['high']:.3g}] sigma^2/n, {stands} the "
        f"chi-square bound 2 sqrt(D L) + 2 L = {limit:.3g} with D degrees of freedom and L = log(1/delta)"
        + (": that costs n = O(sigma^2 L / eps), one power of eps less than claimed." if below else "."),
    )


def _regimes(regimes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    cells = regimes.get("exponents") or []
    if cells:
        plain = sum(c["judgement"] == "covers the theorem's exponent" for c in cells)
        verdicts = [c["verdict"] for c in cells]
        holds, differ = verdicts.count("holds"), verdicts.count("differs")
        yield (
            _together(verdicts),
            f"Exponent table: {holds} of {len(cells)} intervals cover -theta s/(theta s + d'/2) "
            f"({plain} as they are, {holds - plain} once unlearned signal is counted as noise), "
            f"{len(cells) - holds - differ} are undecided (they have the slope of the deterministic "
            f"equivalent at these n, or no asymptotic range), {differ} differ.",
        )
    for row in regimes.get("saturation") or []:
        yield (
            "notes",
            f"Target {row['target']}: exponent {_interval(row)} against {row['expected']:.4f} (worst case "
            f"{row['theorem']:.4f}): the theorem's rate is that of the worst target in the class.",
        )
    if quiet := regimes.get("noiseless"):
        yield (
            "notes",
            f"Without noise the exponent is {_interval(quiet)} for the mean and "
            f"{_interval(quiet['median'])} for the median over designs, against {quiet['expected']:g} "
            f"without noise and {quiet['theorem_with_noise']:.3f} with it"
            + (
                ": the theorem needs sigma > 0."
                if quiet["median"]["ci"][1] < quiet["theorem_with_noise"]
                else "."
            ),
        )
    if zero := regimes.get("kappa_zero"):
        first, last = zero["rows"][0], zero["rows"][-1]
        yield (
            "excluded",
            f"kappa = 0 (s = d'/2): the kernel's trace grows by {zero['trace_growth_per_log_cutoff']:.2f} "
            f"per unit of log cutoff without limit; the risk at n = {zero['samples']} goes from "
            f"{first['risk_mean']:.4f} ({first['frequencies']} frequencies) to {last['risk_mean']:.4f} "
            f"({last['frequencies']}): there is no kernel to which the theorem could apply.",
        )
    for case in regimes.get("fixed_s") or []:
        parts = [
            f"{g['group']} (d' = {g['quotient_dim']}) {_interval(g['slope'])} "
            f"against {g['slope']['theory']:.3f}"
            for g in case["groups"]
            if g["slope"]["value"] is not None
        ]
        yield (
            _together([g["slope"]["verdict"] for g in case["groups"]]),
            f"{case['space']} at fixed s = {case['s']:g}, an infinite group changes the exponent through d': "
            + "; ".join(parts)
            + ".",
        )
    for case in regimes.get("gains") or []:
        for sentence in _gains({"gain": case["gain"]}):
            yield sentence[0], f"{case['space']}, s = {case['s']:g}: {sentence[1]}"
    if nyquist := regimes.get("below_nyquist"):
        yield (
            "notes",
            f"Below or near the Nyquist rate ({nyquist['nyquist']} functions, sigma = 0.05) the "
            f"deterministic equivalent is up to {_percent(abs(nyquist['worst_below_or_near']))} too low; "
            f"above eight times it, within {_percent(nyquist['worst_above'])}.",
        )


def _together(verdicts: list[str]) -> str:
    """Where a sentence on several verdicts is listed: it holds if all do, and is excluded if one is."""
    if "differs" in verdicts:
        return KINDS["differs"]
    return KINDS["holds"] if set(verdicts) == {"holds"} else KINDS["undecided"]


def _network(network: dict[str, Any] | None) -> Iterator[str]:
    if not network:
        return
    for gain in network["gain"]:
        if not np.isfinite(gain["ratio"]):
            yield (
                f"Network on {network['group']}, {gain['symmetry']}: an accuracy of {gain['accuracy']:.0%} "
                "on unseen pairs was not reached, or was passed at the smallest fraction; no gain."
            )
            continue
        yield (
            f"Network on {network['group']} ({network['seeds']} seeds), {gain['symmetry']}: reaches "
            f"{gain['accuracy']:.0%} on unseen pairs with {gain['ratio']:.2f} [{gain['ci'][0]:.2f}, "
            f"{gain['ci'][1]:.2f}] times fewer drawn pairs than free weights (the swap group has order 2)."
        )


def _interval(record: dict[str, Any]) -> str:
    return f"{record['value']:.4f} [{record['ci'][0]:.4f}, {record['ci'][1]:.4f}]"


def _ratio(gain: dict[str, Any]) -> str:
    return f"{gain['ratio']:.3f} [{gain['ci'][0]:.3f}, {gain['ci'][1]:.3f}]"


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{100 * value:.1f} %"
