"""The benchmark's own pieces: its closed-form kernel, its rows, its check of the risks."""

import numpy as np
import pytest

from analyses.bench import complexity as bench
from manifold.errors import InputError
from tests.manifold.invariants.oracles_complexity import circle_kernel


@pytest.mark.parametrize("order", [1, 4, 16])
def test_closed_form_kernel(order):
    x, y = np.random.default_rng(0).uniform(0, 2 * np.pi, (2, 9))
    slow = circle_kernel(x, y, s=2, order=order)
    np.testing.assert_allclose(bench.averaged_kernel(x, y, order), slow, atol=1e-13)


def test_rows_of_a_small_case(monkeypatch):
    monkeypatch.setattr(bench, "_cases", lambda quick: [bench.CircleCase("small", 8, 150, 2, radius=4000)])
    rows = bench.run(quick=True)
    keys = {"case", "tool", "version", "quantity", "seconds", "peak_mib", "error", "ratio"}
    assert all(set(row) == keys for row in rows)
    assert rows[0]["tool"] == "rhoscope"
    assert max(row["error"] for row in rows) < 1e-6


def test_unknown_cases_are_named():
    with pytest.raises(InputError, match="nonsense"):
        bench.run(quick=True, cases=["nonsense"])
