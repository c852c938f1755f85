"""Random damage and random pickles: a named error or the honest numbers, never a hang."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import subprocess
import sys
import time
import zipfile

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, event, given, seed, settings

from analyses.checkpoints.reader import CheckpointReader
from analyses.checkpoints.reading.pickles import Interpreter
from analyses.layouts.tensor_expressions import parse_expression
from manifold.errors import CheckpointError, LayoutError
from tests.analyses.checkpoints.reading.hostile import (
    HONEST_SAFETENSORS,
    HONEST_ZIP,
    live_pickles,
    tensor_pickle,
    text,
    torch_zip,
)

LIMIT_SECONDS = 20  # of the reader; far above what any example takes


@pytest.fixture(scope="module")
def reader():
    with CheckpointReader(timeout=LIMIT_SECONDS) as shared:
        yield shared


@st.composite
def damaged(draw, honest: bytes):
    """Honest bytes with some changed, cut out, repeated or put in."""
    data = bytearray(honest)
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["flip", "set", "cut", "repeat", "insert", "number"]))
        length = draw(st.integers(1, 40))
        if kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        else:
            data[at : at + 8] = draw(st.sampled_from([2**63, 2**64 - 1, 2**32, 0, 2**31])).to_bytes(
                8, "little"
            )
    return bytes(data)


def _pickle_of(honest: bytes) -> tuple[bytes, dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(honest)) as archive:
        storages = {
            name.rpartition("/")[2]: archive.read(name) for name in archive.namelist() if "/data/" in name
        }
        return archive.read("archive/data.pkl"), storages


PICKLE, STORAGES = _pickle_of(HONEST_ZIP)
HEADER_END = 8 + int.from_bytes(HONEST_SAFETENSORS[:8], "little")


def _with_length(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + HONEST_SAFETENSORS[HEADER_END:]


# Damage of whole files is caught by checksums and sizes; damage under a correct wrapper goes deeper.
damaged_files = (
    damaged(HONEST_ZIP)
    | damaged(HONEST_SAFETENSORS)
    | damaged(PICKLE).map(lambda data: torch_zip(data, STORAGES))
    | damaged(HONEST_SAFETENSORS[8:HEADER_END]).map(_with_length)
)
_OPCODES = [bytes([c]) for c in b"(.0123FIJKLMNPQRSTUVX]abcd}eghijlopqrstu)" + bytes(range(0x80, 0x8B))]
_PHRASES = [
    *map(text, ["w", "state_dict", "storage", "0", "cpu"]),
    *[b"c" + name.replace(b".", b"\n", 1) + b"\n" for name in [b"torch.Size", b"torch.FloatStorage"]],
    *[b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._tensor\n_rebuild_from_type_v2\n"],
    *[b"ccollections\nOrderedDict\n", b"cposix\nsystem\n"],
    *[b"K\x01", b"K\x02", b"h\x00", b"q\x00", b"\x94", b"I-1\n", b"\x8c\x01x", b"\x8a\x09" + b"\xff" * 9],
    *[b"(", b"t", b"R", b"}", b"u", b"s", tensor_pickle()[2:-1]],
]
pickles = st.lists(st.sampled_from(_PHRASES + _OPCODES) | st.binary(max_size=3), max_size=60).map(
    lambda parts: b"\x80\x02" + b"".join(parts) + b"."
)


def check_file(reader, path, data: bytes) -> None:
    """Read any bytes: finite tensors or a named error, in time and without a crash of the child."""
    path.write_bytes(data)
    begin = time.monotonic()
    message = ""
    try:
        checkpoint = reader.read(path)
    except CheckpointError as error:
        event(type(error).__name__)
        message = str(error)
    else:
        event("read")
        assert checkpoint.tensors
        for tensor in checkpoint.tensors.values():
            assert torch.isfinite(tensor.double()).all()
    assert message.isprintable()
    assert "time limit" not in message
    assert "ended unexpectedly" not in message, "the child crashed"
    assert time.monotonic() - begin < LIMIT_SECONDS


def check_pickle(data: bytes) -> None:
    """Interpret any bytes in this process: a value or a named error, and never an import."""
    try:
        Interpreter().run(data)
    except CheckpointError as error:
        event(type(error).__name__)


def check_grammar(expression: str) -> None:
    try:
        parsed = parse_expression(expression)
    except LayoutError:
        event("refused")
    else:
        event("parsed")
        assert parsed.keys


QUICK = settings(max_examples=150, deadline=None, derandomize=True)
_WORDS = ["w", "fc.0.weight", ".T", "[", "]", ":", ",", "@", "+", " ", "3", "-1", '"', "T", "(", "0:2", "\n"]
grammars = st.lists(st.sampled_from(_WORDS) | st.text(max_size=3), max_size=25).map("".join)


@QUICK
@given(data=damaged_files)
def test_damaged_files(reader, tmp_path_factory, data):
    check_file(reader, tmp_path_factory.getbasetemp() / "damaged.pt", data)


@QUICK
@given(data=pickles)
def test_random_pickles_in_an_honest_zip(reader, tmp_path_factory, data):
    check_file(reader, tmp_path_factory.getbasetemp() / "random.pt", torch_zip(data, {"0": bytes(8)}))


@settings(QUICK, max_examples=500)
@given(data=pickles)
def test_random_pickles(data):
    check_pickle(data)


@settings(QUICK, max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=30,
    ),
    st.integers(0, 5),
)
def test_plain_values_are_read_as_pickle_reads_them(value, protocol):
    data = pickle.dumps(value, protocol=protocol)
    assert Interpreter().run(data) == pickle.loads(data)


@settings(QUICK, max_examples=300)
@given(grammars)
def test_random_expressions(expression):
    check_grammar(expression)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["files", "pickles", "grammar"])
def test_fuzz_for_minutes(what, reader, tmp_path_factory):
    """Ten minutes each by default; RHOSCOPE_FUZZ_SECONDS changes it."""
    seconds = float(os.environ.get("RHOSCOPE_FUZZ_SECONDS", "600"))
    end = time.monotonic() + seconds
    path = tmp_path_factory.getbasetemp() / "fuzz.pt"
    zipped = pickles.map(lambda data: torch_zip(data, STORAGES))
    strategy, check = {
        "files": (damaged_files | zipped, lambda data: check_file(reader, path, data)),
        "pickles": (pickles | damaged(PICKLE), check_pickle),
        "grammar": (grammars, check_grammar),
    }[what]
    count = 0
    for number in itertools.count():
        if time.monotonic() > end:
            break

        @seed(number)
        @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def fuzz(example):
            nonlocal count
            count += 1
            check(example)

        fuzz()
    print(f"{what}: {count} examples in {seconds:g} s")
    assert count >= 500


@pytest.mark.slow
@pytest.mark.parametrize("what", ["files", "pickles", "grammar"])
def test_fuzz_guided_by_coverage(what, tmp_path):
    """Ten minutes each by default, where atheris is installed; the reader runs without its child."""
    pytest.importorskip("atheris")
    seconds = int(os.environ.get("RHOSCOPE_FUZZ_SECONDS", "600"))
    live = live_pickles(tmp_path / "marker").values()
    seeds = {
        "files": [HONEST_ZIP, HONEST_SAFETENSORS, *(torch_zip(p) for p in live)],
        "pickles": [PICKLE, *live],
        "grammar": [b'embed.weight[0:5] @ "odd key".T + fc1.bias[:, 1:3]', b"w_a"],
    }[what]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed_bytes in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed_bytes)
    done = subprocess.run(
        [sys.executable, "-m", "tests.analyses.checkpoints.reading.coverage_fuzz", what, str(corpus),
         f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=1024",
         f"-artifact_prefix={tmp_path}/", "-print_final_stats=1"],
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    print("\n".join(line for line in done.stderr.splitlines() if line.startswith("stat::")))
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "marker").exists()
