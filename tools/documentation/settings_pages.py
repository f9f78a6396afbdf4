"""The commands and all that they may be asked for, as Markdown: from the same docstrings and types that `--help` is made of."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable
from typing import Any

from dalle.cli.shell.meanings import meanings
from dalle.config import shape
from dalle.config.programs import PROGRAMS, Program


def commands_page() -> str:
    """Every command: an example, what it does, and its settings."""
    parts = [
        "# Commands",
        "Every command takes `--config FILE.yaml`, or the name of a file that comes with the package, and then single settings "
        "as `--name value`, dotted where they lie in a section: `--run.steps 1000`. `--help` tells what this page does, "
        "`--version` the version, and `dalle` alone lists the commands. What a user got wrong is said in one line, with exit "
        "code 2. Keys may be [completed by the shell](../completion.md).",
    ]
    parts += [_command(name, program) for name, program in PROGRAMS.items()]
    return "\n\n".join(parts) + "\n"


def settings_page() -> str:
    """Every section of settings that some command has."""
    sections: dict[type, list[str]] = {}
    for name, program in PROGRAMS.items():
        for section in _sections(program.config):
            sections.setdefault(section, []).append(name)
    parts = ["# Settings", "The sections that [commands](commands.md) have, and files of `--config`."]
    for cls in sorted(sections, key=lambda each: each.__name__):
        users = ", ".join(f"[{name}](commands.md#{name})" for name in sections[cls])
        parts.append(f"## {cls.__name__}\n\n{_prose(cls)}\n\nOf {users}.\n\n{_list(cls, page='')}")
    return "\n\n".join(parts) + "\n"


def _command(name: str, program: Program) -> str:
    places = program.positional
    places = (places,) if isinstance(places, str) else places or ()
    bare = f"\n\nWithout its name may be given: {', '.join(f'`{place}`' for place in places)}." if places else ""
    example = f"```bash\n{program.example}\n```"
    return f"## {name}\n\n{_prose(program.config)}\n\n{example}{bare}\n\n{_list(program.config, page='settings.md')}"


def _prose(cls: type) -> str:
    """What its docstring says before the settings."""
    return (cls.__doc__ or "").split("\n\n    Args:")[0].replace("\n    ", "\n").strip()


def _sections(cls: type) -> Iterable[type]:
    for kind in typing.get_type_hints(cls).values():
        if (inner := shape.section(kind)) is not None:
            yield inner
            yield from _sections(inner)


def _list(cls: type, page: str) -> str:
    """Its settings; `page` is where the sections stand."""
    kinds, told = typing.get_type_hints(cls), meanings(cls)
    items = []
    for field in dataclasses.fields(cls):
        inner = shape.section(kinds[field.name])
        meaning = told.get(field.name) or ("" if inner is None else " ".join(_prose(inner).split("\n\n")[0].split()))
        if inner is None:
            what = f"{shape.allowed(kinds[field.name])}; {_default(field)}"
        else:
            what = f"settings of [{inner.__name__}]({page}#{inner.__name__.lower()})"
        items.append(f"- **`{field.name}`** ({what}): {meaning}")
    return "\n".join(items)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "has to be given"
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(default, tuple):
        default = str(list(default))
    return f"`{shape.shown(default)}` unless given" if default not in ("", {}) else "none unless given"
