"""Distances of samples from real images, by each feature network, with and without the images of an exclusion list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dalle.evaluation.features.contract import Features
from dalle.evaluation.layout import read_image
from dalle.evaluation.measures import distances
from dalle.evaluation.measures.collector import Collected, Collector
from dalle.evaluation.measures.comparison import Comparison
from dalle.evaluation.measures.moments import Moments
from dalle.evaluation.measures.section import section
from dalle.evaluation.report.section import Section
from dalle.evaluation.steps.reference import Reference


@dataclass(frozen=True)
class Settings:
    """How sets are collected: images together, blur radii in pixels, and the seed of what is sampled."""

    batch_size: int
    radii_px: tuple[float, ...]
    seed: int


def read_batches(paths: Sequence[Path], size: int) -> Iterator[np.ndarray]:
    """Images uint8 [B, Y, X, 3] of files of one size, `size` at a time and at last fewer."""
    for first in range(0, len(paths), size):
        yield np.stack([read_image(path) for path in paths[first : first + size]])


def collect(network: Features, batches: Iterable[np.ndarray], count: int, settings: Settings) -> Collected:
    """The sums of a set of `count` images."""
    collector = Collector(network, count, settings.radii_px, settings.seed)
    for images_BYX3 in batches:
        collector.add(images_BYX3)
    return collector.collected


def real_sets(
    network: Features, reference: Reference, excluded: set[int], settings: Settings
) -> tuple[Collected, Collected | None]:
    """All reference images, and those without the excluded; null where none is excluded."""
    whole = collect(network, reference.batches(settings.batch_size), len(reference), settings)
    if not excluded:
        return whole, None
    kept = [number for number in range(len(reference)) if number not in excluded]
    return whole, collect(network, reference.batches(settings.batch_size, kept), len(kept), settings)


def distance_section(comparison: Comparison, excluding: int = 0) -> Section:
    """A comparison as a part of the report, of which there may be several."""
    name = comparison.source.name
    key = f"distances_{name}" if not excluding else f"distances_{name}_excluding"
    title = f"Distances by {name}" + (f", {excluding:,} reference images left out" if excluding else "")
    return section(comparison, key.replace(" ", "_"), title)


def distances_over_n(
    network: Features, winners: dict[int, list[Path]], real: Collected, settings: Settings
) -> dict[int, float]:
    """The Fréchet distance of the best of N, unblurred, by N.

    Args:
        network: that the reference was collected by
        winners: by N, an image of each caption; one that several N share goes through the network once
        real: the reference
        settings: images together
    """
    moments = {n: Moments(network.width) for n in winners}
    captions = len(next(iter(winners.values())))
    for first in range(0, captions, settings.batch_size):
        part = {n: paths[first : first + settings.batch_size] for n, paths in winners.items()}
        unique = sorted({path for paths in part.values() for path in paths})
        features = np.concatenate([network(images).features_BE for images in read_batches(unique, settings.batch_size)])
        place = {path: row for row, path in enumerate(unique)}
        for n, paths in part.items():
            moments[n].add(features[[place[path] for path in paths]])
    return {n: distances.frechet_distance(found, real.at[0.0].moments) for n, found in moments.items()}
