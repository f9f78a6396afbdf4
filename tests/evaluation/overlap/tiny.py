"""A feature network without weights, and pictures that differ as pictures do."""

import numpy as np
from PIL import Image

from dalle.evaluation.features.contract import Seen


class Tiny:
    """The colours of an image reduced to 8 × 8, less their mean: what is shifted or sharper changes it little."""

    name, width, resizer = "tiny", 192, "box to 8 × 8"

    def __init__(self, digest="ab" * 32, width=192, fails_at=None):
        self.hash, self.width, self.fails_at, self.seen, self.calls = digest, width, fails_at, 0, []

    def __call__(self, images_BYX3):
        self.calls.append(len(images_BYX3))
        self.seen += len(images_BYX3)
        if self.fails_at is not None and self.seen >= self.fails_at:
            raise KeyboardInterrupt
        small = [np.asarray(Image.fromarray(i).resize((8, 8), Image.Resampling.BOX), np.float32) for i in images_BYX3]
        rows_BE = np.stack(small).reshape(len(small), -1)
        rows_BE = rows_BE - rows_BE.mean(axis=1, keepdims=True)
        return Seen(np.resize(rows_BE, (len(small), self.width)).astype(np.float32))


def drawing(seed: int, side: int = 64) -> Image.Image:
    """A smooth picture of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
