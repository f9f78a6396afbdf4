"""`docs/errors.md`: all that the program says when it refuses, by what the reader was about to do."""

from __future__ import annotations

import re
import textwrap

from messages.places import Place
from messages.remedy import parts
from messages.wording import wordings

THEMES = {
    "The command line and files of settings": (
        *("__main__", "cli/arguments", "cli/open_options", "cli/describe", "cli/demo", "cli/road"),
        *(
            "config/plain_json",
            "config/plain_yaml",
            "config/shape",
            "config/shipped",
            "cli/shell",
            "config/commands/completion",
        ),
    ),
    "Where something is written": ("outputs",),
    "Pictures, captions and shards": ("data", "text", "cli/data", "config/commands/data"),
    "Models and their weights": (
        *("models", "ready", "cli/export", "cli/publish"),
        *("config/models", "config/stackgan", "config/commands/publish"),
    ),
    "Training": (
        *("stages", "training", "objectives", "optim", "gradients", "checkpoints", "reporting", "cli/train"),
        *("config/training", "config/run", "config/best_of", "config/commands"),
    ),
    "Several processes and machines": ("cluster", "planning", "cli/planning", "config/commands/planning"),
    "Training on pictures of your own": ("own", "cli/own", "config/commands/own"),
    "Drawing and captioning": (
        *("sampling", "decoding", "masks", "cli/sample", "cli/caption"),
        *("config/sampling", "config/commands/sample", "config/commands/caption"),
    ),
    "Evaluation": ("evaluation", "cli/evaluation", "config/commands/evaluation"),
    "This machine": ("machine", "cli/doctor", "config/commands/doctor"),
    "The page": ("web", "cli/serve", "config/commands/serve"),
}
"""Titles with the places below `dalle/` that belong there; of two that fit a file the longer one counts."""
_WARNING = "Warnings"
_LEFT_OUT = "Samples that are left out"
_HALVES = "Reasons"
_OF_SAMPLES = ("Broken", "Filtered", "OtherFile", "no_caption", "no_image", "_undecodable")
_CAUSES = ("Cause", "TypeError", "tarfile.ReadError", "yaml.MarkedYAMLError", "yaml.YAMLError")
_PASSED_ON = re.compile(r"([A-Za-z_ :]*\b[A-Z_]+|[a-z_]+): (ERROR|PROBLEM|TEXT|STRERROR)")
"""Where something is, and behind it what another place says."""
_WIDTH = 118
_INTRODUCTION = """\
# What errors say

Written by `tools/errors.py` from the code; a test compares the two. Words in capitals stand for values. What a message
says to do is behind the arrow, and the file that says it behind the dash. A command that refuses ends with exit code 2
and one line, its own name before it; a training whose numbers have gone wrong ends with 3, Ctrl-C with 130.
"""
_INTRODUCTIONS = {
    _WARNING: "The work goes on.",
    _LEFT_OUT: "One sample that cannot be used ends nothing: each is counted by its reason, with the first names.",
    _HALVES: "They stand where a message above has ERROR, REASON or COMPLAINT.",
}


def theme(place: Place) -> str:
    """The section of a place. Raises ValueError for a file that belongs to none."""
    if place.kind == "warning":
        return _WARNING
    if place.kind in _OF_SAMPLES:
        return _LEFT_OUT
    if place.kind in _CAUSES:
        return _HALVES
    below = place.file.removeprefix("dalle/").removesuffix(".py")
    fitting = [
        (len(start), title)
        for title, starts in THEMES.items()
        for start in starts
        if below == start or below.startswith(start + "/")
    ]
    if not fitting:
        raise ValueError(f"{place.file}: belongs to no section of docs/errors.md; add it to THEMES in {__file__}")
    return max(fitting)[1]


def own_words(place: Place) -> list[str]:
    """What a place says itself; none where it passes on what another one said."""
    return [text for text in wordings(place) if not _PASSED_ON.fullmatch(text)]


def lacking(places: list[Place]) -> list[str]:
    """Messages to users that do not say what to do, with their places."""
    told = (_WARNING, _LEFT_OUT, _HALVES)
    return [
        f"{place.file}:{place.node.lineno}: {text}"
        for place in places
        if theme(place) not in told
        for text in own_words(place)
        if not parts(text)[1]
    ]


def page(places: list[Place]) -> str:
    """The document, as Markdown."""
    sections: dict[str, dict[str, list[str]]] = {title: {} for title in (*THEMES, _WARNING, _LEFT_OUT, _HALVES)}
    for place in places:
        for text in own_words(place):
            files = sections[theme(place)].setdefault(text, [])
            files.extend([place.file] if place.file not in files else [])
    lines = [_INTRODUCTION]
    for title, messages in sections.items():
        lines += [f"## {title}\n"]
        lines += [f"{_INTRODUCTIONS[title]}\n"] if title in _INTRODUCTIONS else []
        lines += [
            _entry(text, files, title not in _INTRODUCTIONS) for text, files in sorted(messages.items(), key=_order)
        ]
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def _order(item: tuple[str, list[str]]) -> tuple[str, str]:
    return item[0].casefold(), item[0]


def _entry(text: str, files: list[str], has_remedy: bool) -> str:
    what, remedy = parts(text) if has_remedy else (text, "")
    told = f"- {_code(what)}" + (f" → {_code(remedy)}" if remedy else "")
    names = ", ".join(file.removeprefix("dalle/") for file in files)
    return textwrap.fill(
        f"{told} — {names}", _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _code(text: str) -> str:
    """Text as it is, whatever Markdown would make of it."""
    fence = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"
