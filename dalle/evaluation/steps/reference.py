"""Real images to compare with: read twice, once for what they are and once for their pixels, so that none are held."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dalle.config import EVERY_IMAGE
from dalle.data.counts import Counts
from dalle.data.samples import Pair, read_pairs

RESIZER = "shorter side by exact area, central square"


@dataclass(frozen=True)
class Reference:
    """Real images of one size.

    Args:
        spec: the shards
        size_px: side of the images
        shards: path or URL of each image's shard
        keys: its name there
        digests: of each image's pixels, by which it is known wherever its shard lies
        captions: of each, the first one; "" of one that has none
        scenes: what the drawn data set says of each; null elsewhere
        hash: SHA-256 of all pixels, in order
        line: how many samples were used, filtered and broken, in words
    """

    spec: str
    size_px: int
    shards: list[str]
    keys: list[str]
    digests: list[str]
    captions: list[str]
    scenes: list[dict[str, Any] | None]
    hash: str
    line: str

    def __len__(self) -> int:
        return len(self.keys)

    def batches(self, size: int, numbers: Iterable[int] | None = None) -> Iterator[np.ndarray]:
        """Images uint8 [B, Y, X, 3], `size` at a time and at last fewer.

        Args:
            size: of a batch
            numbers: of the images wanted; null gives all
        """
        images = (image for _, image in self.images(range(len(self)) if numbers is None else numbers))
        while batch := list(itertools.islice(images, size)):
            yield np.stack(batch)

    def images(self, numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(number, image) of those wanted, in the order of the shards."""
        wanted = set(numbers)
        for number, pair in enumerate(itertools.islice(_pairs(self.spec, self.size_px), len(self))):
            if number in wanted:
                yield number, pair.image


def read_reference(spec: str, size_px: int, most: int | None) -> Reference:
    """The first pass.

    Raises:
        ValueError: nothing can be read, or there are fewer than two images
    """
    counts, digest = Counts(), hashlib.sha256()
    shards, keys, digests, captions, scenes = [], [], [], [], []
    for pair in itertools.islice(_pairs(spec, size_px, counts), most):
        shards.append(pair.shard)
        keys.append(pair.key)
        captions.append(pair.captions[0])
        scenes.append(pair.scene)
        digests.append(hashlib.blake2b(pair.image.tobytes(), digest_size=16).hexdigest())
        digest.update(pair.image.tobytes())
    if len(keys) < 2:
        raise ValueError(f"reference {spec}: a distance needs two images or more, and there is {len(keys)}; name more")
    return Reference(spec, size_px, shards, keys, digests, captions, scenes, digest.hexdigest(), counts.line())


def _pairs(spec: str, size_px: int, counts: Counts | None = None) -> Iterator[Pair]:
    return read_pairs(spec, EVERY_IMAGE, size_px, counts=counts)
