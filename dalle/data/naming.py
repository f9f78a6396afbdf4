"""Which files a specification names: paths, globs, ranges, URLs.

A file that lies somewhere is a file, whatever its name looks like: only what a person typed may be a URL, and only
where a setting allows it a command.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

import braceexpand

_URL = re.compile(r"(pipe:|(https?|ftps|sftp|scp|gs|htgs|hf|ais)://)")
"""What webdataset opens."""
_MOST_SPACES = 8
"""In a name that has no backslashes before them."""
_MOST_NAMES = 1_000_000
"""Of one specification: at ten thousand pairs a shard more than all pictures of the web."""
_MOST_BRACES = 16
"""In one another."""
_RANGE = re.compile(r"([-+]?\d+)\.\.([-+]?\d+)(?:\.\.([-+]?\d+))?")
_TAR_END_BYTES = 1024
"""A complete tar ends with two zero blocks of 512 bytes."""


def expand(spec: str, pipes: bool = False) -> list[str]:
    """The shards that a specification names, in order.

    Raises:
        ValueError: a local shard does not exist, is empty or is cut off. Checked by size and last bytes, not read.
    """
    shards = names(spec, pipes)
    for shard in shards:
        check(shard)
    return shards


def names(spec: str, pipes: bool = False) -> list[str]:
    """The files that a specification names: the path of one file, or paths, globs and `{000..006}` ranges separated by
    spaces, where a backslash takes its meaning from the character after it, and `~` is the home folder; or URLs that
    webdataset opens. A space within a name needs no backslash where the name is found with it.

    Args:
        spec: as a person typed it
        pipes: whether it may be `pipe:` and a command, which may hold spaces and so stands alone

    Raises:
        ValueError: a glob matches nothing, nothing is named, or a command is not allowed
    """
    if os.path.isfile(spec):
        return [_as_path(spec)]
    if spec.startswith("pipe:"):
        if not pipes:
            raise ValueError(f"{spec}: runs a command; where you trust it, allow it with --images.pipes (--pipes)")
        return [spec]
    words = list(re.finditer(r"(?:\\.|\S)+", spec, re.DOTALL))
    found: list[str] = []
    at = 0
    while at < len(words):
        lasts = range(at, min(at + 1 + _MOST_SPACES, len(words)))
        patterns = [spec[words[at].start() : words[last].end()] for last in lasts]
        taken = next((i for i, pattern in enumerate(patterns) if len(words) == 1 or _is_there(pattern)), 0)
        found.extend(_matches(patterns[taken]))
        at += 1 + taken
    if not found:
        raise ValueError("no files were named; name shards, such as 'FOLDER/*.tar'")
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """The names of a pattern with braces, from which this also takes the backslashes away. Raises ValueError where they are more than
    there are of anything, before memory is asked for them."""
    if _count(pattern) > _MOST_NAMES:
        raise ValueError(f"{pattern[:80]} names more than {_MOST_NAMES:,} files; write fewer in braces")
    yield from braceexpand.braceexpand(pattern)


def _count(pattern: str) -> int:
    """How many names a pattern has, or a number over the most. Raises ValueError where its braces are too deep."""
    open_braces: list[tuple[int, int, int]] = []  # the names before each, those of its alternatives, where it begins
    names_here = 1
    for found in re.finditer(r"\\.|[{},]", pattern, re.DOTALL):
        mark = found[0]
        if mark == "{":
            if len(open_braces) == _MOST_BRACES:
                raise ValueError(f"{pattern[:80]}... has too many braces in one another; write fewer")
            open_braces.append((names_here, 0, found.end()))
            names_here = 1
        elif mark == "," and open_braces:
            before, alternatives, start = open_braces.pop()
            open_braces.append((before, alternatives + names_here, start))
            names_here = 1
        elif mark == "}" and open_braces:
            before, alternatives, start = open_braces.pop()
            ends = _RANGE.fullmatch(pattern[start : found.start()])
            if ends and len(pattern[start : found.start()]) > 60:
                return _MOST_NAMES + 1
            step = max(1, abs(int(ends[3] or 1))) if ends else 1
            here = abs(int(ends[2]) - int(ends[1])) // step + 1 if ends else alternatives + names_here
            names_here = before * here
        if names_here > _MOST_NAMES:
            return names_here
    return names_here


def _is_there(pattern: str) -> bool:
    """Whether the first name of a pattern is a file's or a URL: all are not asked for, which may be very many."""
    first = next(_expanded(pattern), "")
    return is_url(first) or bool(_glob(first)) or os.path.isfile(os.path.expanduser(first))


def _matches(pattern: str) -> list[str]:
    found: list[str] = []
    for name in _expanded(pattern):
        if is_url(name):
            if name.startswith("pipe:") and not os.path.isfile(name):
                raise ValueError(f"{name}: a command stands alone; name it without other files")
            found.append(_as_path(name) if os.path.isfile(name) else name)
        elif not glob.has_magic(name) or os.path.isfile(name):
            found.append(_as_path(os.path.expanduser(name)))
        elif matches := _glob(name):
            found.extend(map(_as_path, matches))
        else:
            raise ValueError(
                f"no shard matches {name!r}; name what is there, with a backslash before a space that is part of a name"
            )
    return found


def _glob(name: str) -> list[str]:
    """The files of a glob, in order; none where it is none."""
    if not glob.has_magic(name):
        return []
    if name.startswith("~"):
        home, slash, rest = name.partition("/")
        name = glob.escape(os.path.expanduser(home)) + slash + rest
    return sorted(glob.glob(name))


def _as_path(name: str) -> str:
    """A file's name so that it is never taken for a URL, nor for something in a home folder."""
    return f"./{name}" if is_url(name) or name.startswith("~") else name


def is_url(name: str) -> bool:
    """Whether one of the names that `names` gives is opened by webdataset, and not as a file."""
    return _URL.match(name) is not None


def escape(path: str | Path) -> str:
    """A path as part of a specification, whatever characters are in it."""
    return re.sub(r"([\s\\{},])", r"\\\1", glob.escape(_as_path(str(path))))


def check(name: str) -> None:
    """Raises ValueError unless a local file is there and begins and ends as a tar does; URLs are left to reading."""
    if is_url(name):
        return
    shard = Path(name)
    if shard.is_dir():
        raise ValueError(f"{shard} is a folder; name the .tar files in it, for example '{escape(shard)}/*.tar'")
    if not shard.is_file():
        kind = "give a URL of http(s), ftps, sftp, scp, gs, hf or ais" if "://" in name else "name one that is there"
        raise ValueError(f"no such shard: {name if '://' in name else shard}; {kind}")
    with shard.open("rb") as file:
        start = file.read(512)
        if not start.strip(b"\0"):
            raise ValueError(f"{shard} is an empty tar: it holds no samples; leave it out")
        if start[257:262] != b"ustar" and start[:2] != b"\x1f\x8b":
            raise ValueError(f"{shard} is not a tar file; name those that are")
        if start[:2] != b"\x1f\x8b":  # the end of a compressed tar cannot be told from its last bytes
            file.seek(max(0, shard.stat().st_size - _TAR_END_BYTES))
            if file.read().strip(b"\0"):
                raise ValueError(f"{shard} is cut off: it does not end as a tar does (write it again, or leave it out)")
