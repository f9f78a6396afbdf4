"""Shards of CUB-200-2011 (Wah et al., 2011) as it is distributed, cropped around the birds, for the GAN of the second document.

    python tools/prepare_cub.py CUB_200_2011 OUTPUT --captions text_c10

FOLDER holds `images.txt`, `bounding_boxes.txt`, `image_class_labels.txt`, `classes.txt` and `images/CLASS/NAME.jpg`; the captions
(Reed et al., 2016) are `CLASS/NAME.txt` of ten lines each, in a folder of their own. OUTPUT gets `train-000.tar` and so on and
`test-000.tar`: images of 256 px with ten captions, and in the json the class, the image's name and the share of the crop's side
that the bird's box takes.

The document takes 11,199 images to train with and 589 to test, and does not say which (it calls the 589 "10%"; they are 5%). Here
they are drawn at random by `--seed`, over all classes; of fewer images as large a share.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that it runs without an installation

import numpy as np
from PIL import Image

from dalle.data import area
from dalle.data.images import decode
from dalle.data.sources.write import ShardWriter
from dalle.outputs.ownership import claimed, unfinished

IMAGES, TEST_IMAGES = 11_788, 589
CAPTIONS = 10
"""Of each image, at least."""
RATIO = 0.75
"""What a bird's box has to take of the crop's side, and more."""
_CAPTION_FOLDERS = ("text_c10", "text", "../text_c10")
_COMMAND = "prepare_cub"


@dataclass(frozen=True)
class Bird:
    """An image of the data set.

    Args:
        name: CLASS/NAME.jpg, below `images/`
        bird_class: as `classes.txt` has it
        box: x, y, width and height of the bird, in pixels
        captions: at least ten
    """

    name: str
    bird_class: str
    box: tuple[float, float, float, float]
    captions: list[str]


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="CUB_200_2011 as it is distributed")
    parser.add_argument("output", help="folder of the shards, new or empty")
    parser.add_argument("--captions", help="folder of CLASS/NAME.txt; without it text_c10 or text in or beside FOLDER")
    parser.add_argument("--size_px", type=int, default=256, help="side of the images")
    parser.add_argument("--seed", type=int, default=0, help="of the split, and of the order")
    parser.add_argument("--overwrite", action="store_true", help="write over what OUTPUT holds")
    options = parser.parse_args(argv)
    try:
        if not Path(options.folder).is_dir():
            raise ValueError(f"there is no folder {options.folder}; name CUB_200_2011 as it is distributed")
        birds = read_birds(Path(options.folder), _captions_folder(Path(options.folder), options.captions))
        with claimed(options.output, _COMMAND, overwrite=options.overwrite) as folder:
            train, test = split(birds, options.seed)
            partial = unfinished(folder)
            for name, part in (("train", train), ("test", test)):
                write(partial, name, Path(options.folder), part, options.size_px)
            for old in [path for name in ("train", "test") for path in folder.glob(f"{name}-*.tar")]:
                old.unlink()
            for shard in sorted(partial.iterdir()):
                os.replace(shard, folder / shard.name)
            partial.rmdir()
    except (ValueError, OSError) as error:
        print(f"{_COMMAND}: {error}", file=sys.stderr)
        sys.exit(2)
    captions = {len(bird.captions) for bird in birds}
    told = str(captions.pop()) if len(captions) == 1 else f"{min(captions)} to {max(captions)}"
    print(
        f"{len(train):,} images to train with and {len(test):,} to test, drawn with seed {options.seed}, of "
        f"{len({bird.bird_class for bird in birds})} classes, each with {told} captions"
    )


def read_birds(folder: Path, captions: Path) -> list[Bird]:
    """All images in the order of `images.txt`. Raises ValueError in one line where one lacks its class, box, file or caption."""
    names = _read_table(folder / "images.txt")
    boxes = _read_table(folder / "bounding_boxes.txt")
    classes = _read_table(folder / "classes.txt")
    numbers = _read_table(folder / "image_class_labels.txt")
    if not names:
        raise ValueError(f"{folder / 'images.txt'} names no image")
    lacking = {
        "bounding_boxes.txt has no box": [key for key in names if key not in boxes],
        "image_class_labels.txt has no class": [key for key in names if key not in numbers],
        "classes.txt has no name of the class": [
            key for key in names if key in numbers and numbers[key] not in classes
        ],
        "there is no file": [key for key, name in names.items() if not (folder / "images" / name).is_file()],
        "there are no captions": [key for key, name in names.items() if not _caption_file(captions, name).is_file()],
    }
    for complaint, keys in lacking.items():
        if keys:
            where = f" in {captions}" if "captions" in complaint else f" in {folder}"
            others = f", nor for {len(keys) - 1:,} others" if len(keys) > 1 else ""
            raise ValueError(f"{complaint} for image {keys[0]}, {names[keys[0]]},{where}{others}")
    return [
        Bird(
            name,
            classes[numbers[key]],
            _box(boxes[key], folder / "bounding_boxes.txt", key),
            _read_captions(_caption_file(captions, name)),
        )
        for key, name in names.items()
    ]


def split(birds: list[Bird], seed: int) -> tuple[list[Bird], list[Bird]]:
    """Those to train with and those to test, each in a random order, so that the images of a class do not lie side by side."""
    order = np.random.default_rng(seed).permutation(len(birds))
    num_test = max(1, round(len(birds) * TEST_IMAGES / IMAGES)) if len(birds) > 1 else 0
    return [birds[number] for number in order[num_test:]], [birds[number] for number in order[:num_test]]


def write(output: Path, name: str, folder: Path, birds: list[Bird], size_px: int) -> None:
    """The shards of one part. Raises ValueError where an image does not decode, or its box lies outside."""
    writer = ShardWriter(output, name)
    try:
        for bird in birds:
            image, ratio = cropped(folder / "images" / bird.name, bird.box, size_px)
            file = io.BytesIO()
            image.save(file, "WEBP", quality=95)
            about = {"class": bird.bird_class, "image": bird.name, "object_ratio": round(ratio, 4)}
            writer.add("webp", file.getvalue(), bird.captions, about)
        writer.close()
    finally:
        writer.let_go()


def cropped(path: Path, box: tuple[float, float, float, float], size_px: int) -> tuple[Image.Image, float]:
    """The square around a bird, and the share of its side that the bird's box takes."""
    try:
        image = decode(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    left, top = max(0.0, box[0]), max(0.0, box[1])
    right, bottom = min(image.width, box[0] + box[2]), min(image.height, box[1] + box[3])
    if right - left < 1 or bottom - top < 1:
        raise ValueError(f"{path}: its box, {box}, lies outside of its {image.width}×{image.height} pixels")
    window, ratio = crop_window(image.size, (left, top, right, bottom))
    if min(window[2] - window[0], window[3] - window[1]) >= size_px:
        return area.resize(image, window, (size_px, size_px)), ratio
    return image.crop(window).resize((size_px, size_px), Image.Resampling.BICUBIC), ratio


def crop_window(size: tuple[int, int], box: tuple[float, float, float, float]) -> tuple[area.Box, float]:
    """The part of an image that is kept, and the share of its longer side that the box's longer side takes, more than `RATIO` for
    boxes of three pixels or more.

    It is a square around the box's centre, as large as that share allows, moved to lie within the image, and no larger than the
    image's shorter side. Only where the box itself is longer than that it is no square, and is squeezed to one, as in the
    family's published preparation, so that no bird is cut off.

    Args:
        size: width and height of the image
        box: left, top, right, bottom within it
    """
    longer = max(box[2] - box[0], box[3] - box[1])
    side = max(math.ceil(longer), min(math.ceil(longer / RATIO) - 1, *size))
    edges = []
    for axis in (0, 1):
        length = min(side, size[axis])
        start = round((box[axis] + box[axis + 2] - length) / 2)
        start = min(max(start, 0), size[axis] - length)
        edges.append((start, start + length))
    (left, right), (top, bottom) = edges
    return (left, top, right, bottom), longer / side


def _read_table(path: Path) -> dict[str, str]:
    """The lines of a file by the number that each begins with."""
    if not path.is_file():
        raise ValueError(
            f"there is no {path.name} in {path.parent}: name the folder of CUB-200-2011 as it is distributed"
        )
    rows = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    table: dict[str, str] = {}
    for row in rows:
        if len(row) != 2:
            raise ValueError(f"{path}: the line {' '.join(row)!r} has a number and nothing else")
        table[row[0]] = row[1].strip()
    return table


def _box(text: str, path: Path, key: str) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = map(float, text.split())
    except ValueError:
        raise ValueError(f"{path}: the box of image {key}, {text!r}, is not x, y, width and height") from None
    if not all(map(math.isfinite, (x, y, width, height))) or width <= 0 or height <= 0:
        raise ValueError(f"{path}: the box of image {key}, {text!r}, has no finite place and size above 0")
    return x, y, width, height


def _captions_folder(folder: Path, named: str | None) -> Path:
    tried = [Path(named)] if named else [folder / name for name in _CAPTION_FOLDERS]
    for path in tried:
        if path.is_dir():
            return path
    raise ValueError(f"no folder of captions {' or '.join(map(str, tried))}: name it with --captions")


def _caption_file(captions: Path, name: str) -> Path:
    return (captions / name).with_suffix(".txt")


def _read_captions(path: Path) -> list[str]:
    found = list(_lines(path))
    if len(found) < CAPTIONS:
        raise ValueError(f"{path} holds {len(found)} captions of {CAPTIONS}; copy it once more")
    return found


def _lines(path: Path) -> Iterator[str]:
    # a few of the published files hold bytes of another encoding
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if caption := " ".join(line.split()):
            yield caption


if __name__ == "__main__":
    main()
