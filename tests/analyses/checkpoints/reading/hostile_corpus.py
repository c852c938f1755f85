"""A corpus of hostile and broken checkpoints, written at test time; none of it is kept."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import warnings
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as save_safetensors

from manifold.errors import CheckpointError, UntrustedCheckpointError
from tests.analyses.checkpoints.reading.hostile import (
    HONEST_SAFETENSORS,
    HONEST_ZIP,
    Module,
    Writer,
    among,
    bf16_nan,
    bytes_writer,
    compressed,
    cut_distributed,
    directory_field,
    distributed,
    distributed_without_data,
    edited_zip,
    entry,
    flip,
    flood,
    folder_writer,
    giant,
    header_file,
    laughs,
    legacy,
    live_pickles,
    many_entries,
    named_entry,
    narrow_laughs,
    nul_name,
    numpy_archive,
    overlapping,
    parent_keys,
    saved,
    script,
    sparse_bad_indices,
    stub_laughs,
    symlink_entry,
    tar,
    tensor_pickle,
    text,
    torch_zip,
    twice,
    write,
)


def untrusted(marker: Path) -> dict[str, Writer]:
    """Files that ask to run code, or are packed as torch never packs: UntrustedCheckpointError."""
    pickles = live_pickles(marker)
    files = {f"pickle_{name}": torch_zip(data) for name, data in pickles.items()}
    legacy = io.BytesIO()
    torch.save({"w": Module()}, legacy, _use_new_zipfile_serialization=False)
    files |= {
        "bare_pickle": pickles["reduce"],
        "bare_pickle_protocol_0": pickles["reduce_protocol_0"],
        "bare_pickle_protocol_4": b"\x80\x04\x95" + struct.pack("<Q", 60) + pickles["stack_global"][2:],
        "legacy_torch_with_module": legacy.getvalue(),
        "numpy_object": saved({"w": np.ones(2)}),
        "name_after_damage": torch_zip(b"\x80\x02R" + pickles["reduce"][2:]),
        "extension_opcode": torch_zip(b"\x80\x02\x82\x01)R."),
        "escape_codes_in_name": torch_zip(b"\x80\x02c\x1b]0;owned\x07\x1b[2J\nx\n)R."),
        "torch_load": torch_zip(b"\x80\x02ctorch\nload\n" + text("/etc/passwd") + b"\x85R."),
        "torch_hub": torch_zip(b"\x80\x02ctorch.hub\nload\n" + text("a/b") + b"\x85R."),
        "torch_fx": torch_zip(b"\x80\x02ctorch.fx.graph_module\nreduce_graph_module\n}}\x86R."),
        "newobj": torch_zip(b"\x80\x02csubprocess\nPopen\n(" + text("touch") + b"l\x85\x81."),
        "newobj_ex": torch_zip(b"\x80\x04csubprocess\nPopen\n)}\x92."),
        "open_file": torch_zip(b"\x80\x02cio\nopen\n" + text("/etc/passwd") + b"\x85R."),
        "homoglyph": torch_zip(b"\x80\x04" + text("t\u043erch") + text("Tensor") + b"\x93)R."),
        "dunder_path": torch_zip(
            b"\x80\x04" + text("torch") + text("Tensor.__init__.__globals__") + b"\x93."
        ),
        "beside_tensors": torch_zip(among(pickles["reduce"]), {"0": bytes(8)}),
        "eval_beside_tensors": torch_zip(among(pickles["eval"]), {"0": bytes(8)}),
        "in_state_of_a_stub": torch_zip(
            among(b"\x80\x02cmy\nConfig\n)\x81}" + text("run") + pickles["reduce"][2:-1] + b"sb."),
            {"0": bytes(8)},
        ),
        "as_a_class": torch_zip(among(b"\x80\x02cposix\nsystem\n."), {"0": bytes(8)}),
        "called_by_a_stub": torch_zip(
            among(b"\x80\x02cmy\nmake\n)R" + pickles["reduce"][2:-1] + b"\x85R."), {"0": bytes(8)}
        ),
        "reconstructed": torch_zip(
            among(b"\x80\x02ccopy_reg\n_reconstructor\n(csubprocess\nPopen\nc__builtin__\nobject\nNtR."),
            {"0": bytes(8)},
        ),
        "deep_stubs": torch_zip(b"\x80\x02" + b"cmy\nC\n" * 50_000 + b")R" + b"\x85R" * 49_999 + b"."),
        "stub_holds_itself": torch_zip(b"\x80\x02cmy\nC\n)Rq\x00}" + text("x") + b"h\x00sb."),
        "stub_laughs": torch_zip(b"\x80\x02cmy\nC\n)Rq\x00" + stub_laughs()),
        "many_names": torch_zip(
            b"\x80\x02" + b"".join(f"cevil{i}\nrun\n".encode() for i in range(3000)) + b"."
        ),
        "path_traversal": named_entry("archive/../../evil"),
        "absolute_name": named_entry("/etc/evil"),
        "backslash_name": named_entry("archive\\evil"),
        "drive_name": named_entry("C:evil"),
        "nul_in_name": nul_name(),
        "entry_twice": twice(),
        "bomb": partial(compressed, 64 << 20),
        "compressed": partial(compressed, 1 << 20),
        "overlapping_entries": overlapping(),
        "symlink_entry": symlink_entry(),
    }
    writers = {name: bytes_writer(data) for name, data in files.items()}
    index = {"weight_map": {"w": "../../etc/passwd"}}
    absolute = {"weight_map": {"w": "/etc/passwd"}}
    writers["index_traversal"] = folder_writer({"model.safetensors.index.json": json.dumps(index).encode()})
    writers["index_absolute"] = folder_writer({"model.safetensors.index.json": json.dumps(absolute).encode()})
    writers["distributed_metadata_runs_code"] = folder_writer({".metadata": pickles["stack_global"]})
    writers["distributed_traversal"] = lambda path: distributed(path, b"__0_0.distcp", b"../__0.distc")
    return writers


def broken(marker: Path) -> dict[str, Writer]:
    """Files that are damaged, absurd or of another kind: CheckpointError."""
    nan, inf = float("nan"), float("inf")
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    files = {
        **{f"zip_cut_{i}": HONEST_ZIP[: i * len(HONEST_ZIP) // 20] for i in range(20)},
        **{
            f"safetensors_cut_{i}": HONEST_SAFETENSORS[: i * len(HONEST_SAFETENSORS) // 20] for i in range(20)
        },
        "crc_of_storage": edited_zip(lambda d: flip(d, struct.pack("<f", 34.0))),
        "crc_of_pickle": edited_zip(lambda d: flip(d, b"w_a")),
        "crc_in_directory": edited_zip(lambda d: directory_field(d, 16, b"\1\2\3\4")),
        "encrypted": edited_zip(lambda d: directory_field(d, 8, b"\x01\x08")),
        "entry_beyond_end": edited_zip(lambda d: directory_field(d, 42, b"\xff\xff\xff\x7f")),
        "text_after_end": HONEST_ZIP + b"trailing",
        "claims_a_billion_entries": edited_zip(partial(write, at=-98 + 32, value=struct.pack("<Q", 10**9))),
        "claims_giant_directory": edited_zip(partial(write, at=-98 + 40, value=struct.pack("<Q", 1 << 40))),
        "many_entries": partial(many_entries, 30_000),
        "no_pickle": torch_zip(tensor_pickle(), {"0": bytes(8)}).replace(b"data.pkl", b"dota.pkl"),
        "two_roots": torch_zip(tensor_pickle(), {"0": bytes(8)}, **{"other/data.pkl": tensor_pickle()}),
        "unknown_byteorder": torch_zip(tensor_pickle(), {"0": bytes(8)}).replace(b"little", b"middle"),
        "numpy_archive": numpy_archive(),
        "storage_missing": torch_zip(tensor_pickle()),
        "storage_short": torch_zip(tensor_pickle(count=1000), {"0": bytes(8)}),
        "storage_outside": torch_zip(tensor_pickle(key="../version"), {"0": bytes(8)}),
        "view_beyond_storage": torch_zip(tensor_pickle((3,)), {"0": bytes(8)}),
        "offset_beyond_storage": torch_zip(tensor_pickle(offset=1), {"0": bytes(8)}),
        "huge_offset": torch_zip(tensor_pickle(offset=1 << 80), {"0": bytes(8)}),
        "negative_offset": torch_zip(tensor_pickle(offset=-1), {"0": bytes(8)}),
        "negative_stride": torch_zip(tensor_pickle(stride=(-1,)), {"0": bytes(8)}),
        "negative_shape": torch_zip(tensor_pickle((-2,)), {"0": bytes(8)}),
        "shape_1e12_contiguous": torch_zip(tensor_pickle((10**12,)), {"0": bytes(8)}),
        "shape_1e12_expanded": torch_zip(tensor_pickle((10**12,), (0,)), {"0": bytes(8)}),
        "shape_overflow": torch_zip(tensor_pickle((1 << 62, 1 << 62), (0, 0)), {"0": bytes(8)}),
        "many_axes": torch_zip(tensor_pickle((1,) * 60, (1,) * 60), {"0": bytes(8)}),
        "shape_stride_disagree": torch_zip(tensor_pickle((1, 1), (1,)), {"0": bytes(8)}),
        "unknown_storage": torch_zip(tensor_pickle(kind="QInt8Storage"), {"0": bytes(8)}).replace(
            b"QInt8Storage", b"FloatStorag\xff"
        ),
        "nan": saved({"w": torch.tensor([1.0, nan])}),
        "inf_half": saved({"w": torch.tensor([1.0, -inf]).half()}),
        "everything_nan": saved({"a": torch.full((2, 2), nan), "w": torch.full((3, 3), -inf).double()}),
        "list_of_numbers": saved([1.0, 2.0]),
        "several_state_dicts": saved([{"w": torch.ones(2, 2)}, {"w": torch.ones(2, 2)}]),
        "nan_bfloat16": saved({"w": bf16_nan()}),
        "sparse": saved({"w": torch.ones(3, 3).to_sparse()}),
        "sparse_csr": saved({"w": torch.ones(3, 3).to_sparse_csr()}),
        "sparse_bad_indices": sparse_bad_indices(),
        "quantised": saved({"w": quantised}),
        "nested_tensor": saved({"w": nested}),
        "meta_tensor": saved({"w": torch.ones(3, device="meta")}),
        "no_tensor": saved({"epoch": 3, "w": "text"}),
        "only_integers": saved({"w": torch.arange(3)}),
        "only_complex": saved({"w": torch.ones(3, dtype=torch.complex64)}),
        "only_empty": saved({"w": torch.ones(0, 3)}),
        "a_number": saved(3),
        "same_key_twice": parent_keys(),
        "laughs": torch_zip(laughs()),
        "narrow_laughs": torch_zip(narrow_laughs()),
        "self_reference": torch_zip(b"\x80\x02}q\x00" + text("model") + b"h\x00s."),
        "deep_lists": torch_zip(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
        "deep_tuple_as_key": torch_zip(b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."),
        "million_instructions": lambda: torch_zip(b"\x80\x02" + b"N0" * 3_000_000 + b"N."),
        "copied_dictionaries": torch_zip(
            b"\x80\x02]("
            + b"K\x01" * 200_000
            + b"eq\x00"
            + b"ccollections\nOrderedDict\nh\x00\x85R0" * 5_000
            + b"."
        ),
        "hash_flood": lambda: torch_zip(flood()),
        "giant_integer": lambda: torch_zip(
            b"\x80\x02\x8b" + struct.pack("<i", 8 << 20) + b"\x7f" * (8 << 20) + b"."
        ),
        "decimal_integer": torch_zip(b"L" + b"9" * 1_000_000 + b"L\n."),
        "string_longer_than_file": torch_zip(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x."),
        "empty_pickle": torch_zip(b""),
        "stack_underflow": torch_zip(b"\x80\x02R."),
        "no_stop": torch_zip(b"\x80\x02}"),
        "mark_missing": torch_zip(b"\x80\x02}u."),
        "memo_missing": torch_zip(b"\x80\x02h\x05."),
        "odd_items": torch_zip(b"\x80\x02}(K\x01u."),
        "build_on_number": torch_zip(b"\x80\x02K\x01}b."),
        "persistent_text": torch_zip(b"\x80\x02Pevil\n."),
        "persistent_other": torch_zip(b"\x80\x02" + text("storage") + b"Q."),
        "parameter_of_nothing": torch_zip(b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R."),
        "legacy_torch": legacy(),
        "export_archive": torch_zip(tensor_pickle(), {"0": bytes(8)}, **{"archive/archive_format": b"pt2"}),
        # safetensors
        "header_2_63": header_file({}, length=1 << 63),
        "header_beyond_file": header_file({"w": entry([1], 0, 4)}, bytes(4), length=1000),
        "header_no_json": header_file(b"{not json}"),
        "header_bad_utf8": header_file(b'{"\xff\xfe": 1}'),
        "header_deep": header_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "header_key_twice": header_file(
            b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        "header_too_large": lambda: header_file({"w": "x" * (9 << 20)}),
        "header_empty": header_file({}),
        "entry_is_text": header_file({"w": "x"}),
        "entry_without_dtype": header_file({"w": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "overlap": header_file({"a": entry([2], 0, 8), "w": entry([2], 4, 12)}, bytes(12)),
        "same_bytes_twice": header_file({"a": entry([2], 0, 8), "w": entry([2], 0, 8)}, bytes(8)),
        "gap": header_file({"a": entry([1], 0, 4), "w": entry([1], 8, 12)}, bytes(12)),
        "bytes_left_over": header_file({"w": entry([1], 0, 4)}, bytes(8)),
        "beyond_end": header_file({"w": entry([100], 0, 400)}, bytes(8)),
        "negative_offsets": header_file({"w": entry([1], -4, 0)}, bytes(4)),
        "backward_offsets": header_file({"w": entry([1], 4, 0)}, bytes(4)),
        "shape_1e12": header_file({"w": entry([10**12], 0, 4)}, bytes(4)),
        "shape_wraps": header_file({"w": entry([1 << 62, 4], 0, 0)}),
        "shape_of_floats": header_file({"w": entry([1.0], 0, 4)}, bytes(4)),
        "shape_of_booleans": header_file({"w": entry([True], 0, 4)}, bytes(4)),
        "shape_negative": header_file({"w": entry([-1, -1], 0, 4)}, bytes(4)),
        "wrong_dtype": header_file({"w": entry([1], 0, 4, "F64")}, bytes(4)),
        "unknown_dtype": header_file({"w": entry([4], 0, 4, "F8_E4M3")}, bytes(4)),
        "metadata_of_numbers": header_file({"__metadata__": {"a": 1}, "w": entry([1], 0, 4)}, bytes(4)),
        "metadata_list": header_file({"__metadata__": [], "w": entry([1], 0, 4)}, bytes(4)),
        "many_axes_header": header_file({"w": entry([1] * 100, 0, 4)}, bytes(4)),
        "nan_safetensors": save_safetensors({"w": torch.tensor([nan])}),
        "nan_bfloat16_safetensors": save_safetensors({"w": bf16_nan()}),
        # other kinds
        "empty_file": b"",
        "one_byte": b"P",
        "text_file": b"w_a = 3\n" * 100,
        "gzip": gzip.compress(HONEST_ZIP),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "tar": tar(),
        "random": np.random.default_rng(0).bytes(4096),
        "html": b"<html><script>alert(1)</script></html>",
    }  # fmt: skip
    writers = {name: bytes_writer(data) for name, data in files.items()}
    missing = json.dumps({"weight_map": {"w": "not_there.safetensors"}}).encode()
    other = json.dumps({"weight_map": {"other": "s.safetensors"}}).encode()
    name = "model.safetensors.index.json"
    writers |= {
        "torchscript": script,
        "missing": lambda path: None,
        "folder_without_checkpoint": lambda path: path.mkdir(),
        "named_pipe": lambda path: os.mkfifo(path),
        "device": lambda path: path.symlink_to("/dev/zero"),
        "symlink_loop": lambda path: path.symlink_to(path),
        "sparse_giant": giant,
        "index_of_missing_shard": folder_writer({name: missing}),
        "index_of_missing_key": folder_writer({name: other, "s.safetensors": HONEST_SAFETENSORS}),
        "index_no_json": folder_writer({name: b"{"}),
        "index_of_numbers": folder_writer({name: b'{"weight_map": {"w": 1}}'}),
        "index_is_list": folder_writer({name: b"[]"}),
        "distributed_no_data": folder_writer({".metadata": b"\x80\x04}."}),
        "distributed_cut": cut_distributed,
        "distributed_data_missing": distributed_without_data,
    }
    return writers


@cache
def corpus(marker: Path) -> dict[str, tuple[Writer, type[CheckpointError]]]:
    """Every case by name, with the error it must end in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about sparse, nested and quantised tensors
        cases = {name: (writer, UntrustedCheckpointError) for name, writer in untrusted(marker).items()}
        return cases | {name: (writer, CheckpointError) for name, writer in broken(marker).items()}
