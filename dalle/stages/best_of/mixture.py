"""Two folders of token shards as one, in which a given share of the pairs is of the second.

Which pair is where is a function of its number alone, as with one folder: of the first n pairs floor(n · share) are of the
second folder, spread evenly, and each folder's own pairs come in the order that they would have alone. So a real pair
meets the same dropouts as without the mixture.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from dalle.data.tokens import TokenShards

_FINEST = 10**6
"""Shares are whole numbers over at most this: with them the places of trillions of pairs are exact."""


class Mixture:
    """What `TokenBatches` asks of shards: where the pair of a number lies, and the pair.

    Args:
        real: the data
        kept: what was kept of candidates
        share: of the pairs that are of `kept`, in (0, 1]
    """

    def __init__(self, real: TokenShards, kept: TokenShards, share: float):
        self.real, self.kept = real, kept
        self.share = Fraction(share).limit_denominator(_FINEST)

    def __len__(self) -> int:
        """Pairs of both."""
        return len(self.real) + len(self.kept)

    def paths(self) -> list[str]:
        """The files of both."""
        return [*self.real.paths(), *self.kept.paths()]

    def place(self, number: int, seed: int) -> tuple[int, int, int]:
        """(epoch, shard, row) of the pair that comes at `number`, as in `TokenShards.place`; the shards of `kept` are counted on
        after those of `real`."""
        before = number * self.share.numerator // self.share.denominator
        if (number + 1) * self.share.numerator // self.share.denominator > before:
            epoch, shard, row = self.kept.place(before, seed)
            return epoch, len(self.real.meta.shard_sizes) + shard, row
        return self.real.place(number - before, seed)

    def pair(self, shard: int, row: int) -> tuple[np.ndarray, list[str]]:
        """Codes uint16 [I] and captions of one pair."""
        first_kept = len(self.real.meta.shard_sizes)
        return self.real.pair(shard, row) if shard < first_kept else self.kept.pair(shard - first_kept, row)
