"""The evidence for an activation: fits against plain definitions on random networks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from analyses.checkpoints.reader import Checkpoint
from analyses.layouts.evidence import OTHERS, all_activations, apply, fits_of, spare_rows
from analyses.layouts.layout import Layout
from tests.analyses.layouts import strangers

N, Q, D = 5, 7, 4
LAYOUT = Layout(
    group="Z5", w_a="embed[0:5] @ fc1[:, 0:4].T", w_b="embed[0:5] @ fc1[:, 4:8].T", w_c="head[0:5]",
    bias="fc1_bias", output_bias="head_bias[0:5]",
)  # fmt: skip


def random_checkpoint(seed: int, spare: int = 2) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "embed": (N, D), "fc1": (Q, 2 * D), "fc1_bias": (Q,), "head": (N + spare, Q),
        "head_bias": (N + spare,),
    }  # fmt: skip
    state = {key: torch.randn(shape, generator=generator).double() for key, shape in shapes.items()}
    return Checkpoint(Path("memory"), "test", "0", None, state)


def forward(state, sigma, pairs):
    """The network by hand: all logits, those of further tokens too."""
    both = state["embed"][pairs].flatten(1)
    return sigma(both @ state["fc1"].T + state["fc1_bias"]) @ state["head"].T + state["head_bias"]


def descend(state, sigma):
    """Train a little by cross-entropy over the group elements."""
    pairs, sums = strangers.pairs_and_sums((N,))
    optimiser = torch.optim.Adam([tensor.requires_grad_() for tensor in state.values()], lr=0.03)
    for _ in range(150):
        optimiser.zero_grad()
        cross_entropy(forward(state, sigma, pairs)[:, :N], sums).backward()
        optimiser.step()
    for tensor in state.values():
        tensor.requires_grad_(False)


def entropy_and_slope(state, sigma, rows: int):
    """Mean cross-entropy over the first ``rows`` logits, and the share of its gradient across the weights."""
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in state.items()}
    pairs, sums = strangers.pairs_and_sums((N,))
    value = cross_entropy(forward(leaves, sigma, pairs)[:, :rows], sums)
    value.backward()
    flat = [(leaf.grad.flatten(), leaf.detach().flatten()) for leaf in leaves.values()]
    slope, weight = (torch.cat(part) for part in zip(*flat, strict=True))
    weight = weight[slope != 0]
    slope = slope[slope != 0]
    step = max(-float(slope @ weight), 0.0) / float(weight @ weight)
    return float(value.detach()), float((slope + step * weight).norm() / slope.norm())


@pytest.mark.parametrize("name", ["square", "relu", "gelu", "tanh", "abs"])
def test_fits_are_those_of_the_plain_network(name):
    seen = set()
    for seed in range(4):
        checkpoint = random_checkpoint(seed)
        if seed % 2:
            descend(checkpoint.tensors, strangers.SIGMAS[name])
        (fit,) = fits_of(LAYOUT, checkpoint, [name], scales=(1.0, 0.1))
        pairs, sums = strangers.pairs_and_sums((N,))
        outputs = forward(checkpoint.tensors, strangers.SIGMAS[name], pairs)[:, :N]
        assert fit.accuracy == pytest.approx(float((outputs.argmax(1) == sums).double().mean()))
        assert (fit.pairs, fit.outputs) == (N * N, N)
        for one in fit.squared:
            gap = one.scale * outputs - one_hot(sums, N)
            gap = gap - gap.mean(1, keepdim=True) if one.projected else gap
            assert one.residual == pytest.approx(float(gap.square().sum(1).mean()) / (1 - 1 / N), rel=1e-12)
        for rows, found in ((N, fit.entropy), (N + 2, fit.vocabulary)):
            value, across = entropy_and_slope(checkpoint.tensors, strangers.SIGMAS[name], rows)
            assert found.value == pytest.approx(value, rel=1e-12)
            assert found.across == pytest.approx(across, rel=1e-9)
            seen.add(across < 0.999)
    assert seen == {True, False}, "gradients along the weights and others must be among the cases"


def test_chunks_and_samples_of_pairs(monkeypatch):
    checkpoint = random_checkpoint(1)
    (whole,) = fits_of(LAYOUT, checkpoint, ["relu"], scales=(1.0,))
    monkeypatch.setattr("analyses.layouts.evidence.CHUNK", 1)
    (rows,) = fits_of(LAYOUT, checkpoint, ["relu"], scales=(1.0,))
    assert rows.entropy.value == pytest.approx(whole.entropy.value, rel=1e-12)
    assert rows.entropy.across == pytest.approx(whole.entropy.across, rel=1e-12)
    (sample,) = fits_of(LAYOUT, checkpoint, ["relu"], scales=(1.0,), pairs=2 * N)
    assert sample.pairs == 2 * N
    assert sample.entropy.across is None, "the gradient over some pairs says nothing about stationarity"


def test_overflow_is_no_fit():
    checkpoint = random_checkpoint(2)
    checkpoint.tensors["embed"] *= 1e160
    assert fits_of(LAYOUT, checkpoint, ["square"], scales=(1.0,)) == []


def test_other_activations_are_those_of_torch():
    x = torch.linspace(-3, 3, 13).double()
    assert torch.allclose(apply(x, "silu"), x * torch.sigmoid(x))
    assert torch.allclose(apply(x, "x^3"), x**3)
    assert torch.allclose(apply(x, "softplus"), torch.log1p(x.exp()))
    for name in OTHERS:
        assert apply(x, name).shape == x.shape
    assert all_activations("tanh") == ("tanh",)
    assert set(OTHERS) < set(all_activations(None))


def test_a_true_minimum_has_no_gradient_across():
    """Cross-entropy with decay at its minimum: the gradient is along the weights."""
    torch.manual_seed(0)
    state = {"a": torch.randn(5, 12).double(), "c": torch.randn(5, 12).double()}
    leaves = [tensor.requires_grad_() for tensor in state.values()]
    pairs, sums = strangers.pairs_and_sums((5,))
    solver = torch.optim.LBFGS(leaves, max_iter=3000, tolerance_grad=1e-11, tolerance_change=0,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        solver.zero_grad()
        value = cross_entropy(
            (state["a"][pairs[:, 0]] + state["a"][pairs[:, 1]]).square() @ state["c"].T, sums
        )
        value = value + 5e-4 * sum(leaf.square().sum() for leaf in leaves)
        value.backward()
        return value

    solver.step(closure)
    checkpoint = Checkpoint(Path("memory"), "test", "0", None, {k: t.detach() for k, t in state.items()})
    layout = Layout(group="Z5", w_a="a", w_c="c")
    fits = {fit.activation: fit for fit in fits_of(layout, checkpoint, ["square", "abs"], scales=(1.0,))}
    assert fits["square"].entropy.across < 1e-6
    assert fits["abs"].entropy.across > 0.1


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("head[0:5]", 2), ("head[:5]", 2), ("head", None), ("headT[:, 0:5]", 2), ("headT.T[0:5]", 2),
        ("headT[:, 0:5].T", 2), ("head[1:6]", None), ("head[0:5] @ square", 2),
        ("head[0:5] @ wide[:, 0:7]", 2), ("head[0:5] + head[0:5]", None),
    ],
)  # fmt: skip
def test_rows_of_further_tokens(text, rows):
    state = {
        "head": torch.randn(7, 7), "headT": torch.randn(7, 7), "square": torch.randn(7, 7),
        "a": torch.randn(5, 7), "wide": torch.randn(7, 9),
    }  # fmt: skip
    state = {key: tensor.double() for key, tensor in state.items()}
    state["head"] = torch.randn(7, 7).double()
    checkpoint = Checkpoint(Path("memory"), "test", "0", None, state)
    found = spare_rows(Layout(group="Z5", w_a="a", w_c=text), checkpoint, 7)
    assert (None if found is None else len(found)) == rows
    if rows is not None and text.startswith("head["):
        last = state["head"][5:7]
        expected = {
            "head[0:5] @ square": last @ state["square"],
            "head[0:5] @ wide[:, 0:7]": last @ state["wide"][:, :7],
        }
        assert torch.equal(found, expected.get(text, last))


def test_rows_that_another_expression_uses_are_no_tokens():
    state = {"both": torch.randn(9, 6).double(), "a": torch.randn(5, 6).double()}
    checkpoint = Checkpoint(Path("memory"), "test", "0", None, state)
    layout = Layout(group="Z5", w_a="a", w_c="both[0:5]", output_bias="both[0:5, 0:1].T")
    assert spare_rows(layout, checkpoint, 6) is None
    assert math.isfinite(float(state["both"].sum()))
