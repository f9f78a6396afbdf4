"""A folder with a page to look through the drawings, which opens from disk and asks nothing of the network."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalle.config import plain_json
from dalle.data.images import opened
from dalle.outputs.page_head import head
from dalle.outputs.whole import replace_text
from dalle.sampling.drawing import Drawing, best_first, facts, save_drawing, to_json


class Gallery:
    """A folder with `index.html`, `images/*.png` and `results.jsonl`, one line for each image.

    It may be written again as drawings come. The two text files are renamed into place after the images, and an image's
    name tells its seed and settings: a page never points at an image that is not there, or at another one.

    Args:
        folder: made when it is first written
        title: of the page
        extra: facts for the head of the page, name to value
    """

    layout = "gallery"
    """Which files the images are."""
    shows_equal_once = True
    """Drawings of the same codes are one image."""

    def __init__(self, folder: Path, title: str, extra: dict[str, str] | None = None):
        self.folder, self.title, self.extra = Path(folder), title, extra or {}
        self._sections: dict[str, _Section] = {}
        self._dropped: set[str] = set()

    def put(self, caption: str, drawings: list[Drawing], candidates: int | None = None) -> None:
        """Show these for a caption, best first, in place of those before; the images are written at once.

        candidates: how many they are the best of, where that is known.
        """
        section = _Section([], [], [])
        for place, drawing in enumerate(best_first(drawings)):
            file, *copies = self.files(caption, place, drawing)
            for name in (file, *copies):
                save_drawing(drawing, self.folder / name)
            counted = {} if candidates is None else {"candidates": candidates}
            record = {"caption": drawing.caption, **facts(drawing), **counted, "file": file}
            section.add(record, drawing.picture.size, heading=caption)
        before = self._sections.get(caption)
        self._dropped |= set() if before is None else set(before.files) - set(section.files)
        self._sections[caption] = section

    def files(self, caption: str, place: int, drawing: Drawing) -> list[str]:
        """A drawing's file, and copies of it, within the folder. place: among those of its caption, from 0."""
        # what else decided it is in the name, so that a later run with other settings writes over nothing
        settings = hashlib.sha256(to_json(drawing.settings).encode()).hexdigest()[:4]
        return [f"images/{_safe_name(caption)}-{drawing.seed}-{settings}.png"]

    def resume(self, candidates: int) -> set[str]:
        """Take in the captions of the folder's results that have all their candidates and images; returns them.

        Raises:
            ValueError: the results are damaged
        """
        path = self.folder / "results.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
        groups: dict[str, list[dict[str, Any]]] = {}
        for number, line in enumerate(lines, 1):
            record = _checked(line, f"{path}, line {number}")
            groups.setdefault(record["caption"], []).append(record)
        for caption, records in groups.items():
            files = [self.folder / record["file"] for record in records]
            if any(r.get("candidates") != candidates for r in records) or not all(file.is_file() for file in files):
                continue  # is drawn anew
            section = _Section([], [], [])
            for record, file in zip(records, files, strict=True):
                try:
                    with opened(file.read_bytes(), formats=("PNG",)) as image:
                        section.add(record, image.size, heading=caption)
                except (OSError, ValueError) as error:
                    raise ValueError(f"{file}: is damaged ({error}); name another folder with --output") from None
            self._sections[caption] = section
        return set(self._sections)

    def best_files(self, count: int) -> list[Path]:
        """The best image of each of the first captions."""
        return [self.folder / section.files[0] for section in list(self._sections.values())[:count]]

    def write(self) -> None:
        """Write the page and the results, then remove the images that dropped out."""
        shown = "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd></div>"
            for name, value in self.extra.items()
        )
        page = [
            head(self.title, STYLE),
            f"<h1>{html.escape(self.title)}</h1>",
            f"<dl>{shown}</dl>" if shown else "",
            *(section.to_html(caption) for caption, section in self._sections.items()),
            '<dialog><img alt=""><p></p></dialog>',
            f"<script>{SCRIPT}</script></body></html>\n",
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [line + "\n" for section in self._sections.values() for line in section.lines]
        replace_text(self.folder / "results.jsonl", "".join(lines))
        replace_text(self.folder / "index.html", "\n".join(page))
        for file in self._dropped - {file for section in self._sections.values() for file in section.files}:
            (self.folder / file).unlink(missing_ok=True)
        self._dropped.clear()


def _checked(line: bytes, source: str) -> dict[str, Any]:
    """A line of the results. Raises ValueError, with its source, where it is damaged, or names a file elsewhere: what drops out of
    the results is deleted."""
    try:
        record = plain_json.load(line, source)
    except plain_json.Damaged as error:
        raise ValueError(f"{error.what}; name another folder with --output") from None
    # earlier versions did not say how many
    told = {"times": 1, "candidates": 1} | record if isinstance(record, dict) else {}
    if not all(name in told and plain_json.is_a(told[name], kind) for name, kind in _KINDS.items()):
        raise ValueError(f"{source} is damaged; name another folder with --output")
    if not re.fullmatch(r"(images|\d+/samples)/[\w-]+\.png", record["file"]):
        raise ValueError(f"{source}: names a file of another place; name another folder with --output")
    return record


@dataclass
class _Section:
    """A caption's part of the gallery, as text: lines of the results, cards of the page, and the images' files."""

    lines: list[str]
    cards: list[str]
    files: list[str]

    def add(self, record: dict[str, Any], size: tuple[int, int], heading: str) -> None:
        self.lines.append(to_json(record))
        self.cards.append(_card(record, size, heading))
        self.files.append(record["file"])

    def to_html(self, caption: str) -> str:
        count = f"{len(self.cards)} drawing" + ("s" if len(self.cards) != 1 else "")
        heading = f'<h2>{html.escape(caption)}</h2><p class="soft">{count}</p>'
        return f'<section>{heading}<div class="cards">{"".join(self.cards)}</div></section>'


def write_gallery(
    groups: dict[str, list[Drawing]], folder: Path, title: str, extra: dict[str, str] | None = None
) -> None:
    """Writes a whole `Gallery`. groups: drawings by caption. extra: facts for the head of the page, name to value."""
    gallery = Gallery(folder, title, extra)
    for caption, drawings in groups.items():
        gallery.put(caption, drawings)
    gallery.write()


def _safe_name(caption: str) -> str:
    """A file name for any caption: what is readable of it, and a hash that tells apart what reads the same."""
    ascii_text = unicodedata.normalize("NFKD", caption).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_text)[:40].strip("-") or "drawing"
    return f"{slug}-{hashlib.sha256(caption.encode()).hexdigest()[:8]}"


