"""Honest checkpoints give exactly what torch.load(weights_only=True) and safetensors give."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
from collections import OrderedDict

import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import event, given, settings
from torch import nn

from analyses.checkpoints.reader import CheckpointReader, read_checkpoint, step_in_name
from manifold.errors import CheckpointError, InputError
from tests.analyses.checkpoints.reading.hostile import save_distributed

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(scope="module")
def reader():
    with CheckpointReader() as shared:
        yield shared


def same(read: dict, expected: dict) -> None:
    assert list(read) == list(expected)
    for key, tensor in read.items():
        assert tensor.dtype == expected[key].dtype
        assert tensor.is_contiguous()
        assert torch.equal(tensor, expected[key]), key


def test_the_comparison_can_fail():
    with pytest.raises(AssertionError):
        same({"w": torch.ones(2)}, {"w": torch.zeros(2)})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_dtype_in_both_formats(tmp_path, reader, dtype, suffix):
    state = {"a.weight": torch.randn(4, 3).to(dtype), "a.bias": torch.randn(3).to(dtype)}
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
        expected = torch.load(path, weights_only=True)
    else:
        safetensors.torch.save_file(state, path)
        expected = safetensors.torch.load_file(path)
    checkpoint = reader.read(path)
    assert checkpoint.format == ("torch-zip" if suffix == ".pt" else "safetensors")
    assert set(checkpoint.tensors) == set(expected)
    same(checkpoint.tensors, {key: expected[key] for key in checkpoint.tensors})


def test_views_shared_storages_parameters_and_scalars(tmp_path, reader):
    base = torch.randn(6, 8)
    state = OrderedDict(
        transposed=base.T,
        part=base[1:4, ::2],
        tail=base[5],
        expanded=torch.randn(1, 3).expand(4, 3),
        tied=base,
        parameter=nn.Parameter(base.clone()),
        buffer=nn.Buffer(torch.randn(2)) if hasattr(nn, "Buffer") else torch.randn(2),
        scalar=torch.tensor(3.5),
    )
    path = tmp_path / "model.pt"
    torch.save(state, path)
    expected = torch.load(path, weights_only=True)
    same(reader.read(path).tensors, {key: tensor.detach() for key, tensor in expected.items()})


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_view_of_any_storage(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    tensor = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    for _ in range(data.draw(st.integers(0, 4))):
        axis = data.draw(st.integers(0, tensor.ndim - 1))
        if data.draw(st.booleans()):
            tensor = tensor.transpose(0, axis)
        else:
            start = data.draw(st.integers(0, tensor.shape[axis] - 1))
            step = data.draw(st.integers(1, 3))
            index = [slice(None)] * tensor.ndim
            index[axis] = slice(start, None, step)
            tensor = tensor[tuple(index)]
    path = tmp_path_factory.getbasetemp() / "view.pt"
    torch.save({"w": tensor}, path)
    same(read_checkpoint(path).tensors, {"w": tensor.contiguous()})


def test_big_endian_files(tmp_path, reader, monkeypatch):
    import zipfile

    source, path = io.BytesIO(), tmp_path / "big.pt"
    torch.save({"w": torch.arange(4.0)}, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            if "/data/" in name:
                data = torch.arange(4.0).numpy().astype(">f4").tobytes()
            new.writestr(name, data)
    same(reader.read(path).tensors, {"w": torch.arange(4.0)})


class TestNesting:
    """Where trainers put the state dict."""

    @property
    def state(self):
        return OrderedDict({"first.weight": torch.ones(3, 4), "second.weight": torch.zeros(3, 4)})

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda s: s,
            lambda s: {"model": s},
            lambda s: {"state_dict": s, "epoch": 3},
            lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: {"exp_avg": s}}}},
            lambda s: {"model": {"state_dict": s}},
            lambda s: {"module." + key: tensor for key, tensor in s.items()},
            lambda s: {"_orig_mod." + key: tensor for key, tensor in s.items()},
            lambda s: {"module._orig_mod." + key: tensor for key, tensor in s.items()},
            lambda s: {"model": {"_orig_mod.module." + key: tensor for key, tensor in s.items()}},
            lambda s: {"optimizer": {"first.weight": torch.full((3,), float("nan"))}, **s},
            lambda s: {
                "first": {"weight": s["first.weight"]},
                "second": {"weight": s["second.weight"]},
            },
            lambda s: {
                "state_dict": s,
                "epoch": 3,
                "global_step": 1200,
                "pytorch-lightning_version": "2.4.0",
                "optimizer_states": [{"state": {}}],
                "lr_schedulers": [],
                "loops": {"fit_loop": {"state_dict": {}}},
                "callbacks": {},
                "hyper_parameters": {"width": 4},
            },
        ],
    )
    def test_is_found(self, tmp_path, reader, wrap):
        path = tmp_path / "model.pt"
        torch.save(wrap(self.state), path)
        same(reader.read(path).tensors, self.state)

    def test_a_trained_module_with_its_optimiser(self, tmp_path, reader):
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        optimiser = torch.optim.AdamW(net.parameters())
        net(torch.randn(5, 3)).square().sum().backward()
        optimiser.step()
        path = tmp_path / "last.ckpt"
        torch.save({"model": net.state_dict(), "optim": optimiser.state_dict(), "step": 7}, path)
        checkpoint = reader.read(path)
        floating = {key: value for key, value in net.state_dict().items() if value.is_floating_point()}
        same(checkpoint.tensors, floating)
        assert checkpoint.step == 7
        assert checkpoint.ignored["1.num_batches_tracked"] == "dtype int64"
        assert checkpoint.ignored["optim"] == "beside the state dict"

    def test_layers_may_have_the_names_of_trainer_state(self, tmp_path, reader):
        state = {"amplitude": torch.ones(2), "scaler": torch.ones(3), "model.optimizer.w": torch.ones(2, 2)}
        torch.save({"state_dict": state}, tmp_path / "model.pt")
        same(reader.read(tmp_path / "model.pt").tensors, state)

    def test_hyper_parameters_under_a_usual_name_are_no_state(self, tmp_path, reader):
        torch.save({"params": {"lr": {"first": 0.1}}, "w": torch.ones(2, 2)}, tmp_path / "model.pt")
        same(reader.read(tmp_path / "model.pt").tensors, {"w": torch.ones(2, 2)})

    def test_flat_keys_are_not_grouped_beside_other_layers(self, tmp_path, reader):
        state = {"model.w": torch.ones(2, 2), "head.w": torch.ones(2, 2), "step": torch.ones(1)}
        safetensors.torch.save_file(state, tmp_path / "model.safetensors")
        assert set(reader.read(tmp_path / "model.safetensors").tensors) == set(state)

    def test_optimiser_state_in_flat_keys(self, tmp_path, reader):
        flat = {"model." + key: tensor for key, tensor in self.state.items()}
        flat["optimizer.first.exp_avg"] = torch.ones(3, 4)
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file(flat, path)
        assert set(reader.read(path).tensors) == set(self.state)


class TestFolders:
    """Shards and distributed checkpoints."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_sharded_safetensors(self, tmp_path, reader, dtype):
        state = {"a": torch.randn(3, 4).to(dtype), "b": torch.randn(5).to(dtype)}
        for index, key in enumerate(state):
            safetensors.torch.save_file({key: state[key]}, tmp_path / f"model-{index}.safetensors")
        index = {"weight_map": {key: f"model-{i}.safetensors" for i, key in enumerate(state)}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        checkpoint = reader.read(tmp_path)
        same(checkpoint.tensors, state)
        assert checkpoint.format == "sharded safetensors"
        assert checkpoint.sha256 == reader.read(tmp_path / "model.safetensors.index.json").sha256

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_distributed(self, tmp_path, reader, dtype):
        state = {"w_a": torch.randn(3, 4).to(dtype), "w_c": torch.randn(5).to(dtype)}
        moments = {"w_a": torch.randn(3, 4)}
        save_distributed(tmp_path / "dcp", {"model": state, "optimizer": moments, "step": 40})
        checkpoint = reader.read(tmp_path / "dcp")
        same(checkpoint.tensors, state)
        assert (checkpoint.format, checkpoint.step) == ("torch-distributed", 40)

    def test_distributed_in_chunks(self, tmp_path, reader):
        """A tensor cut over two files, as two ranks write it."""
        whole = torch.randn(6, 4)
        save_in_chunks(tmp_path, whole, rows=(0, 2, 6))
        same(reader.read(tmp_path).tensors, {"w": whole})

    @pytest.mark.parametrize(("rows", "what"), [((0, 2, 5), "gap"), ((0, 2, 1, 6), "overlap")])
    def test_chunks_that_do_not_tile(self, tmp_path, reader, rows, what):
        pairs = list(zip(rows[::2], rows[1::2], strict=True)) if len(rows) == 4 else None
        save_in_chunks(tmp_path, torch.randn(6, 4), rows=rows, pairs=pairs)
        with pytest.raises(CheckpointError, match=what):
            reader.read(tmp_path)


def save_in_chunks(folder, whole, *, rows, pairs=None):
    """Write a distributed checkpoint by hand: one file per range of rows."""
    import pickle

    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    chunks, stored = [], {}
    for rank, (begin, end) in enumerate(pairs or itertools.pairwise(rows)):
        piece = whole[begin:end].clone()
        offsets = torch.Size((begin, 0))
        chunks.append(ChunkStorageMetadata(offsets=offsets, sizes=piece.shape))
        file = folder / f"__{rank}_0.distcp"
        torch.save(piece, file)
        stored[MetadataIndex("w", offsets)] = _StorageInfo(file.name, 0, file.stat().st_size)
    tensor = TensorStorageMetadata(TensorProperties(dtype=whole.dtype), whole.shape, chunks)
    metadata = Metadata({"w": tensor}, storage_data=stored)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


class TestSteps:
    """The training step of a checkpoint."""

    @pytest.mark.parametrize(
        ("name", "step"),
        [
            ("step_100.pt", 100),
            ("step_0000100.safetensors", 100),
            ("epoch=3-step=1200.ckpt", 1200),
            ("checkpoint-500", 500),
            ("ckpt_77.pth", 77),
            ("iter_5.bin", 5),
            ("global_step40", 40),
            ("001000.pt", 1000),
            ("model_23_512.pt", None),
            ("best.pt", None),
            ("step_30.pth.tar", 30),
            ("epoch150.pt", 150),
            ("STEP_7.PT", 7),
            ("model_dy65ktpiij.pt", None),
            ("model_7r4zst7evs.pt", None),
            ("last-v1.ckpt", None),
            ("epoch=1-step=200-v2.ckpt", 200),
            ("step_10k.pt", None),
            ("loss_0.35.pt", None),
            ("model_seed_3.pt", None),
            ("C113_MLP_seed1.pt", None),
            ("misstep_4x.pt", None),
        ],
    )
    def test_from_the_name(self, name, step):
        assert step_in_name(name) == step

    def test_from_a_pattern(self):
        assert step_in_name("p113_w512_t0040.pt", r"_t(\d+)") == 40
        with pytest.raises(CheckpointError, match="does not match"):
            step_in_name("final.pt", r"_t(\d+)")
        with pytest.raises(InputError, match="not a regular expression"):
            step_in_name("final.pt", "(")
        with pytest.raises(InputError, match="expected a number"):
            step_in_name("final.pt", "(f)inal")

    @pytest.mark.parametrize(
        ("name", "inside", "step"),
        [
            ("model.pt", {"step": 9}, 9),
            ("model.pt", {"global_step": torch.tensor(9)}, 9),
            ("model.pt", {"epoch": 4}, 4),
            ("model_23.pt", {"iter_num": 9}, 9),
            ("model_23.pt", {}, 23),
            ("step_5.pt", {"step": 9}, 9),
            ("step_1200.pt", {"epoch": 3}, 1200),
            ("epoch_5.pt", {"epoch": 3}, 3),
            ("model_dy65ktpiij.pt", {}, None),
            ("last-v1.ckpt", {"global_step": 450}, 450),
            ("model.pt", {"step": np.int64(77)}, 77),
            ("model.pt", {}, None),
            ("model.pt", {"step": -1}, None),
            ("model.pt", {"step": True}, None),
        ],
    )
    def test_from_inside(self, tmp_path, reader, name, inside, step):
        torch.save({"model": {"w": torch.ones(2, 2)}, **inside}, tmp_path / name)
        assert reader.read(tmp_path / name).step == step


def test_the_hash_is_that_of_the_file(tmp_path, reader):
    import hashlib

    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(2)}, path)
    assert reader.read(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("count", "fits"), [(1 << 24, True), (3 << 24, False)])
