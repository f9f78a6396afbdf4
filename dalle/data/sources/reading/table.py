"""Tables that name images and captions: which of their columns do, and their rows."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dalle.data.captions import encoding
from dalle.data.images import EXTENSIONS
from dalle.data.sources.reading.item import IMAGE, Fate, Item
from dalle.data.sources.reading.parquet import parquet_columns, parquet_rows

TABLES = ("csv", "tsv", "jsonl", "ndjson", "parquet")
_IMAGE_COLUMNS = (
    *("file_name", "filename", "file", "image", "image_path", "image_file", "image_name", "img", "img_path"),
    *("file_path", "filepath", "path", "photo", "picture", *EXTENSIONS),
)
_CAPTION_COLUMNS = (
    *("captions", "caption", "text", "texts", "prompt", "prompts", "description", "title", "sentence", "comment"),
    *("alt", "alt_text", "label", "tags"),
)
_ADDRESS_COLUMNS = ("url", "urls", "image_url", "img_url", "link")
_DELIMITERS = (",", ";", "|", "\t")
_ERRORS = "surrogateescape"
"""Names of files may be bytes that are no text; what captions hold of them is counted where captions are read."""
_SNIFFED_ROWS = 100
_MOST_FOLDERS = 16
"""Beside a table, in which the files are looked for that it names."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read.

    Args:
        image: names the files, or holds them
        caption: holds one caption, or a list
        others: further columns that may have been meant as captions
        has_header: false of a .csv that begins with its first pair
    """

    image: str
    caption: str
    others: tuple[str, ...] = ()
    has_header: bool = True


def is_table(name: str) -> bool:
    """By its extension."""
    return name.rpartition(".")[2].lower() in TABLES


def find_columns(path: Path, image: str | None = None, caption: str | None = None) -> Columns:
    """The columns of images and captions.

    Args:
        path: the table
        image, caption: columns that the user named

    Raises:
        ValueError: there are none; one line that says what there is and how to choose
    """
    names = _column_names(path)
    found_image = _chosen(path, names, image, _IMAGE_COLUMNS, "image_column")
    found_caption = _chosen(path, names, caption, _CAPTION_COLUMNS, "caption_column")
    if found_image and found_caption:
        others = [n for n in names if _plain(n) in _CAPTION_COLUMNS and n not in (found_caption[0], found_image[0])]
        return Columns(found_image[0], found_caption[0], tuple(others))
    if not found_image and not found_caption and _is_headless(path, names):
        return Columns("0", "1", has_header=False)
    told = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    addresses = [name for name in names if _plain(name) in _ADDRESS_COLUMNS]
    if not found_image and addresses:
        raise ValueError(
            f"{path}: its column {addresses[0]} holds addresses, and nothing is downloaded here: download them with "
            "img2dataset, and give its output folder"
        )
    what, option = ("names image files", "image_column") if not found_image else ("holds captions", "caption_column")
    raise ValueError(f"{path}: no column {what} by a usual name (its columns: {told}): name it with --{option}")


def _chosen(path: Path, names: Sequence[str], wanted: str | None, usual: Sequence[str], option: str) -> list[str]:
    if wanted is not None:
        found = [n for n in names if n == wanted] or [n for n in names if _plain(n) == _plain(wanted)]
        if not found:
            raise ValueError(f"{option} {wanted}: {path} has no such column; its columns: {', '.join(names[:12])}")
        return found
    return sorted((n for n in names if _plain(n) in usual), key=lambda n: usual.index(_plain(n)))


def _plain(name: str) -> str:
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def _is_headless(path: Path, names: Sequence[str]) -> bool:
    """Whether the first row of a .csv is a pair already."""
    return len(names) == 2 and path.suffix.lower() in (".csv", ".tsv") and names[0].lower().endswith(tuple(EXTENSIONS))


def _column_names(path: Path) -> list[str]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        return parquet_columns(path)
    if kind in (".jsonl", ".ndjson"):
        rows = (values for values in islice(_json_rows(path), _SNIFFED_ROWS) if values is not None)
        return list(dict.fromkeys(name for values in rows for name in values))
    with _csv_rows(path) as (rows, _):
        return [name.strip() for name in next(rows, [])]


@contextmanager
def _csv_rows(path: Path) -> Iterator[tuple[Iterator[list[str]], str]]:
    """The rows of a .csv or .tsv, and what separates their fields."""
    with open(path, encoding=_encoding(path), errors=_ERRORS, newline="") as file:
        delimiter = _delimiter(file.readline(), path)
        file.seek(0)
        csv.field_size_limit(2**31 - 1)
        try:
            yield (row for row in csv.reader(file, delimiter=delimiter) if any(map(str.strip, row))), delimiter
        except (csv.Error, UnicodeError) as error:
            raise ValueError(f"{path} is no table of text: {error}") from None


def _encoding(path: Path) -> str:
    with open(path, "rb") as file:
        return encoding(file.read(4))


def _delimiter(header: str, path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    usual = {*_IMAGE_COLUMNS, *_CAPTION_COLUMNS}

    def known(delimiter: str) -> tuple[int, int]:
        fields = next(csv.reader([header], delimiter=delimiter), [])
        return sum(_plain(name) in usual for name in fields), len(fields)

    return max(_DELIMITERS, key=known)


def _json_rows(path: Path) -> Iterator[dict[str, Any] | None]:
    """An object for each line; null for a line that is none."""
    with open(path, encoding=_encoding(path), errors=_ERRORS) as lines:
        for line in filter(None, map(str.strip, lines)):
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                values = None
            yield values if isinstance(values, dict) else None


def table_items(path: Path, columns: Columns) -> Iterator[Item]:
    """A table's rows; several may name one image."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        rows = parquet_rows(path, columns.image, columns.caption)
    elif kind in (".jsonl", ".ndjson"):
        rows = (None if v is None else (v.get(columns.image), v.get(columns.caption)) for v in _json_rows(path))
    else:
        rows = _csv_pairs(path, columns)
    folders = _folders(path.parent)
    for number, row in enumerate(rows, 1):
        name = f"row {number}"
        if row is None:
            yield Item(str(path), name, fate=Fate("Broken", "a row that is no JSON object"))
            continue
        image, captions = row
        if isinstance(image, dict):  # as `datasets` stores images
            image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes):
            yield Item(str(path), name, {IMAGE: image}, _captions(captions))
        elif isinstance(image, str | int) and str(image).strip():
            yield _named(path, str(image).strip(), _captions(captions), folders)
        else:
            yield Item(str(path), name, fate=Fate("Broken", "a row that names no image"))


