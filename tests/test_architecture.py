"""The rules of the house: rooms stand on one another, files do not lean on each other in a circle, some libraries are met in
one place only, and neither rooms nor files grow past what one can see whole."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

HOUSE = ROOT / "dalle"
ROOMS = [
    *(
        "config",
        "outputs",
        "masks",
        "splitmix",
        "text",
        "data",
        "reporting",
        "cluster",
        "models",
        "ready",
        "checkpoints",
    ),
    *(
        "objectives",
        "decoding",
        "gradients",
        "optim",
        "sampling",
        "training",
        "evaluation",
        "stages",
        "machine",
        "planning",
        "own",
        "web",
    ),
    *("cli", "__main__"),
]
"""From the ground up: a room imports from itself and from those before it."""
HOMES = {
    "deepspeed": ["training/deepspeed_library.py"],
    "torch.distributed": ["cluster/", "gradients/", "checkpoints/", "training/"],
    "jsonargparse": ["cli/"],
    "argparse": ["cli/"],
}
FILES = sorted(HOUSE.rglob("*.py"))
MOST_FILES = 12
MOST_LINES = 320


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in FILES}


def imports(path: Path) -> list[str]:
    """All that a file imports by name, in functions and for type checkers too, and what it loads by name."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out from `dalle`"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(r"dalle(\.\w+)*\.", node.value)
        ):
            names.append(node.value)  # `importlib.import_module(f"dalle.stages.{kind}")`
    return names


def _files(path: Path) -> set[str]:
    """Modules of the house that a file imports; a package that is only on the way to one of its files does not count."""
    found = {name for name in imports(path) if name in MODULES} - {_module(path)}
    return {name for name in found if not any(other.startswith(name + ".") for other in found)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_imports_point_one_way(path):
    relative = path.relative_to(HOUSE)
    if str(relative) == "__init__.py":
        return
    room = relative.parts[0].removesuffix(".py")
    for name in imports(path):
        if name.startswith("dalle."):
            assert ROOMS.index(name.split(".")[1]) <= ROOMS.index(room), f"{relative} imports {name}"
        for library, homes in HOMES.items():
            if name == library or name.startswith(library + "."):
                assert any(str(relative).startswith(home) for home in homes), f"{relative} imports {name}"


def test_no_circle_between_files():
    left = {module: _files(path) for module, path in MODULES.items()}
    while left:
        leant_on = set().union(*left.values())
        # a file that leans on none that is left, or on which none leans, is in no circle
        free = [module for module, others in left.items() if not others & left.keys() or module not in leant_on]
        assert free, f"these import one another: {left}"
        for module in free:
            del left[module]


def test_a_forward_pass_is_replaced_in_one_place():
    """Whoever looks for what happens around a module's forward pass finds it by `wrap`."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr == "forward"
            named = isinstance(node, ast.Constant) and node.value == "forward"  # for setattr and the like
            assert not (stored or named) or path == HOUSE / "models/wrapping.py", path


def test_places_are_resolved_by_what_raises_nothing():
    """`Path.resolve` is a RuntimeError for a link to itself, before Python 3.13; after `os.path.realpath` whoever opens it says so."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Attribute) and node.attr == "resolve"), path


def test_no_room_imports_the_whole_house():
    """Through its public face any room would lead to any other. Its version and its place are asked for."""
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asked = [
            n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "dalle"
        ]
        assert set(asked) <= {"__version__", "__file__"}, path


def test_every_room_has_its_floor():
    """No room is forgotten in the list, and a folder is a package."""
    there = {path.relative_to(HOUSE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert there <= set(ROOMS)
    assert all((folder / "__init__.py").exists() for folder in {path.parent for path in FILES})


def test_config_needs_no_torch():
    for path in (HOUSE / "config").glob("*.py"):
        assert not [n for n in imports(path) if n.startswith("torch")]


def test_no_room_and_no_file_grows_past_what_one_can_see_whole():
    rooms = {path.parent for path in FILES}
    full = {str(room.relative_to(ROOT)): n for room in rooms if (n := len(list(room.glob("[!_]*.py")))) > MOST_FILES}
    long = {
        str(p.relative_to(ROOT)): n
        for p in FILES
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not full and not long


def test_tests_mirror_the_house():
    """A folder of tests is named after a room, after the tools, or after what breaks all of it or what all of it says."""
    folders = {p.relative_to(ROOT / "tests").parts[0] for p in (ROOT / "tests").rglob("test_*.py")}
    folders = {name for name in folders if not name.endswith(".py")}
    assert folders <= {*ROOMS, "tools", "faults", "errors"}
