"""Many drawings as one PNG: a grid with scores under headings, or a sheet of one drawing for each caption."""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from collections import deque
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dalle.outputs.whole import save_picture
from dalle.sampling.drawing import Drawing, facts, finite_score, to_json

MIN_CELL_PX = 128
GAP_PX = 12
TITLE_PX, CAPTION_PX, SCORE_PX = 22, 16, 13
MAX_CAPTION_LINES = 6
PAPER, INK, SOFT = "white", "#1c2330", "#5d6778"


def make_grid(drawings: list[Drawing], columns: int | None = None, title: str | None = None) -> Image.Image:
    """All drawings in the order given, their caption above and each one's score below.

    Neighbours with the same caption share one heading. Images under 128 px are enlarged by a whole factor.
    columns: images per row; about square when None. Raises ValueError when there is nothing to draw.
    """
    groups: list[tuple[str, list[Drawing]]] = []
    for drawing in drawings:
        if not groups or groups[-1][0] != drawing.caption:
            groups.append((drawing.caption, []))
        groups[-1][1].append(drawing)
    columns = columns or _choose_columns(max((len(group) for _, group in groups), default=1))
    cells = _Cells(drawings)
    # A narrow grid is widened, so that a caption over a single small image does not run down the page.
    width = max(columns * (cells.width + GAP_PX) + GAP_PX, 320)
    title_font, caption_font = (ImageFont.load_default(size=px) for px in (TITLE_PX, CAPTION_PX))
    title_lines = _wrap(title, title_font, width - 2 * GAP_PX) if title else []
    wrapped = [(_wrap(caption, caption_font, width - 2 * GAP_PX), group) for caption, group in groups]
    height = GAP_PX + len(title_lines) * _line_px(TITLE_PX) + (GAP_PX // 2 if title_lines else 0)
    for lines, group in wrapped:
        rows = math.ceil(len(group) / columns)
        height += len(lines) * _line_px(CAPTION_PX) + GAP_PX // 2 + rows * (cells.height + GAP_PX)
    canvas = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    y = _write_lines(pen, GAP_PX, GAP_PX, title_lines, title_font, TITLE_PX) + (GAP_PX // 2 if title_lines else 0)
    for lines, group in wrapped:
        y = _write_lines(pen, GAP_PX, y, lines, caption_font, CAPTION_PX) + GAP_PX // 2
        for index, drawing in enumerate(group):
            row, column = divmod(index, columns)
            cells.paste(canvas, drawing, GAP_PX + column * (cells.width + GAP_PX), y + row * (cells.height + GAP_PX))
        y += math.ceil(len(group) / columns) * (cells.height + GAP_PX)
    return canvas


def make_sheet(drawings: list[Drawing], columns: int) -> Image.Image:
    """One drawing for each of many captions, the caption below its image in small print."""
    cells = _Cells(drawings)
    font = ImageFont.load_default(size=SCORE_PX)
    lines = [_wrap(drawing.caption, font, cells.width) for drawing in drawings]
    row_y = cells.height + 4 + max(map(len, lines)) * _line_px(SCORE_PX) + GAP_PX
    rows = math.ceil(len(drawings) / columns)
    canvas = Image.new("RGB", (columns * (cells.width + GAP_PX) + GAP_PX, rows * row_y + GAP_PX), PAPER)
    pen = ImageDraw.Draw(canvas)
    for index, drawing in enumerate(drawings):
        row, column = divmod(index, columns)
        left, top = GAP_PX + column * (cells.width + GAP_PX), GAP_PX + row * row_y
        cells.paste(canvas, drawing, left, top)
        _write_lines(pen, left, top + cells.height + 4, lines[index], font, SCORE_PX)
    return canvas


def write_grid(drawings: list[Drawing], path: Path, columns: int | None = None, title: str | None = None) -> None:
    """Writes `make_grid` as one PNG, with the text chunks "captions" (a JSON list) and "dalle" (JSON: title, and the
    facts of each drawing in order)."""
    _write_picture(make_grid(drawings, columns, title), drawings, path, title)


def write_sheet(drawings: list[Drawing], path: Path, columns: int) -> None:
    """Writes `make_sheet` as one PNG, with the text chunks of `write_grid`."""
    _write_picture(make_sheet(drawings, columns), drawings, path, None)


def grid_png(drawings: list[Drawing], title: str | None = None) -> bytes:
    """The file that `write_grid` writes."""
    buffer = io.BytesIO()
    make_grid(drawings, title=title).save(buffer, format="PNG", pnginfo=_record(drawings, title))
    return buffer.getvalue()


def _write_picture(canvas: Image.Image, drawings: list[Drawing], path: Path, title: str | None) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_picture(canvas, path, pnginfo=_record(drawings, title))


def _record(drawings: list[Drawing], title: str | None) -> PngInfo:
    """What the PNG of a picture of these tells in its text chunks."""
    text = PngInfo()
    text.add_itxt("captions", to_json(list(dict.fromkeys(drawing.caption for drawing in drawings))))
    records = [{"caption": drawing.caption, **facts(drawing)} for drawing in drawings]
    text.add_itxt("dalle", to_json({"title": title, "drawings": records}))
    return text


class _Cells:
    """The images of a picture, all in cells of one size, with room for what is said below where any has something."""

    def __init__(self, drawings: list[Drawing]) -> None:
        if not drawings:
            raise ValueError("a grid needs at least one drawing; give one")
        self._images = {id(drawing): _enlarge(drawing.picture) for drawing in drawings}
        self._image_y = max(image.height for image in self._images.values())
        self._font = ImageFont.load_default(size=SCORE_PX)
        self.width = max(image.width for image in self._images.values())
        self.height = self._image_y + (SCORE_PX + 6 if any(map(_label, drawings)) else 0)

    def paste(self, canvas: Image.Image, drawing: Drawing, left: int, top: int) -> None:
        image, label = self._images[id(drawing)], _label(drawing)
        canvas.paste(image, (left + (self.width - image.width) // 2, top + (self._image_y - image.height) // 2))
        if label:
            place = (left + self.width // 2, top + self._image_y + 4)
            ImageDraw.Draw(canvas).text(place, label, fill=SOFT, font=self._font, anchor="mt")


def _label(drawing: Drawing) -> str:
    """Its score, and how often it came where that was more than once."""
    score = finite_score(drawing)
    return " ".join(
        ([] if score is None else [f"{score:.3f}"]) + ([f"{drawing.times} times"] if drawing.times > 1 else [])
    )


def _write_lines(pen: ImageDraw.ImageDraw, x: int, y: int, lines: list[str], font: Any, size_px: int) -> int:
    """Writes lines from y down and returns where the next one would be."""
    for line in lines:
        pen.text((x, y), line, fill=INK, font=font)
        y += _line_px(size_px)
    return y


def _choose_columns(num_images: int) -> int:
    return min(num_images, 4) if num_images <= 8 else math.ceil(math.sqrt(num_images))


def _enlarge(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, PAPER), image)
    factor = math.ceil(MIN_CELL_PX / min(image.size))
    image = image.convert("RGB")
    return (
        image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC) if factor > 1 else image
    )


def _line_px(font_px: int) -> int:
    return round(font_px * 1.3)


def _wrap(text: str, font: Any, width: int) -> list[str]:
    """`text` in lines no wider than `width` pixels, at spaces where there are any; cut with "…" after six lines."""
    lines: list[str] = []
    line, words = "", deque(text.split())
    while words and len(lines) <= MAX_CAPTION_LINES:
        word = words.popleft()
        fits = _fitting(word, font, width)
        if line and fits == len(word) and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line)
        line = word[:fits]
        if fits < len(word):
            words.appendleft(word[fits:])
    lines.append(line)
    if len(lines) > MAX_CAPTION_LINES:
        lines = [*lines[: MAX_CAPTION_LINES - 1], lines[MAX_CAPTION_LINES - 1] + " …"]
    return lines


def _fitting(word: str, font: Any, width: int) -> int:
    """How many of its letters, one at least, are no wider; of a word without end no more are measured than that takes."""
    end = 1
    while end < len(word) and font.getlength(word[: 2 * end]) <= width:
        end *= 2
    if end >= len(word):
        return len(word)
    widths = range(end + 1, min(2 * end, len(word)) + 1)
    return end + bisect_right(widths, width, key=lambda end: font.getlength(word[:end]))
