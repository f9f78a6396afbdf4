"""Tables that name images and captions: which of their columns do, and their rows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dalle.config.checks import printable
from dalle.data.images import EXTENSIONS
from dalle.data.sources.reading.delimited import (
    DELIMITED,
    NUMBERED,
    delimited_pairs,
    first_row,
    is_headless,
    looks_delimited,
    plain,
)
from dalle.data.sources.reading.item import IMAGE, Fate, Item
from dalle.data.sources.reading.json_table import Row, file_rows, line_rows, looks_like_rows
from dalle.data.sources.reading.parquet import holds_bytes, parquet_columns, parquet_rows

TABLES = ("csv", "tsv", "jsonl", "ndjson", "parquet", "token")
MAYBE_TABLES = ("txt", "json")
_IMAGE_COLUMNS = (
    *("file_name", "filename", "file", "image", "image_path", "image_file", "image_name", "img", "img_path"),
    *("file_path", "filepath", "path", "photo", "picture", *EXTENSIONS),
)
_CAPTION_COLUMNS = (
    *("captions", "caption", "text", "texts", "prompt", "prompts", "description", "title", "sentence", "comment"),
    *("alt", "alt_text", "label", "tags"),
)
_ADDRESS_COLUMNS = ("url", "urls", "image_url", "img_url", "link")
_USUAL = frozenset({*_IMAGE_COLUMNS, *_CAPTION_COLUMNS})
_SNIFFED_ROWS = 100
_MOST_FOLDERS = 16
"""Beside a table, in which the files are looked for that it names."""
_MOST_NAME_CHARS = 4096
"""Of a path, which no system has longer."""
_OUTSIDE = "an image outside of the source folder, which is read where the table itself is given as the source"


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read.

    Args:
        image: names the files, or holds them
        caption: holds one caption, or a list
        others: further columns that may have been meant as captions
        has_header: false of a table of text that begins with its first pair
    """

    image: str
    caption: str
    others: tuple[str, ...] = ()
    has_header: bool = True


def is_table(name: str) -> bool:
    """By its extension."""
    return name.rpartition(".")[2].lower() in TABLES


def looks_like_table(path: Path) -> bool:
    """Whether a .txt or .json is one, as far as its beginning and its end tell."""
    if _kind(path) == "json":
        return looks_like_rows(path, frozenset(_CAPTION_COLUMNS))
    return looks_delimited(path, frozenset(_IMAGE_COLUMNS), frozenset(_CAPTION_COLUMNS))


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
        others = [n for n in names if plain(n) in _CAPTION_COLUMNS and n not in (found_caption[0], found_image[0])]
        return Columns(found_image[0], found_caption[0], tuple(others))
    if not found_image and not found_caption and is_headless(path, names):
        return Columns("0", "1", has_header=False)
    addresses = [name for name in names if plain(name) in _ADDRESS_COLUMNS]
    if not found_image and addresses:
        raise ValueError(
            f"{path}: its column {addresses[0]} holds addresses, and nothing is downloaded here: download them with "
            "img2dataset, and give its output folder"
        )
    what, option = ("names image files", "image_column") if not found_image else ("holds captions", "caption_column")
    raise ValueError(f"{path}: no column {what} by a usual name (its columns: {_told(names)}): name it with --{option}")


def _chosen(path: Path, names: Sequence[str], wanted: str | None, usual: Sequence[str], option: str) -> list[str]:
    if wanted is not None:
        found = [n for n in names if n == wanted] or [n for n in names if plain(n) == plain(wanted)]
        if not found:
            raise ValueError(f"{option} {wanted}: {path} has no such column; name one of its columns: {_told(names)}")
        return found
    return sorted((n for n in names if plain(n) in usual), key=lambda n: usual.index(plain(n)))


def _told(names: Sequence[str]) -> str:
    shown = [printable(name if len(name) <= 40 else f"{name[:39]}…") for name in names[:12]]
    return ", ".join(shown) + (", …" if len(names) > 12 else "")


def _kind(path: Path) -> str:
    return path.suffix.lower().strip(".")


def _column_names(path: Path) -> list[str]:
    if _kind(path) == "parquet":
        return parquet_columns(path)
    if _kind(path) in DELIMITED:
        return first_row(path, _USUAL)
    rows = (values for values in islice(_json_rows(path), _SNIFFED_ROWS) if values is not None)
    return list(dict.fromkeys(name for values in rows for name in values))


def _json_rows(path: Path) -> Iterator[Row]:
    return file_rows(path) if _kind(path) == "json" else line_rows(path)


