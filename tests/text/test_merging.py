"""BPE dropout against the book: the same draws, the right distribution, and a time that grows as the word does."""

import itertools
import string
import time

import numpy as np
import pytest

from dalle.text.merging import merge

WORDS = ("banana", "bandana", "nabanana")


def by_the_book(word, ranks, dropout, generator):
    """Provilkov et al. (2019), step by step: a number for each pair of neighbours in each step."""
    symbols = list(word)
    while len(symbols) > 1:
        found = [ranks.get(pair) for pair in itertools.pairwise(symbols)]
        draws = generator.random(len(found))
        kept = [(rank, at) for at, rank in enumerate(found) if rank is not None and draws[at] >= dropout]
        if not kept:
            break
        _, at = min(kept)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return symbols


def some_merges(letters, count, generator):
    """Merges as training leaves them: each of symbols that letters and earlier merges make."""
    symbols, ranks = list(letters), {}
    while len(ranks) < count:
        pair = tuple(str(s) for s in generator.choice(symbols, 2))
        if pair not in ranks and len(pair[0] + pair[1]) <= 8:
            ranks[pair] = len(ranks)
            symbols.append(pair[0] + pair[1])
    return ranks


@pytest.mark.parametrize("dropout", [1e-9, 0.1, 0.5, 0.95])
def test_draws_are_the_books_and_leave_the_generator_where_it_does(dropout):
    """Of words of all lengths, and of letters so few that many pairs are equal."""
    generator = np.random.default_rng(0)
    for letters, count in (("ab", 20), ("abcd", 60), (string.ascii_lowercase, 300)):
        ranks = some_merges(letters, count, generator)
        for length in (0, 1, 2, 3, 7, 20, 150):
            word = "".join(generator.choice(list(letters), length))
            ours, books = np.random.default_rng(length), np.random.default_rng(length)
            assert merge(word, ranks, dropout, ours) == by_the_book(word, ranks, dropout, books)
            assert ours.random() == books.random()


def outcomes(symbols, ranks, dropout):
    """The probability of each result, by going through all that may happen: the step's pairs are dropped independently."""
    found = sorted(
        (rank, at) for at, pair in enumerate(itertools.pairwise(symbols)) if (rank := ranks.get(pair)) is not None
    )
    probabilities = {symbols: dropout ** len(found)}
    for number, (_, at) in enumerate(found):
        merged = (*symbols[:at], symbols[at] + symbols[at + 1], *symbols[at + 2 :])
        for result, probability in outcomes(merged, ranks, dropout).items():
            share = dropout**number * (1 - dropout) * probability
            probabilities[result] = probabilities.get(result, 0.0) + share
    return probabilities


@pytest.mark.parametrize("word", ["abcd", "abab", "aabbc"])
def test_each_pair_is_skipped_by_a_draw_of_its_own(word):
    """One number for a whole step would end it at the first merge that is dropped, far more often than all are."""
    ranks = {
        ("a", "b"): 0,
        ("c", "d"): 1,
        ("b", "c"): 2,
        ("ab", "cd"): 3,
        ("b", "b"): 4,
        ("a", "ab"): 5,
        ("ab", "ab"): 6,
    }
    expected = outcomes(tuple(word), ranks, 0.4)
    assert sum(expected.values()) == pytest.approx(1)
    generator, trials = np.random.default_rng(5), 20_000
    counts: dict[tuple, int] = {}
    for _ in range(trials):
        result = tuple(merge(word, ranks, 0.4, generator))
        counts[result] = counts.get(result, 0) + 1
    assert counts.keys() <= expected.keys()
    for result, probability in expected.items():
        # 5 standard deviations: with some 20 outcomes a false alarm once in 80,000 seeds
        spread = 5 * (trials * probability * (1 - probability)) ** 0.5
        assert abs(counts.get(result, 0) - trials * probability) < spread + 1, (result, probability)


def test_the_work_grows_as_the_word_does():
    """Counted in pairs that are looked up, which a slow machine does not change: the book looks at all in every step."""
    generator = np.random.default_rng(1)
    looked_up = {}

    class Counting(dict):
        def get(self, pair, default=None):
            self.count += 1
            return super().get(pair, default)

    for length in (200, 3200):
        ranks = Counting(some_merges("abcd", 60, np.random.default_rng(0)))
        ranks.count = 0
        merge("".join(generator.choice(list("abcd"), length)), ranks, 0.1, generator)
        looked_up[length] = ranks.count
    # 16 times as many; a few more where heads and tails weigh less
    assert looked_up[3200] < 20 * looked_up[200]
    began_s = time.perf_counter()
    merge("".join(generator.choice(list("abcd"), 50_000)), ranks, 0.1, generator)
    assert time.perf_counter() - began_s < 60, "a second or two; the book's form would take an hour"
