"""The ledger of claims: run the examinations and gather what they found."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import xarray as xr

from analyses.common.study_files import Progress, plain, provenance, silent
from analyses.studies.claims import (
    algebra,  # noqa: F401 - entering their claims
    dynamics,  # noqa: F401 - entering their claims
    learning,  # noqa: F401 - entering their claims
    spectra,  # noqa: F401 - entering their claims
)
from analyses.studies.claims.entries import EXAMINATIONS, Claim, Verdict
from analyses.studies.claims.laboratory import Laboratory
from manifold.errors import InputError

CLAIMS = tuple(EXAMINATIONS)


@dataclass(frozen=True)
class Ledger:
    """Claims with their verdicts.

    Parameters
    ----------
    claims : tuple of Claim
    seconds : dict of float
        Wall time per claim; shared runs count for the first claim that needs them.
    quick : bool
    seed : int
    """

    claims: tuple[Claim, ...]
    seconds: dict[str, float]
    quick: bool
    seed: int

    @property
    def document(self) -> dict[str, Any]:
        """The JSON of ``rhoscope claims``."""
        return {
            "claims": [claim.document for claim in self.claims],
            "quick": self.quick,
            "timing": {"seconds": sum(self.seconds.values()), "by_claim": self.seconds},
            "provenance": provenance(seed=self.seed),
        }

    @property
    def dataset(self) -> xr.Dataset:
        """The ledger for netCDF and reports: verdicts and seconds per claim, the document as ``summary``."""
        names = [one.id for one in self.claims]
        return xr.Dataset(
            {
                "verdict": ("claim", [one.verdict.value for one in self.claims],
                            {"units": "1", "definition": "what the measurement says about the claim"}),
                "seconds": ("claim", [self.seconds[name] for name in names],
                            {"units": "s", "definition": "wall time; shared runs count once"}),
            },
            coords={"claim": names},
            attrs={"study": "claims", "summary": json.dumps(plain(self.document))},
        )  # fmt: skip

    @property
    def summary(self) -> str:
        """Two lines per claim, then the count of the verdicts."""
        lines = [f"{one.id}: {one.verdict.value}\n  {one.note}" for one in self.claims]
        counts = [f"{sum(c.verdict is v for c in self.claims)} {v.value}" for v in Verdict]
        return "\n".join([*lines, "verdicts: " + ", ".join(counts)])


def examine(
    *, only: str | None = None, quick: bool = False, seed: int = 0, progress: Progress = silent
) -> Ledger:
    """Examine the claims.

    Parameters
    ----------
    only : str, optional
        One id of `CLAIMS`; default all.
    quick : bool
        Small sizes.
    seed : int
        First of the seeds.
    progress : Progress

    Returns
    -------
    Ledger

    Raises
    ------
    InputError
        For an unknown id.
    """
    if only is not None and only not in CLAIMS:
        raise InputError(f"--only: expected one of {', '.join(CLAIMS)}, got {only!r}")
    chosen = CLAIMS if only is None else (only,)
    laboratory, claims, seconds = Laboratory(quick, seed), [], {}
    for i, name in enumerate(chosen):
        progress(i, len(chosen), name)
        begin = time.perf_counter()
        claims.append(EXAMINATIONS[name](laboratory))
        seconds[name] = time.perf_counter() - begin
    progress(len(chosen), len(chosen), "done")
    return Ledger(tuple(claims), seconds, quick, seed)
