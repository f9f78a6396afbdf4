"""Drawings for people: one PNG with its facts inside, a grid as one PNG, and a folder with a page to look through.

Every PNG carries the caption and how it was drawn as iTXt text chunks, so that a picture that was passed on alone
still tells them. The page opens from disk and asks nothing of the network.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dalle.sampling.page import head, replace_text

MIN_CELL_PX = 128
GAP_PX = 12
TITLE_PX, CAPTION_PX, SCORE_PX = 22, 16, 13
MAX_CAPTION_LINES = 6
PAPER, INK, SOFT = "white", "#1c2330", "#5d6778"


@dataclass(frozen=True)
class Drawing:
    """One image that was drawn for a caption.

    score: the reranker's, higher is better; None when there was none. seed: what draws it again.
    rank: its place among its caption's candidates. settings: how it was drawn; must be writable as JSON.
    """

    image: Image.Image
    caption: str
    score: float | None
    seed: int
    rank: int
    settings: dict[str, Any]


def best_first(drawings: list[Drawing]) -> list[Drawing]:
    """Highest score first; those without a finite score last; ties by rank."""
    return sorted(drawings, key=lambda drawing: (-_score(drawing, -math.inf), drawing.rank))


def save_drawing(drawing: Drawing, path: Path) -> None:
    """Writes one PNG of the pixels with the text chunks "caption" and "dalle" (JSON: seed, rank, score, settings)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = PngInfo()
    facts.add_itxt("caption", drawing.caption)
    facts.add_itxt("dalle", _to_json(_facts(drawing)))
    drawing.image.save(path, format="PNG", pnginfo=facts)


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


def _write_picture(canvas: Image.Image, drawings: list[Drawing], path: Path, title: str | None) -> None:
    facts = PngInfo()
    facts.add_itxt("captions", _to_json(list(dict.fromkeys(drawing.caption for drawing in drawings))))
    records = [{"caption": drawing.caption, **_facts(drawing)} for drawing in drawings]
    facts.add_itxt("dalle", _to_json({"title": title, "drawings": records}))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, format="PNG", pnginfo=facts)


