"""A part of an evaluation's report: its figures for machines, its HTML for people."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dalle.reporting.plots import SCALE_COLOURS, svg


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Args:
        key: of its figures in metrics.json
        title: above it
        body: HTML, from the functions below
        figures: what metrics.json says under `key`: numbers, strings, lists and dicts of them
        notes: warnings, in words, that stand above the body
    """

    key: str
    title: str
    body: str
    figures: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def html(self) -> str:
        """The section, with an anchor of its key."""
        notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in self.notes)
        return f'<section id="{html.escape(self.key)}"><h2>{html.escape(self.title)}</h2>{notes}{self.body}</section>'


def prose(text: str) -> str:
    """A paragraph that says what is to be seen, and from where it is."""
    return f'<p class="soft">{html.escape(text)}</p>'


def figure_text(value: Any) -> str:
    """A value as a table shows it: four digits of a number that is no count."""
    if value is None:
        return "—"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows under a header; the first column names them, and the rest are figures. Under a header without words they are told in
    words, which a narrow page wraps."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(figure_text(row[0]))}</th>'
        + "".join(f"<td>{html.escape(figure_text(value))}</td>" for value in row[1:])
        + "</tr>"
        for row in rows
    )
    if not any(header):
        return f'<div class="scroll"><table class="words"><tbody>{body}</tbody></table></div>'
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def curve(name: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], log2_x: bool = False) -> str:
    """Lines over one axis, with a legend.

    Args:
        name: of the plot
        lines: (x, y) by their names
        log2_x: x in powers of two
    """
    colours = [SCALE_COLOURS[index % len(SCALE_COLOURS)] for index in range(len(lines))]

    def draw(axes: Any) -> None:
        for (x, y), colour, dash in zip(lines.values(), colours, _dashes(len(lines)), strict=True):
            axes.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=3, linestyle=dash)
        if log2_x:
            axes.set_xscale("log", base=2)
            ticks = sorted({value for x, _ in lines.values() for value in x})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()

    legend = " &nbsp; ".join(
        f'<span style="color:{colour}">{"●" if dash == "-" else "○"}</span> {html.escape(line)}'
        for line, colour, dash in zip(lines, colours, _dashes(len(lines)), strict=True)
    )
    caption = f"<figcaption><b>{html.escape(name)}</b><i>{legend if len(lines) > 1 else ''}</i></figcaption>"
    return f'<figure class="curve">{caption}{svg(name, 5.6, 3.0, draw)}</figure>'


def _dashes(count: int) -> list[str]:
    return ["-" if index < len(SCALE_COLOURS) else "--" for index in range(count)]


def picture(path: Path, page: Path, note: str = "", shown_px: int = 128) -> str:
    """A picture that lies beside or below the page, enlarged without blur.

    Args:
        path: of the picture
        page: folder of the page
        note: below it
        shown_px: its side on the page
    """
    link = html.escape(Path(os.path.relpath(path, page)).as_posix())
    image = f'<img class="sharp" src="{link}" alt="{html.escape(note)}" width="{shown_px}" loading="lazy">'
    return f'<a class="picture" href="{link}">{image}<span>{html.escape(note)}</span></a>'


def row(pictures: Sequence[str], title: str = "") -> str:
    """Pictures side by side, which a narrow page wraps."""
    above = f"<h3>{html.escape(title)}</h3>" if title else ""
    return f'{above}<div class="row">{"".join(pictures)}</div>'


def grid(rows: Sequence[str]) -> str:
    """Titled rows of pictures, as many beside each other as the page is wide."""
    return f'<div class="rows">{"".join(f"<div>{each}</div>" for each in rows)}</div>'


def folded(summary: str, body: str) -> str:
    """What a glance at the page need not show."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"
