"""Which changed formulas do the tests see? A mutation runner for one file of this repository.

``python -m tests.mutants spectra/solvers/density.py tests/spectra/solvers/test_density.py`` changes one
operator, constant, comparison or function name of the file at a time and runs the tests that execute its
line, the quickest first. Imports and the collection of tests are done once: every mutant lives in a forked
child, where the code of the changed functions is put in place of the loaded one. The file stays as it is.
What survives is printed as a line to read: a test is missing, or the change means nothing. Nothing is random.
``docs/mutation.md`` says more.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import json
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 8.0  # times the time of the tests without a mutant, before it counts as hanging, and so as seen
LEAST_SECONDS = 30.0
BASELINE_SECONDS = 3600.0
MOST_BYTES = 12 * 2**30  # of address space: a mutant that asks for more has been seen
LATE = 124  # exit code of a child that was stopped
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
NAMES = {
    "max": "min", "min": "max", "argmax": "argmin", "argmin": "argmax", "any": "all", "all": "any",
    "maximum": "minimum", "minimum": "maximum", "sum": "mean", "mean": "sum", "floor": "ceil",
    "ceil": "floor",
    "sqrt": "square", "square": "sqrt", "norm": "sum", "abs": "float", "zeros": "ones", "ones": "zeros",
    "cumsum": "asarray", "std": "var", "smallest": "largest", "largest": "smallest", "eigvalsh": "eigvals",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A changed source: the line, the text there before and after, and the whole source."""

    line: int
    before: str
    after: str
    source: str


class _Sites(ast.NodeVisitor):
    """Every place that can be changed, as (node, function that changes it in a copy of the tree)."""

    def __init__(self) -> None:
        self.found: list[tuple[ast.AST, object]] = []

    def _add(self, node: ast.AST, change) -> None:
        self.found.append((node, change))

    def generic_visit(self, node: ast.AST) -> None:
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
        super().generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        """Annotations are no code."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Neither decorators nor annotations."""
        node.returns, decorators, node.decorator_list = None, node.decorator_list, []
        self.generic_visit(node)
        node.decorator_list = decorators

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """No decorators."""
        decorators, node.decorator_list = node.decorator_list, []
        self.generic_visit(node)
        node.decorator_list = decorators

    def visit_Raise(self, node: ast.Raise) -> None:
        """Messages are tested by words, not by letters."""

    def visit_BinOp(self, node: ast.BinOp) -> None:
        other = OPERATORS.get(type(node.op))
        if other:
            self._add(node, lambda n: setattr(n, "op", other()))
        self.generic_visit(node)

    visit_AugAssign = visit_BoolOp = visit_BinOp

    def visit_Compare(self, node: ast.Compare) -> None:
        for place, op in enumerate(node.ops):
            for other in COMPARISONS.get(type(op), ()):
                self._add(node, lambda n, p=place, o=other: n.ops.__setitem__(p, o()))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
            self._add(node, lambda n: setattr(n, "op", ast.UAdd() if isinstance(n.op, ast.USub) else None))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._add(node, lambda n: setattr(n, "value", not n.value))
        elif isinstance(value, int):
            self._add(node, lambda n: setattr(n, "value", n.value + 1))
        elif isinstance(value, float):
            self._add(node, lambda n: setattr(n, "value", n.value * 2 if n.value else 1.0))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Texts."""

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "id", getattr(node.func, "attr", None))
        if name in NAMES:
            field = "id" if isinstance(node.func, ast.Name) else "attr"
            self._add(node, lambda n, f=field: setattr(n.func, f, NAMES[getattr(n.func, f)]))
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        self._add(node, lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test)))
        self.generic_visit(node)

    visit_IfExp = visit_While = visit_If


def mutants(text: str) -> Iterator[Mutant]:
    """All mutants of a source, in the order of its lines.

    Parameters
    ----------
    text : str
        Python.

    Yields
    ------
    Mutant
    """
    tree = ast.parse(text)
    sites = _Sites()
    sites.visit(tree)
    for node, _ in sites.found:
        node.mark = True
    for number in sorted(range(len(sites.found)), key=lambda i: sites.found[i][0].lineno):
        node, change = sites.found[number]
        holder = copy.copy(node)
        holder.__dict__ = {k: list(v) if isinstance(v, list) else copy.copy(v) for k, v in vars(node).items()}
        before = ast.unparse(node)
        saved = dict(vars(node))
        vars(node).update(vars(holder))
        change(node)
        if isinstance(node, ast.UnaryOp) and node.op is None:  # `not x` becomes `x`
            node.__class__, kept = ast.NamedExpr, node.operand
            node.target, node.value = ast.Name("_", ast.Store()), kept
        source, after = ast.unparse(ast.fix_missing_locations(tree)), ast.unparse(node)
        node.__class__ = type(sites.found[number][0]) if "operand" not in saved else ast.UnaryOp
        vars(node).clear()
        vars(node).update(saved)
        yield Mutant(node.lineno, before, after, source)


def _heads(text: str) -> dict[int, int]:
    """Lines where functions begin, up to their first statement, and the line of that: defaults act there."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[min(len(node.body) - 1, int(ast.get_docstring(node) is not None))].lineno
            found |= dict.fromkeys(range(node.lineno, first), first)
    return found


