"""Folders of images by caption, as `dalle.evaluation.layout` reads them."""

from __future__ import annotations

import os
from pathlib import Path

from dalle.evaluation.layout import read_layout


def first_images(folder: str | Path, setting: str) -> dict[str, Path]:
    """The first image of each caption; of a caption that stands there more than once, of its first.

    Args:
        folder: in any layout that `read_layout` knows
        setting: that named it

    Raises:
        ValueError: there is no such folder, it holds no captions, or an entry has no prompt or no image
    """
    found: dict[str, Path] = {}
    for each in read_layout(folder, setting):
        found.setdefault(" ".join(each.prompt.split()), each.samples[0])
    return found


def model_names(folders: list[str], setting: str) -> list[str]:
    """A name for each folder: its own, or its path where two have the same. Raises ValueError where one is named twice."""
    paths = [Path(folder) for folder in folders]
    if len(set(map(os.path.realpath, paths))) < len(paths):
        raise ValueError(f"{setting} {' '.join(folders)}: names one folder twice; name each once")
    names = [os.path.basename(os.path.realpath(path)) for path in paths]
    return names if len(set(names)) == len(names) else [*map(os.path.realpath, paths)]


def same_captions(models: dict[str, dict[str, Path]], setting: str) -> list[str]:
    """The captions of all models, in the first one's order.

    Raises:
        ValueError: one lacks a caption of another, which is named
    """
    (first, captions), *others = models.items()
    for name, theirs in others:
        for lacks, has, missing in (
            (name, first, [caption for caption in captions if caption not in theirs]),
            (first, name, [caption for caption in theirs if caption not in captions]),
        ):
            if missing:
                raise ValueError(
                    f"{setting} {lacks}: lacks {len(missing)} of the captions of {has}, the first {missing[0]!r}; draw "
                    "them too, for a study compares images of the same captions"
                )
    return list(captions)
