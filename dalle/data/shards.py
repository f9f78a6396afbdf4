"""Streams of raw samples from webdataset tars, as img2dataset writes them: shuffled by a seed, and resumable at an exact
position.

The data are split into a number of streams that has nothing to do with who reads them. A stream never ends: epoch after
epoch it goes through its part of the shards in a new order. The order depends on the seed, the epoch, and the split
alone, so a position is just (epoch, samples taken in it).
"""

from __future__ import annotations

import random
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from dalle.data.images import EXTENSIONS
from dalle.data.naming import is_url

IMAGES = frozenset(EXTENSIONS)
_KINDS = IMAGES | {"txt", "json"}
_CAPTION = re.compile(rb'(?i)"(captions?|text|prompt)"\s*:(?!\s*(null|""|\[\s*\]))')
"""In a json, what begins a caption that is there."""
APART_BYTES = 128 << 20
"""Of the samples that wait for their other file, over all streams of a data set."""


@dataclass(frozen=True)
class Split:
    """Which part of the data a stream takes: number `index` of `count` streams."""

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class Position:
    """Where a stream stands: the epoch, and how many samples of it were taken."""

    epoch: int = 0
    sample: int = 0


def num_streams(num_shards: int, batch_size: int, most: int) -> int:
    """Into how many streams a data set is split: at most `most`, so many that each has the same share of a batch, and
    that no stream gets far fewer shards than another: their number is divided evenly, or each has eight or more."""
    return max(
        count
        for count in range(1, min(most, batch_size) + 1)
        if batch_size % count == 0 and (num_shards % count == 0 or 8 * count <= num_shards)
    )


def read(shards: list[str], apart_bytes: int = APART_BYTES) -> Iterator[dict]:
    """Samples of the shards: `__key__`, `__url__`, and each file's bytes under its extension. They come in the order of
    the shard, but those whose image or caption is missing come when the window or the shard is at its end: the other file
    may be farther on.

    A sample's files share their name up to the last dot. Where a key comes twice in a shard, the second is `key (2)`. What
    is neither an image nor a caption comes as a sample with `__other__`, the kind of file. Other marks are `__apart__`,
    where a window was left without the other file; `__beside__`, the key of a whole sample, for an image `a.b.png` beside
    `a.png` and `a.txt`; and `__twice__`, a file that is there twice.

    Args:
        shards: from `expand`
        apart_bytes: of the samples that wait for their other file

    Raises:
        ValueError: a shard cannot be read to its end; the line names it
    """
    for shard in shards:
        try:
            gathering = _Gathering(shard, apart_bytes)
            yield from gathering.samples()
        except OSError as error:
            raise ValueError(
                f"{shard} cannot be read: {error.strerror or error}; see that it is there and may be read"
            ) from error
        except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
            raise ValueError(f"{shard} is damaged or cut off ({error}): write it again, or leave it out") from error


class _Header(tarfile.TarInfo):
    """A header that has to be there: at one that is damaged or cut off, tarfile ends a stream in silence, and so would
    webdataset's own reader of tars."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros, as at the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _files(shard: str) -> Iterator[tuple[str, str, bytes | None]]:
    """The files of one shard: key, kind, bytes; of those that are no part of a sample the whole name, and no bytes. A
    header in every place where one has to be and zeros alone behind the end: no more can be checked without sums, and a
    sample's bytes are checked in decoding."""
    stream = _opened(shard)
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header, encoding="utf-8") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would remember them all; typeshed has it not
            if member.isdir() or re.match(r"__[^/]*__($|/)", member.name):
                continue
            key, dot, extension = member.name.rpartition(".")
            extension = extension.lower()
            if not member.isreg() or member.issparse():  # whose holes would be read as zeros without end
                yield member.name, "link" if not member.isreg() else "other", None
            elif dot and extension in _KINDS and not member.name.rpartition("/")[2].startswith("."):
                file = tar.extractfile(member)
                assert file is not None
                yield key, extension, file.read()
            else:
                yield member.name, "other", None
        while block := tar.fileobj.read(tarfile.RECORDSIZE):
            if block.strip(b"\0"):
                raise tarfile.ReadError("more comes after its end")
    stream.close()  # where a command feeds the pipe, this tells whether it failed


def _opened(shard: str) -> IO[bytes]:
    """Not by webdataset where it is a file: it takes names such as `pipe:x;` for commands."""
    if not is_url(shard):
        return open(shard, "rb")
    from webdataset.gopen import gopen  # imports PyTorch, which readers of files alone need not wait for

    return gopen(shard)


