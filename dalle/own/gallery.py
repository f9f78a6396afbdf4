"""What the trained models draw, beside the real images: captions that were held out, and captions of the training."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from dalle.config import Images, Sampling, plain_json
from dalle.config.checks import printable
from dalle.data.samples import Pair, read_pairs
from dalle.outputs.run_files import WEIGHTS
from dalle.outputs.whole import replace_text, save_picture
from dalle.sampling.gallery import Gallery
from dalle.sampling.loading import load_transformer

_MOST_CAPTIONS = 12
"""Of each kind."""
_LEAST_CAPTIONS = 2
_SHOWN = 4
_ROWS = "rows.json"
_LINE_CHARS = 80


@dataclass(frozen=True)
class Row:
    """A caption as the report shows it.

    Args:
        caption: which was drawn
        held_out: whether no training has seen it
        real: file of the image that belongs to it
        drawn: files of the best candidates, best first
    """

    caption: str
    held_out: bool
    real: str
    drawn: list[str]


def draw_gallery(
    folder: Path,
    train: str,
    valid: str | None,
    images: Images,
    candidates: int,
    seed: int,
    left_s: float,
    say: Callable[[str], None],
) -> list[Row]:
    """Draw captions for as long as there is time, held-out ones and those of the training in turn, and write `gallery/`.

    Args:
        folder: of the models; with `clip/` the best of the candidates are shown, without it the first
        train, valid: the shards
        images: which pairs are kept
        candidates: of each caption
        seed: of the first candidate
        left_s: after which no other caption is begun, if there are two of each kind
        say: takes a line

    Returns:
        the captions, held-out ones first; files are relative to `gallery/`
    """
    reranked = (folder / "clip" / WEIGHTS).is_file()
    pipeline = load_transformer(folder, rerank=reranked)
    size_px = pipeline.dvae.config.image_size_px
    kinds = {True: _distinct(valid, images, size_px) if valid else [], False: _distinct(train, images, size_px)}
    how = f"best of {candidates}" if reranked else f"{_SHOWN} of {candidates}, unranked"
    gallery = Gallery(folder / "gallery", f"Captions drawn, {how}")
    sampling, rows, until_s = Sampling(chunk=min(candidates, 64)), [], time.monotonic() + left_s
    for number in range(_MOST_CAPTIONS):
        for held_out, pairs in kinds.items():
            if number >= len(pairs) or (number >= _LEAST_CAPTIONS and time.monotonic() > until_s):
                continue
            pair = pairs[number]
            drawings = pipeline.generate(pair.captions[0], candidates, _SHOWN, seed, sampling)
            gallery.put(pair.captions[0], drawings)
            real = f"real/{'held-out' if held_out else 'training'}-{number:02d}.png"
            (gallery.folder / "real").mkdir(exist_ok=True)
            save_picture(Image.fromarray(pair.image), gallery.folder / real)
            drawn = [gallery.files(pair.captions[0], place, drawing)[0] for place, drawing in enumerate(drawings)]
            rows.append(Row(pair.captions[0], held_out, real, drawn))
    gallery.write()
    rows.sort(key=lambda row: not row.held_out)
    replace_text(gallery.folder / _ROWS, json.dumps([asdict(row) for row in rows], ensure_ascii=False, indent=1))
    unseen = sum(row.held_out for row in rows)
    say(f"{unseen} held-out caption{'s' * (unseen != 1)} and {len(rows) - unseen} of the training, {how}")
    return rows


def read_rows(folder: Path) -> list[Row]:
    """What an earlier call drew; nothing where there was none."""
    path = folder / "gallery" / _ROWS
    if not path.is_file():
        return []
    rows = plain_json.read(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path} is damaged: it holds no rows; delete it, and the captions are drawn again")
    return [plain_json.made(Row, values, str(path)) for values in rows]


def draw_command(folder: Path) -> str:
    """A line for the shell that draws more: a caption that the models know, held out if there is one, and of one line if there
    is one."""
    captions = [
        row.caption
        for row in read_rows(folder)
        if not row.caption.startswith("-") and printable(row.caption) == row.caption
    ]
    caption = next(
        (caption for caption in captions if len(caption) <= _LINE_CHARS), captions[0] if captions else "CAPTION"
    )
    return shlex.join(["dalle-sample", "--model", str(folder), "--rerank", caption])


def _distinct(shards: str, images: Images, size_px: int) -> list[Pair]:
    """The first pairs of which no two have the same first caption."""
    found: dict[str, Pair] = {}
    for pair in read_pairs(shards, images, size_px):
        found.setdefault(pair.captions[0], pair)
        if len(found) == _MOST_CAPTIONS:
            break
    return list(found.values())
