"""What is known of pictures that were prepared: told to the person, and to the training that follows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dalle.config import plain_json
from dalle.data.counts import Counts
from dalle.data.naming import escape
from dalle.outputs.whole import replace_text

FILE = "prepared.json"
PAGE = "report.html"


@dataclass(frozen=True)
class Prepared:
    """A folder of shards that a training can take.

    Args:
        kind: of the source, in words: "a folder of images with .txt files"
        num_train: images to train on
        num_valid: images held out
        train: the training shards, as `--data` takes them
        valid: the held-out shards likewise; null where there are none
        counts: what became of the images
        caption_words_median: words of the captions that were kept
        caption_tokens_max_chars: characters of the longest caption that was kept
        captions_per_image: of the images that were kept, on average
        side_px_median: shorter side of the images that were kept
        notes: sentences for the person: what was found, and what was done about it
        caption_counts: what became of the captions of images that decode
        inspection: further figures of what was found, by name
    """

    kind: str
    num_train: int
    num_valid: int
    train: str
    valid: str | None
    counts: Counts
    caption_words_median: float
    caption_tokens_max_chars: int
    captions_per_image: float
    side_px_median: int
    notes: list[str]
    caption_counts: Counts = field(default_factory=Counts)
    inspection: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """As `prepared.json` of a folder, whose shards it names without it: the folder may be moved."""
        replace_text(folder / FILE, json.dumps(asdict(self), indent=1))

    def within(self, folder: Path) -> Prepared:
        """The same with the shards of a folder."""
        valid = None if self.valid is None else f"{escape(folder)}/{self.valid}"
        return replace(self, train=f"{escape(folder)}/{self.train}", valid=valid)


def read_prepared(output: str | Path) -> Prepared | None:
    """What an earlier call prepared in a folder; null where it did not come to its end. Raises ValueError for another file of
    that name."""
    path = Path(output) / FILE
    if not path.is_file():
        return None
    try:
        values = plain_json.read(path, infinite=True)
        counts = {name: Counts.from_json(values[name]) for name in ("counts", "caption_counts")}
        return plain_json.made(Prepared, values | counts, str(path)).within(Path(output))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = error.what if isinstance(error, plain_json.Damaged) else error
        raise ValueError(
            f"{path} was not written by dalle-filter ({what}): delete it, or name another folder"
        ) from None
