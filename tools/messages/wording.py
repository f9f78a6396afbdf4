"""What a place says, as text in which a NAME in capitals stands for a value: read from the expression of the message."""

from __future__ import annotations

import ast
import itertools
import re
from dataclasses import dataclass, field

from messages.places import Place, name_of
from messages.source import around, assigned, function_of, module_of
from messages.values import OF_FORM, constant, placeholder, shown

_DEEP = 4
"""Functions that are followed for what they return."""
_MOST = 12
"""Wordings of one place that are told apart."""
_PASSED_ON = re.compile(r"[A-Z_]+")


@dataclass(frozen=True)
class Scope:
    """What names mean where a message is made.

    Args:
        file: below the root
        function: the definition around it, if any
        given: what parameters were called with, as texts
        depth: how many calls were followed to get here
    """

    file: str
    function: ast.FunctionDef | ast.AsyncFunctionDef | None
    given: dict[str, tuple[str, ...]] = field(default_factory=dict)
    depth: int = 0


def wordings(place: Place) -> list[str]:
    """All that a place may say; none where it passes on what another one said."""
    scope = Scope(place.file, around(place))
    found = [" ".join(text.split()) for text in _of_statement(place, scope)]
    return [text for text in dict.fromkeys(found) if not _PASSED_ON.fullmatch(text) and text != "None"]


def _of_statement(place: Place, scope: Scope) -> list[str]:
    if isinstance(place.node, ast.With):
        (asked,) = (item.context_expr for item in place.node.items if name_of(item.context_expr) == "installed")
        assert isinstance(asked, ast.Call)
        return _texts(asked.args[0], scope)
    assert isinstance(place.node, ast.Raise | ast.Expr | ast.Return)
    call = place.node.exc if isinstance(place.node, ast.Raise) else place.node.value
    assert isinstance(call, ast.Call)
    name = ast.unparse(call.func).rpartition(".")[2]
    if place.kind == "check":
        if name == "require":
            return _texts(call.args[1], scope)
        return _bounds(call, name, scope)
    if place.kind in ("OSError", "PermissionError"):  # number, what, which file: Python says the last two
        return [f"{file}: {what}" for file in _texts(call.args[2], scope) for what in _texts(call.args[1], scope)]
    if place.kind == "yaml.MarkedYAMLError":
        return _texts(call.args[2], scope)
    if place.kind == "answer":
        return _texts(call.args[0], scope)
    if name[0].islower() or name[0] == "_":
        return _returned(call, scope) or _texts(call.args[0], scope)
    return _class_says(call, scope) or _texts(call.args[0], scope)


def _bounds(call: ast.Call, name: str, scope: Scope) -> list[str]:
    """What `at_least` and `at_most` say of the settings that they are given."""
    bound, *settings = call.args[1:]
    names = [str(n.value) if isinstance(n, ast.Constant) else placeholder(n) for n in settings]
    told = [("least" if name == "at_least" else "most", bound)]
    told += [("most", k.value) for k in call.keywords if k.arg == "most"]
    return [
        f"{each} {each.upper()}: must be at {which} {_texts(value, scope)[0]}"
        for each in names
        for which, value in told
    ]


def _texts(node: ast.expr, scope: Scope) -> list[str]:
    """All texts that an expression may be."""
    if isinstance(node, ast.Constant):
        return [shown(node.value)]
    if isinstance(node, ast.JoinedStr):
        neighbours = zip([None, *node.values], node.values, [*node.values[1:], None], strict=False)
        parts = [_parts(before, part, after, scope) for before, part, after in neighbours]
        return ["".join(p) for p in itertools.islice(itertools.product(*parts), _MOST)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):  # words times whether they are said
        return [""]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        before = _texts(node.left, scope)
        if all(_PASSED_ON.fullmatch(text) for text in before):  # such as where a message comes from
            return _texts(node.right, scope)
        return [a + b for a in before for b in _texts(node.right, scope)][:_MOST]
    if isinstance(node, ast.IfExp):
        return _texts(node.body, scope) + _texts(node.orelse, scope)
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        return [text for value in node.values for text in _texts(value, scope)]
    if isinstance(node, ast.Name):
        return _named(node, scope)
    if choices := _choices(node):
        return [text for value in choices for text in _texts(value, scope)]
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] not in OF_FORM:
        found = _returned(node, scope)
        if found:
            return found
    if (value := constant(node)) is not None:
        return [shown(value)]
    return [placeholder(node)]


