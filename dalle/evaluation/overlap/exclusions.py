"""Lists of evaluation images to leave out: text, an image's name on each line, as `SHARD/KEY` or `KEY` alone. Lines that
begin with "# " and empty ones are not read. SHARD is a file's name without its folder; what no terminal shows as text is
written as Python writes it within quotes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from dalle.evaluation.overlap.stream import shard_name
from dalle.outputs.whole import replace_text

_MOST_CHARACTERS = 4096
_SHOWN_CHARACTERS = 60


def exclusion_name(shard: str, key: str) -> str:
    """An image in such a list. shard: its path or URL."""
    return _plain(f"{shard_name(shard)}/{key}")


def write_exclusions(path: Path, names: Iterable[str], made: Iterable[str]) -> None:
    """Write a list. names: from `exclusion_name`. made: how they were found, a sentence a line."""
    head = [f"# {' '.join(line.split())}" for line in made]
    replace_text(path, "\n".join([*head, *names]) + "\n")


def read_exclusions(path: str | Path) -> set[str]:
    """The names in a list, which may be none; see `is_excluded` and `unmatched`.

    Raises:
        ValueError: there is no such file, or it is no such list; the line names the file and the line
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"exclusion list {path}: no such file; name one, such as the exclude.txt of dalle-dedup")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"exclusion list {path}: is not UTF-8 text ({error.reason}); save it as such") from None
    names = set()
    for number, line in enumerate(text.split("\n"), 1):
        name = line.removesuffix("\r")
        if not name or name == "#" or name.startswith("# "):
            continue
        if problem := _problem(name):
            shown = _plain(name[:_SHOWN_CHARACTERS]) + "…" * (len(name) > _SHOWN_CHARACTERS)
            raise ValueError(
                f"exclusion list {path}, line {number}: {shown!r} {problem}; write SHARD/KEY or KEY, or begin it with '# '"
            )
        names.add(name)
    return names


def is_excluded(names: Collection[str], shard: str, key: str) -> bool:
    """Whether a list holds an image, with its shard or without. shard: its path or URL."""
    return exclusion_name(shard, key) in names or _plain(key) in names


def unmatched(names: Iterable[str], images: Iterable[tuple[str, str]]) -> list[str]:
    """Those names of a list, in order, that are none of these images', (shard, key) each: a list for other data shows so."""
    left = set(names)
    for shard, key in images:
        left -= {exclusion_name(shard, key), _plain(key)}
    return sorted(left)


def _plain(name: str) -> str:
    """As it can stand on a line of its own."""
    if name.isprintable() and name == name.strip():
        return name
    return repr(name)[1:-1].replace(" ", "\\x20")


def _problem(name: str) -> str | None:
    if len(name) > _MOST_CHARACTERS:
        return f"has {len(name):,} characters"
    if name != name.strip():
        return "begins or ends with a space"
    if not name.isprintable():
        return "holds characters that are no text"
    if name[0] in "{[" and name[-1] in "}]":
        return "is JSON"
    if name.startswith("/") or name.endswith("/"):
        return "has no shard before its /, or no key behind it"
    return None
