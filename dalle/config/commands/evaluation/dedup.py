"""What `dalle-dedup` is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dalle.config.checks import MOST_ASKED, at_least, at_most, require
from dalle.config.models import MOST_SIDE_PX
from dalle.config.training import Images

EVERY_IMAGE = Images(augmentation="none", min_caption_chars=0, max_aspect_ratio=math.inf)
"""Whatever its caption and its sides."""


@dataclass(frozen=True)
class Dedup:
    """Find evaluation images that are also among the training images, and write the list of those to leave out.

    Args:
        data: training shards
        evaluation: evaluation shards
        output: folder of the page, the pairs, the list and the features, which a second run uses again
        features: the network that says what is near: efficientnet-lite0, inception, open_clip:ARCHITECTURE:TAG or clip:FOLDER
        threshold: cosine from which on an evaluation image is taken for a copy; null suggests one
        size_px: side of the squares that images are brought to, as a model sees them
        shown: how many pairs are on the page, the nearest first
        images: which images are looked at, by default all that decode; its augmentation is not used
        overwrite: write over features made with other settings, or files of something else, that the folder holds
    """

    data: str
    evaluation: str
    output: str
    features: str = "efficientnet-lite0"
    threshold: float | None = None
    size_px: int = 256
    shown: int = 500
    images: Images = field(default_factory=lambda: EVERY_IMAGE)
    overwrite: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "size_px", "shown")
        at_most(self, MOST_SIDE_PX, "size_px")
        at_most(self, MOST_ASKED, "shown")
        require(
            self.threshold is None or -1 <= self.threshold <= 1,
            f"threshold {self.threshold}: a cosine lies in [-1, 1]; leave it out to be given one",
        )
