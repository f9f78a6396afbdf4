"""Wrong captions for a batch's images: each from a pair of another concept.

The family shifts the batch by one. Where several images share a concept that is often a right pair, and teaches the discriminator that
right is wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from dalle.config import Images
from dalle.data.captions import concepts
from dalle.data.counts import LeftOut
from dalle.data.naming import names
from dalle.data.samples import Decoder
from dalle.data.shards import read
from dalle.training.seeds import derived_seed

_LOOKED_AT, _KEPT = 100_000, 64
"""Samples that are looked at for two of different concepts, and how many different ones of them all others are compared with."""


def wrong_rows(concepts_R: Sequence[tuple[str, ...]], seeds: Iterable[tuple[int, int]]) -> list[int | None]:
    """For rows of a global batch, another row whose pair shares no concept with it, each such row as likely; null where the batch has
    none.

    Args:
        concepts_R: of each row of the global batch
        seeds: (row, seed) of the rows that are asked for
    """
    holders: dict[str, list[int]] = {}
    for row, found in enumerate(concepts_R):
        for concept in found:
            holders.setdefault(concept, []).append(row)
    chosen: list[int | None] = []
    for row, seed in seeds:
        alike = {other for concept in concepts_R[row] for other in holders[concept]} | {row}
        others = [other for other in range(len(concepts_R)) if other not in alike]
        chosen.append(others[int(np.random.default_rng(seed).integers(len(others)))] if others else None)
    return chosen


def wrong_row_seeds(seed: int, step: int, rows: range) -> list[tuple[int, int]]:
    """(row, seed) of some rows of an update, for `wrong_rows`: the same whoever trains on them."""
    return [(row, derived_seed(seed + 2, step, row)) for row in rows]


def check_concepts(spec: str, images: Images, class_key: str | None) -> None:
    """See that the data have two pairs of different concepts. Stops as soon as it has found them, which is at once in most data.

    Raises:
        ValueError: all pairs are of one concept
    """
    decoder = Decoder(images, 8, 0)
    seen: list[set[str]] = []
    for sample in itertools.islice(read(names(spec, images.pipes)), _LOOKED_AT):
        try:
            found = set(concepts(sample, decoder.captions(sample)[0], class_key))
        except LeftOut:
            continue
        if any(not found & other for other in seen):
            return
        if found not in seen and len(seen) < _KEPT:
            seen.append(found)
    if not seen:
        return  # that no sample can be used is said by whoever reads them
    by = f"class_key {class_key}" if class_key else "class_key null (pairs are told apart by their captions)"
    raise ValueError(
        f"{by}: all pairs of {spec} are of one class, and a wrong caption has to come from another: take data with several, or name "
        "another key of their json"
    )
