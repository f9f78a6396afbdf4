"""BPE with dropout (Provilkov et al., 2019): the merges of one word, some of them skipped."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

Ranks = dict[tuple[str, str], int]
"""Of each pair of symbols that may merge: the lower goes first."""


def merge(word: str, ranks: Ranks, dropout: float, generator: np.random.Generator) -> list[str]:
    """The symbols of a word.

    By the book each step draws a number for every pair of neighbours, and does the best merge of those whose number is at
    least `dropout`; where there is none it ends. That is quadratic in the word's length. Here merges wait in a heap, best
    first, and of the numbers only those are drawn that are asked for: the generator is moved to their places, and left where
    the book would leave it.

    Args:
        word: its characters are the first symbols
        ranks: of the merges
        dropout: probability in [0, 1) that a merge is skipped in a step
        generator: NumPy's default one, or another that can be moved
    """
    symbols: list[Any] = list(word)  # None where one has become part of another
    num_pairs = len(symbols) - 1
    if num_pairs < 1:
        return symbols
    before, after = list(range(-1, num_pairs)), list(range(1, num_pairs + 2))

    def rank(at: int) -> int | None:
        """Of the merge of a symbol with the one after it; None where there is none."""
        return ranks.get((symbols[at], symbols[after[at]])) if after[at] < len(symbols) else None

    waiting = [(found, at) for at in range(num_pairs) if (found := rank(at)) is not None]
    heapq.heapify(waiting)
    left = _Left(len(symbols))
    moved: Any = generator.bit_generator
    first = place = 0  # how many numbers come before this step, and before the generator
    skipped: list[tuple[int, int]] = []
    while waiting:
        found, at = heapq.heappop(waiting)
        if rank(at) != found:
            continue  # one of the two has become part of another symbol
        wanted = first + left.before(at)
        moved.advance(wanted - place)
        place = wanted + 1
        if generator.random() < dropout:
            skipped.append((found, at))
            continue
        gone = after[at]
        symbols[at] += symbols[gone]
        symbols[gone] = None
        after[at] = after[gone]
        if after[at] < len(symbols):
            before[after[at]] = at
        left.remove(gone)
        first, num_pairs = first + num_pairs, num_pairs - 1
        for entry in skipped:  # they may be done in the next step
            heapq.heappush(waiting, entry)
        skipped.clear()
        for start in (before[at], at) if before[at] >= 0 else (at,):
            if (found := rank(start)) is not None:
                heapq.heappush(waiting, (found, start))
    moved.advance(first + num_pairs - place)
    return [symbol for symbol in symbols if symbol is not None]


class _Left:
    """Which of n places are left (a Fenwick tree): both methods take log n steps."""

    def __init__(self, count: int):
        self._sums = [i & -i for i in range(count + 1)]

    def before(self, place: int) -> int:
        """How many are left before a place."""
        total = 0
        while place:
            total += self._sums[place]
            place &= place - 1
        return total

    def remove(self, place: int) -> None:
        place += 1
        while place < len(self._sums):
            self._sums[place] -= 1
            place += place & -place
