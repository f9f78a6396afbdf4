"""Folders of images by caption, in GenEval's layout: `00000/metadata.jsonl` and `00000/samples/0000.png`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dalle.data.images import decode

_METADATA = "metadata.jsonl"


def first_images(folder: str | Path, setting: str) -> dict[str, Path]:
    """The first image of each caption; of a caption that stands there more than once, of its first.

    Args:
        folder: in GenEval's layout
        setting: that named it

    Raises:
        ValueError: there is no such folder, it holds no captions, or an entry has no prompt or no image
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{setting} {folder}: no such folder")
    found: dict[str, Path] = {}
    for entry in sorted(path.parent for path in folder.glob(f"*/{_METADATA}")):
        caption = _prompt(entry / _METADATA, setting)
        pictures = sorted((entry / "samples").glob("*.png"))
        if not pictures:
            raise ValueError(f"{setting} {folder}: {entry.name}/samples holds no .png")
        found.setdefault(caption, pictures[0])
    if not found:
        raise ValueError(
            f"{setting} {folder}: no */{_METADATA} there; images lie as GenEval has them, 00000/{_METADATA} and "
            "00000/samples/0000.png"
        )
    return found


def _prompt(path: Path, setting: str) -> str:
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"))["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{setting} {path}: is no JSON object with a prompt")
    return " ".join(prompt.split())


def pixels(path: Path, setting: str) -> np.ndarray:
    """uint8 [Y, X, 3]. Raises ValueError, which names the file, where it is no image."""
    try:
        return np.asarray(decode(path.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{setting} {path}: {error}") from None


def model_names(folders: list[str], setting: str) -> list[str]:
    """A name for each folder: its own, or its path where two have the same. Raises ValueError where one is named twice."""
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"{setting} {' '.join(folders)}: names one folder twice")
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path.resolve()) for path in paths]


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
                    f"{setting} {lacks}: lacks {len(missing)} of the captions of {has}, the first {missing[0]!r}; a study "
                    "compares images of the same captions"
                )
    return list(captions)