class _Gathering:
    """The samples of one shard from its files, which need not lie side by side."""

    def __init__(self, shard: str, apart_bytes: int):
        self.shard, self.apart_bytes = shard, apart_bytes
        self._waiting: dict[str, dict] = {}  # by key, in the order of their first files
        self.num_bytes = 0
        self._times: dict[str, int] = {}  # how often each key was handed on

    def samples(self) -> Iterator[dict]:
        last = ""
        for key, kind, data in _files(self.shard):
            if data is None:
                yield {"__key__": key, "__url__": self.shard, "__other__": kind}
                continue
            # what comes after its other file was handed on waits for nothing, and would take the place of what does
            if key != last and last in self._waiting and (last in self._times or _is_whole(self._waiting[last])):
                yield self._hand_on(last)
            last = key
            if kind in self._waiting.get(key, {}):
                if not _is_whole(self._waiting[key]):
                    self._waiting[key]["__twice__"] = kind
                    continue
                yield self._hand_on(key)
            self._waiting.setdefault(key, {"__key__": key, "__url__": self.shard})[kind] = data
            self.num_bytes += len(data)
            while self.num_bytes > self.apart_bytes and (oldest := next(iter(self._waiting))) != key:
                yield self._hand_on(oldest) | {"__apart__": True}
        for key in sorted(self._waiting, key=lambda key: not _is_whole(self._waiting[key])):  # stable
            yield self._hand_on(key)

    def _hand_on(self, key: str) -> dict:
        sample = self._waiting.pop(key)
        self.num_bytes -= sum(len(data) for name, data in sample.items() if not name.startswith("__"))
        self._times[key] = times = self._times.get(key, 0) + 1
        if times > 1:
            sample["__key__"] = f"{key} ({times})"
        if _is_whole(sample):
            return sample
        if times > 1:
            sample["__apart__"] = True
        for dot in re.finditer(r"\.", key):
            if key[: dot.start()] in self._times:
                sample["__beside__"] = key[: dot.start()]
        return sample


def _is_whole(sample: dict) -> bool:
    """Whether it has both an image and a caption, as far as can be told at a glance: what is mistaken merely waits."""
    return not IMAGES.isdisjoint(sample) and ("txt" in sample or _CAPTION.search(sample.get("json", b"")) is not None)


class ShardStream:
    """An endless shuffled stream of raw samples.

    Args:
        shards: from `expand`
        seed: of the order
        shuffle_buffer: samples among which the order is shuffled; 0 keeps the order of the shards
        split: the part to read. Of each epoch's order of the shards, stream v of V takes whole every V-th from v on; there
            are no more streams than shards.
    """

    def __init__(self, shards: list[str], seed: int, shuffle_buffer: int, split: Split = Split()):
        self.shards, self.seed, self.shuffle_buffer, self.split = shards, seed, shuffle_buffer, split

    def iterate(self, start: Position = Position()) -> Iterator[tuple[Position, dict]]:
        """Samples from a position on, each with the position that follows it.

        Samples before the position are read and thrown away undecoded, at most one epoch of them.
        """
        epoch, skip = start.epoch, start.sample
        while True:
            count = 0
            for count, sample in enumerate(self._epoch(epoch), 1):
                if count > skip:
                    yield Position(epoch, count), sample
            if count == 0:
                raise ValueError(f"{self._part(epoch)[0]} … holds no sample; name shards that do")
            epoch, skip = epoch + 1, 0

    def _epoch(self, epoch: int) -> Iterator[dict]:
        samples = read(self._part(epoch), APART_BYTES // self.split.count)
        if not self.shuffle_buffer:
            return samples
        return _shuffled(samples, self.shuffle_buffer, random.Random(f"{self.seed} {epoch} {self.split.index}"))

    def _part(self, epoch: int) -> list[str]:
        order = list(self.shards)
        if self.shuffle_buffer:
            random.Random(f"{self.seed} {epoch} shards").shuffle(order)
        return order[self.split.index :: self.split.count]


def _shuffled(samples: Iterator[dict], size: int, generator: random.Random) -> Iterator[dict]:
    buffer: list[dict] = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        at = generator.randrange(size)
        yield buffer[at]
        buffer[at] = sample
    generator.shuffle(buffer)
    yield from buffer
