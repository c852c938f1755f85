import json
import re

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from analyses.commands.options.application import build_app
from analyses.common.study_files import read_study
from analyses.studies.maxent.document import to_dataset
from analyses.studies.maxent.figures import maxent_figures, sphere_figure
from analyses.studies.maxent.lifts import lift_frequencies
from analyses.studies.maxent.study import analyse_lift, fit_moments, scaled_condition
from manifold.errors import InfeasibleMomentsError, InputError, NotIntegrableError
from manifold.groups.abelian import FiniteAbelianGroup

CUBIC = "Re(z1*z2*conj(z3))"


def run(*arguments):
    return CliRunner().invoke(build_app(), ["maxent", *arguments])


def test_contract_of_given_moments():
    result = run("--space", "S5", "--monomials", CUBIC, "--moments", "0.1", "--json", "--quiet")
    document = json.loads(result.stdout)
    keys = (
        "space monomials moments lambda log_partition entropy entropy_riemannian reference fisher_rank "
        "dimension face moment_error condition converged reason method diagnostics"
    )
    assert set(keys.split()) <= set(document)
    assert document["reference"] == "uniform"
    assert document["face"] is None
    assert document["entropy"] == pytest.approx(document["log_partition"] - 0.1 * document["lambda"][0])
    assert document["entropy_riemannian"] == pytest.approx(document["entropy"] + np.log(np.pi**3))
    assert document["error_kind"] == "bound"
    assert 0 < document["lambda_error"][0] < 1e-10
    assert 0 < document["log_partition_error"] < 1e-11
    assert 0 < document["entropy_error"] < 1e-11


def test_moments_beside_frequencies_in_multiples_of_four():
    """lambda = -300 on x1^2 x3^2 (mpmath, 30 digits): the fit had -404 and called it matched to rounding."""
    document = fit_moments("S2", "x1^2*x3^2", [0.0013492451603780008])
    assert abs(document["lambda"][0] + 300) <= document["lambda_error"][0] < 1e-8
    assert abs(document["log_partition"] + 1.77115348522907) <= document["log_partition_error"] < 1e-11
    assert abs(document["entropy"] + 1.36637993711566) <= document["entropy_error"] + 1e-14


@pytest.mark.parametrize("gap", [1e-6, 1e-9, 1e-11])
def test_moments_near_the_boundary_are_interior(gap):
    """E x1 = coth(lambda) - 1 / lambda on S^2: lambda = 1 / (1 - E x1) up to e^-2lambda."""
    moment = 1 - gap
    exact = 1 / (1 - moment)
    document = fit_moments("S2", "x1", [moment])
    assert document["face"] is None
    assert abs(document["lambda"][0] - exact) <= document["lambda_error"][0] < 0.01 * exact
    entropy = np.log((1 - np.exp(-2 * exact)) / (2 * exact)) + 1
    assert abs(document["entropy"] - entropy) <= document["entropy_error"] < 1e-3


def test_sampled_fits_state_standard_errors():
    document = fit_moments("S2", "x3;x1", [0.3, 0.1], method="sampling")
    assert document["error_kind"] == "standard error"
    quadrature = fit_moments("S2", "x3;x1", [0.3, 0.1])
    miss = np.abs(np.subtract(document["lambda"], quadrature["lambda"]))
    assert (miss < 5 * np.array(document["lambda_error"])).all()
    for key in ("log_partition", "entropy"):
        assert abs(document[key] - quadrature[key]) < 5 * document[key + "_error"]
    assert document["condition"] == pytest.approx(quadrature["condition"], rel=0.1)


def test_condition_of_a_covariance_is_that_of_its_correlation():
    """Correlation 0.03: 1.03 / 0.97 in whatever units; correlating a covariance again gave 2e300."""
    covariance = np.array([[4.0, 0.06e-3], [0.06e-3, 1e-6]])
    assert scaled_condition(covariance) == pytest.approx(1.03 / 0.97)
    assert scaled_condition(np.eye(3)) == pytest.approx(1.0)
    assert scaled_condition(np.ones((2, 2))) > 1e15


def test_boundary_moments_give_a_face():
    document = fit_moments("S5", CUBIC, [3**-1.5])
    assert document["face"]["dimension"] == 2
    assert document["entropy"] == -np.inf
    text = run("--space", "S5", "--monomials", CUBIC, "--moments", str(3**-1.5), "--json", "--quiet").stdout
    assert json.loads(text)["entropy"] is None


