"""The page of a source: what was found in it, and examples of what was kept and of what was left out."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dalle.config.checks import printable
from dalle.data.counts import Reason
from dalle.data.sources.figures import RATIOS, SIDES_PX, WORDS
from dalle.data.sources.ledger import Row
from dalle.data.sources.prepared import Prepared
from dalle.outputs.page_head import head
from dalle.outputs.whole import replace_text

_CAPTIONS_SHOWN = 3
_STYLE = """
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .8rem; }
.facts span { display: block; color: var(--soft); font-size: .78rem; }
.facts b { font-size: 1.15rem; font-variant-numeric: tabular-nums; }
ul { padding-left: 1.2rem; } li { margin: .25rem 0; overflow-wrap: anywhere; }
li[dir], .card p { overflow: hidden; } li[dir] { list-style-position: inside; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); font-size: .9rem; width: 100%; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: left; font-weight: 400;
  overflow-wrap: anywhere; vertical-align: top; }
td:first-child { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; width: 4rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: .8rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem; }
figcaption { font-size: .85rem; font-weight: 600; margin-bottom: .4rem; }
.bar { display: grid; grid-template-columns: 6.5rem 1fr 4rem; gap: .5rem; align-items: center; font-size: .8rem; }
.bar i { background: var(--train); height: .7rem; border-radius: 2px; min-width: 1px; }
.bar span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(45%, 9.5rem), 1fr)); gap: .6rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem; font-size: .82rem;
  overflow-wrap: anywhere; min-width: 0; }
