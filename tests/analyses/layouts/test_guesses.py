"""Layouts guessed for networks that strangers trained; the guess reproduces their outputs."""

from __future__ import annotations

import pytest
import torch

from analyses.checkpoints.reader import Checkpoint, read_checkpoint
from analyses.layouts.activation_names import activate
from analyses.layouts.guesses import abelian_groups, guess_layout
from tests.analyses.layouts import strangers


def difference(network, checkpoint, layout, orders) -> float:
    """Largest difference between the stranger's module and the layout, over all pairs."""
    pairs, _ = strangers.pairs_and_sums(orders)
    weights = layout.weights(checkpoint)
    b = weights.a if weights.b is None else weights.b
    hidden = activate(weights.a[pairs[:, 0]] + b[pairs[:, 1]], layout.activation)
    outputs = network.double()(pairs).detach()
    return float((hidden @ weights.c.T - outputs[:, : len(weights.c)]).abs().max())


CASES = {
    "tied_sgd_cross_entropy": (
        strangers.TiedQuadratic,
        lambda p: torch.optim.SGD(p, lr=0.3),
        "cross_entropy",
        3000,
        ("square", "cross_entropy", None),
    ),
    "concatenated_adamw_mse": (
        strangers.ConcatenatedQuadratic,
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-3),
        "mse",
        1500,
        ("square", "mse", True),
    ),
    "embedding_relu_cross_entropy": (
        strangers.EmbeddedRelu,
        lambda p: torch.optim.Adam(p, lr=0.01),
        "cross_entropy",
        400,
        ("relu", "cross_entropy", True),
    ),
    "summed_embeddings_mse": (
        strangers.SummedEmbedding,
        lambda p: torch.optim.Adam(p, lr=0.01),
        "mse",
        800,
        ("square", "mse", True),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_strangers_network_is_recognised(name, tmp_path):
    kind, optimiser, loss, steps, (activation, guessed_loss, separate) = CASES[name]
    torch.manual_seed(0)
    network = kind(11, 64)
    accuracy = strangers.train(
        network, (11,), loss=loss, optimiser=optimiser(network.parameters()), steps=steps
    )
    assert accuracy == 1.0, "the script itself must have learned"
    path = tmp_path / "model.pt"
    torch.save({"model": network.state_dict(), "step": steps}, path)
    checkpoint = read_checkpoint(path)
    guess = guess_layout(checkpoint)
    assert guess.confidence == ("ambiguous" if activation == "relu" else "verified")
    assert guess.unused == ()
    assert guess.accuracy == 1.0
    assert guess.layout.group == "Z11"
    assert guess.layout.activation == activation
    assert guess.layout.loss == guessed_loss
    assert (guess.layout.w_b is not None) is (separate is True)
    assert difference(network, checkpoint, guess.layout, (11,)) < 1e-12


def test_the_comparison_with_the_stranger_can_fail():
    network = strangers.TiedQuadratic(5, 8)
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    checkpoint = Checkpoint("memory", "test", "0", None, state)
    guess = guess_layout(checkpoint)
    assert difference(network, checkpoint, guess.layout, (5,)) < 1e-12
    state["second.weight"][0, 0] += 1
    assert difference(network, checkpoint, guess.layout, (5,)) > 1e-3


def test_a_group_that_is_no_cycle_is_found():
    torch.manual_seed(1)
    network = strangers.ConcatenatedQuadratic(9, 64)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    assert strangers.train(network, (3, 3), loss="mse", optimiser=optimiser, steps=1200) == 1.0
    checkpoint = Checkpoint("memory", "test", "0", None, network.state_dict())
    assert guess_layout(checkpoint).layout.group == "Z3xZ3"


def test_an_untrained_network_is_a_weak_guess():
    torch.manual_seed(0)
    state = strangers.ConcatenatedQuadratic(11, 64).state_dict()
    guess = guess_layout(Checkpoint("memory", "test", "0", None, state))
    assert guess.confidence == "weak"
    assert not guess.usable
    assert guess.layout.w_b is not None


def test_our_own_names_are_usable_before_training():
    state = {name: torch.randn(11, 64) for name in ("w_a", "w_b", "w_c")}
    guess = guess_layout(Checkpoint("memory", "test", "0", None, state))
    assert guess.confidence == "weak"
    assert guess.usable
    assert set(guess.rivals) == {"relu", "gelu", "tanh", "abs"}, "nothing tells the activation"
    assert (guess.layout.w_a, guess.layout.w_b, guess.layout.w_c) == ("w_a", "w_b", "w_c")


@pytest.mark.parametrize(
    "state",
    [
        {"w": torch.randn(3, 4)},
        {"w": torch.randn(3, 4), "v": torch.randn(17, 5)},
        {f"layer{i}": torch.randn(8, 8) for i in range(20)},
        {"a": torch.randn(4), "b": torch.randn(4)},
    ],
)
def test_no_guess_where_shapes_do_not_fit(state):
    assert guess_layout(Checkpoint("memory", "test", "0", None, state)) is None


def test_square_tensors_are_told_apart_by_accuracy():
    """q = n: both orientations fit by shape; a solution by Fourier modes tells which one is meant."""
    n = 9
    x = torch.arange(n, dtype=torch.float64)
    first, last = [], []
    for k in (1, 2, 4):  # cos(k(x+y)) and sin(k(x+y)) from squares need three phases per frequency
        for phase in (0, 2 * torch.pi / 3, 4 * torch.pi / 3):
            first.append(torch.cos(2 * torch.pi * k * x / n + phase))
            last.append(torch.cos(2 * torch.pi * k * x / n + 2 * phase))
    a, c = torch.stack(first, 1), torch.stack(last, 1)
    assert a.shape == (n, n)
    state = {"first.weight": a.T.contiguous(), "second.weight": c}
    guess = guess_layout(Checkpoint("memory", "test", "0", None, state))
    assert guess.accuracy == 1.0
    assert (guess.layout.w_a, guess.layout.w_c) == ("first.weight.T", "second.weight")


@pytest.mark.parametrize(
    ("order", "names"),
    [(7, ["Z7"]), (12, ["Z12", "Z2xZ6"]), (8, ["Z8", "Z2xZ4", "Z2xZ2xZ2"]), (36, 4), (64, 11), (2, ["Z2"])],
)
def test_abelian_groups_of_an_order(order, names):
    groups = [group.name for group in abelian_groups(order)]
    assert len(set(groups)) == len(groups)
    assert groups == names if isinstance(names, list) else len(groups) == names


def test_large_strangers_are_guessed_in_bounded_work():
    """Shapes of a language model's size: a guess or none, but soon (the work is counted, not timed)."""
    state = {"embed.weight": torch.zeros(20_000, 64), "up.weight": torch.zeros(512, 128)}
    state["unembed.weight"] = torch.zeros(20_000, 512)
    assert guess_layout(Checkpoint("memory", "test", "0", None, state)) is None
    state = {name: torch.randn(600, 2048) for name in ("w_a", "w_b", "w_c")}
    guess = guess_layout(Checkpoint("memory", "test", "0", None, state), "Z600", activation="square")
    assert guess.confidence == "weak"
    assert "of all" not in guess.reason
