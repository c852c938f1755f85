"""What is around the program: terminals, locales, backends, disks, networks of zeros or infinities."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
import xarray as xr

from analyses import cli
from analyses.common import drawing
from analyses.common.study_files import read_study, readable, write_csv, write_study
from analyses.reports import figures
from analyses.reports.sections import document_of
from analyses.studies.network import section as network_sections
from analyses.studies.network.study import Question, analyze
from analyses.studies.page import section_of, write_report
from analyses.studies.trajectory import follow
from analyses.subjects.subject import Subject
from analyses.training.trainer import TrainingPlan, train
from manifold.errors import InputError, NotConvergedError
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.certificates.inertia import count_signs
from spectra.machine import machine_memory, resident_memory
from spectra.methods import plan as planning
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum
from spectra.networks.activations import parse_activation
from spectra.networks.group_network import GroupNetwork
from spectra.operators.variation import SecondVariation
from spectra.solvers.density import spectral_density

TENSORS = ("--group", "Z5", "--tensor", "w_a=w_a", "--tensor", "w_b=w_b", "--tensor", "w_c=w_c")
Z5 = FiniteAbelianGroup.parse("Z5")


def weights(seed: int = 0, factor: float = 1.0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    found = 0.3 * torch.randn(3, 5, 8, generator=rng, dtype=torch.float64)
    return {name: factor * w for name, w in zip(("w_a", "w_b", "w_c"), found, strict=True)}


def network(factor: float = 1.0, activation: str = "square") -> GroupNetwork:
    return GroupNetwork(Z5, *weights(0, factor).values(), activation=parse_activation(activation))


@pytest.fixture
def rhoscope(tmp_path, monkeypatch, capsys):
    """The program in this process, in a folder of its own: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")  # main sets it; this gives it back

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rhoscope", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


# -- terminals, locales, backends ----------------------------------------------------------------------


def test_foreign_backend_latex_and_an_ascii_locale_change_nothing(tmp_path):
    """What Jupyter, a matplotlibrc and a bare container do to a program, all at once."""
    folder = tmp_path / "größe"
    folder.mkdir()
    torch.save(weights(), folder / "n.pt")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 40\nfigure.dpi: 1000\n")
    surroundings = {
        "MPLBACKEND": "module://not_there.backend_inline", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "analyses.cli", "analyze", folder / "n.pt", *TENSORS, "--out", folder / "s.nc",
         "--report", folder / "r.html", "--csv", folder / "t"],
        capture_output=True, cwd=tmp_path, env={**os.environ, **surroundings}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert done.stderr.isascii()
    page = (folder / "r.html").read_text("utf-8")
    assert "größe/n.pt" in page
    assert page.count("<img") == 2
    assert "cannot be drawn" not in page
    assert "größe/n.pt" in read_study(folder / "s.nc").attrs["command"]


def test_a_closed_output_is_nothing_to_print(tmp_path):
    torch.save(weights(), tmp_path / "n.pt")
    line = f"{sys.executable} -m analyses.cli analyze n.pt {' '.join(TENSORS)} --out s.nc --quiet"
    done = subprocess.run(
        ["sh", "-c", f"{line} <&- >&- 2>&-; echo $?"], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.stdout == "0\n"
    assert read_study(tmp_path / "s.nc").attrs["study"] == "checkpoint"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gr\xf6\xdfe", "größe"),
        ("gr\udcc3\udcb6\udcc3\udc9fe", "größe"),
        ("bad\udcff", r"bad\xff"),
        ("\ud800", r"\ud800"),
    ],
)
def test_any_path_can_be_written_down(text, shown):
    assert readable(text) == shown
    assert readable(readable(text)) == readable(text)