def _named(table: Path, image: str, captions: tuple[str, ...], folders: list[Path]) -> Item:
    if re.match(r"https?://", image):
        return Item(str(table), image, fate=Fate("Broken", "an address, which is not downloaded"))
    for name in dict.fromkeys([image, image.replace("\\", "/")]):
        for folder in folders:
            path = folder / name
            try:
                found = os.path.isfile(path)
            except ValueError:  # a null character
                continue
            if found:
                return Item(str(table), image, {IMAGE: path}, captions)
            if not path.suffix:
                for extension in EXTENSIONS:
                    if os.path.isfile(with_extension := path.with_name(f"{path.name}.{extension}")):
                        return Item(str(table), image, {IMAGE: with_extension}, captions)
    return Item(str(table), image, fate=Fate("Broken", "no such image file"))


def _folders(beside: Path) -> list[Path]:
    """Where the files of a table may be: beside it, or in a folder beside it, if there are few."""
    inner = sorted((e.path for e in os.scandir(beside) if e.is_dir() and not e.name.startswith(".")), key=os.fsencode)
    return [beside, *map(Path, inner if len(inner) <= _MOST_FOLDERS else [])]


def _captions(value: Any) -> tuple[str, ...]:
    """One caption, a list, or a list that was written as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return (value,)
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(str(v) for v in values if isinstance(v, str | int | float) and not isinstance(v, bool))


def _csv_pairs(path: Path, columns: Columns) -> Iterator[tuple[str, str]]:
    with _csv_rows(path) as (rows, delimiter):
        names = [name.strip() for name in next(rows)] if columns.has_header else ["0", "1"]
        image, caption = names.index(columns.image), names.index(columns.caption)
        for row in rows:
            if len(row) > len(names) and caption == len(names) - 1:  # it holds the delimiter, and has no quotes
                row = [*row[:caption], delimiter.join(row[caption:])]
            yield (row[image] if image < len(row) else "", row[caption] if caption < len(row) else "")
