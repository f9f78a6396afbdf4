"""What the docstring of a dataclass of settings says of each."""

from __future__ import annotations

import docstring_parser


def meanings(cls: type) -> dict[str, str]:
    """In one line each, by the setting's name; a section that the docstring leaves out is not among them."""
    found = {}
    for entry in docstring_parser.parse(cls.__doc__ or "").params:
        for name in entry.arg_name.split(", "):
            found[name] = " ".join((entry.description or "").split())
    return found
