"""The words of the maximum-entropy study: what gap, singular, face and dimension mean for this result."""

from __future__ import annotations

from typing import Any

GLOSSARY = {
    "n_eff": "n_eff is 1 / (sum of squared weights): so many neurons of equal weight would say as much. "
    "rho/h is the share of the largest moment that any measure can have; it is 1 on the face.",
    "entropy": "Entropy is counted against the uniform measure: 0 is total ignorance, each lost nat divides "
    "the effective volume by e.",
    "gap": "The entropy gap is h(mu*) - h(mu) = KL(mu || mu*): what the network knows beyond these symbols. "
    "It is never negative; an estimate below twice its error, negative ones too, only says that so few "
    "neurons do not resolve it.",
    "singular": "Singular: the neurons fill a set of lower dimension than the space, so their true entropy "
    "is minus infinity and the finite gap only measures it at the resolution of the sample.",
    "face": "Face: moments on the boundary of what any measure can have force all mass onto the set where "
    "their combination is largest (for z_a z_b z_c: equal moduli and aligned phases, a two-torus).",
    "dimension": "Dimension: rank of the Fisher information, the number of independent symbols.",
}


def _number(value: Any, form: str = ".6g") -> str:
    return "-" if value is None else format(value, form)


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" +- {error:.1e}"


def _gap(fit: dict[str, Any]) -> str:
    error = fit.get("entropy_gap_error")
    return _number(fit.get("entropy_gap"), ".3f") + ("" if error is None else f" +- {error:.2f}")


def _empirical(fit: dict[str, Any]) -> float | None:
    """Entropy of the neurons, without the estimator's bias where that is known."""
    return None if fit.get("entropy_gap") is None else fit["entropy"] - fit["entropy_gap"]


def summary_of_moments(document: dict[str, Any]) -> str:
    """A few lines for the terminal about one fit."""
    lines = [f"maximum entropy on {document['space']} (reference: uniform probability measure)"]
    columns = (document[key] for key in ("monomials", "moments", "lambda", "lambda_error"))
    for name, rho, lam, error in zip(*columns, strict=True):
        lines.append(
            f"  {name:<32} moment {rho:>12.6g}   lambda {_number(lam, '>14.8g')}{_plus_minus(error)}"
        )
    face = document["face"]
    if face is None:
        kind = "bounds" if document["error_kind"] == "bound" else "standard errors"
        log_partition, entropy = (
            f"{document[key]:.10g}{_plus_minus(document[key + '_error'])}"
            for key in ("log_partition", "entropy")
        )
        lines.append(f"log partition {log_partition}, entropy {entropy} nats, "
                     f"dimension {document['dimension']}, condition {document['condition']:.3g} "
                     f"(errors: {kind})")  # fmt: skip
    else:
        lines.append(f"on a face of dimension {face['dimension']} ({face['kind']}): singular, entropy on "
                     f"the face {_number(face.get('entropy'))} nats")  # fmt: skip
        lines.append(GLOSSARY["face"])
    for sentence in document["diagnostics"].get("dependent", []):
        lines.append(f"dependent: {sentence}")
    lines.append(f"moment error {document['moment_error']:.1e} standard deviations; {document['reason']}")
    return "\n".join(lines)


def summary_of_fits(document: dict[str, Any]) -> str:
    """A table for the terminal about the frequencies of a network."""
    head = (f"{'frequency':>10} {'n_eff':>8} {'rho/h':>9} {'|lambda|':>10} {'entropy':>9} "
            f"{'empirical':>10} {'gap':>14} {'dim':>5} {'d_int':>6} singular")  # fmt: skip
    warnings = document.get("warnings", [])
    lines = [f"warning: {warning}" for warning in warnings]
    lines += [f"note: {note}" for note in document.get("notes", []) if note not in warnings]
    lines += [f"maximum entropy, base {document['base']}, step {document['checkpoint']['step']}", head]
    for fit in document["fits"]:
        lam = fit["lambda"]
        size = None if lam is None or any(v is None for v in lam) else sum(v * v for v in lam) ** 0.5
        words = {True: "yes", False: "no", None: "too few neurons", "-": "-"}
        singular = words[fit.get("singular", "-")]
        lines.append(
            f"{'x'.join(map(str, fit['k'])) or 'all':>10} {fit['effective_neurons']:>8.1f} "
            f"{fit['boundary_ratio']:>9.5f} {_number(size, '.5g'):>10} {_number(fit['entropy'], '.3f'):>9} "
            f"{_number(_empirical(fit), '.3f'):>10} {_gap(fit):>14} "
            f"{_number(fit['dimension'], 'd'):>5} "
            f"{_number(fit.get('intrinsic_dimension'), '.2f'):>6} {singular}"
        )
        if not fit["converged"]:
            lines.append(f"           not fitted: {fit['reason']}")
    lines += ["", *GLOSSARY.values()]
    return "\n".join(lines)
