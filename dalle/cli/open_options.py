"""Options below a setting that may hold anything, such as `--prior.run.steps 3` of `dalle-train`, where `prior` is a mapping.

jsonargparse keeps one level of such a mapping and loses what was there when a second option goes deeper, so they are read here.
"""

from __future__ import annotations

import typing
from typing import Any


def taken_out(cls: type, argv: list[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The arguments without such options, and these, nested, by the setting that they lie below; the last of two counts.

    Args:
        cls: a command's dataclass
        argv: its arguments, each `--name=value`, or `--name` and then the value

    Raises:
        ValueError: one has no value
    """
    rest: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        first, *keys = name.split(".")
        if not (word.startswith("--") and is_below(cls, name)):
            rest.append(word)
            continue
        if not equals and (value := next(words, "--")).startswith("--"):
            raise ValueError(f"{name}: a value is missing; give one behind it")
        _put(found.setdefault(first, {}), keys, value)
    return rest, found


def is_below(cls: type, name: str) -> bool:
    """Whether a dotted name lies below a setting that may hold anything."""
    first, dot, _ = name.partition(".")
    return bool(dot) and typing.get_origin(typing.get_type_hints(cls).get(first)) is dict


def laid_over(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """A nested mapping with what another says in place of its own."""
    result = dict(values)
    for name, value in more.items():
        before = result.get(name)
        result[name] = laid_over(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def _put(section: dict[str, Any], keys: list[str], value: str) -> None:
    for key in keys[:-1]:
        if not isinstance(section.get(key), dict):
            section[key] = {}
        section = section[key]
    section[keys[-1]] = value
