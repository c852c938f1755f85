"""`rhoscope analyze`: densities, subsets of the potentials, and spectra that cannot be had."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import spectra.methods.plan
from analyses.commands.options.application import build_app
from analyses.common.study_files import read_study
from analyses.runs.exports import write_network
from analyses.runs.run import read_target
from analyses.subjects.subject import subject_of
from analyses.training.trainer import TrainingPlan, train
from manifold.errors import InputError, NotConvergedError, TooLargeError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum
from spectra.networks.constructions import cosine, f4_6, f6
from spectra.networks.potentials import group_monomials
from spectra.operators.variation import SecondVariation
from spectra.tasks.group_task import GroupTask


def call(*arguments):
    result = CliRunner().invoke(build_app(), [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def limit(monkeypatch, function, **limits):
    """Change the default limits of a function, as a smaller machine would."""
    for name, value in limits.items():
        assert name in function.__kwdefaults__
        monkeypatch.setitem(function.__kwdefaults__, name, value)


def analysed(*arguments, code=0):
    result = call("analyze", *arguments, "--json", "--quiet")
    assert result.exit_code == code
    return json.loads(result.stdout)


def written(path, network):
    write_network(path, network, provenance={})
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "z5"
    train(TrainingPlan("Z5", width=12, steps=120, centred=True), path)
    return path


def test_density_of_a_network_in_document_study_and_report(tmp_path):
    network = cosine(FiniteAbelianGroup((5,)), neurons=20)
    file, out, page = written(tmp_path / "c.pt", network), tmp_path / "s.nc", tmp_path / "r.html"
    document = analysed(file, "--eigenvalues", "density", "--out", out, "--report", page)
    spectrum, density = document["spectrum"], document["spectrum"]["density"]
    assert (spectrum["largest"], spectrum["dimension"], spectrum["converged"]) == ([], 300, True)
    exact = np.linalg.eigvalsh(
        SecondVariation(GroupTask(network.group).linearise(network.measure())).dense().numpy()
    )
    assert abs(density["trace"] - exact.sum()) <= 4 * density["trace_standard_error"]
    slack = 4 * np.array(density["cumulative_standard_error"]) + 1e-6
    counted = (exact[None, :] <= np.array(density["edges"])[:, None]).sum(1)
    assert (np.array(density["cumulative_low"]) - slack <= counted).all()
    assert (counted <= np.array(density["cumulative_high"]) + slack).all()
    assert sum(density["counts"]) == pytest.approx(300)
    low, high = spectrum["count_bounds"]["negative"]
    assert 0 < low <= (exact < -1e-9).sum() <= high
    study = read_study(out)
    assert np.allclose(study.density_count, density["counts"])
    assert "Lanczos" in page.read_text("utf-8")
    summary = call("analyze", file, "--eigenvalues", "density", "--quiet").stdout
    assert "eigenvalues below" in summary


def test_density_needs_the_large_operator(tmp_path):
    file = written(tmp_path / "c.pt", cosine(FiniteAbelianGroup((5,)), neurons=8))
    with pytest.raises(InputError, match="density"):
        call("analyze", file, "--eigenvalues", "density", "--operator", "flat", "--quiet")


@pytest.mark.parametrize("potentials", ["R_g", "R_n", "k=2"])
def test_subsets_of_the_potentials_give_the_compression_to_their_gradients(trained, potentials):
    document = analysed(trained, "--potentials", potentials, "--eigenvalues", "all")
    spectrum = document["spectrum"]
    checkpoint, run = read_target(trained, step=None)
    subject = subject_of(checkpoint, run.layout, run)
    points = subject.measure.points.clone()
    full = SecondVariation(subject.objective.linearise(subject.measure)).dense().numpy()
    # The gradients by automatic differentiation of the complex products, the space by a QR with pivots.
    gradients = torch.autograd.functional.jacobian(lambda z: symbols(subject, potentials, z), points)
    q = len(points)
    columns = np.stack([gradients[j, :, j].T.numpy() for j in range(q)]).reshape(full.shape[0], -1)
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    left = left[:, sizes > 1e-10 * sizes[0]]
    exact = np.linalg.eigvalsh(left.T @ full @ left)
    assert spectrum["rank"] == left.shape[1] == len(spectrum["largest"])
    assert np.abs(np.array(spectrum["smallest"]) - exact).max() < 1e-10 * np.abs(exact).max()
    if potentials == "R_g":
        assert spectrum["rank"] == 4  # of eight functions, conjugates twice
        assert any("rank 4" in note for note in document["notes"])


def symbols(subject, potentials, points):
    """Re and Im of z_i z_j z_ck, written out: (q, m)."""
    n = subject.network.group.order
    values = np.sqrt(n) * subject.network.group.real_basis[:, 1:]
    forward = torch.as_tensor(np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) @ values / n)
    a, b, c = (part.to(torch.complex128) @ forward.T for part in points.chunk(3, dim=1))
    c = c[:, [-k % n for k in range(n)]]
    inner = range(1, n)
    if potentials == "R_g":
        products = [a[:, k] * b[:, k] * c[:, k] for k in inner]
    elif potentials == "R_n":
        products = [p[:, i] * p[:, -i % n] * c[:, k] for p in (a, b) for i in inner for k in inner]
    else:
        k = int(potentials[2:])
        products = [
            x[:, i] * y[:, j] * c[:, k] for x, y in ((a, b), (a, a), (b, b)) for i in inner for j in inner
        ]
    stacked = torch.stack(products, dim=1)
    return torch.cat([stacked.real, stacked.imag], dim=1)


def test_a_frequency_of_a_product_group_has_two_coordinates(tmp_path):
    group = FiniteAbelianGroup((3, 3))
    file = written(tmp_path / "f6.pt", f6(group))
    document = analysed(file, "--potentials", "k=1,2", "--eigenvalues", "2")
    assert document["spectrum"]["rank"] > 0
    chosen = group_monomials(group, output=5)
    assert (chosen.exponents[:, 18:].argmax(1) == 5).all()
    for text in ("k=1", "k=0,0", "k=1,5"):
        with pytest.raises(InputError, match="potentials"):
            call("analyze", file, "--potentials", text, "--quiet")


def test_all_eigenvalues_in_the_span_where_the_gradients_do_not_fit(trained, monkeypatch):
    options = ("--subspace", "span", "--eigenvalues", "all")
    expected = analysed(trained, *options)
    monkeypatch.setattr(spectra.methods.plan, "DENSE_WORK", 1.0)
    document = analysed(trained, *options)
    found, reference = document["spectrum"], expected["spectrum"]
    assert "moments of span(R)" in found["method"]
    assert found["subspace"] == "span"
    assert found["rank"] == reference["rank"] == 100
    largest = reference["largest"][0]
    np.testing.assert_allclose(found["smallest"], reference["smallest"], atol=1e-10 * largest)
    assert document["dof"] == expected["dof"]
    assert found["span_leak"] >= reference["span_leak"]
    assert any("span_leak is an upper bound" in note for note in document["notes"])
    assert "from sums over neurons" in call("analyze", trained, *options, "--dry-run").output


def test_what_does_not_fit_is_refused_with_its_size(tmp_path, monkeypatch):
    limit(monkeypatch, plan_spectrum, memory_limit=2**20)
    monkeypatch.setattr("spectra.blocks.partition.BLOCK_LIMIT", 300)
    file = written(tmp_path / "f46.pt", f4_6(FiniteAbelianGroup((11,))))
    with pytest.raises(
        TooLargeError, match=r"dimensions needs .* GiB.*largest of \d+ blocks has 7\d\d unknowns"
    ):
        call("analyze", file, "--subspace", "full", "--eigenvalues", "all", "--quiet")


def test_a_coupling_that_says_nothing_is_refused_before_the_work(tmp_path, monkeypatch):
    limit(monkeypatch, plan_spectrum, memory_limit=2**20)
    rng = np.random.default_rng(0)
    network = f6(FiniteAbelianGroup((7,)))
    network.a.add_(torch.as_tensor(0.3 * rng.standard_normal(network.a.shape)))
    file = written(tmp_path / "noisy.pt", network)
    with pytest.raises(NotConvergedError, match=r"norm .* % of the operator's"):
        call("analyze", file, "--subspace", "full", "--eigenvalues", "all", "--quiet")


def test_non_convergence_is_marked_and_exits_with_three(tmp_path, monkeypatch):
    limit(monkeypatch, compute_spectrum, max_seconds=0.0)
    monkeypatch.setattr(spectra.methods.plan, "DENSE_LIMIT", 10)
    file = written(tmp_path / "c.pt", cosine(FiniteAbelianGroup((7,)), neurons=30))
    out = tmp_path / "partial.nc"
    document = analysed(file, "--subspace", "full", "--eigenvalues", "3", "--out", out, code=3)
    spectrum = document["spectrum"]
    assert not spectrum["converged"]
    assert "limit" in spectrum["reason"]
    assert len(spectrum["largest"]) == 3
    worst = max(spectrum["largest_error"] + spectrum["smallest_error"])
    assert worst > 1e-6 * spectrum["largest"][0]
    assert len(read_study(out).eigenvalue) == 6
