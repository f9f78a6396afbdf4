"""How well images fit their captions by a CLIP (Hessel et al. 2021), as the mean of 100 · max(cos, 0).

Hessel et al. scale by 2.5, so that their model's scores, mostly below 0.4, spread over [0, 1]. The factor is 100 here, as in
torchmetrics and in most tables of text-to-image models: divide by 40 for theirs. Scores of different CLIPs do not compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dalle.evaluation.features.images import check_images
from dalle.models.clip import CLIP

_BATCH = 32


@dataclass
class ClipScore:
    """Running sums of scores, which add up over processes."""

    count: int = 0
    total: float = 0.0
    total_of_squares: float = 0.0

    def add(self, scores_B: np.ndarray) -> None:
        """Scores from `clip_scores`."""
        scores_B = np.asarray(scores_B, dtype=np.float64)
        self.merge(ClipScore(len(scores_B), float(scores_B.sum()), float((scores_B**2).sum())))

    def merge(self, other: ClipScore) -> None:
        """Add what another process has summed."""
        self.count += other.count
        self.total += other.total
        self.total_of_squares += other.total_of_squares

    @property
    def mean(self) -> float:
        """In [0, 100]. Raises ValueError where there are no scores."""
        if not self.count:
            raise ValueError("a CLIP score needs at least 1 image")
        return self.total / self.count

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        variance = max(
            0.0, self.total_of_squares / self.count - self.mean**2
        )  # of numbers up to 100: no digits to lose
        return math.sqrt(variance / self.count)


@torch.inference_mode()
def clip_scores(clip: CLIP, images_BYX3: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """100 · max(cos, 0) of each image and its caption, float64 [B].

    Args:
        clip: any that `load_clip` gives
        images_BYX3: uint8, of one size
        captions: one for each

    Raises:
        ValueError: they are no such images, or captions are missing
    """
    check_images(images_BYX3)
    if len(images_BYX3) != len(captions):
        raise ValueError(f"{len(images_BYX3)} images, but {len(captions)} captions")
    device = clip.mean.device
    scores = []
    for first in range(0, len(captions), _BATCH):
        part = slice(first, first + _BATCH)
        images_BE = clip.embed_images(torch.tensor(images_BYX3[part]).permute(0, 3, 1, 2).to(device))
        texts_BE = clip.embed_texts(clip.tokens(captions[part]).to(device))
        scores.append(100 * (images_BE.double() * texts_BE.double()).sum(dim=1).clamp(min=0).cpu().numpy())
    return np.concatenate(scores)


def clip_score(clip: CLIP, batches: Iterable[tuple[np.ndarray, Sequence[str]]]) -> ClipScore:
    """The score of batches of images and captions, in flat memory. See `clip_scores`."""
    score = ClipScore()
    for images_BYX3, captions in batches:
        score.add(clip_scores(clip, images_BYX3, captions))
    return score
