"""Mean and covariance of features in one pass, in float64 and flat memory.

Sums of squares are taken about the mean so far (Chan, Golub and LeVeque 1979), so that features far from zero lose no
digits; parts that were summed apart come together by the same formula.
"""

from __future__ import annotations

import numpy as np


class Moments:
    """Sums over features.

    Args:
        width: numbers in a feature, E
    """

    def __init__(self, width: int):
        self.count = 0
        self.mean_E = np.zeros(width)
        self.scatter_EE = np.zeros((width, width))
        """Sum of the outer products of what differs from the mean."""

    def add(self, features_BE: np.ndarray) -> None:
        """Features of any float type, at least one."""
        features_BE = np.asarray(features_BE, dtype=np.float64)
        mean_E = features_BE.mean(axis=0)
        centred_BE = features_BE - mean_E
        self._absorb(len(features_BE), mean_E, centred_BE.T @ centred_BE)

    def merge(self, other: Moments) -> None:
        """Add what another process has summed."""
        if other.count:
            self._absorb(other.count, other.mean_E, other.scatter_EE)

    def _absorb(self, count: int, mean_E: np.ndarray, scatter_EE: np.ndarray) -> None:
        total = self.count + count
        apart_E = mean_E - self.mean_E
        between_E = apart_E * np.sqrt(self.count * (count / total))
        self.scatter_EE += scatter_EE
        self.scatter_EE += np.outer(between_E, between_E)
        self.mean_E = self.mean_E + apart_E * (count / total)
        self.count = total

    def covariance(self) -> np.ndarray:
        """[E, E], unbiased as numpy.cov has it. Raises ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.count}; add more")
        return self.scatter_EE / (self.count - 1)