def table_items(path: Path, columns: Columns, root: Path | None = None) -> Iterator[Item]:
    """A table's rows; several may name one image.

    Args:
        path: the table
        columns: of it
        root: the folder that was given, outside of which nothing is read; null where the table itself was
    """
    rows: Iterator[tuple[Any, Any] | None]
    if _kind(path) == "parquet":
        rows = parquet_rows(path, columns.image, columns.caption)
    elif _kind(path) in DELIMITED:
        rows = delimited_pairs(path, columns.image, columns.caption, columns.has_header, _USUAL)
    else:
        rows = (None if v is None else (v.get(columns.image), v.get(columns.caption)) for v in _json_rows(path))
    unclear = "more fields than columns" if _kind(path) in DELIMITED else "no JSON object"
    files = _Files(path, root)
    for number, row in enumerate(rows, 1):
        name = f"row {number}"
        if row is None:
            yield Item(str(path), name, fate=Fate("Broken", f"a row that has {unclear}"))
            continue
        image, captions = row
        if isinstance(image, dict):  # as `datasets` stores images
            image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes):
            yield Item(str(path), name, {IMAGE: image}, _captions(captions))
        elif isinstance(image, str | int) and str(image).strip():
            yield files.item(str(image).strip(), _captions(captions))
        else:
            yield Item(str(path), name, fate=Fate("Broken", "a row that names no image"))


def table_files(path: Path, columns: Columns) -> Iterator[Path]:
    """The files that a table given as the source names, as often as it does; none of one that holds the images."""
    if _kind(path) == "parquet" and holds_bytes(path, columns.image):
        return
    before = None
    for item in table_items(path, columns):
        if item.path is not None and item.path != before:
            before = item.path
            yield item.path


class _Files:
    """The image files that a table names: beside it, in a folder beside it or, in a folder that was given, in that."""

    def __init__(self, table: Path, root: Path | None):
        self._table, self._root = table, root
        self._limit = os.path.join(os.path.abspath(table.parent if root is None else root), "")
        roots = [root] if root is not None else []
        if root is None and table.parent.name == "annotations":
            # MS-COCO's, whose images lie in folders beside this one
            roots = [table.absolute().parent.parent]
        inner = [folder for beside in dict.fromkeys([table.parent, *roots]) for folder in _inner(beside)]
        of_its_name = [f for f in inner if table.stem == f.name or table.stem.endswith(f"_{f.name}")]
        # beside the table or in the folder of its name, what is there is meant; elsewhere only what is there once
        self._first = [table.parent, *of_its_name]
        self._others = [f for f in dict.fromkeys([*inner, *roots]) if f not in self._first]

    def item(self, image: str, captions: tuple[str, ...]) -> Item:
        """A row's."""
        url = str(self._table)
        if len(image) > _MOST_NAME_CHARS:
            return Item(url, f"{image[:40]}…", fate=Fate("Broken", "no such image file"))
        if re.match(r"https?://", image):
            return Item(url, image, fate=Fate("Broken", "an address, which is not downloaded"))
        names = dict.fromkeys([image, image.replace("\\", "/"), NUMBERED.sub("", image)])
        first = next((p for name in names for folder in self._first for p in _there(folder, name)), None)
        found = [first] if first else [p for name in names for folder in self._others for p in _there(folder, name)]
        if not found:
            return Item(url, image, fate=Fate("Broken", "no such image file"))
        if len(set(map(os.path.realpath, found))) > 1:
            return Item(url, image, fate=Fate("Broken", "several files of that name", ", ".join(map(str, found[:3]))))
        is_outside = not os.path.abspath(found[0]).startswith(self._limit)
        if is_outside and self._root is not None:
            return Item(url, image, fate=Fate("Broken", _OUTSIDE))
        return Item(url, image, {IMAGE: found[0]}, captions, is_outside=is_outside)


def _there(folder: Path, name: str) -> Iterator[Path]:
    """The file of a name below a folder, if it is there; without an extension any will do."""
    if not name or "\0" in name:
        return
    path = Path(os.path.normpath(folder / name)) if ".." in name else folder / name
    if os.path.isfile(path):
        yield path
    elif not path.suffix and path.name and not os.path.isdir(path):
        candidates = (path.with_name(f"{path.name}.{extension}") for extension in EXTENSIONS)
        yield from islice(filter(os.path.isfile, candidates), 1)


def _inner(beside: Path) -> list[Path]:
    """The folders in one, if they are few."""
    try:
        inner = [e.path for e in os.scandir(beside) if not e.name.startswith(".") and e.is_dir()]
    except OSError:
        return []
    return [*map(Path, sorted(inner, key=os.fsencode))] if len(inner) <= _MOST_FOLDERS else []


def _captions(value: Any) -> tuple[str, ...]:
    """One caption, a list, or a list that was written as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return (value,)
        value = found if all(isinstance(v, str) for v in found) else value
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(str(v) for v in values if isinstance(v, str | int | float) and not isinstance(v, bool))
