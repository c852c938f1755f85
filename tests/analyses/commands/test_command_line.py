"""Every option of every command, given nonsense: one line and exit code 2, or a plan that makes sense."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

from analyses import cli
from analyses.commands.options.common import check_outputs, deliver
from analyses.commands.options.values import MOST_SEED

TENSORS = ("--group", "Z5", "--tensor", "w_a=w_a", "--tensor", "w_b=w_b", "--tensor", "w_c=w_c")
LOSS_EXPR = "-(rho1**2+rho2**2)/2"
# Of each command: a line that plans something small, and does nothing.
PLANS: dict[str, tuple[str, ...]] = {
    "train": ("new", "--group", "Z5", "--width", "4", "--steps", "5"),
    "analyze": ("n.pt", *TENSORS),
    "crossings": ("run", *TENSORS),
    "temperature": (
        "--space", "S1", "--monomials", "x1;x2", "--loss-expr", LOSS_EXPR, "--t-grid", "0.1:0.7:5",
    ),
    "maxent": ("n.pt", *TENSORS),
    "complexity": ("--n-grid", "64,128", "--trials", "2", "--draws", "2"),
    "compose": ("add", "n.pt", "n.pt", "--out", "sum.pt", "--group", "Z5", "--activation", "square"),
    "construct": ("cosine", "--group", "Z5", "--out", "f6.pt"),
    "claims": ("--quick",),
    "verify": ("n.pt", *TENSORS),
    "inspect": ("n.pt",),
    "convert": ("n.pt", "--out", "m.pt"),
    "report": ("run", *TENSORS),
    "demo": (),
    "bench": ("train", "--quick"),
}  # fmt: skip
GIVEN_MOMENTS = ("--space", "S2", "--monomials", "x1;x2", "--moments", "0.1,0.2")
ALL_NONSENSE = (
    "",
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1" + 40 * "0",
    "2.5",
    "1e-320",
    "rubbish",
    "\udcff",
)


NONSENSE = ("", "-1", "0", "nan", "1e999", "1" + 40 * "0", "rubbish")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two steps of a run and a checkpoint."""
    path = tmp_path_factory.mktemp("line")
    rng = torch.Generator().manual_seed(0)
    (path / "run").mkdir()
    for file in ("n.pt", "run/step_0.pt", "run/step_10.pt"):
        weights = 0.3 * torch.randn(3, 5, 8, generator=rng, dtype=torch.float64)
        torch.save(dict(zip(("w_a", "w_b", "w_c"), weights, strict=True)), path / file)
    return path