def test_infeasible_moments_exit_with_their_certificate():
    result = run("--space", "S5", "--monomials", CUBIC, "--moments", "0.3")
    assert isinstance(result.exception, InfeasibleMomentsError)
    assert result.exception.exit_code == 2
    for word in ("u =", "u.rho", "h(u)"):
        assert word in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--space", "S2"),
        ("--space", "S2", "--monomials", "x1", "--moments", "0.1,0.2"),
        ("--space", "S2", "--monomials", "x1", "--moments", "abc"),
        ("--space", "S2", "--monomials", "x1", "--moments", "nan"),
        ("--space", "S2", "--monomials", "x1", "--moments", "0.1", "--method", "magic"),
        ("some.pt", "--space", "S2"),
        ("--space", "S2", "--monomials", "x1", "--moments", "inf"),
        ("--space", "S2", "--monomials", "x1;x2", "--moments", "0.1,,0.2"),
        ("--space", "S2", "--monomials", "x1;;x2", "--moments", "0.1,0.2"),
        ("--space", "S2", "--monomials", ";", "--moments", "0.1"),
        ("--space", "S2", "--monomials", "Re()", "--moments", "0.1"),
        ("--space", "S2", "--monomials", "x1^0", "--moments", "0.1"),
        ("--space", "S2", "--monomials", "x1^99999999999999999999", "--moments", "0.1"),
        ("--space", "S2", "--monomials", "x1^129", "--moments", "0.1"),
        ("--space", "S2", "--monomials", "x0", "--moments", "0.1"),
        ("--space", "S2", "--monomials", "x1^-1", "--moments", "0.1"),
        ("--space", "S0", "--monomials", "x1", "--moments", "0.1"),
        ("--space", "T0", "--monomials", "Re(z1)", "--moments", "0.1"),
        ("--space", "S2x", "--monomials", "x1", "--moments", "0.1"),
        ("--space", "S99999", "--monomials", "x1", "--moments", "0.1"),
        ("--space", "SO3", "--monomials", "x1", "--moments", "0.1"),
        ("--space", "S2", "--monomials", "x1", "--moments", "nan", "--dry-run"),
        ("--space", "S0", "--monomials", "x1", "--moments", "0.1", "--dry-run"),
        ("--space", "S2xR1", "--monomials", "x1", "--moments", "0.1"),
    ],
)
def test_bad_input(arguments):
    assert isinstance(run(*arguments).exception, InputError)


def test_a_growing_density_names_its_direction():
    found = run("--space", "R2", "--monomials", "x1^3;x2^2", "--moments", "0.1,0.2")
    assert isinstance(found.exception, NotIntegrableError)
    assert found.exception.exit_code == 2
    assert "along [-1." in str(found.exception)


@pytest.mark.parametrize(
    ("monomials", "moments", "words"),
    [("x1^2;x2^2;x3^2", "0.3,0.3,0.3", "= 1 "), ("x1^2", "nan", "finite"), ("x1*", "0.1", "x1\\^2")],
)
def test_messages_name_the_cause(monomials, moments, words):
    found = run("--space", "S2", "--monomials", monomials, "--moments", moments)
    assert found.exception.exit_code == 2
    assert re.search(words, str(found.exception))


