"""What was found of each image and caption, on disk, so that a million of them take no memory; and what follows from all of them
together: which images are equal, which are kept, and on which side of the split.

An SQLite file in the folder of partial work. It is not kept, so nothing is ever read of it that another process wrote.
"""

from __future__ import annotations

import hashlib
import math
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle.data.counts import Counts, Filtered
from dalle.data.sources.look import Looked
from dalle.data.sources.reading.item import Fate, Item

_SCHEMA = """
CREATE TABLE images (
  number INTEGER PRIMARY KEY, url TEXT, key BLOB, path BLOB, width INTEGER, height INTEGER, extension TEXT, pixels BLOB,
  bytes BLOB, draw REAL, json TEXT, kind TEXT, reason TEXT, detail TEXT, first INTEGER, valid INTEGER
);
CREATE TABLE captions (image INTEGER, place INTEGER, text TEXT, words INTEGER, chars INTEGER, reason TEXT);
CREATE INDEX by_path ON images (path) WHERE path IS NOT NULL;
"""
_INDICES = """
CREATE INDEX by_pixels ON images (pixels);
CREATE INDEX by_first ON images (first);
CREATE INDEX by_image ON captions (image);
"""
FEWEST_TO_SPLIT = 10
"""Images of which one is held out; of fewer none can be spared."""


@dataclass(frozen=True)
class Row:
    """An image of the ledger.

    Args:
        number: its place in the source, from 0
        key: its name there
        path: of the file; null where the bytes lie in something larger
        extension: in a shard; null where it has to be encoded anew
        bytes_hash: of the file when it was looked at
        values: what its .json says, as JSON
        size: width and height in pixels
        valid: whether it is held out
        fate: why it is not used, if so
    """

    number: int
    key: str
    path: Path | None
    extension: str | None
    bytes_hash: bytes
    values: str
    size: tuple[int, int]
    valid: bool
    fate: Fate | None


_COLUMNS = "number, key, path, extension, bytes, json, width, height, valid, kind, reason, detail"


