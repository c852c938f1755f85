"""The bench of the spectral engine at a tiny size."""

from analyses.bench import spectrum as bench_spectrum


def test_rows_agree_with_the_generic_engine(monkeypatch):
    monkeypatch.setattr(bench_spectrum, "QUICK_WIDTHS", {"Z23": 6})
    rows = bench_spectrum.run(quick=True, cases=["Z23"], seed=1)
    keys = {"case", "tool", "version", "quantity", "seconds", "peak_mib", "error", "ratio"}
    assert all(set(row) == keys for row in rows)
    by = {(row["tool"], row["quantity"]): row for row in rows}
    same = by["torch double backward", "one product"]
    assert same["ratio"] > 0
    assert float(same["error"].split()[-1]) < 1e-12
    ends = by["torch double backward + eigsh", "ten largest eigenvalues"]
    assert float(ends["error"].split()[1]) < 1e-6
    for end in ("largest", "smallest"):
        ours = by["rhoscope", f"ten {end} eigenvalues"]
        assert float(ours["error"].split()[-1]) < 1e-6
    for name in bench_spectrum.FOREIGN:
        row = by[name, "one product"]
        assert row["seconds"] is None or row["seconds"] > 0
        assert row["seconds"] is not None or row["error"]
