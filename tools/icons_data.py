"""Shards of images whose licences let weights that were trained on them be given away, and what has to be said of them.

    python tools/icons_data.py --data 'emoji/train-*.tar emoji2/train-*.tar clipart/train-*.tar' \\
        --valid_data 'emoji/valid-*.tar emoji2/valid-*.tar clipart/valid-*.tar' --output icons

A sample's licence and source stand in its json, as `licence` and `source`. Public domain, MIT, Apache-2.0 and CC BY are taken;
what asks for more, or says nothing, is left out and counted. Samples are copied as they are, in their order, a thousand to a
shard; `ATTRIBUTION.md` lists sources and licences with their numbers of images.

For the prior, which reads each image in several crops: `--margin_px` lays white around it, so that a crop cuts off no picture, and
`--mirror` adds mirrored training images where left and right are in no caption.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that it runs without an installation

from PIL import Image, ImageOps

from dalle.data.images import decode
from dalle.data.naming import expand
from dalle.data.shards import read

FREE = ("public domain", "mit", "apache-2.0", "cc by 4.0", "cc0")
"""What licences begin with, in small letters; "cc by-sa" begins otherwise."""
MIRRORED = (
    "people & body",
    "smileys & emotion",
    "animals & nature",
    "food & drink",
    "people",
    "animals",
    "food",
    "plants",
)
"""Groups whose images may be mirrored: no flags, signs, letters, clocks, vehicles of one side of the road."""
SIDED = re.compile(
    r"\b(left|right|facing|flag|sign|button|letter|number|clock|text|map|thumbs|black and white)", re.IGNORECASE
)
"""Captions of theirs that are true of one side alone, or of text."""
_PER_SHARD = 1000
_EXTENSIONS = ("webp", "png", "jpg", "jpeg", "txt", "json")


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="training shards")
    parser.add_argument("--valid_data", required=True, help="held-out shards")
    parser.add_argument("--output", required=True, help="folder of the shards, new or empty")
    parser.add_argument("--margin_px", type=int, default=0, help="white laid around each image")
    parser.add_argument(
        "--mirror", action="store_true", help="training images mirrored as well, where captions allow it"
    )
    options = parser.parse_args(argv)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"--output {folder}: is not empty")
    taken: Counter[tuple[str, str]] = Counter()
    left: Counter[str] = Counter()
    for split, spec in (("train", options.data), ("valid", options.valid_data)):
        counted = taken if split == "train" else Counter()  # nothing is trained on what is held out
        samples = free_samples(spec, counted, left)
        count = write(folder, split, redrawn(samples, options.margin_px, options.mirror and split == "train"))
        print(f"{split}: {count:,} images")
    for licence, count in left.most_common():
        print(f"left out: {count:,} images under {licence}")
    (folder / "ATTRIBUTION.md").write_text(attribution(taken), encoding="utf-8")


def free_samples(spec: str, taken: Counter, left: Counter) -> Iterator[dict]:
    """The raw samples that may be used; all are counted."""
    for sample in read(expand(spec)):
        about = json.loads(sample.get("json", b"{}"))
        licence, source = str(about.get("licence", "no licence")), str(about.get("source", "no source"))
        if licence.lower().startswith(FREE):
            taken[source, licence] += 1
            yield sample
        else:
            left[licence] += 1


def redrawn(samples: Iterator[dict], margin_px: int, mirror: bool) -> Iterator[dict]:
    """The samples with a margin, each followed by its mirror image where that is as true."""
    for sample in samples:
        extension = next(e for e in _EXTENSIONS if e in sample)
        yield sample if margin_px == 0 else _with_image(sample, extension, sample["__key__"], margin_px)
        if mirror and may_be_mirrored(json.loads(sample.get("json", b"{}"))):
            yield _with_image(sample, extension, f"{sample['__key__']}-mirrored", margin_px, ImageOps.mirror)


def may_be_mirrored(about: dict) -> bool:
    """Whether no caption tells left from right."""
    captions = [str(caption) for caption in about.get("captions", [])]
    return about.get("group") in MIRRORED and not any(SIDED.search(caption) for caption in captions)


def _with_image(
    sample: dict,
    extension: str,
    key: str,
    margin_px: int,
    change: Callable[[Image.Image], Image.Image] = lambda image: image,
) -> dict:
    image = ImageOps.expand(change(decode(sample[extension])), margin_px, "white")
    file = io.BytesIO()
    image.save(file, "WEBP", quality=95)
    others = {name: value for name, value in sample.items() if name != extension}
    return {**others, "__key__": key, "webp": file.getvalue()}


def write(folder: Path, split: str, samples: Iterator[dict]) -> int:
    """Write samples as shards, each whole or not at all. Returns how many they were."""
    count, tar = 0, None
    partial = folder / f".{split}.{os.getpid()}.partial"
    for sample in samples:
        if count % _PER_SHARD == 0:
            _finish(tar, partial, folder, split, count)
            tar = tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        for extension in _EXTENSIONS:
            if extension in sample:
                info = tarfile.TarInfo(f"{sample['__key__']}.{extension}")
                info.size = len(sample[extension])
                assert tar is not None
                tar.addfile(info, io.BytesIO(sample[extension]))
        count += 1
    _finish(tar, partial, folder, split, count)
    return count


def _finish(tar: tarfile.TarFile | None, partial: Path, folder: Path, split: str, count: int) -> None:
    if tar is not None:
        tar.close()
        os.replace(partial, folder / f"{split}-{(count - 1) // _PER_SHARD:03}.tar")


def attribution(taken: Counter) -> str:
    """What has to stand beside weights that were trained on them, as Markdown."""
    lines = ["# Images that the weights were trained on", ""]
    lines += [f"- {source}: {count:,} images, {licence}" for (source, licence), count in sorted(taken.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
