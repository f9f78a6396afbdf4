"""Tables in JSON: an object a line (.jsonl), and the .json of several makers, each as rows of named values.

A .json is read whole: a list of objects, an object of files (as kohya's sd-scripts write `meta_cap.json`), MS-COCO's captions
(https://cocodataset.org/#format-data), or Karpathy's splits, whose images have `sentences`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dalle.config.plain_json import each_once
from dalle.data.sources.reading.delimited import ERRORS, bounded_lines, is_image_name, plain, text_encoding

Row = dict[str, Any] | None
"""Null for what is no object."""
_PEEK_BYTES = 1 << 16
"""At the beginning and the end of a .json, where captions have to be for it to be read."""
_MOST_BYTES = 1 << 31
"""Of a .json, which takes four times as many when it is read."""
_FILE_KEY = re.compile(rb'"[^"\n]+\.(png|jpe?g|webp|bmp|gif|tiff?|ppm)"\s*:', re.IGNORECASE)


def line_rows(path: Path) -> Iterator[Row]:
    """An object for each line; one with a key twice is none. Raises ValueError where the file cannot be read."""
    try:
        with open(path, encoding=text_encoding(path), errors=ERRORS) as file:
            for line in filter(None, map(str.strip, bounded_lines(file, path))):
                try:
                    values = json.loads(line, object_pairs_hook=each_once)
                except (ValueError, RecursionError):
                    values = None
                yield values if isinstance(values, dict) else None
    except UnicodeError as error:
        raise ValueError(f"{path} is no table of text: {error}; save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}; see that it may be read") from None


def looks_like_rows(path: Path, usual_caption: frozenset[str]) -> bool:
    """Whether a .json may hold pairs, without reading all of it."""
    try:
        with open(path, "rb") as file:
            head = file.read(_PEEK_BYTES)
            file.seek(max(0, path.stat().st_size - _PEEK_BYTES))
            tail = file.read(_PEEK_BYTES)
    except OSError:
        return False
    if _FILE_KEY.search(head):
        return True
    names = re.findall(rb'"([\w \-]{3,20})"\s*:', head + tail)
    return any(plain(name.decode()) in usual_caption or name == b"sentences" for name in names)


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of a .json. Raises ValueError where it cannot be read, or is none of these forms."""
    try:
        size = path.stat().st_size
        values = json.loads(path.read_bytes(), object_pairs_hook=each_once) if size <= _MOST_BYTES else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}; write it anew as JSON") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}; see that it may be read") from None
    if size > _MOST_BYTES:
        raise ValueError(f"{path}: has {size:,} bytes, and would be read whole: save it as .jsonl, an object a line")
    if isinstance(values, dict) and _objects(values.get("images")):
        return _of_images(values["images"], values.get("annotations"))
    if isinstance(values, dict) and (rows := list(_of_files(values))):
        return iter(rows)
    if isinstance(values, list):
        return (row if isinstance(row, dict) else None for row in values)
    raise ValueError(
        f"{path}: holds no list of images and captions, and no object of files with captions; write it as one of them"
    )


def _of_files(values: dict[str, Any]) -> Iterator[Row]:
    for name, about in values.items():
        if isinstance(about, dict):
            yield about | {"file_name": name}
        elif is_image_name(name):
            yield {"file_name": name, "caption": about}


def _of_images(images: list[dict], annotations: Any) -> Iterator[Row]:
    if not _objects(annotations):
        for image in images:
            sentences = image.get("sentences")
            yield image | ({"captions": [s.get("raw") for s in sentences]} if sentences and _objects(sentences) else {})
        return
    names = {_hashable(image.get("id")): image.get("file_name") for image in images}
    for about in annotations:
        yield about | {"file_name": names.get(_hashable(about.get("image_id")))}


def _objects(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, dict) for value in values)


def _hashable(value: Any) -> str:
    return json.dumps(value)