@pytest.fixture
def rhoscope(folder, monkeypatch, capsys):
    """The program in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(folder)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rhoscope", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def parameters():
    """Every option with a value, of every command."""
    group = typer.main.get_command(cli.build_app())
    assert set(group.commands) == set(PLANS), "a new command needs a line in PLANS"
    for name, command in group.commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.is_flag:
                yield name, max(parameter.opts, key=len)


def test_there_are_options_of_every_kind():
    found = list(parameters())
    assert len(found) > 100
    assert {option for name, option in found if name == "complexity"} >= {
        "--seed",
        "--trials",
        "--noise",
        "--n-grid",
    }


@pytest.mark.parametrize("command", PLANS)
def test_the_plans_are_plans(rhoscope, folder, command):
    before = sorted(folder.rglob("*"))
    code, out, err = rhoscope(command, *PLANS[command], "--dry-run")
    assert (code, out) == (0, ""), err
    assert err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("command", "option"), list(parameters()))
def test_nonsense_is_one_line_or_a_plan(rhoscope, command, option):
    refuse_or_plan(rhoscope, command, option, NONSENSE)


def refuse_or_plan(rhoscope, command, option, values):
    """Values given last, so that they replace what the plan says."""
    for value in values:
        plan = GIVEN_MOMENTS if (command, option) in OF_MOMENTS else PLANS[command]
        code, out, err = rhoscope(command, *plan, "--dry-run", "--quiet", option, value)
        assert out == "", (option, value)
        assert "Traceback" not in err
        assert code in {0, 2}, (option, value, err)
        if code == 2:
            assert err.startswith("rhoscope: "), (option, value, err)
            assert err.count("\n") == 1, (option, value, err)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "option"), list(parameters()))
def test_all_nonsense_is_one_line_or_a_plan(rhoscope, command, option):
    refuse_or_plan(rhoscope, command, option, ALL_NONSENSE)


OF_MOMENTS = {("maxent", option) for option in ("--space", "--monomials", "--moments", "--method")}
# What must be refused, whatever the command: (option, values).
REFUSED = [
    ("--seed", ("", "-1", "nan", "2.5", str(MOST_SEED + 1))),
    ("--device", ("", "cuda", "mps", "gpu", "tpu", "meta", "cuda:-1", "cpu:1")),
    ("--workers", ("0", "-5", "nan", "")),
    ("--tolerance", ("nan", "inf", "-1", "0", "")),
    ("--trials", ("0", "1", "-1")),
    ("--draws", ("0", "-1")),
    ("--width", ("0", "-1", "nan", "")),
    ("--steps", ("0", "-1", "1e999")),
    ("--lr", ("0", "-1", "nan", "inf")),
    ("--weight-decay", ("nan", "inf", "-1", "some", "")),
    ("--train-fraction", ("0", "nan", "1.5")),
    ("--delta", ("0", "1", "nan")),
    ("--noise", ("nan", "inf", "-1")),
    ("--kappa", ("nan", "inf", "")),
    ("--theta", ("nan", "0", "2")),
    ("--n-grid", ("nan", "0", "-1", "64,32", "1e999", "")),
    ("--t-grid", ("nan:1:3", "0.1:nan:3", "0.1:inf:3", "0.1:0.7:0", "0.1:0.7", "0:1:3", "")),
    ("--max-seconds", ("nan", "-1", "inf")),
    ("--eigenvalues", ("0", "-1", "nan", "many", "")),
    ("--operator", ("heat", "")),
    ("--subspace", ("all", "")),
    ("--figure-format", ("eps", "gif", "")),
    ("--group", ("", "Z0", "Z1", "Q8", "Z1000003")),
    ("--output-scale", ("nan", "inf", "0", "-1")),
    ("--out", ("",)),
    ("--frequencies", ("0", "-1")),
    ("--compress", ("nan", "-1")),
    ("--max-mib", ("0", "-1")),
    ("--neurons", ("0", "-1")),
]


@pytest.mark.parametrize(("option", "values"), REFUSED, ids=[option for option, _ in REFUSED])
def test_values_out_of_range_are_refused_by_every_command_that_has_them(rhoscope, option, values):
    having = [command for command, found in parameters() if found == option]
    assert having
    for command in having:
        for value in values:
            code, out, err = rhoscope(command, *PLANS[command], "--dry-run", "--quiet", option, value)
            assert (code, out) == (2, ""), (command, option, value, err)
            assert err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("analyse n.pt", "analyze"),
        ("analyze n.pt --sead 1", "--seed"),
        ("analyze n.pt --operator wassersten", "did you mean wasserstein?"),
        ("train new --group Z5 --optimizer adamm", "did you mean adam"),
        ("claims --only loss-decompositon", "did you mean loss-decomposition?"),
        ("bench trian", "did you mean train?"),
        ("bench train --cases Z11", "--cases"),
        ("maxent n.pt --base spher", "did you mean sphere?"),
        ("analyze", "path"),
        ("analyze nowhere.pt", "nowhere.pt"),
        ("analyze --device cuda n.pt", "this machine has cpu"),
        ("report n.pt", "checkpoint"),
        ("analyze n.pt --out nowhere/../n.pt", "n.pt exists already"),
        ("crossings run --dask  127.0.0.1:9 --workers 2", "give one of them"),
    ],
)
def test_slips_are_one_line_that_says_what_was_meant(rhoscope, line, hint):
    code, out, err = rhoscope(*line.split())
    assert (code, out) == (2, "")
    assert hint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["", *PLANS])
def test_help_says_what_the_options_are(rhoscope, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = rhoscope(*filter(None, [command]), "--help")
    assert code == 0
    assert "Usage" in out
    group = typer.main.get_command(cli.build_app())
    shown = " ".join(out.replace("│", " ").split())
    for parameter in group.commands[command].params if command else ():
        if parameter.param_type_name == "option":
            assert max(parameter.opts, key=len) in out
        for word in (getattr(parameter, "help", None) or "").split():
            assert word in shown, f"{command} {parameter.name}: {word!r} is lost between source and screen"


def test_outputs_are_checked_before_the_work(rhoscope, folder, monkeypatch):
    """Whatever the command: nothing is read or computed when an output cannot be written."""
    (folder / "taken.nc").write_text("mine")
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "tables" / "eigenvalue.csv").write_text("mine")
    (folder / "page-1-spectrum.pdf").write_text("mine")
    (folder / "full").write_text("a file")
    for command in PLANS:
        has = {option for name, option in parameters() if name == command}
        cases = [
            ("--out", "taken.nc", "exists"), ("--out", "tables", "folder"),
            ("--out", "full/x.nc", "no folder"),
            ("--report", "taken.nc", "exists"), ("--csv", "tables", "tables already"),
            ("--csv", "full", "file"),
        ]  # fmt: skip
        if command in {"compose", "construct", "convert"}:
            cases = [("--out", "n.pt", "exists"), ("--out", "full/x.pt", "no folder")]
        if command == "demo":
            cases = [
                ("--out", "tables", "not empty"),
                ("--out", "full", "file"),
                ("--out", "full/x", "no folder"),
            ]
        for option, value, why in cases:
            if option in has:
                code, out, err = rhoscope(command, *PLANS[command], "--quiet", option, value)
                assert (code, out) == (2, ""), (command, option, value)
                assert why in err, (command, option, value, err)
        if "--report" in has:
            code, _, err = rhoscope(
                command, *PLANS[command], "--report", "page.html", "--figure-format", "pdf", "--quiet"
            )
            assert code == 2
            assert "page-1-spectrum.pdf exists" in err


def test_two_outputs_of_one_name_are_refused(tmp_path):
    with pytest.raises(Exception, match="same name"):
        check_outputs(tmp_path / "a", force=True, report=tmp_path / "b" / ".." / "a")


class Broken(io.StringIO):
    """A stream whose reader is gone."""

    def write(self, text):
        raise BrokenPipeError


def test_a_broken_output_does_not_cost_the_others(tmp_path, monkeypatch):
    import xarray as xr

    study = xr.Dataset({"loss": ((), 1.0)}, attrs={"study": "checkpoint"})
    monkeypatch.setattr(sys, "stdout", Broken())
    (tmp_path / "wall").write_text("")
    with pytest.raises(Exception, match="wall"):
        deliver({}, study=study, out=tmp_path / "wall" / "s.nc", csv=tmp_path / "t", json=True, force=False)
    assert (tmp_path / "t" / "loss.csv").read_text() == "loss\n1.0\n"


def test_the_version_is_said_without_loading_anything_heavy():
    code = (
        "import sys; sys.argv = ['rhoscope', '--version']\n"
        "from analyses.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, sorted({'torch', 'scipy', 'xarray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, last = done.stdout.splitlines()
    assert first.startswith("rhoscope ")
    assert last == "0 []"


def test_h_is_help():
    short, long = (
        CliRunner().invoke(cli.build_app("inspect"), ["inspect", word]) for word in ("-h", "--help")
    )
    assert short.exit_code == 0
    assert short.stdout == long.stdout
