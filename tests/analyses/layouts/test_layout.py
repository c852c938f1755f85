"""Layouts: the grammar, shapes and keys, biases against plain torch modules, one network in many files."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from typing import ClassVar

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from torch import nn

from analyses.checkpoints.reader import Checkpoint, read_checkpoint
from analyses.layouts.activation_names import ACTIVATIONS, activate
from analyses.layouts.elements import read_elements
from analyses.layouts.layout import Layout, stored_layout
from analyses.layouts.tensor_expressions import parse_expression, quoted
from manifold.errors import LayoutError
from tests.analyses.checkpoints.reading.hostile import save_distributed


def checkpoint(**tensors) -> Checkpoint:
    return Checkpoint("memory", "test", "0", None, {key.replace("__", "."): t for key, t in tensors.items()})


class TestExpressions:
    state: ClassVar = {
        "w": torch.arange(12.0).reshape(3, 4),
        "embed.weight": torch.randn(5, 2),
        "fc.0.weight": torch.randn(7, 4),
        "fc.bias": torch.randn(4),
        "odd key.T": torch.randn(2, 2),
        "0.weight": torch.randn(2, 3),
        "w.T": torch.randn(9, 9),
    }

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("w", lambda s: s["w"]),
            ("w.T", lambda s: s["w"].T),
            ("0.weight.T[0:2]", lambda s: s["0.weight"].T[0:2]),
            ("w .T", lambda s: s["w"].T),
            ('"w.T"', lambda s: s["w.T"]),
            ('"odd key.T".T', lambda s: s["odd key.T"].T),
            ("w[0:2]", lambda s: s["w"][0:2]),
            ("w[:, 1:]", lambda s: s["w"][:, 1:]),
            ("w[:-1, 1:3].T", lambda s: s["w"][:-1, 1:3].T),
            ("w.T[1:].T", lambda s: s["w"][:, 1:]),
            ("embed.weight@fc.0.weight[0:2]", lambda s: s["embed.weight"] @ s["fc.0.weight"][0:2]),
            (
                "embed.weight @ fc.0.weight[0:2] + fc.bias",
                lambda s: s["embed.weight"] @ s["fc.0.weight"][0:2] + s["fc.bias"],
            ),
            ("fc.0.weight + w[0:1]", lambda s: s["fc.0.weight"] + s["w"][0:1]),
            ("w[0:2].T @ embed.weight.T", lambda s: s["w"][0:2].T @ s["embed.weight"].T),
        ],
    )  # fmt: skip
    def test_values(self, text, value):
        expected = value({key: tensor.double() for key, tensor in self.state.items()})
        assert torch.equal(parse_expression(text).evaluate(self.state), expected)

    @pytest.mark.parametrize(
        ("text", "count"),
        [("w", {"w": 12}), ("w[0:2].T", {"w": 8}), ("w[:, 2:] + w[:, :2]", {"w": 12}),
         ("w.T[1:].T", {"w": 9}), ("embed.weight@fc.0.weight[0:2]", {"embed.weight": 10, "fc.0.weight": 8})],
    )  # fmt: skip
    def test_entries_are_the_numbers_that_the_value_depends_on(self, text, count):
        expression = parse_expression(text)
        entries = expression.entries(self.state)
        assert {key: int(mask.sum()) for key, mask in entries.items()} == count
        value = expression.evaluate(self.state)
        for key, mask in entries.items():
            other = self.state | {key: self.state[key].masked_fill(~mask, float("nan"))}
            assert torch.equal(expression.evaluate(other), value)
            assert not torch.equal(expression.evaluate(self.state | {key: self.state[key] + 1}), value)

    @pytest.mark.parametrize(
        "text",
        ["", " ", "@", "w @", "w[", "w[]", "w[1]", "w[::2]", "w[1:2", "w w", "w.", "1w", "__import__('os')",
         "w; w", "w * w", "w[0:2](1)", "lambda: 0", "w[:,", '"w', "w[a:b]", "w\n@", "w[1:99999999999999]",
         "w" * 3000],
    )  # fmt: skip
    def test_everything_else_is_refused_in_one_line(self, text):
        with pytest.raises(LayoutError) as caught:
            parse_expression(text)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("w @ w", r"\(3, 4\) and \(3, 4\)"),
            ("w + fc.0.weight", "cannot add"),
            ("w[0:1, 0:1, 0:1]", "3 slices"),
            ("fc.bias @ w", "cannot multiply"),
        ],
    )
    def test_shapes_that_do_not_fit(self, text, what):
        with pytest.raises(LayoutError, match=what):
            parse_expression(text).evaluate(self.state)

    @pytest.mark.parametrize(
        ("key", "near"), [("embed.wieght", "embed.weight"), ("fc.weight", "fc.0.weight")]
    )
    def test_a_missing_key_names_near_ones(self, key, near):
        with pytest.raises(LayoutError, match=re.escape(near)):
            parse_expression(key).evaluate(self.state)

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.text(max_size=12).filter(lambda key: '"' not in key))
    def test_any_key_can_be_quoted(self, key):
        assert parse_expression(quoted(key)).keys == (key,)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.text(alphabet="wembd.T[]:,@+ \"0123456789-\n'()", max_size=40))
    def test_fuzz_gives_a_tensor_or_a_layout_error(self, text):
        with contextlib.suppress(LayoutError):
            parse_expression(text).evaluate(self.state)


class TestLayout:
    n, q = 6, 9
    a, b, c = torch.randn(3, 6, 9).double()
    plain = Layout(group="Z6", w_a="a", w_b="b", w_c="c")

    def test_both_orientations(self):
        state = checkpoint(a=self.a.T.contiguous(), b=self.b, c=self.c.T.contiguous())
        network = self.plain.network(state)
        assert torch.equal(network.a, self.a)
        assert torch.equal(network.c, self.c)

    def test_a_square_tensor_is_elements_by_neurons(self):
        square = torch.randn(6, 6).double()
        state = checkpoint(a=square, c=square)
        layout = Layout(group="Z6", w_a="a", w_c="c.T")
        assert torch.equal(layout.weights(state).a, square)
        assert torch.equal(layout.weights(state).c, square.T)

    def test_tied(self):
        network = Layout(group="Z6", w_a="a", w_c="c").network(checkpoint(a=self.a, c=self.c))
        assert network.tied

    @pytest.mark.parametrize("group", ["Z7", "Z2xZ2", "Z12"])
    def test_a_group_of_another_order(self, group):
        layout = Layout(group=group, w_a="a", w_b="b", w_c="c")
        with pytest.raises(LayoutError, match="check --group"):
            layout.network(checkpoint(a=self.a, b=self.b, c=self.c))

    def test_widths_that_disagree(self):
        with pytest.raises(LayoutError, match="widths"):
            self.plain.network(checkpoint(a=self.a, b=self.b, c=self.c[:, :4]))

    def test_other_activations_have_no_quadratic_network(self):
        layout = Layout(group="Z6", w_a="a", w_c="c", activation="relu")
        with pytest.raises(LayoutError, match="relu"):
            layout.network(checkpoint(a=self.a, c=self.c))

    @pytest.mark.parametrize(
        "values",
        [
            {"group": "S3"}, {"group": 23}, {"loss": "hinge"}, {"activation": "sin"}, {"output_scale": 0.0},
            {"output_scale": float("inf")}, {"output_scale": "1"}, {"w_a": ""}, {"w_a": "a["}, {"w_c": None},
            {"elements": [0, 1]}, {"elements": [0, 1, 2, 3, 4, 4]}, {"elements": "012345"}, {"surprise": 1},
            {"elements": [[0], [1], [2], [3], [4], [7]]}, {"tensors": 3},
        ],
    )  # fmt: skip
    def test_nonsense_is_refused(self, values):
        document = {"group": "Z6", "w_a": "a", "w_c": "c"} | values
        with pytest.raises(LayoutError):
            Layout.from_dict(document)

    def test_toml_round_trip(self, tmp_path):
        layout = Layout(
            group="Z2xZ3", w_a='"odd key" @ w[0:6]', w_b="b", w_c="c.T", bias="x", output_bias="y",
            loss="mse", activation="gelu", output_scale=1 / 3, elements=(5, 4, 3, 2, 1, 0),
        )  # fmt: skip
        file = tmp_path / "layout.toml"
        file.write_text(layout.to_toml())
        assert Layout.from_toml(file) == layout
        assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout

    def test_toml_with_a_table_and_an_elements_file(self, tmp_path):
        (tmp_path / "order.txt").write_text("5\n4\n3\n2\n1\n0\n")
        file = tmp_path / "layout.toml"
        file.write_text('group = "z6"\nelements_file = "order.txt"\n[tensors]\nw_a = "a"\nw_c = "c"\n')
        assert Layout.from_toml(file).elements == (5, 4, 3, 2, 1, 0)

    @pytest.mark.parametrize("text", [None, "group = ", "\xff", "group = 'Z6'"])
    def test_bad_layout_files(self, tmp_path, text):
        file = tmp_path / "layout.toml"
        if text is not None:
            file.write_bytes(text.encode("latin-1"))
        with pytest.raises(LayoutError, match=r"layout\.toml"):
            Layout.from_toml(file)

    def test_options_over_a_base(self):
        changed = Layout.from_options(self.plain, tensors=["w_a=a.T"], loss="mse")
        assert changed == Layout(group="Z6", w_a="a.T", w_b=None, w_c="c", loss="mse")
        kept = Layout.from_options(self.plain, output_scale=2.0)
        assert kept == Layout(group="Z6", w_a="a", w_b="b", w_c="c", output_scale=2.0)
        for bad in (["w_d=a"], ["w_a"], ["=a"]):
            with pytest.raises(LayoutError, match="NAME=EXPR"):
                Layout.from_options(self.plain, tensors=bad)
        with pytest.raises(LayoutError, match="w_c is missing"):
            Layout.from_options(None, group="Z6", tensors=["w_a=a"])

    def test_elements_in_another_order(self):
        group = self.plain.network(checkpoint(a=self.a, b=self.b, c=self.c)).group
        order = torch.randperm(6, generator=torch.Generator().manual_seed(3)).tolist()
        stored = checkpoint(a=self.a[order], b=self.b[order], c=self.c[order])
        layout = Layout(group="Z6", w_a="a", w_b="b", w_c="c", elements=tuple(order))
        network = layout.network(stored)
        assert group == network.group
        for read, true in ((network.a, self.a), (network.b, self.b), (network.c, self.c)):
            assert torch.equal(read, true)

    def test_elements_by_coordinates(self, tmp_path):
        file = tmp_path / "order.json"
        file.write_text(json.dumps([[1, 2], [0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]))
        layout = Layout.from_options(
            None, group="Z2xZ3", tensors=["w_a=a", "w_c=c"], elements=tuple(read_elements(file))
        )
        assert layout.elements == (5, 0, 1, 2, 3, 4)


class Net(nn.Module):
    """A plain torch network with every bias, written without rhoscope."""

    def __init__(self, n: int, q: int, activation: str, *, tied: bool):
        super().__init__()
        self.n, self.activation, self.tied = n, activation, tied
        self.fc1 = nn.Linear(n if tied else 2 * n, q)
        self.fc2 = nn.Linear(q, n)
        self.double()

    def forward(self, x, y):
        e = torch.eye(self.n, dtype=torch.float64)
        inputs = e[x] + e[y] if self.tied else torch.cat([e[x], e[y]], -1)
        return self.fc2(activate(self.fc1(inputs), self.activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tied", [False, True])
def test_biases_are_carried_exactly(activation, tied):
    net = Net(5, 8, activation, tied=tied)
    scale = 0.7  # the file says 0.7 * (...) + bias where fc2.weight was divided by it
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    state["fc2.weight"] /= scale
    first = {"w_a": "fc1.weight"} if tied else {"w_a": "fc1.weight[:, 0:5]", "w_b": "fc1.weight[:, 5:10]"}
    layout = Layout(
        group="Z5", w_c="fc2.weight", bias="fc1.bias", output_bias="fc2.bias", activation=activation,
        output_scale=scale, **first,
    )  # fmt: skip
    weights = layout.weights(Checkpoint("memory", "test", "0", None, state))
    assert len(weights.notes) == 2
    x, y = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    b = weights.a if tied else weights.b
    outputs = scale * activate(weights.a[x] + b[y], activation) @ weights.c.T
    assert torch.allclose(outputs, net(x, y), rtol=0, atol=1e-13)
    if activation == "square":
        again = layout.network(Checkpoint("memory", "test", "0", None, state)).outputs()[x, y]
        assert torch.allclose(again, net(x, y), rtol=0, atol=1e-13)


def containers(tmp_path, a, b, c):
    """The same network in many layouts and containers: (name, path, layout)."""
    n, q = a.shape
    plain = {"w_a": a, "w_b": b, "w_c": c}
    same = Layout(group=f"Z{n}", w_a="w_a", w_b="w_b", w_c="w_c")
    linear = {"left.weight": a.T.contiguous(), "right.weight": b.T.contiguous(), "out.weight": c}
    lin = Layout(group=f"Z{n}", w_a="left.weight", w_b="right.weight", w_c="out.weight")
    joined = {"fc1.weight": torch.cat([a, b]).T.contiguous(), "fc2.weight": c}
    first, second = f"fc1.weight[:, 0:{n}]", f"fc1.weight[:, {n}:{2 * n}]"
    cat = Layout(group=f"Z{n}", w_a=first, w_b=second, w_c="fc2.weight")
    eye = torch.eye(n, dtype=a.dtype)
    vocabulary = torch.cat([eye, torch.full((2, n), 9.0, dtype=a.dtype)])
    linear_map = torch.cat([a, b]).T.contiguous()
    embedded = {"e.weight": vocabulary, "l.weight": linear_map, "o.weight": torch.cat([c, c[:2]])}
    emb = Layout(
        group=f"Z{n}", w_a=f"e.weight[0:{n}] @ l.weight[:, :{n}].T",
        w_b=f"e.weight[0:{n}] @ l.weight[:, {n}:].T",
        w_c=f"o.weight[0:{n}]",
    )  # fmt: skip
    order = list(range(n))[::-1]
    shuffled = {key: tensor[order] for key, tensor in plain.items()}
    wide = torch.zeros(n, 3 * q, dtype=a.dtype)
    wide[:, ::3] = a
    cases = {
        "plain.pt": (plain, same),
        "nested.pth": ({"model": plain, "optimizer": {"state": {}}, "step": 3}, same),
        "lightning.ckpt": ({"state_dict": {f"model.{k}": t for k, t in plain.items()}, "global_step": 2},
                           Layout(group=f"Z{n}", w_a="model.w_a", w_b="model.w_b", w_c="model.w_c")),
        "compiled.bin": ({f"_orig_mod.module.{k}": t for k, t in plain.items()}, same),
        "linear.pt": (linear, lin),
        "concatenated.pt": (joined, cat),
        "embedded.pt": (embedded, emb),
        "shuffled.pt": (shuffled, replace(same, elements=tuple(order))),
        "views.pt": ({"w_a": wide[:, ::3], "w_b": b.T.contiguous().T, "w_c": c}, same),
        "parameters.pt": ({key: nn.Parameter(tensor) for key, tensor in plain.items()}, same),
    }  # fmt: skip
    for name, (state, layout) in cases.items():
        torch.save(state, tmp_path / name)
        yield name, tmp_path / name, layout
    safetensors.torch.save_file(plain, tmp_path / "plain.safetensors")
    yield "safetensors", tmp_path / "plain.safetensors", same
    folder = tmp_path / "shards"
    folder.mkdir()
    for key, tensor in linear.items():
        safetensors.torch.save_file({key: tensor}, folder / f"{key}.safetensors")
    index = {"weight_map": {key: f"{key}.safetensors" for key in linear}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    yield "shards", folder, lin
    save_distributed(tmp_path / "dcp", {"model": plain})
    prefixed = Layout(group=f"Z{n}", w_a="model.w_a", w_b="model.w_b", w_c="model.w_c")
    yield "distributed", tmp_path / "dcp", prefixed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_network_in_many_layouts_andcontainers(tmp_path, dtype):
    a, b, c = (torch.randn(7, 10, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3))
    names = []
    for name, path, layout in containers(tmp_path, a, b, c):
        network = layout.network(read_checkpoint(path))
        for read, true in ((network.a, a), (network.b, b), (network.c, c)):
            assert torch.equal(read, true.double()), name
        names.append(name)
    assert len(names) >= 12


def test_damaged_stored_layouts():
    for text in ("{", "[]", '{"layout": 3}', '{"layout": {"group": "Z5"}}', "[" * 100_000):
        state = Checkpoint("memory", "test", "0", None, {}, metadata={"rhoscope": text})
        with pytest.raises(LayoutError, match="stored"):
            stored_layout(state)