def _parts(before: ast.expr | None, part: ast.expr, after: ast.expr | None, scope: Scope) -> list[str]:
    """What one part of an f-string may be. What begins it without a space behind it, such as the name of a file, and what ends it
    without one before it, are left out; of functions only the last is followed, since values come before and remedies behind."""
    if isinstance(part, ast.Constant):
        return [str(part.value)]
    assert isinstance(part, ast.FormattedValue)
    runs_on = isinstance(after, ast.FormattedValue) or _words(after)[:1].isalpha()
    runs_on = runs_on or (after is None and _words(before)[-1:].isalpha())
    if isinstance(part.value, ast.Call) and after is not None:
        return [placeholder(part.value)]
    texts = _texts(part.value, scope)
    return ["" if _PASSED_ON.fullmatch(text) else text for text in texts] if runs_on else texts


def _words(part: ast.expr | None) -> str:
    """Those of a part of an f-string that is no value."""
    return str(part.value) if isinstance(part, ast.Constant) else ""


def _named(node: ast.Name, scope: Scope) -> list[str]:
    if node.id in scope.given:
        return list(scope.given[node.id])
    statements = ast.walk(scope.function) if scope.function else ()
    pairs = (pair for each in statements if isinstance(each, ast.Assign) for pair in assigned(each))
    values = [value for name, value in pairs if name == node.id]
    texts = [text for value in values if _is_wording(value) for text in _texts(value, _without(scope, node.id))]
    if texts:
        return texts[:_MOST]
    value = module_of(scope.file).constants.get(node.id)
    if value is not None:
        return _texts(value, Scope(scope.file, None, depth=scope.depth))
    imported = module_of(scope.file).imported.get(node.id)
    if imported and (value := module_of(imported[0]).constants.get(imported[1])) is not None:
        return _texts(value, Scope(imported[0], None, depth=scope.depth))
    return [placeholder(node)]


def _choices(node: ast.expr) -> list[ast.expr]:
    """What an expression may be that is `{1: "one"}.get(...)`; none where it is another."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Dict):
        return [*node.func.value.values, *node.args[1:]]
    return []


def _is_wording(node: ast.expr) -> bool:
    """Whether an expression is words of ours, and not a value that is told."""
    if _choices(node):
        return True
    if isinstance(node, ast.IfExp):
        return _is_wording(node.body) or _is_wording(node.orelse)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_wording(node.left) or _is_wording(node.right)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id.startswith("_")
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and " " in str(node.value))


def _without(scope: Scope, name: str) -> Scope:
    """The same, where a name that is made of itself is a placeholder."""
    return Scope(scope.file, scope.function, {**scope.given, name: (name.upper(),)}, scope.depth)


def _returned(call: ast.Call, scope: Scope) -> list[str]:
    """What a function of ours may return: the words of a message, or an exception with them."""
    found = function_of(call.func, scope.file)
    if found is None or scope.depth >= _DEEP:
        return []
    file, function = found
    names = [a.arg for a in function.args.args]
    given = dict(zip(names, call.args, strict=False)) | {k.arg: k.value for k in call.keywords if k.arg}
    values = {name: tuple(_texts(value, scope)) for name, value in given.items() if _is_words(value, scope)}
    inner = Scope(file, function, values, scope.depth + 1)
    texts = []
    for each in ast.walk(function):
        if isinstance(each, ast.Return) and each.value is not None:
            value = each.value
            if isinstance(value, ast.Call) and ast.unparse(value.func)[0].isupper():
                texts += _class_says(value, inner) or (_texts(value.args[0], inner) if value.args else [])
            elif _is_wording(value):
                texts += _texts(value, inner)
    return [text for text in texts if text != "None"][:_MOST]


def _is_words(node: ast.expr, scope: Scope) -> bool:
    return isinstance(node, ast.JoinedStr | ast.Constant | ast.Name | ast.IfExp)


def _class_says(call: ast.Call, scope: Scope) -> list[str]:
    """What an exception of ours says that makes its message itself."""
    module = module_of(scope.file)
    name = ast.unparse(call.func)
    file, name = module.imported.get(name, (scope.file, name))
    made = module_of(file).classes.get(name)
    init = made and next((f for f in made.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    if not init:
        return []
    names = [a.arg for a in init.args.args][1:]
    values = {n: tuple(_texts(v, scope)) for n, v in zip(names, call.args, strict=False)}
    inner = Scope(file, init, values, scope.depth + 1)
    for each in ast.walk(init):
        if isinstance(each, ast.Call) and ast.unparse(each.func) == "super().__init__" and each.args:
            return _texts(each.args[0], inner)
    return []
