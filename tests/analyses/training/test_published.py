"""The published table: its training against a plain network, pruning, resuming, shares and intervals."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from analyses.commands.options.application import build_app
from analyses.training import published
from analyses.training.family_table import (
    PUBLISHED,
    factor_strong,
    factors_of,
    family_rows,
    gather,
    stored_table,
    table_lines,
    write_table,
)
from analyses.training.published import DECAY, RATE, PublishedPlan, train_as_published, train_table
from manifold.errors import InputError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.constructions import f4_6, f6
from spectra.networks.families import FOUR, NAMES, OTHER, SIX
from spectra.networks.group_network import GroupNetwork


def plain_training(plan):
    """The same training by autograd through all outputs on the training pairs: no structured loss."""
    start, n = plan.initial(), FiniteAbelianGroup.parse(plan.group).order
    weights = [w.clone().requires_grad_() for w in (start.a, start.b, start.c)]
    held_out = plan.training.held_out
    kept = np.setdiff1d(np.arange(n * n), held_out)
    x, y = torch.as_tensor(kept // n), torch.as_tensor(kept % n)
    target = torch.nn.functional.one_hot((x + y) % n, n).double()
    optimizer = torch.optim.Adam(weights, lr=RATE, weight_decay=DECAY)
    for _ in range(plan.steps):
        optimizer.zero_grad()
        a, b, c = weights
        residual = (a[x] + b[y]).square() @ c.T - target
        residual = residual - residual.mean(-1, keepdim=True)
        residual.square().sum(-1).mean().backward()
        optimizer.step()
    return [w.detach() for w in weights]


@pytest.mark.parametrize(("group", "width"), [("Z7", 24), ("Z11", 40), ("Z6", 24)])
def test_the_structured_loss_with_held_out_pairs_trains_like_the_plain_network(group, width):
    """Both through outputs and in Gram form with the held-out pairs taken back (at these two widths)."""
    plan = PublishedPlan(group, 3, width=width, steps=40, prune=False)
    assert len(plan.training.held_out) == round(0.1 * FiniteAbelianGroup.parse(group).order ** 2)
    network, facts = train_as_published(plan)
    for ours, theirs in zip((network.a, network.b, network.c), plain_training(plan), strict=True):
        assert (ours - theirs).abs().max() < 1e-9
    assert facts["neurons_left"] == [(0, width)]


@pytest.mark.parametrize("gram", [True, False])
def test_both_forms_of_the_split_loss_have_the_gradient_of_the_plain_network(gram):
    plan = PublishedPlan("Z11", 5, width=30)
    start, task = plan.initial(), plan.training.task()
    weights = [w.clone().requires_grad_() for w in (start.a, start.b, start.c)]
    x, y = (torch.as_tensor(row) for row in task.pairs.T)
    residual = (weights[0][x] + weights[1][y]).square() @ weights[2].T
    residual = residual - torch.nn.functional.one_hot((x + y) % 11, 11).double()
    loss = (residual - residual.mean(-1, keepdim=True)).square().sum(-1).mean()
    loss.backward()
    at = task.linearise(start.measure(), gram=gram)
    assert at.value == pytest.approx(float(loss.detach()), rel=1e-12)
    pulled = start.with_points(start.measure().points + at.gradient / len(start.measure()))
    # Moving the points by the gradient in z moves the raw weights by (tau^2/n) times that in the weights.
    factor = start.group.order / start.tau**2
    for before, after, w in zip(
        (start.a, start.b, start.c), (pulled.a, pulled.b, pulled.c), weights, strict=True
    ):
        assert ((after - before) - w.grad * factor).abs().max() < 1e-12 * float(
            w.grad.abs().max() * factor + 1
        )


def test_faded_neurons_are_taken_out_with_their_moments():
    weights = [torch.ones(5, 4, dtype=torch.float64) for _ in range(3)]
    for w in weights:
        w[:, 2] = 1e-4
    optimizer = torch.optim.Adam(weights, lr=0.1)
    for w in weights:
        w.grad = torch.arange(20, dtype=torch.float64).reshape(5, 4) + 1
    optimizer.step()
    before = [optimizer.state[w]["exp_avg"].clone() for w in weights]
    keep = torch.tensor([True, True, False, True])
    published._keep(optimizer, weights, keep)
    for w, moment in zip(weights, before, strict=True):
        assert w.shape == (5, 3)
        assert torch.equal(optimizer.state[w]["exp_avg"], moment[:, keep])
        w.grad = torch.zeros(5, 3, dtype=torch.float64)
    optimizer.step()


@pytest.mark.slow
def test_pruning_changes_no_family():
    found = [
        [(one.frequency, one.order, one.name) for one in factor_strong(train_as_published(plan)[0])]
        for plan in (PublishedPlan("Z23", 1), PublishedPlan("Z23", 1, prune=False))
    ]
    assert found[0] == found[1]


def test_a_table_resumes_and_says_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("analyses.training.family_table.GROUPS", ("Z5",))
    monkeypatch.setattr(published, "STEPS", 30)
    with pytest.raises(InputError, match="no finished network"):
        gather(tmp_path)
    short = {"groups": ("Z5",), "seeds": range(1, 3)}
    monkeypatch.setattr(published.PublishedPlan, "__init__", _short_plan)
    train_table(tmp_path, **short)
    times = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert sorted(times) == ["Z5_1.json", "Z5_1.safetensors", "Z5_2.json", "Z5_2.safetensors"]
    (tmp_path / "Z5_2.json").unlink()  # as if killed before it was finished
    train_table(tmp_path, **short)
    assert (tmp_path / "Z5_1.json").stat().st_mtime_ns == times["Z5_1.json"]
    document = gather(tmp_path)
    assert [one["seed"] for one in document["networks"]] == [1, 2]
    assert json.loads(write_table(document, tmp_path / "t.json").read_text()) == json.loads(
        json.dumps(document)
    )
    with pytest.raises(InputError, match="is a file"):
        train_table(tmp_path / "t.json")


def _short_plan(self, group, seed):
    for name, value in (("group", group), ("seed", seed), ("width", 8), ("steps", 30), ("prune", True)):
        object.__setattr__(self, name, value)


def test_shares_carry_intervals():
    group = FiniteAbelianGroup((23,))
    found = [one for net in (f6(group), f4_6(group)) for one in factor_strong(net)]
    rows = {row.family: row for row in family_rows("Z23", found)}
    assert {name: rows[name].count for name in NAMES} == {FOUR: 10, SIX: 12, NAMES[2]: 0, OTHER: 0}
    for row in rows.values():
        assert row.low <= row.share <= row.high
        assert row.inside == (row.low <= PUBLISHED["Z23"][row.family] <= row.high)
    # Wilson's interval of 10 out of 22, by its formula.
    z, p, m = 1.959963984540054, 10 / 22, 22
    middle = (p + z * z / (2 * m)) / (1 + z * z / m)
    half = z * np.sqrt(p * (1 - p) / m + z * z / (4 * m * m)) / (1 + z * z / m)
    assert (rows[FOUR].low, rows[FOUR].high) == pytest.approx((100 * (middle - half), 100 * (middle + half)))


def test_weak_neurons_do_not_count():
    """A faded copy at a tenth of the size would make order four look like order five."""
    net = f4_6(FiniteAbelianGroup((11,)))
    weak = [
        0.05 * w[:, -1:] * torch.linspace(1, 1.5, 11, dtype=torch.float64)[:, None]
        for w in (net.a, net.b, net.c)
    ]
    both = GroupNetwork(
        net.group, *(torch.cat([w, x], 1) for w, x in zip((net.a, net.b, net.c), weak, strict=True))
    )
    orders = [one.order for one in factor_strong(both)]
    assert orders == [one.order for one in factor_strong(net)]


def test_the_stored_table_is_complete_and_readable():
    table = stored_table()
    groups = {one["group"] for one in table["networks"]}
    assert "Z23" in groups
    for group in groups:
        count = (FiniteAbelianGroup.parse(group).order - 1) // 2
        for one in (net for net in table["networks"] if net["group"] == group):
            assert one["accuracy"] == 1
            assert len({row[0] for row in one["factors"]}) == len(one["factors"]) <= count
        rows = family_rows(group, factors_of(table, group))
        assert sum(row.count for row in rows) == rows[0].of
    assert any("inside" in line or "OUTSIDE" in line for line in table_lines(table))


def test_command_refuses_a_mix():
    result = CliRunner().invoke(build_app(), ["claims", "--published-table", "x", "--quick"])
    assert isinstance(result.exception, InputError)
    assert "leave out" in str(result.exception)
