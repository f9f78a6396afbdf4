"""What reranking gains: figures of the best of the first N candidates, over N, all from one set (Figure 9c)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dalle.evaluation.layout import Prompted
from dalle.evaluation.report.section import Section, curve, prose, table
from dalle.evaluation.steps.drawn import Candidates, best_path, curve_of

_DISTANCE = "frechet_distance"
TAPER = 0.01
"""The curve is said to taper at the first N whose figure is short of the best by at most this share of the whole gain."""


def accuracy_over_n(candidates: Sequence[Candidates], n: int) -> dict[str, dict[int, float]]:
    """Shares of captions, by N: `reranked`, whose best of N shows them, and `any_right`, of which any of N does; and
    `unranked`, the share of all candidates that are right, which is the expectation at N = 1.

    Args:
        candidates: of each caption, judged
        n: the most
    """
    sizes = curve_of(n)
    return {
        "reranked": {
            size: float(np.mean([each.is_right(each.best_of(size)) for each in candidates])) for size in sizes
        },
        "any_right": {size: float(np.mean([_any_right(each, size) for each in candidates])) for size in sizes},
        "unranked": {1: float(np.mean([_share_right(each) for each in candidates]))},
    }


def tapers_at(values: dict[int, float], least: bool = False) -> int:
    """The first N whose figure is within a hundredth of the whole gain of the best.

    Args:
        values: by N
        least: of a figure that is better when smaller
    """
    sizes = sorted(values)
    sign = -1 if least else 1
    best = max(sign * values[size] for size in sizes)
    whole = best - sign * values[sizes[0]]
    for size in sizes:
        if best - sign * values[size] <= TAPER * whole:
            return size
    return sizes[-1]


def winners(prompted: Sequence[Prompted], candidates: Sequence[Candidates], folder: Path, n: int) -> list[Path]:
    """The image of each caption that is the best of its first n candidates."""
    return [best_path(folder, each.number, found.best_of(n)) for each, found in zip(prompted, candidates, strict=True)]


def ranking_section(figures: dict[str, Any], captions: int) -> Section:
    """Table and plots over N.

    Args:
        figures: by name a dict of N to a value: "frechet_distance (FEATURES)", "clip_score", "reranked", "any_right", "unranked"
        captions: how many they are means of
    """
    sizes = sorted({n for values in figures.values() for n in values})
    names = list(figures)
    rows = [[n, *(figures[name].get(n) for name in names)] for n in sizes]
    distances = {name: _line(figures[name]) for name in names if name.startswith(_DISTANCE)}
    scores = {name: _line(figures[name]) for name in names if name == "clip_score"}
    shares = {name.replace("_", " "): _line(figures[name]) for name in names if name in ("reranked", "any_right")}
    plots = "".join(
        curve(title, lines, log2_x=True)
        for title, lines in (
            ("Fréchet distance over N", distances),
            ("CLIP score over N", scores),
            ("share right over N", shares),
        )
        if lines
    )
    tapers = {
        name: tapers_at(figures[name], least=name.startswith(_DISTANCE))
        for name in names
        if len(figures[name]) > 1 and name != "any_right"
    }
    told = "; ".join(f"{name.replace('_', ' ')} tapers at N = {n}" for name, n in tapers.items())
    body = prose(
        f"The best of the first N candidates of each of {captions:,} captions, all from one set of {sizes[-1]}. {told}."
    )
    return Section(
        "ranking",
        "Reranking over N",
        body + plots + table(["N", *(name.replace("_", " ") for name in names)], rows),
        {**{name: {str(n): value for n, value in figures[name].items()} for name in names}, "tapers_at": tapers},
    )


def _line(values: dict[int, float]) -> tuple[list[float], list[float]]:
    sizes = sorted(values)
    return [float(size) for size in sizes], [values[size] for size in sizes]


def _any_right(candidates: Candidates, n: int) -> bool:
    assert candidates.right is not None, "of the drawn data"
    pairs = zip(candidates.numbers, candidates.right, strict=True)
    return any(right for number, right in pairs if number < n)


def _share_right(candidates: Candidates) -> float:
    times, right = np.array(candidates.times), np.array(candidates.right)
    return float((times * right).sum() / times.sum())
