"""What to verify: find the study's checkpoint again, and judge it by its kind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analyses.common.study_files import read_study
from analyses.subjects.subject import Subject
from analyses.verification.checks import Check, equal
from analyses.verification.exact.problem import RawProblem
from manifold.errors import InputError

KINDS = ("checkpoint", "crossings", "maxent")


@dataclass(frozen=True)
class Verdict:
    """The checks of one study.

    Parameters
    ----------
    checks : tuple of Check
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """No claim failed, and at least one was checked."""
        return all(c.passed is not False for c in self.checks) and any(c.passed for c in self.checks)

    @property
    def document(self) -> dict[str, Any]:
        """As the contract has it."""
        return {"checks": [check.document for check in self.checks], "passed": self.passed}

    @property
    def summary(self) -> str:
        """One line a claim, for the terminal."""
        words = {True: "pass", False: "FAIL", None: "----"}
        lines = [f"{words[c.passed]}  {c.claim:<34} {_told(c)}" for c in self.checks]
        count = [sum(c.passed is value for c in self.checks) for value in (True, False, None)]
        lines.append(f"{count[0]} passed, {count[1]} failed, {count[2]} not checked")
        return "\n".join(lines)


def _told(check: Check) -> str:
    if check.passed is None:
        return check.method
    reference, bound = _short(check.reference), _short(check.bound)
    return f"{_short(check.value)}, reference {reference}, within {bound}; {check.method}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_short(v) for v in value[:4]) + (", .." if len(value) > 4 else "") + "]"
    return str(value)


def read_claims(path: Path) -> tuple[str, dict[str, Any]]:
    """Kind and document of a study: netCDF as ``--out`` writes it, or the JSON of ``--json``.

    Parameters
    ----------
    path : Path

    Returns
    -------
    tuple of str and dict

    Raises
    ------
    InputError
        If the file holds no claims that can be verified.
    """
    if path.suffix == ".json":
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected the JSON document of a study; {error}") from error
        kind = _kind_of(document)
    else:
        study = read_study(path)
        kind = str(study.attrs.get("study", ""))
        try:
            document = json.loads(study.attrs["summary"])
        except (KeyError, ValueError):
            raise InputError(
                f"{path}: the study holds no summary; write it again with this version"
            ) from None
        if "question" in study.attrs:
            document["asked_potentials"] = json.loads(study.attrs["question"]).get("potentials", "all")
    if kind not in KINDS:
        raise InputError(
            f"{path}: studies of rhoscope analyze, crossings and maxent can be verified, this is "
            f"{kind or 'of an unknown kind'}"
        )
    return kind, document


def _kind_of(document: Any) -> str:
    if not isinstance(document, dict):
        return ""
    if "spectrum" in document and "checkpoint" in document:
        return "checkpoint"
    if "branches" in document and "crossings" in document:
        return "crossings"
    return "maxent" if "fits" in document or "log_partition" in document else ""


def recorded_arguments(document: dict[str, Any], command: str) -> list[str] | None:
    """Arguments of the command line that made a study, as its provenance has them; None if it was another."""
    words = shlex.split(str((document.get("provenance") or {}).get("command", "")))
    return words[2:] if len(words) > 1 and words[1] == command else None


def problem_of(subject: Subject) -> RawProblem:
    """The raw numbers of a subject, without anything computed from them.

    Parameters
    ----------
    subject : Subject

    Returns
    -------
    RawProblem
    """
    net = subject.network
    kind, coefficients = net.activation.name, getattr(net.activation, "coefficients", None)
    if coefficients is not None and kind != "square":
        kind = coefficients
    return RawProblem(
        net.group.orders, net.a.cpu().numpy(), None if net.tied else net.b.cpu().numpy(), net.c.cpu().numpy(),
        net.output_scale, kind, subject.loss, subject.pairs, subject.weight_decay, subject.centred,
        None if subject.labels is None else dealt_labels(net.group.orders, subject.labels),
    )  # fmt: skip


def dealt_labels(orders: tuple[int, ...], seed: int) -> np.ndarray:
    """The labels of a null control: x + y dealt out anew to the pairs by a seed."""
    n = int(np.prod(orders))
    zero = np.zeros((n, 1))
    true = RawProblem(orders, zero, zero, zero).wanted()
    return np.random.default_rng(seed).permutation(true.reshape(-1)).reshape(true.shape)


def digest_check(document: dict[str, Any], path: Path) -> Check:
    """The file is the one that the study is about."""
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    return equal("checkpoint.sha256", document["checkpoint"]["sha256"], found, f"SHA-256 of {path.name}")


def same_question(subject: Subject, task: dict[str, Any]) -> Subject:
    """The subject with the objective that a study names: its loss, decay and centring.

    Raises
    ------
    InputError
        If the study is about training pairs that nothing tells.
    """
    changes = {
        "loss": task["loss"],
        "centred": bool(task["centred"]),
        "weight_decay": float(task["weight_decay"]),
    }
    if task["pairs"] == "all":
        changes["pairs"] = None
    elif subject.pairs is None:
        raise InputError("the study is about training pairs, and nothing beside the checkpoint tells them")
    return dataclasses.replace(subject, **changes)
