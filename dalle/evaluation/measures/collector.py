"""Images of one set, as sums that all measures are made of: at every blur radius, in one pass and flat memory."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from dalle.evaluation.features.contract import Features
from dalle.evaluation.features.images import check_images
from dalle.evaluation.measures.blur import RADII_PX, blurred
from dalle.evaluation.measures.class_score import ClassScore
from dalle.evaluation.measures.moments import Moments
from dalle.evaluation.measures.sample import Sample


@dataclass(frozen=True)
class Source:
    """What features came from: `contract.Features` without its network."""

    name: str
    hash: str
    width: int
    resizer: str


class Sums:
    """Of one set at one radius. `classes` is null until logits have come, and stays so where the network has none."""

    def __init__(self, num_images: int, width: int, most: int, seed: int):
        self.moments = Moments(width)
        self.sample = Sample(num_images, most, width, seed)
        self.classes: ClassScore | None = None

    def merge(self, other: Sums) -> None:
        self.moments.merge(other.moments)
        self.sample.merge(other.sample)
        if self.classes is None:
            self.classes = deepcopy(other.classes)  # which go on being the other's
        elif other.classes is not None:
            self.classes.merge(other.classes)


class Collected:
    """What was collected of a set, without the network: processes can send it to one another.

    Args:
        source: of the features
        num_images: in all
        radii_px: blur radii
        seed: of the sample
        sample: images of which features are kept, at most
    """

    def __init__(self, source: Source, num_images: int, radii_px: Sequence[float], seed: int, sample: int):
        if num_images < 2:
            raise ValueError(f"{num_images} images: measures of a set need at least 2; give more")
        if not radii_px or min(radii_px) < 0 or len(set(radii_px)) < len(radii_px):
            raise ValueError(f"blur radii {list(radii_px)}: they must be different, in pixels, and at least 0")
        if sample < 2:
            raise ValueError(f"sample {sample}: must be at least 2, to compare")
        self.source, self.num_images, self.seed = source, num_images, seed
        self.image_size: tuple[int, int] | None = None
        self.seen_N = np.zeros(num_images, dtype=bool)
        self.at = {float(radius): Sums(num_images, source.width, sample, seed) for radius in radii_px}

    def place(self, image_size: tuple[int, int], indices_B: np.ndarray) -> None:
        """Note images as seen. Raises ValueError, before anything is changed, where they are of another size than those
        before, are out of range or have been seen."""
        if self.image_size not in (None, image_size):
            sizes = [f"{x}×{y} px" for y, x in (image_size, self.image_size)]
            raise ValueError(f"images of {sizes[0]} after some of {sizes[1]}: resize or crop all to one size first")
        first, last = int(indices_B.min()), int(indices_B.max())
        if first < 0 or last >= self.num_images or len(np.unique(indices_B)) < len(indices_B):
            raise ValueError(
                f"images {first} to {last} of {self.num_images}: they must differ and be in 0 to {self.num_images - 1}"
            )
        if self.seen_N[indices_B].any():
            again = int(indices_B[self.seen_N[indices_B]][0])
            raise ValueError(f"image {again} was added twice; add each once")
        self.image_size = image_size
        self.seen_N[indices_B] = True

    def merge(self, other: Collected) -> None:
        """Add what another process has collected of other images of the same set.

        Raises:
            ValueError: it is of another set, other features or settings, or shares images with this
        """
        mine, theirs = (
            (c.source, c.num_images, c.seed, list(c.at), [len(s.sample.chosen_M) for s in c.at.values()])
            for c in (self, other)
        )
        if mine != theirs:
            raise ValueError(
                f"collected with {theirs[0].name}, {theirs[1:]}, which cannot join {mine[0].name}, {mine[1:]} "
                "(images, seed, radii, sample); collect both alike"
            )
        if other.image_size is None:
            return
        self.place(other.image_size, np.flatnonzero(other.seen_N))
        for radius, sums in self.at.items():
            sums.merge(other.at[radius])

    def check_complete(self) -> None:
        """Raises ValueError where images are missing."""
        seen = int(self.seen_N.sum())
        if seen < self.num_images:
            raise ValueError(f"only {seen} of {self.num_images} images were added; add all of them")


class Collector:
    """Takes batches of images of a set, and keeps sums of them. The sums are the same to the last digit where images come in
    the same batches and order.

    Args:
        features: the network
        num_images: of the whole set, whoever collects it
        radii_px: blur radii; every image goes through the network once for each
        seed: of the sample for measures that compare all with all
        sample: images in it, at most
    """

    def __init__(
        self,
        features: Features,
        num_images: int,
        radii_px: Sequence[float] = RADII_PX,
        seed: int = 0,
        sample: int = 10_000,
    ):
        self._features = features
        source = Source(features.name, features.hash, features.width, features.resizer)
        self.collected = Collected(source, num_images, radii_px, seed, sample)
        self._next = 0

    def add(self, images_BYX3: np.ndarray, indices_B: Sequence[int] | np.ndarray | None = None) -> None:
        """Images of the set.

        Args:
            images_BYX3: uint8, all of the set of one size
            indices_B: their places in the set, where this process has not all of it or they come in another order; null
                goes on behind the last

        Raises:
            ValueError: they are no such images, of another size than those before, too many, or were added before
        """
        check_images(images_BYX3)
        if indices_B is None:
            indices_B = np.arange(self._next, self._next + len(images_BYX3))
        indices_B = np.asarray(indices_B, dtype=np.int64)
        if len(indices_B) != len(images_BYX3):
            raise ValueError(f"{len(indices_B)} indices of {len(images_BYX3)} images; give one for each")
        size = images_BYX3.shape[1:3]
        self.collected.place((int(size[0]), int(size[1])), indices_B)
        for radius, sums in self.collected.at.items():
            seen = self._features(blurred(images_BYX3, radius))
            if not np.isfinite(seen.features_BE).all():
                raise ValueError(
                    f"{self._features.name} gives features that are not finite: its weights are broken; take another --features"
                )
            sums.moments.add(seen.features_BE)
            sums.sample.add(indices_B, seen.features_BE)
            if seen.logits_BK is not None:
                if sums.classes is None:
                    sums.classes = ClassScore(self.collected.num_images, seen.logits_BK.shape[1])
                sums.classes.add(indices_B, seen.logits_BK)
        self._next = int(indices_B[-1]) + 1

    def merge(self, other: Collector | Collected) -> None:
        """Add what another process has collected of other images of the same set (`Collected.merge`)."""
        self.collected.merge(other.collected if isinstance(other, Collector) else other)
