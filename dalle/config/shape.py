"""Whether values that were read have the shape of a dataclass of settings: its keys, their types, no numbers that are none. What
is wrong is said in one line that names the key, before anything is made of the values."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from typing import Any

from dalle.config import plain_yaml

_MAY_BE_INFINITE = ("max_aspect_ratio",)
"""Settings that an infinity switches off."""
_MOST_COUNTED = 2**62
"""Above it no file and no library takes a whole number."""
_LARGEST = 1e30
"""Of the size of any number with a fraction: fp32 ends at 3e38, and what is reckoned with it has to stay below."""


def keys_of(cls: type, prefix: str = "") -> dict[str, Any]:
    """All dotted keys of a dataclass with their types, those of sections that may be null too."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        found[name] = hints[field.name]
        if (inner := section(hints[field.name])) is not None:
            found.update(keys_of(inner, name + "."))
    return found


def check_values(cls: type, values: dict, where: str = "", prefix: str = "") -> None:
    """Raises ValueError, in one line, unless the values could be those of a dataclass, as far as they go.

    Args:
        cls: the dataclass
        values: mappings, lists and single values
        where: what the line begins with, such as the file's name
        prefix: of the keys, with its dot
    """
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(f"{where}{unknown(cls, name, prefix)}")
        inner = section(hints[key])
        if inner is not None and isinstance(value, dict):
            check_values(inner, value, where, name + ".")
        elif inner is not None and not (value in (None, "null") and _may_be_null(hints[key])):
            raise ValueError(
                f"{where}{name} {shown(value)}: holds settings of its own; set one of {', '.join(keys_of(inner))}"
            )
        elif inner is None and not _fits(hints[key], value):
            raise ValueError(f"{where}{name} {shown(value)}: must be {allowed(hints[key]) or 'another kind of value'}")
        else:
            _check_numbers(value, f"{where}{name}", may_be_infinite=key in _MAY_BE_INFINITE)


def unknown(cls: type, name: str, prefix: str = "") -> str:
    """That a dataclass has no such key, with the nearest that it has."""
    keys = list(keys_of(cls, prefix))
    close = difflib.get_close_matches(name, keys, n=1, cutoff=0.5)
    if not close:
        close = [k for k in keys if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    if close:
        return f"unknown key {shown(name)}; the nearest known one is {close[0]}"
    outer = [key for key in keys if "." not in key.removeprefix(prefix)]  # those within them would fill a screen
    return f"unknown key {shown(name)}; known are {', '.join(outer)}"


def within_section(cls: type, text: str) -> str:
    """What jsonargparse says of a setting within a section that may be null, without all that it says around it: as of any other
    setting, with its whole name. Any other text as it is."""
    told = " ".join(text.split())
    match = re.search(
        r"Subtypes: \[<class '([\w.]+)'>, <class 'NoneType'>\] Errors: - (.*?) - Expected a <class 'NoneType'>", told
    )
    if match is None:
        return text
    inner = {name: section(kind) for name, kind in keys_of(cls).items()}
    names = [name for name, kind in inner.items() if kind and f"{kind.__module__}.{kind.__name__}" == match[1]]
    if not names:
        return text
    problem = re.sub(r"^Problem with given class_path '[\w.]+': ", "", match[2])
    if problem.startswith(f"{names[0]}."):
        return problem
    # before the setting's own name
    return re.sub(r'^(Parser key "|the following arguments are required: |)', rf"\g<1>{names[0]}.", problem, count=1)


def allowed(kind: Any) -> str | None:
    """What a setting of this type may be, in words; null where words are missing."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if kind in names:
        return names[kind]
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(str(v) for v in typing.get_args(kind))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        parts = [allowed(k) for k in typing.get_args(kind)]
        return None if None in parts else " or ".join(filter(None, parts))
    if typing.get_origin(kind) is tuple:
        return f"a list of {allowed(typing.get_args(kind)[0])}s".replace("a list of a whole", "a list of whole")
    if typing.get_origin(kind) is dict:
        return "a mapping of keys to values"
    return None


def shown(value: Any) -> str:
    """A value in a line of no great length, as YAML has it where that is short."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = value if isinstance(value, str) and value.isprintable() else ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def section(kind: Any) -> type | None:
    """The dataclass of a setting that holds settings of its own, whether or not it may be null."""
    found = [
        each for each in (kind, *typing.get_args(kind)) if isinstance(each, type) and dataclasses.is_dataclass(each)
    ]
    return found[0] if found else None


def _may_be_null(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def _fits(kind: Any, value: Any) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(each, value) for each in inner)
    if kind is str:
        return isinstance(value, str)
    if origin is typing.Literal and value in inner:
        return type(value) is type(inner[inner.index(value)])
    if isinstance(value, str):  # a number in quotes is one
        try:
            value = plain_yaml.load(value, "")
        except ValueError:
            return False
        return not isinstance(value, str) and _fits(kind, value)
    if origin is typing.Literal:
        return False
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(inner[0], each) for each in value)
    if origin is dict:
        return isinstance(value, dict)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return kind is Any or type(value) is kind or (kind is type(None) and value is None)


def _check_numbers(value: Any, name: str, may_be_infinite: bool) -> None:
    if isinstance(value, list | tuple):
        for each in value:
            _check_numbers(each, name, may_be_infinite)
    elif isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not may_be_infinite)):
        raise ValueError(f"{name} {value}: must be a finite number")
    elif isinstance(value, float) and abs(value) > _LARGEST and not may_be_infinite:
        raise ValueError(
            f"{name} {value}: the products made with it would be infinite in fp32; give a number within ±{_LARGEST:g}"
        )
    elif isinstance(value, int) and abs(value) > _MOST_COUNTED:
        raise ValueError(f"{name} {shown(value)}: no machine counts so far; give a smaller number")
