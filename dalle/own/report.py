"""The page of a whole training: what was found, what was planned, how each stage went, and what is drawn."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dalle.outputs.page_head import head
from dalle.outputs.whole import replace_text
from dalle.own.budget import in_words
from dalle.own.gallery import Row, draw_command, read_rows
from dalle.own.plan_files import PlanFiles
from dalle.own.progress import Progress
from dalle.reporting.report import list_pictures, read_lines

if TYPE_CHECKING:
    from dalle.data.sources.prepared import Prepared

_NAMES = {"dvae": "dVAE", "prior": "prior", "clip": "reranker"}
_FIGURES = {
    "dvae": {"valid/psnr_db": "dB on held-out pictures", "psnr_db": "dB", "codes_used": "codes in use"},
    "prior": {"valid/image_nats": "nats a code, held out", "image_nats": "nats a code"},
    "clip": {},
}
_ORDER = (
    "the real picture first, framed, then the best that was drawn; what was drawn several times alike is shown once"
)
_CARD_PX = 280
_CURVE = {"dvae": "loss", "prior": "image_nats", "clip": "loss"}
STYLE = """
body { max-width: 1100px; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .88em; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; margin: 0;
  white-space: pre-wrap; }
ul { margin: 0; padding-left: 1.2rem; }
.cards { display: grid; gap: 1rem; align-items: start; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
.card h3 { margin: 0 0 .2rem; font-size: 1rem; } .card svg { display: block; width: 100%; height: 90px; margin: .6rem 0 .2rem; }
.card img { display: block; max-width: 100%; height: auto; margin-top: .6rem; }
.card b { font-weight: 600; } .train { color: var(--train); } .valid { color: var(--valid); }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.rows { display: grid; gap: 1rem 2.5rem; align-items: end; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); }
.drawn { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: .5rem; margin-top: .3rem; }
.drawn img { display: block; width: 100%; height: auto; border-radius: 4px; box-shadow: 0 0 0 1px var(--line); }
.drawn a:first-child img { box-shadow: 0 0 0 3px var(--train); }
p.caption { margin: 0; } a { color: var(--train); }
"""


def write_report(folder: Path, prepared: Prepared, files: PlanFiles, progress: Progress, source: str) -> None:
    """Writes `report.html` of an output folder, from what lies in it."""
    rows = read_rows(folder)
    title = f"Trained on {Path(source).name or source}"
    parts = [
        head(title, STYLE),
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="soft">{html.escape(source)}, {in_words(progress.spent_s())} of work, {time.strftime("%Y-%m-%d %H:%M")}</p>',
        *_drawn(rows),
        "<h2>Draw more</h2>",
        f"<pre>{html.escape(draw_command(folder))}</pre>",
        f'<p class="soft">or, in Python, <code>dalle.load({html.escape(repr(str(folder)))}).generate("a caption")</code></p>',
        "<h2>What was found</h2>",
        _list(prepared.notes),
        _left_out(prepared),
        '<p><a href="data/report.html">all of it, with examples</a></p>'
        if (folder / "data/report.html").is_file()
        else "",
        "<h2>What was planned</h2>",
        _list(files.facts.get("said", [])),
        f"<p class=soft>The settings of each stage: {', '.join(_link(f'plan/{s}.yaml', s) for s in files.stages)}</p>",
        "<h2>How it went</h2>",
        f'<div class="cards">{"".join(_stage(folder, stage, progress) for stage in _NAMES)}</div>',
        "</body></html>\n",
    ]
    replace_text(folder / "report.html", "\n".join(part for part in parts if part))


def _drawn(rows: list[Row]) -> Iterator[str]:
    for held_out, title, told in (
        (
            True,
            "Held-out captions",
            f"no training has seen these: {_ORDER}",
        ),
        (False, "Captions of the training", _ORDER),
    ):
        shown = [row for row in rows if row.held_out == held_out]
        if shown:
            yield f'<h2>{title}</h2><p class="soft">{told}</p>'
        rows_shown = "".join(
            f'<div><p class="caption">{html.escape(row.caption)}</p><div class="drawn">'
            + "".join(_image(f"gallery/{file}", row.caption) for file in (row.real, *row.drawn))
            + "</div></div>"
            for row in shown
        )
        yield f'<div class="rows">{rows_shown}</div>' if shown else ""
    if rows:
        yield '<p><a href="gallery/index.html">the gallery</a></p>'


def _image(file: str, alt: str) -> str:
    name = html.escape(file)
    return f'<a href="{name}"><img src="{name}" alt="{html.escape(alt)}" loading="lazy"></a>'


def _picture(path: Path, folder: Path, stage: str) -> str:
    """What a training has drawn last; of a small one each pixel is several."""
    file = html.escape(path.relative_to(folder).as_posix())
    with Image.open(path) as image:
        width, height = image.size
    times = max(1, min(_CARD_PX // width, _CARD_PX // height))
    return (
        f'<a href="{file}"><img src="{file}" alt="what the {_NAMES[stage]} has drawn last" width="{times * width}" '
        f'height="{times * height}" loading="lazy"></a>'
    )


def _left_out(prepared: Prepared) -> str:
    """Counts by reason, of images and of captions."""
    rows = [
        (what, kind, reason, found.count)
        for what, counts in (("images", prepared.counts), ("captions", prepared.caption_counts))
        for kind, reasons in zip(("filtered out", "broken", "other files"), counts.left_out(), strict=True)
        for reason, found in reasons.items()
    ]
    if not rows:
        return "<p>Nothing was left out.</p>"
    cells = "".join(
        f'<tr><td class="number">{count:,}</td><td>{what}</td><td>{kind}</td><td>{html.escape(reason)}</td></tr>'
        for what, kind, reason, count in rows
    )
    return f"<h3>Left out</h3><table>{cells}</table>"


def _stage(folder: Path, stage: str, progress: Progress) -> str:
    done, run = progress.of(stage), folder / stage
    if done is None:
        return ""
    records = read_lines(run / "metrics.jsonl")
    facts = []
    if records:  # of what is taken as it is there are none
        facts += [f"took {in_words(done.seconds)}", f"{max(record['step'] for record in records):,} updates"]
    said = set()
    for name, meaning in _FIGURES[stage].items():
        values = [record[name] for record in records if isinstance(record.get(name), float)]
        if values and name.removeprefix("valid/") not in said:
            said.add(name.removeprefix("valid/"))
            facts.append(f"{values[-1]:.4g} {meaning}")
    link = _link(f"{stage}/report.html", "its page") if (run / "report.html").is_file() else "taken as it is"
    told = "; ".join(filter(None, (", ".join(facts), link)))
    pictures = [found[-1][1] for found in list_pictures(run).values() if found]
    shown = "".join(_picture(path, folder, stage) for path in pictures[:1])
    return (
        f'<div class="card"><h3>{_NAMES[stage]}</h3><div class="soft">{told}</div>'
        f"{_curve(records, _CURVE[stage])}{shown}</div>"
    )


def _curve(records: list[dict[str, Any]], name: str) -> str:
    """A figure over updates, training and held out; both in one picture."""
    lines, told = [], []
    for key, colour, words in ((name, "train", "training"), (f"valid/{name}", "valid", "held out")):
        points = [(r["step"], r[key]) for r in records if isinstance(r.get(key), float) and math.isfinite(r[key])]
        if len(points) > 1:
            lines.append((colour, points))
            told.append((colour, words, f"{points[0][1]:.3g} to {points[-1][1]:.3g}"))
    if not lines:
        return ""
    values = [value for _, points in lines for _, value in points]
    low, high = min(values), max(values)
    last = max(step for _, points in lines for step, _ in points)
    paths = ""
    for colour, points in lines:
        thinned = points[:: max(1, len(points) // 200)]
        places = [(300 * step / last, 86 - 82 * (value - low) / ((high - low) or 1)) for step, value in thinned]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        paths += f'<polyline points="{line}" fill="none" stroke="var(--{colour})" stroke-width="1.5" vector-effect="non-scaling-stroke"/>'
    title = name.replace("_", " ")
    label = ", ".join(f'<b class="{colour}">{words}</b> {values}' for colour, words, values in told)
    alt = f"{title}: " + ", ".join(f"{words} {values}" for _, words, values in told)
    return (
        f'<svg viewBox="0 0 300 90" preserveAspectRatio="none" role="img" aria-label="{alt}">{paths}</svg>'
        f'<div class="soft">{title}: {label}</div>'
    )


def _list(lines: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def _link(file: str, text: str) -> str:
    return f'<a href="{html.escape(file)}">{html.escape(text)}</a>'
