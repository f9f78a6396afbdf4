"""Raw samples to image-caption pairs: decoding, filtering, augmentation, and why there is none.

Every random choice is seeded by (seed, epoch, shard's file name, sample key), so an image meets the same crop whoever
decodes it and wherever the data lies.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dalle.config import Images
from dalle.data import images as crops
from dalle.data.captions import no_caption, no_image, read_captions
from dalle.data.counts import Broken, Counts, Filtered, LeftOut, place
from dalle.data.naming import expand
from dalle.data.shards import read


@dataclass
class Pair:
    """One sample: `image` uint8 [Y, X, C], its captions (at least one; "" where none is needed and it has none), its key, what
    the drawn data set says it shows, and the path or URL of its shard."""

    key: str
    image: np.ndarray
    captions: list[str]
    scene: dict | None = None
    shard: str = ""


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
        self._cache: dict[tuple[str, str], crops.Image.Image] = {}
        self._cache_bytes_left = cache_bytes

    def __call__(self, sample: dict, epoch: int) -> Pair:
        """The pair. Raises Filtered or Broken when it has none."""
        return self.decode(sample, epoch, *self.captions(sample))

    def captions(self, sample: dict) -> tuple[list[str], dict | None]:
        """The captions and the scene. All readers of a stream agree on what is raised here, and those that only pass over
        the sample need not decode it.

        Raises:
            LeftOut: it is filtered out, or broken by what can be told without its pixels
        """
        captions, scene = read_captions(sample)
        least = self.config.min_caption_chars
        if not captions:
            if least > 0:
                raise no_caption(sample)
            captions = [""]
        captions = [c for c in captions if len(c) >= least]
        if not captions:
            raise Filtered(f"caption shorter than images.min_caption_chars {least}")
        self._check_sides(sample)
        return captions, scene

    def decode(self, sample: dict, epoch: int, captions: list[str], scene: dict | None) -> Pair:
        """The pair of a sample that `captions` found usable. Raises Broken when its pixels do not decode."""
        image = self.image(sample)
        return Pair(
            sample["__key__"], np.asarray(self._crop(image, sample, epoch)), captions, scene, str(sample["__url__"])
        )

    def _check_sides(self, sample: dict) -> None:
        if place(sample) in self._cache:
            return  # it would not have been decoded otherwise
        data = image_bytes(sample)
        try:
            size = crops.header_size(data, self.config.max_pixels)
        except crops.TooManyPixels as error:
            raise Filtered(
                f"more pixels than the limit, images.max_pixels {self.config.max_pixels}", error.size
            ) from None
        except ValueError as error:
            raise _undecodable(error) from None
        if max(size) > self.config.max_aspect_ratio * min(size):
            raise Filtered(
                f"longer than images.max_aspect_ratio {self.config.max_aspect_ratio:g} times its shorter side",
                f"{size[0]}×{size[1]}",
            )

    def image(self, sample: dict) -> crops.Image.Image:
        """The image of a raw sample before any crop, reduced where images are cached. Raises Broken when it does not decode."""
        where = place(sample)
        if where in self._cache:
            return self._cache[where]
        try:
            image = crops.decode(image_bytes(sample))
        except ValueError as error:
            raise _undecodable(error) from None
        if self.config.cache_bytes > 0:
            # no crop asks for more than 1.5 times the size; all images, cached or not, or what is trained on would
            # depend on which were met first
            image = crops.shrink(image, round(1.5 * self.size_px))
        if self._cache_bytes_left > 0:
            self._cache[where] = image
            self._cache_bytes_left -= 3 * image.width * image.height
        return image

    def _crop(self, image: crops.Image.Image, sample: dict, epoch: int) -> crops.Image.Image:
        if self.config.augmentation == "none":
            return crops.centre_crop(image, self.size_px)
        generator = sample_generator(self.seed, epoch, sample)
        if self.config.augmentation == "dvae":
            return crops.dvae_crop(image, self.size_px, generator, self.config.flip)
        crop = crops.prior_crop if self.config.augmentation == "prior" else crops.clip_crop
        return crop(image, self.size_px, generator)


def image_bytes(sample: dict) -> bytes:
    """The image of a raw sample, not decoded. Raises Broken where there is none, or more than one."""
    images = [extension for extension in crops.EXTENSIONS if extension in sample]
    if not images:
        raise no_image(sample)
    if len(images) > 1:
        raise Broken("two images of one name", ", ".join(images))
    return sample[images[0]]


def _undecodable(error: ValueError) -> Broken:
    # without the place in memory of what Pillow could not identify
    detail = re.sub(r" <_io\S* object at \w+>", "", str(error))
    return Broken("image does not decode", detail.removeprefix("image does not decode: "))


def sample_generator(seed: int, epoch: int, sample: dict) -> np.random.Generator:
    """Of what is chosen at random about a sample, in an epoch."""
    shard = str(sample["__url__"]).rpartition("/")[2]
    text = f"{seed} {epoch} {shard} {sample['__key__']}"
    # names of tars may hold bytes that are no text
    data = text.encode("utf-8", "backslashreplace")
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big"))


def read_pairs(
    spec: str | Sequence[str],
    config: Images,
    size_px: int,
    seed: int = 0,
    epoch: int = 0,
    counts: Counts | None = None,
) -> Iterator[Pair]:
    """One pass over the shards in order, of a specification or by name; what happened to the samples is added to `counts`.

    Raises:
        ValueError: too many samples were broken, or none can be used
    """
    decoder = Decoder(config, size_px, seed)
    counts = Counts() if counts is None else counts
    found = False
    for sample in read(expand(spec, config.pipes) if isinstance(spec, str) else list(spec)):
        try:
            pair = decoder(sample, epoch)
        except LeftOut as error:
            counts.add(sample, error)
            counts.check_limit(config.max_bad_fraction)
            continue
        counts.add(sample)
        found = True
        yield pair
    if counts.read:
        counts.check_limit(config.max_bad_fraction, at_end=True)
    if not found:
        named = spec if isinstance(spec, str) else spec[0] if len(spec) == 1 else f"{spec[0]} and {len(spec) - 1} more"
        raise ValueError(f"{named}: no sample can be used: {counts.line()}; name shards of images with captions")
