"""The page of a training run, `report.html`: curves, warnings, pictures and configuration, drawn from the run's folder.

It opens from disk and asks nothing of the network: curves are inline SVG, pictures are relative links. Any part of the
folder may be missing or half written, for the page is also drawn while the run goes on.
"""

from __future__ import annotations

import html
import math
import os
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dalle.config import plain_json
from dalle.outputs.page_head import head
from dalle.outputs.whole import replace_text
from dalle.reporting.best_of import best_of_section
from dalle.reporting.explanations import FIGURES, PICTURES
from dalle.reporting.page import refreshing
from dalle.reporting.page.gradient_scales import scales_section
from dalle.reporting.page.masks import STYLE as MASKS_STYLE
from dalle.reporting.page.masks import masks_section
from dalle.reporting.plots import SCALE_COLOURS, TRAIN, VALID, finite, plot, smooth, svg, thin
from dalle.reporting.samples import samples_section

SPEED = ("images_per_s", "tokens_per_s", "mfu", "data_wait", "memory_gb")
MAX_WARNINGS = 100
_SHOWN_PX, _WIDEST_PX = 200, 640
"""Height of a picture on the page, and its greatest width; smaller ones are enlarged, and their pixels stay sharp."""
STYLE = """
h3 { margin: 1rem 0 .4rem; font-size: 1rem; font-weight: 600; }
.status { display: inline-block; vertical-align: middle; margin-left: .6rem; padding: .1rem .7rem; border-radius: 1rem;
  font-size: .85rem; font-weight: 600; background: var(--train); color: var(--card); }
.status.bad { background: var(--warn); }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1.2rem; }
.facts div, figure, .warnings, pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.facts div { flex: 1 1 9rem; padding: .7rem 1rem; } .facts b { font-size: 1.25rem; font-weight: 600; }
.facts span, .soft, figcaption i { display: block; color: var(--soft); font-size: .85rem; font-style: normal; }
.curves { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
figure { margin: 0; padding: .8rem 1rem .4rem; } figcaption b { overflow-wrap: anywhere; }
.train { color: var(--train); } .valid { color: var(--valid); }
figure.wide { overflow-x: auto; } figure.wide svg { min-width: 44rem; }
.first-to-last { display: inline-block; width: 8rem; height: .5em; border-radius: .25em; margin: 0 .3em;
  background: linear-gradient(90deg, FIRST_TO_LAST); }
figure svg { display: block; width: 100%; height: auto; } figure svg text { font-family: inherit !important; }
.warnings { margin: 0; padding: .7rem 1rem .7rem 2rem; border-left: 4px solid var(--warn); overflow-wrap: anywhere; }
.row { display: flex; gap: .8rem; overflow-x: auto; padding-bottom: .6rem; }
.row a { flex: none; color: var(--soft); font-size: .85rem; text-decoration: none; }
.row img { display: block; height: auto; max-width: calc(100vw - 3.2rem); border-radius: 6px; box-shadow: 0 0 0 1px var(--line);
  margin: 1px; }
.row img.sharp { image-rendering: pixelated; }
figure p.soft { margin: .2rem 0 .3rem; } details { margin-top: 1.4rem; } summary { cursor: pointer; margin-bottom: .8rem; }
pre { margin: 0; padding: 1rem; overflow-x: auto; font-size: .85rem; }
""".replace("FIRST_TO_LAST", ", ".join(SCALE_COLOURS))


_TIMES = {"step": int, "time_s": float}
"""Types of what each line of a log has."""
_OF_RUN = {
    **{"title": str, "unit": str, "status": str, "total_steps": int, "wandb_id": str | None},
    **{"flops_per_unit": float | None, "limit_flops_per_s": float | None},
}
"""Types of what `run.json` says."""


def write_report(folder: Path) -> None:
    """Writes `folder/report.html` from metrics.jsonl, run.json, config.yaml and pictures/, whichever are there."""
    folder = Path(folder)
    records = read_lines(folder / "metrics.jsonl")
    try:
        run = read_run(folder)
    except ValueError:
        run = {}
    series = _collect_series(records)
    title = run.get("title") or os.path.basename(os.path.realpath(folder))
    is_running = run.get("status") == "running"
    parts = [
        head(title, STYLE + MASKS_STYLE, refreshing.in_head(is_running)),
        _headline(title, run, records, series),
        samples_section(folder),
        best_of_section(folder),
        _warnings(records),
        _pictures(folder),
        _curves(series),
        scales_section(records),
        masks_section(folder),
    ]
    config = folder / "config.yaml"
    if config.exists():
        text = html.escape(config.read_text(encoding="utf-8", errors="replace"))
        parts.append(f"<h2>Configuration</h2><pre>{text}</pre>")
    parts.append(f"{refreshing.script(is_running)}</body></html>\n")
    replace_text(folder / "report.html", "\n".join(part for part in parts if part))


