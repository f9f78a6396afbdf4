"""Distances as a part of the report: a table over blur radii, and the curve of Figure 9."""

from __future__ import annotations

from typing import Any

from dalle.evaluation.measures.blur import DEFINITION
from dalle.evaluation.measures.comparison import AtRadius, Comparison
from dalle.evaluation.report.section import Section, curve, folded, prose, table


def section(comparison: Comparison, key: str = "distances", title: str = "Distances from real images") -> Section:
    """The part of the report that a comparison makes.

    Args:
        comparison: what was found
        key: of its figures
        title: above it
    """
    source = comparison.source
    intro = prose(
        f"{comparison.num_images:,} images beside {comparison.num_reference:,} of the reference, as {source.name} sees them "
        f"(weights {source.hash[:16]}…). Fréchet and kernel distance: less is closer. Precision: the share of images that look "
        "real. Recall: the share of the real ones' variety that is reached. Figures of other features do not compare."
    )
    names = ("precision", "recall", "density", "coverage")
    score_name = comparison.class_score_name.replace("_", " ")
    header = ["blur radius, px", comparison.frechet_name, f"{comparison.kernel_name} × 1000", "±", *names]
    scored = comparison.at[0].class_score is not None
    header += [score_name, "±", "that of the reference"] if scored else []
    body = intro + table(header, [_row(at, names, scored) for at in comparison.at])
    if len(comparison.at) > 1:
        ordered = sorted(comparison.at, key=lambda at: at.radius_px)
        line = [at.radius_px for at in ordered], [at.frechet_distance for at in ordered]
        body += curve(f"{comparison.frechet_name} over blur radius, px", {source.name: line})
    body += folded("How this was computed", prose(f"Images are brought {source.resizer}. Blur: {DEFINITION}."))
    return Section(key, title, body, comparison.figures(), comparison.notes)


def _row(at: AtRadius, names: tuple[str, ...], scored: bool) -> list[Any]:
    kernel, near = at.kernel_distance, at.neighbourhoods
    shares = [None if near is None else getattr(near, name) for name in names]
    cells = [f"{at.radius_px:g}", at.frechet_distance, 1000 * kernel.mean, 1000 * kernel.std, *shares]
    if scored:
        assert at.class_score is not None and at.class_score_reference is not None
        cells += [at.class_score.mean, at.class_score.std, at.class_score_reference.mean]
    return cells
