"""From the command line to a frozen dataclass: `--config FILE.yaml`, dotted overrides, `--help` from the docs.

What a user got wrong is said in one line that names the key, the value and what is allowed, with exit code 2, before
anything heavy is loaded. `DALLE_DEBUG=1` shows the traceback.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_loader

import dalle
from dalle.cli import open_options
from dalle.cli.allocator import keep_freed_memory, wait_briefly
from dalle.config import plain_yaml, shape, shipped
from dalle.config.checks import SaidByAll, of_the_machine, printable
from dalle.config.programs import PROGRAMS, Program
from dalle.outputs.streams import kept_open

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Settings = TypeVar("_Settings", bound="DataclassInstance")


def parse(
    cls: type[_Settings], prog: str, argv: list[str] | None = None, positional: str | tuple[str, ...] | None = None
) -> _Settings:
    """The command's settings as an instance of `cls`.

    Args:
        cls: a dataclass of `dalle.config`
        prog: the command's name
        argv: arguments; null means those of the process
        positional: name of a field that may be given without its `--name`, or names of several, in their order

    Raises:
        ValueError: one line that says what is wrong
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _check_text(argv)
    places = (positional,) if isinstance(positional, str) else positional or ()
    program = PROGRAMS.get(prog, Program(cls, ""))
    argv = _normalise(cls, _gathered(renamed(cls, argv), program.several), places)
    if program.example and {"-h", "--help"} & set(argv):
        print(f"Example:\n  {program.example}\n")
    if "--version" in argv:
        print(f"{prog} {dalle.__version__}")
        sys.exit()
    usage = f"{prog} [--config FILE] [--key value ...]" + "".join(f" {name.upper()}" for name in places)
    parser = ArgumentParser(prog=prog, description=program.summary, usage=usage, exit_on_error=False)
    told = "YAML file, or one that is shipped, such as demo/prior; options after it override it"
    parser.add_argument("--config", action="config", help=told)
    parser.add_class_arguments(cls)
    argv = [_checked(cls, token) for token in argv]
    argv, below = open_options.taken_out(cls, argv)
    try:
        namespace = parser.parse_args(argv)
    except (ArgumentError, TypeError) as error:
        raise ValueError(_one_line(cls, str(error))) from None
    asked = namespace.as_dict()
    shape.check_values(cls, {field.name: asked.get(field.name) for field in dataclasses.fields(cls)})
    try:
        values = parser.instantiate(namespace)
    except ValueError as error:
        raise ValueError(shape.within_section(cls, str(error))) from None
    values = {field.name: _at_home(field.name, values[field.name]) for field in dataclasses.fields(cls)}
    settings = cls(**values | {name: open_options.laid_over(values[name], more) for name, more in below.items()})
    _check_filled(settings)
    return settings


ALSO = {"from": "start_from"}
"""Other names that options have on the command line, where a command has what they stand for."""
NO_PATHS = ("caption", "region", "part")
"""The only settings of commands whose text is not the path of something."""
_OF_PARSERS = ("config", "print_config", "help", "version")
"""Options that are no settings."""
_SHARDS = ("data", "valid_data", "reference", "train", "evaluation")
"""Those that may hold globs, ranges and several names (`dalle.data.naming`)."""


def _check_filled(settings: Any) -> None:
    """Raises ValueError for a setting of blanks alone, which of a path is the folder that one stands in."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        # whoever looks for shards says that of them, and what is empty by default may be
        if isinstance(value, str) and not value.strip() and field.default != "" and field.name not in _SHARDS:
            raise ValueError(
                f"{field.name}: is empty, as a shell leaves a variable that is not set; give it a value, or leave it out"
            )


def _at_home(name: str, value: Any) -> Any:
    """A command's setting with `~` as the home folder: a shell does so at the start of a word, and nobody in a YAML file."""
    if not isinstance(value, str) or name in NO_PATHS:
        return value
    path, home = os.path.expanduser(value), os.path.expanduser(value.partition("/")[0])
    if name in _SHARDS and re.search(r"[][*?{},\\\s]", home) and not os.path.exists(path):
        return value  # before a glob such a home would be one too: who looks for the shards knows better
    return path


