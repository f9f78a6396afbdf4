"""The page of a training run, `report.html`: curves, warnings, pictures and configuration, drawn from the run's folder.

It opens from disk and asks nothing of the network: curves are inline SVG, pictures are relative links. Any part of the
folder may be missing or half written, for the page is also drawn while the run goes on.
"""

from __future__ import annotations

import html
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dalle.reporting.page_head import head, replace_text
from dalle.reporting.samples import samples_section

SPEED = ("images_per_s", "tokens_per_s", "mfu", "data_wait", "memory_gb")
MAX_POINTS = 500
MAX_SCALE_POINTS = 240  # of each of perhaps 128 curves
MAX_WARNINGS = 100
# Colours that matplotlib writes and the page's style sheet then decides, so that curves follow light and dark.
INK, FAINT, TRAIN, VALID = "#010101", "#020202", "#030303", "#040404"
SCALE_COLOURS = (
    "#3b7ddd",
    "#c2469a",
    "#e07b1a",
)  # of the first, the middle and the last resblock, on light and on dark
CSS_COLOURS = {INK: "var(--ink)", FAINT: "var(--line)", TRAIN: "var(--train)", VALID: "var(--valid)"}

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
.row img { display: block; height: 200px; max-width: 640px; object-fit: contain; border-radius: 6px; }
pre { margin: 0; padding: 1rem; overflow-x: auto; font-size: .85rem; }
""".replace("FIRST_TO_LAST", ", ".join(SCALE_COLOURS))


def write_report(folder: Path) -> None:
    """Writes `folder/report.html` from metrics.jsonl, run.json, config.yaml and pictures/, whichever are there."""
    folder = Path(folder)
    records = read_lines(folder / "metrics.jsonl")
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run = {}
    series = _collect_series(records)
    title = run.get("title") or folder.resolve().name
    parts = [
        head(title, STYLE),
        _headline(title, run, records, series),
        _curves(series),
        _gradient_scales(records),
        samples_section(folder),
        _warnings(records),
        _pictures(folder),
    ]
    config = folder / "config.yaml"
    if config.exists():
        text = html.escape(config.read_text(encoding="utf-8", errors="replace"))
        parts.append(f"<h2>Configuration</h2><pre>{text}</pre>")
    parts.append("</body></html>\n")
    replace_text(folder / "report.html", "\n".join(part for part in parts if part))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file in order. Lines that are half written or name no step are left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
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
        rates = _finite(series.get(f"{unit}_per_s"))
        if len(rates):
            facts[f"{unit.capitalize()} per second"] = f"{np.median(rates[-20:, 1]):,.4g}"
    utilisation = _finite(series.get("mfu"))
    if len(utilisation):
        limit = run.get("limit_flops_per_s")
        of = f" of {limit / 1e12:,.3g} TFLOP/s" if limit else ""
        facts["Model FLOPs utilisation"] = f"{np.median(utilisation[-20:, 1]):.0%}{of}"
    for key, name in (("loss", "Loss"), ("valid/loss", "Validation loss")):
        rows = _finite(series.get(key))
        if len(rows):
            facts[name] = f"{rows[-1, 1]:.4g}"
    tiles = "".join(f"<div><span>{name}</span><b>{value}</b></div>" for name, value in facts.items())
    style = "status" if status in ("running", "finished") else "status bad"
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return (
        f'<h1>{html.escape(title)} <span class="{style}">{html.escape(status)}</span></h1>'
        f'<span class="soft">as of {written}</span><div class="facts">{tiles}</div>'
    )


def _finite(rows: np.ndarray | None) -> np.ndarray:
    return np.empty((0, 2)) if rows is None else rows[np.isfinite(rows[:, 1])]


def _curves(series: dict[str, np.ndarray]) -> str:
    names = list(dict.fromkeys(key.removeprefix("valid/") for key in series))
    if not names:
        return '<h2>Curves</h2><p class="soft">Nothing has been logged yet.</p>'
    names.sort(key=lambda name: name != "loss")  # stable: the loss first, the rest as they came
    groups = {"Curves": [name for name in names if name not in SPEED]}
    groups["Speed and memory"] = [name for name in SPEED if name in names]
    return "".join(
        f'<h2>{title}</h2><div class="curves">{_figures(group, series)}</div>'
        for title, group in groups.items()
        if group
    )


def _figures(names: list[str], series: dict[str, np.ndarray]) -> str:
    figures = []
    for name in names:
        train, valid = series.get(name), series.get(f"valid/{name}")
        notes = []
        for rows, kind in ((train, "train"), (valid, "valid")):
            if len(_finite(rows)):
                notes.append(f'<span class="{kind}">●</span> {kind} {_finite(rows)[-1, 1]:.4g}')
            if rows is not None and len(_finite(rows)) < len(rows):
                notes.append(f"{len(rows) - len(_finite(rows))} {kind} values not finite")
        curve = _draw(name, _finite(train), _finite(valid))
        caption = f"<figcaption><b>{html.escape(name)}</b><i>{' &nbsp; '.join(notes)}</i></figcaption>"
        figures.append(f"<figure>{caption}{curve}</figure>")
    return "".join(figures)


def _draw(name: str, train: np.ndarray, valid: np.ndarray) -> str:
    """One plot of a metric."""
    if not len(train) and not len(valid):
        return ""

    def curves(axes: Any) -> None:
        if len(train) > 50:
            _plot(axes, _thin(train), TRAIN, linewidth=0.8, alpha=0.3)
            _plot(axes, _thin(_smooth(train)), TRAIN, linewidth=1.6)
        elif len(train):
            _plot(axes, train, TRAIN, linewidth=1.6)
        if len(valid):
            _plot(axes, _thin(valid), VALID, linewidth=1.6, marker="o" if len(valid) <= 40 else None, markersize=3)

    return _svg(name, 4.4, 2.5, curves)


def _gradient_scales(records: list[dict[str, Any]]) -> str:
    """All resblocks' gradient scales in one plot, as in the paper's Figure 12."""
    lines = [record for record in records if isinstance(record.get("gradient_scales"), list)]
    count = len(lines[-1]["gradient_scales"]) if lines else 0
    if not count:
        return ""
    lines = [line for line in lines if len(line["gradient_scales"]) == count]
    steps = [line["step"] for line in lines]
    scales = np.array([line["gradient_scales"] for line in lines], dtype=float)

    def curves(axes: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        colours = LinearSegmentedColormap.from_list("first to last", SCALE_COLOURS)(np.linspace(0, 1, count))
        for log2_scale, colour in zip(scales.T, colours, strict=True):
            rows = _finite(np.stack([steps, log2_scale], axis=1))
            _plot(axes, _thin(rows, MAX_SCALE_POINTS), colour, linewidth=0.7 if count > 16 else 1.2)

    last = _finite(np.stack([np.arange(count), scales[-1]], axis=1))[:, 1]
    notes = f'first<span class="first-to-last"></span>last of {count}' if count > 1 else "one for the whole model"
    if len(last):
        notes += f" &nbsp; now {last.min():.4g} to {last.max():.4g}" if count > 1 else f" &nbsp; now {last[0]:.4g}"
    caption = f"<figcaption><b>log2 of the gradient scale{' of each resblock' if count > 1 else ''}</b><i>{notes}</i></figcaption>"
    return f'<h2>Gradient scales</h2><figure class="wide">{caption}{_svg("gradient scales", 12, 3.6, curves)}</figure>'


def _svg(name: str, width_inches: float, height_inches: float, draw: Callable[[Any], None]) -> str:
    """A plot over steps as an SVG element that takes its colours from the page."""
    # Imported here: it takes most of a second, and a run that draws no report should not pay for it.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Text stays text; the salt keeps the ids of several inline plots apart.
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9.0, "axes.formatter.useoffset": False}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width_inches, height_inches), facecolor="none")
        FigureCanvasSVG(figure)
        # margins in inches: for the tick labels, and for half of the last one
        place = (0.57 / width_inches, 0.28 / height_inches, 1 - 0.66 / width_inches, 1 - 0.4 / height_inches)
        axes = figure.add_axes(place, facecolor="none")
        draw(axes)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.tick_params(colors=INK, length=0)
        axes.locator_params(nbins=6)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = re.sub("|".join(CSS_COLOURS), lambda match: CSS_COLOURS[match[0]], svg[svg.index("<svg") :])
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(name)} over steps" ', 1)


def _plot(axes: Any, rows: np.ndarray, colour: Any, **style: Any) -> None:
    if len(rows) == 1:
        style = {"marker": "o", "markersize": 4}
    axes.plot(rows[:, 0], rows[:, 1], color=colour, solid_joinstyle="round", **style)


def _smooth(rows: np.ndarray) -> np.ndarray:
    """A centred mean over a fiftieth of the run, narrower at the ends: it neither lags nor starts from nothing."""
    half = max(1, len(rows) // 100)
    sums = np.concatenate([[0.0], np.cumsum(rows[:, 1])])
    index = np.arange(len(rows))
    reach = np.minimum(half, np.minimum(index, len(rows) - 1 - index))
    means = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return np.stack([rows[:, 0], means], axis=1)


def _thin(rows: np.ndarray, most: int = MAX_POINTS) -> np.ndarray:
    """At most so many rows, and the last: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(rows) <= most:
        return rows
    edges = np.linspace(0, len(rows), most // 2 + 1).astype(int)
    stretches = [(first, rows[first:last, 1]) for first, last in pairwise(edges)]
    return rows[
        sorted({first + pick(part) for first, part in stretches for pick in (np.argmin, np.argmax)} | {len(rows) - 1})
    ]


def _warnings(records: list[dict[str, Any]]) -> str:
    warnings = [(record["step"], str(record["warning"])) for record in records if "warning" in record]
    if not warnings:
        return ""
    items = "".join(f"<li>step {step:,}: {html.escape(text)}</li>" for step, text in warnings[-MAX_WARNINGS:])
    shown = f", the last {MAX_WARNINGS} shown" if len(warnings) > MAX_WARNINGS else ""
    return f'<h2>Warnings ({len(warnings)}{shown})</h2><ul class="warnings">{items}</ul>'


def _pictures(folder: Path) -> str:
    rows = []
    for name, pictures in list_pictures(folder).items():
        cells = []
        for step, path in pictures:
            link, note = f"pictures/{html.escape(path.name)}", f"step {step:,}"
            cells.append(f'<a href="{link}"><img src="{link}" alt="{note}" loading="lazy">{note}</a>')
        rows.append(f'<h3>{html.escape(name)}</h3><div class="row">{"".join(cells)}</div>')
    return f"<h2>Pictures</h2>{''.join(rows)}" if rows else ""
