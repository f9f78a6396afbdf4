"""The page of an overlap: pairs by closeness, on which a person sees what the threshold leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dalle.evaluation.overlap.cards import side_by_side, write_thumbnail
from dalle.evaluation.overlap.index import Index
from dalle.evaluation.overlap.pairs import Near
from dalle.evaluation.overlap.stream import Place, pictures
from dalle.evaluation.overlap.threshold import Threshold
from dalle.evaluation.report.page import page
from dalle.evaluation.report.section import Section, curve, prose, row, table
from dalle.outputs.whole import replace_text

PICTURES = "pictures"
_CURVE_POINTS = 41
_ADVICE = (
    "As in the paper, rather too many images are to be left out than too few: choose a threshold on the pictures below, and "
    "give it with --threshold."
)


def write_page(
    folder: Path, pairs: list[Near], evaluation: Index, train: Index, threshold: Threshold, shown: int
) -> None:
    """`index.html` and the small pictures on it; those of an earlier page that are on it no more are removed.

    Args:
        folder: of the page
        pairs: the closest first
        evaluation: index of the evaluation images
        train: index of the training images
        threshold: which pairs stand above the line
        shown: how many of the pairs, the closest first
    """
    files = _write_pictures(folder / PICTURES, pairs[:shown], evaluation, train)
    sections = _sections(folder, pairs, evaluation, train, threshold, shown)
    title = "Evaluation images that are near training images"
    replace_text(folder / "index.html", page(title, f"{len(pairs):,} evaluation images", {}, list(sections)))
    for old in (folder / PICTURES).glob("[et][0-9]*.png"):
        if old not in files:
            old.unlink()


def _write_pictures(folder: Path, pairs: list[Near], evaluation: Index, train: Index) -> set[Path]:
    folder.mkdir(exist_ok=True)
    written = set()
    ours = {pair.place: _file(folder, "e", pair.row) for pair in pairs}
    theirs = {pair.train_place: _file(folder, "t", pair.train_row) for pair in pairs}
    for index, files in ((evaluation, ours), (train, theirs)):
        for place, image in pictures(index.shards, index.images, index.size_px, files):
            write_thumbnail(image, files[place])
            written.add(files[place])
    return written


def _file(folder: Path, set_letter: str, row_number: int) -> Path:
    return folder / f"{set_letter}{row_number:08d}.png"


def _sections(
    folder: Path, pairs: list[Near], evaluation: Index, train: Index, threshold: Threshold, shown: int
) -> Iterator[Section]:
    features = train.header.features
    excluded = sum(pair.cosine >= threshold.cosine for pair in pairs)
    rows: list[list[Any]] = [
        ["Evaluation images", len(pairs)],
        ["Training images", len(train.rows_NE)],
        ["At or above the threshold", excluded],
        ["Threshold", f"{threshold.cosine:.3f}"],
        ["Feature network", f"{features['name']}, {features['hash'][:16]}"],
        ["Images", f"central squares of {train.size_px} px, then {features['resizer']}"],
    ]
    broken = tuple(
        f"{name}: {index.counts.line()}"
        for name, index in (("Evaluation", evaluation), ("Training", train))
        if index.counts.num_broken + index.counts.num_filtered
    )
    body = table(["", ""], rows) + prose(f"{threshold.how} {_ADVICE}") + prose(what_is_found(features["name"]))
    yield Section("overlap", "What was compared", body, notes=broken)
    yield Section("closeness", "How near they are", _curves(pairs, threshold) + _copies_table(threshold))
    above = [_card(folder, rank, pair, True) for rank, pair in _ranked(pairs[:shown], threshold, True)]
    below = [_card(folder, rank, pair, False) for rank, pair in _ranked(pairs[:shown], threshold, False)]
    for key, title, cards, total in (
        ("excluded", f"Left out: cosine {threshold.cosine:.3f} or more", above, excluded),
        ("kept", "Kept: below the threshold", below, len(pairs) - excluded),
    ):
        count = f"{total:,} pairs" if total == len(cards) else f"{total:,} pairs, of which {len(cards):,} are shown"
        said = prose(
            f"{count}, the closest first; on the left the evaluation image, on the right its nearest training image."
        )
        yield Section(key, title, said + row(cards))


def _ranked(pairs: list[Near], threshold: Threshold, above: bool) -> Iterator[tuple[int, Near]]:
    for rank, pair in enumerate(pairs, 1):
        if (pair.cosine >= threshold.cosine) == above:
            yield rank, pair


def _card(folder: Path, rank: int, pair: Near, marked: bool) -> str:
    files = _file(folder / PICTURES, "e", pair.row), _file(folder / PICTURES, "t", pair.train_row)
    notes = _note(pair.place), _note(pair.train_place)
    return side_by_side(*files, folder, notes, f"{rank:,} · cosine {pair.cosine:.4f}", marked)


def _note(place: Place) -> str:
    return f"{place.captions[0] if place.captions else '(no caption)'} · {place.key}"


def _curves(pairs: list[Near], threshold: Threshold) -> str:
    sets = {"evaluation images to their nearest training image": np.array([pair.cosine for pair in pairs])}
    sets |= {f"to a copy {name}": values for name, values in threshold.copies.items()}
    shares = np.linspace(0, 1, _CURVE_POINTS)
    lines = {name: (np.quantile(values, 1 - shares).tolist(), shares.tolist()) for name, values in sets.items()}
    return curve("Share of images at this cosine or nearer", lines)


def _copies_table(threshold: Threshold) -> str:
    if not threshold.copies:
        return ""
    rows = [
        [f"a copy {name}", *(float(np.percentile(values, percent)) for percent in (1, 5, 50))]
        for name, values in threshold.copies.items()
    ]
    return table(["Cosine of an evaluation image to", "1% lie below", "5% lie below", "half lie below"], rows)


def what_is_found(features_name: str) -> str:
    """What a feature network takes for near, in words, since it is not the paper's."""
    said = "The paper's contrastive model was trained for this, with copies made by augmentation; the network here was not. "
    if features_name.startswith("efficientnet"):
        return said + (
            "Trained to name what is on photographs, it finds copies that were compressed, mirrored, reduced or cropped a little. "
            "Parts of a picture, recoloured and pasted-over ones often stay the nearest, and yet below the threshold; and drawings "
            "of similar things in one style are near without being copies: look before the list is used."
        )
    return said + "Look at the pictures before the list is used."