def _card(record: dict[str, Any], size: tuple[int, int], heading: str) -> str:
    file, score = html.escape(record["file"]), record["score"]
    shown = "" if score is None else f"<b>{score:.3f}</b> "
    caption = "" if record["caption"] == heading else f"<br>{html.escape(record['caption'])}"
    times = record.get("times", 1)  # not in the results of earlier versions
    often = f", drawn {times} times" if times > 1 else ""
    note = f"{shown}seed {html.escape(str(record['seed']))}{often}{caption}"
    alt = html.escape(record["caption"])
    sharp = ' class="sharp"' if max(size) < _SMALL_PX else ""  # enlarged, as a card is at least so wide
    return (
        f'<figure><a href="{file}"><img{sharp} src="{file}" alt="{alt}" width="{size[0]}" height="{size[1]}" loading="lazy"></a>'
        f"<figcaption>{note}</figcaption></figure>"
    )


_KINDS = {"caption": str, "file": str, "seed": int, "rank": int, "score": float | None, "times": int, "candidates": int}
"""Types of what a line of the results tells."""
_SMALL_PX = 160
STYLE = """
body { overflow-wrap: anywhere; } h2 { margin-bottom: 0; } .soft { margin: 0 0 .8rem; }
dt, figcaption { color: var(--soft); font-size: .85rem; }
dl { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 0; }
dl div, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
dl div { padding: .6rem 1rem; } dd, figure { margin: 0; } figure { overflow: hidden; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(160px, 45%), 1fr)); }
@media (max-width: 700px) { body { display: flex; flex-direction: column; } body > dl { order: 1; margin-top: 2rem; } }
figure img { display: block; width: 100%; height: auto; box-shadow: 0 1px 0 var(--line); }
img.sharp, dialog img.sharp { image-rendering: pixelated; } figcaption { padding: .4rem .7rem .5rem; }
figcaption b { float: right; margin-left: .5rem; color: var(--ink); font-weight: 600; }
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
  dialog.querySelector("img").className = image.className;
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
