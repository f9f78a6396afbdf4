"""The one shape of every feature network: uint8 images in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Seen:
    """What a network says of a batch: features_BE fp32 [B, E], and of a classifier its logits_BK fp32 [B, K], before the
    softmax."""

    features_BE: np.ndarray
    logits_BK: np.ndarray | None = None


class Features(Protocol):
    """A feature network, in fp32 whatever the device.

    name: as it stands beside every figure, such as "efficientnet-lite0". hash: SHA-256 of its weights, as hex. width: E.
    resizer: how images are brought to its own size, in words.
    """

    @property
    def name(self) -> str: ...

    @property
    def hash(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def resizer(self) -> str: ...

    def __call__(self, images_BYX3: np.ndarray) -> Seen:
        """uint8 [B, Y, X, 3] of any size to what is seen of them."""
        ...