.card img { display: block; max-width: 100%; height: 112px; object-fit: contain; margin: 0 auto .4rem; }
.card p { margin: .2rem 0; } h3 { margin: 1.2rem 0 .4rem; font-size: .95rem; font-weight: 600; overflow-wrap: anywhere; }
@media (max-width: 600px) { body { padding: 1rem .7rem 3rem; } h1 { font-size: 1.35rem; } }
"""


@dataclass(frozen=True)
class Example:
    """An image on the page: a small picture as a URL that holds it, what became of it, and its captions."""

    picture: str
    row: Row
    captions: list[str]


def write_page(
    path: Path, name: str, prepared: Prepared, shown: Sequence[Example], captions_left_out: dict[str, list[str]]
) -> None:
    """One file that needs nothing beside it.

    Args:
        path: of the page
        name: of the source, as the user typed it
        prepared: what is said
        shown: images, in order
        captions_left_out: the first captions that each filter left out
    """
    parts = [
        f"{head(f'What was found in {name}', _STYLE)}<h1>What was found in {html.escape(name)}</h1>"
        f'<span class="soft">{html.escape(prepared.kind)}</span>',
        _facts(prepared),
        "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in prepared.notes) + "</ul>",
        _left_out(prepared),
        _plots(prepared),
        _kept([example for example in shown if example.row.fate is None], prepared),
        _dropped([example for example in shown if example.row.fate is not None], prepared),
        _captions(prepared, captions_left_out),
        "</body></html>\n",
    ]
    # what HTML does not allow, and names and captions from strangers may hold
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\ufffd", "".join(parts))
    replace_text(path, text)


def _facts(prepared: Prepared) -> str:
    found = prepared.inspection
    facts = {
        "images to train on": f"{prepared.num_train:,}",
        "held out": f"{prepared.num_valid:,}",
        "filtered out": f"{prepared.counts.num_filtered:,}",
        "broken": f"{prepared.counts.num_broken:,}",
        "captions an image": f"{prepared.captions_per_image:.3g}",
        "words, median": f"{prepared.caption_words_median:g}",
        "shorter side, median": f"{prepared.side_px_median:,} px",
        "equal images": f"{found['equal_images']:,}",
        "captions of several images": f"{found['captions_of_several_images']:,}",
    }
    return (
        '<div class="facts">' + "".join(f"<div><span>{k}</span><b>{v}</b></div>" for k, v in facts.items()) + "</div>"
    )


def _left_out(prepared: Prepared) -> str:
    counts = prepared.counts
    rows = [
        (reason, about, what)
        for what, reasons in (
            ("filtered out", counts.filtered),
            ("broken", counts.broken),
            ("no image or caption", counts.other_files),
        )
        for reason, about in sorted(reasons.items(), key=lambda item: -item[1].count)
    ]
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{about.count:,}</td><td>{html.escape(reason)} <span class='soft'>({what})</span>"
        f"<br><span class='soft'>{html.escape(_names(about))}</span></td></tr>"
        for reason, about, what in rows
    )
    return f"<h2>Left out</h2><table><tbody>{body}</tbody></table>"


def _names(reason: Reason) -> str:
    named = (f"{_short(key)} ({_short(detail)})" if detail else _short(key) for _, key, detail in reason.first)
    return ", ".join(named) + (", …" if reason.count > len(reason.first) else "")


def _plots(prepared: Prepared) -> str:
    found = prepared.inspection
    ratios = [_ratio(border) for border in RATIOS]
    plots = (
        _bars("Shorter side, pixels", _whole(SIDES_PX), found["sides_px"]),
        _bars("Width : height", _ranges(ratios), found["ratios"]),
        _bars("Words of a caption", _whole(WORDS), found["words"]),
        _bars(
            "Captions of an image",
            [f"{n}{' or more' if n == '10' else ''}" for n in found["captions_an_image"]],
            list(found["captions_an_image"].values()),
        ),
    )
    return f'<h2>What is kept, in figures</h2><div class="plots">{"".join(plots)}</div>'


def _ratio(border: float) -> str:
    named = {0.5: "1 : 2", 0.75: "3 : 4", 4 / 3: "4 : 3", 2: "2 : 1"}
    return named.get(border, f"{border:g}")


def _ranges(borders: list[str]) -> list[str]:
    middle = [f"{low} – {high}" for low, high in pairwise(borders)]
    return [f"below {borders[0]}", *middle, f"from {borders[-1]}"]


def _whole(borders: tuple[int, ...]) -> list[str]:
    """Ranges of whole numbers, both ends included."""
    middle = [f"{low} – {high - 1}" for low, high in pairwise(borders)]
    return [f"below {borders[0]}", *middle, f"from {borders[-1]}"]


def _bars(title: str, names: list[str], numbers: list[int]) -> str:
    most = max([1, *numbers])
    used = [i for i, number in enumerate(numbers) if number]
    bars = "".join(
        f'<div class="bar"><span>{names[i]}</span><i style="width:{100 * numbers[i] / most:.1f}%"></i>'
        f"<span>{numbers[i]:,}</span></div>"
        for i in (range(used[0], used[-1] + 1) if used else ())
    )
    return f"<figure><figcaption>{title}</figcaption>{bars}</figure>"


def _kept(shown: list[Example], prepared: Prepared) -> str:
    total = prepared.num_train + prepared.num_valid
    told = "All of them" if len(shown) == total else f"{len(shown)} of {total:,}, spread over all in their order"
    return f'<h2>Kept</h2><p class="soft">{told}.</p><div class="grid">{"".join(map(_card, shown))}</div>'


def _dropped(shown: list[Example], prepared: Prepared) -> str:
    by_reason: dict[str, list[Example]] = {}
    for example in shown:
        assert example.row.fate is not None
        by_reason.setdefault(example.row.fate.reason, []).append(example)
    parts = []
    for reason, examples in by_reason.items():
        known = prepared.counts.filtered.get(reason) or prepared.counts.broken.get(reason)
        assert known is not None
        count = f"{known.count:,} images" if known.count != 1 else "1 image"
        cards = "".join(map(_card, examples))
        parts.append(f'<h3>{count}: {html.escape(reason)}</h3><div class="grid">{cards}</div>')
    return f"<h2>Left out, with a picture</h2>{''.join(parts)}" if parts else ""


def _card(example: Example) -> str:
    row = example.row
    captions = "".join(f'<p dir="auto">{html.escape(_short(c))}</p>' for c in example.captions[:_CAPTIONS_SHOWN])
    if len(example.captions) > _CAPTIONS_SHOWN:
        captions += f'<p class="soft">and {len(example.captions) - _CAPTIONS_SHOWN} more</p>'
    size = f"{row.size[0]}×{row.size[1]}"
    detail = f" · {_short(row.fate.detail)}" if row.fate is not None and row.fate.detail not in ("", size) else ""
    held = " · held out" if row.valid else ""
    key = _short(printable(row.key))
    note = f'<p class="soft">{html.escape(f"{key} · {size}{held}{detail}")}</p>'
    return f'<div class="card"><img src="{example.picture}" alt="" loading="lazy">{captions}{note}</div>'


def _short(caption: str) -> str:
    return caption if len(caption) <= 160 else f"{caption[:157]}…"


def _captions(prepared: Prepared, left_out: dict[str, list[str]]) -> str:
    parts = []
    for reason, captions in left_out.items():
        number = prepared.caption_counts.filtered[reason].count
        items = "".join(f'<li dir="auto">{html.escape(_short(caption))}</li>' for caption in captions)
        parts.append(f"<h3>{number:,} × {html.escape(reason)}</h3><ul>{items}</ul>")
    return f"<h2>Captions left out</h2>{''.join(parts)}" if parts else ""
