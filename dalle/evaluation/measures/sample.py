"""Features of a uniform sample without replacement, for measures that compare all with all.

Which images they are is decided by how many there are and by a seed, before any is seen: so it is the same sample whatever
the order, the batches and the processes.
"""

from __future__ import annotations

import numpy as np


class Sample:
    """Features of chosen images, in the order of their indices.

    Args:
        num_images: in all, N
        most: images that are chosen where there are more
        width: numbers in a feature, E
        seed: of the choice
    """

    def __init__(self, num_images: int, most: int, width: int, seed: int):
        # RandomState's stream is frozen: the same images in all versions of numpy
        self.chosen_M = np.sort(np.random.RandomState(seed).permutation(num_images)[:most])
        self.features_ME = np.zeros((len(self.chosen_M), width), dtype=np.float32)

    def add(self, indices_B: np.ndarray, features_BE: np.ndarray) -> None:
        """Keep those of these images that are chosen. No image may be added twice."""
        row_B = np.searchsorted(self.chosen_M, indices_B).clip(max=len(self.chosen_M) - 1)
        taken_B = self.chosen_M[row_B] == indices_B
        self.features_ME[row_B[taken_B]] = features_BE[taken_B]

    def merge(self, other: Sample) -> None:
        """Add what another process has kept of the same images: rows that it has not seen are zero."""
        self.features_ME += other.features_ME
