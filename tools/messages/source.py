"""The program's code as names: what a module has at its top, what a function's name stands for, which function is around a line."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache

from messages.places import ROOT, Place


@dataclass(frozen=True)
class Module:
    constants: dict[str, ast.expr]
    functions: dict[str, ast.FunctionDef]
    classes: dict[str, ast.ClassDef]
    imported: dict[str, tuple[str, str]]
    tree: ast.Module


@cache
def module_of(file: str) -> Module:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    constants, imported = {}, {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dalle":
            for alias in node.names:
                imported[alias.asname or alias.name] = _home(node.module, alias.name)
    for node in tree.body:
        for target, value in assigned(node) if isinstance(node, ast.Assign) else ():
            constants[target] = value
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    return Module(constants, functions, classes, imported, tree)


def _home(module: str, name: str) -> tuple[str, str]:
    """The file that a name comes from, and its name there; a module's own name is empty."""
    below = module.replace(".", "/")
    for file, found in ((f"{below}/{name}.py", ""), (f"{below}.py", name), (f"{below}/__init__.py", name)):
        if (ROOT / file).is_file():
            if file.endswith("__init__.py"):
                return module_of(file).imported.get(name, (file, name))
            return file, found
    return f"{below}/__init__.py", name


def function_of(node: ast.expr, file: str) -> tuple[str, ast.FunctionDef] | None:
    """The definition of a function of ours by what it is called with."""
    module = module_of(file)
    if isinstance(node, ast.Name):
        if node.id in module.functions:
            return file, module.functions[node.id]
        home = module.imported.get(node.id)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id == "self" and node.attr in module.functions:
            return file, module.functions[node.attr]
        there = module.imported.get(node.value.id)
        home = (there[0], node.attr) if there and not there[1] else None
    else:
        return None
    if home is None or not home[1] or not (ROOT / home[0]).is_file():
        return None
    function = module_of(home[0]).functions.get(home[1])
    return (home[0], function) if function else None


def around(place: Place) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The innermost function around a place."""
    found: ast.FunctionDef | ast.AsyncFunctionDef | None = None
    for node in ast.walk(module_of(place.file).tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.lineno <= place.node.lineno <= (
            node.end_lineno or node.lineno
        ):
            found = node if found is None or node.lineno > found.lineno else found
    return found


def assigned(node: ast.Assign) -> list[tuple[str, ast.expr]]:
    """Names with what they are given, those of `a, b = 1, 2` too."""
    found = []
    for target in node.targets:
        if isinstance(target, ast.Name):
            found.append((target.id, node.value))
        elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = zip(target.elts, node.value.elts, strict=False)
            found += [(name.id, value) for name, value in pairs if isinstance(name, ast.Name)]
    return found
