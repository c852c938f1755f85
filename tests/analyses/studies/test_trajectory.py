import json

import numpy as np
import pytest
import torch

from analyses.common.study_files import complex_variable, read_study, write_study
from analyses.layouts.layout import Layout
from analyses.runs.run import Run
from analyses.studies.trajectory import follow
from analyses.training.trainer import TrainingPlan, train
from manifold.errors import InputError, LayoutError
from tests import oracles


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    plan = TrainingPlan("Z4", width=12, optimizer="sgd", steps=60, seed=3)
    return train(plan, tmp_path_factory.mktemp("run") / "z4", save_every=20)


@pytest.fixture(scope="module")
def study(run):
    return follow(run)


def _projected_mse(state, scale):
    outputs = oracles.naive_outputs(state["w_a"], state["w_b"], state["w_c"], scale)
    residual = outputs.clone()
    for x in range(4):
        for y in range(4):
            residual[x, y, (x + y) % 4] -= 1
    residual -= residual.mean(-1, keepdim=True)
    return float(residual.square().sum(-1).mean())


def test_loss_and_potentials_equal_plain_computations(run, study):
    scale = run.config["output_scale"]
    tau = (2 * 4 * 12 * scale) ** (1 / 3)
    x = torch.arange(4, dtype=torch.float64)
    assert study.step.values.tolist() == [0, 20, 40, 60]
    for step in run.steps:
        state = run.read(step).tensors
        here = study.sel(step=step)
        assert float(here.loss) == pytest.approx(_projected_mse(state, scale), rel=1e-11)
        for k in range(1, 4):
            wave = torch.exp(-2j * np.pi * k * x / 4)
            za, zb = (tau * (wave @ state[name].to(wave.dtype)) / 4 for name in ("w_a", "w_b"))
            zc = tau * (wave.conj() @ state["w_c"].to(wave.dtype)) / 4
            expected = complex((za * zb * zc).mean())
            assert complex(here.target_potential[k - 1]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_counts_and_bounds_belong_to_the_eigenvalues(study):
    values, errors = study.eigenvalue.values, study.eigenvalue_error.values
    assert np.array_equal(np.isfinite(values).sum(1), study["rank"].values)
    assert np.array_equal((values < -errors).sum(1), study.negative.values)
    assert np.array_equal((values > errors).sum(1), study.positive.values)
    total = study.negative + study.marginal + study.positive + study.undetermined
    assert np.array_equal(total, study["rank"])
    assert int(study.negative[0]) > 0
    for row in values:
        assert np.all(np.diff(row[np.isfinite(row)]) >= 0)


def test_spectrum_equals_dense_autodiff(run, study):
    """q times the Hessian in z, compressed to the span of the gradients of the projected outputs (= T_R)."""
    scale = run.config["output_scale"]
    target = torch.eye(4, dtype=torch.float64)[(torch.arange(4)[:, None] + torch.arange(4)) % 4]
    factor = 12 * 4 * (2 * 4 * 12 * scale) ** (-2 / 3)

    def outputs(flat):
        a, b, c = (w - w.mean(0) for w in flat.reshape(3, 4, 12))
        out = scale * torch.einsum("xyj,mj->xym", (a[:, None] + b[None]) ** 2, c)
        return out - out.mean(-1, keepdim=True)

    def loss(flat):
        residual = outputs(flat) - (target - target.mean(-1, keepdim=True))
        return residual.square().sum(-1).mean()

    for step in (0, 60):
        state = run.read(step).tensors
        flat = torch.cat([state[name].flatten() for name in ("w_a", "w_b", "w_c")])
        gradients = torch.autograd.functional.jacobian(outputs, flat).reshape(64, -1).T
        left, sizes, _ = torch.linalg.svd(gradients, full_matrices=False)
        basis = left[:, sizes > 1e-10 * sizes[0]]
        hessian = torch.autograd.functional.hessian(loss, flat)
        expected = factor * torch.linalg.eigvalsh(basis.T @ hessian @ basis).numpy()
        found = study.eigenvalue.sel(step=step).dropna("eigen").to_numpy()
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_every_variable_says_units_and_definition(study):
    for name, variable in study.data_vars.items():
        assert variable.attrs.get("units"), name
        assert variable.attrs.get("definition"), name
    assert {"rhoscope", "torch", "seed", "command"} <= set(study.attrs)


def test_summary_survives_the_file(study, tmp_path):
    back = read_study(write_study(study, tmp_path / "t.nc"))
    assert json.loads(back.attrs["summary"]) == json.loads(study.attrs["summary"])
    assert np.array_equal(
        complex_variable(back, "target_potential"), complex_variable(study, "target_potential")
    )
    assert json.loads(study.attrs["summary"])["negative"] == study.negative.values.tolist()


def test_chosen_steps_and_unknown_steps(run):
    assert follow(run, steps=[60, 0]).step.values.tolist() == [0, 60]
    with pytest.raises(InputError, match="no checkpoint of step 7"):
        follow(run, steps=[7])


def test_run_without_layout_needs_one(run):
    bare = Run(run.path, {}, dict(run.files))
    with pytest.raises(LayoutError, match="no layout"):
        follow(bare, steps=[60])
    layout = Layout("Z4", "w_a", "w_c", "w_b", output_scale=run.config["output_scale"])
    uncentred = follow(bare, layout, steps=[60])
    assert float(uncentred.loss[0]) == pytest.approx(float(follow(run, steps=[60]).loss[0]), rel=1e-12)


def test_large_spectra_are_left_out(run, monkeypatch):
    monkeypatch.setattr("analyses.studies.trajectory.SPECTRUM_FLOPS", 1.0)
    study = follow(run, steps=[0])
    assert "eigenvalue" not in study
    assert json.loads(study.attrs["summary"])["negative"] is None
