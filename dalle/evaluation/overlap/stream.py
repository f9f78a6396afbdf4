"""The images of shards one after another, and again those of them that are to be shown."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from dalle.config import Images
from dalle.data.counts import Counts, LeftOut
from dalle.data.samples import Decoder
from dalle.data.shards import Position, read


@dataclass(frozen=True)
class Place:
    """Where an image lies.

    Args:
        shard: number of the shard in the order of its set
        key: of the sample, which no other of the shard has
        captions: none where it has none
    """

    shard: int
    key: str
    captions: tuple[str, ...] = ()


class ImageStream:
    """All images of shards in order, each as a model sees it: the central square, `size_px` wide.

    Args:
        shards: paths or URLs, in order
        images: which are kept; its augmentation is not used
        size_px: side
        counts: of the samples before `start`; what becomes of the rest is added
        start: shard, and samples of it, that were read before
    """

    def __init__(
        self,
        shards: list[str],
        images: Images,
        size_px: int,
        counts: Counts | None = None,
        start: Position | None = None,
    ):
        self.shards, self.images = shards, replace(images, augmentation="none")
        self.counts = Counts() if counts is None else counts
        self._decoder = Decoder(self.images, size_px, seed=0)
        self._start = start or Position()

    def __iter__(self) -> Iterator[tuple[Position, Place, np.ndarray]]:
        """The position behind an image (`epoch` is the number of the shard), its place, and itself, uint8 [Y, X, 3].

        Raises:
            ValueError: too many samples were broken, or a shard is damaged
        """
        for number, shard in enumerate(self.shards[self._start.epoch :], self._start.epoch):
            skip = self._start.sample if number == self._start.epoch else 0
            for taken, sample in enumerate(read([shard]), 1):
                if taken <= skip:
                    continue
                try:
                    pair = self._decoder(sample, 0)
                except LeftOut as error:
                    self.counts.add(sample, error)
                    self.counts.check_limit(self.images.max_bad_fraction)
                    continue
                self.counts.add(sample)
                yield Position(number, taken), Place(number, pair.key, tuple(filter(None, pair.captions))), pair.image
        if self.counts.read:
            self.counts.check_limit(self.images.max_bad_fraction, at_end=True)


def pictures(
    shards: list[str], images: Images, size_px: int, places: Iterable[Place]
) -> Iterator[tuple[Place, np.ndarray]]:
    """The images at these places, shard by shard; each shard that holds one is read once, as far as it takes.

    Raises:
        ValueError: one is no longer there
    """
    wanted: dict[int, dict[str, Place]] = defaultdict(dict)
    for place in places:
        wanted[place.shard][place.key] = place
    decoder = Decoder(replace(images, augmentation="none"), size_px, seed=0)
    for number, keys in sorted(wanted.items()):
        for sample in read([shards[number]]):
            if sample["__key__"] in keys:
                place = keys.pop(sample["__key__"])
                try:
                    image = decoder(sample, 0).image
                except LeftOut as error:
                    raise _changed(shards[number], place.key) from error
                yield place, image
                if not keys:
                    break
        if keys:
            raise _changed(shards[number], next(iter(keys)))


def shard_name(path: str) -> str:
    """What a shard is called wherever it lies."""
    return os.path.basename(path) or path


def _changed(shard: str, key: str) -> ValueError:
    return ValueError(f"{shard}: has no image {key} any more: the shard was changed; embed it anew with --overwrite")
