"""What the docstring of a dataclass of settings says of each."""

from __future__ import annotations

import docstring_parser


def meanings(cls: type) -> dict[str, str]:
    """In one line each, by the setting's name; a section that the docstring leaves out is not among them."""
    entries = docstring_parser.parse(cls.__doc__ or "").params
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in entries}
