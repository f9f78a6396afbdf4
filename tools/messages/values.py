"""How values are told in what is read of a message: constants as they are, others as a NAME."""

from __future__ import annotations

import ast
import re


def shown(value) -> str:
    """A constant in a message."""
    return f"{value:,.12g}" if type(value) in (int, float) else str(value)


def constant(node: ast.expr):
    """The value of an expression of numbers alone."""
    try:
        code = compile(ast.Expression(node), "", "eval")
        return None if code.co_names else eval(code, {"__builtins__": {}})
    except (TypeError, ValueError, SyntaxError, NameError, AttributeError):
        return None


OF_FORM = (
    "str",
    "repr",
    "shown",
    "_shown",
    "printable",
    "ascii",
    "len",
    "list",
    "sorted",
    "min",
    "max",
    "next",
    "iter",
    "quote",
    "_reason",
)


def placeholder(node: ast.expr) -> str:
    """A name in capitals for a value: the last word of what it is called in the code."""
    if isinstance(node, ast.Name):
        return node.id.lstrip("_").upper()
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_").upper()
    if isinstance(node, ast.Subscript):
        key = node.slice
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            return re.sub(r"\W", "_", key.value.strip("_")).upper()
        return placeholder(node.value)
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in ("join", "spans", "named") and node.args:
            return placeholder(node.args[0])
        if name == "get" and node.args:
            return placeholder(node.args[0])
        if name == "getattr" and len(node.args) > 1:
            return (
                placeholder(node.args[1]) + "_VALUE"
                if isinstance(node.args[1], ast.Name)
                else placeholder(node.args[1])
            )
        if name in OF_FORM and node.args:
            return placeholder(node.args[0])
        if isinstance(node.func, ast.Attribute) and name in (
            "absolute",
            "resolve",
            "min",
            "max",
            "strip",
            "removesuffix",
            "split",
        ):
            return placeholder(node.func.value)
        return name.strip("_").upper()
    if isinstance(node, ast.Constant):
        return re.sub(r"\W", "_", str(node.value)).upper()
    if isinstance(node, ast.GeneratorExp | ast.ListComp | ast.SetComp):
        return placeholder(node.generators[0].iter)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            return placeholder(child)
    return "VALUE"