def test_dry_run_writes_nothing_to_stdout(capsys):
    result = run("--space", "S2", "--monomials", "x1", "--moments", "0.1", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout == ""


def circuit(count, *, noise, seed=0):
    """Neurons of the cosine circuit on Z7: one frequency each, aligned phases up to noise."""
    rng = np.random.default_rng(seed)
    z = np.zeros((3, count, 7), complex)
    for j in range(count):
        k = 1 + j % 3
        phase = rng.uniform(0, 2 * np.pi, 2)
        angles = [phase[0], phase[1], -phase.sum()]
        for p in range(3):
            value = np.exp(1j * (angles[p] + noise * rng.normal())) * (1 + noise * rng.normal())
            z[p, j, k], z[p, j, -k] = value, np.conj(value)
    return z


def test_neurons_of_a_circuit():
    a, b, c = circuit(240, noise=0.05)
    group = FiniteAbelianGroup.parse("Z7")
    lifts = lift_frequencies(group, a, b, c, base="frequency-sphere")
    assert [len(lift.points) for lift in lifts] == [80, 80, 80]
    mass = np.sqrt(sum(np.abs(z[:, lifts[0].k[0]]) ** 2 for z in (a, b, c))) ** 3 / 240
    assert lifts[0].mass == pytest.approx(mass.sum())
    document = analyse_lift(lifts[0], replicates=4)
    assert 0.95 < document["boundary_ratio"] < 1
    assert document["dimension"] == 2
    # Nothing but the target is imposed, so the neurons follow the maximum-entropy law up to noise.
    assert abs(document["entropy_gap"]) < 4 * document["entropy_gap_error"] + 0.5
    figures = maxent_figures(to_dataset({"fits": [document]}))
    assert set(figures) == {"entropies", "torus"}


def test_exactly_aligned_neurons_are_singular():
    a, b, c = circuit(900, noise=0.0)
    lift = lift_frequencies(FiniteAbelianGroup.parse("Z7"), a, b, c, base="frequency-sphere")[0]
    document = analyse_lift(lift, replicates=3)
    assert document["boundary_ratio"] == pytest.approx(1, abs=1e-9)
    assert document["face"]["dimension"] == 2
    assert document["singular"] is True
    assert document["intrinsic_dimension"] == pytest.approx(2, abs=0.5)


def test_torus_base():
    a, b, c = circuit(240, noise=0.3)
    lift = lift_frequencies(FiniteAbelianGroup.parse("Z7"), a, b, c, base="torus")[0]
    document = analyse_lift(lift, replicates=3)
    total = np.angle(np.prod(lift.points[:, 0::2] + 1j * lift.points[:, 1::2], axis=1))
    assert document["moments"][0] == pytest.approx(lift.weights @ np.cos(total))
    assert document["converged"]


def test_real_characters_live_on_the_two_sphere():
    rng = np.random.default_rng(1)
    group = FiniteAbelianGroup.parse("Z4")
    a, b, c = (group.fourier(rng.normal(size=(4, 50))).T for _ in range(3))
    spaces = {lift.k: lift.space.name for lift in lift_frequencies(group, a, b, c, base="frequency-sphere")}
    assert spaces == {(1,): "S5", (2,): "S2"}


def test_global_sphere_keeps_the_norm():
    a, b, c = circuit(30, noise=0.1)
    (lift,) = lift_frequencies(FiniteAbelianGroup.parse("Z7"), a, b, c, base="sphere")
    assert lift.space.name == "S17"
    np.testing.assert_allclose(np.linalg.norm(lift.points, axis=1), 1)
    values = lift.monomials.values(torch.as_tensor(lift.points)).numpy()
    size = np.sqrt(2 * sum((np.abs(z[:, 1:4]) ** 2).sum(1) for z in (a, b, c)))
    np.testing.assert_allclose(lift.mass * lift.weights @ values,
                               [2**1.5 * np.mean((a * b * c)[:, k].real) for k in (1, 2, 3)])  # fmt: skip
    assert lift.mass == pytest.approx((size**3).mean())


def test_study_file(tmp_path):
    path = tmp_path / "study.nc"
    result = run(
        "--space", "S2", "--monomials", "x1;x2", "--moments", "0.1,0.2", "--out", str(path), "--quiet"
    )
    assert result.exit_code == 0, result.output
    study = read_study(path)
    np.testing.assert_allclose(study["moments"], [[0.1, 0.2]])
    assert all({"units", "definition"} <= set(v.attrs) for v in study.data_vars.values())


def test_sphere_figure_shows_a_density():
    figure = sphere_figure(lambda x: np.exp(x[:, 2]), points=np.eye(3))
    images = [image for axes in figure.axes for image in axes.get_images()]
    assert np.nanmax(images[0].get_array()) == pytest.approx(np.e, rel=1e-3)


def test_report(tmp_path):
    page = tmp_path / "page.html"
    result = run("--space", "S2", "--monomials", "x3", "--moments", "0.4", "--report", str(page), "--quiet")
    assert result.exit_code == 0, result.output
    text = page.read_text("utf-8")
    assert "The least committed measure" in text
    assert "x3" in text
