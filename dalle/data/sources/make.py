"""From the items of a source to shards and a page: look at each image once, decide over all of them, write those that are
kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dalle.config import Filters
from dalle.config.checks import printable
from dalle.data.captions import NOT_TEXT
from dalle.data.counts import told as by_reason
from dalle.data.sources.figures import captions_left_out, examples, inspect
from dalle.data.sources.judge import caption_reason
from dalle.data.sources.ledger import FEWEST_TO_SPLIT, Ledger, Row
from dalle.data.sources.look import hash_bytes, look_at_all
from dalle.data.sources.page import Example, write_page
from dalle.data.sources.prepared import PAGE, Prepared
from dalle.data.sources.reading.detect import Source
from dalle.data.sources.reading.item import IMAGE, Item
from dalle.data.sources.write import ShardWriter, encode_png, thumbnail

Told = Callable[[str, int], None]
"""What is being done, and how many images of it are done."""
_SAID_ONCE = ("caption", "text", "prompt")
"""In a .json, besides `captions`."""


class Maker:
    """Makes shards, page and `prepared.json` of one source.

    Args:
        name: of the source, as the user typed it
        source: recognised
        filters: what is left out
        valid_share, most_valid, seed: of the images that are held out
        workers: processes that decode
        told: called as the work goes on
    """

    def __init__(
        self,
        name: str,
        source: Source,
        filters: Filters,
        valid_share: float,
        most_valid: int | None,
        seed: int,
        workers: int,
        told: Told,
    ):
        self.name, self.source, self.filters, self.told = name, source, filters, told
        self.valid_share, self.most_valid, self.seed, self.workers = valid_share, most_valid, seed, workers
        self._share = valid_share
        self._outside, self._first_outside = 0, ""

    def make(self, folder: Path) -> Prepared:
        """Write everything into a folder that is there and empty. Raises ValueError where no image can be used."""
        database = folder / "ledger.sqlite"
        ledger = Ledger(database)
        try:
            self._look(ledger)
            self._share = ledger.settle(self.filters.duplicates == "join", self.valid_share, self.most_valid)
            counts, caption_counts = ledger.counts()
            if counts.read == counts.num_filtered + counts.num_broken:
                raise ValueError(
                    f"source {self.name}: no image can be used: {counts.line()}; mend them, or loosen the filters"
                )
            shown = examples(ledger)
            pictures, train, valid = self._write(ledger, folder, set(shown))
            figures = inspect(ledger) | {"shards": train.names() + valid.names(), "hash": _joint_hash(train, valid)}
            prepared = Prepared(
                kind=self.source.kind,
                num_train=figures.pop("num_train"),
                num_valid=figures.pop("num_valid"),
                train=train.spec() or "",
                valid=valid.spec(),
                counts=counts,
                caption_words_median=figures.pop("caption_words_median"),
                caption_tokens_max_chars=figures.pop("caption_tokens_max_chars"),
                captions_per_image=figures.pop("captions_per_image"),
                side_px_median=figures.pop("side_px_median"),
                notes=[],
                caption_counts=caption_counts,
                inspection=figures,
            )
            prepared.notes.extend(map(printable, (*self.source.notes, *self._notes(prepared))))
            examples_shown = [
                Example(pictures[n], row, ledger.captions(n) or ledger.all_captions(n))
                for n in shown
                for row in ledger.rows("number = ?", n)
            ]
            write_page(folder / PAGE, self.name, prepared, examples_shown, captions_left_out(ledger))
        finally:
            ledger.close()
            database.unlink(missing_ok=True)
        prepared.write(folder)
        return prepared

    def _look(self, ledger: Ledger) -> None:
        under_way: deque[int] = deque()

        def new() -> Iterator[Item]:
            for item in self.source.items():
                number = ledger.add(item)
                if item.is_outside and number is not None:
                    self._outside += 1
                    self._first_outside = self._first_outside or item.key
                if number is None:
                    assert item.path is not None
                    known = ledger.number_of(os.fsencode(item.path))
                    assert known is not None
                    ledger.add_captions(known, self._judged(item))
                else:
                    under_way.append(number)
                    yield item

        for done, looked in enumerate(look_at_all(new(), self.filters, self.workers), 1):
            ledger.put(under_way.popleft(), looked, self.seed)
            self.told("read", done)

    def _judged(self, item: Item) -> list[tuple[str, str | None]]:
        captions = dict.fromkeys(" ".join(caption.split()) for caption in item.captions or ())
        return [(caption, caption_reason(caption, self.filters)) for caption in captions if caption]

    def _write(self, ledger: Ledger, folder: Path, shown: set[int]) -> tuple[dict[int, str], ShardWriter, ShardWriter]:
        train, valid = ShardWriter(folder, "train"), ShardWriter(folder, "valid")
        pictures: dict[int, str] = {}
        try:
            for done, (row, data) in enumerate(self._with_bytes(ledger, shown), 1):
                if row.fate is None:
                    writer = valid if row.valid else train
                    image = data if row.extension else encode_png(data)
                    writer.add(row.extension or "png", image, ledger.captions(row.number), _about(row))
                    self.told("write", done)
                if row.number in shown:
                    pictures[row.number] = thumbnail(data)
            train.close()
            valid.close()
        finally:
            train.let_go()
            valid.let_go()
        for writer in (train, valid):
            for old, new in zip(writer.shards, writer.names(), strict=True):
                os.replace(folder / old, folder / new)
        return pictures, train, valid

    def _with_bytes(self, ledger: Ledger, shown: set[int]) -> Iterator[tuple[Row, bytes]]:
        """Images that are kept, and those that are shown, with their bytes. Those that lie in something larger are met in
        the order in which they were before."""
        held = (item.files.get(IMAGE) for item in self.source.items() if item.path is None)
        larger = zip(ledger.without_path(), held, strict=False)  # a source that was changed may hold fewer now
        for row in ledger.rows("kind IS NULL OR pixels IS NOT NULL"):
            if row.fate is not None and row.number not in shown:
                continue
            data = self._read(row, larger)
            if data is None or hash_bytes(data) != row.bytes_hash:
                raise ValueError(
                    f"source {self.name}: {printable(row.key)} was changed while it was read: call it again"
                )
            yield row, data

    def _read(self, row: Row, larger: Iterator[tuple[int, bytes | None]]) -> bytes | None:
        if row.path is None:
            return next((held for number, held in larger if number == row.number), None)
        try:
            return row.path.read_bytes()
        except OSError:  # it was there when it was looked at
            return None

    def _notes(self, prepared: Prepared) -> Iterator[str]:
        counts, found = prepared.counts, prepared.inspection
        kept = prepared.num_train + prepared.num_valid
        yield f"{kept:,} of {counts.read:,} images are kept."
        yield (
            f"Their shorter sides are {prepared.side_px_median:,} px at the median and {found['side_px_least']:,} at least; "
            f"their captions, {found['captions']:,} in all, have {prepared.caption_words_median:g} words at the median and "
            f"{prepared.caption_tokens_max_chars:,} characters at most."
        )
        for told, reasons in (("Cannot be used", counts.broken), ("Filtered out", counts.filtered)):
            if reasons:
                number = sum(about.count for about in reasons.values())
                yield f"{told}: {number:,} ({'; '.join(by_reason(reasons))})."
        if NOT_TEXT in counts.broken and not all(detail for *_, detail in counts.broken[NOT_TEXT].first):
            yield "What is not text is often a table in the encoding of an old system: save it as UTF-8."
        if self._outside:
            first = self._first_outside
            yield f"Images that the table names outside of its own folder: {self._outside:,}, the first of them {first}."
        if self.source.num_images is not None and self.source.num_images > found["images_read"]:
            left = self.source.num_images - found["images_read"]
            yield f"Images of the folder that are in no row of the table, and are not read: {left:,}."
        if prepared.num_valid == 0:
            why = (
                f"fewer than {FEWEST_TO_SPLIT} images" if kept < FEWEST_TO_SPLIT else f"a share of {self.valid_share:g}"
            )
            yield f"No image is held out for validation ({why})."
        else:
            few = (
                ""
                if self._share == self.valid_share
                else f" (a share of {self._share:g}, since they are no more than {self.most_valid:,})"
            )
            yield (
                f"Held out for validation: {prepared.num_valid:,}{few}, drawn by their pixels, so that more pictures move none of these."
            )


def _joint_hash(*writers: ShardWriter) -> str:
    """Of all that is in their shards: data that are the same are known by it, whenever they were made."""
    return hashlib.sha256(b"".join(writer.digest.digest() for writer in writers)).hexdigest()[:32]


def _about(row: Row) -> dict[str, Any]:
    """What the .json of an image says beside its captions: what it said before, and where the image comes from."""
    before = {name: value for name, value in json.loads(row.values).items() if name not in _SAID_ONCE}
    file = row.key.encode("utf-8", "backslashreplace").decode()
    return {"file": file} | before | {"width": row.size[0], "height": row.size[1]}
