"""The reference trainer against plain torch, its run directory, and interruption."""

import json

import numpy as np
import pytest
import torch

from analyses.runs.run import Run
from analyses.training.trainer import TrainingPlan, save_steps, train
from manifold.errors import InputError, OutputExistsError
from spectra.networks.group_network import GroupNetwork
from tests import oracles


def final(run, plan):
    tensors = run.read(run.steps[-1]).tensors
    b = None if plan.tied else tensors["w_b"]
    return GroupNetwork(plan.initial().group, tensors["w_a"], b, tensors["w_c"], plan.output_scale)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(
    ("loss", "fraction", "tied"),
    [("projected_mse", 1.0, False), ("cross_entropy", 0.7, True), ("mse", 0.7, False)],
)
def test_steps_equal_those_of_plain_torch(tmp_path, optimizer, loss, fraction, tied):
    """Ten steps of our structured loss against autograd through the naive network."""
    plan = TrainingPlan(
        "Z5", width=8, loss=loss, optimizer=optimizer, steps=10, weight_decay=0.01, schedule="constant",
        lr=0.05, output_scale=0.5, init_scale=0.4, train_fraction=fraction, tied=tied, centred=False, seed=3,
    )  # fmt: skip
    run = train(plan, tmp_path / "run")
    net = plan.initial()
    weights = [w.clone().requires_grad_() for w in ([net.a, net.c] if tied else [net.a, net.b, net.c])]
    mask = torch.ones(25, dtype=torch.bool)
    mask[plan.held_out] = False
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    reference = make(weights, lr=0.05, weight_decay=0.01)
    for _ in range(10):
        reference.zero_grad()
        a, c = weights[0], weights[-1]
        b = a if tied else weights[1]
        oracles.naive_loss(a, b, c, 0.5, (5,), loss, mask.reshape(5, 5)).backward()
        reference.step()
    ours = run.read(10).tensors
    for key, w in zip(("w_a", "w_c") if tied else ("w_a", "w_b", "w_c"), weights, strict=True):
        assert torch.allclose(ours[key], w.detach(), rtol=1e-9, atol=1e-11)


def test_flow_is_the_limit_of_small_sgd_steps(tmp_path):
    """One SGD step advances flow time by eta tau^2 / (q n)."""
    settings = {"width": 12, "output_scale": 0.2, "init_scale": 0.5, "seed": 1}
    flow = TrainingPlan("Z4", optimizer="flow", steps=10, lr=0.02, **settings)
    net = flow.initial()
    small = TrainingPlan("Z4", optimizer="sgd", steps=2000, lr=0.0001 * net.raw_scale, **settings)
    assert net.flow_time(small.lr) * 2000 == pytest.approx(flow.lr * 10)
    ends = [final(train(p, tmp_path / p.optimizer), p).measure().points for p in (flow, small)]
    assert (ends[0] - ends[1]).norm() < 2e-3 * (ends[0] - net.measure().points).norm()


def test_a_small_network_is_learnt_and_the_run_describes_itself(tmp_path):
    plan = TrainingPlan("Z5", width=64, steps=400)
    run = train(plan, tmp_path / "run")
    assert final(run, plan).accuracy() == 1.0
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (config["group"], config["layout"]["loss"], config["seed"]) == ("Z5", "projected_mse", 0)
    opened = Run.open(tmp_path / "run")
    assert opened.steps == tuple(sorted(save_steps(400, None)))
    assert not (tmp_path / "run" / "resume.pt").exists()
    for w in final(run, plan).a, final(run, plan).c:
        assert w.mean(0).abs().max() < 1e-15
    with pytest.raises(OutputExistsError):
        train(plan, tmp_path / "run")


@pytest.mark.parametrize("optimizer", ["adam", "flow"])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, optimizer):
    plan = TrainingPlan("Z3", width=10, optimizer=optimizer, steps=30)
    whole = train(plan, tmp_path / "whole", save_every=5)

    def stop(done, total, message=""):
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan, tmp_path / "cut", save_every=5, progress=stop)
    assert Run.open(tmp_path / "cut").steps[-1] == 20
    resumed = train(plan, tmp_path / "cut", save_every=5, resume=True)
    assert resumed.steps == whole.steps
    tolerance = 0 if optimizer == "adam" else 1e-5  # the integrator restarts its step control
    for key in ("w_a", "w_b", "w_c"):
        assert torch.allclose(
            whole.read(30).tensors[key], resumed.read(30).tensors[key], atol=tolerance, rtol=0
        )
    other = TrainingPlan("Z3", width=10, optimizer=optimizer, steps=30, seed=5)
    with pytest.raises(InputError, match="seed"):
        train(other, tmp_path / "cut", resume=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("loss", "hinge"), ("optimizer", "lion"), ("width", 0), ("train_fraction", 0.0), ("weight_decay", -1.0),
     ("lr", -0.1), ("schedule", "step"), ("group", "Q8")],
)  # fmt: skip
def test_bad_plans_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=field):
        TrainingPlan(**({"group": "Z5"} | {field: value}))


def test_the_split_is_reproducible_and_of_the_right_size():
    plan = TrainingPlan("Z7", train_fraction=0.9, seed=2)
    assert len(plan.held_out) == 49 - round(0.9 * 49)
    assert np.array_equal(plan.held_out, TrainingPlan("Z7", train_fraction=0.9, seed=2).held_out)
    assert not np.array_equal(plan.held_out, TrainingPlan("Z7", train_fraction=0.9, seed=3).held_out)
