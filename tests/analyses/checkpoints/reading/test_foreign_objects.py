"""Files of trainers: whole modules, objects beside the tensors, state dicts in lists, logs, odd tensors."""

from __future__ import annotations

import argparse
import collections
import enum
import functools
import pathlib
import shutil
import warnings
from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from torch import nn

from analyses.checkpoints import reader_process
from analyses.checkpoints.reader import CheckpointReader, read_checkpoint, split_selector
from analyses.layouts.layout import Layout
from manifold.errors import CheckpointError, UntrustedCheckpointError
from tests.analyses.checkpoints.test_checkpoints import same


@dataclass
class Config:
    lr: float = 0.01
    layers: list = field(default_factory=lambda: [1, 2])

    class Kind(enum.Enum):
        SMALL = 1

    @dataclass
    class Inner:
        depth: int = 3


class Ordered(collections.OrderedDict):
    pass


class Slotted:
    __slots__ = ("name", "state")

    def __init__(self, state):
        self.name, self.state = "slots", state


Pair = collections.namedtuple("Pair", ["model", "loss"])


class Net(nn.Module):
    def __init__(self, n=5, q=8):
        super().__init__()
        self.embed = nn.Embedding(n, q)
        self.mlp = nn.Sequential(nn.Linear(q, q), nn.ReLU(), nn.Linear(q, n))
        self.heads = nn.ModuleList([nn.Linear(n, 2)])
        self.free = nn.ParameterList([nn.Parameter(torch.randn(2, 3))])
        self.register_buffer("mask", torch.full((3, 3), -torch.inf))
        self.register_buffer("passing", torch.ones(2, 2), persistent=False)
        self.config = Config()
        self.scale = torch.ones(2, 2)


class Trainer:
    def __init__(self, model):
        self.model, self.optimizer, self.global_step = model, torch.optim.Adam(model.parameters()), 12
        self.history = [{"loss": 0.5}]


def state():
    return {"w_a": torch.randn(5, 8), "w_b": torch.randn(5, 8), "w_c": torch.randn(5, 8)}


@pytest.fixture(scope="module")
def reader():
    with CheckpointReader() as shared:
        yield shared


@pytest.fixture
def read(tmp_path, reader):
    def through_a_file(value, place=""):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(value, tmp_path / "net.pt")
        return reader.read(f"{tmp_path / 'net.pt'}{place}")

    return through_a_file


