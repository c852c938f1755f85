"""Every hostile or broken file ends in a named error, quickly, in little memory, and runs nothing."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from analyses.checkpoints.reader import CheckpointReader
from manifold.errors import CheckpointError, UntrustedCheckpointError
from tests.analyses.checkpoints.reading.hostile import (
    HONEST_SAFETENSORS,
    HONEST_ZIP,
    among,
    live_pickles,
    text,
    torch_zip,
)
from tests.analyses.checkpoints.reading.hostile_corpus import corpus

MARKER = Path(tempfile.gettempdir()) / f"rhoscope-marker-{os.getpid()}"
NAMES = list(corpus(MARKER))
LIVE = list(live_pickles(MARKER))
SECONDS_PER_MIB = 3.0  # work is bounded by the size of the file, a few microseconds a byte at the worst
WORST: dict[str, tuple[float, float, int]] = {}  # seconds of the child, seconds waited, peak kilobytes


@pytest.fixture(scope="module", autouse=True)
def say_the_worst():
    """With ``pytest -n0 -s`` the largest time and memory of the whole corpus."""
    yield
    if WORST:
        columns = list(zip(*WORST.values(), strict=True))
        slowest = max(WORST, key=lambda name: WORST[name][1])
        print(
            f"\n{len(WORST)} hostile files: at most {max(columns[0]):.2f} s of processor time, "
            f"{max(columns[1]):.2f} s waited ({slowest}), largest child {max(columns[2]) / 1024:.0f} MiB"
        )


@pytest.fixture(scope="module")
def reader():
    with CheckpointReader(timeout=30) as shared:
        yield shared


def test_the_corpus_is_large_and_covers_both_formats():
    assert len(NAMES) >= 60
    assert HONEST_ZIP[:2] == b"PK"
    assert HONEST_SAFETENSORS[8:9] == b"{"


def seconds_of(reader: CheckpointReader) -> float:
    """Processor time of the child where the system tells it (a busy machine stretches wall time)."""
    child = reader._start()
    try:
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kilobytes_of(reader: CheckpointReader) -> int:
    """Largest resident memory that the living child has had; of ended children where the system is silent."""
    try:
        status = Path(f"/proc/{reader._start().pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def test_the_memory_of_the_child_is_seen(reader, tmp_path):
    """Negative control: an honest file of 64 MiB shows in the measurement."""
    path = tmp_path / "large.pt"
    torch.save({"w": torch.ones(16 << 20)}, path)
    with CheckpointReader(timeout=60) as fresh:
        fresh.read(path)
        assert kilobytes_of(fresh) > 64 << 10


def size_of(path: Path) -> float:
    """MiB on disk; what is not there or is a device has none, and what is refused by its size neither."""
    size = path.stat().st_size / 2**20 if path.is_file() else 0.0
    return 0.0 if size > 100 else size


@pytest.mark.parametrize("name", NAMES)
def test_ends_in_a_named_error(name, tmp_path, reader):
    write, expected = corpus(MARKER)[name]
    path = tmp_path / "file.pt"
    write(path)
    before, begin = seconds_of(reader), time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        reader.read(path)
    seconds = seconds_of(reader) - before
    assert seconds < 2 + SECONDS_PER_MIB * size_of(path)
    assert type(caught.value) is expected, str(caught.value)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 700
    assert not MARKER.exists()
    peak = kilobytes_of(reader)
    WORST[name] = (seconds, time.monotonic() - begin, peak)
    assert peak < 1 << 20, "kilobytes, the largest file so far"


@pytest.mark.parametrize("name", LIVE)
def test_the_hostile_pickles_are_live(name, tmp_path):
    """Negative control: Python's own unpickler does run them, so the corpus could fail."""
    marker = tmp_path / "marker"
    with contextlib.suppress(Exception):  # several raise after their payload has run
        pickle.loads(live_pickles(marker)[name])
    deadline = time.monotonic() + 10
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.01)  # the payload may be a process of its own
    assert marker.exists()


