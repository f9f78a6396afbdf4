"""What all feature networks share: which images they take, the one resizer, and small batches within a call.

Published figures differ by resizers more than by many a model (Parmar et al. 2022, "On Aliased Resizing and Surprising
Subtleties in GAN Evaluation"), so there is one here, and it is named beside every figure.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from torch.nn import functional as F

from dalle.config.checks import installed
from dalle.evaluation.features.contract import Seen
from dalle.models.clip import ready_torchvision

RESIZER = "bicubic with antialiasing, in fp32 (torch.nn.functional.interpolate)"
_BATCH = 32
"""Images that go through a network at a time: its activations at 224 px are then some 200 MB, whatever the caller's batch."""


@dataclass(frozen=True)
class Network:
    """A feature network as measures see it (`contract.Features`).

    Args:
        name, hash, width, resizer: of the contract
        device: where its weights are
        see: uint8 images [B, 3, Y, X] on the device to features [B, E], and logits [B, K] of a classifier
    """

    name: str
    hash: str
    width: int
    resizer: str
    device: torch.device
    see: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]

    def __call__(self, images_BYX3: np.ndarray) -> Seen:
        """What is seen of uint8 images [B, Y, X, 3]. Raises ValueError for anything else."""
        check_images(images_BYX3)
        features, logits = [], []
        for first in range(0, len(images_BYX3), _BATCH):
            images_BCYX = torch.tensor(images_BYX3[first : first + _BATCH]).permute(0, 3, 1, 2)
            with _exact():
                features_BE, logits_BK = self.see(images_BCYX.to(self.device))
            features.append(features_BE.float().cpu().numpy())
            if logits_BK is not None:
                logits.append(logits_BK.float().cpu().numpy())
        return Seen(np.concatenate(features), np.concatenate(logits) if logits else None)


def _exact() -> ExitStack:
    """No gradients, no 16-bit or TF32 products, and no choice of algorithms by timing."""
    stack = ExitStack()
    stack.enter_context(torch.inference_mode())
    stack.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False))
    for kind in ("cpu", "cuda"):
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def check_images(images_BYX3: np.ndarray) -> None:
    """Raises ValueError unless they are uint8 [B, Y, X, 3] with at least one image."""
    if not isinstance(images_BYX3, np.ndarray) or images_BYX3.dtype == object:
        raise ValueError(
            "images must come as one uint8 array [B, Y, X, 3]: images of different sizes cannot be in one batch, so "
            "resize or crop them to one size first"
        )
    if images_BYX3.dtype != np.uint8:
        raise ValueError(f"images are {images_BYX3.dtype}: they must be uint8 in 0 to 255")
    if images_BYX3.ndim != 4 or images_BYX3.shape[3] != 3 or not images_BYX3.size:
        raise ValueError(f"images of shape {list(images_BYX3.shape)}: they must be [B, Y, X, 3] and at least one")


def resized(images_BCYX: torch.Tensor, side_px: int) -> torch.Tensor:
    """uint8 images [B, 3, Y, X] as fp32 in [0, 255], squares of `side_px`, by `RESIZER`; not rounded. What is no square is
    squeezed, as feature networks of published figures do it."""
    images_BCYX = images_BCYX.float()
    if images_BCYX.shape[-2:] == (side_px, side_px):
        return images_BCYX
    # a cubic overshoots at edges, which no picture file could hold
    return F.interpolate(images_BCYX, (side_px, side_px), mode="bicubic", antialias=True).clamp(0, 255)


def extra(module: str) -> ModuleType:
    """A module of the extra `eval`, imported late. Raises ValueError with what to install where it is missing."""
    ready_torchvision()  # which many of them import
    with installed(f"{module.split('.')[0]} is not installed: pip install 'dalle[eval]'"):
        return import_module(module)
