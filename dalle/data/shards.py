"""Streams of raw samples from webdataset tars, as img2dataset writes them: shuffled by a seed, and resumable at an exact
position.

The data are split into a number of streams that has nothing to do with who reads them. A stream never ends: epoch after
epoch it goes through its part of the shards in a new order. The order depends on the seed, the epoch, and the split
alone, so a position is just (epoch, samples taken in it).
"""

from __future__ import annotations

import glob
import os
import random
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import braceexpand
from webdataset import tariterators
from webdataset.gopen import gopen

_TAR_END_BYTES = 1024
"""A complete tar ends with two zero blocks of 512 bytes."""


def expand(spec: str) -> list[str]:
    """The shards that a specification names, in order.

    Raises:
        ValueError: a local shard does not exist, is empty or is cut off. Checked by size and last bytes, not read.
    """
    shards = names(spec)
    for shard in shards:
        check(shard)
    return shards


def names(spec: str) -> list[str]:
    """The files that a specification names: the path of one file, or paths, globs and `{000..006}` ranges separated by
    spaces, where a backslash takes its meaning from the character after it; or URLs that webdataset opens (`pipe:…`,
    which may hold spaces and so stands alone). Raises ValueError when a glob matches nothing, or nothing is named."""
    if spec.startswith("pipe:") or os.path.isfile(spec):
        return [spec]
    found: list[str] = []
    for pattern in filter(None, re.split(r"(?<!\\)\s+", spec)):
        for name in braceexpand.braceexpand(pattern):  # this also takes the backslashes away
            matches = [name] if _is_url(name) or not glob.has_magic(name) else sorted(glob.glob(name))
            if not matches:
                raise ValueError(f"no shard matches {name!r}")
            found.extend(matches)
    if not found:
        raise ValueError("no files were named")
    return found


def escape(path: str | Path) -> str:
    """A path as part of a specification, whatever characters are in it."""
    return re.sub(r"([\s\\{},])", r"\\\1", glob.escape(str(path)))


def _is_url(name: str) -> bool:
    return ":" in name.split("/")[0]


def check(name: str) -> None:
    """Raises ValueError unless a local file is there and begins and ends as a tar does; URLs are left to reading."""
    if _is_url(name):
        return
    shard = Path(name)
    if shard.is_dir():
        raise ValueError(f"{shard} is a folder; name the .tar files in it, for example '{escape(shard)}/*.tar'")
    if not shard.is_file():
        raise ValueError(f"no such shard: {shard}")
    with shard.open("rb") as file:
        start = file.read(512)
        if not start.strip(b"\0"):
            raise ValueError(f"{shard} is an empty tar: it holds no samples")
        if start[257:262] != b"ustar" and start[:2] != b"\x1f\x8b":
            raise ValueError(f"{shard} is not a tar file")
        if start[:2] != b"\x1f\x8b":  # the end of a compressed tar cannot be told from its last bytes
            file.seek(max(0, shard.stat().st_size - _TAR_END_BYTES))
            if file.read().strip(b"\0"):
                raise ValueError(f"{shard} is cut off: it does not end as a tar does (write it again, or leave it out)")


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


def read(shards: list[str]) -> Iterator[dict[str, bytes]]:
    """Samples of the shards in order: `__key__`, `__url__`, and each file's bytes under its extension.

    Raises:
        ValueError: a shard cannot be read to its end; the line names it
    """
    for shard in shards:
        try:
            yield from tariterators.group_by_keys(_files(shard))
        except OSError as error:
            raise ValueError(f"{shard} cannot be read: {error.strerror or error}") from error
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{shard} is damaged or cut off ({error}): write it again, or leave it out") from error
        except ValueError as error:  # a file of a sample is there twice; webdataset adds to the arguments
            raise ValueError(f"{shard}: {error.args[0]}") from error


class _Header(tarfile.TarInfo):
    """A header that has to be there: at one that is damaged or cut off, tarfile ends a stream in silence, and so would
    webdataset's own reader of tars."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # a block of zeros, as at the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _files(shard: str) -> Iterator[dict]:
    """The files of one shard as `group_by_keys` takes them. A header in every place where one has to be and zeros alone
    behind the end: no more can be checked without sums, and a sample's bytes are checked in decoding."""
    stream = gopen(shard)
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # it would remember them all
            if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):
                yield {"fname": member.name, "data": tar.extractfile(member).read(), "__url__": shard}
        while block := tar.fileobj.read(tarfile.RECORDSIZE):
            if block.strip(b"\0"):
                raise tarfile.ReadError("more comes after its end")
    stream.close()  # where a command feeds the pipe, this tells whether it failed


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

    def iterate(self, start: Position = Position()) -> Iterator[tuple[Position, dict[str, bytes]]]:
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
                raise ValueError(f"{self._part(epoch)[0]} … holds no sample")
            epoch, skip = epoch + 1, 0

    def _epoch(self, epoch: int) -> Iterator[dict[str, bytes]]:
        samples = read(self._part(epoch))
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