class _Cells:
    """The images of a picture, all in cells of one size, with room for a score where any has one."""

    def __init__(self, drawings: list[Drawing]) -> None:
        if not drawings:
            raise ValueError("a grid needs at least one drawing")
        self._images = {id(drawing): _enlarge(drawing.image) for drawing in drawings}
        self._image_y = max(image.height for image in self._images.values())
        self._font = ImageFont.load_default(size=SCORE_PX)
        self.width = max(image.width for image in self._images.values())
        has_scores = any(_score(drawing) is not None for drawing in drawings)
        self.height = self._image_y + (SCORE_PX + 6 if has_scores else 0)

    def paste(self, canvas: Image.Image, drawing: Drawing, left: int, top: int) -> None:
        image, score = self._images[id(drawing)], _score(drawing)
        canvas.paste(image, (left + (self.width - image.width) // 2, top + (self._image_y - image.height) // 2))
        if score is not None:
            place = (left + self.width // 2, top + self._image_y + 4)
            ImageDraw.Draw(canvas).text(place, f"{score:.3f}", fill=SOFT, font=self._font, anchor="mt")


def _write_lines(pen: ImageDraw.ImageDraw, x: int, y: int, lines: list[str], font: Any, size_px: int) -> int:
    """Writes lines from y down and returns where the next one would be."""
    for line in lines:
        pen.text((x, y), line, fill=INK, font=font)
        y += _line_px(size_px)
    return y


def write_gallery(
    groups: dict[str, list[Drawing]], folder: Path, title: str, extra: dict[str, str] | None = None
) -> None:
    """Writes `folder/index.html`, `folder/images/*.png` and `folder/results.jsonl` (one line per image).

    groups: drawings by caption; each is shown best first. extra: facts for the head of the page, name to value.
    The two text files are renamed into place after the images: a page never points at an image that is not there.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines, sections = [], []
    for caption, drawings in groups.items():
        cards = []
        for index, drawing in enumerate(best_first(drawings)):
            file = f"images/{_safe_name(caption)}-{index:03d}.png"
            save_drawing(drawing, folder / file)
            lines.append(_to_json({"caption": drawing.caption, **_facts(drawing), "file": file}) + "\n")
            cards.append(_card(drawing, file, heading=caption))
        count = f"{len(cards)} drawing" + ("s" if len(cards) != 1 else "")
        heading = f'<h2>{html.escape(caption)}</h2><p class="soft">{count}</p>'
        sections.append(f'<section>{heading}<div class="cards">{"".join(cards)}</div></section>')
    facts = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd></div>"
        for name, value in (extra or {}).items()
    )
    page = [
        head(title, STYLE),
        f"<h1>{html.escape(title)}</h1>",
        f"<dl>{facts}</dl>" if facts else "",
        *sections,
        '<dialog><img alt=""><p></p></dialog>',
        f"<script>{SCRIPT}</script></body></html>\n",
    ]
    replace_text(folder / "results.jsonl", "".join(lines))
    replace_text(folder / "index.html", "\n".join(page))


def _score(drawing: Drawing, missing: float | None = None) -> float | None:
    return drawing.score if drawing.score is not None and math.isfinite(drawing.score) else missing


def _facts(drawing: Drawing) -> dict[str, Any]:
    return {
        "seed": drawing.seed,
        "rank": drawing.rank,
        "score": None if _score(drawing) is None else float(drawing.score),
        "settings": drawing.settings,
    }


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _safe_name(caption: str) -> str:
    """A file name for any caption: what is readable of it, and a hash that tells apart what reads the same."""
    ascii_text = unicodedata.normalize("NFKD", caption).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_text)[:40].strip("-") or "drawing"
    return f"{slug}-{hashlib.sha256(caption.encode()).hexdigest()[:8]}"


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
    lines, line = [], ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width:
            fits = next(end for end in range(len(word) - 1, 0, -1) if end == 1 or font.getlength(word[:end]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    lines.append(line)
    if len(lines) > MAX_CAPTION_LINES:
        lines = [*lines[: MAX_CAPTION_LINES - 1], lines[MAX_CAPTION_LINES - 1] + " …"]
    return lines


def _card(drawing: Drawing, file: str, heading: str) -> str:
    score = "" if _score(drawing) is None else f"<b>{drawing.score:.3f}</b> "
    caption = "" if drawing.caption == heading else f"<br>{html.escape(drawing.caption)}"
    note = f"{score}seed {drawing.seed}{caption}"
    alt, size = html.escape(drawing.caption), f'width="{drawing.image.width}" height="{drawing.image.height}"'
    return (
        f'<figure><a href="{file}"><img src="{file}" alt="{alt}" {size} loading="lazy"></a>'
        f"<figcaption>{note}</figcaption></figure>"
    )


STYLE = """
body { overflow-wrap: anywhere; } h2 { margin-bottom: 0; } .soft { margin: 0 0 .8rem; }
dt, figcaption { color: var(--soft); font-size: .85rem; }
dl { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 0; }
dl div, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
dl div { padding: .6rem 1rem; } dd, figure { margin: 0; } figure { overflow: hidden; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(160px, 45%), 1fr)); }
figure img { display: block; width: 100%; height: auto; } figcaption { padding: .4rem .7rem .5rem; }
figcaption b { float: right; color: var(--ink); font-weight: 600; }
dialog { max-width: 96vw; max-height: 96vh; padding: 1rem; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); color: var(--ink); text-align: center; }
dialog img { display: block; width: min(80vh, 90vw); max-height: 80vh; object-fit: contain; }
dialog p { margin: .7rem 0 0; }
dialog::backdrop { background: rgb(0 0 0 / .75); }
"""

# Without it a click opens the image itself. Arrow keys go on; Escape or a click closes.
SCRIPT = """
const dialog = document.querySelector("dialog"), links = [...document.querySelectorAll("figure a")];
let shown = 0;
function show(index) {
  shown = (index + links.length) % links.length;
  const image = links[shown].firstChild;
  dialog.querySelector("img").src = image.src;
  dialog.querySelector("p").textContent = image.alt + " · " + links[shown].nextSibling.innerText;
  if (!dialog.open) dialog.showModal();
}
links.forEach((link, index) => link.addEventListener("click", event => { event.preventDefault(); show(index); }));
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", event => {
  if (event.key === "ArrowRight") show(shown + 1);
  if (event.key === "ArrowLeft") show(shown - 1);
});
"""
