"""YAML as settings need it: mappings, lists, text, numbers, true, false and null, in UTF-8, whoever wrote the file. A key that is
there twice is refused, so are references to itself, and both depth and what the references of a few lines add up to have a limit.
Numbers are those of YAML 1.2, and 1e-3: 017 is seventeen, 0o17 fifteen; dates, times (1:30) and 1_000 are text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_MOST_BYTES = 200_000
"""A hundred times what there is; PyYAML reads so much in seconds."""
_MOST_CHARS = 1_000_000
"""Of all text and values with what is referred to written out."""
_MOST_LEVELS = 50
_TAG = "tag:yaml.org,2002:"
_KINDS = {_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_WHOLE = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_NUMBER = re.compile(
    r"""^(?:[-+]?[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+[eE][-+]?[0-9]+
    |[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.X,
)
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read(path: Path) -> Any:
    """What a YAML file says. Raises ValueError, in one line with its name, where it is none that is taken, and OSError."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(
            f"{path} cannot be read: it has more than the {_MOST_BYTES:,} bytes that settings may have; leave out what is none"
        )
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path} cannot be read: it is not UTF-8; save it as such") from None
    return load(text, str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """As `read`, of a file that has to hold keys with values."""
    values = read(path)
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} cannot be read: it is not a mapping of keys to values; write a line KEY: VALUE for each setting"
        )
    return values


def load(text: str, source: str) -> Any:
    """What YAML says. Raises ValueError, in one line that begins with `source`, where it is none that is taken."""
    if len(text) > _MOST_BYTES:
        raise ValueError(
            f"{source} cannot be read: it has more than the {_MOST_BYTES:,} bytes that settings may have; leave out what is none"
        )
    try:
        return yaml.load(text, _Loader)
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
    ) as error:  # the last two of values that are not what they are tagged as
        what = " ".join(str(error).replace('in "<unicode string>"', "at").split())
        raise ValueError(f"{source} cannot be read: {what[:200]}; write it as YAML") from None


def dump(values: Any) -> str:
    """Settings as YAML, in their order, which `load` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the limits above."""

    def __init__(self, text: str):
        super().__init__(text)
        self._levels = self._chars = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        begun, self._levels = self._chars, self._levels + 1
        event = self.peek_event()
        if self._levels > _MOST_LEVELS:
            raise yaml.MarkedYAMLError(None, None, f"it is nested more than {_MOST_LEVELS} deep", event.start_mark)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise yaml.MarkedYAMLError(None, None, f"*{event.anchor} refers to itself", event.start_mark)
            self._chars += self._sizes[id(node)]
        else:
            self._check(node)
            self._sizes[id(node)] = self._chars - begun
        if self._chars > _MOST_CHARS:
            raise yaml.MarkedYAMLError(None, None, "its references add up to too much", event.start_mark)
        self._levels -= 1
        return node

    def _check(self, node: Any) -> None:
        self._chars += 1
        if node.tag not in _KINDS:
            raise yaml.MarkedYAMLError(None, None, f"{node.tag} is no kind of setting", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            self._chars += len(node.value)
            if _NO_TEXT.search(node.value):
                raise yaml.MarkedYAMLError(None, None, f"{node.value!a} is no text", node.start_mark)
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.MarkedYAMLError(None, None, "a key has to be a word", key.start_mark)
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(None, None, f"key {key.value!r} is there twice", key.start_mark)
                seen.add((key.tag, key.value))


def _without(kinds: set[str]) -> dict[str, list]:
    found = yaml.SafeLoader.yaml_implicit_resolvers.items()
    return {first: [(tag, rule) for tag, rule in rules if tag not in kinds] for first, rules in found}


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    if not _WHOLE.match(node.value):
        raise yaml.MarkedYAMLError(None, None, f"{node.value[:40]!a} is no whole number", node.start_mark)
    return int(node.value, {"0o": 8, "0x": 16}.get(node.value[:2], 10))


def _fraction(loader: _Loader, node: yaml.ScalarNode) -> float:
    if not (_NUMBER.match(node.value) or _WHOLE.match(node.value)):
        raise yaml.MarkedYAMLError(None, None, f"{node.value[:40]!a} is no number", node.start_mark)
    return float(loader.construct_yaml_float(node))


_Loader.yaml_implicit_resolvers = _without({_TAG + kind for kind in ("int", "float", "timestamp", "value")})
_Loader.add_implicit_resolver(_TAG + "int", _WHOLE, list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", _NUMBER, list("-+0123456789."))
_Loader.add_constructor(_TAG + "int", _whole)
_Loader.add_constructor(_TAG + "float", _fraction)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that the loader above would take for a number."""


_Dumper.add_implicit_resolver(_TAG + "int", _WHOLE, list("-+0123456789"))
_Dumper.add_implicit_resolver(_TAG + "float", _NUMBER, list("-+0123456789."))
