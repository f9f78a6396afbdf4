"""The folder of an evaluation's images: GenEval's, so that graders from elsewhere read ours and we read theirs.

`DIR/00000/metadata.jsonl` is one JSON object with its "prompt", `DIR/00000/samples/0000.png` and so on are its images.
A flat folder of `NAME.png` beside `NAME.txt` is read as one image for each caption.
Source: "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment", 2023, and its published code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dalle.config import plain_json
from dalle.data.captions import is_encodable
from dalle.data.images import decode
from dalle.outputs.whole import replace_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_LAYOUT = "DIR/00000/metadata.jsonl with DIR/00000/samples/0000.png, or DIR/NAME.png beside DIR/NAME.txt"


@dataclass(frozen=True)
class Prompted:
    """A prompt and where its images lie.

    Args:
        number: of its folder; in a flat folder its place by name
        prompt: what was to be drawn
        metadata: all that is known of it; has its "prompt", and may have "tag", "include", "exclude" and "scene"
        samples: its images, by number
    """

    number: int
    prompt: str
    metadata: dict[str, Any]
    samples: tuple[Path, ...]


@dataclass(frozen=True)
class Sample:
    """An image of a prompt: its place among them, its file, and uint8 [Y, X, 3] at its own size."""

    prompted: Prompted
    place: int
    path: Path
    image_YX3: np.ndarray


def prompt_folder(folder: Path, number: int) -> Path:
    """Of the prompt of this number, from 0."""
    return Path(folder) / f"{number:05}"


def sample_path(folder: Path, number: int, place: int) -> Path:
    """Of the image at this place, from 0, of the prompt of this number."""
    return prompt_folder(folder, number) / "samples" / f"{place:04}.png"


def write_prompt(folder: Path, number: int, metadata: dict[str, Any]) -> Path:
    """Make the folders of a prompt and write its metadata, whole or not at all. Returns its folder.

    Args:
        folder: of all prompts
        number: of this one
        metadata: JSON-able, with its "prompt"
    """
    made = prompt_folder(folder, number)
    (made / "samples").mkdir(parents=True, exist_ok=True)
    replace_text(made / "metadata.jsonl", json.dumps(metadata) + "\n")
    return made


def read_metadata(path: Path) -> dict[str, Any]:
    """Of a prompt.

    Raises:
        ValueError: the file is missing, or is no JSON object with a "prompt"
    """
    try:
        metadata = plain_json.read(path)
        prompt = metadata["prompt"]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; put one there for each prompt") from None
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str) or not prompt.strip() or not is_encodable(prompt):
        raise ValueError(f'{path}: must be a JSON object like {{"prompt": "a red circle"}}')
    return metadata


def read_layout(folder: str | Path, setting: str = "images") -> list[Prompted]:
    """The prompts of a folder and the paths of their images; no image is opened.

    Args:
        folder: of the images
        setting: that named it

    Raises:
        ValueError: the folder is missing, empty or of another layout; a prompt has no metadata or no images, or its images
            are not numbered from 0 without a gap
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{setting} {folder}: is no folder; name one")
    folders = [path for path in _listed(folder) if path.is_dir()]
    if not folders:
        return _read_flat(folder, setting)
    loose = [path for path in _listed(folder) if path.suffix.lower() in SUFFIXES and path.stem not in ("grid", "sheet")]
    if loose:
        raise ValueError(f"{setting} {folder}: holds both folders and {loose[0].name}; lay it out as {_LAYOUT}")
    return [_read_prompt(number, path) for number, path in _by_number(folders, f"{setting} {folder}")]


def load(prompted: Iterable[Prompted], most: int | None = None) -> Iterator[Sample]:
    """The images, one at a time, prompt by prompt.

    Args:
        prompted: from `read_layout`
        most: of each prompt, the first; null takes all

    Raises:
        ValueError: an image cannot be read, or has another size than the first
    """
    first: Sample | None = None
    for entry in prompted:
        for place, path in enumerate(entry.samples[:most]):
            sample = Sample(entry, place, path, read_image(path))
            first = first or sample
            if sample.image_YX3.shape != first.image_YX3.shape:
                raise ValueError(
                    f"images of mixed sizes: {first.path} has {_size(first)} px, {path} has {_size(sample)} px; bring them "
                    "to one size first"
                )
            yield sample


def read_image(path: Path) -> np.ndarray:
    """uint8 [Y, X, 3], as a person sees it. Raises ValueError with its name when it cannot be read."""
    try:
        return np.asarray(decode(path.read_bytes()))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; see that it may be read") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}; take it out, or save it anew as PNG") from None


def _size(sample: Sample) -> str:
    height, width, _ = sample.image_YX3.shape
    return f"{width}×{height}"


def _listed(folder: Path) -> list[Path]:
    """By name; hidden ones, such as the mark of who wrote the folder, are no part of it."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _by_number(paths: list[Path], where: str) -> list[tuple[int, Path]]:
    """With the numbers that their names are, in their order."""
    found: dict[int, Path] = {}
    for path in paths:
        if not (path.stem.isascii() and path.stem.isdigit()):
            raise ValueError(f"{where}: {path.name} is not named by a number; lay it out as {_LAYOUT}")
        number = int(path.stem)
        if number in found:
            raise ValueError(f"{where}: {found[number].name} and {path.name} have one number; leave one out")
        found[number] = path
    return sorted(found.items())


def _read_prompt(number: int, folder: Path) -> Prompted:
    metadata = read_metadata(folder / "metadata.jsonl")
    samples = folder / "samples"
    files = [path for path in _listed(samples) if path.suffix.lower() in SUFFIXES] if samples.is_dir() else []
    if not files:
        raise ValueError(f"{samples}: holds no image; repeat the run of dalle-sample that was stopped, which goes on")
    ordered = _by_number(files, str(samples))
    for place, (found, path) in enumerate(ordered):
        if found != place:  # which a folder that was copied in part may be known by
            raise ValueError(
                f"{samples}: holds {path.name}, and no image {place}; images are numbered from 0 without a gap: put the missing ones "
                "there, or number those that are there anew"
            )
    return Prompted(number, metadata["prompt"], metadata, tuple(path for _, path in ordered))


def _read_flat(folder: Path, setting: str) -> list[Prompted]:
    """NAME.png beside NAME.txt."""
    images: dict[str, Path] = {}
    captions = {path.stem: path for path in _listed(folder) if path.suffix == ".txt"}
    for path in _listed(folder):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in images:
            raise ValueError(
                f"{setting} {folder}: {images[path.stem].name} and {path.name} share one caption; leave one out"
            )
        images[path.stem] = path
    if not images:
        raise ValueError(f"{setting} {folder}: holds no images; lay it out as {_LAYOUT}")
    for name in sorted(images.keys() ^ captions.keys()):
        found, missing = (images[name], "caption") if name in images else (captions[name], "image")
        other = f"{name}.txt" if missing == "caption" else f"{name}.png"
        raise ValueError(f"{setting} {folder}: {found.name} has no {missing} {other} beside it; put it there")
    return [_flat(number, captions[name], images[name]) for number, name in enumerate(sorted(images))]


def _flat(number: int, caption_file: Path, image: Path) -> Prompted:
    try:
        caption = " ".join(caption_file.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{caption_file}: cannot be read as UTF-8 text ({error}); save it as such") from None
    if not caption:
        raise ValueError(f"{caption_file}: has no caption in it; write one")
    return Prompted(number, caption, {"prompt": caption}, (image,))
