"""The score of Salimans et al. 2016 over a classifier's logits, exp E KL(p(class | image) ‖ p(class)), in flat memory.

With the Inception network it is the Inception Score. Splits and shuffling are torch-fidelity's, so the figure is too; what it
computes from all logits at once is here summed, since E KL = E Σ p ln p − Σ q ln q with q = E p.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, xlogy

SPLITS, SEED = 10, 2020
"""torch-fidelity's."""


@dataclass(frozen=True)
class Spread:
    """A mean, and the standard deviation over the parts that it is the mean of."""

    mean: float
    std: float


class ClassScore:
    """Sums over class probabilities.

    Args:
        num_images: in all, which decides the split that each falls into
        num_classes: K
        splits: parts that are scored apart; no more than there are images
    """

    def __init__(self, num_images: int, num_classes: int, splits: int = SPLITS):
        splits = min(splits, num_images)
        shuffled_N = np.random.RandomState(SEED).permutation(num_images)
        self.split_N = np.empty(num_images, dtype=np.uint8)
        for split in range(splits):
            self.split_N[shuffled_N[split * num_images // splits : (split + 1) * num_images // splits]] = split
        self.count_S = np.zeros(splits, dtype=np.int64)
        self.probability_SK = np.zeros((splits, num_classes))
        self.negative_entropy_S = np.zeros(splits)

    def add(self, indices_B: np.ndarray, logits_BK: np.ndarray) -> None:
        """Logits before the softmax, of the images of these indices."""
        log_p_BK = log_softmax(np.asarray(logits_BK, dtype=np.float64), axis=1)
        p_BK = np.exp(log_p_BK)
        split_B = self.split_N[indices_B]
        np.add.at(self.count_S, split_B, 1)
        np.add.at(self.probability_SK, split_B, p_BK)
        np.add.at(self.negative_entropy_S, split_B, (p_BK * log_p_BK).sum(axis=1))

    def merge(self, other: ClassScore) -> None:
        """Add what another process has summed of the same images."""
        self.count_S += other.count_S
        self.probability_SK += other.probability_SK
        self.negative_entropy_S += other.negative_entropy_S

    def score(self) -> Spread:
        """Over the splits: between 1 and the number of classes. All images must have been added."""
        assert self.count_S.sum() == len(self.split_N)
        q_SK = self.probability_SK / self.count_S[:, None]
        score_S = np.exp(self.negative_entropy_S / self.count_S - xlogy(q_SK, q_SK).sum(axis=1))
        return Spread(float(score_S.mean()), float(score_S.std()))