def test_expanded_tensors_may_not_explode(tmp_path, reader, count, fits):
    """One stored number may stand for 64 MiB, not for more."""
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(1).expand(count)}, path)
    if fits:
        assert reader.read(path).tensors["w"].shape == (count,)
    else:
        with pytest.raises(CheckpointError, match="expand"):
            reader.read(path)


def test_truncation_is_named_in_one_line(tmp_path, reader):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(200)}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        reader.read(path)
    assert "\n" not in str(caught.value)


def test_no_rights(tmp_path, reader):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(2)}, path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(CheckpointError, match="Permission denied"):
        reader.read(path)


def test_tensors_can_be_changed_in_place(tmp_path, reader):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(2)}, path)
    reader.read(path).tensors["w"].add_(1)
    same(reader.read(path).tensors, {"w": torch.ones(2)})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_headers_that_we_accept_the_library_accepts(tmp_path_factory, data):
    """Never more lenient than the safetensors library, and the same numbers."""
    header, at = {}, 0
    sizes = {"F32": 4, "F16": 2, "I64": 8, "BF16": 2}
    for key in data.draw(st.lists(st.sampled_from(["a", "b", "w"]), unique=True)):
        dtype, shape = (
            data.draw(st.sampled_from(list(sizes))),
            data.draw(st.lists(st.integers(0, 3), max_size=2)),
        )
        end = at + sizes[dtype] * math.prod(shape)
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    if header and data.draw(st.booleans()):  # one wrong number
        entry = header[data.draw(st.sampled_from(list(header)))]
        numbers = entry[data.draw(st.sampled_from(["shape", "data_offsets"]))]
        if numbers:
            numbers[data.draw(st.integers(0, len(numbers) - 1))] += data.draw(st.integers(-9, 9))
    raw = json.dumps(header).encode()
    content = len(raw).to_bytes(8, "little") + raw + bytes(range(at))
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError:
        event("refused")
        return
    event("accepted")
    expected = safetensors.torch.load(content)
    same(checkpoint.tensors, {key: expected[key] for key in checkpoint.tensors})
    left_out = [key for key in expected if key not in checkpoint.tensors]
    assert all(not expected[key].is_floating_point() or not expected[key].numel() for key in left_out)
