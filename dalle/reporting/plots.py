"""Plots over steps as inline SVG, whose colours the page decides."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from io import StringIO
from itertools import pairwise
from typing import Any

import numpy as np

MAX_POINTS = 500
MAX_SCALE_POINTS = 240  # of each of perhaps 128 curves
# Colours that matplotlib writes and the page's style sheet then decides, so that curves follow light and dark.
INK, FAINT, TRAIN, VALID = "#010101", "#020202", "#030303", "#040404"
# of the first, the middle and the last resblock, on light and on dark
SCALE_COLOURS = ("#3b7ddd", "#c2469a", "#e07b1a")
CSS_COLOURS = {INK: "var(--ink)", FAINT: "var(--line)", TRAIN: "var(--train)", VALID: "var(--valid)"}


def svg(name: str, width_inches: float, height_inches: float, draw: Callable[[Any], None]) -> str:
    """A plot over steps as an SVG element that takes its colours from the page."""
    # Imported here: it takes most of a second, and a run that draws no report should not pay for it.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Text stays text; the salt keeps the ids of several inline plots apart.
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9.0,
        "axes.formatter.useoffset": False,
    }
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


def plot(axes: Any, rows: np.ndarray, colour: Any, **style: Any) -> None:
    if len(rows) == 1:
        style = {"marker": "o", "markersize": 4}
    axes.plot(rows[:, 0], rows[:, 1], color=colour, solid_joinstyle="round", **style)


def finite(rows: np.ndarray | None) -> np.ndarray:
    """The rows whose value is a number; none where there are none."""
    return np.empty((0, 2)) if rows is None else rows[np.isfinite(rows[:, 1])]


def smooth(rows: np.ndarray) -> np.ndarray:
    """A centred mean over a fiftieth of the run, narrower at the ends: it neither lags nor starts from nothing."""
    half = max(1, len(rows) // 100)
    sums = np.concatenate([[0.0], np.cumsum(rows[:, 1])])
    index = np.arange(len(rows))
    reach = np.minimum(half, np.minimum(index, len(rows) - 1 - index))
    means = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return np.stack([rows[:, 0], means], axis=1)


def thin(rows: np.ndarray, most: int = MAX_POINTS) -> np.ndarray:
    """At most so many rows, and the last: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(rows) <= most:
        return rows
    edges = np.linspace(0, len(rows), most // 2 + 1).astype(int)
    stretches = [(first, rows[first:last, 1]) for first, last in pairwise(edges)]
    return rows[
        sorted({first + pick(part) for first, part in stretches for pick in (np.argmin, np.argmax)} | {len(rows) - 1})
    ]