BESIDE = {
    "dataclass": Config(),
    "nested_dataclass": Config.Inner(),
    "enum": Config.Kind.SMALL,
    "namespace": argparse.Namespace(lr=1, path=pathlib.PurePosixPath("a/b")),
    "numpy_scalar": np.float64(0.5),
    "numpy_array": np.ones(3),
    "path": pathlib.Path("x"),
    "partial": functools.partial(Config, lr=1),
    "deque": collections.deque([1.0], maxlen=3),
    "default_dict": collections.defaultdict(list, a=[1]),
    "counter": collections.Counter("aab"),
    "set": {1, 2},
    "complex": 1 + 2j,
    "bytes": b"raw",
    "slots": Slotted(None),
    "module": nn.ReLU(),
    "function": functools.reduce,
    "optimiser": torch.optim.SGD([torch.ones(2, 2, requires_grad=True)], lr=1, momentum=0.9),
    "dtype": torch.float8_e4m3fn,
    "sparse": torch.eye(3).to_sparse(),
    "float8": torch.ones(3).to(torch.float8_e4m3fn),
    "meta": torch.ones(3, device="meta"),
    "integers": torch.arange(3),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("nested", [False, True])
def test_an_object_beside_the_tensors(read, name, nested):
    model = state()
    checkpoint = read({"model": model, name: BESIDE[name]} if nested else {**model, name: BESIDE[name]})
    same(checkpoint.tensors, model)


def test_the_stubs_are_named(read):
    checkpoint = read({"model": state(), "cfg": Config(), "kind": Config.Kind.SMALL})
    assert f"{__name__}.Config" in checkpoint.stubs
    assert f"{__name__}.Config" in checkpoint.notes[0]
    assert read({"model": state()}).notes == ()


def test_a_whole_module_is_its_state_dict(read):
    net = Net()
    checkpoint = read(net)
    whole = net.state_dict()
    odd = whole.pop("mask")
    same(checkpoint.tensors, {key: tensor.detach() for key, tensor in whole.items()})
    assert checkpoint.non_finite["mask"].infinite == odd.numel()
    assert "leaves out" in checkpoint.ignored["passing"]
    assert "attribute" in checkpoint.ignored["scale"]
    assert any("torch.nn.modules.linear.Linear" in name for name in checkpoint.stubs)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: Ordered(s),
        lambda s: {"model": Ordered(s)},
        lambda s: (s, {"state": {0: {"exp_avg": torch.ones(5, 8)}}, "param_groups": [{"lr": 1}]}),
        lambda s: [s],
        lambda s: {"state_dicts": [s], "losses": [0.1]},
        lambda s: {"epochs": {100: s}},
        lambda s: {100: s},
        lambda s: {"history": [{"epoch": 3, "model": s, "loss": 0.1}]},
        lambda s: Pair(s, 0.1),
        lambda s: Slotted(s),
        lambda s: argparse.Namespace(params=s, opt={"state": {}, "param_groups": []}),
        lambda s: {"trainer": argparse.Namespace(net=s)},
        lambda s: {"metrics": {"loss": [torch.tensor(1.0)] * 3}, "best": (s,)},
        lambda s: {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": [s]}}}}}}}},
        lambda s: {"experiment": {"run": {"weights": s, "lr": 0.1}}},
    ],
)
def test_is_found(read, wrap):
    model = state()
    same(read(wrap(model)).tensors, model)


def test_a_trainer_object(read):
    net = Net()
    checkpoint = read(Trainer(net))
    assert set(checkpoint.tensors) | {"mask"} == set(net.state_dict())
    assert checkpoint.step == 12


