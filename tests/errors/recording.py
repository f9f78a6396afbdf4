"""Which of the program's errors and warnings the tests raise: a whole run fails where one is left that none of them does.

`dalle` is imported with a call before each place that says something on purpose (tools/messages/places.py), which notes its name in
a file when it is come by; nothing else is changed, and nothing is done where nothing is raised. All workers of pytest-xdist write
to one file, and so do processes that import this module first. What a process says that does not is not counted.

Which places are left is said at the end of a whole run alone; `DALLE_SAID=FILE` keeps the names of any run, and
`tools/errors.py --left FILE` tells what is left after several.
"""

from __future__ import annotations

import ast
import os
import sys
import tempfile
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from messages.page import own_words  # noqa: E402
from messages.places import Place, all_places, places  # noqa: E402

KEPT_IN = "DALLE_SAID"
"""The environment variable with the name of the file."""
_noted: set[str] = set()


def note(name: str) -> None:
    """Write a place down. Nothing comes of it where the disk is full, as some tests make it."""
    if name not in _noted:
        _noted.add(name)
        with suppress(OSError, KeyError), open(os.environ[KEPT_IN], "a", encoding="utf-8") as file:
            file.write(f"{name}\n")


class _Noting(ast.NodeTransformer):
    """Puts a call of `note` before each place, and around a check, which says something only where it fails."""

    def __init__(self, found: list[Place]):
        self._places = {id(place.node): place for place in found}  # which keeps the nodes, and so their ids

    def visit(self, node: ast.AST) -> ast.AST | list[ast.AST]:
        place = self._places.get(id(node))
        self.generic_visit(node)
        if place is None:
            return node
        call = ast.parse(f"__import__('sys').modules[{__name__!r}].note({place.name!r})").body[0]
        for part in ast.walk(call):
            ast.copy_location(part, node)
        if place.kind == "check":
            caught = ast.ExceptHandler(ast.Name("ValueError", ast.Load()), None, [call, ast.Raise()])
            return ast.fix_missing_locations(ast.copy_location(ast.Try([node], [caught], [], []), node))
        return [ast.fix_missing_locations(ast.copy_location(call, node)), node]


class _Loader(SourceFileLoader):
    """Compiles a module of the program with notes, and keeps that beside what is kept of it without."""

    def source_to_code(self, data, path, *, _optimization=-1):
        tree = ast.parse(data)
        found = places(tree, Path(path).relative_to(ROOT).as_posix())
        return compile(_Noting(found).visit(tree), path, "exec", dont_inherit=True, optimize=_optimization)

    def get_data(self, path):
        return super().get_data(_own(path))

    def _cache_bytecode(self, source_path, bytecode_path, data):
        return super()._cache_bytecode(source_path, _own(bytecode_path), data)


def _own(path: str) -> str:
    """Where bytecode with notes is kept: it is as old as the module, and as what makes the notes."""
    made_by = max(Path(file).stat().st_mtime_ns for file in (__file__, sys.modules[places.__module__].__file__))
    return path.removesuffix(".pyc") + f".said-{made_by:x}.pyc" if path.endswith(".pyc") else path


class _Finder:
    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        if name.partition(".")[0] != "dalle":
            return None
        spec = PathFinder.find_spec(name, path, target)
        ours = spec is not None and type(spec.loader) is SourceFileLoader
        if ours and Path(spec.loader.path).is_relative_to(ROOT / "dalle"):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """From here on what is imported of the program notes what it says, where `KEPT_IN` names a file."""
    if KEPT_IN in os.environ and _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


def pytest_configure(config) -> None:
    if KEPT_IN not in os.environ:
        descriptor, os.environ[KEPT_IN] = tempfile.mkstemp(prefix="said-", suffix=".txt")
        os.close(descriptor)
        config.add_cleanup(lambda: Path(os.environ.pop(KEPT_IN)).unlink(missing_ok=True))
    install()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus) -> None:
    if exitstatus == 0 and _is_whole(session.config):
        raised = Path(os.environ[KEPT_IN]).read_text(encoding="utf-8").splitlines()
        session.config.left = left({*raised})
        session.exitstatus = int(bool(session.config.left))


def pytest_terminal_summary(terminalreporter, config) -> None:
    if config.__dict__.get("left"):
        terminalreporter.write_line("What the program says on purpose is raised in a test: add one, as in tests/errors")
    for place in config.__dict__.get("left", ()):
        terminalreporter.write_line(f"raised by no test: {place.file}:{place.node.lineno} ({place.name})", red=True)


def left(names: set[str]) -> list[Place]:
    """Places that are not among these. One that only passes on what another said is none."""
    return [place for place in all_places() if place.name not in names and own_words(place)]


def _is_whole(config) -> bool:
    """Whether all tests were asked for, by the process that hears of all of them."""
    option = config.option
    narrowed = option.keyword or option.__dict__.get("lf") or option.__dict__.get("deselect") or option.collectonly
    everything = config.args_source is config.ArgsSource.TESTPATHS or config.args in (["tests"], ["tests/"])
    return not hasattr(config, "workerinput") and not narrowed and everything and "not faults" in option.markexpr


install()
