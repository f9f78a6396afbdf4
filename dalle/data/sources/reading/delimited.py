"""Tables of text: .csv and .tsv, and the .txt and .token of Flickr8k, whose image names may end in `#0`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from dalle.data.captions import encoding
from dalle.data.images import EXTENSIONS

DELIMITED = ("csv", "tsv", "token", "txt")
ERRORS = "surrogateescape"
"""Names of files may be bytes that are no text; what captions hold of them is counted where captions are read."""
_DELIMITERS = (",", ";", "|", "\t")
_MOST_LINES = 100
"""Of one row: in more, a quote at the beginning of a field took the rows behind it for its own."""
_LINE_CHARS = 1 << 26
"""Of one line, and of one field: more could fill the memory, and are no caption."""
_HEADER_CHARS = 1 << 16
"""Of a text file that is looked into, to see whether it is a table."""
_IMAGE_NAME = re.compile(rf"\.({'|'.join(EXTENSIONS)})(#\d+)?\s*$", re.IGNORECASE)
NUMBERED = re.compile(r"#\d+$")
"""At the end of the name of an image, the number of its caption."""
_UNQUOTED = re.compile(r"\.token(\.txt)?$", re.IGNORECASE)
_EXCEL = re.compile(r'"?sep=(.)"?\s*')
"""A first line with which Excel is told what separates fields."""


def plain(name: str) -> str:
    """The name of a column as it is compared with the usual ones."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower()) if len(name) < 100 else name


def is_image_name(text: str) -> bool:
    """By its extension."""
    return _IMAGE_NAME.search(text) is not None


def text_encoding(path: Path) -> str:
    """Of a file, by its byte order mark."""
    with open(path, "rb") as file:
        return encoding(file.read(4))


def bounded_lines(file: TextIO, path: Path) -> Iterator[str]:
    """The lines from where a file stands on. Raises ValueError for one that is longer than any of a table."""
    while line := file.readline(_LINE_CHARS):
        if len(line) == _LINE_CHARS and not line.endswith(("\n", "\r")):
            raise ValueError(
                f"{path} is no table of text: a line of over {_LINE_CHARS:,} characters; give a .csv or .tsv"
            )
        yield line


def first_row(path: Path, usual: frozenset[str]) -> list[str]:
    """The names of the columns, or the first pair. usual: names of columns, by which it is told what separates fields."""
    with _opened(path, usual) as (rows, _):
        return [name.strip() for name in next(rows, [])]


def is_headless(path: Path, names: list[str]) -> bool:
    """Whether the first row is a pair already."""
    return _kind(path) in DELIMITED and _is_pair(names)


def looks_delimited(path: Path, usual_image: frozenset[str], usual_caption: frozenset[str]) -> bool:
    """Whether a text file begins as a table does: with names of columns of both kinds, or with a pair."""
    try:
        with open(path, encoding=text_encoding(path), errors=ERRORS, newline="") as file:
            line = file.readline(_HEADER_CHARS)
    except (OSError, UnicodeError):
        return False
    names = _fields(line, _delimiter(line, path, usual_image | usual_caption))
    found = {plain(name) for name in names}
    return _is_pair(names) or bool(found & usual_image and found & usual_caption)


def delimited_pairs(
    path: Path, image: str, caption: str, has_header: bool, usual: frozenset[str]
) -> Iterator[tuple[str, str] | None]:
    """Image and caption of each row; null for a row of which it cannot be told. Raises ValueError where the file cannot be
    read."""
    with _opened(path, usual) as (rows, delimiter):
        names = [name.strip() for name in next(rows, [])] if has_header else ["0", "1"]
        at = {name: number for number, name in reversed(list(enumerate(names)))}
        image_at, caption_at = at[image], at[caption]
        for row in rows:
            while len(row) > len(names) and not row[-1].strip():  # as spreadsheets fill rows up
                row.pop()
            if len(row) > len(names):
                if caption_at != len(names) - 1:
                    yield None
                    continue
                row = [*row[:caption_at], delimiter.join(row[caption_at:])]  # it holds the delimiter, and has no quotes
            image_cell, caption_cell = (row[n] if n < len(row) else "" for n in (image_at, caption_at))
            yield image_cell, caption_cell


@contextmanager
def _opened(path: Path, usual: frozenset[str]) -> Iterator[tuple[Iterator[list[str]], str]]:
    """The rows, and what separates their fields."""
    csv.field_size_limit(_LINE_CHARS)
    try:
        with open(path, encoding=text_encoding(path), errors=ERRORS, newline="") as file:
            line = next(bounded_lines(file, path), "")
            if (said := _EXCEL.fullmatch(line)) is not None:
                delimiter = said[1]
            else:
                delimiter = _delimiter(line, path, usual)
                file.seek(0)
            quoting: Literal[0, 3] = csv.QUOTE_NONE if _UNQUOTED.search(path.name) else csv.QUOTE_MINIMAL
            yield _rows(csv.reader(bounded_lines(file, path), delimiter=delimiter, quoting=quoting), path), delimiter
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"{path} is no table of text: {error}; save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}; see that it may be read") from None


def _rows(reader: Any, path: Path) -> Iterator[list[str]]:
    before = 0
    for row in reader:
        if reader.line_num - before > _MOST_LINES:
            raise ValueError(
                f'{path}: the row from line {before + 1} on has over {_MOST_LINES} lines: a quote (") that is never closed; close it'
            )
        before = reader.line_num
        if any(map(str.strip, row)):
            yield row


def _delimiter(line: str, path: Path, usual: frozenset[str]) -> str:
    if _kind(path) in ("tsv", "token"):
        return "\t"

    def known(delimiter: str) -> tuple[int, bool, int]:
        fields = _fields(line, delimiter)
        return sum(plain(name) in usual for name in fields), _is_pair(fields), len(fields)

    return max(_DELIMITERS, key=known)


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _is_pair(fields: list[str]) -> bool:
    return len(fields) == 2 and is_image_name(fields[0]) and bool(fields[1].strip())


def _kind(path: Path) -> str:
    return path.suffix.lower().strip(".")
