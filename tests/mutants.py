"""Which changed formulas do the tests see? A mutation runner for one file of this repository.

``python -m tests.mutants spectra/density.py tests/spectra/test_density.py`` changes one operator, constant,
comparison or function name of the file at a time and runs the tests that execute its line, the quickest first.
Every mutant lives in a forked child that loads the changed source in place of the file, which stays as it is;
PyTorch is imported once. What survives is printed as a line to read: a test is missing, or the change means
nothing. Nothing is random. ``docs/mutation.md`` says more.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import json
import os
import pickle
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 4.0  # times the time of the tests without a mutant, before it counts as hanging, and so as seen
LEAST_SECONDS = 20.0
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
    "maximum": "minimum", "minimum": "maximum", "sum": "mean", "mean": "sum", "floor": "ceil", "ceil": "floor",
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
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                node.body = body[1:] or [ast.Pass()]  # docstrings say nothing to a computer
        super().generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        """Annotations are no code."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        node.returns = None
        self.generic_visit(node)

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


class _Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a given source."""

    def __init__(self, name: str, path: Path, source: str):
        self.name, self.path, self.source = name, path, source

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def create_module(self, spec):
        return None

    def exec_module(self, module) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)  # noqa: S102


class _Watch:
    """A pytest plugin that notes which lines of the file each test executes, and how long it takes."""

    def __init__(self, file: Path):
        import coverage

        self.coverage = coverage.Coverage(data_file=None, include=[str(file)], config_file=False)
        self.file, self.seconds, self.failed = str(file), {}, []
        self.start = 0.0

    def pytest_runtest_logstart(self, nodeid, location):
        self.coverage.switch_context(nodeid)
        self.start = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid, location):
        self.seconds[nodeid] = time.monotonic() - self.start

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)

    def lines(self) -> dict[int, list[str]]:
        return self.coverage.get_data().contexts_by_lineno(self.file)


def _child(work, seconds: float) -> int:
    """Exit code of a function in a forked child; 124 if it takes too long."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            os.setsid()
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
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 124


def _pytest(arguments: list[str], plugins=()) -> int:
    import pytest

    return pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments], plugins=list(plugins))


def _baseline(file: Path, tests: list[str]) -> tuple[dict[int, list[str]], dict[str, float]]:
    with tempfile.NamedTemporaryFile() as note:

        def work() -> int:
            watch = _Watch(file)
            watch.coverage.start()
            code = _pytest(tests, [watch])
            watch.coverage.stop()
            Path(note.name).write_bytes(pickle.dumps((watch.lines(), watch.seconds)))
            return code

        code = _child(work, 3600)
        if code:
            raise SystemExit(f"the tests do not pass without a mutant (exit code {code})")
        return pickle.loads(Path(note.name).read_bytes())  # noqa: S301


def run(file: Path, tests: list[str], *, lines: range | None = None, budget: float = 60.0) -> dict:
    """Try all mutants of a file.

    Parameters
    ----------
    file : Path
    tests : list of str
        Test files, or names as pytest takes them.
    lines : range, optional
        Only mutants on these lines.
    budget : float
        Seconds of tests (without a mutant) for each mutant at most; the quickest are taken.

    Returns
    -------
    dict
        Numbers ``tried``, ``seen``, and the survivors.
    """
    reached, seconds = _baseline(file, tests)
    text = file.read_text()
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    spread = defaultdict(set)
    for line, contexts in reached.items():
        spread[line] |= {c for c in contexts if c}
    tried, survivors, start = 0, [], time.monotonic()
    for mutant in mutants(text):
        if lines is not None and mutant.line not in lines:
            continue
        tried += 1
        there = spread.get(mutant.line) or set(seconds)  # import time, or a line inside a long statement
        if not spread.get(mutant.line):
            near = [n for n in sorted(spread) if n <= mutant.line and spread[n]]
            there = spread[near[-1]] if near else there
        chosen, total = [], 0.0
        for test in sorted(there, key=lambda t: seconds.get(t, 0.0)):
            total += seconds.get(test, 0.0)
            if chosen and total > budget:
                break
            chosen.append(test)

        def work(source=mutant.source, chosen=tuple(chosen)) -> int:
            sys.meta_path.insert(0, _Loader(name, file, source))
            return _pytest(list(chosen))

        code = _child(work, LEAST_SECONDS + PATIENCE * min(total, budget))
        if code == 0:
            survivors.append({"line": mutant.line, "before": mutant.before, "after": mutant.after})
            print(f"SURVIVED {file.name}:{mutant.line}: {mutant.before}  ->  {mutant.after}", flush=True)
    seen = tried - len(survivors)
    print(
        f"{file.relative_to(ROOT)}: {seen} of {tried} mutants seen ({seen / max(tried, 1):.1%}), "
        f"{time.monotonic() - start:.0f} s", flush=True,
    )  # fmt: skip
    return {"file": str(file.relative_to(ROOT)), "tried": tried, "seen": seen, "survivors": survivors}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--lines", help="FIRST:LAST")
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for heavy in ("torch", "scipy.optimize", "scipy.linalg", "scipy.special", "xarray", "matplotlib", "hypothesis",
                  "mpmath", "sklearn", "pymanopt", "pytest", "typer", "rich"):  # fmt: skip
        importlib.import_module(heavy)
    first, _, last = (options.lines or "").partition(":")
    chosen = range(int(first), int(last) + 1) if options.lines else None
    found = run(options.file.resolve(), options.tests, lines=chosen, budget=options.budget)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