def _functions(owner: dict, path: str = "") -> Iterator[tuple[str, types.FunctionType]]:
    """All plain functions of a namespace and of the classes in it, with their paths."""
    module = owner.get("__name__")
    for key, value in list(owner.items()):
        for part in (value, getattr(value, "__func__", None), getattr(value, "fget", None),
                     getattr(value, "func", None), getattr(value, "__wrapped__", None)):  # fmt: skip
            if isinstance(part, types.FunctionType) and (path or part.__module__ == module):
                yield f"{path}{key}", part
        if isinstance(value, type) and (path or value.__module__ == module):
            yield from _functions(dict(vars(value)), f"{path}{key}.")


def _put(module: types.ModuleType, source: str) -> None:
    """Give the loaded functions of a module the code of another source, and its constants their values."""
    fresh = types.ModuleType(module.__name__)
    fresh.__file__ = module.__file__
    sys.modules[module.__name__] = fresh  # dataclasses look their module up
    exec(compile(source, module.__file__, "exec"), fresh.__dict__)
    sys.modules[module.__name__] = module
    changed = dict(_functions(vars(fresh)))
    for path, old in _functions(vars(module)):
        new = changed.get(path)
        if new is not None and len(new.__code__.co_freevars) == len(old.__code__.co_freevars):
            old.__code__, old.__defaults__, old.__kwdefaults__ = (
                new.__code__, new.__defaults__, new.__kwdefaults__
            )  # fmt: skip
    plain = (int, float, str, tuple, dict, type(None))
    for key, value in vars(fresh).items():
        before = getattr(module, key, None)
        if key.startswith("__") or not isinstance(value, plain) or value == before:
            continue
        for other in list(sys.modules.values()):
            with contextlib.suppress(Exception):
                if isinstance(other, types.ModuleType) and vars(other).get(key) is before:
                    setattr(other, key, value)


