"""Are samples training images remembered? Each sample's nearest training image, and how near those are beside how near
real images that were never trained on are to the same training images.

To compare with the distances of real images, by features that were made for telling copies, is how Somepalli et al.
("Diffusion Art or Digital Forgery?", 2022) look for replication. Carlini et al. ("Extracting Training Data from Diffusion
Models", 2023) warn that plain pictures, such as a blank page, are near to many and remembered by nobody: so the pictures are
shown, and the figures alone prove nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dalle.evaluation.features.contract import Features
from dalle.evaluation.overlap.cards import side_by_side, write_thumbnail
from dalle.evaluation.overlap.index import Index
from dalle.evaluation.overlap.nearest import nearest
from dalle.evaluation.overlap.stream import pictures
from dalle.evaluation.report.section import Section, curve, prose, row, table

PERCENT = 1
"""Of the real images, that are as near to a training image as what counts as suspicious."""
LEAST_IMAGES = 100
"""Real images below which the first percentile is little more than the nearest of them."""
_CURVE_POINTS = 41


@dataclass(frozen=True)
class Memorised:
    """What was found.

    Args:
        section: of the report, with the figures
        distances_N: of each sample to its nearest training image, 1 − cosine, in [0, 2]
        rows_N: that image's row in the index
        real_distances_M: of each held-out real image to its own
    """

    section: Section
    distances_N: np.ndarray
    rows_N: np.ndarray
    real_distances_M: np.ndarray


def memorised(
    samples: Sequence[np.ndarray],
    captions: Sequence[str],
    train: Index,
    real: Iterable[np.ndarray],
    features: Features,
    folder: Path,
    page: Path,
    shown: int = 12,
    seed: int = 0,
    batch_size: int = 64,
) -> Memorised:
    """Compare samples, and held-out real images, with the training images.

    Args:
        samples: uint8 [Y, X, 3] of one size; a list, an array, or what opens an image when it is asked for
        captions: of the samples
        train: index of the training images by the same network, best at the samples' own size
        real: held-out images of the samples' size, none of which was trained on: without those that `dalle-dedup` finds
        features: the network
        folder: for the pictures; made where it is missing
        page: folder of the page that shows them
        shown: how many samples are shown of the nearest, and as many of all
        seed: of that choice
        batch_size: images that the network sees at a time

    Raises:
        ValueError: there are no samples or no real images, sizes are mixed, or the index is of another network
    """
    if train.header.features["hash"] != features.hash:
        raise ValueError(
            f"{train.folder}: was embedded by {train.header.features['name']}, of another hash; embed it with these features"
        )
    sides: dict[str, set[int]] = {"samples": set(), "held-out real images": set()}
    distances_N, rows_N = _distances(samples, "samples", train, features, batch_size, sides)
    real_M, _ = _distances(real, "held-out real images", train, features, batch_size, sides)
    limit = float(np.percentile(real_M, PERCENT))
    figures = {
        "features": features.name,
        "features_hash": features.hash,
        "samples": len(distances_N),
        "real_images": len(real_M),
        "training_images": len(train.rows_NE),
        "real_first_percentile": limit,
        "share_nearer": float(np.mean(distances_N < limit)),
        **_summary("sample", distances_N),
        **_summary("real", real_M),
    }
    worst = np.argsort(distances_N, kind="stable")[:shown]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(distances_N))[:shown])
    cards = _cards(
        sorted({*worst.tolist(), *chosen.tolist()}), samples, captions, train, distances_N, rows_N, folder, page
    )
    body = (
        prose(
            "Distance is 1 − cosine of the features of an image and of the training image nearest to it. A model that draws as "
            f"freely as the real images were made has {PERCENT}% of its samples nearer than the first percentile of those."
        )
        + _table(figures, distances_N, real_M)
        + _curves(distances_N, real_M)
        + row([cards[i] for i in worst.tolist()], "The nearest: sample, and its nearest training image")
        + row([cards[i] for i in chosen.tolist()], "Of all samples, at random")
    )
    section = Section("memorised", "Memorised or not", body, figures, tuple(_notes(len(real_M), limit, sides, train)))
    return Memorised(section, distances_N, rows_N, real_M)


def _distances(
    images: Iterable[np.ndarray], name: str, train: Index, features: Features, batch_size: int, sides: dict[str, set]
) -> tuple[np.ndarray, np.ndarray]:
    parts: list[np.ndarray] = []
    for batch in _batches(images, batch_size):
        sides[name] |= {image.shape[:2] for image in batch}
        if len(sides[name]) > 1:
            told = ", ".join(f"{x}×{y}" for y, x in sorted(sides[name]))
            raise ValueError(f"{name}: of different sizes ({told} px); bring them to one")
        parts.append(np.asarray(features(np.stack(batch)).features_BE, np.float32))
    if not parts:
        raise ValueError(f"{name}: there are none, so nothing can be said about what is remembered; give some")
    found = nearest(np.concatenate(parts), train.blocks())
    return 1 - found.cosines_QK[:, 0], found.rows_QK[:, 0]


def _batches(images: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    batch: list[np.ndarray] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _cards(
    numbers: list[int],
    samples: Sequence[np.ndarray],
    captions: Sequence[str],
    train: Index,
    distances_N: np.ndarray,
    rows_N: np.ndarray,
    folder: Path,
    page: Path,
) -> dict[int, str]:
    """By the number of the sample; the pictures are written."""
    folder.mkdir(parents=True, exist_ok=True)
    places = train.places({int(rows_N[i]) for i in numbers})
    files = {place: folder / f"train-{number:08d}.png" for number, place in places.items()}
    for place, image in pictures(train.shards, train.images, train.size_px, files):
        write_thumbnail(image, files[place])
    cards = {}
    for i in numbers:
        sample, place = folder / f"sample-{i:06d}.png", places[int(rows_N[i])]
        write_thumbnail(samples[i], sample)
        notes = captions[i], place.captions[0] if place.captions else place.key
        cards[i] = side_by_side(sample, files[place], page, notes, f"distance {distances_N[i]:.4f}")
    return cards


def _summary(name: str, distances: np.ndarray) -> dict[str, float]:
    return {
        f"{name}_nearest": float(distances.min()),
        f"{name}_median": float(np.median(distances)),
        f"{name}_mean": float(distances.mean()),
    }


def _table(figures: dict, distances_N: np.ndarray, real_M: np.ndarray) -> str:
    header = ["Distance to the nearest training image", "images", "smallest", "median", "mean", "share below the limit"]
    rows = [
        [
            "samples",
            len(distances_N),
            *(figures[f"sample_{k}"] for k in ("nearest", "median", "mean")),
            figures["share_nearer"],
        ],
        [
            "held-out real images",
            len(real_M),
            *(figures[f"real_{k}"] for k in ("nearest", "median", "mean")),
            float(np.mean(real_M < figures["real_first_percentile"])),
        ],
    ]
    said = f"The limit is the first percentile of the real images, {figures['real_first_percentile']:.4g}, by "
    return table(header, rows) + prose(f"{said}{figures['features']} ({figures['features_hash'][:16]}).")


def _curves(distances_N: np.ndarray, real_M: np.ndarray) -> str:
    shares = np.linspace(0, 1, _CURVE_POINTS)
    sets = {"samples": distances_N, "held-out real images": real_M}
    lines = {name: (np.quantile(values, shares).tolist(), shares.tolist()) for name, values in sets.items()}
    return curve("Share of images whose nearest training image is at most this far", lines)


def _notes(num_real: int, limit: float, sides: dict[str, set], train: Index) -> Iterator[str]:
    if num_real < LEAST_IMAGES:
        yield (
            f"Only {num_real} held-out real images: their first percentile, {limit:.4g}, lies at the nearest of them, and the "
            f"share below it says little; take {LEAST_IMAGES} or more."
        )
    (sample_side,), (real_side,) = sides.values()
    if sample_side != real_side:
        yield (
            f"Samples are {sample_side[1]}×{sample_side[0]} px and real images {real_side[1]}×{real_side[0]}: what differs may "
            "be the size alone."
        )
    if train.size_px != sample_side[0]:
        yield (
            f"Samples are {sample_side[1]}×{sample_side[0]} px and the training images were embedded at {train.size_px}: copies "
            "look farther away than they are."
        )
