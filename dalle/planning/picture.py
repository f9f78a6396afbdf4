"""One update as a picture: what is computed, and exchanged within and between machines, over time."""

from __future__ import annotations

from pathlib import Path

from dalle.outputs.whole import whole_file
from dalle.planning.timing import Spans, Update

_COLOURS = {
    "forward pass": "#3b7ddd",
    "heads": "#7a5cc4",
    "backward pass": "#c2469a",
    "compression": "#8a8a8a",
    "update": "#3f9d5a",
    "gather": "#9cc2f5",
    "reduce": "#e6a9d3",
    "exchange": "#e07b1a",
}
_INK, _FAINT = "#222222", "#dddddd"
_LEAST_GAP = 1 / 2000
"""Of the update's time: what is nearer together than this is drawn as one."""


def draw(update: Update, path: Path) -> None:
    """Write a PNG of the last micro-batch and of what follows it: three rows over seconds. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = {"computing": update.compute, "within the machine": update.inside, "between machines": update.between}
    last_s = max(spans.free_s for spans in rows.values())
    figure = Figure(figsize=(9, 2.9), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.16, 0.3, 0.82, 0.58))
    drawn = set()
    for place, spans in enumerate(rows.values()):
        for what, begin_s, end_s in merged(spans, _LEAST_GAP * last_s):
            axes.broken_barh([(begin_s, end_s - begin_s)], (place - 0.36, 0.72), facecolor=_COLOURS[what])
            drawn.add(what)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, last_s or 1)
    axes.set_xlabel("seconds", color=_INK, fontsize=9)
    earlier = f": the last micro-batch, after {update.earlier_s:.3f} s of earlier ones" if update.earlier_s else ""
    axes.set_title(f"An update of {update.seconds:.3f} s{earlier}", loc="left", fontsize=10, color=_INK)
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, labelsize=9)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    patches = [Patch(color=colour, label=what) for what, colour in _COLOURS.items() if what in drawn]
    figure.legend(handles=patches, loc="lower center", ncols=len(patches), fontsize=8, frameon=False)
    with whole_file(path) as file:
        figure.savefig(file, format="png")


def merged(spans: Spans, gap_s: float) -> list[tuple[str, float, float]]:
    """Spans, those of a kind that lie together as one."""
    found: list[tuple[str, float, float]] = []
    for what, begin_s, end_s in spans.done:
        if found and found[-1][0] == what and begin_s - found[-1][2] <= gap_s:
            found[-1] = (what, found[-1][1], end_s)
        else:
            found.append((what, begin_s, end_s))
    return found
