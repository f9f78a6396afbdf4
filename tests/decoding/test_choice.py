"""The sampler against exact probabilities, and its random numbers."""

import math

import numpy as np
import pytest
import torch

from dalle.config import Sampling
from dalle.decoding.choice import choose, num_uniform, uniform_numbers


def _uniform(rows, vocabulary, seed=0):
    return uniform_numbers(torch.arange(rows) + seed, torch.tensor([7]), num_uniform(vocabulary))


@pytest.mark.parametrize("vocabulary", [10, 64, 100])
def test_choices_follow_the_softmax(vocabulary):
    """Chi-squared over 50,000 draws: a right sampler passes the bound once in 10,000 seeds (Wilson and Hilferty, 1931)."""
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(0))
    chosen, _ = choose(logits.expand(50_000, -1), _uniform(50_000, vocabulary), Sampling(temperature=0.7))
    expected = 50_000 * (logits / 0.7).softmax(0)
    counts = torch.bincount(chosen, minlength=vocabulary)
    freedom = vocabulary - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    assert ((counts - expected) ** 2 / expected).sum() < bound


def test_filters_keep_what_they_say():
    logits = torch.log(torch.tensor([0.4, 0.05, 0.3, 0.05, 0.2])).expand(5000, 5)
    uniform = _uniform(5000, 5)
    for options, kept in (
        ({"top_k": 2}, {0, 2}), ({"top_k": 1}, {0}), ({"top_k": 100}, set(range(5))),
        ({"top_p": 0.69}, {0, 2}), ({"top_p": 0.71}, {0, 2, 4}), ({"top_p": 1e-6}, {0}), ({"top_p": 0.9999999}, set(range(5))),
        ({"top_k": 3, "top_p": 0.7}, {0, 2}),  # of what top-k left, 0.4 and 0.3 are 0.78
        ({"temperature": 1e-30}, {0}), ({"temperature": 1e-3, "top_p": 0.5}, {0}),
    ):  # fmt: skip
        assert set(choose(logits, uniform, Sampling(**options))[0].tolist()) == kept, options


def test_top_k_keeps_k_of_equal_ones():
    chosen, _ = choose(torch.zeros(2000, 50), _uniform(2000, 50), Sampling(top_k=3))
    assert len(set(chosen.tolist())) == 3


def test_the_nucleus_is_that_of_a_sort():
    logits = 3 * torch.randn(200, 1000, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)
    for top_p in (0.1, 0.5, 0.9, 0.99):
        ordered = p.sort(dim=-1, descending=True).values
        count = (ordered.cumsum(-1) < top_p - 1e-6).sum(-1) + 1  # rounding may add a code or leave one out at the edge
        from dalle.decoding.choice import _nucleus

        kept = (_nucleus(p, top_p) > 0).sum(-1)
        assert ((kept - count).abs() <= 1).all() and (kept == count).float().mean() > 0.95


def test_an_impossible_code_is_never_chosen():
    logits = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf, -math.inf]]).expand(2000, 5)
    chosen, allowed = choose(logits, _uniform(2000, 5), Sampling())
    assert set(chosen.tolist()) == {1, 2} and allowed.all()


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 1e-30}])
@pytest.mark.parametrize("vocabulary", [2, 5, 64, 100])
def test_logits_that_are_not_finite_are_noticed_in_any_column_and_row(vocabulary, options):
    """One row for each column and value, and a good one between every two."""
    columns = torch.arange(vocabulary)
    for value in (math.nan, math.inf):
        logits = torch.randn(2 * vocabulary, vocabulary, generator=torch.Generator().manual_seed(0))
        logits[2 * columns, columns] = value
        _, allowed = choose(logits, _uniform(2 * vocabulary, vocabulary), Sampling(**options))
        assert allowed.tolist() == [False, True] * vocabulary
    _, allowed = choose(torch.full((1, vocabulary), -math.inf), _uniform(1, vocabulary), Sampling(**options))
    assert not allowed


def test_uniform_numbers_are_splitmix64_with_a_counter():
    """Against the algorithm as published, in Python's own integers."""

    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    seeds, slot, count = [0, 1, 12345, 2**62], 1023, 5
    found = uniform_numbers(torch.tensor(seeds), torch.tensor([slot]), count)
    for seed, row in zip(seeds, found.tolist(), strict=True):
        start = mix(seed * golden % 2**64)
        for lane, value in enumerate(row):
            bits = mix((start + (slot * count + lane + 1) * golden) % 2**64) >> 41
            assert value == (bits + 0.5) / 2**23


def test_uniform_numbers_are_uniform_and_unrelated():
    """Of 200 neighbouring seeds in 50 slots. The bounds are five standard deviations of right numbers."""
    u = (
        torch.stack([uniform_numbers(torch.arange(200), torch.tensor([s]), 96) for s in range(50)], dim=1)
        .double()
        .numpy()
    )
    assert u.min() > 0 and u.max() < 1
    n = u.size
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n) and abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    for axis in range(3):
        a, b = (np.moveaxis(u, axis, 0)[part] - 0.5 for part in (slice(1, None), slice(None, -1)))
        assert abs((a * b).mean()) < 5 / 12 / math.sqrt(a.size)
    assert len(np.unique(u)) > 0.9 * n * (1 - n / 2**24)
