"""Raw samples to image-caption pairs: decoding, filtering, augmentation, counting of what cannot be read.

Every random choice is seeded by (seed, epoch, shard's file name, sample key), so an image meets the same crop whoever
decodes it and wherever the data lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from dalle.config import Images
from dalle.data import images as crops
from dalle.data.captions import BadSample, read_captions
from dalle.data.shards import expand, read

_HOPELESS = 20
"""Unreadable samples in a row at the very start after which waiting for a fraction makes no sense."""


@dataclass
class Pair:
    """One sample: `image` uint8 [Y, X, C], its captions (at least one; "" where none is needed and it has none), its key, and
    what the drawn data set says it shows."""

    key: str
    image: np.ndarray
    captions: list[str]
    scene: dict | None = None


@dataclass
class Counts:
    """What happened to the samples so far. A sample that takes a row counts with the reader that decodes it, one that takes
    none with the reader whose row comes next; so each counts once, but for those that a reader tries as a substitute."""

    read: int = 0
    filtered: int = 0
    bad: dict[str, int] = field(default_factory=dict)

    @property
    def num_bad(self) -> int:
        return sum(self.bad.values())


class Decoder:
    """Raw samples to pairs.

    Args:
        config: filters and augmentation
        size_px: side of the square images
        seed: of the augmentation
        cache_bytes: memory for decoded, reduced images; once full, it keeps what it has
    """

    def __init__(self, config: Images, size_px: int, seed: int, cache_bytes: int = 0):
        self.config, self.size_px, self.seed = config, size_px, seed
        self.counts = Counts()
        self._cache: dict[tuple[str, str], crops.Image.Image] = {}
        self._cache_bytes_left = cache_bytes

    def __call__(self, sample: dict[str, bytes], epoch: int) -> Pair | None:
        """The pair, or None when it is filtered out or bad (then it is counted).

        Raises:
            ValueError: more than `max_bad_fraction` of the samples so far were bad
        """
        captions = self.captions(sample)
        return self.decode(sample, epoch, *captions) if captions else None

    def captions(self, sample: dict[str, bytes], count: bool = True) -> tuple[list[str], dict | None] | None:
        """The captions and the scene, or None when the sample is filtered out, or bad by what can be told without its
        pixels: all readers of a stream agree on it, and those that only pass over the sample need not decode it.

        Args:
            sample: raw
            count: count it if it is None
        """
        reason = None
        try:
            captions, scene = read_captions(sample)
            if not captions:
                if self.config.min_caption_chars > 0:
                    raise BadSample("no caption")
                captions = [""]
            captions = [c for c in captions if len(c) >= self.config.min_caption_chars]
            if captions and self._is_square_enough(sample):
                return captions, scene
        except BadSample as error:
            reason = str(error)
        if count:
            self._count(sample, reason)
        return None

    def decode(self, sample: dict[str, bytes], epoch: int, captions: list[str], scene: dict | None) -> Pair | None:
        """The pair of a sample that `captions` found usable, or None when its pixels do not decode."""
        try:
            image = self._image(sample)
        except ValueError:
            self._count(sample, "image does not decode")
            return None
        self.counts.read += 1
        return Pair(sample["__key__"], np.asarray(self._crop(image, sample, epoch)), captions, scene)

    def _count(self, sample: dict[str, bytes], reason: str | None) -> None:
        """One more that is bad for a reason, or filtered out for none."""
        self.counts.read += 1
        if reason is None:
            self.counts.filtered += 1
            return
        self.counts.bad[reason] = self.counts.bad.get(reason, 0) + 1
        self.check_limit(sample)

    def check_limit(self, sample: dict, at_end: bool = False) -> None:
        """Raises ValueError when too many samples were bad; early on, only when all were."""
        counts = self.counts
        all_bad = counts.num_bad == counts.read >= (1 if at_end else _HOPELESS)
        enough = _HOPELESS if at_end else 5 * _HOPELESS
        many_bad = counts.read >= enough and counts.num_bad > self.config.max_bad_fraction * counts.read
        if all_bad or many_bad:
            reasons = ", ".join(f"{n} × {reason}" for reason, n in counts.bad.items())
            raise ValueError(
                f"{counts.num_bad} of {counts.read} samples cannot be used ({reasons}), last {sample['__key__']} of "
                f"{sample['__url__']}; the limit is images.max_bad_fraction {self.config.max_bad_fraction}"
            )

    def _is_square_enough(self, sample: dict[str, bytes]) -> bool:
        if _place(sample) in self._cache:
            return True  # it would not have been decoded otherwise
        data = _image_bytes(sample)
        try:
            size = crops.header_size(data, self.config.max_pixels)
        except crops.TooManyPixels:
            raise BadSample(f"image over the limit of images.max_pixels {self.config.max_pixels}") from None
        except ValueError:
            raise BadSample("image does not decode") from None
        return max(size) <= self.config.max_aspect_ratio * min(size)

    def _image(self, sample: dict[str, bytes]) -> crops.Image.Image:
        place = _place(sample)
        if place in self._cache:
            return self._cache[place]
        image = crops.decode(_image_bytes(sample))
        if self.config.cache_bytes > 0:
            # no crop asks for more than 1.5 times the size; all images, cached or not, or what is trained on would
            # depend on which were met first
            image = crops.shrink(image, round(1.5 * self.size_px))
        if self._cache_bytes_left > 0:
            self._cache[place] = image
            self._cache_bytes_left -= 3 * image.width * image.height
        return image

    def _crop(self, image: crops.Image.Image, sample: dict, epoch: int) -> crops.Image.Image:
        if self.config.augmentation == "none":
            return crops.centre_crop(image, self.size_px)
        generator = sample_generator(self.seed, epoch, sample)
        if self.config.augmentation == "dvae":
            return crops.dvae_crop(image, self.size_px, generator, self.config.flip)
        return crops.prior_crop(image, self.size_px, generator)


def _place(sample: dict) -> tuple[str, str]:
    return str(sample["__url__"]), sample["__key__"]


def _image_bytes(sample: dict[str, bytes]) -> bytes:
    for extension in crops.EXTENSIONS:
        if extension in sample:
            return sample[extension]
    raise BadSample("no image")


def sample_generator(seed: int, epoch: int, sample: dict) -> np.random.Generator:
    """Of what is chosen at random about a sample, in an epoch."""
    shard = sample["__url__"].rpartition("/")[2]
    text = f"{seed} {epoch} {shard} {sample['__key__']}"
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))


def read_pairs(
    spec: str, config: Images, size_px: int, seed: int = 0, epoch: int = 0, counts: Counts | None = None
) -> Iterator[Pair]:
    """One pass over the shards in order; what happened to the samples is added to `counts`."""
    decoder = Decoder(config, size_px, seed)
    if counts is not None:
        decoder.counts = counts
    sample = None
    for sample in read(expand(spec)):
        if (pair := decoder(sample, epoch)) is not None:
            yield pair
    if sample is not None:
        decoder.check_limit(sample, at_end=True)
