"""The house keeps its floors and rooms: imports go only downward, rooms stay small, maps are true."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Every room after those that it may import from; a floor's own files may be used by all of its rooms.
ROOMS = (
    "manifold",
    "manifold/spaces", "manifold/groups", "manifold/integration", "manifold/sampling", "manifold/maxent",
    "manifold/invariants",
    "spectra",
    "spectra/functionals", "spectra/networks", "spectra/tasks", "spectra/operators", "spectra/solvers",
    "spectra/blocks", "spectra/certificates", "spectra/methods", "spectra/flow", "spectra/temperature",
    "spectra/branches",
    "analyses/common", "analyses/checkpoints/reading", "analyses/checkpoints", "analyses/layouts",
    "analyses/runs", "analyses/subjects", "analyses/training", "analyses/verification/exact",
    "analyses/verification", "analyses/reports", "analyses/studies/network", "analyses/studies/crossings",
    "analyses/studies/maxent", "analyses/studies/complexity", "analyses/studies/claims", "analyses/studies",
    "analyses/bench", "analyses/commands/options", "analyses/commands/networks",
    "analyses/commands/studies", "analyses/commands/evidence", "analyses",
)  # fmt: skip
FEWEST, MOST = 3, 12  # files of a room: fewer need no room, more are not seen at a glance
FLOORS = {"manifold", "spectra", "analyses"}  # beside rooms: what all rooms use, and the command


def imported(source: str) -> set[str]:
    """Modules that a source imports, dotted, with the names that may be modules of a package."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(room: str) -> list[Path]:
    """The files of a room itself, without its docstring."""
    return [file for file in sorted((ROOT / room).glob("*.py")) if file.name != "__init__.py"]


HOME = {
    f"{room}/{file.stem}".replace("/", "."): room for room in ROOMS for file in files(room)
}  # of each module


def test_every_file_has_a_room():
    found = {file for floor in FLOORS for file in (ROOT / floor).rglob("*.py") if file.name != "__init__.py"}
    assert found == {file for room in ROOMS for file in files(room)}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_from_rooms_below(room):
    below = set(ROOMS[: ROOMS.index(room) + 1])
    assert files(room)
    for file in files(room):
        names = imported(file.read_text("utf-8"))
        assert not any(name.split(".")[0] == "tests" for name in names)
        upward = {name for name in names if name in HOME and HOME[name] not in below}
        assert not upward, f"{file.relative_to(ROOT)} imports {upward}"


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in FLOORS])
def test_rooms_are_seen_at_a_glance(room):
    assert FEWEST <= len(files(room)) <= MOST
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text("utf-8")))
    assert len(text.splitlines()[0]) > 20


@pytest.mark.parametrize("room", ROOMS)
def test_tests_mirror_the_rooms(room):
    for file in sorted((ROOT / "tests" / room).glob("test_*.py")):
        assert (ROOT / room).is_dir(), f"{file.relative_to(ROOT)} tests no room"


def test_the_check_sees_an_upward_import():
    assert "analyses.studies.page" in imported("def f():\n    from analyses.studies.page import x")
    assert HOME["analyses.studies.page"] == "analyses/studies"


@pytest.mark.parametrize("floor", ["manifold", "spectra"])
def test_lower_floors_do_not_print(floor):
    for file in (ROOT / floor).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            assert called != "print", f"{file.name}:{node.lineno} prints"


def test_the_map_names_files_and_rooms_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"`((?:manifold|spectra|analyses)/[\w/.]*)`", text)
    assert len([name for name in named if name.endswith(".py")]) >= 10
    for name in named:
        assert (ROOT / name).exists(), name
    listed = {name.rstrip("/") for name in named if not name.endswith(".py")}
    assert {room for room in ROOMS if room.count("/") == 1} <= listed | {"analyses"}
