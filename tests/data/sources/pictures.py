"""Small folders of pictures, as people have them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from dalle.config import Filters
from dalle.data.sources.prepare import Choice, Prepared, prepare

DEFAULT = Filters()


def picture(number: int, size: tuple[int, int] = (40, 48), mode: str = "RGB") -> Image.Image:
    """One that differs from all others by its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).convert(mode)


def png(number: int, size: tuple[int, int] = (40, 48)) -> bytes:
    """The same as bytes."""
    file = io.BytesIO()
    picture(number, size).save(file, "PNG")
    return file.getvalue()


def captioned(folder: Path, number: int, caption: str | None, name: str | None = None) -> Path:
    """A picture with its caption in a .txt beside it."""
    path = folder / f"{name or f'{number:04d}'}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def prepared(source: Path | str, output: Path, filters: Filters = DEFAULT, share: float = 0.0, **settings) -> Prepared:
    """With settings that most tests share."""
    choice = Choice(**{k: settings.pop(k) for k in ("captions", "image_column", "caption_column") if k in settings})
    return prepare(str(source), output, filters, share, choice=choice, **settings)


def written(output: Path, split: str = "*") -> dict[str, list[str]]:
    """Captions by the names that the images had, as other software reads the shards."""
    found = {}
    for shard in sorted(output.glob(f"{split}-*.tar")):
        with tarfile.open(shard) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in files.items():
            if name.endswith(".json"):
                about = json.loads(data)
                found[about["file"]] = about["captions"]
                assert files[name.replace(".json", ".txt")].decode() == about["captions"][0]
    return found
