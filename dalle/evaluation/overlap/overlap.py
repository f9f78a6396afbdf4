"""Evaluation images that are among the training images (section 3.2 of the paper), from two indexes to files that people and
programs read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dalle.evaluation.features.contract import Features
from dalle.evaluation.overlap.exclusions import exclusion_name, write_exclusions
from dalle.evaluation.overlap.index import Index
from dalle.evaluation.overlap.page import write_page
from dalle.evaluation.overlap.pairs import near_pairs, write_pairs
from dalle.evaluation.overlap.stream import pictures
from dalle.evaluation.overlap.threshold import FOUND_PERCENT, MOST_IMAGES, Threshold, cosines_of_copies, suggested

PAIRS, EXCLUDED = "pairs.jsonl", "exclude.txt"


@dataclass(frozen=True)
class Found:
    """What was written.

    Args:
        evaluation: images that were looked at
        excluded: of those, at or above the threshold
        threshold: the cosine
        closest: the largest cosine
    """

    evaluation: int
    excluded: int
    threshold: float
    closest: float


def write_overlap(
    folder: Path, evaluation: Index, train: Index, features: Features, threshold: float | None, shown: int
) -> Found:
    """Write `pairs.jsonl`, `index.html` with its pictures and `exclude.txt` into the folder.

    Args:
        folder: that is there
        evaluation: index of the evaluation images
        train: index of the training images, by the same network
        features: that network, for the suggestion
        threshold: cosine from which on an image is left out; null suggests one
        shown: pairs on the page
    """
    pairs = near_pairs(evaluation, train)
    chosen = _given(threshold) if threshold is not None else _suggested(evaluation, features)
    excluded = [pair for pair in pairs if pair.cosine >= chosen.cosine]
    write_page(folder, pairs, evaluation, train, chosen, shown)
    write_pairs(folder / PAIRS, pairs, evaluation, train, chosen.cosine)
    names = [exclusion_name(evaluation.shards[pair.place.shard], pair.place.key) for pair in excluded]
    write_exclusions(folder / EXCLUDED, names, _made(chosen, len(excluded), evaluation, train))
    return Found(len(pairs), len(excluded), chosen.cosine, pairs[0].cosine)


def _given(threshold: float) -> Threshold:
    return Threshold(threshold, f"The threshold {threshold:g} was given.", {})


def _suggested(evaluation: Index, features: Features) -> Threshold:
    count = len(evaluation.rows_NE)
    rows = np.random.default_rng(0).permutation(count)[:MOST_IMAGES]
    places = evaluation.places(rows.tolist()).values()
    images = [image for _, image in pictures(evaluation.shards, evaluation.images, evaluation.size_px, places)]
    cosines = cosines_of_copies(images, features)
    how = (
        f"The threshold is a suggestion: {len(images):,} of the evaluation images were altered in {len(cosines)} ways, as copies "
        f"on the web are, and {FOUND_PERCENT}% of the copies that are hardest to find lie at or above it."
    )
    return Threshold(suggested(cosines), how, cosines)


def _made(threshold: Threshold, excluded: int, evaluation: Index, train: Index) -> list[str]:
    features = train.header.features
    return [
        f"dalle-dedup: {excluded:,} of {len(evaluation.rows_NE):,} evaluation images, whose nearest training image is at a cosine of "
        f"{threshold.cosine:g} or more; the nearest first",
        threshold.how,
        f"features: {features['name']}, hash {features['hash']}; central squares of {train.size_px} px",
        *(
            f"{name} images: {len(index.rows_NE):,}; files: {index.header.data['files']:,}, identity {index.header.data['hash']}"
            for name, index in (("evaluation", evaluation), ("training", train))
        ),
    ]
