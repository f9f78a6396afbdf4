"""Two pictures beside each other, small, for pages that show many."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
from PIL import Image

from dalle.data.images import shrink
from dalle.evaluation.report.section import picture
from dalle.outputs.whole import save_picture

SHOWN_PX = 128
"""Side of a picture on a page: two of them and their frame fit a phone of 320."""
_CAPTION_CHARACTERS = 160


def write_thumbnail(image: np.ndarray, path: Path) -> None:
    """An image, uint8 [Y, X, 3], as a PNG with a short side of at most `SHOWN_PX`."""
    save_picture(shrink(Image.fromarray(image), SHOWN_PX), path)


def side_by_side(left: Path, right: Path, page: Path, notes: tuple[str, str], title: str, marked: bool = False) -> str:
    """A card of two pictures. It says its own layout, for pages that know nothing of it.

    Args:
        left: file of the picture
        right: file of the other
        page: folder of the page
        notes: what is below each
        title: above both
        marked: the card stands out
    """
    shown = "".join(
        picture(file, page, _short(note), SHOWN_PX) for file, note in zip((left, right), notes, strict=True)
    )
    return (
        f'<div class="pair{" marked" * marked}"><b>{html.escape(title)}</b>'
        f'<div style="display:grid;grid-template-columns:repeat(2,{SHOWN_PX}px);gap:6px">{shown}</div></div>'
    )


def _short(note: str) -> str:
    return note if len(note) <= _CAPTION_CHARACTERS else note[: _CAPTION_CHARACTERS - 1] + "…"
