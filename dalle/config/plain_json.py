"""JSON files of this program, read whole or refused by name: they may have been cut off, damaged or changed since."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dalle.config.checks import Cause

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Made = TypeVar("_Made", bound="DataclassInstance")


class Damaged(ValueError):
    """A file that is not what was written. Who knows a better remedy than the usual one says that behind `what`."""

    def __init__(self, what: str):
        super().__init__(f"{what}; put a whole copy there, or delete it and make it again")
        self.what = what


def load(text: str | bytes, source: str, infinite: bool = False, halves: bool = False, loose: bool = False) -> Any:
    """What JSON says. Raises ValueError, in one line that begins with `source`, where it is none, is not UTF-8, holds a key twice,
    numbers that are none, or text that no file takes. infinite: infinities are numbers here, as in settings that switch something off.
    halves: text may hold halves of characters. loose: numbers may be none, where each value is looked at and a wrong one costs itself
    alone."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        constant = float if loose else _infinity if infinite else _refuse
        value = json.loads(
            text,
            parse_constant=constant,
            parse_int=_whole,
            parse_float=float if loose else _finite,
            object_pairs_hook=each_once,
        )
        if "\\u" in text and not halves:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # wrong UTF-8 and half characters are ValueErrors as well
        raise Damaged(f"{source} is damaged: {' '.join(str(error).split())[:200]}") from None
    return value


def read(path: Path, infinite: bool = False) -> Any:
    """What a JSON file says. Raises ValueError as `load`, with its name, and OSError."""
    return load(path.read_bytes(), str(path), infinite)


def read_mapping(path: Path, infinite: bool = False, **kinds: Any) -> dict[str, Any]:
    """As `read`, of a file that holds an object. kinds: types of what it has to say. Raises ValueError for another."""
    values = read(path, infinite)
    if not isinstance(values, dict):
        raise Damaged(f"{path} is damaged: it is not a mapping of names to values")
    for name, kind in kinds.items():
        if name not in values or not is_a(values[name], kind):
            raise Damaged(f"{path} is damaged: {name} is {_shown(values.get(name))}")
    return values


def made(cls: type[_Made], values: Any, source: str) -> _Made:
    """A dataclass of what JSON said, its lists as tuples where the fields are tuples. Raises ValueError, in one line that begins
    with `source`, for missing or unknown fields, and for values of other types."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(values, dict):
        raise Damaged(f"{source} is damaged: it is not a mapping of names to values")
    needed = {name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING}
    if wrong := sorted(map(str, values.keys() - fields.keys() or needed - values.keys())):
        what = "it lacks" if values.keys() <= fields.keys() else "it holds the unknown"
        raise Damaged(f"{source} is damaged, or of another version: {what} {_shown(wrong[0])}")
    found = {}
    for name, value in values.items():
        if not is_a(value, hints[name]):
            raise Damaged(f"{source} is damaged: {name} is {_shown(value)}")
        found[name] = tuple(value) if typing.get_origin(hints[name]) is tuple else value
    return cls(**found)


def is_a(value: Any, kind: Any) -> bool:
    """Whether what JSON held is of a field's type."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is typing.Literal:
        return value in inner
    if origin in (typing.Union, types.UnionType):
        return any(is_a(value, each) for each in inner)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(is_a(each, inner[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(is_a(each, inner[1]) for each in value.values())
    if kind in (float, int):
        return isinstance(value, int | kind) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, kind)


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `json.loads` to make it with. Raises ValueError where a key is there twice: which of the two is meant nobody
    can tell."""
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise Cause(f"key {_shown(twice)} is there twice")
    return values


def _infinity(word: str) -> float:
    return _refuse(word) if word == "NaN" else float(word)


def _refuse(word: str) -> typing.NoReturn:
    raise Cause(f"{word} is no number")


def _whole(word: str) -> int:
    if len(word) > 40:
        raise Cause(f"{word[:40]}... is more than is counted to")
    return int(word)


def _finite(word: str) -> float:
    number = float(word)
    return number if math.isfinite(number) else _refuse(word[:40])


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