def test_the_refusal_names_what_the_pickle_wants(tmp_path, reader):
    path = tmp_path / "evil.pt"
    path.write_bytes(torch_zip(live_pickles(tmp_path / "marker")["reduce"]))
    with pytest.raises(UntrustedCheckpointError, match=r"posix\.system"):
        reader.read(path)


def test_the_reader_lives_on_after_hostile_files(tmp_path, reader):
    for index, (write, _) in enumerate(list(corpus(MARKER).values())[:10]):
        bad = tmp_path / f"bad{index}.pt"
        write(bad)
        with pytest.raises(CheckpointError):
            reader.read(bad)
    good = tmp_path / "good.pt"
    good.write_bytes(HONEST_ZIP)
    assert torch.equal(reader.read(good).tensors["w_c"], torch.ones(5, 7))


def test_a_reader_that_hangs_is_ended(tmp_path):
    path = tmp_path / "slow.pt"
    path.write_bytes(HONEST_ZIP)
    with CheckpointReader(timeout=1e-6) as hasty, pytest.raises(CheckpointError, match="time limit"):
        hasty.read(path)


def test_a_reader_that_dies_is_replaced(tmp_path, reader):
    path = tmp_path / "good.pt"
    path.write_bytes(HONEST_ZIP)
    reader.read(path)
    reader._child.kill()
    reader._child.wait()
    assert set(reader.read(path).tensors) == {"w_a", "w_c"}


HARMLESS = {
    "class": b"\x80\x02cmy.module\nConfig\n)\x81}" + text("lr") + b"K\x01sb.",
    "reduce": b"\x80\x02cmy.module\nmake\n(K\x01K\x02tR.",
    "nested_class": b"\x80\x02c__builtin__\ngetattr\ncmy\nOuter\n" + text("Inner") + b"\x86R)\x81.",
    "python_2_object": b"\x80\x02ccopy_reg\n_reconstructor\n(cmy\nOld\nc__builtin__\nobject\nNtR}b.",
    "newobj_ex": b"\x80\x04cmy\nC\n)}\x92.",
    "inst": b"\x80\x02(K\x01imy\nC\n.",
    "obj": b"\x80\x02(cmy\nC\nK\x01o.",
    "list_subclass": b"\x80\x02cmy\nHistory\n)\x81(K\x01K\x02e.",
    "dict_subclass": b"\x80\x02cmy\nDict\n)R(" + text("a") + b"K\x01u.",
    "partial": b"\x80\x02cfunctools\npartial\ncmy\nloss\n\x85R(cmy\nloss\n)}Ntb.",
    "extension": b"\x80\x02\x82\x01)R.",
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_foreign_objects_stay_inert(name, tmp_path, reader, monkeypatch):
    """A module of that name lies ready, here and where the child looks: importing it would leave a marker."""
    marker = tmp_path / "imported"
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "__init__.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = tmp_path / "net.pt"
    path.write_bytes(torch_zip(among(HARMLESS[name]), {"0": bytes(8)}))
    with CheckpointReader() as fresh:
        checkpoint = fresh.read(path)
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.stubs
    assert "not imported" in checkpoint.notes[0]
    assert not marker.exists()
    import my  # noqa: F401  (negative control: it is importable, and tells)

    assert marker.exists()
    del sys.modules["my"]


@pytest.mark.parametrize(("preparation", "size"), [("confine()", 0), ("None", 10)])
def test_the_confined_child_cannot_write_files(tmp_path, preparation, size):
    target = tmp_path / "written"
    code = f"{preparation}; open({str(target)!r}, 'w').write('x' * 10)"
    _python(f"from analyses.checkpoints.reader_worker import confine; {code}")
    assert target.stat().st_size == size


def test_the_child_never_imports_torch():
    module = "analyses.checkpoints.reader_worker"
    code = f"import sys; import {module}; print(sorted({{'torch', 'xarray'}} & set(sys.modules)))"
    assert _python(code) == "[]"


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    return done.stdout.strip()


def test_size_is_checked_before_reading(tmp_path):
    path = tmp_path / "good.pt"
    path.write_bytes(HONEST_ZIP)
    with CheckpointReader(max_bytes=100) as small, pytest.raises(CheckpointError, match="limit of 100"):
        small.read(path)
