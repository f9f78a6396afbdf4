"""Images and captions as webdataset shards, and small pictures of them for the page."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from dalle.data import images

SHARD_IMAGES = 1000
SHARD_BYTES = 512 << 20
_THUMBNAIL_PX = 112


class ShardWriter:
    """`NAME-000.tar` and so on, in order. The bytes depend on what is added alone.

    Args:
        folder: that is there
        name: "train" or "valid"

    `digest` is of all that was added, names and bytes.
    """

    def __init__(self, folder: Path, name: str):
        self._folder, self._name = folder, name
        self._tar: tarfile.TarFile | None = None
        self._file: IO[bytes] | None = None
        self.shards: list[str] = []
        self.digest = hashlib.sha256()
        self._images = self._bytes = 0

    def add(self, extension: str, image: bytes, captions: list[str], about: dict[str, Any]) -> None:
        """One more image.

        Args:
            extension: jpg, png or webp
            image: bytes
            captions: at least one, the first of which is the .txt
            about: further values of the .json
        """
        if self._tar is None or self._images == SHARD_IMAGES or self._bytes >= SHARD_BYTES:
            self.close()
            self.shards.append(f"{self._name}-{len(self.shards):03d}.tar")
            self._file = open(self._folder / self.shards[-1], "wb")  # noqa: SIM115 (closed by `close`)
            self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
            self._images = self._bytes = 0
        key = f"{len(self.shards) - 1:05d}{self._images:04d}"
        self._add(f"{key}.{extension}", image)
        self._add(f"{key}.txt", captions[0].encode())
        self._add(f"{key}.json", json.dumps(about | {"captions": captions}).encode())
        self._images += 1

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)  # its defaults, time 0 and no owner, are the same everywhere
        info.size = len(data)
        assert self._tar is not None
        self._tar.addfile(info, io.BytesIO(data))
        self.digest.update(b"%s %d\n" % (name.encode(), len(data)))
        self.digest.update(data)
        self._bytes += len(data)

    def close(self) -> None:
        """Complete the last shard."""
        if self._tar is not None and self._file is not None:
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())  # before it gets its name in the output
            self._file.close()
            self._tar = None

    def let_go(self) -> None:
        """Close the file of a shard that did not come to its end, which would keep its place on the disk."""
        if self._file is not None:
            with suppress(OSError):  # what is written at last finds no more room than what was before
                self._file.close()

    def names(self) -> list[str]:
        """What the shards are to be called: their numbers as long as the last, so that a range names them."""
        digits = max(3, len(str(len(self.shards) - 1)))
        return [f"{self._name}-{number:0{digits}d}.tar" for number in range(len(self.shards))]

    def spec(self) -> str | None:
        """All of these names as `dalle.data.naming` reads them; null where there are none."""
        names = self.names()
        if len(names) < 2:
            return names[0] if names else None
        first, last = (re.sub(r"\D", "", name[len(self._name) :]) for name in (names[0], names[-1]))
        return f"{self._name}-{{{first}..{last}}}.tar"


def encode_png(data: bytes) -> bytes:
    """An image of another format as a PNG of the same pixels, as a person sees them."""
    file = io.BytesIO()
    images.decode(data).save(file, "PNG")
    return file.getvalue()


def thumbnail(data: bytes) -> str:
    """A small picture as a URL that holds it."""
    image = images.shrink(images.decode(data), _THUMBNAIL_PX)
    if max(image.size) > 2 * _THUMBNAIL_PX:  # of a very long one its beginning
        image = image.crop((0, 0, min(image.width, 2 * _THUMBNAIL_PX), min(image.height, 2 * _THUMBNAIL_PX)))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=70)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