def parse_model(cls: type[_Settings], values: dict[str, Any], where: str, prefix: str = "") -> _Settings:
    """One section of a configuration, already read, as its dataclass; a ValueError begins with `where`. prefix: of keys, with the dot."""
    shape.check_values(cls, values, where, prefix)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    try:
        read = parser.parse_object(values)
        shape.check_values(cls, read.as_dict(), "", prefix)  # what stood in quotes, too
        instance = parser.instantiate(read)
        return cls(**{field.name: instance[field.name] for field in dataclasses.fields(cls)})
    except (ArgumentError, TypeError, ValueError) as error:  # the last is the dataclass's own
        told = str(error) if isinstance(error, ValueError) else prefix + _one_line(cls, str(error))
        raise ValueError(where + told) from None


def run(main: Callable[[], None], prog: str) -> None:
    """Run a command: user errors, a full disk and too little memory become one line and exit code 2, a training whose numbers have
    gone wrong 3, Ctrl-C 130."""
    keep_freed_memory()
    wait_briefly()
    rank = os.environ.get("RANK", "0")
    who = prog if os.environ.get("WORLD_SIZE", "1") == "1" else f"{prog} (rank {rank})"
    try:
        with kept_open():
            main()
    except ValueError as error:
        if os.environ.get("DALLE_DEBUG"):
            raise
        if rank == "0" or not isinstance(error, SaidByAll):
            print(f"{who}: {printable(str(error))}", file=sys.stderr)
        sys.exit(error.EXIT_CODE if isinstance(error, SaidByAll) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MemoryError, RuntimeError, ImportError, SystemError, OSError) as error:
        if os.environ.get("DALLE_DEBUG"):
            raise
        if said := of_the_machine(error):
            print(f"{who}: {said}", file=sys.stderr)
            sys.exit(2)
        if not isinstance(error, OSError) or error.strerror is None:
            raise
        print(f"{prog}: {printable(str(error.filename or 'file system'))}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def plain_warnings(prog: str) -> None:
    """Warnings as a user needs them: what is to be known, and not the line of code that says it."""
    warnings.formatwarning = lambda message, *_: f"{prog}: {printable(str(message))}\n"


def to_yaml(settings: Any) -> str:
    """The full resolved configuration as YAML, which `--config` reads back."""
    return plain_yaml.dump(_plain(dataclasses.asdict(settings)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _check_text(argv: list[str]) -> None:
    """Python takes a byte that is no text for half a character, which no file and no model takes from it."""
    for token in argv:
        try:
            token.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{token!r} is no text: it was typed in another encoding than the terminal's; type it as UTF-8"
            ) from None


def renamed(cls: type, argv: list[str]) -> list[str]:
    """The arguments with the first names of options that have two."""
    known = {field.name for field in dataclasses.fields(cls)}
    result = []
    for token in argv:
        option, equals, value = token.partition("=")
        name = ALSO.get(option[2:]) if option.startswith("--") else None
        result.append(f"--{name}{equals}{value}" if name in known else token)
    return result


def _gathered(argv: list[str], several: str | None) -> list[str]:
    """The arguments with all words behind the option that takes several as one."""
    if f"--{several}" not in argv:
        return argv
    first = argv.index(f"--{several}") + 1
    end = next((i for i in range(first, len(argv)) if argv[i].startswith("--")), len(argv))
    words = [shlex.quote(word) for word in argv[first:end]] if end > first + 1 else argv[first:end]
    return [*argv[: first - 1], *([f"--{several}={' '.join(words)}"] if words else [f"--{several}"]), *argv[end:]]


def _normalise(cls: type, argv: list[str], places: tuple[str, ...]) -> list[str]:
    """Flags without a value get `true`, dashes in names become underscores, the launcher's --local_rank goes, and a bare
    argument, or one behind `--`, gets the next name of `places`. Raises ValueError for more bare arguments, and for keys with
    one dash."""
    flags = {name for name, kind in shape.keys_of(cls).items() if kind in (bool, bool | None)}
    result: list[str] = []
    bare = False
    i = 0
    while i < len(argv):
        token = argv[i]
        name, equals, value = token[2:].partition("=")
        name = name.replace("-", "_")
        following = argv[i + 1] if i + 1 < len(argv) else None
        if token == "--" and not bare:
            bare = True
        elif bare or not token.startswith("-"):
            given = {part.partition("=")[0] for part in result}
            positional = next((name for name in places if f"--{name}" not in given), None)
            if positional is None:
                raise ValueError(f"unexpected {token!r}: put quotes around a value with spaces or a * in it")
            result.append(f"--{positional}={token}")
        elif token == "-h":
            result.append(token)
        elif not token.startswith("--") or (places and " " in token.partition("=")[0]):
            told = shape.unknown(cls, token.partition("=")[0])
            if places and (" " in token or "nearest" not in told):
                positional = places[0]
                text = f"--{positional}={shlex.quote(token)}"
                raise ValueError(
                    f"{token!r} begins with a dash, as keys do: for a {positional} write {text}, or -- before it"
                )
            raise ValueError(f"{told}; write keys with two dashes")
        elif name == "local_rank":
            i += 0 if equals else 1
        elif name in flags and not equals and following not in ("true", "false", "null"):
            result.append(f"--{name}=true")
        elif name == "config" and (equals or following):
            result.append(f"--config={shipped.find(value if equals else following or '')}")
            i += 0 if equals else 1
        elif equals or following is None or following.startswith("--") or name == "help":
            result.append(f"--{name}{equals}{value}")
        else:  # the value of a place may begin with one dash
            result.append(f"--{name}={following}")
            i += 1
        i += 1
    return result


def _checked(cls: type, token: str) -> str:
    """An argument as jsonargparse gets it: of a configuration its text in place of its name, so that this program alone opens and
    reads it. Values are looked at first: jsonargparse would import what a `class_path` in a section names, and take 1:30 for 90."""
    name, equals, value = token.removeprefix("--").partition("=")
    if not token.startswith("--"):
        return token
    if name == "config" and equals:
        values = read_yaml(value)
        shape.check_values(cls, values, where=f"{value}: ")
        return f"--config={plain_yaml.dump(values)}"
    keys = shape.keys_of(cls)
    if name in keys and equals:
        shape.check_values(cls, _nested(name, plain_yaml.load(value, name) if shape.section(keys[name]) else value))
    elif name.endswith(".help") and shape.section(keys.get(name.removesuffix(".help"))) is not None:
        return token  # of a section that may be null, whose settings the help of all does not list
    elif name not in keys and name not in _OF_PARSERS and not open_options.is_below(cls, name):
        raise ValueError(shape.unknown(cls, name))
    return token


def _nested(name: str, value: Any) -> Any:
    """A dotted name and its value as mappings in one another."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def _option_value(text: str) -> Any:
    """What the text of an option, or of a configuration, means, for jsonargparse: "a cat:" is no mapping."""
    try:
        value = plain_yaml.load(text, "it")
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from None
    empty = isinstance(value, dict) and value and all(each is None for each in value.values())
    return text if empty and not (text.startswith("{") or "null" in text) else value


set_loader("yaml", _option_value, exceptions=(yaml.YAMLError,))


def read_yaml(path: str) -> dict[str, Any]:
    """What the file of this path, or the shipped one of this name, says. Raises ValueError, in one line with its name."""
    return plain_yaml.read_mapping(shipped.find(path))


def _one_line(cls: type, message: str) -> str:
    """jsonargparse's message in our one-line form."""
    text = shape.within_section(cls, " ".join(message.split()))
    if match := re.match(r"(?i)unrecognized arguments: --?([\w.]+)", text):
        return shape.unknown(cls, match[1])
    if match := re.match(r"Parser key \"([\w.]+)\": (.*)", text):
        key, problem = match.groups()
        if key == "config":
            return f"config: {problem}"
        got = re.split(r"(?:Got|Given) value: ", problem)[-1] if "value: " in problem else ""
        allowed = shape.allowed(shape.keys_of(cls).get(key))
        if got and allowed:
            return f"{key} {got}: must be {allowed}"
        return f"{key}: {problem}"
    if match := re.match(r"the following arguments are required: (.*)", text):
        missing = [name.lstrip("-") for name in match[1].split(", ")]
        return f"missing: {', '.join(f'--{name}' for name in missing)}; give it here or in a --config"
    return text
