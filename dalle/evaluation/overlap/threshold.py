"""From which cosine on an image is taken for a copy of another, where nobody looked.

The paper sorts pairs by closeness and a person chooses a conservative threshold on the pictures (section 3.2). The
suggestion is conservative in the same sense, rather too many images left out than too few, and measured on the network at
hand: evaluation images are altered as copies on the web are, and the threshold is put where nearly all of those would be
found. It knows nothing of pictures that are alike and no copies, so a person should look.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dalle.evaluation.features.contract import Features
from dalle.evaluation.overlap.nearest import unit

FOUND_PERCENT = 95
"""Of the altered copies that are to lie at or above the suggested threshold."""
MOST_IMAGES = 256
"""That are altered."""


@dataclass(frozen=True)
class Threshold:
    """From which cosine on an evaluation image is left out.

    Args:
        cosine: the threshold
        how: it came about, in words
        copies: cosines of altered copies by alteration, where they were measured
    """

    cosine: float
    how: str
    copies: dict[str, np.ndarray]


def _reencoded(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


def _reduced(image: Image.Image) -> Image.Image:
    half = max(1, image.width // 2), max(1, image.height // 2)
    return image.resize(half, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def _cropped(image: Image.Image) -> Image.Image:
    x, y = round(0.03 * image.width), round(0.03 * image.height)
    return image.crop((x, y, image.width - x, image.height - y)).resize(image.size, Image.Resampling.BICUBIC)


ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "written as JPEG of quality 50": _reencoded,
    "reduced to half its size": _reduced,
    "cropped by 3% on each side": _cropped,
}


def cosines_of_copies(images: Iterable[np.ndarray], features: Features, batch_size: int = 64) -> dict[str, np.ndarray]:
    """How near images are to altered copies of themselves: for each of `ALTERATIONS` a cosine an image.

    Args:
        images: uint8 [Y, X, 3] of one size
        features: the network
        batch_size: images that it sees at a time
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in ALTERATIONS}
    images = list(images)
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        rows_BE = _unit(features, batch)
        for name, alter in ALTERATIONS.items():
            copies = [np.asarray(alter(Image.fromarray(image))) for image in batch]
            found[name].append((rows_BE * _unit(features, copies)).sum(axis=1))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def suggested(cosines: dict[str, np.ndarray]) -> float:
    """The threshold at or above which `FOUND_PERCENT` of the altered copies lie, of the alteration that is hardest to find;
    rounded down to three digits."""
    lowest = min(float(np.percentile(values, 100 - FOUND_PERCENT, method="lower")) for values in cosines.values())
    return float(np.floor(lowest * 1000) / 1000)


def _unit(features: Features, images: list[np.ndarray]) -> np.ndarray:
    return unit(np.asarray(features(np.stack(images)).features_BE, np.float64))
