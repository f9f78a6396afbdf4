"""Which captions candidates are drawn for, and what the drawn data's captions claim."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from dalle.data.captions import read_captions
from dalle.data.counts import LeftOut
from dalle.data.naming import expand
from dalle.data.shapes import Claim
from dalle.data.shards import read
from dalle.data.tokens import TokenShards
from dalle.text.words import clean

_SEEDS = 2**38
"""Of the candidates of one `best_of.seed`; less than 2^62 in all, which a drawing's metadata may hold."""


def choose_captions(shards: TokenShards, count: int, seed: int) -> list[str]:
    """So many captions of the shards' pairs, in a shuffled order: one of each pair before a second one of any, the first by
    chance and then the next. Empty ones are passed over.

    Raises:
        ValueError: no pair has a caption
    """
    found: list[str] = []
    for number in itertools.count():
        epoch, shard, row = shards.place(number, seed)
        captions = [caption for caption in shards.pair(shard, row)[1] if caption.strip() and clean(caption) == caption]
        if captions:
            first = int(np.random.default_rng([seed, shard, row]).integers(len(captions)))
            found.append(captions[(first + epoch) % len(captions)])
        if len(found) == count:
            return found
        if not found and number + 1 == len(shards):
            raise ValueError(f"best_of: no pair of {shards.folder} has a caption to draw; name data with captions")
    raise AssertionError("every epoch has a caption")


def first_seed(seed: int, number: int, candidates: int) -> int:
    """Of the candidates of the caption of a number. No two captions share one, nor two values of `best_of.seed`."""
    return seed * _SEEDS + number * candidates


def claims(scenes: str, captions: Sequence[str]) -> list[Claim]:
    """What each caption claims, by the drawn data's image-text shards.

    Raises:
        ValueError: a caption is not in them, or they hold no scenes
    """
    wanted, found = set(captions), {}
    for caption, claim in _captions_of_scenes(scenes):
        if caption in wanted:
            found[caption] = claim
            if len(found) == len(wanted):
                break
    missing = [caption for caption in captions if caption not in found]
    if missing:
        raise ValueError(
            f"best_of.scenes {scenes}: says nothing of {len(set(missing)):,} of {len(wanted):,} captions, such as {missing[0]!r}; "
            "name the image-text shards that the tokens were made of"
        )
    return [found[caption] for caption in captions]


def _captions_of_scenes(scenes: str) -> Iterator[tuple[str, Claim]]:
    for sample in read(expand(scenes)):
        try:
            captions, scene = read_captions(sample)
        except LeftOut:
            continue
        if scene is not None:
            claim = Claim.from_json(scene)
            yield from ((caption, claim) for caption in captions)
