"""One image of a source before anything of it is read, and how it becomes a raw sample: the form in which `dalle.data.shards`
reads tars, so that what holds for captions and images there holds here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle.data.captions import json_values, read_lines
from dalle.data.counts import Broken, Filtered, LeftOut, OtherFile

IMAGE = "png"
"""The extension under which an item has its image, whatever the format: that is told by the bytes."""
_KINDS = (Broken, Filtered, OtherFile)
_MOST_IMAGE_BYTES, _MOST_TEXT_BYTES = 1 << 30, 1 << 26
"""Of a file that is read whole: a larger one could fill the memory, and is no picture that is used and no caption."""


@dataclass(frozen=True)
class Fate:
    """Why something was left out, as plain values: exceptions of two arguments do not pass from process to process."""

    kind: str
    reason: str
    detail: str = ""

    @classmethod
    def of(cls, error: LeftOut) -> Fate:
        """That of what was raised."""
        return cls(type(error).__name__, error.reason, error.detail)

    def error(self) -> LeftOut:
        """To be counted, or raised."""
        return next(kind for kind in _KINDS if kind.__name__ == self.kind)(self.reason, self.detail)


@dataclass(frozen=True)
class Item:
    """An image and its captions, where they lie.

    Args:
        url: the folder, table or shard
        key: its name there
        files: bytes, or the path of a file that holds them, by extension, the image's being `IMAGE`; and the marks of `dalle.data.shards.read`
        captions: those of a table, a name or a folder; null where the files hold them
        fate: known before anything is read
        is_outside: whether a table names an image that is not below its folder
    """

    url: str
    key: str
    files: dict[str, Any] = field(default_factory=dict)
    captions: tuple[str, ...] | None = None
    fate: Fate | None = None
    is_outside: bool = False

    @property
    def path(self) -> Path | None:
        """Of the image, where it is a file of its own."""
        found = self.files.get(IMAGE)
        return found if isinstance(found, Path) else None

    def sample(self) -> dict[str, Any]:
        """The raw sample. Raises LeftOut where a file cannot be read."""
        if self.fate is not None:
            raise self.fate.error()
        sample: dict[str, Any] = {"__key__": self.key, "__url__": self.url}
        for name, held in self.files.items():
            sample[name] = _bytes(held, name) if isinstance(held, Path) else held
        if self.captions is not None:
            sample["json"] = json.dumps({"captions": list(self.captions)}).encode()
        elif isinstance(path := self.files.get("txt"), Path):
            _split_lines(sample, path)
        return sample


def _bytes(path: Path, name: str) -> bytes:
    most = _MOST_IMAGE_BYTES if name == IMAGE else _MOST_TEXT_BYTES
    try:
        if (size := path.stat().st_size) > most:
            raise Broken(f"a file of over {most >> 20:,} MiB", f"{size:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise Broken("a file cannot be read", f"{error.strerror}") from None


def _split_lines(sample: dict[str, Any], path: Path) -> None:
    """Several lines of a .txt beside an image are several captions, unless its .json has some, which go before."""
    try:
        lines = list(read_lines(str(path)))
    except ValueError:
        return  # left as it is, for which there is a reason where captions are read
    extra, is_json = json_values(sample)
    if len(lines) > 1 and is_json and not extra.get("captions"):
        sample["json"] = json.dumps(extra | {"captions": lines}).encode()