class Ledger:
    """Images by their number in the source.

    Args:
        path: of the file to make
    """

    def __init__(self, path: Path):
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;" + _SCHEMA)
        self._db.create_function("as_text", 1, lambda key: _text(_name(key)), deterministic=True)
        self._db.execute("BEGIN")
        self._next = self._further = 0

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def add(self, item: Item) -> int | None:
        """A new image's number; null for another row of a table about an image that is there."""
        path = None if item.path is None else os.fsencode(item.path)
        if path is not None and self.number_of(path) is not None:
            return None
        number, self._next = self._next, self._next + 1
        self._db.execute(
            "INSERT INTO images (number, url, key, path) VALUES (?, ?, ?, ?)",
            (number, _text(item.url), item.key.encode("utf-8", "surrogatepass"), path),
        )
        return number

    def number_of(self, path: bytes) -> int | None:
        """Of an image file that is there."""
        found = self._db.execute("SELECT number FROM images WHERE path = ? ORDER BY number LIMIT 1", (path,)).fetchone()
        return None if found is None else found[0]

    def put(self, number: int, looked: Looked, seed: int) -> None:
        """What was found of an image."""
        fate = looked.fate or Fate("", "")
        draw = None
        if looked.pixels_hash:
            digest = hashlib.blake2b(b"%d " % seed + looked.pixels_hash, digest_size=7).digest()
            draw = int.from_bytes(digest, "big") / 2**56
        self._db.execute(
            "UPDATE images SET width = ?, height = ?, extension = ?, pixels = ?, bytes = ?, draw = ?, json = ?, kind = ?, "
            "reason = ?, detail = ? WHERE number = ?",
            (
                *looked.size,
                looked.extension,
                looked.pixels_hash or None,
                looked.bytes_hash or None,
                draw,
                looked.values,
                fate.kind or None,
                fate.reason,
                _text(fate.detail),
                number,
            ),
        )
        self._put_captions(number, 0, looked.captions)

    def add_captions(self, number: int, captions: list[tuple[str, str | None]]) -> None:
        """Those of a further row about an image, which may come before what is found of the image itself."""
        self._further += 1
        self._put_captions(number, self._further, captions)

    def _put_captions(self, number: int, place: int, captions: list[tuple[str, str | None]]) -> None:
        self._db.executemany(
            "INSERT INTO captions VALUES (?, ?, ?, ?, ?, ?)",
            ((number, place, text, len(text.split()), len(text), reason) for text, reason in captions),
        )

    def settle(self, join: bool, valid_share: float, most_valid: int | None = None) -> float:
        """What follows from all images together: the first of equal ones, what is kept, what is held out.

        Args:
            join: whether equal images are one
            valid_share: of the images that are kept, those held out
            most_valid: of these; the share is halved until they are no more, so that it is seldom another one as a source grows

        Returns:
            the share
        """
        run = self._db.execute
        self._db.execute("COMMIT")
        self._db.executescript(_INDICES)
        self._db.execute("BEGIN")
        run("UPDATE images SET first = number")
        if join:
            run(
                "UPDATE images SET first = (SELECT MIN(other.number) FROM images other WHERE other.pixels = images.pixels) "
                "WHERE pixels IS NOT NULL"
            )
        # of images that all captions were left out of, the reason is that of their first one
        run(
            "UPDATE images SET kind = 'Filtered', detail = '', reason = (SELECT 'caption ' || c.reason FROM captions c JOIN "
            "images i ON c.image = i.number WHERE i.first = images.number ORDER BY i.number, c.place, c.rowid LIMIT 1) "
            "WHERE kind IS NULL AND first = number AND NOT EXISTS (SELECT 1 FROM captions c JOIN images i ON c.image = "
            "i.number WHERE i.first = images.number AND c.reason IS NULL)"
        )
        run(
            "UPDATE images SET kind = 'Filtered', reason = 'the pixels of an earlier image, which takes its captions', "
            "detail = (SELECT as_text(other.key) FROM images other WHERE other.number = images.first) "
            "WHERE kind IS NULL AND first < number"
        )
        count, least, most = run("SELECT COUNT(*), MIN(draw), MAX(draw) FROM images WHERE kind IS NULL").fetchone()
        below, share = 0.0, valid_share
        while most_valid is not None and self._num_drawn_below(share) > most_valid:
            share /= 2
        if count >= FEWEST_TO_SPLIT and valid_share > 0:
            below = min(max(share, math.nextafter(least, 2)), most)  # at least one on each side
        run("UPDATE images SET valid = (draw < ?) WHERE kind IS NULL", (below,))
        return share

    def _num_drawn_below(self, share: float) -> int:
        return self._db.execute("SELECT COUNT(*) FROM images WHERE kind IS NULL AND draw < ?", (share,)).fetchone()[0]

    def without_path(self) -> Iterator[int]:
        """Numbers of the images that are no files of their own, in order."""
        return (n for (n,) in self._db.execute("SELECT number FROM images WHERE path IS NULL ORDER BY number"))

    def rows(self, condition: str, *values: Any) -> Iterator[Row]:
        """Images in the order of the source.

        Args:
            condition: SQL over the columns of `images`
            values: for its question marks
        """
        query = f"SELECT {_COLUMNS} FROM images WHERE {condition} ORDER BY number"
        for number, key, path, extension, data, values_json, width, height, valid, *fate in self._db.execute(
            query, values
        ):
            yield Row(
                number,
                _name(key),
                None if path is None else Path(os.fsdecode(path)),
                extension,
                data,
                values_json,
                (width, height),
                bool(valid),
                None if fate[0] is None else Fate(*fate),
            )

    def captions(self, number: int) -> list[str]:
        """Those of an image that are kept, with those of the images that are equal to it."""
        found = self._db.execute(
            "SELECT c.text FROM images i JOIN captions c ON c.image = i.number WHERE i.first = ? AND c.reason IS NULL "
            "ORDER BY i.number, c.place, c.rowid",
            (number,),
        )
        return list(dict.fromkeys(text for (text,) in found))

    def all_captions(self, number: int) -> list[str]:
        """Those of one image, whatever became of them."""
        return [
            t for (t,) in self._db.execute("SELECT text FROM captions WHERE image = ? ORDER BY place, rowid", (number,))
        ]

    def counts(self) -> tuple[Counts, Counts]:
        """What became of the images, and of the captions of those that decode."""
        counts, captions = Counts(), Counts()
        for url, key, *fate in self._db.execute("SELECT url, key, kind, reason, detail FROM images ORDER BY number"):
            counts.add(_place(url, key), None if fate[0] is None else Fate(*fate).error())
        query = (
            "SELECT i.url, i.key, c.text, c.reason FROM captions c JOIN images i ON c.image = i.number "
            "WHERE i.pixels IS NOT NULL ORDER BY i.number, c.place, c.rowid"
        )
        for url, key, text, reason in self._db.execute(query):
            captions.add(_place(url, key), None if reason is None else Filtered(reason, text[:80]))
        return counts, captions

    def ask(self, query: str, *values: Any) -> list[tuple]:
        """The answer to a question in SQL, for figures that are few."""
        return self._db.execute(query, values).fetchall()


def _place(url: str, key: bytes) -> dict[str, str]:
    return {"__url__": url, "__key__": _name(key)}


def _name(key: bytes) -> str:
    """A key as it was: names of files, and those in tables, may hold what Unicode does not encode."""
    return key.decode("utf-8", "surrogatepass")


def _text(text: str) -> str:
    """What SQLite takes: names may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode()
