"""`dalle-completion SHELL`: a script that completes the commands. shtab writes it for each command, from a plain argparse parser that
has the keys that the command's dataclass has."""

from __future__ import annotations

import sys
import typing
from argparse import Action, ArgumentParser
from typing import Any

import shtab

from dalle.cli import arguments
from dalle.cli.shell.meanings import meanings
from dalle.config import Completion, shape, shipped
from dalle.config.commands.completion import Shell
from dalle.config.programs import PROGRAMS, Program
from dalle.ready.names import ready_names

_KINDS = {
    **dict.fromkeys(("model", "start_from", "dvae", "prior", "clip", "codes_clip", "judge"), "model"),
    "config_file": "config",
}
"""Settings that take the name of a ready model or of a shipped configuration, or a path."""
_NAMED_FILES = {
    "bash": '_dalle_{kind}_files() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}\n',
    "zsh": "_dalle_{kind}_files() {{ _alternative 'names:{kind}:({names})' 'files:file:_files' }}\n",
    "fish": "function _dalle_{kind}_files; string split ' ' '{names}'; __fish_complete_path (commandline -ct); end\n",
}
"""A function of each shell that gives known names, and paths. That "files" is in its name tells bash that paths may come of it."""
_MEANING_CHARS = 70


def main() -> None:
    """Console script."""
    arguments.run(completion, "dalle-completion")


def completion(argv: list[str] | None = None) -> None:
    """Parse, print."""
    config = arguments.parse(Completion, "dalle-completion", argv, PROGRAMS["dalle-completion"].positional)
    sys.stdout.write(script(config.shell))
    sys.stdout.flush()  # where nobody listens, here and not at the end


def script(shell: Shell) -> str:
    """Of all commands, to be evaluated by the shell."""
    known = {"model": ready_names(), "config": shipped.names()}
    functions = [_NAMED_FILES[shell].format(kind=kind, names=" ".join(names)) for kind, names in known.items()]
    return "".join([*functions, *(_of(name, program, shell) for name, program in PROGRAMS.items())])


def _of(name: str, program: Program, shell: Shell) -> str:
    text = shtab.complete(_parser(name, program), shell) + "\n"
    if shell == "zsh":  # shtab's end is for a file of one command: a script of several says itself which they are
        text = text.rpartition("typeset -A opt_args")[0] + f"compdef _shtab_{name.replace('-', '_')} {name}\n"
    return text


def _parser(name: str, program: Program) -> ArgumentParser:
    """With all keys of a command, and none of its checks."""
    parser = ArgumentParser(prog=name)
    parser.add_argument("--version", action="store_true", help="tell the version")
    _complete(parser.add_argument("--config", metavar="FILE", help="YAML file, or one that is shipped"), "config")
    kinds = shape.keys_of(program.config)
    told = _told(program.config)
    for key, kind in kinds.items():
        if shape.section(kind) is not None or typing.get_origin(kind) is dict:
            continue
        options: dict[str, Any] = {"help": told.get(key, "")[:_MEANING_CHARS].replace("%", "%%"), "metavar": "VALUE"}
        if choices := _choices(kind):
            options["choices"] = choices
        if bool in (kind, *typing.get_args(kind)):
            options["nargs"] = "?"
        if key == program.several:
            options["nargs"] = "+"
        places = (program.positional,) if isinstance(program.positional, str) else program.positional or ()
        names = [f"--{key}", *(f"--{also}" for also, first in arguments.ALSO.items() if first == key)]
        added = [parser.add_argument(*names, dest=key, **options)]
        if key in places:
            added.append(parser.add_argument(key, **options | {"nargs": "?"}))
        for action in added:
            if str in (kind, *typing.get_args(kind)) and key not in arguments.NO_PATHS:
                _complete(action, _KINDS.get(key.rpartition(".")[2]))
    return parser


def _complete(action: Action, kind: str | None) -> None:
    """By paths, and by the known names of a kind."""
    function = f"_dalle_{kind}_files"
    known = {"bash": function, "zsh": function, "fish": f"({function})"}
    action.complete = shtab.FILE if kind is None else known  # type: ignore[attr-defined]  # for shtab alone


def _choices(kind: Any) -> list[str]:
    """The values of a setting that has few of them."""
    found: list[str] = []
    for each in typing.get_args(kind) or (kind,):
        if typing.get_origin(each) is typing.Literal:
            found += map(str, typing.get_args(each))
        elif each is bool:
            found += ["true", "false"]
        elif each is type(None):
            found.append("null")
        elif typing.get_origin(kind) is typing.Literal:
            found.append(str(each))
        else:
            return []
    return found


def _told(cls: type, prefix: str = "") -> dict[str, str]:
    """What each key means, by its dotted name."""
    found = {prefix + name: text for name, text in meanings(cls).items()}
    for name, kind in typing.get_type_hints(cls).items():
        if (inner := shape.section(kind)) is not None:
            found |= _told(inner, f"{prefix}{name}.")
    return found
