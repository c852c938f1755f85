"""The house keeps its floors: imports go only downward."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {"manifold": {"spectra", "analyses"}, "spectra": {"analyses"}, "analyses": set()}


def imported(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_imports_go_only_downward(floor):
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    for file in files:
        upward = imported(file.read_text("utf-8")) & (FORBIDDEN[floor] | {"tests"})
        assert not upward, f"{file.relative_to(ROOT)} imports {upward}"


def test_the_check_sees_an_upward_import():
    assert imported("def f():\n    from analyses.report import x") == {"analyses"}


@pytest.mark.parametrize("floor", ["manifold", "spectra"])
def test_lower_floors_do_not_print(floor):
    for file in (ROOT / floor).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            assert called != "print", f"{file.name}:{node.lineno} prints"