def _child(work: Callable[[], int], seconds: float) -> int:
    """Exit code of a function in a forked child; 124 if it takes too long."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
            null = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(null, stream)
            code = int(work())
        except BaseException:  # whatever a mutant does, it has been seen
            code = 3
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return LATE


class Mutation:
    """A pytest plugin that runs the collected tests once, and then those that reach it for every mutant.

    Parameters
    ----------
    file : Path
        The file to change.
    lines : range, optional
        Only mutants on these lines.
    budget : float
        Seconds of tests (without a mutant) for each mutant at most; the quickest are taken.
    """

    def __init__(self, file: Path, lines: range | None, budget: float):
        self.file, self.lines, self.budget = file, lines, budget
        self.failed = False
        self.found: dict = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        self.failed |= report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all mutants."""
        items = session.items
        reached, seconds = self._watched_apart(items)
        name = ".".join(self.file.relative_to(ROOT).with_suffix("").parts)
        module, known, heads = importlib.import_module(name), sorted(reached), _heads(self.file.read_text())
        tried, late, survivors, start = 0, 0, [], time.monotonic()
        for mutant in mutants(self.file.read_text()):
            if self.lines is not None and mutant.line not in self.lines:
                continue
            tried += 1
            near = [line for line in known if line <= heads.get(mutant.line, mutant.line)]
            there = reached[near[-1]] if near else set(range(len(items)))
            chosen, total = [], 0.0
            for number in sorted(there, key=seconds.__getitem__):
                total += seconds[number]
                if chosen and total > self.budget:
                    break
                chosen.append(number)

            def work(
                source: str = mutant.source,
                chosen: tuple[int, ...] = tuple(sorted(chosen, key=seconds.__getitem__)),
            ) -> int:
                _put(module, source)
                for number in chosen:
                    self._run(items[number])
                    if self.failed:
                        return 1
                return 0

            code = _child(work, LEAST_SECONDS + PATIENCE * min(total, self.budget))
            late += code == LATE
            if code == 0:
                survivors.append({"line": mutant.line, "before": mutant.before, "after": mutant.after})
                print(
                    f"SURVIVED {self.file.name}:{mutant.line}: {mutant.before}  ->  {mutant.after}",
                    flush=True,
                )
        seen = tried - len(survivors)
        print(
            f"{self.file.relative_to(ROOT)}: {seen} of {tried} mutants seen ({seen / max(tried, 1):.1%}, "
            f"{late} of them as they took too long), "
            f"{time.monotonic() - start:.0f} s", flush=True,
        )  # fmt: skip
        self.found = {
            "file": str(self.file.relative_to(ROOT)), "tried": tried, "seen": seen, "survivors": survivors
        }  # fmt: skip
        return True

    @staticmethod
    def _run(item: pytest.Item) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)  # None: fixtures end with each

    def _watched_apart(self, items: list[pytest.Item]) -> tuple[dict[int, set[int]], dict[int, float]]:
        """The same in a child: threads that a test starts here are missing in later children, which hang."""
        with tempfile.TemporaryDirectory() as folder:
            note = Path(folder) / "watched"

            def work() -> int:
                note.write_bytes(pickle.dumps(self._watched(items)))
                return int(self.failed)

            if _child(work, BASELINE_SECONDS):
                raise pytest.UsageError("the tests do not pass without a mutant")
            return pickle.loads(note.read_bytes())

    def _watched(self, items: list[pytest.Item]) -> tuple[dict[int, set[int]], dict[int, float]]:
        """Which tests execute which line, and the seconds that each takes."""
        watch = coverage.Coverage(data_file=None, include=[str(self.file)], config_file=False)
        watch.start()
        seconds = {}
        for number, item in enumerate(items):
            watch.switch_context(str(number))
            start = time.monotonic()
            self._run(item)
            seconds[number] = time.monotonic() - start
        watch.stop()
        reached = defaultdict(set)
        for line, contexts in watch.get_data().contexts_by_lineno(str(self.file)).items():
            numbers = {int(context) for context in contexts if context}
            if numbers:
                reached[line] = numbers
        return reached, seconds


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("tests", nargs="+", help="test files, or names as pytest takes them")
    parser.add_argument("--lines", help="FIRST:LAST")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tests for each mutant")
    parser.add_argument("--json", type=Path, help="survivors for a program")
    options = parser.parse_args()
    first, _, last = (options.lines or "").partition(":")
    chosen = range(int(first), int(last) + 1) if options.lines else None
    plugin = Mutation(options.file.resolve(), chosen, options.budget)
    code = pytest.main(
        ["-q", "-s", "-n0", "-p", "no:cacheprovider", "--no-header", *options.tests], plugins=[plugin]
    )
    if options.json and plugin.found:
        options.json.write_text(json.dumps(plugin.found, indent=1))
    raise SystemExit(code)


if __name__ == "__main__":
    main()
