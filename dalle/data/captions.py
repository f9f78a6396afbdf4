"""The captions of raw samples, and of text files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from dalle.data.shards import check, names, read


class BadSample(ValueError):
    """A sample that cannot be used; the message says why in a few words that do not name the sample."""


def read_captions(sample: dict[str, bytes]) -> tuple[list[str], dict | None]:
    """The captions of a raw sample, from its json's `captions` where it has them, else from its txt, or none; and its
    json's `scene`. Raises BadSample when they are not text."""
    try:
        extra = json.loads(sample["json"]) if "json" in sample else {}
        captions = extra.get("captions") if isinstance(extra, dict) else None
        if captions is None:
            captions = [sample["txt"].decode("utf-8")] if "txt" in sample else []
    except ValueError:
        raise BadSample("caption is not text") from None
    if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise BadSample("caption is not text")
    captions = [" ".join(c.split()) for c in captions]
    return [c for c in captions if c], extra.get("scene") if isinstance(extra, dict) else None


def read_all_captions(spec: str) -> Iterator[str]:
    """All captions of shards and of text files (.txt, one caption a line), in order; samples without one are left out.
    Raises ValueError when a file cannot be read, or none of them has a caption."""
    files = names(spec)
    for name in files:
        if not name.endswith(".txt"):
            check(name)
        elif not os.path.isfile(name):
            raise ValueError(f"no such file: {name}")
    found = False
    for name in files:
        for caption in _lines(name) if name.endswith(".txt") else _captions(name):
            found = True
            yield caption
    if not found:
        raise ValueError(f"{spec} has no caption")


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as lines:
            yield from filter(None, map(str.strip, lines))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}): convert it first") from error


def _captions(shard: str) -> Iterator[str]:
    for sample in read([shard]):
        try:
            yield from read_captions(sample)[0]
        except BadSample:
            continue
