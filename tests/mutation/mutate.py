"""Mutation testing of the modules where a bug hurts most: change one place of a module, run its tests, list survivors.

    python tests/mutation/mutate.py [--module PART] [--count 10] [--seed 0] [--line N]

A mutant replaces one comparison, boolean or arithmetic operator, `not`, constant, condition, or `any`, `all`, `min`,
`max`, or deletes one statement. Messages, hints, docstrings, annotations, decorators and options of classes are left
alone. It is written into a temporary copy of the tree; the tests of its module run there, and a failure or a timeout
kills it. A survivor is printed as a line diff: write a test that fails with it, or judge it equivalent. pytest does
not collect this file.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import difflib
import importlib.util
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODULES = {  # module: the tests beside it and other files, and which of them (seconds in all)
    "pipeline/store/artifact.py": ("artifact drafts", ""),
    "pipeline/store/files.py": ("files regular", ""),
    "pipeline/store/locks.py": ("locks", ""),
    "pipeline/tokens/writer.py": ("writer_batches writer", ""),
    "pipeline/tokens/reuse.py": (
        "reuse tests/pipeline/store/test_code.py tests/test_digests.py",
        "not up_to_date and not golden and not milliseconds",  # the first two fail after any edit
    ),
    "pipeline/sources/transfer.py": ("transfer", "not any_disk_fault and not any_byte"),
    "pipeline/sources/http.py": ("http watchdog", ""),
    "pipeline/sources/redirects.py": ("http", "redirect or address"),
    "pipeline/maintenance/retention.py": ("retention", "not interrupted"),
    "model/runs/checkpoint.py": ("checkpoint foreign_run", ""),
    "model/serving/timeouts.py": ("timeouts", ""),
    "model/serving/server.py": ("server", "port or address or signal or extra or choices"),
}
OPERATORS: dict[type, type] = {}
for pair in ("Lt LtE", "Gt GtE", "Eq NotEq", "Is IsNot", "In NotIn", "And Or", "Add Sub", "Mult FloorDiv"):
    one, other = (getattr(ast, name) for name in pair.split())
    OPERATORS |= {one: other, other: one}
NAMES = {"any": "all", "all": "any", "min": "max", "max": "min"}
MESSAGES = ("hint", "help", "action", "reason", "problem")  # names of arguments and variables
REPORTING = ("report", "log", "warn", "info", "redact")  # beginnings of functions


def replacements(node: ast.AST) -> Iterator[str]:
    """Yield the texts that may stand in place of a node."""
    match node:
        case ast.Compare(left=left, ops=operators, comparators=right):
            for i, operator in enumerate(operators):
                others = [*operators[:i], OPERATORS[type(operator)](), *operators[i + 1 :]]
                yield f"({ast.unparse(ast.Compare(left, others, right))})"
        case ast.BoolOp(op=operator) | ast.BinOp(op=operator) if type(operator) in OPERATORS:
            other = copy.copy(node)
            other.op = OPERATORS[type(operator)]()  # type: ignore[union-attr]
            yield f"({ast.unparse(other)})"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(value=bool() | int() | float() as value):
            yield f"({not value if isinstance(value, bool) else value + 1!r})"
        case ast.Constant(value=str() as value):
            yield repr("" if value else "mutant")
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES:
            yield NAMES[name]
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break() | ast.Return(value=None):
            yield "pass"
        case ast.Return(value=ast.Constant()) | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "pass"


def mutants(node: ast.AST, in_message: bool = False) -> Iterator[tuple[Any, str]]:
    """Yield (node, text in its place) for all mutants below a node."""
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    target = getattr(node, "arg", None) or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]))
    if is_docstring or isinstance(node, ast.JoinedStr) or target in MESSAGES:
        return
    if isinstance(node, ast.Call):
        in_message |= ast.unparse(node.func).rpartition(".")[2].lower().startswith(REPORTING)
    if not (in_message and isinstance(node, ast.Constant)):
        yield from ((node, text) for text in replacements(node))
    for test in (getattr(node, "test", None), *getattr(node, "ifs", ())):
        if isinstance(test, ast.expr) and not isinstance(node, ast.While):  # a loop might not end
            yield from ((test, text) for text in ("True", "False"))
    skipped = ("annotation", "returns", "decorator_list", *(["keywords"] if isinstance(node, ast.ClassDef) else []))
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in skipped:
                yield from mutants(child, in_message or isinstance(node, ast.Raise))


def sample(source: str, count: int, seed: int, line: int) -> Iterator[tuple[str, str]]:
    """Yield (mutated source, line diff) of `count` mutants, of one line if it is not 0."""
    lines, others = source.encode().splitlines(keepends=True), dict[str, None]()
    for node, text in mutants(ast.parse(source)):
        if line in (0, node.lineno):  # columns count bytes
            before = b"".join(lines[: node.lineno - 1]) + lines[node.lineno - 1][: node.col_offset]
            after = lines[node.end_lineno - 1][node.end_col_offset :] + b"".join(lines[node.end_lineno :])
            others[(before + text.encode() + after).decode()] = None
    for new in random.Random(seed).sample([*others], min(count, len(others))):
        with contextlib.suppress(SyntaxError):  # an expression in a pattern
            compile(new, "", "exec")
            yield new, "\n".join([*difflib.unified_diff(source.splitlines(), new.splitlines(), n=0, lineterm="")][2:])


def survives(tree: Path, module: str, source: str, timeout: float | None) -> bool:
    """Return True if all tests of the module pass with this source."""
    (tree / module).write_text(source, encoding="utf-8")
    Path(importlib.util.cache_from_source(str(tree / module))).unlink(missing_ok=True)  # it may look up to date
    beside = f"tests/{Path(module).parent}/test_"
    tests = [name if name.endswith(".py") else f"{beside}{name}.py" for name in MODULES[module][0].split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", MODULES[module][1], *tests]
    output = DEVNULL if timeout else None  # shown without a mutant, so that a failure is understood
    with Popen(command, cwd=tree, stdout=output, stderr=output, start_new_session=True) as process:
        try:
            return process.wait(timeout) == 0
        except TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--module", default="", help="part of the path of the modules to mutate; all by default")
    for name, default in (("count", 10), ("seed", 0), ("line", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    os.environ.setdefault("INKSTONE_SHARED", str(ROOT.parent / "shared"))
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "artifacts"), symlinks=True)
        for module in [module for module in MODULES if options.module in module]:
            source, start = (ROOT / module).read_text(encoding="utf-8"), time.monotonic()
            assert survives(tree, module, source, None), f"the tests of {module} fail without a mutant"
            timeout, results = 10 + 3 * (time.monotonic() - start), list[bool]()
            for other, diff in sample(source, options.count, options.seed, options.line):
                results.append(survives(tree, module, other, timeout))
                if results[-1]:
                    print(f"{module} {diff}", flush=True)
            (tree / module).write_text(source, encoding="utf-8")
            print(f"{module}: {sum(results)} of {len(results)} survive", flush=True)


if __name__ == "__main__":
    main()