def test_a_path_that_is_no_text_goes_through_every_output(rhoscope, tmp_path):
    folder = tmp_path / os.fsdecode(b"bad\xff")
    folder.mkdir()
    for step in (1, 2):
        torch.save(weights(step), folder / f"step_{step}.pt")
    outputs = ("--json", "--out", "s.nc", "--csv", "t", "--report", "a.html")
    code, out, err = rhoscope("analyze", folder, *TENSORS, *outputs)
    assert code == 0, err
    assert json.loads(out)["checkpoint"]["path"].endswith("step_2.pt")
    assert rhoscope("report", folder, *TENSORS, "--out", "r.html", "--quiet")[0] == 0
    assert rhoscope("report", "s.nc", "--quiet")[0] == 0
    for page in ("a.html", "r.html", "s.html"):
        assert r"bad\xff" in (tmp_path / page).read_text("utf-8")
    assert rhoscope("convert", folder, *TENSORS, "--out", "c.safetensors", "--quiet")[0] == 0
    assert rhoscope("crossings", folder, *TENSORS, "--out", "x.nc", "--report", "x.html", "--quiet")[0] == 0


def test_the_house_style_starts_from_the_defaults():
    with matplotlib.rc_context({"text.usetex": True, "font.size": 40, "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        with drawing.house_style():
            assert not matplotlib.rcParams["text.usetex"]
            assert matplotlib.rcParams["lines.linewidth"] == matplotlib.rcParamsDefault["lines.linewidth"]
            assert matplotlib.rcParams["font.size"] == drawing.STYLE["font.size"]
        assert dict(matplotlib.rcParams) == before


def test_nothing_else_imports_the_drawing_library():
    """One door for it, or a foreign backend comes in by another; commands come up without it."""
    root = os.path.dirname(cli.__file__)
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(".py") and name != "drawing.py":
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    text = file.read()
                doors = ("import matplotlib", "from matplotlib")
                lines = [line for line in text.splitlines() if line.startswith(doors)]
                assert not lines, f"{name}: {lines}; import it from analyses.common.drawing"
    code = (
        "import sys; from analyses.cli import build_app; build_app(); sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- figures and outputs -------------------------------------------------------------------------------


def test_a_figure_that_cannot_be_drawn_costs_nothing_else(rhoscope, tmp_path, monkeypatch):
    def broken(study, **options):
        raise RuntimeError("Failed to process string with tex")

    monkeypatch.setattr(network_sections, "neurons_figure", broken)
    torch.save(weights(), tmp_path / "n.pt")
    outputs = ("--json", "--out", "s.nc", "--csv", "t", "--report", "r.html")
    code, out, err = rhoscope("analyze", "n.pt", *TENSORS, *outputs, "--quiet")
    assert code == 3
    assert json.loads(out)["spectrum"]["rank"] == 96
    assert err.count("\n") == 1
    assert "figure neurons cannot be drawn: RuntimeError: Failed to process" in err
    page = (tmp_path / "r.html").read_text("utf-8")
    assert page.count("<img") == 1
    assert "cannot be drawn: RuntimeError" in page
    assert read_study(tmp_path / "s.nc").sizes["eigen"] == 96
    assert (tmp_path / "t" / "eigenvalue.csv").exists()


def test_a_page_on_a_full_disk_comes_after_the_numbers(rhoscope, tmp_path, monkeypatch):
    torch.save(weights(), tmp_path / "n.pt")
    whole = type(tmp_path).write_text

    def full(path, text, *arguments, **options):
        if path.name.startswith(".r.html"):
            raise OSError(28, "No space left on device")
        return whole(path, text, *arguments, **options)

    monkeypatch.setattr(type(tmp_path), "write_text", full)
    code, out, err = rhoscope("analyze", "n.pt", *TENSORS, "--out", "s.nc", "--report", "r.html", "--quiet")
    assert code == 2
    assert "unstable" in out
    assert "No space left" in err
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.pt", "s.nc"]


def test_complex_columns_are_two_numbers(tmp_path):
    values = np.array([1 + 2j, -0.5j, np.nan])
    study = xr.Dataset({"rho": (("step", "k"), values[None])}, {"step": [3], "k": ["(1)", "(2)", "(3)"]})
    study["one"] = ((), 1 - 2j)
    assert [path.name for path in write_csv(study, tmp_path)] == ["rho.csv", "one.csv"]
    with (tmp_path / "rho.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["rho_re"]) for row in rows[:2]] == [1.0, 0.0]
    assert [float(row["rho_im"]) for row in rows[:2]] == [2.0, -0.5]
    assert (tmp_path / "one.csv").read_text() == "one_re,one_im\n1.0,-2.0\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"PK\x03\x04", "checkpoint"), (b"\x80\x02", "checkpoint"), (b"hello", "study"), (b"", "study"),
     (b"\x89HDF\r\n\x1a\n" + bytes(100), "damaged")],
)  # fmt: skip
def test_files_that_are_no_studies(tmp_path, content, says):
    (tmp_path / "x.bin2").write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_study(tmp_path / "x.bin2")


def test_cut_studies_are_one_error(tmp_path):
    write_study(xr.Dataset({"x": ("y", np.arange(50.0))}, attrs={"study": "checkpoint"}), tmp_path / "s.nc")
    whole = (tmp_path / "s.nc").read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "cut.nc").write_bytes(whole[:size])
        with pytest.raises(InputError):
            read_study(tmp_path / "cut.nc")


def test_a_study_without_its_parts_is_one_line(rhoscope, tmp_path):
    for kind in ("checkpoint", "crossings", "trajectory", "maxent", "temperature", "complexity", "claims"):
        write_study(xr.Dataset({"x": ("y", np.arange(3.0))}, attrs={"study": kind}), tmp_path / f"{kind}.nc")
        code, _, err = rhoscope("report", f"{kind}.nc", "--quiet")
        assert code == 2, kind
        assert kind in err
        assert err.count("\n") == 1


# -- networks of zeros and infinities ------------------------------------------------------------------


PATHS = {
    "dense": ({}, {}),
    "krylov": ({"count": 3}, {"DENSE_LIMIT": 0, "DENSE_WORK": 0.0}),
    "krylov full": ({"count": 3, "subspace": "full"}, {"DENSE_LIMIT": 0}),
    "moments": ({"count": None}, {"DENSE_WORK": 0.0}),
    "blocks": ({"count": None, "subspace": "full", "memory_limit": 1600}, {}),
    "flat": ({"operator": "flat"}, {}),
    "full": ({"subspace": "full", "count": None}, {}),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_every_path_takes_a_network_of_zeros(monkeypatch, path):
    options, limits = PATHS[path]
    for name, value in limits.items():
        monkeypatch.setattr(planning, name, value)
    subject = Subject(network(0.0))
    plan = plan_spectrum(subject.objective, subject.measure, **options)
    found = compute_spectrum(plan, subject.objective, subject.measure)
    assert found.spectrum.counts.negative == found.spectrum.counts.positive == 0
    assert not np.any(found.spectrum.eigenvalues)
    if path in {"dense", "moments"}:
        assert found.rank == 0
        assert found.spectrum.dimension == 0


def test_inertia_and_density_of_a_network_of_zeros():
    subject = Subject(network(0.0))
    operator = SecondVariation(subject.objective.linearise(subject.measure))
    counts = count_signs(operator)
    assert (counts.negative, counts.positive) == ((0, 0), (0, 0))
    assert spectral_density(operator).norm == 0.0
    found = analyze(subject, Question(density=True))
    counts = found.result.spectrum.counts
    assert (counts.marginal, counts.undetermined) == (120, 0)  # cubic potentials are flat at zero


def test_every_command_takes_a_run_that_begins_at_zero(rhoscope, tmp_path):
    (tmp_path / "run").mkdir()
    torch.save(weights(0, 0.0), tmp_path / "run" / "step_0.pt")
    torch.save(weights(1), tmp_path / "run" / "step_10.pt")
    code, out, _ = rhoscope(
        "analyze", "run", *TENSORS, "--step", 0, "--json", "--report", "a.html", "--quiet"
    )
    assert (code, json.loads(out)["spectrum"]["rank"]) == (0, 0)
    code, _, err = rhoscope("maxent", "run", *TENSORS, "--step", 0, "--quiet")
    assert (code, err.count("\n")) == (2, 1)
    assert "no measure to fit" in err
    outputs = ("--json", "--report", "c.html", "--out", "c.nc", "--quiet")
    code, out, _ = rhoscope("crossings", "run", *TENSORS, "--certify", 2, *outputs)
    assert (code, json.loads(out)["rank"]) == (0, [0, 96])
    assert rhoscope("report", "run", *TENSORS, "--quiet")[0] == 0
    study = read_study(tmp_path / "c.nc")
    assert study.sizes["crossing"] == 0
    assert {f"crossing_{name}" for name in ("branch", "kind", "direction", "t_low", "t_high")} <= set(study)


def test_diverged_steps_are_named_and_left_out_where_asked(rhoscope, tmp_path):
    (tmp_path / "run").mkdir()
    for step, factor in ((0, 1.0), (10, 1e120), (20, float("nan")), (30, 1.1)):
        torch.save(weights(step, factor), tmp_path / "run" / f"step_{step}.pt")
    for command in (["report"], ["crossings"]):
        code, _, err = rhoscope(*command, "run", *TENSORS, "--quiet")
        assert (code, err.count("\n")) == (2, 1)
        assert "step 10" in err
        assert "diverged" in err
        code, _, err = rhoscope(*command, "run", *TENSORS, "--quiet", "--skip-bad")
        assert code == 0, err
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "left out: step 10" in page
    assert "left out: step 20" in page
    for command in (["analyze"], ["maxent"]):
        code, _, err = rhoscope(*command, "run/step_10.pt", *TENSORS, "--quiet")
        assert (code, err.count("\n")) == (2, 1)
        assert "diverged" in err


@pytest.mark.parametrize("activation", ["square", "relu", "tanh", "x^3 - 0.5*x"])
def test_below_the_stated_size_nothing_overflows(activation):
    net = network(1.0, activation)
    factor = 0.99 * net.overflow / net.largest
    assert np.isfinite(Subject(network(factor, activation)).task.value(network(factor, activation).measure()))


def test_training_that_diverges_keeps_what_was_whole(tmp_path):
    plan = TrainingPlan("Z5", width=4, steps=50, lr=1e30, optimizer="sgd")
    with pytest.raises(NotConvergedError, match="lower lr"):
        train(plan, tmp_path / "run", save_every=1)
    files = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert files[0] == "step_0.pt"
    assert all(torch.isfinite(w).all() for file in files
               for w in torch.load(tmp_path / "run" / "checkpoints" / file).values())  # fmt: skip


def test_training_that_fails_at_once_leaves_nothing(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for path, force in ((tmp_path / "new" / "run", False), (tmp_path / "mine", True)):
        with pytest.raises(Exception, match=r"(?i)cuda|device"):
            train(TrainingPlan("Z3", width=4, steps=5), path, device="cuda", force=force)
    assert not (tmp_path / "new" / "run").exists()
    assert [item.name for item in (tmp_path / "mine").iterdir()] == ["notes.txt"]


# -- words that must be true ---------------------------------------------------------------------------


def test_cross_entropy_has_no_potentials_that_should_be_one(rhoscope, tmp_path):
    torch.save(weights(), tmp_path / "n.pt")
    plan = TrainingPlan("Z3", width=6, steps=6, loss="cross_entropy")
    run = train(plan, tmp_path / "run", save_every=3)
    code, out, _ = rhoscope("analyze", "run", "--json", "--report", "r.html", "--quiet")
    document = json.loads(out)
    assert code == 0
    assert document["potentials"]["ones"] is None
    assert document["potentials"]["determine_loss"]
    assert document["potentials"]["zeros_unit"] == "largest |rho_kkk|"
    assert any("cross-entropy" in note for note in document["notes"])
    assert "of 1" not in rhoscope("analyze", "run", "--quiet")[1]
    assert "within 0.05 of 1" not in (tmp_path / "r.html").read_text("utf-8")
    assert document_of(follow(run))["ones"] == [None, None, None]
    code, out, _ = rhoscope("crossings", "run", "--json", "--quiet", "--control", "random")
    found = json.loads(out)
    assert found["ones"] == found["controls"]["random"]["ones"] == [None, None, None]
    assert "at 1" not in rhoscope("crossings", "run", "--quiet", "--control", "random")[1]


def test_subsets_of_potentials_are_refused_for_other_activations_before_the_work(rhoscope, tmp_path):
    (tmp_path / "run").mkdir()
    for step in (0, 1):
        torch.save(weights(step), tmp_path / "run" / f"step_{step}.pt")
    for command in ("analyze", "crossings"):
        code, out, err = rhoscope(
            command, "run", *TENSORS, "--activation", "relu", "--potentials", "R_g", "--dry-run"
        )
        assert (code, out) == (2, "")
        assert "relu" in err
        assert "use all" in err


def test_large_groups_are_refused_for_their_size():
    for name in ("Z1000003", "Z999x" * 40 + "Z2", "Z" + "9" * 5000):
        with pytest.raises(InputError, match="order of at most"):
            FiniteAbelianGroup.parse(name)


def test_no_figure_claims_a_zero():
    values, errors = np.array([-1.0, 0.0, 1e-16, 2.0]), np.full(4, 1e-14)
    found = figures.signs(values, errors)
    assert found["undetermined"].tolist() == [False, True, True, False]
    assert "marginal" not in found


def test_complexity_studies_have_a_page(rhoscope, tmp_path):
    small = ("--symmetry", "Z2", "--n-grid", "256,512,1024", "--trials", 3, "--draws", 8)
    outputs = ("--out", "c.nc", "--report", "c.html", "--json", "--quiet")
    code, out, _ = rhoscope("complexity", *small, *outputs)
    assert code == 0
    document = json.loads(out)
    assert rhoscope("report", "c.nc", "--out", "again.html", "--quiet")[0] == 0
    first, again = ((tmp_path / name).read_text("utf-8") for name in ("c.html", "again.html"))
    assert first.count("<img") == again.count("<img") >= 2
    assert document["groups"][0]["slope"]["judgement"] in again
    study = read_study(tmp_path / "c.nc")
    del study.attrs["study"], study.attrs["summary"]  # as the first version wrote it
    write_report([study], tmp_path / "old.html")
    assert section_of(study).pictures[0].name == "learning-curves"
    assert document["verdict"]["statement"].split("{")[0] in (tmp_path / "old.html").read_text("utf-8")


# -- memory --------------------------------------------------------------------------------------------

PEAK = """
import json, sys, torch
from analyses.subjects.subject import Subject
from manifold.groups.abelian import FiniteAbelianGroup
from spectra.networks.group_network import GroupNetwork
from spectra.methods.compute import compute_spectrum
from spectra.methods.plan import plan_spectrum
n, q, options = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
rng = torch.Generator().manual_seed(0)
weights = [0.3 * torch.randn(n, q, generator=rng, dtype=torch.float64) for _ in range(3)]
subject = Subject(GroupNetwork(FiniteAbelianGroup.parse(f"Z{n}"), *weights))
from spectra.methods import plan as planning
planning.DENSE_LIMIT, planning.DENSE_WORK = (0, 0.0) if options.get("count") == 3 else (4000, 2e12)
plan = plan_spectrum(subject.objective, subject.measure, **options)
compute_spectrum(plan, subject.objective, subject.measure)
# Not ru_maxrss, which a child has from the process that started it.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(1024 * int(peak.split()[1]) / (plan.memory + plan.program))
"""
SIZES = [
    (5, 130, {"subspace": "full", "count": None}),
    (7, 60, {}),
    (9, 40, {}),
    (5, 1500, {"operator": "flat"}),
    (7, 300, {"count": 3}),
]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is told by /proc")
@pytest.mark.parametrize(("n", "q", "options"), SIZES)
def test_the_plan_says_how_much_memory_it_takes(n, q, options):
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(n), str(q), json.dumps(options)], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert 0.6 <= float(done.stdout) <= 1.0, done.stdout


def test_memory_of_machine_and_process():
    """In a process of its own: what others have freed would be used again."""
    code = (
        "import numpy as np; from spectra.machine import resident_memory as r; a = r(); "
        "table = np.ones(2**24); print((r() - a) / table.nbytes)"
    )
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.9 < float(grown) < 1.1
    assert resident_memory() < machine_memory()


def test_what_cannot_fit_is_refused_before_it_is_made(rhoscope):
    code, out, err = rhoscope("train", "big", "--group", "Z99999", "--width", 10**9, "--quiet")
    assert (code, out) == (2, "")
    assert "this machine has" in err