def read_run(folder: Path) -> dict[str, Any]:
    """What `run.json` says of the run; nothing where there is none. Raises ValueError, with its name, where it is damaged."""
    path = folder / "run.json"
    if not path.exists():
        return {}
    run = plain_json.read_mapping(path)
    for name, kind in _OF_RUN.items():
        if name in run and not plain_json.is_a(run[name], kind):
            raise ValueError(f"{path} is damaged: its {name} is none; delete it, which loses the run's name and speed")
    return run


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file in order. Lines that are half written or name no step are left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = plain_json.load(line, "")
        except ValueError:
            continue
        if plain_json.is_a(record, dict[str, Any]) and all(
            plain_json.is_a(record.get(n, 0), k) for n, k in _TIMES.items()
        ):
            records += [record] if "step" in record else []
    return records


def list_pictures(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """The pictures of a run by name, each with its step, in the order of steps."""
    pictures = defaultdict(list)
    for path in (folder / "pictures").glob("*.png"):
        if match := re.fullmatch(r"(.+)-(\d{7,})\.png", path.name):
            pictures[match[1]].append((int(match[2]), path))
    return {name: sorted(pictures[name]) for name in sorted(pictures)}


def duration(seconds: float) -> str:
    """Seconds in words: "42 s", "3 min 20 s", "5 h 12 min", "3 d 4 h"."""
    seconds = round(seconds)
    for size, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {name} {seconds % size // small} {small_name}"
    return f"{seconds} s"


def _collect_series(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Per metric an array of (step, value) rows, NaN where the file has null, in the order of first appearance."""
    points = defaultdict(list)
    for record in records:
        for key, value in record.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if key not in ("step", "time_s", "warning") and (is_number or value is None):
                points[key].append((record["step"], math.nan if value is None else value))
    return {key: np.array(rows, dtype=float) for key, rows in points.items()}


def _headline(title: str, run: dict[str, Any], records: list[dict[str, Any]], series: dict[str, np.ndarray]) -> str:
    status = str(run.get("status", "unknown"))
    step = max((record["step"] for record in records), default=0)
    total_steps = run.get("total_steps")
    facts = {"Steps": f"{step:,} / {total_steps:,}" if total_steps else f"{step:,}"}
    facts["Time"] = duration(max((record.get("time_s") or 0.0 for record in records), default=0.0))
    for unit in ("images", "tokens"):
        rates = finite(series.get(f"{unit}_per_s"))
        if len(rates):
            facts[f"{unit.capitalize()} per second"] = (
                f"{np.median(rates[-20:, 1]):,.{0 if np.median(rates[-20:, 1]) >= 100 else 2}f}"
            )
    utilisation = finite(series.get("mfu"))
    if len(utilisation):
        limit = run.get("limit_flops_per_s")
        of = f" of {limit / 1e12:,.3g} TFLOP/s" if limit else ""
        facts["Model FLOPs utilisation"] = f"{np.median(utilisation[-20:, 1]):.0%}{of}"
    for key, name in (("loss", "Loss"), ("valid/loss", "Validation loss")):
        rows = finite(series.get(key))
        if len(rows):
            facts[name] = f"{rows[-1, 1]:.4g}"
    tiles = "".join(f"<div><span>{name}</span><b>{value}</b></div>" for name, value in facts.items())
    style = "status" if status in ("running", "finished") else "status bad"
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return (
        f'<h1>{html.escape(title)} <span class="{style}">{html.escape(status)}</span></h1>'
        f'<span class="soft">as of {written}{refreshing.said(status, time.time())}</span><div class="facts">{tiles}</div>'
    )


def _curves(series: dict[str, np.ndarray]) -> str:
    names = list(dict.fromkeys(key.removeprefix("valid/") for key in series))
    if not names:
        return '<h2>Curves</h2><p class="soft">Nothing has been logged yet.</p>'
    names.sort(key=lambda name: name != "loss")  # stable: the loss first, the rest as they came
    # of a curve that is a line, and of a figure that nobody explains, a glance at the page learns nothing
    folded = [name for name in names if _is_flat(name, series) or name not in FIGURES]
    shown = [name for name in names if name not in folded or name == "loss"]
    groups = {"Curves": [name for name in shown if name not in SPEED]}
    groups["Speed and memory"] = [name for name in SPEED if name in shown]
    open_groups = "".join(
        f'<h2>{title}</h2><div class="curves">{_figures(group, series)}</div>'
        for title, group in groups.items()
        if group
    )
    rest = [name for name in folded if name not in shown]
    if not rest:
        return open_groups
    summary = f"{len(rest)} more that did not change, or that need no watching"
    return f'{open_groups}<details><summary>{summary}</summary><div class="curves">{_figures(rest, series)}</div></details>'


def _is_flat(name: str, series: dict[str, np.ndarray]) -> bool:
    """Whether a metric has the same value throughout, and its validation too. One value alone may yet change."""
    parts = [finite(series.get(key))[:, 1] for key in (name, f"valid/{name}")]
    return max(map(len, parts)) > 1 and all(len(np.unique(values)) <= 1 for values in parts)


def _figures(names: list[str], series: dict[str, np.ndarray]) -> str:
    figures = []
    for name in names:
        train, valid = series.get(name), series.get(f"valid/{name}")
        notes = []
        for rows, kind in ((train, "train"), (valid, "valid")):
            if len(finite(rows)):
                notes.append(f'<span class="{kind}">●</span> {kind} {finite(rows)[-1, 1]:.4g}')
            if rows is not None and len(finite(rows)) < len(rows):
                notes.append(f"{len(rows) - len(finite(rows))} {kind} values not finite")
        curve = _draw(name, finite(train), finite(valid))
        caption = f"<figcaption><b>{html.escape(name)}</b><i>{' &nbsp; '.join(notes)}</i></figcaption>"
        meaning = f'<p class="soft">{html.escape(FIGURES[name])}</p>' if name in FIGURES else ""
        figures.append(f"<figure>{caption}{curve}{meaning}</figure>")
    return "".join(figures)


def _draw(name: str, train: np.ndarray, valid: np.ndarray) -> str:
    """One plot of a metric."""
    if not len(train) and not len(valid):
        return ""

    def curves(axes: Any) -> None:
        if len(train) > 50:
            plot(axes, thin(train), TRAIN, linewidth=0.8, alpha=0.3)
            plot(axes, thin(smooth(train)), TRAIN, linewidth=1.6)
        elif len(train):
            plot(axes, train, TRAIN, linewidth=1.6)
        if len(valid):
            plot(axes, thin(valid), VALID, linewidth=1.6, marker="o" if len(valid) <= 40 else None, markersize=3)

    return svg(name, 4.4, 2.5, curves)


def _warnings(records: list[dict[str, Any]]) -> str:
    warnings = [(record["step"], str(record["warning"])) for record in records if "warning" in record]
    if not warnings:
        return ""
    items = "".join(f"<li>step {step:,}: {html.escape(text)}</li>" for step, text in warnings[-MAX_WARNINGS:])
    shown = f", the last {MAX_WARNINGS} shown" if len(warnings) > MAX_WARNINGS else ""
    return f'<h2>Warnings ({len(warnings)}{shown})</h2><ul class="warnings">{items}</ul>'


def _size_px(path: Path) -> tuple[int, int]:
    """Width and height of a picture that may be half written, or gone again."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.size
    except (OSError, ValueError):
        return _SHOWN_PX, _SHOWN_PX


def _pictures(folder: Path) -> str:
    rows = []
    for name, pictures in list_pictures(folder).items():
        cells = []
        for step, path in pictures:
            link, note = f"pictures/{html.escape(path.name)}", f"step {step:,}"
            width_px, height_px = _size_px(path)
            shown_px = round(min(_SHOWN_PX * width_px / height_px, _WIDEST_PX))
            sharp = ' class="sharp"' if shown_px > width_px else ""
            size = f'width="{shown_px}" height="{round(shown_px * height_px / width_px)}"'
            image = f'<img{sharp} src="{link}" alt="{note}" {size} loading="lazy">'
            cells.append(f'<a href="{link}">{image}{note}</a>')
        meaning = f'<p class="soft">{html.escape(PICTURES[name])}</p>' if name in PICTURES else ""
        rows.append(f'<h3>{html.escape(name)}</h3>{meaning}<div class="row">{"".join(cells)}</div>')
    return f"<h2>Pictures</h2>{''.join(rows)}" if rows else ""
