"""The places in the code at which an error or a warning is said on purpose.

A place is a statement: a `raise` of something with a message, a check of a configuration (`require`, `at_least`, `at_most`) or of a
library (`with installed`), a warning (`warn`), or what a server answers (a `return` of a `refusal`, or `refuse` of a job). What is
raised without a message steers the program and is told to nobody; `assert` and `AssertionError` are for ourselves, and
`AttributeError` for Python.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHECKS = ("require", "at_least", "at_most")
_NOT_FOR_USERS = ("AssertionError", "AttributeError")
_OF_CHECKS = "dalle/config/checks.py"
"""Where the checks themselves are: what they say is said where they are called."""


@dataclass(frozen=True)
class Place:
    """One statement that says something.

    Args:
        file: below the root, with slashes
        function: the names of the classes and functions around it, with dots
        number: which of the statements of this function, from 1
        kind: check, warning, answer, or the name of what is raised
        node: the statement
    """

    file: str
    function: str
    number: int
    kind: str
    node: ast.stmt

    @property
    def name(self) -> str:
        """What stays the same while lines move and messages are mended."""
        return f"{self.file} {self.function} {self.number}"


def files() -> list[Path]:
    """All of the program."""
    return sorted([*(ROOT / "dalle").rglob("*.py"), *(ROOT / "launch").rglob("*.py")])


def places(tree: ast.Module, file: str) -> list[Place]:
    """Those of a module, in the order of the code."""
    return [] if file == _OF_CHECKS else list(_within(tree, file, "", {}))


def all_places() -> list[Place]:
    """Everything that is said on purpose, in the order of the files."""
    found = []
    for path in files():
        found += places(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix())
    return found


def _within(node: ast.AST, file: str, function: str, counts: dict[str, int]) -> Iterator[Place]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _within(child, file, f"{function}.{child.name}".lstrip("."), counts)
            continue
        if (kind := _kind(child)) is not None:
            counts[function] = counts.get(function, 0) + 1
            assert isinstance(child, ast.stmt)
            yield Place(file, function, counts[function], kind, child)
        yield from _within(child, file, function, counts)


def _kind(node: ast.AST) -> str | None:
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
        name = ast.unparse(node.exc.func)
        return None if name in _NOT_FOR_USERS else name
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        name = name_of(node.value)
        if name in CHECKS:
            return "check"
        if name == "refuse":
            return "answer"
        if name == "warn" and node.value.args:
            return "warning"
    if isinstance(node, ast.With) and any(name_of(item.context_expr) == "installed" for item in node.items):
        return "check"
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "refusal":
        return "answer"
    return None


def name_of(node: ast.expr) -> str:
    """Of what is called, without where it is from; empty where nothing is."""
    return ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
