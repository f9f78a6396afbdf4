"""How docstrings are read for the reference: several names before one meaning, `dvae, prior: single models`, are an entry for each."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ENTRY = re.compile(r"    (?P<names>[*\w]+(?:, [*\w]+)+): (?P<rest>.*)")


class SeveralNames(griffe.Extension):
    """Rewrites docstrings as they are collected."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Of each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = spelt_out(obj.docstring.value)


def spelt_out(text: str) -> str:
    """A docstring whose entries have one name each."""
    lines = text.splitlines()
    result: list[str] = []
    while lines:
        line = lines.pop(0)
        found = _ENTRY.fullmatch(line)
        if found is None:
            result.append(line)
            continue
        more: list[str] = []
        while lines and lines[0].startswith("     "):
            more.append(lines.pop(0))
        for name in found["names"].split(", "):
            result += [f"    {name}: {found['rest']}", *more]
    return "\n".join(result)
