"""The rules of the house: imports point one way, and some libraries are met in one place only."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

LEVELS = [
    {"config", "layout", "text"},
    {"models", "data"},
    {"objectives"},
    {"training", "sampling", "evaluation"},
    {"cli", "web"},
]
HOMES = {
    "deepspeed": ["training/engine.py"],
    "torch.distributed": ["training/"],
    "jsonargparse": ["cli/"],
    "argparse": ["cli/"],
}
FILES = sorted((ROOT / "dalle").rglob("*.py"))


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _level(room: str) -> int:
    return next(i for i, rooms in enumerate(LEVELS) if room in rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "dalle")))
def test_imports_point_one_way(path):
    relative = path.relative_to(ROOT / "dalle")
    if str(relative) == "__init__.py":
        return
    room = relative.parts[0].removesuffix(".py")
    for name in _imports(path):
        if name.startswith("dalle."):
            assert _level(name.split(".")[1]) <= _level(room), f"{relative} imports {name}"
        for library, homes in HOMES.items():
            if name == library or name.startswith(library + "."):
                assert any(str(relative).startswith(home) for home in homes), f"{relative} imports {name}"


def test_config_needs_no_torch():
    for path in (ROOT / "dalle/config").glob("*.py"):
        assert not [n for n in _imports(path) if n.startswith("torch")]


def test_no_file_grows_past_what_one_can_read():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 320}
    assert not long