SEVERAL = {
    "list": (lambda a, b: [a, b], "1", None),
    "tuple": (lambda a, b: {"runs": (a, b)}, "runs.1", None),
    "epochs": (lambda a, b: {"epochs": {0: a, 100: b}, "lr": 0.1}, "epochs.100", 100),
    "named": (lambda a, b: {"epoch_0": a, "epoch_100": b}, "epoch_100", 100),
    "with_losses": (lambda a, b: [{"epoch": i, "model": s} for i, s in enumerate((a, b))], "1", 1),
    "floats": (lambda a, b: {0.1: a, 0.2: b}, "0.2", None),
    "pairs": (lambda a, b: [{(5, 1): a, (5, 2): b}], "0.(5, 2)", None),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_the_place_decides(read, name, tmp_path):
    wrap, place, step = SEVERAL[name]
    first, second = state(), state()
    if name != "pairs":
        with pytest.raises(CheckpointError, match="2 state dicts of the same shapes") as caught:
            read(wrap(first, second))
        told = str(caught.value).partition("as in ")[2].partition(" (")[0]
        assert told == f"{tmp_path / 'net.pt'}::{place}"  # the message is the command's argument
    checkpoint = read(wrap(first, second), f"::{place}")
    same(checkpoint.tensors, second)
    assert checkpoint.step == step
    assert checkpoint.path == tmp_path / "net.pt"
    joined = read(wrap(first, second), "::*")
    assert len(joined.tensors) == 6


def test_a_place_that_is_not_there(read):
    with pytest.raises(CheckpointError, match=r"nothing at ::2; there is 0, 1"):
        read([state(), state()], "::2")


def test_paths_with_the_mark_in_their_names(tmp_path):
    path = tmp_path / "run::b 10:30.pt"
    torch.save(state(), path)
    assert read_checkpoint(path).path == path
    assert split_selector(f"{path}::model") == (path, "model")
    assert split_selector("missing.pt::x.y") == (pathlib.Path("missing.pt"), "x.y")
    assert split_selector("::x")[1] is None


def test_layers_of_different_shapes_in_a_list_are_joined(read):
    layers = [{"w": torch.ones(5, 8), "b": torch.ones(8)}, {"w": torch.ones(8, 5), "b": torch.ones(5)}]
    assert set(read({"params": layers}).tensors) == {"0.w", "0.b", "1.w", "1.b"}
    matrices = read([torch.ones(5, 8), torch.zeros(8, 5)])
    assert set(matrices.tensors) == {"0", "1"}


def test_layers_named_as_trainers_name_states(read):
    inner = {"net": {"weight": torch.ones(3, 4)}, "head": {"weight": torch.ones(4, 3)}}
    assert set(read({"model": inner}).tensors) == {"net.weight", "head.weight"}


def test_what_lies_beside_is_named(read):
    model, average = state(), state()
    checkpoint = read({"model": model, "module": average, "ema": average, "best": model})
    same(checkpoint.tensors, model)
    assert set(checkpoint.ignored) == {"module", "ema", "best"}
    twice = read({"first": {"w": torch.ones(2, 2)}, "again": (one := {"v": torch.ones(2, 3)}), "more": one})
    assert twice.ignored == {"more": "the same object as again"}


_trees = st.recursive(
    st.just("here") | st.floats(allow_nan=False) | st.text(max_size=5) | st.just(Config()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers(0, 9) | st.text("abc", min_size=1, max_size=2), inner, max_size=3)
        | st.builds(Slotted, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(_trees)
def test_one_state_dict_anywhere(reader, tmp_path_factory, tree):
    """A module pickled whole, put anywhere once, is found under its own names or under its place."""
    net, count = nn.Linear(3, 4), 0

    def planted(value):
        nonlocal count
        if value == "here":
            count += 1
            return net if count == 1 else 0.5
        if isinstance(value, dict):
            return {key: planted(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(planted(item) for item in value)
        return Slotted(planted(value.state)) if isinstance(value, Slotted) else value

    value = planted(tree)
    path = tmp_path_factory.getbasetemp() / "anywhere.pt"
    torch.save(value, path)
    if not count:
        with pytest.raises(CheckpointError):
            reader.read(path)
        return
    found = reader.read(path).tensors
    assert len(found) == 2
    for key, tensor in net.state_dict().items():
        (name,) = [name for name in found if name == key or name.endswith(f".{key}")]
        assert torch.equal(found[name], tensor)


class TestNotFinite:
    """Only who uses a tensor that is not finite is refused."""

    LAYOUT = Layout("Z5", "w_a", "w_c", "w_b")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_an_unused_buffer(self, read, dtype):
        mask = torch.full((4, 4), -torch.inf, dtype=dtype)
        mask[0, 0], mask[1, 1] = torch.nan, 0.0
        model = state()
        checkpoint = read({"mask": mask, **model})
        same(checkpoint.tensors, model)
        odd = checkpoint.non_finite["mask"]
        assert (odd.nan, odd.infinite, odd.shape) == (1, 14, (4, 4))
        listed = next(entry for entry in checkpoint.listing if entry["key"] == "mask")
        assert (listed["finite"], listed["infinite"], listed["shape"]) == (False, 14, [4, 4])
        assert "mask" in checkpoint.notes[0]
        self.LAYOUT.network(checkpoint)

    def test_a_used_one(self, read):
        model = state()
        model["w_b"][2, 3] = torch.nan
        checkpoint = read(model)
        with pytest.raises(CheckpointError, match="tensor w_b has NaN or infinite values"):
            self.LAYOUT.network(checkpoint)

    def test_one_that_was_left_out_for_its_kind(self, read):
        model = {**state(), "w_b": torch.eye(5).to_sparse()}
        with pytest.raises(CheckpointError, match="w_b was left out: a sparse tensor"):
            self.LAYOUT.network(read(model))

    def test_in_safetensors(self, tmp_path, reader):
        path = tmp_path / "net.safetensors"
        safetensors.torch.save_file({**state(), "mask": torch.tensor([torch.inf])}, path)
        assert set(reader.read(path).tensors) == {"w_a", "w_b", "w_c"}


class TestLongLogs:
    """A log of any length does not refuse a file: the work grows with the file, no count is fixed."""

    @pytest.mark.parametrize(
        "log",
        [
            [i / 7 for i in range(285_820)],
            list(range(400_000)),
            {i: {"loss": i / 7} for i in range(60_000)},
            [{"step": i, "loss": i / 7, "acc": None} for i in range(60_000)],
        ],
    )
    def test_numbers(self, read, log):
        model = state()
        same(read({"model": model, "log": log, "step": 5}).tensors, model)
        same(read({**model, "log": log}).tensors, model)

    def test_tensors_of_one_number(self, read):
        model = state()
        checkpoint = read({"model": model, "losses": [torch.tensor(float(i)) for i in range(21_000)]})
        same(checkpoint.tensors, model)


class TestStart:
    """The child starts whatever lies beside the packages, and says why where it cannot."""

    @pytest.fixture
    def installed(self, tmp_path, monkeypatch):
        """The packages copied into a folder like site-packages, where this process says it is."""
        source = pathlib.Path(reader_process.__file__).parents[2]
        for package in ("analyses", "manifold"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source / package, tmp_path / package, ignore=ignored)
        moved = tmp_path / "analyses" / "checkpoints" / "reader_process.py"
        monkeypatch.setattr(reader_process, "__file__", str(moved))
        return tmp_path

    def test_stray_modules(self, installed, tmp_path_factory):
        for name in ("typing", "re", "json", "enum", "sitecustomize", "usercustomize", "zipfile", "struct"):
            (installed / f"{name}.py").write_text("raise ImportError('old backport')")
        (installed / "stray.pth").write_text("import does_not_exist_anywhere\n")
        path = tmp_path_factory.mktemp("net") / "net.pt"
        torch.save(state(), path)
        with CheckpointReader() as fresh:
            assert set(fresh.read(path).tensors) == {"w_a", "w_b", "w_c"}

    def test_an_environment_that_breaks_python(self, tmp_path, monkeypatch):
        (tmp_path / "typing.py").write_text("raise ImportError('broken')")
        (tmp_path / "sitecustomize.py").write_text("raise SystemExit(3)")
        for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE"):
            monkeypatch.setenv(name, str(tmp_path))
        monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "typing.py"))
        monkeypatch.setenv("PYTHONIOENCODING", "utf-16")
        torch.save(state(), tmp_path / "net.pt")
        with CheckpointReader() as fresh:
            assert set(fresh.read(tmp_path / "net.pt").tensors) == {"w_a", "w_b", "w_c"}

    def test_a_child_that_does_not_start_is_no_fault_of_the_file(self, installed, tmp_path_factory):
        (installed / "analyses" / "checkpoints" / "reader_worker.py").write_text(
            "raise ImportError('no such thing')"
        )
        path = tmp_path_factory.mktemp("net") / "net.pt"
        torch.save(state(), path)
        with CheckpointReader() as fresh, pytest.raises(CheckpointError, match="no such thing") as caught:
            fresh.read(path)
        assert "hostile" not in str(caught.value)


def test_names_that_are_no_utf8(tmp_path, reader):
    folder = tmp_path / b"bad\xff".decode("utf-8", "surrogateescape")
    folder.mkdir()
    torch.save(state(), folder / "net.pt")
    assert set(reader.read(folder / "net.pt").tensors) == {"w_a", "w_b", "w_c"}
    (folder / "none.pt").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        reader.read(folder / "none.pt")
    assert "bad\\xff" in str(caught.value)
    assert str(caught.value).isprintable()


def test_without_tensors_the_names_are_told(read):
    with pytest.raises(UntrustedCheckpointError, match=r"no tensor is in it.*Config"):
        read({"config": Config()})
